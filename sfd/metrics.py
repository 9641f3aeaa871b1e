"""Rates with intervals, paired tests, distances of feature sets: arrays in, numbers out.

Every rate takes its denominator n as an argument: the number of samples planned, fixed before any
was made, judged or filtered. Nothing here derives it from the length of what survived.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, chdtrc, ndtr, ndtri, stdtrit

Array = NDArray[np.float64]
Interval = tuple[float, float]
Estimate = tuple[float, float, float]
Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Result = dict[str, Any]
Card = tuple[int, int]  # (hits, images looked at)

CHUNK = 1 << 22  # pairs of images held in memory at once


def _counts(k: int, n: int) -> Card:
    if not n > 0 or n != n // 1:
        raise ValueError(f"n={n}: a rate needs n > 0 whole samples; draw some, or claim nothing")
    if not 0 <= k <= n or k != k // 1:
        raise ValueError(f"k={k}, n={n}: k counts the hits among the n, so 0 <= k <= n")
    return int(k), int(n)


def _tail(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level={level}: give a confidence level in (0, 1), such as 0.95")
    return (1 - level) / 2


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's two-sided score interval for k hits of n. Raises ValueError unless 0 <= k <= n > 0.
    Its lower end is liberal at one or two hits, its upper end is not. Wilson, JASA 22 (1927).
    """
    (k, n), z = _counts(k, n), float(ndtri(_tail(level)))
    p, r = k / n, z * z / n
    centre = (p + r / 2) / (1 + r)
    half = abs(z) * math.sqrt((p * (1 - p) + r / 4) / n) / (1 + r)
    return (centre - half if k else 0.0), (centre + half if k < n else 1.0)


def clopper_pearson(k: int, n: int, level: float = 0.95) -> Interval:
    """The exact interval for k hits of n. Biometrika 26 (1934). Raises as `wilson`."""
    (k, n), tail = _counts(k, n), _tail(level)
    lo = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
    return lo, (float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0)


def rate_interval(k: int, n: int, level: float = 0.95) -> Interval:
    """The interval of every claim: Wilson, but Clopper-Pearson for no hits or nothing but hits.
    0 of n bounds the rate at 3.7 / n. Both ends rise with k, to level 0.99. Raises as `wilson`.
    """
    return (clopper_pearson if k in (0, n) else wilson)(k, n, level)


def missing_bounds(k: int, n: int, missing: int, level: float = 0.95) -> Interval:
    """The interval for k hits when `missing` of the n planned samples were never made or judged.
    The lower end counts the missing as misses and the upper end as hits, so losing samples makes
    neither a PASS nor a FAIL. Raises ValueError unless all are whole and k + missing <= n.
    """
    _counts(k, n)
    if not 0 <= missing <= n - k or missing != missing // 1:
        raise ValueError(f"k={k}, missing={missing}, n={n}: n counts all planned, lost included")
    return rate_interval(k, n, level)[0], rate_interval(k + missing, n, level)[1]


def corrected_rate(
    k: int, n: int, sensitivity: Card, false_positive: Card, level: float = 0.95, missing: int = 0
) -> Result:
    """The true rate behind k detections in n planned samples, for a detector that errs.

    `sensitivity` and `false_positive`: (hits, images) on real images with and without the concept.
    A true rate t shows as the raw rate r = t s + (1 - t) f. With r, s, f in their intervals, t can
    be iff t s_lo + (1 - t) f_lo <= r_hi and t s_hi + (1 - t) f_hi >= r_lo. Both are linear in t:
    the union over the box runs from (r_lo - f_hi) / (s_hi - f_hi) to (r_hi - f_lo) / (s_lo - f_lo).
    A lower s hides more true cases, a lower f excuses fewer hits, and both raise t. Guaranteed
    (Bonferroni) is a miss of at most 1.5 (1 - level) at each end; simulated cover exceeds `level`.
    A raw rate that no t explains (all below f_lo, or above s_hi) says the card was measured on
    other images: then `card_fits` is False and that end takes no credit from the card (f_lo = 0,
    or s_hi = 1), where clipping would report a certain 0 or 1. Losing samples never narrows it.

    Returns rate (Rogan-Gladen of the samples judged, clipped to [0, 1]; None if none was), ci95
    ([lo, hi]; the key follows `level`), card_fits, method. Raises ValueError on impossible counts,
    a card never measured, sensitivity not above false positives. Rogan and Gladen, AJE 107 (1978).
    """
    if not (sensitivity[1] and false_positive[1]):
        raise ValueError("the detector's card was never measured on images: run `sfd calibrate`")
    raw_lo, raw_hi = missing_bounds(k, n, missing, level)
    (s_lo, s_hi), s = rate_interval(*sensitivity, level), sensitivity[0] / sensitivity[1]
    (f_lo, f_hi), f = rate_interval(*false_positive, level), false_positive[0] / false_positive[1]
    if s_lo <= f_lo or s <= f:
        card = f"sensitivity {s:.3g} (from {s_lo:.3g}), false positives {f:.3g} (from {f_lo:.3g})"
        raise ValueError(f"{card}: not informative; calibrate on more images, or use another")
    card_fits = f_lo <= raw_hi and raw_lo <= max(s_hi, f_hi)
    # Credit is refused with the missing as misses (hits), or deleting samples could restore it.
    f_lo = 0.0 if rate_interval(k, n, level)[1] < f_lo else f_lo
    s_hi = 1.0 if rate_interval(k + missing, n, level)[0] > max(s_hi, f_hi) else s_hi
    # Where s_hi <= f_hi, a detector that tells nothing apart is in the box: t has no lower bound.
    lo = (raw_lo - f_hi) / (s_hi - f_hi) if s_hi > f_hi else 0.0
    hi = (raw_hi - f_lo) / (s_lo - f_lo)
    rate = (k / (n - missing) - f) / (s - f) if n > missing else None
    return {
        "rate": None if rate is None else min(max(rate, 0.0), 1.0),
        f"ci{100 * level:g}": [min(max(lo, 0.0), 1.0), min(max(hi, 0.0), 1.0)],
        "card_fits": card_fits,
        "method": "conservative union (Rogan-Gladen over the interval ends)",
    }


