"""Forgetting rules: from a teacher and concepts to what the objective takes for the teacher.

A rule knows nothing of objectives. The forget step is the retain step with another target
condition: one forward pass serves both kinds of row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor, nn

from sfd import noise
from sfd.concepts import AnyConcept
from sfd.teachers import Raw, Teacher


@dataclass(frozen=True)
class Batch:
    """Three raw conditions per row, and weights; a retained row has the same one three times.

    A forget row has the forgotten label for the student, the override for the target, and for the
    fake score the forgotten label too, or, where a concept has several overrides, the pair of both.
    """

    student: Raw
    fake: Raw
    target: Raw
    is_forget: Tensor
    """`[B]`, bool."""
    weight_student: Tensor
    """`[B]`, float32."""
    weight_fake: Tensor
    """`[B]`, float32."""


@dataclass(frozen=True)
class Rule:
    """Up to three pure hooks.

    `target(x, sigma, batch, fake_x0) -> x0 [B, C, H, W]` is what the objective takes for the
    teacher; `penalty(student, x_g, batch) -> [B]` an extra term on the student; `mask(student) ->
    {parameter name: mask}` which weights may move.
    """

    target: Callable[[Tensor, Tensor, Batch, Tensor], Tensor]
    penalty: Callable[[nn.Module, Tensor, Batch], Tensor] | None = None
    mask: Callable[[nn.Module], dict[str, Tensor]] | None = None


@dataclass(frozen=True)
class Row:
    """A row of RULES: `build(teacher, concepts, **options) -> Rule` and whom to cite."""

    build: Callable[..., Rule]
    citation: str


def none(teacher: Teacher, concepts: Sequence[AnyConcept]) -> Rule:
    """Plain distillation: the teacher at the row's own condition. Raises if there are concepts."""
    if concepts:
        raise ValueError("forgetting rule 'none' forgets nothing: remove `concepts`")
    return Rule(target=_at_target_condition(teacher))


def override(teacher: Teacher, concepts: Sequence[AnyConcept]) -> Rule:
    """The teacher at the override's condition; it is never asked for what is forgotten.

    SFD, arXiv 2409.11219, eq. 11. Raises ValueError if there is no concept.
    """
    if not concepts:
        raise ValueError("forgetting rule 'override' needs at least one entry in `concepts`")
    return Rule(target=_at_target_condition(teacher))


def _at_target_condition(teacher: Teacher) -> Callable[[Tensor, Tensor, Batch, Tensor], Tensor]:
    def target(x: Tensor, sigma: Tensor, batch: Batch, fake_x0: Tensor) -> Tensor:
        return teacher.denoiser(x, sigma, teacher.encode(batch.target))

    return target


RULES: dict[str, Row] = {
    "none": Row(none, "Zhou et al., Score identity Distillation, arXiv 2404.04057"),
    "override": Row(override, "Chen et al., Score Forgetting Distillation, arXiv 2409.11219"),
}


def is_forget(numbers: np.ndarray, share: float) -> np.ndarray:
    """Which image numbers are forget rows, bool `[N]`: n is iff floor((n+1)p) > floor(np).

    So the stream does not depend on the batch.
    """
    return np.floor((numbers + 1) * share) > np.floor(numbers * share)


def draw_batch(
    numbers: np.ndarray,
    *,
    seed: int,
    shape: tuple[int, ...],
    retained: Raw,
    concepts: Sequence[AnyConcept],
    share: float,
    weight_student: float,
    weight_fake: float,
    device: torch.device,
) -> Batch:
    """The conditions of image numbers `[B]`, drawn from `(seed, number)` alone.

    A share `share` of the rows forgets, each a concept drawn uniformly and one of its conditions
    drawn uniformly; the others retain a
    condition drawn uniformly. The weights are a forget row's; a retained row weighs 1.

    Where a concept has several overrides, the image's own z says which: its mean brightness, a
    standard normal number, falls into intervals of the overrides' probabilities. An override drawn
    apart from z would average the overrides' scores, whose fixed point is their normalised
    geometric mean and not their mixture; and the fake score has to be told which part it sees, or
    it would hold the whole mixture against one of its parts.
    """
    forget = is_forget(numbers, share if concepts else 0.0)
    u = noise.uniform((seed, "conditions", "row"), numbers)
    part = np.full(len(numbers), 0.5)
    rows = [pair for concept in concepts for pair in concept.pairs]
    if any(len(instead) > 1 for _, instead in rows):
        z = noise.normal(noise.latent(seed), numbers, shape).reshape(len(numbers), -1)
        part = ndtr(z.sum(1, dtype=np.float64) / np.sqrt(z.shape[1]))
    student: list[Any] = []
    fake: list[Any] = []
    target: list[Any] = []
    for forgets, which, place in zip(forget, u, part, strict=True):
        if forgets:
            index, rest = divmod(which * len(concepts), 1.0)
            pairs = concepts[int(index)].pairs
            gone, instead = pairs[int(rest * len(pairs))]
            safe = _pick(instead, place)
            student.append(gone)
            fake.append((gone, safe) if len(instead) > 1 else gone)
            target.append(safe)
        else:
            student.append(retained[int(which * len(retained))])
            fake.append(student[-1])
            target.append(student[-1])
    marks = torch.from_numpy(forget).to(device)
    ones = torch.ones(len(numbers), device=device)
    return Batch(
        student=student,
        fake=fake,
        target=target,
        is_forget=marks,
        weight_student=torch.where(marks, weight_student * ones, ones),
        weight_fake=torch.where(marks, weight_fake * ones, ones),
    )


def _pick(shares: Mapping[Any, float], u: float) -> Any:
    labels = list(shares)
    index = np.searchsorted(np.cumsum(list(shares.values())), u, side="right")
    return labels[min(int(index), len(labels) - 1)]
