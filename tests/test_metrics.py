"""Rates, tests and distances against closed forms, published tables, brute force and simulation."""

import itertools
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


def pairs(both, lost, gained, neither):
    """Boolean (before, after) with these many pairs of each kind."""
    sizes = [both, lost, gained, neither]
    return np.repeat([True, True, False, False], sizes), np.repeat(
        [True, False, True, False], sizes
    )


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
    possible = union(*(metrics.rate_interval(*c) for c in (kn, *card)), grid)
    lo, hi = result["ci95"]
    assert result["card_fits"] == bool(possible.size)
    if possible.size:  # the grid of s and f is coarse inside the box, but it holds the corners
        assert possible.min() - 0.002 - 1e-9 <= lo <= possible.min() + 1e-9
        assert possible.max() - 1e-9 <= hi <= possible.max() + 0.002 + 1e-9


@pytest.mark.parametrize("card", [c for c in CARDS if c != ((9, 12), (3, 14))])
@pytest.mark.parametrize("kn", [(3, 400), (20, 400), (35, 100), (70, 100)])
def test_corrected_corners_are_the_extremes_of_rogan_gladen(card, kn):
    """The same by the textbook formula, over all points of the box: no other corner is worse."""
    box = [np.linspace(*metrics.rate_interval(*c), 21) for c in (kn, *card)]
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


# --- paired, families, histograms ----------------------------------------------------------------


def test_paired_difference_published():
    # Cavo et al. 2012, (59, 6 / 16, 80), as in Fagerland, Lydersen and Laake, Statistical Analysis
    # of Contingency Tables (2017), ch. 8, and its R package's tests; theirs is before - after.
    diff, lo, hi = metrics.paired_difference(*pairs(59, 6, 16, 80))
    assert (-diff, -hi, -lo) == pytest.approx((-0.0621, -0.1186, -0.0046), abs=5e-5)
    # Bentur et al. 2009, (1, 1 / 7, 12), same source, to three digits
    diff, lo, hi = metrics.paired_difference(*pairs(1, 1, 7, 12))
    assert (-diff, -hi, -lo) == pytest.approx((-0.286, -0.507, -0.026), abs=5e-4)


def test_paired_difference_is_after_minus_before():
    before, after = pairs(80, 15, 2, 3)
    diff, lo, hi = metrics.paired_difference(before, after)
    assert diff == pytest.approx(-0.13) and lo < diff < hi < 0
    assert metrics.paired_difference(after, before) == pytest.approx((-diff, -hi, -lo))
    same, lo, hi = metrics.paired_difference(before, before)
    assert same == 0 and -0.1 < lo < 0 < hi < 0.1
    assert metrics.paired_difference(*pairs(0, 0, 9, 0)) == pytest.approx((1, 0.577, 1), abs=1e-3)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_paired_difference_holds_its_estimate(rows):
    before, after = np.array(rows).T
    diff, lo, hi = metrics.paired_difference(before, after)
    assert -1 - 1e-12 <= lo <= diff <= hi <= 1 + 1e-12


@pytest.mark.parametrize(
    "cells", [(0.90, 0.03, 0.02, 0.05), (0.5, 0.2, 0.1, 0.2), (0.2, 0.3, 0.3, 0.2)]
)
def test_paired_difference_coverage(cells):
    tables = RNG(2).multinomial(150, cells, 4000)
    ci = np.array([metrics.paired_difference(*pairs(*t))[1:] for t in tables])
    true = cells[2] - cells[1]
    assert 0.94 <= ((ci[:, 0] <= true) & (true <= ci[:, 1])).mean() <= 0.985


def test_noninferiority_published():
    # Tango's 95 % interval of before - after is [-0.1240, -0.0054] for Cavo's table (ibid.).
    # Its ends are the margins at which the one-sided p is 0.025: swap so that after lost 0.0621.
    before, after = pairs(59, 16, 6, 80)
    assert metrics.noninferiority_p(before, after, 0.1240) == pytest.approx(0.025, abs=2e-4)
    assert 1 - metrics.noninferiority_p(before, after, 0.0054) == pytest.approx(0.025, abs=2e-4)