def verdict(lo: float, hi: float, threshold: float, below: bool = True) -> Verdict:
    """PASS if the whole interval is below the threshold, FAIL if above, else INCONCLUSIVE.
    `below=False` mirrors it, for a quantity that must exceed the threshold. An end that touches the
    threshold settles nothing. Raises ValueError on NaN or lo > hi.
    """
    if not lo <= hi or math.isnan(threshold):
        raise ValueError(f"[{lo}, {hi}] against {threshold}: give lo <= hi and no NaN")
    if lo <= threshold <= hi:
        return "INCONCLUSIVE"
    return "PASS" if (hi < threshold) == below else "FAIL"


def samples_to_settle(k: int, n: int, threshold: float, level: float = 0.95) -> int | None:
    """How many samples in all, at the observed rate k / n, put `rate_interval` off the threshold.
    None if k / n is the threshold: no number does. For the raw rate: a corrected one also needs a
    sharper card. Raises ValueError on a threshold outside (0, 1), or as `wilson`.
    """
    (k, n), tail = _counts(k, n), _tail(level)
    if not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold}: nothing settles against it; give one in (0, 1)")
    if math.isclose(k / n, threshold):
        return None
    if k in (0, n):  # Clopper-Pearson: at the threshold, such a run has probability `tail`
        least = math.log(tail) / math.log(threshold if k else 1 - threshold)
    else:  # Wilson inverts the score test: |k/n - t| > z sqrt(t (1 - t) / N)
        least = ndtri(tail) ** 2 * threshold * (1 - threshold) / (k / n - threshold) ** 2
    return math.floor(least) + 1


def _paired(before: ArrayLike, after: ArrayLike) -> tuple[int, int, int, int]:
    """How many pairs are true (in both, before only, after only, in neither)."""
    x, y = np.asarray(before), np.asarray(after)
    if (x.dtype, y.dtype) != (bool, bool) or x.ndim != 1 or x.shape != y.shape or not x.size:
        raise ValueError("give two boolean arrays [n > 0] in which entry i is the same seed")
    return int((x & y).sum()), int((x & ~y).sum()), int((~x & y).sum()), int((~x & ~y).sum())


def paired_difference(before: ArrayLike, after: ArrayLike, level: float = 0.95) -> Estimate:
    """(difference, lo, hi) of the rates after - before of two boolean arrays [n] on shared seeds.
    Newcombe's method 10: Wilson's limits squared and added, phi corrected for continuity.
    Raises ValueError unless boolean, 1-D, of one length. Newcombe, Stat. Med. 17 (1998) 2635.
    """
    both, lost, gained, neither = _paired(before, after)
    n, k, m = both + lost + gained + neither, both + gained, both + lost
    (k_lo, k_hi), (m_lo, m_hi) = wilson(k, n, level), wilson(m, n, level)
    p, q = k / n, m / n
    covariance = both * neither - lost * gained
    covariance = max(covariance - n / 2, 0) if covariance > 0 else covariance
    phi = covariance / math.sqrt(k * (n - k) * m * (n - m) or 1)
    down = (p - k_lo) ** 2 - 2 * phi * (p - k_lo) * (m_hi - q) + (m_hi - q) ** 2
    up = (k_hi - p) ** 2 - 2 * phi * (k_hi - p) * (q - m_lo) + (q - m_lo) ** 2
    return p - q, p - q - math.sqrt(max(down, 0.0)), p - q + math.sqrt(max(up, 0.0))


