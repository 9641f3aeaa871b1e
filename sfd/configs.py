"""The only reader of recipes: what a YAML may say, checked before anything is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from sfd import content, networks, schedules
from sfd.content import Pair, Strict

Precision = Literal["fp32", "bf16"]
Word = Annotated[str, Field(min_length=1)]
Label = Annotated[str, BeforeValidator(str)]  # digits are numbers to YAML
Batch = Annotated[int, Field(gt=0, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Named(Strict):
    """A row of a table by name (or `./mine.py:fn`); the other keys are its options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    def options(self) -> dict[str, Any]:
        """The keys beside `name`."""
        return dict(self.model_extra or {})


# --- sfd classifier ------------------------------------------------------------------------------


class Judge(Strict):
    """`sfd classifier`'s keys, in YAML or as `key=value`: see `fit.train_classifier`.

    `labels` name the classes of data that has no names; only the first `rows` images are learned
    from. `data` and `heldout_data` are what the card calls the images (default: their paths).
    """

    version: Literal[1] = 1
    name: str | None = None
    task: Literal["classify", "features"] = "classify"
    arch: str = "resnet10t"
    kwargs: dict[str, Any] = {}
    labels: list[str] | None = None
    rows: int | None = Field(None, gt=0)
    size: int | None = Field(None, gt=0)
    epochs: int = Field(12, ge=1)
    batch: int = Field(128, ge=2, le=1_000_000)
    lr: float = Field(3e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    seed: Seed = 0
    smoothing: float = Field(0.05, ge=0, lt=1)
    shift: float = Field(0.0, ge=0)
    rotate: float = Field(0.0, ge=0)
    scale: float = Field(0.0, ge=0, lt=1)
    flip: bool = False
    precision: Precision = "fp32"
    folds: int = Field(0, ge=0)
    data: str | None = None
    heldout_data: str | None = None
    licence: str = "unstated"

    def training(self) -> dict[str, Any]:
        """What goes to `fit.train_classifier` as it is."""
        own = {"version", "name", "labels", "rows", "folds", "data", "heldout_data"}
        return self.model_dump(exclude=own)


def load_judge(path: str | None, overrides: Sequence[str] = ()) -> Judge:
    """The keys of `sfd classifier`, from a file if one is named. Raises ValueError in one line."""
    data = content.read_yaml(Path(path).expanduser()) if path else {}
    for text in overrides:
        _override(data, text)
    return content.check(data, Judge, path or "sfd classifier")


# --- sfd pretrain --------------------------------------------------------------------------------


class Network(Strict):
    """An architecture: a row of `networks.NETWORKS`, its options, and the adapter's."""

    name: str
    patch: int = Field(1, ge=1)
    sigma_data: float = Field(0.5, gt=0)
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _known(self) -> "Network":
        if self.name not in networks.NETWORKS:
            near = content.did_you_mean(self.name, networks.NETWORKS)
            raise ValueError(f"no network called {self.name!r}{near}")
        return self

    def spec(self) -> dict[str, Any]:
        """What `teachers.build_denoiser` takes."""
        return {
            "kind": "edm",
            "network": self.name,
            "options": self.options,
            "patch": self.patch,
            "sigma_data": self.sigma_data,
        }


class Pretraining(Strict):
    """`sfd pretrain`'s numbers; counts are in images."""

    images: int = Field(gt=0)
    batch: Batch = 64
    lr: float = Field(1e-3, gt=0)
    warmup: int = Field(5_000, ge=0)
    decay_from: float = Field(0.5, ge=0, le=1)
    ema_images: float = Field(20_000, ge=0)
    label_dropout: float = Field(0.1, ge=0, lt=1)
    flip: bool = False
    sigma: Named = Named(name="log-normal")
    precision: Precision = "bf16"
    seed: Seed = 0
    checkpoint: int = Field(50_000, gt=0)
    sheets: int = Field(100_000, gt=0)

    @model_validator(mode="after")
    def _noise_levels_exist(self) -> "Pretraining":
        schedules.sampler(**self.sigma.model_dump())
        return self


class TeacherRecipe(Strict):
    """A recipe of `sfd pretrain`."""

    version: Literal[1]
    kind: Literal["teacher"]
    name: str = Field(pattern=r"^[\w.-]+$")
    data: str
    labels: list[str] = Field(min_length=1)
    exclude: list[int] = []
    network: Network
    train: Pretraining

    @model_validator(mode="after")
    def _excluded_labels_exist(self) -> "TeacherRecipe":
        bad = [label for label in self.exclude if not 0 <= label < len(self.labels)]
        if bad:
            raise ValueError(f"exclude: no label {bad[0]} among {len(self.labels)}")
        if len({*self.exclude}) == len(self.labels):
            raise ValueError("exclude: leaves no label to learn")
        if self.exclude and not self.train.label_dropout:
            raise ValueError("exclude: a label that is never shown is asked for as none, which"
                             " without train.label_dropout is never shown either")  # fmt: skip
        return self


class Autoencoder(Strict):
    """A small AutoencoderKL: channels per level (one halving between two), and its training."""

    channels: list[int] = Field(min_length=1)
    latent: int = Field(4, gt=0)
    images: int = Field(gt=0)
    batch: Batch = 64
    lr: float = Field(1e-3, gt=0)
    kl: float = Field(1e-6, ge=0)


class TextModel(Strict):
    """A small CLIPTextModel; `length` is the limit of a prompt in tokens."""

    vocabulary: int = Field(default=600, ge=514)
    length: int = Field(default=32, ge=8, le=77)
    width: int = Field(default=64, gt=0)
    layers: int = Field(default=2, gt=0)
    heads: int = Field(default=4, gt=0)


class TextUNet(Strict):
    """A small UNet2DConditionModel, cross-attention at its coarsest level."""

    channels: list[int] = Field(min_length=1)
    layers: int = Field(2, gt=0)
    heads: int = Field(4, gt=0)


class TextPretraining(Strict):
    """The numbers of the joint training of UNet and text model; counts are in images."""

    images: int = Field(gt=0)
    batch: Batch = 64
    lr: float = Field(1e-3, gt=0)
    warmup: int = Field(5_000, ge=0)
    decay_from: float = Field(0.5, ge=0, le=1)
    ema_images: float = Field(20_000, ge=0)
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    precision: Precision = "bf16"
    seed: Seed = 0
    sheets: int = Field(50_000, gt=0)


class TextTeacherRecipe(Strict):
    """A recipe of `sfd pretrain` for a text-to-image pipeline; `exclude` are words that no caption
    it learns from has."""

    version: Literal[1]
    kind: Literal["text-teacher"]
    name: str = Field(pattern=r"^[\w.-]+$")
    data: str
    exclude: Annotated[list[Word], Field(min_length=1)] | None = None
    vae: Autoencoder
    text: TextModel = TextModel()
    unet: TextUNet
    train: TextPretraining


# --- sfd run -------------------------------------------------------------------------------------


class TeacherRef(Strict):
    """Where the pretrained model comes from: exactly one of the four."""

    name: str | None = None
    file: str | None = None
    diffusers: str | None = None
    factory: str | None = None
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_source(self) -> "TeacherRef":
        given = [k for k in ("name", "file", "diffusers", "factory") if getattr(self, k)]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of name (an embedded teacher), file, diffusers, factory"
            )
        return self


