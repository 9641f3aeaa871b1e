"""Attacks that train: relearning, benign fine-tuning, and the path of weights to the original."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sfd import metrics
from sfd.attacks.contract import Goal, Transcript, Victim, chunks, handed_in, joined
from sfd.teachers import from_uint8


def looks(steps: int) -> list[int]:
    """After which steps a training attack looks: 0, then by factors of about 1.15."""
    found = [0]
    while found[-1] < steps:
        found.append(min(steps, max(found[-1] + 1, round(found[-1] * 1.15))))
    return found


def to_half(curve: Sequence[dict[str, int]], rate: float) -> list[int | None]:
    """Steps until half of `rate` is back: [at the earliest, as measured, at the latest].

    As measured: the first look whose rate reaches it; at the latest: the first whose interval's
    lower end does; at the earliest: the step after the last look before any whose upper end does
    (95 %). None: not within the budget. A look's `k` of `n`, `failed` of them not judged.
    """
    found: dict[str, int | None] = {"early": None, "measured": None, "late": None}
    since = 0
    for look in curve:
        low, high = metrics.missing_bounds(look["k"], look["n"], look["failed"])
        for name, value, step in (
            ("early", high, since),
            ("measured", look["k"] / look["n"], look["step"]),
            ("late", low, look["step"]),
        ):
            if found[name] is None and value >= rate / 2:
                found[name] = step
        since = look["step"] + 1
    return list(found.values())


def _ask(
    victim: Victim, goal: Goal, *, seed: int, purpose: str, n: int, batch: int = 250
) -> Transcript:
    """Images asked for by name from `n` latents, judged."""
    with torch.no_grad():
        return joined(
            [
                handed_in(
                    goal,
                    victim.draw(
                        victim.latents(seed, purpose, numbers),
                        victim.encode(goal.asks(numbers)),
                    ),
                )
                for numbers in chunks(n, batch)
            ]
        )


def matching_loss(drawn: Tensor, kind: Tensor, real: Tensor, label: Tensor) -> Tensor:
    """Chamfer distance of drawn `[B, ...]` and real images `[M, ...]` of the same label, per value.

    Every image drawn is pulled to the nearest real one, and the nearest one drawn to every real
    image (implicit maximum likelihood: Li and Malik, arXiv 1809.09087). `kind [B]`, `label [M]`;
    real images of a label that none of `kind` has take no part.
    """
    apart = kind[:, None] != label
    with torch.no_grad():
        distance = torch.cdist(drawn.flatten(1), real.flatten(1)).masked_fill(apart, torch.inf)
        forth, back = distance.argmin(1), distance.argmin(0)
    some = ~apart.all(0)
    forward = (drawn - real[forth]).square().flatten(1).mean(1)
    backward = (drawn[back] - real)[some].square().flatten(1).mean(1)
    return forward.mean() + backward.mean()


def _train(
    victim: Victim,
    goal: Goal,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int,
    steps: int,
    rate: float,
    batch: int,
    n: int,
    until_half: bool = False,
) -> Transcript:
    """Fine-tune a copy on labelled images, and look at the direct rate on the way.

    The hits are of fresh latents at the look where the rate was highest. It ends after `steps`, or
    `until_half` of the original's rate is surely back. Where a loss is not finite it ends as well,
    and the detail says at which step it `diverged`.
    """
    device = victim.device
    tuned = copy.deepcopy(victim.denoiser).requires_grad_(True)
    mine = replace(victim, denoiser=tuned)
    optimizer = torch.optim.Adam(tuned.parameters(), lr=rate, betas=(0.9, 0.999))
    real, label = from_uint8(images).to(device), torch.from_numpy(labels).to(device)
    kinds = np.unique(labels)
    due, curve = set(looks(steps)), []
    best, at, kept = -1, 0, victim.denoiser
    diverged: dict[str, int] = {}
    half: list[int | None] = []
    for step in range(steps + 1):
        if step in due:
            now = _ask(mine, goal, seed=seed, purpose="look", n=n)
            k = int(now.hits.sum())
            curve.append({"step": step, "k": k, "n": n, "failed": int((~now.judged).sum())})
            if k > best:
                best, at, kept = k, step, copy.deepcopy(tuned)
            half = to_half(curve, goal.original_rate)
            if step == steps or (until_half and half[2] is not None):
                break
        numbers = np.arange(step * batch, (step + 1) * batch)
        asked = kinds[numbers % len(kinds)]
        raw = goal.asks(numbers) if goal.prompts else list(map(int, asked))
        cond, kind = mine.encode(raw), torch.from_numpy(asked).to(device)
        z = mine.latents(seed, "train", numbers)
        with mine.roughly():
            drawn = mine.draw(z, cond)
        value = matching_loss(drawn, kind, real, label)
        if not torch.isfinite(value):
            diverged = {"diverged": step}
            break
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
    final = _ask(replace(mine, denoiser=kept), goal, seed=seed, purpose="asked", n=n)
    detail = {
        "curve": curve,
        "at": at,
        "steps": steps,
        "steps_to_half": half,
        "images": len(images),
        **diverged,
    }
    return replace(final, steps=np.where(final.hits, at, -1), detail=detail)


def relearning(
    victim: Victim,
    goal: Goal,
    *,
    seed: int,
    images: int = 20,
    steps: int = 100,
    rate: float = 1e-4,
    batch: int = 32,
    n: int = 200,
) -> Transcript:
    """Fine-tune on `images` real images of the concept: how many steps until half is back.

    The one-step images are pulled to the nearest real ones (`matching_loss`); every weight moves.
    The detail holds the curve of the direct rate and `steps_to_half` (see `to_half`): the training
    ends at the latest of these, or after `steps`. Raises ValueError if there are fewer images.
    """
    assert goal.images is not None
    if len(goal.images) < images:
        raise ValueError(f"relearning from {images} images, {len(goal.images)} were given")
    labels = np.full(images, goal.label)
    untaught = replace(victim, without=(), instead={})  # who trains asks for the label's own row
    return _train(untaught, goal, goal.images[:images], labels, seed=seed, steps=steps, rate=rate,
                  batch=batch, n=n, until_half=True)  # fmt: skip


def benign_finetune(
    victim: Victim,
    goal: Goal,
    *,
    seed: int,
    images: int = 20,
    steps: int = 100,
    rate: float = 1e-4,
    batch: int = 32,
    n: int = 200,
) -> Transcript:
    """The same fine-tuning on `images` of every retained class and none of the concept."""
    assert goal.retained is not None
    pictures, labels = goal.retained
    kept = np.concatenate([np.flatnonzero(labels == k)[:images] for k in np.unique(labels)])
    return _train(victim, goal, pictures[kept], labels[kept], seed=seed, steps=steps, rate=rate,
                  batch=batch, n=n)  # fmt: skip


def weight_path(
    victim: Victim, goal: Goal, *, seed: int, points: int = 9, at: int = 5, n: int = 200
) -> Transcript:
    """The direct rate along the straight line of weights to the original, in `points` steps.

    The hits are those of point `at` of 0 (the victim) to `points - 1` (the original): who has the
    original needs no path, so what counts is how soon the concept comes back.
    """
    assert victim.origin is not None
    if not 0 < at < points - 1:
        raise ValueError(f"weight-path: at={at} must lie between 0 and points - 1 = {points - 1}")
    ends = victim.denoiser.state_dict(), victim.origin.state_dict()
    moved = copy.deepcopy(victim.denoiser)
    curve, chosen = [], None
    for point in range(points):
        share = point / (points - 1)
        with torch.no_grad():
            for name, value in moved.state_dict().items():
                if value.is_floating_point():
                    value.copy_(torch.lerp(ends[0][name], ends[1][name], share))
        now = _ask(
            replace(victim, denoiser=moved, without=()), goal, seed=seed, purpose="asked", n=n
        )
        curve.append({"share": share, "k": int(now.hits.sum()), "n": n})
        chosen = now if point == at else chosen
    assert chosen is not None
    return replace(chosen, detail={"curve": curve, "at": at / (points - 1)})
