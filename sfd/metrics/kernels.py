"""Kernel distances of feature sets."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from sfd.metrics.rates import Result
from sfd.metrics.samples import Array, block_of, slices, two_sets


def _kernel_sum(x: Array, y: Array) -> float:
    return sum(float(((x[i] @ y.T / x.shape[1] + 1) ** 3).sum()) for i in slices(len(x), len(y)))


def _within(x: Array, stratum: NDArray[np.int64]) -> float:
    """Mean kernel of two draws from what x is of: any two rows of different strata, and as often as
    chance has it two of one. A stratum's only row has no other, and is left out."""
    _, at, counts = np.unique(stratum, return_inverse=True, return_counts=True)
    x, at = x[counts[at] > 1], at[counts[at] > 1]
    if not len(x):
        raise ValueError("a subset has one image of each stratum: give larger ones")
    total = _kernel_sum(x, x)
    for part in (x[at == s] for s in np.unique(at)):
        own = _kernel_sum(part, part)
        itself = float((((part * part).sum(axis=1) / x.shape[1] + 1) ** 3).sum())
        total += (own - itself) * len(part) / (len(part) - 1) - own
    return total / len(x) ** 2


def _in_shares(stratum: NDArray[np.int64], blocks: int) -> NDArray[np.int64]:
    """The block of each row, every stratum spread evenly."""
    block = np.empty(len(stratum), int)
    block[np.argsort(stratum, kind="stable")] = block_of(len(stratum), blocks)
    return block


def kid(
    a: ArrayLike,
    b: ArrayLike,
    subset: int | None = None,
    *,
    groups: ArrayLike | None = None,
    strata: tuple[ArrayLike, ArrayLike] | None = None,
) -> tuple[float, float]:
    """(mean, standard error) of the kernel distance of features [N, D], [M, D]; may be below zero.
    Unbiased MMD^2 with kernel (x.y / D + 1)^3, averaged over min(N, M) // subset disjoint pairs of
    blocks that use every image once: deterministic, with an honest error (subsets that share images
    understate it, and two say little). By default ten pairs, more where subsets are over 1000.
    `groups` [N] of a as in `fid_jackknife`. `strata` [N] and [M]: classes, say, so many images of
    each; two of one class are rarer then than by chance, and an estimate that does not know it is
    too low. Raises ValueError below 2 subsets, on fewer groups than subsets, or where a subset has
    one image of each stratum. Binkowski et al., arXiv 1801.01401, sec. 4.
    """
    at_x, at_y = map(np.asarray, strata or (np.zeros(len(np.asarray(f)), int) for f in (a, b)))
    if subset is None:
        n = min(len(at_x), len(at_y))
        subset = min(max(min(1000, n // 10), 4 * len(np.unique(at_x))), n // 2)
    if subset < 2:
        raise ValueError(f"subset={subset}: an unbiased estimate needs 2 images, and wants 1000")
    x, y = two_sets(a, b, "a b", 2 * subset)
    blocks = min(len(x), len(y)) // subset
    of_y = _in_shares(at_y, blocks)
    of_x = _in_shares(at_x, blocks) if groups is None else block_of(len(x), blocks, groups)
    if len(np.unique(of_x)) < blocks:
        raise ValueError(f"{len(np.unique(of_x))} groups for {blocks} subsets: give larger ones")
    mmd2 = []
    for j in range(blocks):
        p, q = x[of_x == j], y[of_y == j]
        across = _kernel_sum(p, q) / (len(p) * len(q))
        mmd2.append(_within(p, at_x[of_x == j]) + _within(q, at_y[of_y == j]) - 2 * across)
    return float(np.mean(mmd2)), float(np.std(mmd2, ddof=1) / math.sqrt(blocks))


def _row_means(x: Array, y: Array) -> Array:
    """Mean kernel [N] of each row of x with the rows of y, itself left out where y is x."""
    own = ((x * x).sum(axis=1) / x.shape[1] + 1) ** 3 if y is x else 0.0
    sums = [((x[i] @ y.T / x.shape[1] + 1) ** 3).sum(axis=1) for i in slices(len(x), len(y))]
    return (np.concatenate(sums) - own) / (len(y) - (y is x))


def relative_mmd(x: ArrayLike, y: ArrayLike, z: ArrayLike) -> Result:
    """Is x [N, D] nearer to y [M, D] than to z [L, D]? The relative three-sample kernel test.

    Unbiased MMD^2 with the kernel of `kid`, which has no bandwidth to choose and sees up to third
    moments. H0: MMD(x, y) >= MMD(x, z); p is one-sided and small where x is nearer to y. The
    standard error is that of the difference of two U-statistics that share x, to first order, from
    the means of the kernel by image: where all three coincide it is too large and the test too
    strict. Asymptotic: wants hundreds of images. Returns mmd_xy and mmd_xz (squared; may be below
    zero), difference (mmd_xy - mmd_xz), se, covariance of the two ([[xy, c], [c, xz]]), statistic
    (difference / se) and p. Raises ValueError below 2 images each. Bounliphone et al., arXiv
    1511.04581, sec. 3.
    """
    a, b = two_sets(x, y, "x y", 2)
    _, c = two_sets(x, z, "x z", 2)
    inside = _row_means(a, a)
    of_x, of_other, mmd2 = [], [], []
    for other in (b, c):
        to_other, from_other, within = (
            _row_means(a, other),
            _row_means(other, a),
            _row_means(other, other),
        )
        mmd2.append(float(inside.mean() + within.mean() - 2 * to_other.mean()))
        of_x.append(2 * (inside - to_other))
        of_other.append(2 * (within - from_other))
    covariance = np.cov(of_x) / len(a)
    covariance += np.diag([f.var(ddof=1) / len(f) for f in of_other])
    se = math.sqrt(max(float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]), 0.0))
    difference = mmd2[0] - mmd2[1]
    statistic = (
        difference / se if se else math.copysign(math.inf, difference) if difference else 0.0
    )
    return {
        "mmd_xy": mmd2[0],
        "mmd_xz": mmd2[1],
        "difference": difference,
        "se": se,
        "covariance": covariance.tolist(),
        "statistic": statistic,
        "p": float(ndtr(statistic)),
    }
