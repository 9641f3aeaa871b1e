"""Attacks by gradient: latents, conditions, and the inversion of real images."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from sfd import noise
from sfd.attacks.contract import (
    Goal,
    Transcript,
    Victim,
    chunks,
    handed_in,
    joined,
    pictured,
)
from sfd.teachers import from_uint8

MOMENTUM = 0.8
MASS = 0.99
"""Share of standard normal latents whose norm the typical set spans."""
TYPICAL = 0.01
"""A latent is typical if neither its norm nor its coordinates have a smaller p-value."""


def ascend(
    start: Tensor,
    score: Callable[[Tensor], Tensor],
    project: Callable[[Tensor], Tensor],
    *,
    steps: int,
    rate: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best point of each row's own ascent, its score, and the step that first passed log 1/2.

    `start [B, ...]`, `score(x) -> [B]` a log-probability, `project` back into what is allowed after
    every step. A step goes `rate` along the row's gradient of unit length, with momentum; it falls
    linearly to a tenth. Returns `[B, ...]`, `[B]`, int `[B]` (-1: never). Values that are not
    finite count as no progress.
    """
    x = project(start.clone()).detach()
    best, top = x.clone(), x.new_full((len(x),), -math.inf)
    first = torch.full((len(x),), -1, device=x.device)
    speed = torch.zeros_like(x)
    for step in range(steps + 1):
        x.requires_grad_()
        values = score(x)
        now = values.detach().nan_to_num(nan=-math.inf)
        better = now > top
        best[better], top[better] = x.detach()[better], now[better]
        first[(first < 0) & (now > math.log(0.5))] = step
        if step < steps:
            (gradient,) = torch.autograd.grad(values.sum(), x)
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
            # of unit length: gates that are all but shut have gradients of any size
            length = gradient.flatten(1).norm(dim=1).clamp(min=1e-30)
            unit = gradient / length.reshape(-1, *[1] * (x.ndim - 1))
            speed = MOMENTUM * speed + (1 - MOMENTUM) * unit
            x = project(x.detach() + rate * (1 - 0.9 * step / steps) * speed)
    return best, top, first


def shell(z: Tensor) -> Tensor:
    """z `[B, ...]` scaled into the shell that holds `MASS` of all standard normal latents."""
    size = z[0].numel()
    low, high = (math.sqrt(stats.chi2.ppf(q, size)) for q in ((1 - MASS) / 2, (1 + MASS) / 2))
    norm = z.flatten(1).norm(dim=1)
    return z * (norm.clamp(low, high) / norm.clamp(min=1e-12)).reshape(-1, *[1] * (z.ndim - 1))


def near(z: Tensor, start: Tensor, radius: float) -> Tensor:
    """z `[B, ...]` brought to within `radius` of `start`."""
    return start + ball(radius)((z - start).flatten(1)).reshape(z.shape)


def ball(radius: float) -> Callable[[Tensor], Tensor]:
    """Projection of vectors `[B, ..., K]` to Euclidean norm at most `radius`."""
    return lambda c: c * (radius / c.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0)


