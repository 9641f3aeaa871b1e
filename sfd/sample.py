"""Sampling: one step of a student, or a teacher's probability-flow ODE."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfd import content, noise, solvers, teachers
from sfd.teachers import NotFinite, Raw, Teacher, guided

ROWS = 12
"""Conditions of a sheet, at most."""

AT_ONCE = 2**18
"""Values of x0 drawn at once, in up to 250 rows: 16 of Stable Diffusion's, whose network takes 4
GiB for them."""

Generate = Callable[[Raw, np.ndarray], np.ndarray]
"""(conditions, seeds `[N]`) -> uint8 images `[N, H, W, C]`; raises `teachers.NotFinite`."""

Draw = Callable[[Raw, Tensor], np.ndarray]
"""(conditions, z `[N, *shape]`) -> the same."""


def initial_noise(seeds: np.ndarray, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """The z of each seed, float32 `[N, *shape]`: the same whatever the batch or the model."""
    return torch.from_numpy(noise.normal(("sample", "z"), np.asarray(seeds), shape)).to(device)


@torch.no_grad()
def one_step(student: nn.Module, z: Tensor, cond: Tensor, sigma_init: float) -> Tensor:
    """x_g = student(sigma_init z, sigma_init, cond), `[B, C, H, W]`. arXiv 2404.04057, eq. 7."""
    return student(sigma_init * z, z.new_full((len(z),), sigma_init), cond)


def in_batches(draw: Callable[[slice], np.ndarray], count: int, batch: int) -> np.ndarray:
    """Images of rows 0 to `count`, drawn `batch` at a time.

    Raises NotFinite, when all were tried, if `draw` did of any of them.
    """
    if not count:
        return np.zeros((0, 1, 1, 1), np.uint8)
    parts, made = [], []
    for start in range(0, count, batch):
        try:
            parts.append(draw(slice(start, start + batch)))
            made.append(np.ones(len(parts[-1]), bool))
        except NotFinite as error:
            parts.append(error.images)
            made.append(error.made)
    images, finite = np.concatenate(parts), np.concatenate(made)
    if len(images) < count:
        raise NotFinite(images, finite)
    return images


def rows_at_once(shape: Sequence[int]) -> int:
    """How many images of an x0's shape are drawn at once: `AT_ONCE`."""
    return max(1, min(250, AT_ONCE // math.prod(shape)))


def _batched(
    draw: Draw,
    shape: tuple[int, ...],
    device: torch.device,
    batch: int | None,
) -> Generate:
    size = batch or rows_at_once(shape)

    def generate(raw: Raw, seeds: np.ndarray) -> np.ndarray:
        seeds = np.asarray(seeds)
        if len(seeds) and seeds.dtype.kind not in "iu":
            raise ValueError("seeds must be whole numbers below 2**63")
        seeds = seeds.astype(np.int64)
        if len(raw) != len(seeds):
            raise ValueError(f"{len(raw)} conditions for {len(seeds)} seeds: give one each")
        if len(seeds) and seeds.min() < 0:
            raise ValueError("seeds must not be negative")
        return in_batches(
            lambda rows: draw(raw[rows], initial_noise(seeds[rows], shape, device)),
            len(seeds),
            size,
        )

    return generate


def teacher_drawing(teacher: Teacher, *, steps: int = 18, guidance: float = 1.0) -> Draw:
    """What a teacher draws from a noise by `solvers.heun`.

    Raises ValueError if it cannot be guided, and on noise of another shape.
    """
    teachers.check_guided(teacher, guidance)
    low, high = teacher.sigma_range

    def draw(raw: Raw, z: Tensor) -> np.ndarray:
        if z.shape[1:] != teacher.shape:
            raise ValueError(f"the original draws from {teacher.shape}, not {tuple(z.shape[1:])}")
        denoiser = guided(teacher.denoiser, teacher.encode([None]), guidance)
        cond = teacher.encode(raw)
        x0 = solvers.heun(
            lambda x, sigma: denoiser(x, sigma, cond), z, steps=steps, sigma_min=low, sigma_max=high
        )
        return teacher.decode(x0)

    return draw


def teacher_sampler(
    teacher: Teacher, *, steps: int = 18, guidance: float = 1.0, batch: int | None = None
) -> Generate:
    """A teacher's own samples: `teacher_drawing` of each seed's noise, `batch` at a time or as
    `AT_ONCE` says."""
    device = teacher.encode([None]).device
    draw = teacher_drawing(teacher, steps=steps, guidance=guidance)
    return _batched(draw, teacher.shape, device, batch)


def one_step_sampler(
    denoiser: nn.Module,
    *,
    encode: Callable[[Raw], Tensor],
    decode: Callable[[Tensor], np.ndarray],
    shape: tuple[int, ...],
    sigma_init: float,
    batch: int | None = None,
) -> Generate:
    """One-step samples of a student, `batch` at a time or as `AT_ONCE` says."""
    device = next(denoiser.parameters()).device

    def draw(raw: Raw, z: Tensor) -> np.ndarray:
        return decode(one_step(denoiser, z, encode(raw), sigma_init))

    return _batched(draw, shape, device, batch)


def student_sampler(denoiser: nn.Module, teacher: Teacher) -> Generate:
    """One-step samples of a student of `teacher`."""
    return one_step_sampler(
        denoiser,
        encode=teacher.encode,
        decode=teacher.decode,
        shape=teacher.shape,
        sigma_init=teacher.sigma_init,
    )


@dataclass(frozen=True)
class Student:
    """A released one-step generator.

    `sample(conditions, seeds)` draws uint8 images `[N, H, W, C]`: one condition (a label's index or
    a prompt; None for nothing in particular) and one non-negative seed each. `card` is the file's
    metadata.
    """

    denoiser: nn.Module
    card: dict[str, Any]
    sha256: str
    sample: Generate
    language: Any = None
    """A text-to-image student's way into and out of its latents, for attacks."""

    @property
    def labels(self) -> list[str]:
        """Names of the classes, forgotten ones included."""
        return self.card["labels"]


def student_file(path: Path) -> Path:
    """A student's file, or that in its run folder. Raises ValueError if it is not there."""
    file = path / "student.safetensors" if path.is_dir() else path
    if file.is_file():
        return file
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder")
    if (path / "recipe.yaml").is_file():
        raise ValueError(f"{path}: is not finished, no student is in it yet; run its recipe again")
    raise ValueError(f"{path}: holds no run (no student.safetensors)")


def load(path: str | Path, device: str = "cpu", batch: int | None = None) -> Student:
    """A student from its file or its run folder, that draws `batch` images at a time, or as many as
    `AT_ONCE` says. Raises ValueError if it is not one."""
    path = student_file(Path(path))
    denoiser, card = teachers.read_file(path)
    if card.get("role") != "student":
        raise ValueError(f"{path}: holds a {card.get('role')}, not a student")
    denoiser = denoiser.to(device)
    words = teachers.language(card, torch.device(device))
    encode, decode = teachers.interface(card, torch.device(device), words)
    generate = one_step_sampler(
        denoiser,
        encode=encode,
        decode=decode,
        shape=tuple(card["shape"]),
        sigma_init=card["sigma_init"],
        batch=batch,
    )
    return Student(denoiser, card, content.sha256(path), generate, words)


__all__ = [
    "ROWS",
    "Draw",
    "Generate",
    "Student",
    "in_batches",
    "initial_noise",
    "load",
    "one_step",
    "one_step_sampler",
    "rows_at_once",
    "student_sampler",
    "teacher_drawing",
    "teacher_sampler",
]