class Forgetting(Strict):
    """The rule, the share of forget rows, and a forget row's weights against a retained row's 1."""

    rule: str = "override"
    share: float = Field(0.25, ge=0, lt=1)
    weight_student: float = Field(default=0.3, ge=0)
    weight_fake: float = Field(default=1.0, ge=0)
    options: dict[str, Any] = {}


class Guidance(Strict):
    """k of D(null) + k (D(c) - D(null)), where the fake score learns, where it is asked, and in the
    target (arXiv 2406.01561).

    `interval` is (low, high] of sigma, where alone the target is guided (arXiv 2404.07724): at
    little noise a guided score is that of a narrower distribution than its sampler draws from, and
    a student of it collapses within classes. `labels` is the k of single classes, in place of
    `target`: guidance makes a class of its neighbours' kind clearer and every class less various.
    """

    train: float = Field(default=1.0, ge=0)
    fake: float = Field(default=1.0, ge=0)
    target: float = Field(default=1.0, ge=0)
    labels: dict[Label, Annotated[float, Field(ge=0)]] | None = None
    interval: Pair | None = None

    @model_validator(mode="after")
    def _interval_is_one(self) -> "Guidance":
        if self.interval and not 0 <= self.interval[0] < self.interval[1]:
            raise ValueError("interval: give [low, high] with 0 <= low < high, in sigma")
        if self.interval and {self.target, *(self.labels or {}).values()} == {1.0}:
            raise ValueError("interval: there is no guidance to limit while target is 1")
        return self


class Lora(Strict):
    """Student and fake score as low-rank adapters over the one teacher."""

    rank: int = Field(gt=0)
    alpha: float = Field(gt=0)
    targets: list[str] = ["to_q", "to_k", "to_v", "to_out.0"]


class Training(Strict):
    """Distillation's numbers; counts are in images of the global batch."""

    images: int = Field(gt=0)
    batch: Batch = 64
    accumulate: Batch = 1
    lr_student: float = Field(gt=0)
    lr_fake: float = Field(gt=0)
    optimizer_student: Literal["adam", "muon"] = "adam"
    warmup: int = Field(0, ge=0)
    decay_from: float = Field(0.5, ge=0, le=1)
    ema_images: float = Field(ge=0)
    precision: Precision = "bf16"
    lora: Lora | None = None
    init: Literal["random"] | None = None
    """Fresh weights for the student, which then never held what is forgotten; else the teacher's.
    The fake score starts from the teacher all the same."""
    checkpointing: bool = False
    """Trade time for memory: activations of a large network are computed twice."""
    seed: Seed = 0
    tick: int = Field(1_000, gt=0)
    checkpoint: int = Field(10_000, gt=0)
    watch: int = Field(500, ge=0)
    """Images per concept and over the retained classes that each look during training draws."""

    @model_validator(mode="after")
    def _batch_is_whole(self) -> "Training":
        if self.batch % self.accumulate:
            raise ValueError(
                f"accumulate: {self.batch} images have no {self.accumulate} equal parts"
            )
        return self


