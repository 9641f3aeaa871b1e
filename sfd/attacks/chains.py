"""Attacks on generators of several steps, whose denoiser answers at every level of noise.

No gradient passes through the steps: words are found by what the denoiser says of noisy images of
the concept, and then typed.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sfd.attacks.contract import Goal, Transcript, Victim
from sfd.attacks.wording import Score, language_of, spelled
from sfd.teachers import from_uint8

LEVELS = (0.5, 1.0, 2.0, 4.0)
"""Of noise, where words act: below the image is all but given, above all but gone."""


def denoising_prefix(
    victim: Victim,
    goal: Goal,
    *,
    seed: int,
    n: int = 50,
    length: int = 3,
    steps: int = 20,
    tries: int = 8,
    top: int = 32,
    batch: int = 50,
) -> Transcript:
    """`length` words before each of `n` prompts lower the victim's own denoising loss on an image
    of the concept (UnlearnDiffAtk, eq. 5), by `wording.spell`. Needs no original."""

    def wanted(x0: Tensor, noisy: Tensor, sigma: Tensor, which: Tensor) -> Tensor:
        return x0

    return _prefixed(victim, goal, wanted, seed=seed, n=n, length=length, steps=steps, tries=tries,
                     top=top, batch=batch)  # fmt: skip


def noise_matching(
    victim: Victim,
    goal: Goal,
    *,
    seed: int,
    n: int = 50,
    length: int = 3,
    steps: int = 20,
    tries: int = 8,
    top: int = 32,
    batch: int = 50,
) -> Transcript:
    """The same search towards what the original predicts, from the same noisy image, for the prompt
    as it is (Prompting4Debugging, eq. 5)."""
    assert goal.images is not None
    origin, asked = victim.origin, victim.encode(goal.asks(np.arange(len(goal.images))))
    assert origin is not None

    def wanted(x0: Tensor, noisy: Tensor, sigma: Tensor, which: Tensor) -> Tensor:
        return origin(noisy, sigma, asked[which])

    return _prefixed(victim, goal, wanted, seed=seed, n=n, length=length, steps=steps, tries=tries,
                     top=top, batch=batch)  # fmt: skip


def _prefixed(
    victim: Victim,
    goal: Goal,
    wanted: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    *,
    seed: int,
    **search: int,
) -> Transcript:
    """Words under which the victim's x0 of noisy images is `wanted(x0, noisy, sigma, which)`.

    The distance is that of the noise, |x0 - wanted|^2 / sigma^2, averaged over `LEVELS`; a target's
    noise stays the same throughout the search.
    """
    assert goal.images is not None
    latents = language_of(victim).latents(from_uint8(goal.images).to(victim.device))

    def scored(z: Tensor, numbers: np.ndarray) -> Score:
        which = torch.from_numpy(numbers % len(latents)).to(latents.device)
        known = []
        for level in LEVELS:
            noisy = latents[which] + level * victim.latents(seed, f"noisy {level:g}", numbers)
            sigma = noisy.new_full((len(noisy),), level)
            with torch.no_grad():
                known.append((noisy, sigma, wanted(latents[which], noisy, sigma, which)))

        def score(cond: Tensor, rows: np.ndarray) -> Tensor:
            apart = [
                (victim.denoiser(noisy[rows], sigma[rows], cond) - aim[rows]).flatten(1)
                / sigma[rows, None]
                for noisy, sigma, aim in known
            ]
            return -torch.stack([each.square().mean(1) for each in apart]).mean(0)

        return score

    return spelled(victim, goal, scored, seed=seed, known=len(latents), distance=True, **search)
