"""Teachers: pretrained diffusion models behind one denoiser contract (`contract.py`)."""

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sfd import checkpoints, content, plugins
from sfd.teachers import diffusers_unet, mixture, stable_diffusion
from sfd.teachers.contract import (
    NotFinite,
    Raw,
    Teacher,
    check_guided,
    finite_rows,
    from_uint8,
    guided,
    one_hot,
    to_uint8,
    unguided,
)
from sfd.teachers.ddpm import DDPMDenoiser
from sfd.teachers.diffusers_unet import DiffusersDenoiser
from sfd.teachers.edm import EDMDenoiser
from sfd.teachers.stable_diffusion import StableDiffusionDenoiser

__all__ = [
    "DENOISERS",
    "PRECISIONS",
    "Adapter",
    "NotFinite",
    "Raw",
    "Teacher",
    "build_denoiser",
    "check",
    "check_checkpointing",
    "check_guided",
    "check_released",
    "checkpoint_activations",
    "embedded",
    "finite_rows",
    "from_uint8",
    "fuse_attention",
    "guided",
    "interface",
    "language",
    "load",
    "load_file",
    "of_card",
    "one_hot",
    "read_file",
    "set_precision",
    "to_uint8",
    "unguided",
]

Adapter = EDMDenoiser | DDPMDenoiser | DiffusersDenoiser | StableDiffusionDenoiser

DENOISERS: dict[str, type[Adapter]] = {
    "edm": EDMDenoiser,
    "ddpm": DDPMDenoiser,
    "diffusers-unet": DiffusersDenoiser,
    "stable-diffusion": StableDiffusionDenoiser,
}
"""Adapters that a released file can name, by `spec["kind"]`."""

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}

Interface = tuple[Callable[[Raw], torch.Tensor], Callable[[torch.Tensor], np.ndarray]]
"""`encode` and `decode`, as a Teacher has them."""

_WEIGHTS = stable_diffusion.EMBEDDED


def embedded() -> list[str]:
    """Names of the teachers that the package carries, the analytic one included."""
    files = (path.stem for path in _WEIGHTS.glob("*.safetensors"))
    folders = (path.parent.name for path in _WEIGHTS.glob("*/model_index.json"))
    return sorted([*files, *folders, "mixture"])


def load(
    *,
    name: str | None = None,
    file: str | None = None,
    diffusers: str | None = None,
    factory: str | None = None,
    options: Mapping[str, Any] = {},
    device: torch.device,
) -> Teacher:
    """A teacher from exactly one source.

    `name` an embedded one, `file` one that `sfd pretrain` wrote, `diffusers` a Stable Diffusion
    pipeline's folder or one with a class-conditional UNet2DModel, `factory` the user's own
    `./mine.py:build`, called with `device` and `options`. Raises ValueError, in one
    line, on anything missing or unfit.
    """
    if factory:
        build = plugins.resolve({}, factory, "teachers")
        teacher = _called(build, options, device, factory)
        check(teacher, factory)
        return teacher
    if name == "mixture":
        return _called(mixture.build, options, device, "mixture")
    carried = stable_diffusion.embedded(name)
    if carried or diffusers:
        folder = carried or Path(diffusers or "").expanduser()
        signs = ("model_index.json", "unet/config.json", "config.json")
        if not any((folder / sign).is_file() for sign in signs):
            raise ValueError(f"{folder}: not a diffusers folder: has none of {', '.join(signs)}")
        read = stable_diffusion.load if is_pipeline(folder) else diffusers_unet.load
        return _called(partial(read, folder), options, device, str(folder))
    if options:
        raise ValueError(f"teacher {name or file}: takes no options")
    if file:
        return load_file(Path(file).expanduser(), device)
    assert name
    if name not in embedded():
        raise ValueError(f"no teacher called {name!r}{content.did_you_mean(name, embedded())}")
    return load_file(_WEIGHTS / f"{name}.safetensors", device)


def of_card(ref: Mapping[str, Any], device: torch.device, *, trusted: str | None = None) -> Teacher:
    """The teacher that a student's card names.

    A factory is code that may have come with the student: it runs only if it is `trusted`, which
    the user names. Raises ValueError on any other, and what `load` raises.
    """
    source = {key: value for key, value in ref.items() if key != "sha256"}
    code = source.get("factory")
    if code and code != trusted:
        raise ValueError(
            f"its card names {code} as its teacher, and code that a model names is not run; if it"
            f" is yours, `sfd audit` takes --teacher {code}"
        )
    return load(**source, device=device)