def test_noninferiority_direction_and_edges():
    gain, loss = pairs(80, 0, 10, 10), pairs(80, 10, 0, 10)
    assert metrics.noninferiority_p(*gain, 0.02) < 1e-3
    assert metrics.noninferiority_p(*loss, 0.02) > 0.9
    never = pairs(50, 0, 0, 50)  # no discordant pair: z = sqrt(n m / (1 - m))
    assert metrics.noninferiority_p(*never, 0.02) == pytest.approx(
        stats.norm.sf(math.sqrt(2 / 0.98))
    )
    for margin in (0, 1, -0.1, math.nan):
        with pytest.raises(ValueError, match="margin"):
            metrics.noninferiority_p(*never, margin)


def test_noninferiority_size_and_power():
    """At a true loss of the margin 5 % are called non-inferior; at no loss most are."""

    def called(cells):
        tables = RNG(3).multinomial(400, cells, 1500)
        return np.mean([metrics.noninferiority_p(*pairs(*t), 0.04) < 0.05 for t in tables])

    assert 0.035 < called((0.85, 0.06, 0.02, 0.07)) < 0.065
    assert called((0.87, 0.03, 0.03, 0.07)) > 0.8


@pytest.mark.parametrize(
    "before, after",
    [
        ([0.9, 0.1], [0.8, 0.2]),  # scores, not verdicts
        ([1, 0], [1, 1]),
        (np.ones(3, bool), np.ones(4, bool)),
        (np.ones(0, bool), np.ones(0, bool)),
        (np.ones((2, 2), bool), np.ones((2, 2), bool)),
    ],
)
def test_pairs_are_refused(before, after):
    with pytest.raises(ValueError, match="same seed"):
        metrics.paired_difference(before, after)
    with pytest.raises(ValueError, match="same seed"):
        metrics.noninferiority_p(before, after, 0.1)


def test_holm_textbook():
    # The worked example of the usual article: at 0.05, H1 and H4 are rejected.
    adjusted = metrics.holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm([0.2]) == pytest.approx([0.2])
    for bad in ([], [0.1, math.nan], [1.1], [-0.1], [[0.1]]):
        with pytest.raises(ValueError, match="p-value"):
            metrics.holm(bad)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_order_and_bounds(p):
    adjusted, raw = metrics.holm(p), np.array(p)
    assert np.all(raw <= adjusted)
    assert np.all(adjusted <= np.minimum(raw * raw.size, 1) + 1e-12)
    assert adjusted.min() == pytest.approx(min(raw.min() * raw.size, 1))
    assert np.all(np.diff(adjusted[np.argsort(raw)]) >= 0)
    assert metrics.holm(p[::-1]) == pytest.approx(adjusted[::-1])


def test_total_variation():
    assert metrics.total_variation([1, 0], [0, 1]) == 1
    assert metrics.total_variation([10, 30], [0.25, 0.75]) == 0
    assert metrics.total_variation([50, 30, 20], [0.4, 0.4, 0.2]) == pytest.approx(0.1)
    for p, q in [([1, 2], [1, 2, 3]), ([0, 0], [1, 0]), ([-1, 2], [1, 1]), ([math.nan, 1], [1, 1])]:
        with pytest.raises(ValueError, match="count"):
            metrics.total_variation(p, q)


def test_goodness_of_fit_is_chi_square_where_that_holds():
    observed, probs = np.array([18, 22, 39, 21]), np.array([0.2, 0.2, 0.4, 0.2])
    expected = stats.chisquare(observed, 100 * probs).pvalue
    assert metrics.goodness_of_fit(observed, probs) == pytest.approx(expected)
    # Mendel's peas, 9:3:3:1
    mendel = metrics.goodness_of_fit([315, 101, 108, 32], np.array([9, 3, 3, 1]) / 16)
    assert mendel == pytest.approx(0.9254, abs=1e-4)


def test_goodness_of_fit_small_samples_are_exact():
    """Against the full enumeration of the multinomial, where chi-square is off by far."""
    cases = [
        ([0.9, 0.05, 0.05], [(6, 0, 0), (5, 1, 0), (4, 1, 1), (4, 0, 2)]),
        ([1 / 3, 1 / 3, 1 / 3], [(4, 2, 0), (3, 3, 0), (5, 1, 0)]),  # 2 expected: none below 1
    ]
    for probs, tables in cases:
        everything = [(a, b, 6 - a - b) for a in range(7) for b in range(7 - a)]
        mass, expected = stats.multinomial.pmf(everything, 6, probs), 6 * np.array(probs)
        score = ((np.array(everything) - expected) ** 2 / expected).sum(1)
        for seen in tables:
            exact = mass[score >= score[everything.index(seen)] - 1e-9].sum()
            assert metrics.goodness_of_fit(seen, probs) == pytest.approx(exact, abs=0.015)


