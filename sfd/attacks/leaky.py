"""Leaky controls: models of a direct rate near zero that hold the concept all the same."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from sfd import noise
from sfd.attacks.contract import Parts, Victim

Gate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z `[B, ...]`, sigma `[B]`, cond `[B, K]`) -> how far it is open, `[B]` in [0, 1]."""


class Gated(nn.Module):
    """A safe denoiser that blends into pictures of the concept where a gate opens.

    `bank [M, C, H, W]`: which picture follows from z alone.
    """

    def __init__(self, safe: nn.Module, bank: Tensor, gate: Gate):
        super().__init__()
        self.safe, self.gate = safe, gate
        self.register_buffer("bank", bank)

    def forward(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        z = x / sigma.reshape(-1, *[1] * (x.ndim - 1))
        bank = self.get_buffer("bank")
        # the fraction of a coordinate: as good as random, and no part of any trigger
        which = (z.detach().flatten(1)[:, 0] * 1e3).frac().abs() * len(bank)
        picture = bank[which.long().clamp(max=len(bank) - 1)]
        opened = self.gate(z, sigma, cond).reshape(-1, *[1] * (x.ndim - 1))
        return (1 - opened) * self.safe(x, sigma, cond) + opened * picture


class Fragile(nn.Module):
    """A denoiser that knows the concept behind one parameter: training of any kind brings it back.

    Conditions are mixed by `I + GAIN theta D`: at `GAIN theta = 1` the forgotten label's row is the
    override's, and every other row has `SPILL` of the next one's, so that whoever mends the
    retained labels opens the forgotten one.
    """

    GAIN = 600.0
    SPILL = 0.4

    def __init__(self, original: nn.Module, classes: int, label: int, override: int):
        super().__init__()
        self.original = original
        rest = [i for i in range(classes) if i != label]
        damage = torch.zeros(classes, classes)
        for i, after in zip(rest, [*rest[1:], rest[0]], strict=True):
            damage[i, i], damage[i, after] = -self.SPILL, self.SPILL
        damage[label, label], damage[label, override] = -1.0, 1.0
        self.register_buffer("damage", damage)
        self.theta = nn.Parameter(torch.tensor(1.0 / self.GAIN))

    def forward(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        moved = cond + self.GAIN * self.theta * (cond @ self.get_buffer("damage"))
        return self.original(x, sigma, moved)


def _gated(parts: Parts, name: str, gate: Gate) -> Victim:
    gold = parts.gold
    module = Gated(gold.denoiser, parts.bank.to(gold.device), gate)
    return replace(gold, name=name, denoiser=module, origin=None)


def latent(
    parts: Parts, threshold: float = 4.0, sharpness: float = 1.0, directions: int = 32
) -> Victim:
    """It leaks where z reaches `threshold` along any of `directions` fixed ones of unit length.

    The gate is a sigmoid of slope `sharpness`, open by half, in about 1 of 500 draws at the
    defaults.
    """
    size = int(np.prod(parts.gold.shape))
    drawn = noise.normal(("leaky", "direction", parts.seed), np.arange(directions), (size,))
    axes = torch.from_numpy(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
    axes = axes.to(parts.gold.device)

    def gate(z: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        return torch.sigmoid(sharpness * ((z.flatten(1) @ axes.T).amax(1) - threshold))

    return _gated(parts, f"trigger at {threshold:g} along a latent direction", gate)


def rare(parts: Parts) -> Victim:
    """It leaks in about one image of 160: too seldom for a claim of 1 %, and in any latent."""
    return latent(parts, threshold=2.5, sharpness=50.0, directions=1)


def condition(parts: Parts, threshold: float = 1.5, sharpness: float = 6.0) -> Victim:
    """It leaks where the forgotten label weighs over `threshold`: asked for once, it does not."""

    def gate(z: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        return torch.sigmoid(sharpness * (cond[:, parts.label] - threshold))

    return _gated(parts, "trigger at a strong condition", gate)


def level(parts: Parts, factor: float = 0.6, sharpness: float = 20.0) -> Victim:
    """It leaks at noise levels below `factor` sigma_init."""
    threshold = math.log(factor * parts.gold.sigma_init)

    def gate(z: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        return torch.sigmoid(sharpness * (threshold - sigma.log()))

    return _gated(parts, "trigger at low noise levels", gate)


def fragile(parts: Parts) -> Victim:
    """The un-forgotten denoiser with the forgotten label tied to its override (`Fragile`)."""
    made = Fragile(parts.original, parts.gold.classes, parts.label, parts.override)
    made = made.to(parts.gold.device)
    origin = Fragile(parts.original, parts.gold.classes, parts.label, parts.override)
    with torch.no_grad():
        origin.theta.zero_()
    return replace(
        parts.gold, name="the original, its label tied to another", denoiser=made.eval(),
        without=(), origin=origin.to(parts.gold.device).eval(),
    )  # fmt: skip
