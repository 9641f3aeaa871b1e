"""Distillation objectives: pure per-sample losses, and the phases that use them.

Nothing here knows of forgetting: an objective sees `student`, `target` and `fake`, each a
callable `(x, sigma) -> x0` that has its rows' conditions inside.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from sfd import content, schedules, solvers

Denoise = Callable[[Tensor, Tensor], Tensor]
Logs = dict[str, Tensor]
"""Per-sample numbers to average; NaN where a row does not take part."""

NETWORKS = ("student", "fake")
"""The networks that a phase may teach, and whose weights of a batch it may ask for."""

OFFERED = ("student", "target", "fake", "draw", "memo", "kept")
"""What a phase's loss may ask for by the names of its parameters."""

BANDS = (0.0, 0.1, 0.5, 2.0, 8.0, float("inf"))


@dataclass(frozen=True)
class Draw:
    """Random numbers of a batch's rows, by purpose: each depends on its image's number alone."""

    numbers: Sequence[int]
    """The rows' image numbers `[B]`."""
    normal: Callable[[str], Tensor]
    """`[B, C, H, W]` standard normal."""
    uniform: Callable[[str], Tensor]
    """`[B]` in (0, 1), float64."""


@dataclass(frozen=True)
class Phase:
    """One kind of update.

    `loss` returns per-sample losses `[B]` and Logs; it is called with those of `student`,
    `target`, `fake`, `draw`, `memo` and `kept` that its signature names. `memo` is a dictionary
    that the phases of one iteration share; `kept` is the phase's own, by image number, and lives as
    long as the process: what it holds must follow from the number. Only the networks in `learns`
    have parameters that take a gradient. `weight` says which of the batch's weights multiplies the
    losses. The phase comes in one batch of `every`, and counts the images of these alone; it begins
    `after` so many images of the run.
    `distinct` is how many different ones it sees: image numbers start again from 0 after so many.
    `steps` False: the optimizer does not step after it, its gradient is added to that of the next
    phase that learns the same, once that has begun. `beta1` is Adam's in the step after it. Raises
    ValueError on anything else.
    """

    name: str
    learns: tuple[str, ...]
    loss: Callable[..., tuple[Tensor, Logs]]
    weight: Literal["student", "fake"]
    every: int = 1
    distinct: int | None = None
    steps: bool = True
    after: int = 0
    beta1: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.beta1, float) or not 0 <= self.beta1 < 1:
            raise ValueError(
                f"phase {self.name}: beta1={self.beta1!r}: give a number from 0 to below 1"
            )
        if not isinstance(self.after, int) or self.after < 0:
            raise ValueError(f"phase {self.name}: after={self.after!r}: give a whole number from 0")
        for name, count in (("every", self.every), ("distinct", self.distinct)):
            if count is not None and (not isinstance(count, int) or count < 1):
                raise ValueError(f"phase {self.name}: {name}={count!r}: give a whole number from 1")
        networks = " or ".join(NETWORKS)
        if self.weight not in NETWORKS:
            raise ValueError(f"phase {self.name}: weight={self.weight!r}: give {networks}")
        if not isinstance(self.learns, tuple) or not self.learns or {*self.learns} - {*NETWORKS}:
            raise ValueError(
                f"phase {self.name}: learns={self.learns!r}: give a tuple of {networks}"
            )
        for name in inspect.signature(self.loss).parameters:
            if name not in OFFERED:
                raise ValueError(
                    f"phase {self.name}: its loss asks for {name!r}"
                    f"{content.did_you_mean(name, OFFERED)}"
                )


def check_phases(phases: Sequence[Phase]) -> None:
    """Raises ValueError on none, two of one name, or a gradient that waits for a phase that is not
    there."""
    if not phases:
        raise ValueError("returned no sfd.Phase, so nothing would learn")
    names = [phase.name for phase in phases]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two phases are called {twice!r}: they would share their random numbers")
    for i, phase in enumerate(phases):
        if not any(p.steps and p.learns == phase.learns for p in phases[i:]):
            raise ValueError(
                f"phase {phase.name}: steps=False, and no later one of its networks does"
            )


