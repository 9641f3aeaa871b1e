"""Rates with intervals, and what a detector that errs leaves of them.

Every rate takes its denominator n as an argument: the number of samples planned, fixed before any
was made, judged or filtered. Nothing here derives it from the length of what survived.
"""

import math
from typing import Any, Literal

from scipy.special import betaincinv, ndtri

Interval = tuple[float, float]
Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Result = dict[str, Any]
Card = tuple[int, int]  # (hits, images looked at)


def counts(k: int, n: int) -> Card:
    """(k, n) as whole numbers. Raises ValueError unless 0 <= k <= n > 0."""
    if not n > 0 or n != n // 1:
        raise ValueError(f"n={n}: a rate needs n > 0 whole samples; draw some, or claim nothing")
    if not 0 <= k <= n or k != k // 1:
        raise ValueError(f"k={k}, n={n}: k counts the hits among the n, so 0 <= k <= n")
    return int(k), int(n)


def tail(level: float) -> float:
    """What a two-sided interval leaves out at each end. Raises ValueError outside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level={level}: give a confidence level in (0, 1), such as 0.95")
    return (1 - level) / 2


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's two-sided score interval for k hits of n. Raises ValueError unless 0 <= k <= n > 0.
    Its lower end is liberal at one or two hits, its upper end is not. Wilson, JASA 22 (1927).
    """
    (k, n), z = counts(k, n), float(ndtri(tail(level)))
    p, r = k / n, z * z / n
    centre = (p + r / 2) / (1 + r)
    half = abs(z) * math.sqrt((p * (1 - p) + r / 4) / n) / (1 + r)
    return (centre - half if k else 0.0), (centre + half if k < n else 1.0)


def clopper_pearson(k: int, n: int, level: float = 0.95) -> Interval:
    """The exact interval for k hits of n. Biometrika 26 (1934). Raises as `wilson`."""
    (k, n), side = counts(k, n), tail(level)
    lo = float(betaincinv(k, n - k + 1, side)) if k else 0.0
    return lo, (float(betaincinv(k + 1, n - k, 1 - side)) if k < n else 1.0)


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
    counts(k, n)
    if not 0 <= missing <= n - k or missing != missing // 1:
        raise ValueError(f"k={k}, missing={missing}, n={n}: n counts all planned, lost included")
    return rate_interval(k, n, level)[0], rate_interval(k + missing, n, level)[1]


def card_box(
    sensitivity: Card, false_positive: Card, level: float = 0.95
) -> tuple[Interval, Interval]:
    """The intervals of a detector's sensitivity and false-positive rate that a correction takes.

    The false positives' lower end is Clopper-Pearson's: it excuses hits, and Wilson's, which is
    liberal at one or two of few images, let a tenth of leaks at the threshold pass.
    """
    exact = clopper_pearson(*false_positive, level)[0]
    return rate_interval(*sensitivity, level), (exact, rate_interval(*false_positive, level)[1])


def corrected_rate(
    k: int,
    n: int,
    sensitivity: Card,
    false_positive: Card,
    level: float = 0.95,
    missing: int = 0,
    raw: tuple[Interval, Interval] | None = None,
) -> Result:
    """The true rate behind k detections in n planned samples, for a detector that errs.

    `sensitivity` and `false_positive`: (hits, images) on real images with and without the concept.
    A true rate t shows as the raw rate r = t s + (1 - t) f. With r, s, f in their intervals
    (`card_box`), t can be iff t s_lo + (1 - t) f_lo <= r_hi and t s_hi + (1 - t) f_hi >= r_lo. Both
    are linear in t, and the union over the box runs from (r_lo - f_hi) / (s_hi - f_hi) to
    (r_hi - f_lo) / (s_lo - f_lo).
    A lower s hides more true cases, a lower f excuses fewer hits, and both raise t. Guaranteed
    (Bonferroni) is a miss of at most 1.5 (1 - level) at each end; simulated cover exceeds `level`.
    A raw rate that no t explains (all below f_lo, or above s_hi) says the card was measured on
    other images: then `card_fits` is False and that end takes no credit from the card (f_lo = 0,
    or s_hi = 1), where clipping would report a certain 0 or 1. Losing samples never narrows it.
    `raw` replaces the binomial intervals of the raw rate, with the missing as misses and as hits,
    where images are not independent (`cluster_interval` of each).

    Returns rate (Rogan-Gladen of the samples judged, clipped to [0, 1]; None if none was), ci95
    ([lo, hi]; the key follows `level`), card_fits, method. Raises ValueError on impossible counts,
    a card never measured, sensitivity not above false positives. Rogan and Gladen, AJE 107 (1978).
    """
    if not (sensitivity[1] and false_positive[1]):
        raise ValueError("the detector's card was never measured on images: run `sfd calibrate`")
    missing_bounds(k, n, missing, level)  # refuses impossible counts
    as_misses, as_hits = raw or (rate_interval(k, n, level), rate_interval(k + missing, n, level))
    raw_lo, raw_hi = as_misses[0], as_hits[1]
    s, f = (hits / images for hits, images in (sensitivity, false_positive))
    (s_lo, s_hi), (f_lo, f_hi) = card_box(sensitivity, false_positive, level)
    if s_lo <= f_lo or s <= f:
        card = f"sensitivity {s:.3g} (from {s_lo:.3g}), false positives {f:.3g} (from {f_lo:.3g})"
        raise ValueError(f"{card}: not informative; calibrate on more images, or use another")
    card_fits = f_lo <= raw_hi and raw_lo <= max(s_hi, f_hi)
    # Credit is refused with the missing as misses (hits), or deleting samples could restore it.
    f_lo = 0.0 if as_misses[1] < f_lo else f_lo
    s_hi = 1.0 if as_hits[0] > max(s_hi, f_hi) else s_hi
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
    (k, n), side = counts(k, n), tail(level)
    if not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold}: nothing settles against it; give one in (0, 1)")
    if math.isclose(k / n, threshold):
        return None
    if k in (0, n):  # Clopper-Pearson: at the threshold, such a run has probability `side`
        least = math.log(side) / math.log(threshold if k else 1 - threshold)
    else:  # Wilson inverts the score test: |k/n - t| > z sqrt(t (1 - t) / N)
        least = ndtri(side) ** 2 * threshold * (1 - threshold) / (k / n - threshold) ** 2
    return math.floor(least) + 1
