"""Pairs, families and histograms against published tables, brute force and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sfd import metrics

RNG = np.random.default_rng


def pairs(both, lost, gained, neither):
    """Boolean (before, after) with these many pairs of each kind."""
    sizes = [both, lost, gained, neither]
    return np.repeat([True, True, False, False], sizes), np.repeat(
        [True, False, True, False], sizes
    )


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


def rows(k: int, n: int) -> np.ndarray:
    return np.arange(n) < k


def test_independent_difference_published():
    """Newcombe, Stat. Med. 17 (1998) 873, table II, method 10: 56/70 - 48/80, 9/10 - 3/10,
    10/10 - 0/10."""
    for (j, m, k, n), ends in [
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((10, 10, 0, 10), (0.6075, 1.0)),
    ]:
        value, lo, hi = metrics.independent_difference(rows(k, n), rows(j, m))
        assert value == pytest.approx(j / m - k / n)
        assert (lo, hi) == pytest.approx(ends, abs=6e-5)


@pytest.mark.parametrize(
    ("k", "n", "j", "m"), [(95, 100, 90, 100), (10, 10, 10, 10), (50, 60, 0, 40), (3, 200, 9, 50)]
)
def test_independent_noninferiority_takes_the_most_likely_rates(k, n, j, m):
    """Its variance against the likelihood under H0, searched on a fine grid."""
    margin = 0.05
    after = np.linspace(1e-9, 1 - margin - 1e-9, 400_001)
    before = after + margin
    log = j * np.log(after) + (m - j) * np.log1p(-after)
    log += k * np.log(before) + (n - k) * np.log1p(-before)
    a, b = after[log.argmax()], before[log.argmax()]
    z = (j / m - k / n + margin) / math.sqrt(a * (1 - a) / m + b * (1 - b) / n)
    found = metrics.independent_noninferiority_p(rows(k, n), rows(j, m), margin)
    assert found == pytest.approx(stats.norm.sf(z), rel=2e-3)


def test_independent_noninferiority_has_its_level_and_needs_no_order():
    rng, n = RNG(2), 500
    was, now = rng.random((2000, n)) < 0.9, rng.random((2000, n)) < 0.85
    found = [
        metrics.independent_noninferiority_p(a, b, 0.05) for a, b in zip(was, now, strict=True)
    ]
    assert np.mean(np.array(found) < 0.025) == pytest.approx(0.025, abs=0.01)
    again = metrics.independent_noninferiority_p(was[0][::-1], rng.permuted(now[0]), 0.05)
    assert again == found[0]
    for margin, a, b in [(0, was[0], now[0]), (0.1, was[0] * 1, now[0]), (0.1, was[0], now[0][:0])]:
        with pytest.raises(ValueError, match="margin|boolean"):
            metrics.independent_noninferiority_p(a, b, margin)


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


# --- training seeds ------------------------------------------------------------------------------


def test_seed_spread_published():
    """NIST/SEMATECH e-Handbook 1.3.5.2, ZARR13.DAT: n = 195, its interval for the mean."""
    shape = RNG(0).standard_normal(195)
    data = 9.261460 + 0.022789 * (shape - shape.mean()) / shape.std(ddof=1)
    got = metrics.seed_spread(data)
    assert (got["n"], got["mean"], got["sd"]) == pytest.approx((195, 9.261460, 0.022789))
    assert got["ci95"] == pytest.approx([9.258242, 9.264679], abs=2e-6)


def test_seed_spread_by_the_t_table():
    got = metrics.seed_spread([0.0, 1.0, 2.0])  # t of 2 degrees of freedom is 4.303 at 97.5 %
    assert got["sd"] == 1 and got["mean"] == 1
    assert got["ci95"] == pytest.approx([1 - 4.303 / math.sqrt(3), 1 + 4.303 / math.sqrt(3)], 1e-3)
    assert got["next95"] == pytest.approx([1 - 4.303 * math.sqrt(4 / 3), 1 + 4.969], rel=1e-3)
    assert metrics.seed_spread([1, 2], level=0.9)["ci90"][1] == pytest.approx(1.5 + 6.314 / 2, 1e-3)


def test_equal_estimates_show_no_spread():
    got = metrics.seed_spread([0.0, 0.0, 0.0])
    assert (got["mean"], got["sd"], got["ci95"], got["next95"]) == (0.0, 0.0, None, None)


def test_seed_spread_covers_the_mean_and_the_next_run():
    rng, n = RNG(1), 4
    runs = rng.normal(3.0, 0.2, (3000, n + 1))
    found = [metrics.seed_spread(row[:n]) for row in runs]
    mean = np.array([f["ci95"] for f in found])
    after = np.array([f["next95"] for f in found])
    assert ((mean[:, 0] < 3) & (mean[:, 1] > 3)).mean() == pytest.approx(0.95, abs=0.015)
    last = runs[:, n]
    assert ((after[:, 0] < last) & (last < after[:, 1])).mean() == pytest.approx(0.95, abs=0.015)
    # the interval for the mean says nothing of the next run
    assert ((mean[:, 0] < last) & (last < mean[:, 1])).mean() < 0.85


@pytest.mark.parametrize("estimates", [[], [1.0], [1.0, math.nan], [[1.0, 2.0]], [1, math.inf]])
def test_one_seed_shows_no_spread(estimates):
    with pytest.raises(ValueError, match="n >= 2"):
        metrics.seed_spread(estimates)