def due(phases: Sequence[Phase], nimg: int, batch: int) -> list[Phase]:
    """The phases of the batch that begins at image `nimg`, each with its optimizer's step or not.

    One whose gradient waits for a later phase steps itself while that has not begun.
    """
    now = [p for p in phases if nimg >= p.after and not nimg // batch % p.every]
    return [
        p if p.steps or any(later.learns == p.learns for later in now[place + 1 :])
        else replace(p, steps=True)
        for place, p in enumerate(now)
    ]  # fmt: skip


@dataclass(frozen=True)
class Objective:
    """A row of TABLE: `phases(sigma_init=..., **options)` and whom to cite.

    `phases` is given the teacher's `sigma_range` too if its signature names it.
    """

    phases: Callable[..., tuple[Phase, ...]]
    citation: str


# --- formulas: tensors in, per-sample losses [B] out, float32 ------------------------------------


def dsm_loss(
    x0_hat: Tensor, x0: Tensor, sigma: Tensor, *, kind: str = "edm", sigma_data: float = 0.5
) -> Tensor:
    """Denoising score matching, `[B]`: lambda(sigma) |x0_hat - x0|^2, summed over C, H, W.

    `kind` "edm": lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, arXiv 2206.00364,
    table 1. "eps": lambda = 1 / sigma^2, the plain error of the noise, arXiv 2006.11239.
    """
    assert kind in ("edm", "eps")
    weight = (
        sigma**-2.0 if kind == "eps" else (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    )
    return weight * (x0_hat.float() - x0.float()).square().flatten(1).sum(1)


def sid_loss(x_g: Tensor, target_x0: Tensor, fake_x0: Tensor, *, alpha: float) -> Tensor:
    """Score identity distillation, `[B]`: w <delta, (D_phi - x_g) - alpha delta>.

    delta = D_phi - D_psi (`target_x0 - fake_x0`), w = 1 / mean|x_g - D_phi| of the row, without
    gradient; sum over C, H, W. arXiv 2404.04057, eq. 23.
    """
    x_g, target_x0, fake_x0 = x_g.float(), target_x0.float(), fake_x0.float()
    delta = target_x0 - fake_x0
    inner = (delta * (target_x0 - x_g - alpha * delta)).flatten(1).sum(1)
    return normaliser(x_g, target_x0) * inner


def normaliser(x_g: Tensor, target_x0: Tensor) -> Tensor:
    """1 / max(mean_CHW |x_g - D_phi|, 1e-5), `[B]`, without gradient. arXiv 2404.04057, eq. 24."""
    return 1 / (x_g - target_x0).detach().float().abs().flatten(1).mean(1).clamp(min=1e-5)


def matching_loss(x_g: Tensor, target_x0: Tensor, fake_x0: Tensor) -> Tensor:
    """`[B]`, with gradient -delta on x_g and none through the networks.

    Diff-Instruct, arXiv 2305.18455, eq. 3.4, with the weight sigma^2.
    """
    delta = (target_x0 - fake_x0).detach().float()
    return -(delta * x_g.float()).flatten(1).sum(1)


def regression_loss(x_g: Tensor, x0: Tensor) -> Tensor:
    """|x_g - x0|^2, `[B]`, summed over C, H, W. arXiv 2101.02388, eq. 7."""
    return (x_g.float() - x0.float()).square().flatten(1).sum(1)


def by_band(name: str, values: Tensor, sigma: Tensor) -> Logs:
    """`values [B]` once per band of sigma, NaN outside the band."""
    logs = {}
    for low, high in pairwise(BANDS):
        inside = (sigma >= low) & (sigma < high)
        logs[f"{name}_sigma_{low:g}_{high:g}"] = torch.where(inside, values, torch.nan)
    return logs


# --- phases --------------------------------------------------------------------------------------


def _noised(x0: Tensor, sigma: Tensor, draw: Draw) -> Tensor:
    return x0 + sigma.reshape(-1, *[1] * (x0.ndim - 1)) * draw.normal("noise")


def _generate(student: Denoise, draw: Draw, sigma_init: float) -> Tensor:
    z = draw.normal("z")
    return student(sigma_init * z, z.new_full((len(z),), sigma_init))


def _known(sample: schedules.Sampler, sigma_range: tuple[float, float]) -> schedules.Sampler:
    """The sampler, if at most a twentieth of its levels lie where the target was never taught.

    Raises ValueError otherwise.
    """
    levels = sample((torch.arange(1000) + 0.5) / 1000)
    low, high = sigma_range
    share = float(((levels < low * 0.999) | (levels > high * 1.001)).double().mean())
    if share > 0.05:
        raise ValueError(f"sigma_student: {share:.0%} of its levels are outside what the target"
                         f" knows, {low:.3g} to {high:.3g}: give another range")  # fmt: skip
    return sample


def _fake_phase(*, sigma_init: float, sigma: Mapping[str, Any], kind: str, reuse: bool) -> Phase:
    """Denoising score matching of the fake score on the student's samples."""
    sample_sigma = schedules.sampler(**sigma)

    def loss(student: Denoise, fake: Denoise, draw: Draw, memo: dict[str, Tensor]):
        x_g = memo.pop("x_g", None) if reuse else None
        if x_g is None:
            with torch.no_grad():
                x_g = _generate(student, draw, sigma_init)
        s = sample_sigma(draw.uniform("sigma"))
        losses = dsm_loss(fake(_noised(x_g, s, draw), s), x_g, s, kind=kind)
        per_value = losses.detach() / x_g[0].numel()
        return losses, by_band("loss_fake", per_value, s)

    return Phase("fake", ("fake",), loss, "fake")


def sid(
    *,
    sigma_init: float,
    alpha: float = 1.2,
    through_networks: bool = True,
    sigma_student: Mapping[str, Any] | None = None,
    sigma_fake: Mapping[str, Any] = {"name": "log-normal"},
    fake_loss: Literal["edm", "eps"] = "edm",
    reuse: bool = True,
    fake_updates: int = 1,
    pairs: Mapping[str, Any] | None = None,
    sigma_range: tuple[float, float] = (0.002, 80.0),
) -> tuple[Phase, ...]:
    """Score identity distillation (arXiv 2404.04057).

    `alpha` weighs the squared score difference. `sigma_student` is by default the published Karras
    range, as far as the target knows it. `through_networks` false stops the gradient at
    both networks' outputs, which leaves DMD's gradient. `reuse` trains the fake score on the very
    samples of the student's update, which saves one evaluation in eleven. The student learns in
    one batch of `fake_updates`, the fake score in each (arXiv 2405.14867, section 4.2); above 1
    these are other images, and nothing is reused. `pairs`
    adds `regression`'s loss to the student's, in each batch, with its options, a `weight`, and for
    how many images the student learns from them `alone` before; in the last tenth of these the
    fake score joins.
    """
    low, high = max(0.002, sigma_range[0]), min(80.0, sigma_range[1])
    levels = sigma_student or {"name": "karras", "sigma_min": low, "sigma_max": high}
    sample_sigma = _known(schedules.sampler(**levels), sigma_range)

    def loss(student: Denoise, target: Denoise, fake: Denoise, draw: Draw, memo: dict[str, Tensor]):
        x_g = _generate(student, draw, sigma_init)
        memo["x_g"] = x_g.detach()
        s = sample_sigma(draw.uniform("sigma"))
        with torch.set_grad_enabled(through_networks):
            x_t = _noised(x_g, s, draw)
            fake_x0, target_x0 = fake(x_t, s), target(x_t, s)
        return sid_loss(x_g, target_x0, fake_x0, alpha=alpha), _student_logs(target_x0, fake_x0)

    student = Phase("student", ("student",), loss, "student", every=fake_updates)
    fake = _fake_phase(sigma_init=sigma_init, sigma=sigma_fake, kind=fake_loss, reuse=reuse)
    return _with_pairs(pairs, student, fake, sigma_init=sigma_init, sigma_range=sigma_range)


def diff_instruct(
    *,
    sigma_init: float,
    normalise: bool = False,
    sigma_student: Mapping[str, Any] = {"name": "log-normal"},
    sigma_fake: Mapping[str, Any] = {"name": "log-normal"},
    fake_loss: Literal["edm", "eps"] = "edm",
    reuse: bool = True,
    fake_updates: int = 1,
    pairs: Mapping[str, Any] | None = None,
    sigma_range: tuple[float, float] = (0.002, 80.0),
) -> tuple[Phase, ...]:
    """Diff-Instruct (arXiv 2305.18455): the score difference alone moves the sample.

    `normalise` divides a row's gradient by mean|x_g - D_phi| (DMD, arXiv 2311.18828, eq. 8), and
    `pairs` adds DMD's other loss, as in `sid`. The student learns in one batch of `fake_updates`.
    """
    sample_sigma = _known(schedules.sampler(**sigma_student), sigma_range)

    def loss(student: Denoise, target: Denoise, fake: Denoise, draw: Draw, memo: dict[str, Tensor]):
        x_g = _generate(student, draw, sigma_init)
        memo["x_g"] = x_g.detach()
        s = sample_sigma(draw.uniform("sigma"))
        with torch.no_grad():
            x_t = _noised(x_g, s, draw)
            fake_x0, target_x0 = fake(x_t, s), target(x_t, s)
        losses = matching_loss(x_g, target_x0, fake_x0)
        if normalise:
            losses = losses * normaliser(x_g, target_x0)
        return losses, _student_logs(target_x0, fake_x0)

    student = Phase("student", ("student",), loss, "student", every=fake_updates)
    fake = _fake_phase(sigma_init=sigma_init, sigma=sigma_fake, kind=fake_loss, reuse=reuse)
    return _with_pairs(pairs, student, fake, sigma_init=sigma_init, sigma_range=sigma_range)


def regression(
    *,
    sigma_init: float,
    sigma_range: tuple[float, float] = (0.002, 80.0),
    pairs: int = 4000,
    solver: str = "heun",
    steps: int = 8,
    weight: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    temperature: float = 1.0,
    beta1: float = 0.0,
) -> tuple[Phase, ...]:
    """Knowledge distillation (arXiv 2101.02388): the end of the target's own trajectory, regressed.

    The student learns `pairs` pairs of z and of where a `solver` (`solvers.SOLVERS`) leads in
    `steps` steps from sigma_max z (by default over the target's own `sigma_range`), or from
    `temperature` sigma_max z: above 1 the ends are more various, and fewer are good. Each end is
    computed when its image is first met, and kept. It keeps the target's variety, and is blurred: a
    start for the others, or, times `weight`, a part of them (their `pairs`). `beta1` is Adam's
    where the student learns from these alone: .9 is faster, but not in the others, whose gradient
    moves with the fake score. The fake score does not learn.
    Raises ValueError on levels outside the range, no such solver, fewer than one step or pair, or a
    weight or temperature that is not above 0.
    """
    if solver not in solvers.SOLVERS:
        near = content.did_you_mean(solver, solvers.SOLVERS)
        raise ValueError(f"no solver called {solver!r}{near}")
    solve = solvers.SOLVERS[solver]
    low = sigma_range[0] if sigma_min is None else sigma_min
    high = sigma_range[1] if sigma_max is None else sigma_max
    if not sigma_range[0] <= low < high <= sigma_range[1]:
        raise ValueError(f"trajectories from {high:g} to {low:g}: the target knows sigma from"
                         f" {sigma_range[1]:g} to {sigma_range[0]:g}")  # fmt: skip
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r}: give a whole number from 1")
    for name, given in (("weight", weight), ("temperature", temperature)):
        if not given > 0:
            raise ValueError(f"{name}={given!r}: give a number above 0")

    def loss(student: Denoise, target: Denoise, draw: Draw, kept: dict[int, Tensor]):
        z = draw.normal("z")
        if any(n not in kept for n in draw.numbers):
            x0 = solve(target, temperature * z, steps=steps, sigma_min=low, sigma_max=high)
            kept.update(zip(draw.numbers, x0, strict=True))
        x_g = student(sigma_init * z, z.new_full((len(z),), sigma_init))
        losses = regression_loss(x_g, torch.stack([kept[n] for n in draw.numbers]))
        return weight * losses, {"error": losses.detach() / x_g[0].numel()}

    return (Phase("student", ("student",), loss, "student", distinct=pairs, beta1=beta1),)


def _with_pairs(
    pairs: Mapping[str, Any] | None,
    student: Phase,
    fake: Phase,
    *,
    sigma_init: float,
    sigma_range: tuple[float, float],
) -> tuple[Phase, ...]:
    """`regression` as a part of the student's step, by default with DMD's weight.

    arXiv 2311.18828, eq. 9.
    """
    if pairs is None:
        return student, fake
    if not isinstance(pairs, Mapping):
        raise ValueError(f"pairs={pairs!r}: give options, such as {{weight: 0.25, pairs: 4000}}")
    asked = {"alone": 0, "weight": 0.25, **pairs}
    alone = asked.pop("alone")
    if not isinstance(alone, int) or alone < 0:
        raise ValueError(f"pairs.alone={alone!r}: give a whole number of images")
    fixed = ("sigma_init", "sigma_range")
    options = content.options_of(regression, asked, "pairs", taken=fixed)
    (phase,) = regression(sigma_init=sigma_init, sigma_range=sigma_range, **options)
    if phase.beta1 and not (alone and student.every == 1):
        raise ValueError("pairs.beta1 is Adam's where the student learns from the pairs alone:"
                         " it needs `alone`, and fake_updates of 1")  # fmt: skip
    return (
        replace(phase, name="pairs", steps=False),
        replace(student, after=alone),
        replace(fake, after=alone - alone // 10),
    )


def _student_logs(target_x0: Tensor, fake_x0: Tensor) -> Logs:
    return {"delta": (target_x0 - fake_x0).detach().float().abs().flatten(1).mean(1)}


TABLE: dict[str, Objective] = {
    "sid": Objective(sid, "Zhou et al., Score identity Distillation, arXiv 2404.04057"),
    "diff-instruct": Objective(diff_instruct, "Luo et al., Diff-Instruct, arXiv 2305.18455"),
    "regression": Objective(regression, "Luhman & Luhman, Distilled samplers, arXiv 2101.02388"),
}
