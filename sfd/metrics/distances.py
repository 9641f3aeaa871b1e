"""Distances of feature sets: arrays in, numbers out."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, stdtrit

from sfd.metrics.rates import Interval, Result, tail

Array = NDArray[np.float64]

CHUNK = 1 << 22  # pairs of images held in memory at once


def _features(x: ArrayLike, name: str, least: int = 1) -> Array:
    f = np.asarray(x, dtype=np.float64)
    if f.ndim != 2 or not f.size:
        raise ValueError(f"{name} has shape {f.shape}: give features [N, D]")
    if bad := int((~np.isfinite(f)).any(axis=1).sum()):
        raise ValueError(f"{name}: {bad} of {len(f)} images have NaN or inf features: mend them")
    if len(f) < least:
        raise ValueError(f"{name}: too few images, N={len(f)} (D={f.shape[1]}), needs {least}")
    return f


def _two(a: ArrayLike, b: ArrayLike, names: str, least: int = 1) -> tuple[Array, Array]:
    x, y = (_features(f, name, least) for f, name in zip((a, b), names.split(), strict=True))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{names} have D={x.shape[1]} and {y.shape[1]}: use one extractor")
    return x, y


def moments(features: ArrayLike) -> tuple[Array, Array]:
    """Mean [D] and covariance [D, D] (ddof=1) of features [N, D].
    Raises ValueError if N <= D, where the covariance is singular.
    """
    x = _features(features, "features")
    x = _features(x, "features", x.shape[1] + 1)
    mu = x.mean(axis=0)
    return mu, (x - mu).T @ (x - mu) / (len(x) - 1)


def _root(cov: Array) -> Array:
    w, v = np.linalg.eigh(cov)
    if w[0] < -1e-5 * abs(w[-1]):
        raise ValueError(f"a covariance has no eigenvalue {w[0]:.3g} < 0: compute it by `moments`")
    return (v * np.sqrt(np.maximum(w, 0.0))) @ v.T


def _frechet(mu1: Array, cov1: Array, mu2: Array, cov2: Array, root2: Array) -> float:
    # C1 C2 has the eigenvalues of the symmetric root2 C1 root2: no complex square root.
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root2 @ cov1 @ root2), 0.0)).sum()
    distance = ((mu1 - mu2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * cross
    return max(float(distance), 0.0)  # equal inputs leave a rounding error of either sign


def frechet(mu1: ArrayLike, cov1: ArrayLike, mu2: ArrayLike, cov2: ArrayLike) -> float:
    """Squared Frechet distance of two Gaussians, from their means [D] and covariances [D, D].
    |mu1 - mu2|^2 + Tr(C1 + C2 - 2 (C1 C2)^1/2), in the features' unit squared. Raises ValueError on
    shapes that do not fit, NaN, or a negative eigenvalue. Dowson and Landau, JMVA 12 (1982).
    """
    m1, c1, m2, c2 = given = [np.asarray(x, dtype=np.float64) for x in (mu1, cov1, mu2, cov2)]
    if m1.ndim != 1 or m2.shape != m1.shape or not (c1.shape == c2.shape == m1.shape * 2):
        raise ValueError(f"shapes {[x.shape for x in given]}: give mu [D], cov [D, D] of one D")
    if not all(np.isfinite(x).all() for x in given):
        raise ValueError("NaN or inf in a mean or covariance: recompute it by `moments`")
    _root(c1)  # refuses what is no covariance
    return _frechet(m1, c1, m2, c2, _root(c2))


def fid(a: ArrayLike, b: ArrayLike) -> float:
    """Frechet distance of features [N, D] and [M, D]: symmetric, too high by a bias ~ 1/N + 1/M.
    Raises ValueError as `moments`. Heusel et al., arXiv 1706.08500, eq. 6.
    """
    x, y = _two(a, b, "a b")
    return frechet(*moments(x), *moments(y))


def _block_of(n: int, blocks: int, groups: ArrayLike | None = None) -> NDArray[np.int64]:
    """The block of each of n rows: every run of `blocks` rows gives one to each, in seeded order.
    Features sorted by class are spread evenly; and where labels cycle (image i has class i % K), no
    block is left with a few classes only, as it would be under i % blocks. Rows of one of `groups`
    [N] (whole numbers) go to one block.
    """
    if groups is not None:
        _, number = np.unique(np.asarray(groups), return_inverse=True)
        if number.shape != (n,):
            raise ValueError(f"groups {number.shape}: give one for each of {n} rows")
        return _block_of(int(number.max()) + 1, blocks)[number]
    runs = np.tile(np.arange(blocks), (-(-n // blocks), 1))
    return np.random.default_rng(0).permuted(runs, axis=1).ravel()[:n]


def fid_jackknife(
    a: ArrayLike,
    b: ArrayLike,
    blocks: int = 20,
    level: float = 0.95,
    *,
    groups: ArrayLike | None = None,
) -> Result:
    """fid of a [N, D] to the reference b [M, D], with an interval from a delete-a-block jackknife.

    The plain estimate +- t SE (blocks - 1 degrees of freedom), for the sampling of `a`, b fixed:
    compare at the same N only. No bootstrap: a resample repeats images, which adds the bias ~ C / N
    a second time, and its percentiles lie above the estimate. Returns fid, ci95 ([lo, hi]; the key
    follows `level`), bias (what fid exceeds its limit at infinite N by), n, and left_out: the
    distance without each block. Rows of one of `groups` [N] are drawn together (from one seed,
    say), and left out together; fewer groups than blocks are a block each. Raises ValueError if `a`
    without a block has N <= D, or blocks < 2.
    Efron and Stein, Ann. Stat. 9 (1981).
    """
    x, y = _two(a, b, "a b")
    if groups is not None:
        blocks = min(blocks, len(np.unique(np.asarray(groups))))  # an empty block errs by nothing
    if blocks < 2:
        raise ValueError(f"blocks={blocks}: a jackknife needs 2, and 20 for a steady interval")
    _features(x, "a", max(blocks, -(-(x.shape[1] + 1) * blocks // (blocks - 1))))
    (mu, cov), (mu_b, cov_b), n = moments(x), moments(y), len(x)
    root_b, block, left = _root(cov_b), _block_of(n, blocks, groups), np.empty(blocks)
    for j in range(blocks):
        z = x[block == j] - mu
        rest = n - len(z)
        shift = -z.sum(axis=0) / rest
        scatter = (n - 1) * cov - z.T @ z - rest * np.outer(shift, shift)
        left[j] = _frechet(mu + shift, scatter / (rest - 1), mu_b, cov_b, root_b)
    value = _frechet(mu, cov, mu_b, cov_b, root_b)
    half = _half(left, level)
    ci, bias = [max(value - half, 0.0), value + half], (blocks - 1) * float(left.mean() - value)
    return {"fid": value, f"ci{100 * level:g}": ci, "bias": bias, "n": n, "left_out": left}


def fid_ratio(a: Result, b: Result, level: float = 0.95) -> Result:
    """The ratio of two `fid_jackknife`s to one reference, of rows in pairs (one seed each, say).

    Each block holds the same rows of both, so what pairs share counts once; rows that are strangers
    cost nothing but that gain. On logarithms. Returns ratio and ci95. Raises ValueError on unequal
    n or blocks, or where a distance is 0.
    """
    if a["n"] != b["n"] or len(a["left_out"]) != len(b["left_out"]):
        raise ValueError(f"jackknives of {a['n']} and {b['n']} rows do not pair")
    if not min(a["fid"], b["fid"], a["left_out"].min(), b["left_out"].min()) > 0:
        raise ValueError("a distance of 0 has no ratio")
    half, ratio = _half(np.log(a["left_out"] / b["left_out"]), level), a["fid"] / b["fid"]
    return {"ratio": ratio, f"ci{100 * level:g}": [ratio * math.exp(-half), ratio * math.exp(half)]}


def _half(left: Array, level: float) -> float:
    """Half the width of a jackknife's interval."""
    blocks = len(left)
    return float(stdtrit(blocks - 1, 1 - tail(level))) * math.sqrt((blocks - 1) * float(left.var()))