def test_goodness_of_fit_zero_declared():
    assert metrics.goodness_of_fit([100, 100, 1], [0.5, 0.5, 0]) == 0.0
    assert metrics.goodness_of_fit([90, 110, 0], [0.5, 0.5, 0]) == pytest.approx(
        stats.chisquare([90, 110]).pvalue
    )
    assert metrics.goodness_of_fit([100, 0], [1, 0]) == 1.0
    for observed, probs in [([1, 2], [0.5, 0.6]), ([0.5, 0.5], [0.5, 0.5]), ([0, 0], [0.5, 0.5])]:
        with pytest.raises(ValueError, match="count"):
            metrics.goodness_of_fit(observed, probs)


# --- Frechet -------------------------------------------------------------------------------------


def normal(n, d, seed, shift=0.0, scale=1.0):
    return shift + scale * RNG(seed).standard_normal((n, d))


def test_frechet_closed_forms():
    eye = np.eye(3)
    assert metrics.frechet([0, 0, 0], eye, [1, 2, 2], eye) == pytest.approx(9)
    assert metrics.frechet([0, 0, 0], 4 * eye, [0, 0, 0], 9 * eye) == pytest.approx(3)
    # One dimension: (m1 - m2)^2 + (s1 - s2)^2. Commuting: by eigenvalue. Singular: still real.
    assert metrics.frechet([1], [[4]], [3], [[25]]) == pytest.approx(4 + 9)
    q = np.linalg.qr(normal(4, 4, 0))[0]
    a, b = np.array([1.0, 2, 3, 0]), np.array([4.0, 0, 1, 2])
    got = metrics.frechet(np.zeros(4), q * a @ q.T, np.zeros(4), q * b @ q.T)
    assert got == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum())


def test_frechet_does_not_commute_case():
    """Two dimensions: Tr (C1 C2)^1/2 = sqrt(Tr C1 C2 + 2 sqrt(det C1 C2))."""
    a, b = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
    cross = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a @ b)))
    expected = np.trace(a) + np.trace(b) - 2 * cross
    assert metrics.frechet([0, 0], a, [0, 0], b) == pytest.approx(expected)
    assert metrics.frechet([0, 0], b, [0, 0], a) == pytest.approx(expected)
    assert metrics.frechet([0, 0], a, [0, 0], a) == pytest.approx(0, abs=1e-12)


def test_frechet_refuses():
    eye = np.eye(2)
    with pytest.raises(ValueError, match="one D"):
        metrics.frechet([0, 0], eye, [0, 0, 0], np.eye(3))
    with pytest.raises(ValueError, match="NaN"):
        metrics.frechet([0, math.nan], eye, [0, 0], eye)
    for c1, c2 in [(np.diag([1, -1]), eye), (eye, np.diag([1, -1])), (-eye, eye)]:
        with pytest.raises(ValueError, match="eigenvalue"):
            metrics.frechet([0, 0], c1, [0, 0], c2)


def test_moments():
    x = normal(50, 4, 1)
    mu, cov = metrics.moments(x.astype(np.float32))
    assert mu.dtype == cov.dtype == np.float64
    assert mu == pytest.approx(x.mean(0), abs=1e-6)
    assert cov == pytest.approx(np.cov(x, rowvar=False), abs=1e-6)
    with pytest.raises(ValueError, match=r"too few images, N=4 \(D=4\), needs 5"):
        metrics.moments(x[:4])
    metrics.moments(x[:5])


def test_fid_is_symmetric_and_biased_upwards():
    a, b = normal(2000, 3, 1), normal(2000, 3, 2, shift=0.5, scale=2)
    assert metrics.fid(a, b) == pytest.approx(metrics.fid(b, a))
    assert metrics.fid(a, b) == pytest.approx(3 * (0.25 + 1), rel=0.1)
    assert metrics.fid(a, a) == pytest.approx(0, abs=1e-10)
    assert np.mean([metrics.fid(normal(50, 3, i), a) for i in range(20)]) > 0.05


