"""Solvers of the probability-flow ODE."""

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
    rho: float = 7.0,
) -> Tensor:
    """EDM's deterministic sampler from `sigma_max z`: `2 steps - 1` calls of `denoise(x, sigma)`.

    arXiv 2206.00364, algorithm 1.
    """
    times = np.linspace(0, 1, steps).tolist()
    sigmas = [*(schedules.karras_sigma(t, sigma_min, sigma_max, rho) for t in times), 0.0]
    x = sigma_max * z

    def slope(x: Tensor, sigma: float) -> Tensor:
        return (x - denoise(x, x.new_full((len(x),), sigma))) / sigma

    for now, after in pairwise(sigmas):
        d = slope(x, now)
        euler = x + (after - now) * d
        x = x + (after - now) * 0.5 * (d + slope(euler, after)) if after > 0 else euler
    return x
