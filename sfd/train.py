"""Distil a teacher into a one-step generator: any objective's phases under any forgetting rule."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfd import content, forgetting, noise, objectives, optimizers, state, teachers
from sfd.concepts import AnyConcept
from sfd.forgetting import Batch, Rule
from sfd.objectives import Draw, Logs, Phase
from sfd.teachers import Raw, Teacher

Memo = dict[str, Tensor]
"""What phases leave for those after them that see the same batch."""


def train(
    teacher: Teacher,
    rule: Rule,
    phases: Sequence[Phase],
    *,
    student: nn.Module,
    fake: nn.Module,
    guidance_train: float = 1.0,
    guidance_fake: float = 1.0,
    retained: Raw,
    concepts: Sequence[AnyConcept],
    share: float,
    weight_student: float,
    weight_fake: float,
    total: int,
    batch: int,
    accumulate: int = 1,
    lr_student: float,
    lr_fake: float,
    optimizer_student: str = "adam",
    warmup: int = 0,
    decay_from: float = 1.0,
    ema_images: float,
    seed: int,
    folder: Path,
    identity: Mapping[str, Any],
    tick: int,
    checkpoint: int,
    snapshots: Sequence[int] = (),
    on_snapshot: Callable[[nn.Module, int, float], None] | None = None,
    on_tick: Callable[[dict[str, float]], None] | None = None,
    device: torch.device,
) -> tuple[nn.Module, nn.Module]:
    """The EMA of the student, and the fake score, after `total` images.

    `total`, `warmup`, `ema_images`, `tick`, `checkpoint` and `snapshots` are counted in images of
    the global batch. What requires a gradient in `student` and `fake` learns, the rest is a frozen
    base that they may share. The loss of a batch is sum_i weight_i l_i / batch. Both networks learn
    with Adam(phase.beta1, .999), or the student with another of `optimizers.TABLE`, and stay in
    evaluation mode (no dropout). The fake score is guided by `guidance_train` where it learns and
    by `guidance_fake` where it is asked (arXiv 2406.01561). Resumes from `folder`;
    raises `state.Stopped` if it ends in the middle.
    """
    if batch % accumulate:
        raise ValueError(f"a batch of {batch} cannot be accumulated in {accumulate} equal parts")
    state.own_rows(0, batch)  # raises now if the processes cannot share it
    student, fake = student.to(device).eval(), fake.to(device).eval()
    networks = {"student": student, "fake": fake}
    own = {name: [p for p in net.parameters() if p.requires_grad] for name, net in networks.items()}
    average = state.frozen_copy(student)
    rates = {"student": lr_student, "fake": lr_fake}
    masks = masks_of(rule, student)
    student.zero_grad(set_to_none=True)  # what a mask was found by is no part of the first step
    steppers = {
        "student": optimizers.TABLE[optimizer_student](
            own["student"], [student.get_parameter(key) for key in masks]
        ),
        "fake": optimizers.adam(own["fake"]),
    }
    asked = views(networks, teacher.encode([None]), train=guidance_train, fake=guidance_fake)
    parts = {
        name + part: optimizer
        for name, stepper in steppers.items()
        for part, optimizer in stepper.parts.items()
    }
    run = state.Run({**networks, "ema": average}, parts)
    state.restore(run, folder / "state", identity)
    state.check_alike(run, device)

    def draw_batch(numbers: np.ndarray) -> Batch:
        return forgetting.draw_batch(
            numbers,
            seed=seed,
            shape=teacher.shape,
            retained=retained,
            concepts=concepts,
            share=share,
            weight_student=weight_student,
            weight_fake=weight_fake,
            device=device,
        )

    kept: dict[str, dict[int, Tensor]] = {phase.name: {} for phase in phases}

    def step(nimg: int) -> state.Stats:
        rows = state.own_rows(nimg, batch)
        # parts are of one size however many processes share the batch: it is what memory allows
        size = batch // accumulate
        parts = [np.arange(i, min(i + size, rows.stop)) for i in rows[::size]]
        batches: dict[tuple[int, int | None], list[tuple[np.ndarray, Batch, Memo]]] = {}
        factor = state.learning_rate(nimg, total, warmup=warmup, decay_from=decay_from)
        stats: state.Stats = {}
        for phase in objectives.due(phases, nimg, batch):
            for name, parameters in own.items():
                for parameter in parameters:
                    parameter.requires_grad_(name in phase.learns)
            # one that learns in every k-th batch counts its own: none of its images is left out
            past = nimg - nimg // batch // phase.every * batch
            key = past, phase.distinct
            if key not in batches:
                shown = [part - past for part in parts]
                shown = [part % phase.distinct if phase.distinct else part for part in shown]
                batches[key] = [(numbers, draw_batch(numbers), {}) for numbers in shown]
            for numbers, b, memo in batches[key]:
                draw = draw_for(seed, phase.name, numbers, teacher.shape, device)
                view = asked["fake" if "fake" in phase.learns else "student"]
                # a target that changes with the fake score leaves nothing that could be kept
                past_targets = {} if rule.reads_fake else kept[phase.name]
                losses, logs = call(phase, teacher, rule, view, b, draw, memo, past_targets)
                weight = b.weight_student if phase.weight == "student" else b.weight_fake
                weighted = weight * losses
                (weighted.sum() / batch).backward()
                loss = weighted.detach() / teacher_size(teacher)
                _add(stats, f"loss_{phase.name}", loss, torch.ones_like(loss, dtype=torch.bool))
                for key, values in logs.items():
                    _add(stats, key, values, ~torch.isnan(values))
            for name in phase.learns if phase.steps else ():
                state.add_gradients(own[name])
                for key, mask in masks.items() if name == "student" else ():
                    grad = student.get_parameter(key).grad
                    if grad is not None:
                        grad.mul_(mask)
                norm = state.gradient_norm(own[name])
                stats[f"grad_norm_{name}"] = (float(norm), 1.0)
                if torch.isfinite(norm):  # otherwise the loop stops the run, weights untouched
                    steppers[name].step(rates[name] * factor, phase.beta1)
                networks[name].zero_grad(set_to_none=True)
        state.update_ema(average, student, images=batch, seen=nimg + batch, half_life=ema_images)
        return stats

    state.loop(
        run,
        step=step,
        total=total,
        batch=batch,
        folder=folder,
        identity=identity,
        tick=tick,
        checkpoint=checkpoint,
        snapshots=snapshots,
        on_snapshot=(lambda n, s: on_snapshot(average, n, s)) if on_snapshot else None,
        on_tick=on_tick,
        device=device,
    )
    return average, fake.requires_grad_(False)


def views(
    networks: Mapping[str, nn.Module], null: Tensor, *, train: float, fake: float
) -> dict[str, dict[str, nn.Module]]:
    """The networks as a phase asks them, by who learns in it: the fake score is guided by `train`
    where it learns itself, and by `fake` where the student does. arXiv 2406.01561."""
    return {
        learner: {**networks, "fake": teachers.guided(networks["fake"], null, k)}
        for learner, k in (("student", fake), ("fake", train))
    }


def teacher_size(teacher: Teacher) -> int:
    """Number of values of one sample: losses are logged per value."""
    return int(np.prod(teacher.shape))


def draw_for(
    seed: int, phase: str, numbers: np.ndarray, shape: tuple[int, ...], device: torch.device
) -> Draw:
    """The random numbers of image numbers `[B]` in a phase."""
    return Draw(
        numbers=numbers.tolist(),
        normal=lambda purpose: torch.from_numpy(
            noise.normal(
                noise.latent(seed) if purpose == "z" else (seed, phase, purpose), numbers, shape
            )
        ).to(device),
        uniform=lambda purpose: torch.from_numpy(noise.uniform((seed, phase, purpose), numbers)).to(
            device
        ),
    )


def call(
    phase: Phase,
    teacher: Teacher,
    rule: Rule,
    networks: Mapping[str, nn.Module],
    batch: Batch,
    draw: Draw,
    memo: dict[str, Tensor],
    kept: dict[int, Tensor],
) -> tuple[Tensor, Logs]:
    """The phase's losses: each network bound to its rows' conditions, and the rule's penalty.

    Raises ValueError if the loss, the target or the penalty is not of its contract's form.
    """
    cond_student = teacher.encode(batch.student)
    cond_fake = teacher.encode(batch.fake)
    seen: dict[str, Tensor] = {}
    fakes: list[tuple[Tensor, Tensor, Tensor]] = []

    def student(x: Tensor, sigma: Tensor) -> Tensor:
        seen["x_g"] = networks["student"](x, sigma, cond_student)
        return seen["x_g"]

    def fake(x: Tensor, sigma: Tensor) -> Tensor:
        x0 = networks["fake"](x, sigma, cond_fake)
        fakes.append((x, sigma, x0))
        return x0

    def target(x: Tensor, sigma: Tensor) -> Tensor:
        known = x
        if rule.reads_fake:  # it may have been asked the very same just before
            same = (x0 for at, s, x0 in fakes if at is x and s is sigma)
            known = next(same, None)
            known = networks["fake"](x, sigma, cond_fake) if known is None else known
        x0 = _or_nan(lambda: rule.target(x, sigma, batch, known), x)
        return _checked(x0, x.shape, x.dtype, "the rule's target")

    offered = {"student": student, "fake": fake, "target": target, "draw": draw, "memo": memo,
               "kept": kept}  # fmt: skip
    wanted = inspect.signature(phase.loss).parameters
    losses, logs = _losses_and_logs(phase.loss(**{name: offered[name] for name in wanted}), phase)
    rows, where = (
        torch.Size([len(batch.student)]),
        f"phase {phase.name}: its loss, one value a row,",
    )
    losses = _checked(losses, rows, torch.float32, where)
    if rule.penalty and "student" in phase.learns and phase.steps:
        if "x_g" not in seen:
            raise ValueError(f"phase {phase.name}: its loss never asks the student, which the"
                             " rule's penalty is on")  # fmt: skip
        penalty, x_g = rule.penalty, seen["x_g"]
        extra = _or_nan(lambda: penalty(networks["student"], x_g, batch), losses)
        losses = losses + _checked(extra, rows, losses.dtype, "the rule's penalty")
    if not losses.requires_grad:
        raise ValueError(f"phase {phase.name}: its loss has no gradient")
    return losses, logs


def _or_nan(hook: Callable[[], Tensor], like: Tensor) -> Tensor:
    """What a rule gives, or NaN where it looked at what is not finite: the loop stops at the loss,
    in all processes alike, while an error would stop this one and leave the others waiting."""
    try:
        return hook()
    except teachers.NotFinite:
        return like * torch.nan


def _losses_and_logs(found: Any, phase: Phase) -> tuple[Any, Logs]:
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping):
        losses, logs = found
        if all(isinstance(values, Tensor) for values in logs.values()):
            return losses, dict(logs)
    raise ValueError(
        f"phase {phase.name}: its loss returned {type(found).__name__}, not the losses [B] and a"
        " dictionary of tensors"
    )


def _checked(found: Any, shape: torch.Size, dtype: torch.dtype, what: str) -> Tensor:
    """What a piece gave, if it is of its contract's shape and type. Raises ValueError if not."""
    if not isinstance(found, Tensor):
        raise ValueError(f"{what} is {type(found).__name__}, the contract wants a tensor")
    if found.shape != shape or found.dtype != dtype:
        raise ValueError(
            f"{what} is {found.dtype} {list(found.shape)}, the contract wants {dtype} {list(shape)}"
        )
    return found


def masks_of(rule: Rule, student: nn.Module) -> dict[str, Tensor]:
    """A rule's masks by parameter. Raises ValueError unless each fits one of the student's."""
    masks = rule.mask(student) if rule.mask else {}
    known = {name: p.shape for name, p in student.named_parameters() if p.requires_grad}
    for name, mask in masks.items():
        if name not in known:
            near = content.did_you_mean(name, known)
            raise ValueError(f"the rule's mask: the student learns no parameter {name!r}{near}")
        if not isinstance(mask, Tensor) or mask.shape != known[name]:
            found = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"the rule's mask of {name} is {found}, the parameter"
                             f" {list(known[name])}")  # fmt: skip
    return masks


def _add(stats: state.Stats, name: str, values: Tensor, counted: Tensor) -> None:
    """Add the sum and the number of the rows that are `counted`."""
    total, count = stats.get(name, (0.0, 0.0))
    stats[name] = (total + float(values[counted].sum()), count + float(counted.sum()))