def floor_at(n_a: int, n_b: int, measured: float, m_a: int, m_b: int) -> float:
    """The floor at sizes (n_a, n_b), from one `measured` at (m_a, m_b), real against real.
    To leading order, for sizes well above D, two samples of one distribution are C (1/n_a + 1/n_b)
    apart. Raises ValueError on a size below 1 or a negative floor.
    """
    if min(n_a, n_b, m_a, m_b) < 1 or not 0 <= measured < math.inf:
        raise ValueError("give sizes >= 1 and a floor >= 0, measured between disjoint real images")
    return measured * (1 / n_a + 1 / n_b) / (1 / m_a + 1 / m_b)


def excess_ratio(student: float, teacher: float, floor: float) -> float:
    """(student - floor) / (teacher - floor): 1 is the teacher's; below 0, suspect memorisation.
    All three from one extractor at one n. Raises ValueError if teacher <= floor, or on NaN.
    """
    if not teacher > floor or not math.isfinite(student):
        raise ValueError(f"teacher {teacher}, floor {floor}: no excess; measure at a larger n")
    return (student - floor) / (teacher - floor)


def _kernel_sum(x: Array, y: Array) -> float:
    return sum(float(((x[i] @ y.T / x.shape[1] + 1) ** 3).sum()) for i in _rows(len(x), len(y)))


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
    block[np.argsort(stratum, kind="stable")] = _block_of(len(stratum), blocks)
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
    x, y = _two(a, b, "a b", 2 * subset)
    blocks = min(len(x), len(y)) // subset
    of_y = _in_shares(at_y, blocks)
    of_x = _in_shares(at_x, blocks) if groups is None else _block_of(len(x), blocks, groups)
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
    sums = [((x[i] @ y.T / x.shape[1] + 1) ** 3).sum(axis=1) for i in _rows(len(x), len(y))]
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
    a, b = _two(x, y, "x y", 2)
    _, c = _two(x, z, "x z", 2)
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


