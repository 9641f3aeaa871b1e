"""What lies near what: precision and recall, and the radius within which an image is valid."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfd.metrics.rates import Interval, Result
from sfd.metrics.samples import Array, block_of, features_of, half_width, slices, two_sets


def _squared(x: Array, y: Array) -> Array:
    """Squared distances [N, M]; within rounding of zero they are zero, so copies coincide."""
    size = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1)
    d2 = size - 2 * (x @ y.T)
    d2[d2 < 4 * x.shape[1] * np.finfo(np.float64).eps * size] = 0.0
    return d2


def _radii(x: Array, k: int, block: NDArray[np.int64], blocks: int) -> Array:
    """Squared distance to the k-th nearest other row, [1 + blocks, N]: of all, then without each
    block."""
    out, depth = np.empty((1 + blocks, len(x))), min(2 * k + 2, len(x) - 1)
    for i in slices(len(x), len(x)):
        d2 = _squared(x[i], x)
        d2[np.arange(len(d2)), np.arange(i.start, i.stop)] = np.inf
        near = np.argpartition(d2, depth - 1, axis=1)[:, :depth]
        values = np.take_along_axis(d2, near, axis=1)
        order = np.argsort(values, axis=1)
        values = np.take_along_axis(values, order, axis=1)
        near = np.take_along_axis(near, order, axis=1)
        out[0, i] = values[:, k - 1]
        for j in range(blocks):
            rank = (block[near] != j).cumsum(axis=1)
            at = (rank < k).sum(axis=1)
            out[1 + j, i] = values[np.arange(len(values)), np.minimum(at, depth - 1)]
            if (few := np.flatnonzero(at == depth)).size:  # most of those nearest are of the block
                rest = d2[np.ix_(few, np.flatnonzero(block != j))]
                out[1 + j, i.start + few] = np.partition(rest, k - 1, axis=1)[:, k - 1]
    return out


def _nearest(x: Array, k: int) -> Array:
    """Squared distance [N] from each row to its k-th nearest other row."""
    return _radii(x, k, np.zeros(len(x), int), 0)[0]


def _precision_recall(
    x: Array, radius_x: Array, y: Array, k: int, block: NDArray[np.int64], blocks: int
) -> NDArray[np.float64]:
    """Precision and recall [1 + blocks, 2] of generated y against real x, whose `_nearest` is
    `radius_x`: of all, then without each block of y."""
    radius_y = _radii(y, k, block, blocks)
    kept = np.concatenate([np.ones((1, len(y)), bool), block != np.arange(blocks)[:, None]])
    widest = np.where(kept, radius_y, 0.0).max(axis=0)
    precise, recalled = np.zeros(len(y), bool), np.zeros((1 + blocks, len(x)), bool)
    for i in slices(len(x), len(y)):
        d2 = _squared(x[i], y)
        precise |= (d2 <= radius_x[i, None]).any(axis=0)
        row, column = np.nonzero(d2 <= widest)
        for found, of_y, radius in zip(recalled, kept, radius_y, strict=True):
            inside = of_y[column] & (d2[row, column] <= radius[column])
            found[i.start + row[inside]] = True
    return np.stack([(precise & kept).sum(axis=1) / kept.sum(axis=1), recalled.mean(axis=1)], 1)


def precision_recall(real: ArrayLike, generated: ArrayLike, k: int = 3) -> Interval:
    """(precision, recall), each in [0, 1], of features generated [M, D] against real [N, D].

    Precision: the share of generated images inside the ball of some real one, its radius the
    distance to its k-th nearest other real image. Recall: the same with the roles swapped. Both
    depend on N and M: compare at equal sizes. Raises ValueError unless both have over k images.
    Kynkaanniemi et al., arXiv 1904.06991, eq. 1-3.
    """
    x, y = _centred(real, generated, k, k + 1)
    precision, recall = _precision_recall(x, _nearest(x, k), y, k, np.zeros(len(y), int), 0)[0]
    return float(precision), float(recall)


def precision_recall_jackknife(
    real: ArrayLike,
    generated: ArrayLike,
    blocks: int = 20,
    level: float = 0.95,
    *,
    k: int = 3,
    groups: ArrayLike | None = None,
) -> Result:
    """`precision_recall` with intervals, at equal sizes: of as many sets of N of the M generated
    images as there are, their mean.

    The sets are spread evenly over the rows, of which those sorted by class give equal shares. The
    intervals are a delete-a-block jackknife's, for the sampling of `generated` and not of `real`;
    `groups` [M] as in `fid_jackknife`. Returns precision, recall, precision_ci95, recall_ci95 (the
    keys follow `level`), n, and left_out [blocks, 2]: both without each block. Raises ValueError
    as `precision_recall`, or where a set without a block has no more than k images.
    """
    n = min(len(np.asarray(real)), len(np.asarray(generated)))
    if groups is not None:
        blocks = min(blocks, len(np.unique(np.asarray(groups))))
    if blocks < 2:
        raise ValueError(f"blocks={blocks}: a jackknife needs 2, and 20 for a steady interval")
    x, y = _centred(real, generated, k, -(-(k + 1) * blocks // (blocks - 1)))
    block, radius_x, sets = block_of(len(y), blocks, groups), _nearest(x, k), []
    for p in range(len(y) // n):
        rows = np.arange(n) * len(y) // n + p
        sets.append(_precision_recall(x, radius_x, y[rows], k, block[rows], blocks))
    (precision, recall), *left = np.mean(sets, axis=0)
    left_out, key = np.array(left), f"ci{100 * level:g}"
    found: Result = {"precision": float(precision), "recall": float(recall), "n": len(y)}
    for column, name in enumerate(("precision", "recall")):
        half = half_width(left_out[:, column], level)
        found[f"{name}_{key}"] = [max(found[name] - half, 0.0), min(found[name] + half, 1.0)]
    return {**found, "left_out": left_out}


def recall_difference(a: Result, b: Result, level: float = 0.95) -> Result:
    """The first's recall less the second's, of two `precision_recall_jackknife`s of rows in pairs
    beside the same real images. Returns difference and ci95. Raises ValueError on unequal n or
    blocks.
    """
    if a["n"] != b["n"] or len(a["left_out"]) != len(b["left_out"]):
        raise ValueError(f"jackknives of {a['n']} and {b['n']} rows do not pair")
    difference = a["recall"] - b["recall"]
    half = half_width((a["left_out"] - b["left_out"])[:, 1], level)
    return {"difference": difference, f"ci{100 * level:g}": [difference - half, difference + half]}


def _centred(real: ArrayLike, generated: ArrayLike, k: int, least: int) -> tuple[Array, Array]:
    if k < 1:
        raise ValueError(f"k={k}: count at least 1 neighbour")
    x, y = two_sets(real, generated, "real generated", least)
    return x - x.mean(axis=0), y - x.mean(axis=0)  # |x|^2 + |y|^2 - 2 x.y then cancels less


def nn_radius(real: ArrayLike, quantile: float = 0.99) -> float:
    """That quantile of the distances from each real image [N, D] to the nearest other one.
    Raises ValueError below 2 images, or on a quantile outside (0, 1].
    """
    x = features_of(real, "real", 2)
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile={quantile}: give a share in (0, 1]")
    return float(np.quantile(np.sqrt(_nearest(x - x.mean(axis=0), 1)), quantile))


def within_radius(generated: ArrayLike, real: ArrayLike, radius: float) -> NDArray[np.bool_]:
    """Whether each generated image [M, D] is within `radius` of some real one [N, D]: bool [M].
    The radius belongs to this `real` (`nn_radius`): fewer real images lie further apart. Raises
    ValueError on a negative or infinite radius.
    """
    y, x = two_sets(generated, real, "generated real")
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius={radius}: give a distance >= 0, see `nn_radius`")
    x, y = x - x.mean(axis=0), y - x.mean(axis=0)
    nearest = [_squared(y[i], x).min(axis=1) for i in slices(len(y), len(x))]
    return np.concatenate(nearest) <= radius**2
