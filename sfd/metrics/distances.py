"""The Fréchet distance of feature sets, its interval, its ratio and its floor."""

import math

import numpy as np
from numpy.typing import ArrayLike

from sfd.metrics.rates import Result
from sfd.metrics.samples import Array, block_of, features_of, half_width, two_sets


def moments(features: ArrayLike) -> tuple[Array, Array]:
    """Mean [D] and covariance [D, D] (ddof=1) of features [N, D].
    Raises ValueError if N <= D, where the covariance is singular.
    """
    x = features_of(features, "features")
    x = features_of(x, "features", x.shape[1] + 1)
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
    x, y = two_sets(a, b, "a b")
    return frechet(*moments(x), *moments(y))


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
    x, y = two_sets(a, b, "a b")
    if groups is not None:
        blocks = min(blocks, len(np.unique(np.asarray(groups))))  # an empty block errs by nothing
    if blocks < 2:
        raise ValueError(f"blocks={blocks}: a jackknife needs 2, and 20 for a steady interval")
    features_of(x, "a", max(blocks, -(-(x.shape[1] + 1) * blocks // (blocks - 1))))
    (mu, cov), (mu_b, cov_b), n = moments(x), moments(y), len(x)
    root_b, block, left = _root(cov_b), block_of(n, blocks, groups), np.empty(blocks)
    for j in range(blocks):
        z = x[block == j] - mu
        rest = n - len(z)
        shift = -z.sum(axis=0) / rest
        scatter = (n - 1) * cov - z.T @ z - rest * np.outer(shift, shift)
        left[j] = _frechet(mu + shift, scatter / (rest - 1), mu_b, cov_b, root_b)
    value = _frechet(mu, cov, mu_b, cov_b, root_b)
    half = half_width(left, level)
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
    half, ratio = half_width(np.log(a["left_out"] / b["left_out"]), level), a["fid"] / b["fid"]
    return {"ratio": ratio, f"ci{100 * level:g}": [ratio * math.exp(-half), ratio * math.exp(half)]}


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
