"""Sets of features as every distance takes them: checked, in blocks to leave out, in slices that
fit into memory."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from sfd.metrics.rates import tail

Array = NDArray[np.float64]

CHUNK = 1 << 22  # pairs of images held in memory at once


def features_of(x: ArrayLike, name: str, least: int = 1) -> Array:
    """Features [N, D] in float64. Raises ValueError on another shape, NaN, or too few rows."""
    f = np.asarray(x, dtype=np.float64)
    if f.ndim != 2 or not f.size:
        raise ValueError(f"{name} has shape {f.shape}: give features [N, D]")
    if bad := int((~np.isfinite(f)).any(axis=1).sum()):
        raise ValueError(f"{name}: {bad} of {len(f)} images have NaN or inf features: mend them")
    if len(f) < least:
        raise ValueError(f"{name}: too few images, N={len(f)} (D={f.shape[1]}), needs {least}")
    return f


def two_sets(a: ArrayLike, b: ArrayLike, names: str, least: int = 1) -> tuple[Array, Array]:
    """`features_of` both, called by the two words of `names`; raises ValueError on unlike D too."""
    x, y = (features_of(f, name, least) for f, name in zip((a, b), names.split(), strict=True))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{names} have D={x.shape[1]} and {y.shape[1]}: use one extractor")
    return x, y


def block_of(n: int, blocks: int, groups: ArrayLike | None = None) -> NDArray[np.int64]:
    """The block of each of n rows: every run of `blocks` rows gives one to each, in seeded order.
    Features sorted by class are spread evenly; and where labels cycle (image i has class i % K), no
    block is left with a few classes only, as it would be under i % blocks. Rows of one of `groups`
    [N] (whole numbers) go to one block.
    """
    if groups is not None:
        _, number = np.unique(np.asarray(groups), return_inverse=True)
        if number.shape != (n,):
            raise ValueError(f"groups {number.shape}: give one for each of {n} rows")
        return block_of(int(number.max()) + 1, blocks)[number]
    runs = np.tile(np.arange(blocks), (-(-n // blocks), 1))
    return np.random.default_rng(0).permuted(runs, axis=1).ravel()[:n]


def half_width(left: Array, level: float) -> float:
    """Half the width of a jackknife's interval."""
    blocks = len(left)
    return float(stdtrit(blocks - 1, 1 - tail(level))) * math.sqrt((blocks - 1) * float(left.var()))


def slices(n: int, width: int) -> Iterator[slice]:
    """Of n rows so many at once that `CHUNK` pairs with `width` others fit."""
    step = max(CHUNK // width, 1)
    return (slice(i, min(i + step, n)) for i in range(0, n, step))