def is_pipeline(folder: Path) -> bool:
    """Whether a folder claims to be a text-to-image pipeline."""
    index = folder / "model_index.json"
    return index.is_file() and "text_encoder" in checkpoints.read_json(index)


def _called(build: Any, options: Mapping[str, Any], device: torch.device, where: str) -> Teacher:
    try:
        inspect.signature(build).bind_partial(device=device)
    except TypeError as error:
        raise ValueError(f"teacher {where}: {error}") from None
    checked = content.options_of(build, options, f"teacher {where}", taken=("device",))
    return build(device=device, **checked)


def check(teacher: Teacher, where: str) -> None:
    """Contract check of a user's own teacher. Raises ValueError that says what is off."""
    with plugins.blamed(where):
        _check(teacher)


def _check(teacher: Teacher) -> None:
    if not isinstance(teacher, Teacher):
        raise ValueError(f"returned {type(teacher).__name__}, not sfd.Teacher")
    x = torch.zeros(2, *teacher.shape)
    cond = teacher.encode([0, len(teacher.labels) - 1] if teacher.labels else ["a", None])
    teacher.encode([None])  # asked for guidance and for labels never taught
    x, sigma = x.to(cond.device).requires_grad_(), torch.tensor([0.5, 5.0], device=cond.device)
    networks = (teacher.denoiser, teacher.make_student(), teacher.make_student())
    held = [{p.data_ptr() for p in net.parameters() if p.numel()} for net in networks]
    if held[0] & held[1] or held[1] & held[2]:
        raise ValueError("make_student gives a network that shares weights with the teacher or with"
                         " the last one given: give a copy each time")  # fmt: skip
    for role, denoiser in zip(("teacher", "student"), networks[:2], strict=True):
        x0 = denoiser(x, sigma, cond)
        if x0.shape != x.shape or x0.dtype != torch.float32:
            raise ValueError(
                f"the {role}'s denoiser gives {x0.dtype} {list(x0.shape)}, the contract wants"
                f" float32 {list(x.shape)}"
            )
        if not torch.isfinite(x0).all():
            raise ValueError(f"the {role}'s denoiser gives values that are not finite")
        if not torch.equal(x0, denoiser(x, sigma, cond)):
            raise ValueError(f"the {role}'s denoiser is not deterministic (dropout on?)")
        reaches = x0.requires_grad and torch.autograd.grad(x0.sum(), x, allow_unused=True)[0]
        if not isinstance(reaches, torch.Tensor):
            raise ValueError(f"no gradient flows through the {role}'s denoiser to x")


def check_released(teacher: Teacher, where: str) -> None:
    """Whether a student of a user's own teacher can be read back from the file it is released in.

    Raises ValueError that says what is off: a file holds tensors and a card, and no code.
    """
    with plugins.blamed(where):
        if not teacher.labels:
            raise ValueError("a teacher asked in prompts is a folder of diffusers: its students"
                             " are read back with its text encoder and VAE")  # fmt: skip
        if teacher.decode is not to_uint8:
            raise ValueError("decode: students of classes are read back without it; let the"
                             " denoiser's x0 be images in [-1, 1]")  # fmt: skip
        k = len(teacher.labels)
        wanted = [*range(k), None, *([(0, k - 1)] if k > 1 else [])]
        read = one_hot(wanted, k, torch.device("cpu"), teacher.without)
        if not torch.equal(teacher.encode(wanted).float().cpu(), read):
            raise ValueError("encode: students of classes are read back with one-hot conditions"
                             " (None all zeros, a tuple of labels all of its ones); let encode"
                             " give these, and map them in the denoiser")  # fmt: skip
        if not teacher.spec:
            raise ValueError("spec is empty: a student could not be read back from its file")
        student = teacher.make_student().state_dict()
        rebuilt = build_denoiser(teacher.spec).state_dict()
        told, built = ({k: list(v.shape) for k, v in d.items()} for d in (student, rebuilt))
        for name in sorted({*told, *built}):
            if told.get(name) != built.get(name):
                raise ValueError(f"spec builds another network than make_student: {name} is"
                                 f" {built.get(name, 'not there')}, not"
                                 f" {told.get(name, 'there')}")  # fmt: skip


def set_precision(denoiser: nn.Module, precision: str) -> None:
    """Let a denoiser compute under autocast ("bf16") or not ("fp32"), if it can."""
    if isinstance(denoiser, Adapter):
        denoiser.precision = PRECISIONS[precision]


