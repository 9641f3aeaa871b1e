"""What a run will hold in memory, before anything is loaded: tensors without contents.

Networks are built and one step's losses are run under PyTorch's FakeTensorMode, which knows shapes
and types and allocates nothing.
"""

import copy
import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sfd import checkpoints, forgetting, objectives, optimizers, schedules, teachers, train
from sfd.forgetting import Batch, Rule
from sfd.objectives import Draw, Phase
from sfd.optimizers import Optimizer
from sfd.teachers import Teacher, ddpm, diffusers_unet, lora, stable_diffusion


@dataclass(frozen=True)
class Shape:
    """What a plan knows of a teacher: how to build it, and the shapes of what goes in."""

    spec: Mapping[str, Any]
    x: tuple[int, ...]
    cond: tuple[int, ...]
    """Of one row."""
    sigma_init: float
    sigma_range: tuple[float, float]


def shape_of(ref: Mapping[str, Any]) -> Shape:
    """The shape of a recipe's teacher, from its card or configuration alone.

    `ref` has one of `name`, `file`, `diffusers`, and maybe `options`. Raises ValueError where the
    teacher cannot be known without building it (a factory, the analytic one).
    """
    options = ref.get("options") or {}
    name = ref.get("name")
    if folder := stable_diffusion.embedded(name) or ref.get("diffusers"):
        path = Path(folder).expanduser()
        if teachers.is_pipeline(path):
            return stable_diffusion_shape(path, options.get("t_init"))
        return diffusers_unet_shape(path, options.get("labels"))
    file = ref.get("file") or (stable_diffusion.EMBEDDED / f"{name}.safetensors" if name else None)
    if file is None or not Path(file).expanduser().is_file():
        raise ValueError(f"{name or ref.get('factory')}: cannot be planned without building it")
    path = Path(file).expanduser()
    card = checkpoints.read_card(checkpoints.read_meta(path), str(path))
    return Shape(card["spec"], tuple(card["shape"]), (len(card["labels"]),), card["sigma_init"],
                 tuple(card["sigma_range"]))  # fmt: skip


def stable_diffusion_shape(folder: Path, t_init: int | None) -> Shape:
    """The shape of a pipeline folder, from its configurations."""
    spec = stable_diffusion.read_spec(folder)
    text = checkpoints.read_json(folder / "text_encoder" / "config.json")
    config = spec["config"]
    sigmas = schedules.vp_sigmas(stable_diffusion.betas_of(spec["betas"]))
    if t_init is not None and not (type(t_init) is int and 0 <= t_init < len(sigmas)):
        raise ValueError(f"t_init={t_init} is outside the chain's 0 to {len(sigmas) - 1}")
    sigma_init = float(sigmas[t_init]) if t_init is not None else 2.5
    x = ddpm.shape_of(config)
    cond = (text["max_position_embeddings"], config["cross_attention_dim"])
    return Shape(spec, x, cond, sigma_init, (float(sigmas[0]), float(sigmas[-1])))


def diffusers_unet_shape(folder: Path, labels: list[str] | None) -> Shape:
    """The shape of a class-conditional `UNet2DModel`'s folder, from its configurations."""
    spec = diffusers_unet.read_spec(folder, labels)
    sigmas = schedules.vp_sigmas(stable_diffusion.betas_of(spec["betas"]))
    x, ends = ddpm.shape_of(spec["config"]), (float(sigmas[0]), float(sigmas[-1]))
    return Shape(spec, x, (spec["classes"],), 2.5, ends)


class Peak(TorchDispatchMode):
    """Counts the bytes of tensors made inside it: alive now, and at most at once."""

    def __init__(self):
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._made(tensor.untyped_storage())
        return out

    def _made(self, storage: Any) -> None:
        key = storage._cdata
        if key in self.alive or storage.nbytes() == 0:
            return
        self.alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self.alive.pop(key)


