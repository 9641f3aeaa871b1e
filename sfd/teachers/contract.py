"""The contract between pretrained diffusion models and everything that uses them.

Denoiser: `x0 = denoiser(x, sigma, cond)`, `x [B, C, H, W]` float32, `sigma [B] > 0`,
`x = x0 + sigma * eps`; returns float32 of x's shape. Everything else (preconditioning, discrete
times, VP scaling, latents, autocast) is the adapter's.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Raw = Sequence[Any]


class NotFinite(ValueError):
    """Some of the images asked for hold values that are not finite, and so are no pictures.

    `made` bool `[N]`: the others; `images` uint8 `[M, H, W, C]`: those M.
    """

    def __init__(self, images: np.ndarray, made: np.ndarray):
        super().__init__(
            f"{len(made) - len(images)} of {len(made)} images hold values that are not finite: the"
            " model's training diverged or its file is damaged; take an earlier one, or train again"
            " at a lower learning rate"
        )
        self.images, self.made = images, made


def finite_rows(x0: Tensor) -> Tensor:
    """bool `[B]`: which of `[B, ...]` hold finite values alone."""
    return x0.isfinite().flatten(1).all(1)


def to_uint8(x0: Tensor) -> np.ndarray:
    """x0 `[B, C, H, W]` in [-1, 1] to uint8 `[B, H, W, C]`, rounded to the nearest grey level.

    Raises NotFinite where a value is not finite.
    """
    made = finite_rows(x0)
    if not made.all():
        raise NotFinite(to_uint8(x0[made]), made.cpu().numpy())
    scaled = ((x0.float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


@dataclass(frozen=True)
class Teacher:
    """What training, sampling and the audit know of a pretrained model."""

    name: str
    denoiser: nn.Module
    encode: Callable[[Raw], Tensor]
    """Raw conditions to what the denoiser takes: class indices, or prompts; None is the null."""
    make_student: Callable[[], nn.Module]
    """A new trainable denoiser, started from this teacher."""
    shape: tuple[int, int, int]
    labels: tuple[str, ...]
    """Names of the classes; empty where conditions are prompts."""
    spec: dict[str, Any]
    """Plain data that rebuilds the student's architecture, for `teachers.build_denoiser`.

    Its `kind` is shipped, or an entry point `sfd.denoisers` of an installed package.
    """
    sha256: str
    sigma_range: tuple[float, float] = (0.002, 80.0)
    sigma_init: float = 2.5
    without: tuple[int, ...] = ()
    """Labels this teacher was trained without; its `encode` maps them to the null condition."""
    knows_null: bool = True
    """Whether it was taught to denoise without a condition: else there is no guidance of it."""
    decode: Callable[[Tensor], np.ndarray] = to_uint8
    """x0 `[B, C, H, W]` to uint8 images `[B, H, W, C]`."""


def from_uint8(images: np.ndarray) -> Tensor:
    """uint8 `[B, H, W, C]` to float32 `[B, C, H, W]` in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def one_hot(raw: Raw, classes: int, device: torch.device, null: Sequence[int] = ()) -> Tensor:
    """Class indices to one-hot rows `[B, classes]`; None, and the labels in `null`, to zeros.

    A tuple of indices is the sum of its rows. Raises ValueError on an index that is no class.
    """
    rows = np.zeros((len(raw), classes), np.float32)
    for row, entry in zip(rows, raw, strict=True):
        for label in entry if isinstance(entry, tuple) else (entry,):
            if label is None:
                continue
            try:
                index = operator.index(label)
            except TypeError:
                raise ValueError(
                    f"label {label!r}: give a class's number, 0 to {classes - 1} in the order of"
                    " the model's labels, or None"
                ) from None
            if index in null:
                continue
            if not 0 <= index < classes:
                raise ValueError(f"label {index} is outside this model's 0 to {classes - 1}")
            row[index] += 1.0
    return torch.from_numpy(rows).to(device)


Interval = tuple[float, float]
"""(low, high] of sigma."""


class Guided(nn.Module):
    """D(x, null) + k (D(x, cond) - D(x, null)); `null` is one row. arXiv 2207.12598, eq. 6.

    `k` `[classes]` is of each class, where conditions are rows `[B, classes]`; of the null it is 1.
    Outside `interval` of sigma k is 1 (arXiv 2404.07724, eq. 6). Where it is, the null is not
    asked.
    """

    def __init__(
        self, denoiser: nn.Module, null: Tensor, k: float | Tensor, interval: Interval | None
    ):
        super().__init__()
        self.denoiser, self.interval = denoiser, interval
        beyond = torch.as_tensor(k, dtype=torch.float64, device=null.device) - 1
        self.register_buffer("null", null, persistent=False)
        self.register_buffer("beyond", beyond.float(), persistent=False)

    def forward(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        beyond = self.get_buffer("beyond")
        rows = torch.arange(len(x), device=x.device)
        if beyond.ndim:
            beyond = (cond * beyond).sum(1)
            rows = rows[beyond != 0]
        if self.interval:
            low, high = self.interval
            rows = rows[(sigma[rows] > low) & (sigma[rows] <= high)]
        null = self.get_buffer("null").expand(len(rows), *cond.shape[1:])
        within, without = self.denoiser(
            torch.cat([x, x[rows]]), torch.cat([sigma, sigma[rows]]), torch.cat([cond, null])
        ).split([len(x), len(rows)])
        scale = beyond.to(within).expand(len(x))[rows].reshape(-1, *[1] * (x.ndim - 1))
        return within.index_add(0, rows, scale * (within[rows] - without))


def guided(
    denoiser: nn.Module, null: Tensor, k: float | Tensor, interval: Interval | None = None
) -> nn.Module:
    """The denoiser under classifier-free guidance (`Guided`); itself where `k` is 1."""
    beyond = torch.as_tensor(k) != 1
    return Guided(denoiser, null, k, interval) if beyond.any() else denoiser


def check_guided(teacher: Teacher, *ks: float) -> None:
    """Raises ValueError if a k asks for guidance that the teacher cannot give."""
    strange = next((k for k in ks if k != 1), None)
    if strange is not None and not teacher.knows_null:
        raise ValueError(
            f"teacher {teacher.name}: knows no null condition, so guidance cannot be {strange:g}"
        )


def unguided(denoiser: nn.Module) -> nn.Module:
    """The denoiser without the guidance that `guided` gave it."""
    return denoiser.denoiser if isinstance(denoiser, Guided) else denoiser
