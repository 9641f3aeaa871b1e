"""How many samples a bound takes, given the detector."""

from bisect import bisect_left

from scipy.special import bdtr

from sfd.metrics.rates import Card, Interval, Result, card_box, corrected_rate, rate_interval

MOST = 10**9
PERFECT: tuple[Card, Card] = (MOST, MOST), (0, MOST)
"""The cards of a judge that does not err, for rates that are what they are called."""


def _shown(true_rate: float, sensitivity: Card, false_positive: Card) -> float:
    """The raw rate that a true one shows as, by the card's own counts."""
    if not 0 <= true_rate <= 1:
        raise ValueError(f"true_rate={true_rate}: give the rate to plan for, in [0, 1]")
    s, f = (k / n for k, n in (sensitivity, false_positive))
    return true_rate * s + (1 - true_rate) * f


def pass_probability(
    n: int,
    threshold: float,
    true_rate: float,
    sensitivity: Card,
    false_positive: Card,
    level: float = 0.95,
    raw_too: bool = True,
) -> float:
    """P(PASS) of a claim to be below `threshold`, over k of n samples, the card as it is.

    The card's counts are taken for its true rates. `raw_too`: the worse of the raw and the
    corrected upper end decides, as it does in any case where the card does not fit. Raises
    ValueError as `corrected_rate`, and on a rate outside [0, 1].
    """
    shown = _shown(true_rate, sensitivity, false_positive)
    f_lo = card_box(sensitivity, false_positive, level)[1][0]

    def too_high(k: int) -> bool:
        raw = rate_interval(k, n, level)[1]
        found = corrected_rate(k, n, sensitivity, false_positive, level)
        high = found[f"ci{100 * level:g}"][1]
        alone = found["card_fits"] and not raw_too
        return (high if alone else max(raw, high)) >= threshold

    # the upper end rises with k, but for one fall: where the card begins to fit, f_lo is credited
    fits = bisect_left(range(n + 1), True, key=lambda k: rate_interval(k, n, level)[1] >= f_lo)
    below = bisect_left(range(fits), True, key=too_high)
    above = bisect_left(range(n + 1), True, lo=fits, key=too_high)
    return _cdf(below - 1, n, shown) + _cdf(above - 1, n, shown) - _cdf(fits - 1, n, shown)


def _cdf(k: int, n: int, p: float) -> float:
    return float(bdtr(k, n, p)) if k >= 0 else 0.0


def upper_limit(
    true_rate: float,
    sensitivity: Card,
    false_positive: Card,
    level: float = 0.95,
) -> Interval:
    """(raw, corrected): what the upper ends tend to as n grows, the detector's card staying.

    The corrected one is above the true rate for the card's uncertainty alone. Raises ValueError as
    `corrected_rate`.
    """
    shown = _shown(true_rate, sensitivity, false_positive)
    corrected_rate(0, 1, sensitivity, false_positive, level)  # refuses a card that says nothing
    (s_lo, _), (f_lo, _) = card_box(sensitivity, false_positive, level)
    return shown, min((shown - f_lo) / (s_lo - f_lo), 1.0)


def plan_samples(
    threshold: float,
    true_rate: float,
    sensitivity: Card,
    false_positive: Card,
    level: float = 0.95,
    power: float = 0.9,
    raw_too: bool = True,
) -> Result:
    """How many samples show a rate to be below `threshold` with probability `power`.

    Returns n, or None and `why` where no number does. As counts are whole, P(PASS) is a saw in n:
    n suffices and n - 1 does not, but a smaller one may. Raises ValueError as `pass_probability`,
    or on a threshold or power outside (0, 1).
    """
    if not (0 < threshold < 1 and 0 < power < 1):
        raise ValueError(f"threshold={threshold}, power={power}: give both in (0, 1)")
    raw, corrected = upper_limit(true_rate, sensitivity, false_positive, level)
    if true_rate >= threshold:
        return {"n": None, "why": f"a true rate of {true_rate:.3%} is not below {threshold:.3%}"}
    if raw_too and raw >= threshold:
        why = f"{raw:.3%} are called whatever n is, and the raw rate decides too: use a detector"
        return {"n": None, "why": f"{why} with fewer false positives, or decide by the corrected"}
    if corrected >= threshold:
        (s, s_n), (f, f_n) = sensitivity, false_positive
        why = f"the corrected upper end stays at {corrected:.3%} whatever n is: calibrate on more"
        return {"n": None, "why": f"{why} images than {s_n:,} ({s:,} found), {f_n:,} ({f:,} wrong)"}

    def enough(n: int) -> bool:
        args = (n, threshold, true_rate, sensitivity, false_positive, level, raw_too)
        return pass_probability(*args) >= power

    high = 1
    while not enough(high):
        high *= 2
        if high > MOST:
            return {"n": None, "why": f"more than {MOST:,} samples would be needed"}
    return {"n": bisect_left(range(high + 1), True, lo=high // 2 + 1, key=enough), "why": None}