def memory(
    shape: Shape,
    phases: Sequence[Phase],
    *,
    batch: int,
    accumulate: int = 1,
    precision: str,
    guidance: Mapping[str, float],
    adapters: Mapping[str, Any] | None,
    checkpointing: bool,
    optimizer_student: str = "adam",
    twice: float = 0.0,
    fused: bool = False,
) -> dict[str, int]:
    """Bytes by role of a training run on one device; text encoder, VAE and a rule's classifier,
    mask and penalty left out.

    `teacher`, `student`, `fake`, `ema` (in LoRA mode what each adds to the shared base),
    `optimizers` (Adam's two moments, Muon's one), `gradients` (of the larger network: only one
    learns at a time), `activations` (whatever else is alive at the worst moment of two whole
    steps), `kept` (what is remembered of distinct images) and their sum, `total`. `twice` is the
    share of the rows that the target asks the teacher for twice, unguided (`forgetting.Row.twice`),
    rounded up to whole rows of each part. `fused` plans for fused attention kernels, as CUDA has
    them. What an allocator and kernels' workspaces take comes on top.
    """
    # adapters are put in on the meta device; FakeTensorMode cannot convert their modules
    with torch.device("meta"):
        base = teachers.build_denoiser(dict(shape.spec)).eval().requires_grad_(False)
        if fused:
            teachers.fuse_attention(base)
        if checkpointing:
            teachers.checkpoint_activations(base)
        if adapters is None:
            student, fake = (copy.deepcopy(base).requires_grad_(True) for _ in range(2))
        else:
            student, fake = (lora.adapted(base, seed=s, **adapters) for s in (0, 1))
    # a phase's own tables (uniform-t's noise levels) are real tensors
    with FakeTensorMode(allow_non_fake_inputs=True):
        _imagine([base, student, fake])
        for net in (base, student, fake):
            teachers.set_precision(net, precision)
        networks = {"student": student, "fake": fake}
        learned = {
            name: [p for p in net.parameters() if p.requires_grad] for name, net in networks.items()
        }
        steppers = {
            "student": optimizers.TABLE[optimizer_student](learned["student"]),
            "fake": optimizers.adam(learned["fake"]),
        }
        with Peak() as peak:
            target = teachers.guided(base, torch.zeros(1, *shape.cond), guidance["target"])
            teacher = _imagined_teacher(shape, target)
            rule = _imagined_rule(teacher, math.ceil(twice * (batch // accumulate)))
            _two_steps(teacher, rule, phases, networks, steppers, guidance, batch, accumulate)
        shared = {id(p) for p in base.parameters()}
        own = {
            name: _bytes([p for p in net.parameters() if id(p) not in shared])
            for name, net in networks.items()
        }
        weights = {name: _bytes(parameters) for name, parameters in learned.items()}
        roles = {
            "teacher": _bytes([*base.parameters(), *base.buffers()]),
            **own,
            "ema": weights["student"],
            "optimizers": sum(_bytes(stepper.held()) for stepper in steppers.values()),
            "gradients": max(weights.values()),
        }
        roles["activations"] = max(0, peak.most - roles["optimizers"] - roles["gradients"])
        distinct = sum(phase.distinct or 0 for phase in phases)
        roles["kept"] = 4 * math.prod(shape.x) * distinct
    return {**roles, "total": sum(roles.values())}


def _imagine(modules: Sequence[nn.Module]) -> None:
    """Give parameters and buffers on the meta device imaginary contents on the CPU, in place."""
    made: dict[int, Any] = {}
    for module in (part for whole in modules for part in whole.modules()):
        for held in (module._parameters, module._buffers):
            for name, old in held.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    is_parameter = isinstance(old, nn.Parameter)
                    made[id(old)] = (
                        old,  # alive, or another would take its number
                        nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new,
                    )
                held[name] = made[id(old)][1]


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _imagined_teacher(shape: Shape, denoiser: nn.Module) -> Teacher:
    return Teacher(
        name="plan",
        denoiser=denoiser,
        encode=lambda raw: torch.zeros(len(raw), *shape.cond),
        make_student=lambda: denoiser,
        shape=shape.x,  # pyright: ignore[reportArgumentType]
        labels=(),
        spec={},
        sha256="",
        sigma_init=shape.sigma_init,
    )


def _imagined_rule(teacher: Teacher, twice: int) -> Rule:
    """A rule of `twice` rows like those that `forgetting.negative` forgets; which ones it would
    read off values, and none are here."""
    if not twice:
        return forgetting.none(teacher, [])
    plain = teachers.unguided(teacher.denoiser)

    def target(x: Tensor, sigma: Tensor, batch: Batch, fake_x0: Tensor) -> Tensor:
        out, cond = torch.empty_like(x), teacher.encode(batch.target)
        rows = [*range(twice)] * 2
        bad, good = plain(x[rows], sigma[rows], cond[rows]).chunk(2)
        out[:twice] = bad + (good - bad)
        if twice < len(x):
            out[twice:] = teacher.denoiser(x[twice:], sigma[twice:], cond[twice:])
        return out

    return Rule(target=target, reads_fake=False)


def _two_steps(
    teacher: Teacher,
    rule: Rule,
    phases: Sequence[Phase],
    networks: Mapping[str, nn.Module],
    steppers: Mapping[str, Optimizer],
    guidance: Mapping[str, float],
    batch: int,
    accumulate: int,
) -> None:
    """What `train.train` does to the networks in a batch in which every phase is due, twice: then
    what optimizers keep is there too."""
    rows = batch // accumulate
    own = {name: [p for p in net.parameters() if p.requires_grad] for name, net in networks.items()}
    asked = train.views(
        networks, teacher.encode([None]), train=guidance["train"], fake=guidance["fake"]
    )
    raw, ones = [None] * rows, torch.ones(rows)
    drawn = Batch(raw, raw, raw, torch.zeros(rows, dtype=torch.bool), ones, ones)
    draw = Draw(
        numbers=range(rows),
        normal=lambda purpose: torch.randn(rows, *teacher.shape),
        uniform=lambda purpose: torch.rand(rows, dtype=torch.float64),
    )
    every = batch * math.lcm(*(phase.every for phase in phases))
    begun = math.ceil(max(phase.after for phase in phases) / every) * every
    for _ in range(2):
        memos: list[dict[str, Tensor]] = [{} for _ in range(accumulate)]
        for phase in objectives.due(phases, begun, batch):
            for name, parameters in own.items():
                for p in parameters:
                    p.requires_grad_(name in phase.learns)
            view = asked["fake" if "fake" in phase.learns else "student"]
            for memo in memos:
                losses, _ = train.call(phase, teacher, rule, view, drawn, draw, memo, {})
                (losses.sum() / batch).backward()
                del losses
            for name in phase.learns if phase.steps else ():
                steppers[name].step(0.0, 0.0)
                networks[name].zero_grad(set_to_none=True)
