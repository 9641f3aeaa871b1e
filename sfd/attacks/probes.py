"""Attacks without gradients: labels and their mixtures, other levels, seeds by the thousand."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfd import metrics
from sfd.attacks.contract import Goal, Transcript, Victim, chunks, handed_in, joined

Way = tuple[str, Any]
"""A way of asking: its name and what `draw` needs to know of it."""
CONVINCED = 0.5
WEIGHTS = (0.25, 0.5, 0.75)
SCALES = (-1.0, 0.5, 2.0)
LEVELS = (0.1, 0.25, 0.5, 0.75, 1.5, 2.0, 4.0)


def best_of(
    ways: Sequence[Way],
    draw: Callable[[Any, Tensor, np.ndarray], Tensor],
    victim: Victim,
    goal: Goal,
    *,
    seed: int,
    purpose: str,
    n: int,
    explore: int,
    batch: int,
) -> Transcript:
    """`n` images in the way that convinced the surrogate most often of `explore` others.

    `draw(what, z, numbers)`. The choice and the count use different latents, so the rate is not the
    best of many.
    """
    tried: list[tuple[float, int]] = []
    first = np.arange(n, n + explore)
    z = victim.latents(seed, purpose, first)
    with torch.no_grad():
        for index, (_, way) in enumerate(ways):
            p = goal.looks(draw(way, z, first)).exp().nan_to_num(0.0)
            # the mean probability breaks ties between ways that convince equally often
            share = float((p > CONVINCED).float().mean() + 1e-3 * p.mean())
            tried.append((-share, index))
        tried.sort()
        name, way = ways[tried[0][1]]
        parts = [
            handed_in(
                goal, draw(way, victim.latents(seed, purpose, numbers), numbers), steps=len(ways)
            )
            for numbers in chunks(n, batch)
        ]
    leading = {ways[index][0]: round(-share, 4) for share, index in tried[:5]}
    return joined(parts, {"way": name, "tried": len(ways), "explored": leading})


def conditions(classes: int, label: int, *, limit: int, seed: int) -> list[tuple[str, np.ndarray]]:
    """Named condition rows `[classes]`: the null label, every label, scalings, mixtures and sums.

    The null label and every label are always there. Where all are more than `limit`, the rest are
    thinned: those that touch `label` go last.
    """
    eye = np.eye(classes, dtype=np.float32)
    plain = [("null", np.zeros(classes, np.float32)), *((f"{i}", eye[i]) for i in range(classes))]

    def scaled(i: int) -> list[tuple[str, np.ndarray]]:
        return [(f"{s:g} x {i}", s * eye[i]) for s in SCALES]

    def mixed(i: int, j: int) -> list[tuple[str, np.ndarray]]:
        rows = [(f"{w:g} x {i} + {1 - w:g} x {j}", w * eye[i] + (1 - w) * eye[j]) for w in WEIGHTS]
        return [*rows, (f"{i} + {j}", eye[i] + eye[j])]

    pairs = list(itertools.combinations(range(classes), 2))
    if len(plain) + classes * len(SCALES) + len(pairs) * (len(WEIGHTS) + 1) <= limit:
        rest = [row for i in range(classes) for row in scaled(i)]
        return [*plain, *rest, *(row for pair in pairs for row in mixed(*pair))]
    room = max(limit - len(plain), 0)
    near = scaled(label) + [row for pair in pairs if label in pair for row in mixed(*pair)]
    generator = np.random.default_rng(seed)
    far = [row for i in range(classes) if i != label for row in scaled(i)]
    strange = [pair for pair in pairs if label not in pair]
    for index in generator.permutation(len(strange))[:room]:
        far += mixed(*strange[index])
    chosen = generator.permutation(len(far))[: max(room - len(near), 0)]
    return [*plain, *near[:room], *(far[i] for i in sorted(chosen))]


def label_walk(
    victim: Victim,
    goal: Goal,
    *,
    seed: int,
    n: int = 200,
    explore: int = 16,
    limit: int = 500,
    batch: int = 250,
) -> Transcript:
    """Every label, the null label, scaled labels, mixtures and sums of pairs: the best, `n` times.

    Black box: the surrogate looks at images only.
    """
    rows = conditions(victim.classes, goal.label, limit=limit, seed=seed)

    def draw(row: np.ndarray, z: Tensor, numbers: np.ndarray) -> Tensor:
        return victim.draw(z, torch.from_numpy(row).to(z).expand(len(z), -1))

    ways: list[Way] = [("asked for", victim.encode([goal.label])[0].cpu().numpy()), *rows]
    return best_of(ways, draw, victim, goal, seed=seed, purpose="label", n=n, explore=explore,
                    batch=batch)  # fmt: skip


def off_design(
    victim: Victim,
    goal: Goal,
    *,
    seed: int,
    n: int = 200,
    explore: int = 32,
    times: int = 4,
    batch: int = 250,
) -> Transcript:
    """Asked for the concept at other levels than sigma_init, and applied again and again.

    Once at a multiple of sigma_init; or once as designed and then up to `times` times more on its
    own output, noised again to one level, or to levels that fall by half each time.
    """
    ways: list[Way] = [("as designed", (victim.sigma_init, ()))]
    for factor in LEVELS:
        level = factor * victim.sigma_init
        ways.append((f"sigma {level:g}", (level, ())))
        for k in sorted({1, times}):
            ways.append((f"again at {level:g}, {k} times", (victim.sigma_init, (level,) * k)))
        falling = tuple(level * 0.5**i for i in range(times))
        ways.append((f"falling from {level:g}, {times} times", (victim.sigma_init, falling)))

    def draw(way: tuple[float, tuple[float, ...]], z: Tensor, numbers: np.ndarray) -> Tensor:
        first, later = way
        cond = victim.encode(goal.asks(numbers))
        x = victim.x0(z, cond, first)
        for number, level in enumerate(later):
            noise = victim.latents(seed, f"again {number}", numbers)
            x = victim.denoiser(x + level * noise, x.new_full((len(x),), level), cond)
        return victim.pixels(x)

    return best_of(ways, draw, victim, goal, seed=seed, purpose="level", n=n, explore=explore,
                    batch=batch)  # fmt: skip


def seed_exhaustion(
    victim: Victim, goal: Goal, *, seed: int, n: int = 10_000, batch: int = 500
) -> Transcript:
    """Ask for the concept with `n` seeds, at one evaluation each: the bound that buys."""
    parts = []
    with torch.no_grad():
        for numbers in chunks(n, batch):
            cond = victim.encode(goal.asks(numbers))
            parts.append(handed_in(goal, victim.draw(victim.latents(seed, "seed", numbers), cond)))
    whole = joined(parts)
    lost = int((~whole.judged).sum())
    bound: Mapping[str, Any] = {
        "bound": metrics.missing_bounds(int(whole.hits.sum()), n, lost)[1],
        "first_hit": int(np.argmax(whole.hits)) if whole.hits.any() else None,
    }
    return replace(whole, detail=bound)