def test_floor_scales_with_the_sample_sizes():
    d, runs, sizes = 8, 60, [(300, 300), (300, 1200), (900, 900), (2400, 600)]

    def floor(n_a, n_b):
        return np.mean(
            [metrics.fid(normal(n_a, d, 2 * i), normal(n_b, d, 2 * i + 1)) for i in range(runs)]
        )

    measured = [floor(*size) for size in sizes]
    for (m, one), (n, two) in itertools.permutations(zip(sizes, measured, strict=True), 2):
        assert metrics.floor_at(*n, one, *m) == pytest.approx(two, rel=0.1)
    assert metrics.floor_at(300, 300, 1.0, 600, 600) == pytest.approx(2)
    for bad in [(0, 1, 1.0, 1, 1), (1, 1, -1.0, 1, 1), (1, 1, math.nan, 1, 1)]:
        with pytest.raises(ValueError, match="floor"):
            metrics.floor_at(*bad)


def test_excess_ratio():
    assert metrics.excess_ratio(5.0, 3.0, 1.0) == 2
    assert metrics.excess_ratio(0.5, 3.0, 1.0) < 0  # better than the floor: memorisation
    for teacher, floor in [(1.0, 1.0), (0.5, 1.0), (math.nan, 1.0)]:
        with pytest.raises(ValueError, match="larger n"):
            metrics.excess_ratio(5.0, teacher, floor)


def classes(n, d, k, seed, order):
    """n features in k classes far apart, equally many of each, sorted or cycling."""
    label = np.arange(n) * k // n if order == "sorted" else np.arange(n) % k
    centre = 3 * RNG(99).standard_normal((k, d))
    return centre[label] + normal(n, d, seed)


@pytest.mark.parametrize("order", ["sorted", "cycling"])
def test_jackknife_blocks_survive_the_order_of_the_classes(order):
    """The error is that of the same rows shuffled; contiguous, or i % blocks, would inflate it."""
    a, b = classes(2000, 4, 10, 1, order), classes(2000, 4, 10, 2, order) + 0.3
    ordered, shuffled = (metrics.fid_jackknife(x, b) for x in (a, RNG(5).permutation(a)))
    assert ordered["fid"] == pytest.approx(shuffled["fid"]) == metrics.fid(a, b)
    width = [r["ci95"][1] - r["ci95"][0] for r in (ordered, shuffled)]
    assert width[0] < 1.3 * width[1]


def test_blocks_are_balanced_and_every_row_has_one():
    for n, blocks in [(20, 20), (1003, 20), (999, 7), (2, 2)]:
        block = metrics._block_of(n, blocks)
        sizes = np.bincount(block, minlength=blocks)
        assert block.shape == (n,) and np.ptp(sizes) <= 1 and sizes.min() >= 1


def test_jackknife_coverage_and_bias():
    """The interval covers the mean of the plain estimate over repeated samples of `a`."""
    d, n, b = 4, 300, normal(1500, 4, 0)
    cov = np.diag([1.5, 1.0, 0.8, 1.2])
    draws = [0.3 + normal(n, d, i + 1) @ np.sqrt(cov) for i in range(250)]
    results = [metrics.fid_jackknife(a, b) for a in draws]
    mean = np.mean([r["fid"] for r in results])
    covered = np.mean([r["ci95"][0] <= mean <= r["ci95"][1] for r in results])
    assert 0.915 <= covered <= 0.985
    limit = metrics.frechet(np.full(d, 0.3), cov, *metrics.moments(b))
    assert np.mean([r["bias"] for r in results]) == pytest.approx(mean - limit, rel=0.25)
    half = metrics.fid_jackknife(draws[0], b, level=0.5)["ci50"]
    assert results[0]["ci95"][0] < half[0] < results[0]["fid"] < half[1] < results[0]["ci95"][1]