def _rows(n: int, width: int) -> Iterator[slice]:
    step = max(CHUNK // width, 1)
    return (slice(i, min(i + step, n)) for i in range(0, n, step))


def _squared(x: Array, y: Array) -> Array:
    """Squared distances [N, M]; within rounding of zero they are zero, so copies coincide."""
    size = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1)
    d2 = size - 2 * (x @ y.T)
    d2[d2 < 4 * x.shape[1] * np.finfo(np.float64).eps * size] = 0.0
    return d2


def _nearest(x: Array, k: int) -> Array:
    """Squared distance [N] from each row to its k-th nearest other row."""
    out = np.empty(len(x))
    for i in _rows(len(x), len(x)):
        d2 = _squared(x[i], x)
        d2[np.arange(len(d2)), np.arange(i.start, i.stop)] = np.inf
        out[i] = np.partition(d2, k - 1, axis=1)[:, k - 1]
    return out


def _radii(x: Array, k: int, block: NDArray[np.int64], blocks: int) -> Array:
    """Squared distance to the k-th nearest other row, [1 + blocks, N]: of all, then without each
    block."""
    out, depth = np.empty((1 + blocks, len(x))), min(2 * k + 2, len(x) - 1)
    for i in _rows(len(x), len(x)):
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


def _precision_recall(
    x: Array, y: Array, k: int, block: NDArray[np.int64], blocks: int
) -> NDArray[np.float64]:
    """Precision and recall [1 + blocks, 2] of generated y against real x: of all, then without each
    block of y."""
    radius_x, radius_y = _nearest(x, k), _radii(y, k, block, blocks)
    kept = np.concatenate([np.ones((1, len(y)), bool), block != np.arange(blocks)[:, None]])
    widest = np.where(kept, radius_y, 0.0).max(axis=0)
    precise, recalled = np.zeros(len(y), bool), np.zeros((1 + blocks, len(x)), bool)
    for i in _rows(len(x), len(y)):
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
    precision, recall = _precision_recall(x, y, k, np.zeros(len(y), int), 0)[0]
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
    block, sets = _block_of(len(y), blocks, groups), []
    for p in range(len(y) // n):
        rows = np.arange(n) * len(y) // n + p
        sets.append(_precision_recall(x, y[rows], k, block[rows], blocks))
    (precision, recall), *left = np.mean(sets, axis=0)
    left_out, key = np.array(left), f"ci{100 * level:g}"
    found: Result = {"precision": float(precision), "recall": float(recall), "n": len(y)}
    for column, name in enumerate(("precision", "recall")):
        half = _half(left_out[:, column], level)
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
    half = _half((a["left_out"] - b["left_out"])[:, 1], level)
    return {"difference": difference, f"ci{100 * level:g}": [difference - half, difference + half]}


def _centred(real: ArrayLike, generated: ArrayLike, k: int, least: int) -> tuple[Array, Array]:
    if k < 1:
        raise ValueError(f"k={k}: count at least 1 neighbour")
    x, y = _two(real, generated, "real generated", least)
    return x - x.mean(axis=0), y - x.mean(axis=0)  # |x|^2 + |y|^2 - 2 x.y then cancels less


def nn_radius(real: ArrayLike, quantile: float = 0.99) -> float:
    """That quantile of the distances from each real image [N, D] to the nearest other one.
    Raises ValueError below 2 images, or on a quantile outside (0, 1].
    """
    x = _features(real, "real", 2)
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile={quantile}: give a share in (0, 1]")
    return float(np.quantile(np.sqrt(_nearest(x - x.mean(axis=0), 1)), quantile))


def within_radius(generated: ArrayLike, real: ArrayLike, radius: float) -> NDArray[np.bool_]:
    """Whether each generated image [M, D] is within `radius` of some real one [N, D]: bool [M].
    The radius belongs to this `real` (`nn_radius`): fewer real images lie further apart. Raises
    ValueError on a negative or infinite radius.
    """
    y, x = _two(generated, real, "generated real")
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius={radius}: give a distance >= 0, see `nn_radius`")
    x, y = x - x.mean(axis=0), y - x.mean(axis=0)
    nearest = [_squared(y[i], x).min(axis=1) for i in _rows(len(y), len(x))]
    return np.concatenate(nearest) <= radius**2
