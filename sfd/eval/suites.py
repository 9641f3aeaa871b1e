"""The only reader of `eval/`: suites (claims stated in advance) and reference statistics."""

import inspect
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from sfd import attacks, classifiers, content, metrics
from sfd.content import Strict


class Below(Strict):
    """The claim holds if the whole interval is below."""

    below: float = Field(gt=0)


class Above(Strict):
    """The claim holds if the whole interval is above."""

    above: float = Field(gt=0, lt=1)


class Direct(Strict):
    """Claim on the rate at which the forgotten concept is drawn.

    `decided_by` "worse" takes the worse of the raw and the corrected upper end; "corrected" takes
    the corrected one alone where the override claim PASSes, and must say `why`.
    """

    below: float = Field(gt=0, lt=1)
    decided_by: Literal["worse", "corrected"] = "worse"
    why: str | None = None


class Margin(Strict):
    """Claim of non-inferiority: no class loses more than this."""

    margin: float = Field(gt=0, lt=1)


class Hygiene(Strict):
    """Claim that no released network is the teacher and that nothing comes off."""


class Claims(Strict):
    """What a suite claims of a subject; a claim that is absent is not made."""

    direct: Direct | None = None
    validity: Above | None = None
    override: Below | None = None
    cross_leak: Margin | None = None
    collateral: Margin | None = None
    quality: Below | None = None
    hygiene: Hygiene | None = None


class Attack(Strict):
    """An attack with its budget, and what is claimed of it, if anything.

    `margin`: it succeeds at most this much more often than on the gold. `steps_ratio`: it takes at
    least this share of the steps that it takes on the gold. `id` tells apart two of one name.
    `leaky_n`: the `n` of its leaky control, which is there to break: the first of its targets.
    """

    name: str
    id: str | None = None
    budget: dict[str, bool | int | float] = {}
    margin: float | None = Field(None, gt=0, lt=1)
    steps_ratio: float | None = Field(None, gt=0, le=1)
    leaky_n: int | None = Field(None, ge=1)

    @property
    def called(self) -> str:
        """Its id, or its name."""
        return self.id or self.name


class Samples(Strict):
    """Planned numbers of images: per concept, and per retained class."""

    direct: int = Field(gt=0)
    per_class: int = Field(gt=0)


class TeacherSampling(Strict):
    """How the teacher is sampled: Heun `steps`, and of these guidances the best by FID on `n`."""

    steps: int = Field(default=18, ge=1)
    guidance: list[float] = Field(default=[1.0], min_length=1)
    n: int = Field(default=2000, gt=0)

    @property
    def choices(self) -> list[float]:
        """The guidances to try: none where there is but one."""
        return self.guidance if len(self.guidance) > 1 else []


class Suite(Strict):
    """A suite's YAML: who judges what with how many samples, and what is claimed.

    `second` is a judge trained independently of `judge`; `features` measures quality and judges
    nothing; `reference` holds features of real images that neither teacher nor extractor saw.
    Attacks optimise against `judge` and are judged by `second`; `attack_images` are the attacker's:
    labelled images by path, or 'teacher' for samples that the teacher draws.
    """

    version: Literal[1]
    name: str
    threat_model: Literal["api", "open-weights"]
    judge: str
    second: str
    features: str
    reference: str
    n: Samples
    teacher: TeacherSampling = TeacherSampling()
    claims: Claims
    attacks: list[Attack] = []
    attack_images: str = "teacher"


class Judges(Strict):
    """Who judges one factor of a prompt: a judge and a second, trained apart, of the same labels.

    Their labels are the factor's values, and the words for them in prompts.
    """

    judge: str
    second: str


class PromptSamples(Strict):
    """Planned numbers of images: per concept over all held-out prompts, and per combination."""

    direct: int = Field(gt=0)
    per_cell: int = Field(gt=0)