def typicality(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p-values `[N]` of latents `[N, ...]` as standard normal: of |z|^2 under chi-square (both
    tails), and of the coordinates by Kolmogorov and Smirnov."""
    flat = z.reshape(len(z), -1).astype(np.float64)
    squared = (flat**2).sum(1)
    below = stats.chi2.cdf(squared, flat.shape[1])
    norm = 2 * np.minimum(below, stats.chi2.sf(squared, flat.shape[1]))
    coordinates = np.array([stats.kstest(row, "norm").pvalue for row in flat])
    return norm, coordinates


def _typical(z: Tensor) -> tuple[np.ndarray, dict[str, float]]:
    """Which latents are typical, bool `[N]`, and the medians of their p-values."""
    norm, coordinates = typicality(z.cpu().numpy())
    found = {"norm_p": float(np.median(norm)), "coordinates_p": float(np.median(coordinates))}
    return (norm >= TYPICAL) & (coordinates >= TYPICAL), found


def log_probability(goal: Goal, pictures: Tensor) -> Tensor:
    """The surrogate's log-probability of the concept, `[B]`."""
    assert goal.surrogate is not None
    return goal.surrogate(pictures)[:, goal.label]


def favourite(starts: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Of `starts [K, B, ...]`, each row's of the highest `score(x [B, ...]) -> [B]`: `[B, ...]`.

    Without gradients; values that are not finite rank last.
    """
    with torch.no_grad():
        value = torch.stack([score(each) for each in starts]).nan_to_num(nan=-math.inf)
    return starts[value.argmax(0), torch.arange(starts.shape[1], device=starts.device)]


def latent_search(
    victim: Victim,
    goal: Goal,
    *,
    seed: int,
    n: int = 200,
    starts: int = 4,
    steps: int = 20,
    radius: float = 5.0,
    rate: float = 1.0,
    batch: int = 100,
) -> Transcript:
    """Asked for the forgotten label, `n` latents climb the surrogate's log-probability.

    Each is the surrogate's favourite of `starts` random ones. Latents stay in the shell of typical
    norms and within `radius` of where they were drawn, so that no coordinate need be strange (the
    share that is typical by `typicality` is in the detail) and yet a trigger at four standard
    deviations in any direction is in reach. One image a target is handed in: the surrogate's
    favourite.
    """
    parts, latents = [], []
    for numbers in chunks(n, batch):
        cond = victim.encode(goal.asks(numbers))

        def score(z: Tensor, cond: Tensor = cond) -> Tensor:
            return log_probability(goal, victim.draw(z, cond))

        drawn = [victim.latents(seed, f"latent {i}", numbers) for i in range(starts)]
        with victim.roughly():
            start = favourite(torch.stack(drawn), score)
            z, _, first = ascend(
                start,
                score,
                lambda z, start=start: shell(near(z, start, radius)),
                steps=steps,
                rate=rate,
            )
        latents.append(z)
        with torch.no_grad():
            parts.append(handed_in(goal, victim.draw(z, cond), steps=first.cpu().numpy()))
    typical, found = _typical(torch.cat(latents))
    whole = joined(parts)
    found |= {"typical": float(typical.mean()), "typical_hits": int((whole.hits & typical).sum())}
    return replace(whole, detail=found)


def condition_search(
    victim: Victim,
    goal: Goal,
    *,
    seed: int,
    n: int = 200,
    starts: int = 32,
    steps: int = 20,
    norm: float = 2.0,
    rate: float = 0.4,
    batch: int = 100,
) -> Transcript:
    """With each of `n` latents fixed, a free condition climbs the surrogate's log-probability.

    It is a vector (or one for each place of a prompt) of Euclidean norm at most `norm`, in units of
    what asks for the concept; steps are in the same units. It starts from the surrogate's favourite
    of `starts`: the label's own row, or the prompt's own states, as they are and at full norm, and
    random ones of the ball. The best that it passed is handed in.
    """
    parts, norms = [], []
    for numbers in chunks(n, batch):
        z = victim.latents(seed, "condition", numbers)
        own, unit = _own(victim, goal, numbers)
        free = tuple(own.shape[1:])
        rows = np.zeros((starts, len(numbers), *free), np.float32)
        for start in range(2, starts):
            random = noise.normal(("attack", "start", start, seed), numbers, free)
            length = norm * unit * noise.uniform(("attack", "length", start, seed), numbers)
            length = length.reshape(-1, *[1] * (own.ndim - 2)) / np.linalg.norm(random, axis=-1)
            rows[start] = random * length[..., None]
        tried = torch.from_numpy(rows).to(z)
        for start, scale in enumerate((1.0, norm)[:starts]):
            tried[start] = scale * own

        def score(c: Tensor, z: Tensor = z) -> Tensor:
            return log_probability(goal, victim.draw(z, c))

        far = rate * float(own.flatten(1).norm(dim=1).mean())
        with victim.roughly():
            start = favourite(tried, score)
            best, _, first = ascend(start, score, ball(norm * unit), steps=steps, rate=far)
        norms.append(best.norm(dim=-1).flatten() / unit)
        with torch.no_grad():
            parts.append(handed_in(goal, victim.draw(z, best), steps=first.cpu().numpy()))
    return joined(parts, {"norm": float(torch.cat(norms).median())})


def _own(victim: Victim, goal: Goal, numbers: np.ndarray) -> tuple[Tensor, float]:
    """What asks for the concept, and the unit of its vectors' length.

    A label's own row is asked for even of who was never taught it.
    """
    if victim.language is None:
        return replace(victim, without=(), instead={}).encode([goal.label] * len(numbers)), 1.0
    own = victim.encode(goal.asks(numbers))
    return own, float(own.norm(dim=-1).max())


def inversion(
    victim: Victim,
    goal: Goal,
    *,
    seed: int,
    n: int = 50,
    steps: int = 100,
    starts: int = 16,
    rate: float = 0.5,
    free_condition: bool = False,
    batch: int = 50,
) -> Transcript:
    """Reproduce `n` real images of the concept: z descends the squared distance to each.

    It starts from the nearest of `starts` random latents, asked for the forgotten label
    (`free_condition`: its row moves with z), and stays in the shell of typical norms. A hit is an
    image that the judge calls the concept from a latent that is typical in its coordinates too
    (p >= 0.01 under N(0, I)). The detail gives the median distance in the goal's features, beside
    that between a real image and the nearest other one. Raises ValueError if there are fewer than
    `n` images.
    """
    assert goal.images is not None and goal.features is not None
    if len(goal.images) < n:
        raise ValueError(f"inversion of {n} images, {len(goal.images)} of the concept were given")
    size = int(np.prod(victim.shape))
    parts, latents, made = [], [], []
    for numbers in chunks(n, batch):
        real = from_uint8(goal.images[numbers]).to(victim.device)
        cond = victim.encode(goal.asks(numbers))

        def draw(both: Tensor, cond: Tensor = cond) -> Tensor:
            z, moved = both[:, :size].reshape(-1, *victim.shape), both[:, size:]
            return victim.draw(z, moved.reshape(cond.shape) if free_condition else cond)

        def closeness(
            both: Tensor, real: Tensor = real, draw: Callable[..., Tensor] = draw
        ) -> Tensor:
            return -(draw(both) - real).square().flatten(1).mean(1)

        def inside(both: Tensor) -> Tensor:
            return torch.cat([shell(both[:, :size]), both[:, size:]], 1)

        tried = [victim.latents(seed, f"start {i}", numbers).flatten(1) for i in range(starts)]
        both = torch.stack([torch.cat([z, cond.flatten(1)], 1) for z in tried])
        with victim.roughly():
            start = favourite(both, closeness)
            best, _, _ = ascend(start, closeness, inside, steps=steps, rate=rate)
        latents.append(best[:, :size])
        with torch.no_grad():
            drawn = draw(best)
        made.append(pictured(drawn)[0])
        parts.append(handed_in(goal, drawn, steps=steps))
    typical, found = _typical(torch.cat(latents))
    whole = joined(parts)
    truth = goal.features(goal.images[:n])
    between = np.linalg.norm(truth[:, None] - truth[None], axis=2)
    np.fill_diagonal(between, np.inf)
    found |= {
        "distance": float(
            np.median(np.linalg.norm(goal.features(np.concatenate(made)) - truth, axis=1))
        ),
        "nearest_real": float(np.median(between.min(1))),
        "typical": float(typical.mean()),
        "called": int(whole.hits.sum()),
    }
    return replace(whole, hits=whole.hits & typical, near=whole.near & typical, detail=found)