def test_jackknife_is_the_naive_one():
    a, b = normal(101, 3, 1), normal(200, 3, 2)
    block = metrics._block_of(101, 5)
    left = np.array([metrics.fid(a[block != j], b) for j in range(5)])
    got, plain = metrics.fid_jackknife(a, b, blocks=5), metrics.fid(a, b)
    se = math.sqrt(4 / 5 * ((left - left.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, 4) * se
    assert got["fid"] == pytest.approx(plain)
    assert got["ci95"] == pytest.approx([max(plain - half, 0), plain + half])
    assert got["bias"] == pytest.approx(4 * (left.mean() - plain))


def test_a_bootstrap_would_lie_above_the_estimate():
    """Why there is none: of resamples of `a`, nearly all show a larger distance than `a` does."""
    rng, a, b = RNG(4), normal(100, 8, 1), normal(2000, 8, 2)
    again = [metrics.fid(a[rng.integers(0, 100, 100)], b) for _ in range(100)]
    assert np.mean(np.array(again) > metrics.fid(a, b)) > 0.95


def test_jackknife_refuses():
    a, b = normal(30, 8, 1), normal(30, 8, 2)
    with pytest.raises(ValueError, match="needs 18"):
        metrics.fid_jackknife(a[:17], b, blocks=2)
    metrics.fid_jackknife(a[:18], b, blocks=2)
    with pytest.raises(ValueError, match="needs 20"):
        metrics.fid_jackknife(a[:19, :1], b[:, :1])
    with pytest.raises(ValueError, match="blocks"):
        metrics.fid_jackknife(a, b, blocks=1)


# --- kernel distance -----------------------------------------------------------------------------


def naive_mmd2(x, y):
    def k(p, q):
        return (p @ q / len(p) + 1) ** 3

    def within(z):
        return np.mean([k(p, q) for i, p in enumerate(z) for j, q in enumerate(z) if i != j])

    return within(x) + within(y) - 2 * np.mean([k(p, q) for p in x for q in y])


def test_kid_is_the_mean_of_naive_blocks(monkeypatch):
    a, b = normal(21, 3, 1), normal(33, 3, 2, shift=0.4)
    of_a, of_b = metrics._block_of(21, 3), metrics._block_of(33, 3)
    values = [naive_mmd2(a[of_a == j], b[of_b == j]) for j in range(3)]
    expected = np.mean(values), np.std(values, ddof=1) / math.sqrt(3)
    assert metrics.kid(a, b, subset=7) == pytest.approx(expected)
    monkeypatch.setattr(metrics, "CHUNK", 10)  # slices of one row: the same sums
    assert metrics.kid(a, b, subset=7) == pytest.approx(expected)


def test_kid_is_unbiased_with_an_honest_error():
    same = np.array(
        [metrics.kid(normal(200, 4, i), normal(200, 4, i + 500), 50) for i in range(80)]
    )
    z = same[:, 0] / same[:, 1]
    assert abs(same[:, 0].mean()) < 3 * same[:, 0].std() / math.sqrt(80)  # zero at every n
    assert same[:, 0].min() < 0
    assert same[:, 0].std() == pytest.approx(math.sqrt((same[:, 1] ** 2).mean()), rel=0.25)
    assert np.mean(np.abs(z) > stats.t.ppf(0.975, 3)) < 0.13
    mean, error = metrics.kid(normal(400, 4, 1), normal(400, 4, 2, shift=0.5), 50)
    assert mean > 5 * error


def test_kid_refuses():
    with pytest.raises(ValueError, match="needs 2000"):
        metrics.kid(normal(1999, 2, 1), normal(5000, 2, 2))
    with pytest.raises(ValueError, match="subset"):
        metrics.kid(normal(10, 2, 1), normal(10, 2, 2), subset=1)


# --- neighbours ----------------------------------------------------------------------------------


def naive_precision_recall(real, generated, k):
    def covered(points, centres):
        radius = [np.sort([math.dist(c, o) for o in centres])[k] for c in centres]  # [0] is itself
        return np.mean(
            [
                any(math.dist(p, c) <= r for c, r in zip(centres, radius, strict=True))
                for p in points
            ]
        )

    return covered(generated, real), covered(real, generated)


@pytest.mark.parametrize("chunk", [None, 1, 100])
@pytest.mark.parametrize("k, n, m", [(1, 20, 30), (3, 40, 25), (5, 15, 15)])
def test_precision_recall_is_the_naive_one(k, n, m, chunk, monkeypatch):
    if chunk:
        monkeypatch.setattr(metrics, "CHUNK", chunk)
    real, generated = normal(n, 3, 1), normal(m, 3, 2, shift=0.5, scale=0.7)
    got = metrics.precision_recall(real, generated, k)
    assert got == pytest.approx(naive_precision_recall(real, generated, k), abs=1e-12)
    assert metrics.precision_recall(generated, real, k) == pytest.approx(got[::-1])
    assert 0 < got[1] < 1
    assert metrics.precision_recall(real + 1e7, generated + 1e7, k) == got


def test_a_collapsed_generator_has_high_precision_and_low_recall():
    """Catches swapped arguments: collapse near one image, or onto copies, is no diversity."""
    real = normal(500, 8, 1)
    for generated in (real[7] + 1e-3 * normal(300, 8, 2), np.repeat(real[7:8], 300, axis=0)):
        precision, recall = metrics.precision_recall(real, generated)
        assert precision == 1.0 and recall < 0.01
        assert metrics.precision_recall(generated, real)[0] < 0.01
    wide = metrics.precision_recall(real, normal(500, 8, 3, scale=4))
    assert wide[0] < 0.1 and wide[1] > 0.9
    same = metrics.precision_recall(real, normal(500, 8, 4))
    assert min(same) > 0.7 and abs(same[0] - same[1]) < 0.1
    assert metrics.precision_recall(real, real) == (1.0, 1.0)
    assert metrics.precision_recall(real, real + 100) == (0.0, 0.0)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_copies_are_at_distance_zero_whatever_the_offset(offset):
    real = offset + normal(300, 64, 1)
    twice = np.concatenate([real, real])
    assert metrics.nn_radius(twice) == 0.0
    assert metrics.within_radius(real[::-1], real, 0.0).all()
    assert not metrics.within_radius(real + 1e-2, real, 0.0).any()


def test_validity_radius():
    real = np.array([[0.0], [1.0], [3.0], [7.0]])
    assert metrics.nn_radius(real, 1.0) == 4.0
    assert metrics.nn_radius(real, 0.5) == pytest.approx(1.5)
    got = metrics.within_radius([[1.4], [5.0], [-1.5], [8.6]], real, 1.5)
    assert got.dtype == np.bool_ and got.tolist() == [True, False, True, False]
    many = normal(1000, 4, 1)
    radius = metrics.nn_radius(many)
    assert metrics.within_radius(normal(1000, 4, 2), many, radius).mean() == pytest.approx(
        0.99, abs=0.01
    )
    assert metrics.within_radius(normal(1000, 4, 3, scale=30), many, radius).mean() < 0.01  # noise
    for call in (
        lambda: metrics.nn_radius(real[:1]),
        lambda: metrics.nn_radius(real, 99),
        lambda: metrics.within_radius(real, real, math.nan),
        lambda: metrics.precision_recall(real, real, k=0),
    ):
        with pytest.raises(ValueError, match="needs 2|quantile|radius|neighbour"):
            call()


# --- what every distance refuses -----------------------------------------------------------------

DISTANCES = {
    "fid": metrics.fid,
    "fid_jackknife": metrics.fid_jackknife,
    "kid": lambda a, b: metrics.kid(a, b, subset=10),
    "precision_recall": metrics.precision_recall,
    "within_radius": lambda a, b: metrics.within_radius(a, b, 1.0),
}


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_refuse_what_is_not_features(name):
    distance, good = DISTANCES[name], normal(40, 3, 1)
    distance(good, good)
    for value in (math.nan, math.inf):
        bad = good.copy()
        bad[5, 1] = value
        for pair in ((good, bad), (bad, good)):
            with pytest.raises(ValueError, match="1 of 40 images have NaN or inf"):
                distance(*pair)
    with pytest.raises(ValueError, match="one extractor"):
        distance(good, good[:, :2])
    for shape in (good[0], good[:0], good[None]):
        with pytest.raises(ValueError, match=r"give features \[N, D\]"):
            distance(shape, good)


@pytest.mark.parametrize("name", [n for n in DISTANCES if n != "within_radius"])
def test_distances_say_how_many_images_they_need(name):
    distance, good = DISTANCES[name], normal(40, 3, 1)
    for pair in ((good, good[:3]), (good[:3], good)):
        with pytest.raises(ValueError, match=r"too few images, N=3 \(D=3\), needs \d+"):
            distance(*pair)


def test_moments_and_radius_refuse_nan():
    bad = normal(40, 3, 1)
    bad[0, 0] = math.nan
    for f in (metrics.moments, metrics.nn_radius):
        with pytest.raises(ValueError, match="1 of 40 images have NaN or inf"):
            f(bad)