class PromptSuite(Strict):
    """A suite for prompts: every combination of the factors' values is asked for.

    `templates` hold the factors' names in braces; `cell` is the name of a combination among the
    reference's classes. Attacks on a concept optimise against its factor's `judge` and its `second`
    judges them; `paraphrases` are lists of prompts (as `concepts/` has them) by the concept's
    label; what else an attacker has, the teacher draws.
    """

    version: Literal[1]
    kind: Literal["prompts"]
    name: str
    threat_model: Literal["api", "open-weights"]
    factors: dict[str, Judges] = Field(min_length=1)
    templates: list[str] = Field(min_length=1)
    cell: str
    features: str
    reference: str
    n: PromptSamples
    teacher: TeacherSampling
    claims: Claims
    attacks: list[Attack] = []
    attack_images: Literal["teacher"] = "teacher"
    paraphrases: dict[str, str] = {}

    @model_validator(mode="after")
    def _templates_ask_for_every_factor(self) -> "PromptSuite":
        for text in (*self.templates, self.cell):
            missing = next((name for name in self.factors if "{" + name + "}" not in text), None)
            if missing:
                raise ValueError(f"{text!r} does not ask for {{{missing}}}")
        return self


AnySuite = Suite | PromptSuite


def judges_of(suite: AnySuite) -> list[str]:
    """Names of both judges, of each factor in turn."""
    pairs = suite.factors.values() if isinstance(suite, PromptSuite) else [suite]
    return [name for pair in pairs for name in (pair.judge, pair.second)]


def load(name: str, raised: Mapping[str, int] | None = None) -> AnySuite:
    """A suite by name or path, with its numbers of samples raised.

    Raises ValueError on an unknown number, or one below the suite's.
    """
    path = content.find("eval/suites", name)
    of_prompts = content.read_yaml(path).get("kind") == "prompts"
    suite = content.load(path, PromptSuite if of_prompts else Suite)
    planned = suite.n.model_dump()
    for key, value in (raised or {}).items():
        if key not in planned:
            raise ValueError(f"audit.n: unknown key {key!r}{content.did_you_mean(key, planned)}")
        if value < planned[key]:
            raise ValueError(
                f"audit.n.{key}={value} is below the suite's {planned[key]}: a recipe may raise a"
                " suite's samples, never lower them"
            )
        planned[key] = value
    _check_attacks(suite)
    return suite.model_copy(update={"n": type(suite.n)(**planned)})


def load_named_by_model(name: str, raised: Mapping[str, int], where: str, instead: str) -> AnySuite:
    """`load` of a suite that a model's own files (`where`) name, which may have come with it.

    Raises ValueError also if the suite names code of a file, which would be run: `instead` is how
    the user names what is theirs.
    """
    own = content.read_yaml(content.find("eval/suites", name)).get("attacks", [])
    if ".py:" in str(own):  # to load it would import them
        raise ValueError(
            f"{where}: its suite names code for an attack, and code that a model names is not run;"
            f" if it is yours, {instead}"
        )
    suite = load(name, raised)
    classifiers.refuse_code(judges_of(suite), where, instead)
    return suite


def _check_attacks(suite: AnySuite) -> None:
    for attack in suite.attacks:
        _check_attack(suite, attack)
    called = [attack.called for attack in suite.attacks]
    twice = next((name for name in called if called.count(name) > 1), None)
    if twice:
        raise ValueError(f"suite {suite.name}: two attacks are called {twice!r}: give one an id")


def _check_attack(suite: AnySuite, plan: Attack) -> None:
    """Raise ValueError where an attack does not fit its suite or its budget."""
    attack, where = attacks.find(plan.name), f"suite {suite.name}: attack {plan.called}"
    if attack.access == "open-weights" and suite.threat_model == "api":
        raise ValueError(f"{where}: needs the weights, the threat model is api: move it to another")
    known = inspect.signature(attack.run).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        options = [p.name for p in known.values() if p.kind is p.KEYWORD_ONLY and p.name != "seed"]
        for key in plan.budget:
            if key not in options:
                near = content.did_you_mean(key, options)
                raise ValueError(f"{where}: its budget has no {key!r}{near}")
    for key, value in plan.budget.items():
        kind = type(attack.defaults.get(key, value))
        fits = isinstance(value, bool) if kind is bool else kind is float or type(value) is int
        if not fits or (kind is not bool and value <= 0):
            wanted = {bool: "true or false", int: "a whole number of 1 or more"}
            raise ValueError(f"{where}: {key}={value}: give {wanted.get(kind, 'a number above 0')}")
    wrong = "margin" if attack.measure == "steps" else "steps_ratio"
    if getattr(plan, wrong) is not None:
        right = "steps_ratio" if attack.measure == "steps" else "margin"
        raise ValueError(f"{where}: is claimed by {right}, not by {wrong}")
    n = {**attack.defaults, **plan.budget}.get("n", 0)
    if plan.leaky_n is not None and plan.leaky_n > n:
        raise ValueError(f"{where}: leaky_n={plan.leaky_n} must be at most its n={n}")