class AuditPlan(Strict):
    """Which suite audits the run; `n` may raise the suite's, never lower it."""

    suite: str
    n: dict[str, int] = {}


class Recipe(Strict):
    """A recipe of `sfd run`."""

    version: Literal[1]
    teacher: TeacherRef
    concepts: list[str] = []
    prompts: str | None = None
    """The prompts that a text-to-image model is asked; those of the concepts are left out."""
    start: str | None = None
    objective: Named
    forgetting: Forgetting = Forgetting(rule="none", share=0.0)
    guidance: Guidance = Guidance()
    train: Training
    audit: AuditPlan | None = None
    out: str | None = None

    @model_validator(mode="after")
    def _one_beginning(self) -> "Recipe":
        if self.train.init and (self.start or self.train.lora):
            raise ValueError(
                "train.init: random weights go neither with `start`, which has its own, nor with"
                " train.lora, whose base is the teacher"
            )
        return self


KINDS: dict[str, type[Strict]] = {
    "run": Recipe,
    "teacher": TeacherRecipe,
    "text-teacher": TextTeacherRecipe,
}
"""Recipes by their `kind`; one without is a run's."""


def kind_of(path: Path) -> type[Strict]:
    """Which model a recipe's YAML is of. Raises ValueError on a kind that there is not."""
    kind = str(content.read_yaml(path).get("kind", "run"))
    if kind not in KINDS:
        raise ValueError(f"{path}: no recipe of kind {kind!r}{content.did_you_mean(kind, KINDS)}")
    return KINDS[kind]


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name or path, with `key=value` overrides. Raises ValueError in one line."""
    return _load(name, overrides, (Recipe,))


def load_teacher(name: str, overrides: Sequence[str] = ()) -> TeacherRecipe | TextTeacherRecipe:
    """A teacher's recipe by name or path, with `key=value` overrides."""
    return _load(name, overrides, (TeacherRecipe, TextTeacherRecipe))


def _load(name: str, overrides: Sequence[str], models: tuple[type[Any], ...]) -> Any:
    path = content.find("configs", name)
    model = kind_of(path)
    if model not in models:
        verb = "run" if model is Recipe else "pretrain"
        raise ValueError(f"{path}: this is a recipe of `sfd {verb}`")
    data = content.read_yaml(path)
    for text in overrides:
        _override(data, text)
    return content.check(data, model, str(path))


def _override(data: dict[str, Any], text: str) -> None:
    """Apply `a.b=value` (the value is YAML) in place; unknown keys are found by the check after."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"{text!r}: expected key=value, as in train.batch=64")
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ValueError(f"{text!r}: {parent!r} has no keys below it")
    data[last] = content.parse_yaml(value, repr(text))


def folder_of(name: str, recipe: Recipe, out: str | None = None) -> Path:
    """Where a recipe's run lives: `out`, the recipe's `out`, or `runs/<name>`."""
    return Path(out or recipe.out or f"runs/{Path(name).stem}").expanduser()


def plain(recipe: Strict) -> dict[str, Any]:
    """A recipe as plain data, every default spelled out."""
    return recipe.model_dump(mode="json", exclude_none=True)


def sha256(recipe: Recipe | TeacherRecipe | TextTeacherRecipe) -> str:
    """Hash of everything in a recipe that shapes its weights: not where it is put or looked at."""
    return content.hash_json(_shaping(recipe))


def own_code(recipe: Recipe) -> dict[str, str]:
    """The hash of every file of the user's own that a recipe names a function of."""
    named = (recipe.objective.name, recipe.forgetting.rule, recipe.teacher.factory or "")
    files = sorted({name.rpartition(":")[0] for name in named if ".py:" in name})
    return {file: content.sha256(Path(file).expanduser()) for file in files}


def family_sha256(recipe: Recipe | TeacherRecipe | TextTeacherRecipe) -> str:
    """`sha256` of a recipe but for its seed: runs of one family differ in the seed alone."""
    data = _shaping(recipe)
    data["train"].pop("seed", None)
    return content.hash_json(data)


def _shaping(recipe: Recipe | TeacherRecipe | TextTeacherRecipe) -> dict[str, Any]:
    data = plain(recipe)
    for key in ("out", "audit"):
        data.pop(key, None)
    for key in ("tick", "checkpoint", "watch", "sheets"):
        data["train"].pop(key, None)
    return data
