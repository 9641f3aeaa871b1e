"""Two sides compared: pairs on shared seeds, samples drawn apart, families of tests, histograms,
training seeds."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtrc, ndtr, stdtrit

from sfd.metrics.rates import Result, tail, wilson

Array = NDArray[np.float64]
Estimate = tuple[float, float, float]


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


def _apart(before: ArrayLike, after: ArrayLike) -> tuple[int, int, int, int]:
    """Hits and entries of two boolean arrays (k of n before, j of m after)."""
    x, y = np.asarray(before), np.asarray(after)
    if (x.dtype, y.dtype) != (bool, bool) or (x.ndim, y.ndim) != (1, 1) or not x.size * y.size:
        raise ValueError("give two boolean arrays [n > 0], [m > 0]")
    return int(x.sum()), x.size, int(y.sum()), y.size


def independent_difference(before: ArrayLike, after: ArrayLike, level: float = 0.95) -> Estimate:
    """(difference, lo, hi) of the rates after - before of boolean arrays [n], [m] drawn apart.
    Newcombe's method 10: Wilson's limits squared and added. Raises ValueError unless boolean and
    1-D. Newcombe, Stat. Med. 17 (1998) 873.
    """
    k, n, j, m = _apart(before, after)
    (k_lo, k_hi), (j_lo, j_hi) = wilson(k, n, level), wilson(j, m, level)
    p, q = j / m, k / n
    return p - q, p - q - math.hypot(p - j_lo, k_hi - q), p - q + math.hypot(j_hi - p, q - k_lo)


def independent_noninferiority_p(before: ArrayLike, after: ArrayLike, margin: float) -> float:
    """One-sided p of H0: rate after - rate before <= -margin, of boolean arrays [n], [m] drawn
    apart. The score test, its variance at the most likely rates under H0 (the root of their cubic).
    Raises ValueError on a margin outside (0, 1), or as `independent_difference`. Farrington and
    Manning, Stat. Med. 9 (1990) 1447, appendix.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin={margin}: state the loss that would be tolerated, in (0, 1)")
    k, n, j, m = _apart(before, after)
    p, q, ratio, d = j / m, k / n, n / m, -margin
    a, b = 1 + ratio, -(1 + ratio + p + ratio * q + d * (ratio + 2))
    c, e = d * d + d * (2 * p + ratio + 1) + p + ratio * q, -p * d * (1 + d)
    v = b**3 / (3 * a) ** 3 - b * c / (6 * a * a) + e / (2 * a)
    u = math.copysign(math.sqrt(max((b / (3 * a)) ** 2 - c / (3 * a), 0.0)), v)
    w = (math.pi + math.acos(min(max(v / u**3, -1.0), 1.0) if u else 0.0)) / 3
    after_0 = min(max(2 * u * math.cos(w) - b / (3 * a), 0.0), 1 + d)
    before_0 = after_0 - d
    variance = after_0 * (1 - after_0) / m + before_0 * (1 - before_0) / n
    return float(ndtr(-(p - q - d) / math.sqrt(variance)))


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
    # rounding may carry a sum of ones past 1
    return min(float(np.abs(x / x.sum() - y / y.sum()).sum() / 2), 1.0)


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


def seed_spread(estimates: ArrayLike, level: float = 0.95) -> Result:
    """Mean, standard deviation (ddof=1) and two intervals of one estimate [n] per training seed.

    ci95 (the key follows `level`): Student's interval for the mean over seeds. next95: for what one
    further seed gives, wider by sqrt(n + 1), and never narrower however many seeds there were than
    the spread between them. Both assume normal estimates, and are None where all are equal: rates
    of 0 show no spread, which is not that there is none. Raises ValueError below 2 seeds, or on
    NaN. Hahn and Meeker, Statistical Intervals (1991), ch. 4.
    """
    x = np.asarray(estimates, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2 or not np.isfinite(x).all():
        raise ValueError("give one finite estimate per training seed [n >= 2]: one shows no spread")
    n, mean, sd = len(x), float(x.mean()), float(x.std(ddof=1))
    t = float(stdtrit(n - 1, 1 - tail(level)))
    out: Result = {"n": n, "mean": mean, "sd": sd}
    for key, half in (("ci", t * sd / math.sqrt(n)), ("next", t * sd * math.sqrt(1 + 1 / n))):
        out[f"{key}{100 * level:g}"] = [mean - half, mean + half] if sd else None
    return out