def noninferiority_p(before: ArrayLike, after: ArrayLike, margin: float) -> float:
    """One-sided p of H0: rate after - rate before <= -margin, of boolean arrays [n], shared seeds.
    Tango's score test (asymptotic, the variance taken under H0). Raises ValueError on a margin
    outside (0, 1), or as `paired_difference`. Tango, Stat. Med. 17 (1998) 891.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin={margin}: state the loss that would be tolerated, in (0, 1)")
    both, lost, gained, neither = _paired(before, after)
    n, d = both + lost + gained + neither, -margin
    b, c = (2 * n - gained + lost) * d - lost - gained, -lost * d * (1 - d)
    q = (math.sqrt(b * b - 8 * n * c) - b) / (4 * n)  # P(before only), its maximum under H0
    return float(ndtr(-(gained - lost - n * d) / math.sqrt(n * (2 * q + d * (1 - d)))))


def holm(pvalues: ArrayLike) -> Array:
    """Holm's adjusted p-values [m], in the order given: reject those at most alpha.
    Raises ValueError unless p-values are [m >= 1] in [0, 1]. Holm, Scand. J. Stat. 6 (1979).
    """
    p = np.asarray(pvalues, dtype=np.float64)
    if p.ndim != 1 or not p.size or not np.all((p >= 0) & (p <= 1)):
        raise ValueError("give p-values [m >= 1] in [0, 1]; a test that did not run has no p-value")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    return np.minimum(adjusted, 1.0)


def _histograms(p: ArrayLike, q: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"shapes {x.shape}, {y.shape}: count both over the same classes [K]")
    if not all(np.all(np.isfinite(h) & (h >= 0)) and h.sum() > 0 for h in (x, y)):
        raise ValueError("a histogram needs finite entries >= 0, not all zero: count again")
    return x, y


def total_variation(p: ArrayLike, q: ArrayLike) -> float:
    """Total variation distance, in [0, 1], of histograms [K], each normalised by its own sum.
    Counts or probabilities. Raises ValueError on unequal lengths, negative entries or no mass.
    """
    x, y = _histograms(p, q)
    return float(np.abs(x / x.sum() - y / y.sum()).sum() / 2)


def goodness_of_fit(counts: ArrayLike, probs: ArrayLike, draws: int = 9999) -> float:
    """p-value of counts [K] under the declared probabilities [K], which sum to 1.

    Pearson's chi-square where Cochran's rule holds (no expected count below 1, at most a fifth
    below 5); else its statistic against `draws` seeded multinomial samples, where p is at least
    1 / (draws + 1). A hit in a class declared at zero has probability zero: p is 0.0 exactly, so
    report `total_variation` beside it. Raises ValueError on counts that are not whole, or
    probabilities that do not sum to 1. Hope, JRSS B 30 (1968).
    """
    x, p = _histograms(counts, probs)
    if np.any(x != np.floor(x)) or abs(p.sum() - 1) > 1e-6:
        raise ValueError("give whole counts [K], not shares, and K probabilities that sum to 1")
    if np.any(x[p == 0] > 0):
        return 0.0
    x, p, n = x[p > 0], p[p > 0] / p.sum(), int(x.sum())
    statistic = float(((x - n * p) ** 2 / (n * p)).sum())
    if p.size == 1 or (n * p.min() >= 1 and (n * p < 5).mean() <= 0.2):
        return float(chdtrc(p.size - 1, statistic)) if p.size > 1 else 1.0
    simulated = np.random.default_rng(0).multinomial(n, p, size=draws)
    above = ((simulated - n * p) ** 2 / (n * p)).sum(axis=1) >= statistic * (1 - 1e-9)  # or tied
    return float((1 + above.sum()) / (draws + 1))


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


def _block_of(n: int, blocks: int) -> NDArray[np.int64]:
    """The block of each of n rows: every run of `blocks` rows gives one to each, in seeded order.
    Features sorted by class are spread evenly; and where labels cycle (image i has class i % K), no
    block is left with a few classes only, as it would be under i % blocks.
    """
    runs = np.tile(np.arange(blocks), (-(-n // blocks), 1))
    return np.random.default_rng(0).permuted(runs, axis=1).ravel()[:n]


def fid_jackknife(a: ArrayLike, b: ArrayLike, blocks: int = 20, level: float = 0.95) -> Result:
    """fid of a [N, D] to the reference b [M, D], with an interval from a delete-a-block jackknife.

    The plain estimate +- t SE (blocks - 1 degrees of freedom), for the sampling of `a`, b fixed:
    compare at the same N only. No bootstrap: a resample repeats images, which adds the bias ~ C / N
    a second time, and its percentiles lie above the estimate. Returns fid, ci95 ([lo, hi]; the key
    follows `level`), bias (what fid exceeds its limit at infinite N by). Raises ValueError if `a`
    without a block has N <= D, or blocks < 2. Efron and Stein, Ann. Stat. 9 (1981).
    """
    x, y = _two(a, b, "a b")
    if blocks < 2:
        raise ValueError(f"blocks={blocks}: a jackknife needs 2, and 20 for a steady interval")
    _features(x, "a", max(blocks, -(-(x.shape[1] + 1) * blocks // (blocks - 1))))
    (mu, cov), (mu_b, cov_b), n = moments(x), moments(y), len(x)
    root_b, block, left = _root(cov_b), _block_of(n, blocks), np.empty(blocks)
    for j in range(blocks):
        z = x[block == j] - mu
        rest = n - len(z)
        shift = -z.sum(axis=0) / rest
        scatter = (n - 1) * cov - z.T @ z - rest * np.outer(shift, shift)
        left[j] = _frechet(mu + shift, scatter / (rest - 1), mu_b, cov_b, root_b)
    value = _frechet(mu, cov, mu_b, cov_b, root_b)
    se = math.sqrt((blocks - 1) * float(left.var()))
    half = float(stdtrit(blocks - 1, 1 - _tail(level))) * se
    ci, bias = [max(value - half, 0.0), value + half], (blocks - 1) * float(left.mean() - value)
    return {"fid": value, f"ci{100 * level:g}": ci, "bias": bias}


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


def _within(x: Array) -> float:
    diagonal = float((((x * x).sum(axis=1) / x.shape[1] + 1) ** 3).sum())
    return (_kernel_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))


def kid(a: ArrayLike, b: ArrayLike, subset: int = 1000) -> tuple[float, float]:
    """(mean, standard error) of the kernel distance of features [N, D], [M, D]; may be below zero.
    Unbiased MMD^2 with kernel (x.y / D + 1)^3, averaged over min(N, M) // subset disjoint pairs of
    blocks that use every image once: deterministic, with an honest error (subsets that share images
    understate it). Raises ValueError below 2 subsets. Binkowski et al., arXiv 1801.01401, sec. 4.
    """
    if subset < 2:
        raise ValueError(f"subset={subset}: an unbiased estimate needs 2 images, and wants 1000")
    x, y = _two(a, b, "a b", 2 * subset)
    blocks = min(len(x), len(y)) // subset
    of_x, of_y = _block_of(len(x), blocks), _block_of(len(y), blocks)
    pairs = [(x[of_x == j], y[of_y == j]) for j in range(blocks)]
    mmd2 = [_within(p) + _within(q) - 2 * _kernel_sum(p, q) / (len(p) * len(q)) for p, q in pairs]
    return float(np.mean(mmd2)), float(np.std(mmd2, ddof=1) / math.sqrt(blocks))


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


def precision_recall(real: ArrayLike, generated: ArrayLike, k: int = 3) -> Interval:
    """(precision, recall), each in [0, 1], of features generated [M, D] against real [N, D].

    Precision: the share of generated images inside the ball of some real one, its radius the
    distance to its k-th nearest other real image. Recall: the same with the roles swapped. Both
    depend on N and M: compare at equal sizes. Raises ValueError unless both have over k images.
    Kynkaanniemi et al., arXiv 1904.06991, eq. 1-3.
    """
    if k < 1:
        raise ValueError(f"k={k}: count at least 1 neighbour")
    x, y = _two(real, generated, "real generated", k + 1)
    x, y = x - x.mean(axis=0), y - x.mean(axis=0)  # |x|^2 + |y|^2 - 2 x.y then cancels less
    radius_x, radius_y = _nearest(x, k), _nearest(y, k)
    precise, recalled = np.zeros(len(y), dtype=bool), np.zeros(len(x), dtype=bool)
    for i in _rows(len(x), len(y)):
        d2 = _squared(x[i], y)
        precise |= (d2 <= radius_x[i, None]).any(axis=0)
        recalled[i] = (d2 <= radius_y).any(axis=1)
    return float(precise.mean()), float(recalled.mean())


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
