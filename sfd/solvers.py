"""Solvers of the probability-flow ODE: `solver(denoise, z, steps, sigma_min, sigma_max)`."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sfd import schedules


@torch.no_grad()
def heun(
    denoise: Callable[[Tensor, Tensor], Tensor],
    z: Tensor,
    *,
    steps: int,
    sigma_min: float,
    sigma_max: float,
) -> Tensor:
    """EDM's deterministic sampler from `sigma_max z`: `2 steps - 1` calls of `denoise(x, sigma)`.

    arXiv 2206.00364, algorithm 1.
    """
    sigmas = [*_levels(steps, sigma_min, sigma_max), 0.0]
    x = sigma_max * z

    def slope(x: Tensor, sigma: float) -> Tensor:
        return (x - denoise(x, x.new_full((len(x),), sigma))) / sigma

    for now, after in pairwise(sigmas):
        d = slope(x, now)
        euler = x + (after - now) * d
        x = x + (after - now) * 0.5 * (d + slope(euler, after)) if after > 0 else euler
    return x


@torch.no_grad()
def dpm(
    denoise: Callable[[Tensor, Tensor], Tensor],
    z: Tensor,
    *,
    steps: int,
    sigma_min: float,
    sigma_max: float,
) -> Tensor:
    """DPM-Solver++(2M) from `sigma_max z`: `steps` calls of `denoise(x, sigma)`, the last returned.

    Second order by the call before, so half of Heun's calls a step. arXiv 2211.01095, algorithm 2.
    """
    x, before, width = sigma_max * z, None, math.nan
    sigmas = _levels(steps, sigma_min, sigma_max)
    for now, after in pairwise(sigmas):
        x0 = denoise(x, x.new_full((len(x),), now))
        step = math.log(now / after)
        ahead = x0 if before is None else x0 + step / (2 * width) * (x0 - before)
        x = after / now * x - math.expm1(-step) * ahead
        before, width = x0, step
    return denoise(x, x.new_full((len(x),), sigmas[-1]))


def _levels(steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """EDM's levels of sigma, falling. arXiv 2206.00364, eq. 5."""
    times = np.linspace(0, 1, steps).tolist()
    return [schedules.karras_sigma(t, sigma_min, sigma_max) for t in times]


SOLVERS = {"heun": heun, "dpm": dpm}
"""By the name that a recipe gives."""