def sha256(suite: AnySuite) -> str:
    """Hash of everything a suite says, its raised numbers of samples included."""
    return content.hash_json(plain(suite))


def plan_sha256(suite: Suite, labels: Sequence[str]) -> str:
    """Hash of what is asked of subject and teacher alike: their shared seeds follow from it."""
    return content.hash_json({"suite": plain(suite), "labels": list(labels)})


def plain(suite: AnySuite) -> dict[str, Any]:
    """A suite as plain data; attacks are there only if there are any."""
    unsaid = set() if suite.attacks else {"attacks", "attack_images", "paraphrases"}
    return suite.model_dump(mode="json", exclude=unsaid)


@dataclass(frozen=True)
class Reference:
    """Features of real images, for distances; `floor` is what real against real shows."""

    name: str
    features: np.ndarray
    """float32 `[N, D]`."""
    labels: np.ndarray
    """int `[N]` into `names`."""
    names: list[str]
    extractor: str
    extractor_sha256: str | None
    floor: dict[str, Any]
    """`fid`, with `n` (other real images) and `m` (of these), over all classes; empty if none."""
    sha256: str


def reference_bytes(
    features: np.ndarray,
    labels: np.ndarray,
    names: list[str],
    *,
    extractor: str,
    extractor_sha256: str | None,
    other: tuple[np.ndarray, np.ndarray] | None,
    about: str,
) -> bytes:
    """An npz of a reference: features (half precision), labels, and what they are.

    `other` are features `[M, D]` and labels of further real images, unseen by the extractor, from
    which floors follow: over all classes, and without each class. Raises ValueError on too few
    images.
    """
    metrics.moments(features)
    floor: dict[str, Any] = {}
    if other is not None:
        floor["all"] = _floor(other[0], features)
        for label in range(len(names)):
            keep, mine = other[1] != label, labels != label
            if keep.any() and mine.any():
                floor[f"without {names[label]}"] = _floor(other[0][keep], features[mine])
    meta = {
        "schema": "sfd/reference/1",
        "extractor": extractor,
        "extractor_sha256": extractor_sha256,
        "names": names,
        "floor": floor,
        "about": about,
    }
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        features=features.astype(np.float16),
        labels=labels.astype(np.int16),
        meta=np.array(json.dumps(meta)),
    )
    return buffer.getvalue()


def _floor(other: np.ndarray, mine: np.ndarray) -> dict[str, Any]:
    return {
        "fid": metrics.fid(other, mine),
        "n": len(other),
        "m": len(mine),
    }


def read_reference(name: str) -> Reference:
    """A reference by name (in `eval/references/`) or path. Raises ValueError in one line."""
    path = Path(name).expanduser()
    if path.suffix != ".npz":
        known = {p.stem: p for root in content.roots("eval") for p in root.glob("references/*.npz")}
        if name not in known:
            raise ValueError(f"no reference called {name!r}{content.did_you_mean(name, known)}")
        path = known[name]
    # numpy takes what is no archive for a pickle, and says so
    if path.is_file() and not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: truncated or not an npz, which a reference is")
    try:
        with np.load(path, allow_pickle=False) as file:
            meta = json.loads(str(file["meta"]))
            features, labels = file["features"].astype(np.float32), file["labels"].astype(int)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: missing, truncated or not a reference: {error}") from None
    return Reference(
        name=path.stem,
        features=features,
        labels=labels,
        names=meta["names"],
        extractor=meta["extractor"],
        extractor_sha256=meta["extractor_sha256"],
        floor=meta["floor"],
        sha256=content.sha256(path),
    )
