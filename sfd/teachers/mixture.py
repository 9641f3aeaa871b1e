"""The analytic teacher: a mixture of Gaussians per class, whose exact denoiser is known."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfd import content
from sfd.teachers.contract import Teacher, one_hot
from sfd.teachers.edm import EDMDenoiser

NAMES = ("left", "right", "top", "bottom")


class Mixture(nn.Module):
    """The exact denoiser E[x0 | x] of class-conditional Gaussian mixtures.

    `means [K, M, D]`, `bases [K, M, D, R]` with orthogonal columns: component m of class k is
    N(mean, basis basis^T + floor^2 I); components of a class are equally likely. A row of zeros in
    `cond` is the null condition: all classes, equally likely.
    """

    def __init__(self, means: Tensor, bases: Tensor, floor: float):
        super().__init__()
        self.register_buffer("means", means)
        self.register_buffer("scales", bases.norm(dim=2).clamp(min=1e-12))
        self.register_buffer("axes", bases / bases.norm(dim=2, keepdim=True).clamp(min=1e-12))
        self.floor = floor

    def log_joint(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """log N(x; component, + sigma^2 I) `[B, K, M]`, and x0 of each component `[B, K, M, D]`."""
        means, scales, axes = (self.get_buffer(n).double() for n in ("means", "scales", "axes"))
        offset = x.flatten(1)[:, None, None] - means
        base = (self.floor**2 + sigma**2).reshape(-1, 1, 1, 1)
        along = torch.einsum("bkmd,kmdr->bkmr", offset, axes)
        wide = base + scales**2
        squared = offset.square().sum(-1, keepdim=True) / base
        squared = squared.squeeze(-1) + (along.square() * (1 / wide - 1 / base)).sum(-1)
        rank, size = scales.shape[-1], offset.shape[-1]
        log_det = wide.log().sum(-1) + (size - rank) * base.squeeze(-1).log()
        log_p = -0.5 * (squared + log_det + size * math.log(2 * math.pi))
        # x0 = x - sigma^2 (cov + sigma^2)^-1 (x - mean)
        noise = sigma.reshape(-1, 1, 1, 1) ** 2
        inverse = offset / base + torch.einsum(
            "bkmr,kmdr->bkmd", along * (1 / wide - 1 / base), axes
        )
        return log_p, x.flatten(1)[:, None, None] - noise * inverse

    def forward(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        cond = torch.where(cond.sum(1, keepdim=True) > 0, cond, torch.ones_like(cond))
        log_p, x0 = self.log_joint(x.double(), sigma.double())
        log_w = log_p + cond.double().log()[:, :, None]
        weights = log_w.flatten(1).softmax(1).reshape(log_w.shape)
        return torch.einsum("bkm,bkmd->bd", weights, x0).reshape(x.shape).float()

    def posterior(self, x: Tensor) -> Tensor:
        """p(class | x) of clean samples `[B, C, H, W]`, `[B, K]`: the Bayes classifier."""
        log_p, _ = self.log_joint(x.double(), torch.zeros(len(x), device=x.device).double())
        return log_p.logsumexp(2).softmax(1).float()

    def draw(self, label: int, count: int, seed: int) -> Tensor:
        """Exact samples of a class, `[count, D]`."""
        generator = torch.Generator().manual_seed(seed)
        means, scales, axes = (self.get_buffer(n).cpu() for n in ("means", "scales", "axes"))
        which = torch.randint(means.shape[1], (count,), generator=generator)
        along = torch.randn(count, scales.shape[-1], generator=generator) * scales[label, which]
        noise = torch.randn(count, means.shape[-1], generator=generator) * self.floor
        return means[label, which] + torch.einsum("br,bdr->bd", along, axes[label, which]) + noise


def build(
    *,
    means: Sequence[Any] | None = None,
    bases: Sequence[Any] | None = None,
    floor: float = 0.05,
    labels: Sequence[str] | None = None,
    shape: tuple[int, int, int] | None = None,
    width: int = 128,
    device: torch.device,
) -> Teacher:
    """A mixture teacher whose student is a small perceptron of `width`.

    Without arguments: four classes of 4x4 grey images (a bright left, right, top or bottom half,
    varying in brightness and contrast). `means [K, M, D]`, `bases [K, M, D, R]`, `shape (C, H, W)`
    with D = C H W, one of `labels` a class. Raises ValueError if they do not fit together.
    """
    if means is None:
        means, bases, labels, shape = _bars()
    if bases is None or labels is None or shape is None:
        raise ValueError("mixture: give means, bases, labels and shape together, or none of them")
    m, b = torch.tensor(np.asarray(means)).float(), torch.tensor(np.asarray(bases)).float()
    if (
        m.ndim != 3
        or b.shape[:3] != m.shape
        or len(labels) != len(m)
        or math.prod(shape) != m.shape[2]
    ):
        raise ValueError(
            f"mixture: means {list(m.shape)}, bases {list(b.shape)}, {len(labels)} labels and shape"
            f" {list(shape)} do not fit; want [K, M, D], [K, M, D, R], K and C H W = D"
        )
    options = {"shape": list(shape), "label_dim": len(m), "width": width}
    spec = {"kind": "edm", "network": "mlp", "options": options, "patch": 1, "sigma_data": 0.5}

    def make_student() -> nn.Module:
        torch.manual_seed(0)
        return EDMDenoiser(network="mlp", options=options).to(device)

    plain = {"means": m.tolist(), "bases": b.tolist(), "floor": floor}
    return Teacher(
        name="mixture",
        denoiser=Mixture(m, b, floor).to(device),
        encode=partial(one_hot, classes=len(m), device=device),
        make_student=make_student,
        shape=(shape[0], shape[1], shape[2]),
        labels=tuple(labels),
        spec=spec,
        sha256=content.hash_json(plain),
    )


def _bars() -> tuple[list[Any], list[Any], tuple[str, ...], tuple[int, int, int]]:
    half = np.where(np.arange(4) < 2, 1.0, -1.0)
    patterns = [np.tile(half, (4, 1)), np.tile(-half, (4, 1))]
    patterns += [patterns[0].T, patterns[1].T]
    flat = [0.5 * p.ravel() for p in patterns]
    means = [[p] for p in flat]
    bases = [[np.stack([0.15 * np.ones(16), 0.3 * p], 1)] for p in flat]
    return means, bases, NAMES, (1, 4, 4)
