"""Rates and what a detector leaves of them: closed forms, published tables, simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sfd import metrics

RNG = np.random.default_rng


@st.composite
def counts(draw, most=400):
    n = draw(st.integers(1, most))
    return draw(st.integers(0, n)), n


# --- rates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("k, n", [(0, 10), (1, 10), (3, 10000), (81, 263), (29, 29), (50, 100)])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_intervals_agree_with_scipy(k, n, level):
    ours = metrics.wilson(k, n, level), metrics.clopper_pearson(k, n, level)
    for got, method in zip(ours, ("wilson", "exact"), strict=True):
        assert got == pytest.approx(stats.binomtest(k, n).proportion_ci(level, method), abs=1e-12)


def test_intervals_published():
    # Newcombe, Stat. Med. 17 (1998) 857, table I, methods 3 (Wilson) and 5 (Clopper-Pearson)
    table = [
        (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
        (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
        (0, 20, (0.0, 0.1611), (0.0, 0.1684)),
        (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
    ]
    for k, n, wilson, exact in table:
        assert metrics.wilson(k, n) == pytest.approx(wilson, abs=5e-5)
        assert metrics.clopper_pearson(k, n) == pytest.approx(exact, abs=5e-5)


@pytest.mark.parametrize("n", [100, 2000, 10_000])
def test_no_hits_bound_is_3_7_over_n(n):
    lo, hi = metrics.rate_interval(0, n)
    assert lo == 0 and hi * n == pytest.approx(3.69, rel=0.02)
    assert metrics.rate_interval(n, n) == pytest.approx((1 - hi, 1))


def test_rate_interval_is_wilson_inside_and_exact_at_the_ends():
    assert metrics.rate_interval(3, 50) == metrics.wilson(3, 50)
    assert metrics.rate_interval(0, 50) == metrics.clopper_pearson(0, 50) != metrics.wilson(0, 50)
    assert metrics.rate_interval(50, 50) == metrics.clopper_pearson(50, 50)


@given(counts(), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_holds_the_rate_and_rises_with_k(kn, level):
    k, n = kn
    for interval in (metrics.wilson, metrics.clopper_pearson, metrics.rate_interval):
        lo, hi = interval(k, n, level)
        assert 0 <= lo <= k / n <= hi <= 1
        if k:
            below = interval(k - 1, n, level)
            assert below[0] < lo and below[1] < hi


@given(counts())
def test_interval_mirrors_and_tightens(kn):
    k, n = kn
    lo, hi = metrics.rate_interval(k, n)
    assert metrics.rate_interval(n - k, n) == pytest.approx((1 - hi, 1 - lo))
    closer = metrics.rate_interval(10 * k, 10 * n)
    assert closer[1] - closer[0] < hi - lo


@pytest.mark.parametrize(
    "k, n", [(0, 0), (0, -1), (5, 4), (-1, 4), (0.5, 4), (1, 2.5), (math.nan, 4), (1, math.nan)]
)
def test_counts_are_refused(k, n):
    for f in (metrics.wilson, metrics.clopper_pearson, metrics.rate_interval):
        with pytest.raises(ValueError, match="n > 0|0 <= k <= n"):
            f(k, n)


@pytest.mark.parametrize("level", [0, 1, 95, math.nan])
def test_level_is_refused(level):
    with pytest.raises(ValueError, match="level"):
        metrics.rate_interval(1, 10, level)


def test_wilson_coverage():
    """Averaged over rates, as Wilson promises; its upper end, which decides PASS, at every rate."""
    n, rates = 200, np.linspace(0.005, 0.5, 100)
    lo, hi = np.transpose([metrics.rate_interval(k, n) for k in range(n + 1)])
    pmf = stats.binom.pmf(np.arange(n + 1)[:, None], n, rates)
    covered = (pmf * ((lo[:, None] <= rates) & (rates <= hi[:, None]))).sum(0)
    assert 0.945 < covered.mean() < 0.965 and covered.min() > 0.91
    assert (pmf * (hi[:, None] < rates)).sum(0).max() < 0.032


def test_false_pass_and_power_of_the_one_percent_claim():
    """At the threshold at most 5 % pass; at n = 2,000 a true 0.5 % passes 70 times in 100."""

    def passes(true, n):
        ks = np.arange(n // 50)
        good = [metrics.verdict(*metrics.rate_interval(k, n), 0.01) == "PASS" for k in ks]
        return float(stats.binom.pmf(ks, n, true)[good].sum())

    assert passes(0.01, 2000) < 0.03 and passes(0.01, 10_000) < 0.03 and passes(0.012, 2000) < 0.005
    assert passes(0.005, 2000) == pytest.approx(0.70, abs=0.01)
    assert passes(0.005, 10_000) > 0.999


def test_missing_samples_stay_in_the_denominator():
    assert metrics.missing_bounds(7, 100, 0) == metrics.rate_interval(7, 100)
    expected = metrics.rate_interval(7, 100)[0], metrics.rate_interval(17, 100)[1]
    assert metrics.missing_bounds(7, 100, 10) == expected
    lo, hi = metrics.missing_bounds(0, 100, 90)  # a filter ate 90: not 0 of 10
    assert lo == 0 and hi == metrics.rate_interval(90, 100)[1] > metrics.rate_interval(0, 10)[1]
    assert metrics.missing_bounds(0, 100, 100) == (0.0, 1.0)  # a detector that always raises
    assert metrics.verdict(*metrics.missing_bounds(0, 100, 100), 0.01) == "INCONCLUSIVE"
    for k, n, missing in [(60, 100, 41), (0, 10, 11), (0, 10, -1), (0, 10, 0.5)]:
        with pytest.raises(ValueError, match="planned"):
            metrics.missing_bounds(k, n, missing)


@given(counts(), st.data(), st.floats(0.001, 0.999))
def test_losing_samples_never_improves_nor_worsens_a_verdict(kn, data, threshold):
    k, n = kn
    hits = data.draw(st.integers(0, k))
    misses = data.draw(st.integers(0, n - k))
    full = metrics.verdict(*metrics.rate_interval(k, n), threshold)
    lost = metrics.verdict(*metrics.missing_bounds(k - hits, n, hits + misses), threshold)
    assert lost in (full, "INCONCLUSIVE")


# --- corrected rate ------------------------------------------------------------------------------

CARDS = [
    ((95, 100), (3, 100)),
    ((600, 1000), (0, 500)),
    ((50, 50), (1, 400)),
    ((9, 12), (3, 14)),  # the card's intervals cross
    ((990, 1000), (30, 1000)),
]


def union(q, s, f, grid):
    """The true rates in `grid` that some (raw, sensitivity, false positive) in the box explains."""
    s, f = (np.linspace(*interval, 41) for interval in (s, f))
    shown = grid[:, None, None] * s[:, None] + (1 - grid[:, None, None]) * f
    return grid[((q[0] - 1e-12 <= shown) & (shown <= q[1] + 1e-12)).any((1, 2))]


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("kn", [(0, 40), (3, 400), (20, 400), (35, 100), (70, 100), (100, 100)])
def test_corrected_is_the_union_over_the_box(card, kn):
    result = metrics.corrected_rate(*kn, *card)
    grid = np.linspace(0, 1, 501)
    possible = union(metrics.rate_interval(*kn), *metrics.card_box(*card), grid)
    lo, hi = result["ci95"]
    assert result["card_fits"] == bool(possible.size)
    if possible.size:  # the grid of s and f is coarse inside the box, but it holds the corners
        assert possible.min() - 0.002 - 1e-9 <= lo <= possible.min() + 1e-9
        assert possible.max() - 1e-9 <= hi <= possible.max() + 0.002 + 1e-9


@pytest.mark.parametrize("card", [c for c in CARDS if c != ((9, 12), (3, 14))])
@pytest.mark.parametrize("kn", [(3, 400), (20, 400), (35, 100), (70, 100)])
def test_corrected_corners_are_the_extremes_of_rogan_gladen(card, kn):
    """The same by the textbook formula, over all points of the box: no other corner is worse."""
    box = [np.linspace(*i, 21) for i in (metrics.rate_interval(*kn), *metrics.card_box(*card))]
    q, s, f = np.meshgrid(*box, indexing="ij")
    t = (q - f) / (s - f)
    if t.max() >= 0 and t.min() <= 1:
        assert metrics.corrected_rate(*kn, *card)["ci95"] == pytest.approx(
            [np.clip(t.min(), 0, 1), np.clip(t.max(), 0, 1)], abs=1e-12
        )


@given(counts(), st.sampled_from(CARDS), st.data())
def test_corrected_holds_its_estimate_and_losing_samples_only_widens_it(kn, card, data):
    k, n = kn
    result = metrics.corrected_rate(k, n, *card)
    lo, hi = result["ci95"]
    assert 0 <= lo <= result["rate"] <= hi <= 1
    hits, misses = data.draw(st.integers(0, k)), data.draw(st.integers(0, n - k))
    less = metrics.corrected_rate(k - hits, n, *card, missing=hits + misses)["ci95"]
    assert less[0] <= lo + 1e-12 and less[1] >= hi - 1e-12


def test_deleting_samples_does_not_restore_credit_from_a_card_that_does_not_fit():
    card = (100, 180), (250, 10_000)  # f_lo is 0.022, s_hi is 0.627
    low = metrics.corrected_rate(190, 10_000, *card)
    high = metrics.corrected_rate(6500, 10_000, *card)
    assert not low["card_fits"] and not high["card_fits"]
    for n in (10, 100, 300, 1000):
        assert metrics.corrected_rate(190, 10_000, *card, missing=n)["ci95"][1] > low["ci95"][1]
        less = metrics.corrected_rate(6500 - n, 10_000, *card, missing=n)
        assert less["ci95"][0] < high["ci95"][0]


def test_corrected_known_values():
    perfect = metrics.corrected_rate(30, 1000, (10**7, 10**7), (0, 10**7))
    assert perfect["rate"] == pytest.approx(0.03)
    assert perfect["ci95"] == pytest.approx(metrics.wilson(30, 1000), rel=1e-3)
    # Rogan and Gladen: raw 25 %, sensitivity 90 %, specificity 95 %
    assert metrics.corrected_rate(250, 1000, (900, 1000), (50, 1000))["rate"] == pytest.approx(
        (0.25 - 0.05) / 0.85
    )
    blunt = metrics.corrected_rate(0, 10_000, (60, 100), (0, 10_000))
    assert blunt["ci95"][1] > 1.6 * metrics.rate_interval(0, 10_000)[1]
    leaky_look = metrics.corrected_rate(300, 10_000, (990, 1000), (300, 10_000))
    assert leaky_look["rate"] == pytest.approx(0, abs=1e-12) and leaky_look["ci95"][0] == 0
    assert metrics.corrected_rate(5, 100, (9, 10), (0, 10), level=0.99)["ci99"][1] > 0


def test_corrected_never_turns_a_misfit_into_certainty():
    low = metrics.corrected_rate(0, 10_000, (95, 100), (30, 1000))  # far fewer than the card's f
    assert not low["card_fits"] and low["rate"] == 0
    assert low["ci95"][1] > metrics.rate_interval(0, 10_000)[1]  # no credit for false positives
    high = metrics.corrected_rate(100, 100, (600, 1000), (0, 1000))  # more than the card's s
    assert not high["card_fits"] and high["rate"] == 1
    assert 0.95 < high["ci95"][0] < metrics.rate_interval(100, 100)[0] < 0.97


def test_corrected_with_nothing_judged_claims_nothing():
    result = metrics.corrected_rate(0, 100, (95, 100), (1, 100), missing=100)
    assert result["rate"] is None and result["ci95"] == [0.0, 1.0]


def test_corrected_rate_is_of_the_judged_but_its_interval_of_the_planned():
    result = metrics.corrected_rate(9, 100, (10**6, 10**6), (0, 10**6), missing=10)
    assert result["rate"] == pytest.approx(0.1)
    assert result["ci95"] == pytest.approx(metrics.missing_bounds(9, 100, 10), rel=1e-3)


@pytest.mark.parametrize(
    "sensitivity, false_positive, match",
    [
        ((0, 0), (0, 10), "sfd calibrate"),
        ((10, 10), (0, 0), "sfd calibrate"),
        ((50, 100), (50, 100), "not informative"),
        ((3, 100), (95, 100), "not informative"),  # swapped
        ((0, 50), (0, 50), "not informative"),
        ((11, 10), (0, 10), "0 <= k <= n"),
    ],
)
def test_corrected_refuses_a_useless_card(sensitivity, false_positive, match):
    with pytest.raises(ValueError, match=match):
        metrics.corrected_rate(1, 100, sensitivity, false_positive)


@pytest.mark.parametrize("true, s, f", [(0.0, 0.9, 0.03), (0.01, 0.8, 0.02), (0.3, 0.7, 0.1)])
def test_corrected_coverage(true, s, f):
    rng, runs, n, m_s, m_f = RNG(1), 1500, 1000, 300, 500
    ks = rng.binomial(n, true * s + (1 - true) * f, runs)
    cards = rng.binomial(m_s, s, runs), rng.binomial(m_f, f, runs)
    ci = np.array(
        [
            metrics.corrected_rate(k, n, (a, m_s), (b, m_f))["ci95"]
            for k, a, b in zip(ks, *cards, strict=True)
        ]
    )
    covered = (ci[:, 0] <= true) & (true <= ci[:, 1])
    assert covered.mean() >= 0.95
    assert (ci[:, 1] < true).mean() < 0.025  # the end that decides PASS
    # The raw interval does not cover: the correction is needed, and the test can fail.
    raw = np.array([metrics.rate_interval(k, n) for k in ks])
    assert ((raw[:, 0] <= true) & (true <= raw[:, 1])).mean() < 0.8


# --- verdicts ------------------------------------------------------------------------------------


def test_verdict():
    assert metrics.verdict(0.001, 0.009, 0.01) == "PASS"
    assert metrics.verdict(0.011, 0.02, 0.01) == "FAIL"
    assert metrics.verdict(0.001, 0.02, 0.01) == "INCONCLUSIVE"
    for lo, hi in [(0.001, 0.01), (0.01, 0.02), (0.01, 0.01)]:  # touching settles nothing
        assert metrics.verdict(lo, hi, 0.01) == metrics.verdict(lo, hi, 0.01, below=False)
        assert metrics.verdict(lo, hi, 0.01) == "INCONCLUSIVE"
    assert metrics.verdict(0.96, 0.99, 0.95, below=False) == "PASS"
    assert metrics.verdict(0.90, 0.94, 0.95, below=False) == "FAIL"
    for lo, hi, t in [(math.nan, 1, 0.1), (0, math.nan, 0.1), (0, 1, math.nan), (0.2, 0.1, 0.5)]:
        with pytest.raises(ValueError, match="NaN"):
            metrics.verdict(lo, hi, t)


@given(
    counts(60), st.sampled_from([0.003, 0.01, 0.05, 0.3, 0.5, 0.9]), st.sampled_from([0.9, 0.95])
)
def test_samples_to_settle_is_where_the_verdict_turns(kn, threshold, level):
    k, n = kn
    needed = metrics.samples_to_settle(k, n, threshold, level)
    if math.isclose(k / n, threshold):
        assert needed is None
        return
    assert needed is not None
    for copies in {max(needed // n, 1), needed // n + 1, needed // n + 7}:
        got = metrics.verdict(*metrics.rate_interval(copies * k, copies * n, level), threshold)
        settled = "PASS" if k / n < threshold else "FAIL"
        assert got == (settled if copies * n >= needed else "INCONCLUSIVE")


def test_samples_to_settle_known():
    assert (
        metrics.samples_to_settle(0, 10, 0.01) == math.floor(math.log(0.025) / math.log(0.99)) + 1
    )
    assert metrics.samples_to_settle(5, 1000, 0.005) is None
    for threshold in (0, 1, -0.1, math.nan):
        with pytest.raises(ValueError, match="threshold"):
            metrics.samples_to_settle(1, 10, threshold)