def check_checkpointing(denoiser: nn.Module) -> None:
    """Raises ValueError where a network cannot `checkpoint_activations`."""
    if not isinstance(denoiser, StableDiffusionDenoiser | DiffusersDenoiser):
        raise ValueError("train.checkpointing: only networks of diffusers can, leave it out")


def checkpoint_activations(denoiser: nn.Module) -> None:
    """Let a denoiser compute its activations again in the backward pass, to save memory.

    Raises ValueError where its network cannot.
    """
    check_checkpointing(denoiser)
    assert isinstance(denoiser, StableDiffusionDenoiser | DiffusersDenoiser)
    denoiser.model.enable_gradient_checkpointing()


def fuse_attention(denoiser: nn.Module) -> None:
    """Let a text-to-image denoiser use PyTorch's fused attention, as it does where CUDA is."""
    if isinstance(denoiser, StableDiffusionDenoiser):
        from diffusers.models.attention_processor import AttnProcessor2_0

        denoiser.model.set_attn_processor(AttnProcessor2_0())


def build_denoiser(spec: Mapping[str, Any]) -> nn.Module:
    """A denoiser of a spec's architecture with fresh weights. Raises ValueError if unknown."""
    options = dict(spec)
    kind = options.pop("kind", None)
    build = plugins.installed(DENOISERS, str(kind), "denoisers")
    try:
        return build(**options)
    except TypeError as error:
        raise ValueError(f"denoiser of kind {kind}: {error}") from None


def language(card: Mapping[str, Any], device: torch.device) -> stable_diffusion.Parts | None:
    """What turns words into a text-to-image student's conditions; None for one of classes.

    It is the teacher's: raises ValueError if that folder is gone.
    """
    if card["labels"]:
        return None
    return stable_diffusion.Parts(stable_diffusion.folder_of(card["teacher"]), device)


def interface(
    card: Mapping[str, Any], device: torch.device, words: stable_diffusion.Parts | None = None
) -> Interface:
    """The way into and out of a model file's network, from the file's card.

    `words` is its `language`, where that was read already.
    """
    if card["labels"]:
        null = card["without"]
        return partial(one_hot, classes=len(card["labels"]), device=device, null=null), to_uint8
    parts = words or language(card, device)
    assert parts is not None
    return parts.encode, parts.decode


def read_file(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The denoiser and the card of a model file. Raises ValueError on any mismatch."""
    tensors, meta = checkpoints.read_tensors(path)
    card = checkpoints.read_card(meta, str(path))
    try:
        denoiser = build_denoiser(card["spec"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}, its card: spec builds no network: {error}") from None
    checkpoints.load_strictly(denoiser, tensors, str(path))
    denoiser = denoiser.eval().requires_grad_(False)
    _check_fit(denoiser, card, str(path))
    return denoiser, card


def _check_fit(denoiser: nn.Module, card: Mapping[str, Any], where: str) -> None:
    """Raises ValueError unless a network takes images of its card's shape, asked in its labels.

    One of prompts is asked through its teacher's folder, which is not read here.
    """
    if not card["labels"]:
        return
    x, cond = torch.zeros(1, *card["shape"]), torch.zeros(1, len(card["labels"]))
    try:
        made = list(denoiser(x, torch.ones(1), cond).shape[1:])
    except RuntimeError:
        made = None
    if made != card["shape"]:
        raise ValueError(
            f"{where}, its card: the network is not one of shape {card['shape']} and"
            f" {len(card['labels'])} labels"
        )


def load_file(path: Path, device: torch.device) -> Teacher:
    """A class-conditional teacher from a file that `sfd pretrain` wrote."""
    denoiser, card = read_file(path)
    if card.get("role") != "teacher":
        raise ValueError(f"{path}: holds a {card.get('role')}, not a teacher")
    denoiser = denoiser.to(device)
    without = tuple(card["without"])
    return Teacher(
        name=card["name"],
        denoiser=denoiser,
        encode=interface(card, device)[0],
        make_student=partial(copy.deepcopy, denoiser),
        shape=tuple(card["shape"]),
        labels=tuple(card["labels"]),
        spec=card["spec"],
        sha256=content.sha256(path),
        sigma_range=tuple(card["sigma_range"]),
        sigma_init=card["sigma_init"],
        without=without,
        knows_null=card.get("knows_null", True),
    )
