"""Distances of feature sets against closed forms, brute force and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from sfd import metrics
from sfd.metrics import samples

RNG = np.random.default_rng


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


def test_rows_of_one_seed_are_left_out_together():
    """Ten classes share each seed's noise: their error is that of the seeds, not of the rows."""
    b, ends = normal(4000, 4, 9), []
    for groups in (np.tile(np.arange(100), 10), None):
        runs = []
        for seed in range(60):
            shared = np.tile(normal(100, 4, seed), (10, 1)) + 0.1 * normal(1000, 4, seed + 500)
            runs.append(metrics.fid_jackknife(shared + 0.5, b, groups=groups))
        spread = np.std([r["fid"] for r in runs])
        ends.append(np.mean([r["ci95"][1] - r["fid"] for r in runs]) / spread)
    assert 1.6 < ends[0] < 2.8 and ends[1] < 1.2, ends
    with pytest.raises(ValueError, match="one for each of 1000 rows"):
        metrics.fid_jackknife(b[:1000], b, groups=np.arange(999))


def test_blocks_are_balanced_and_every_row_has_one():
    for n, blocks in [(20, 20), (1003, 20), (999, 7), (2, 2)]:
        block = samples.block_of(n, blocks)
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
    block = samples.block_of(101, 5)
    left = np.array([metrics.fid(a[block != j], b) for j in range(5)])
    got, plain = metrics.fid_jackknife(a, b, blocks=5), metrics.fid(a, b)
    se = math.sqrt(4 / 5 * ((left - left.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, 4) * se
    assert got["fid"] == pytest.approx(plain)
    assert got["ci95"] == pytest.approx([max(plain - half, 0), plain + half])
    assert got["bias"] == pytest.approx(4 * (left.mean() - plain))


def test_a_ratio_of_pairs():
    """Its interval covers the mean of the ratio; what pairs share makes it narrower, no less so."""
    d, n, c, scale = 3, 400, normal(2000, 3, 0), np.array([1.3, 1.0, 0.8])
    widths = {}
    for name, shared in (("pairs", 0.95), ("strangers", 0.0)):
        found = []
        for i in range(200):
            common, own = normal(n, d, 3 * i + 1), normal(n, d, 3 * i + 2)
            a = shared * common + math.sqrt(1 - shared**2) * own
            b = common
            sides = (metrics.fid_jackknife(x, c) for x in (0.4 + scale * a, 0.35 + scale * b))
            found.append(metrics.fid_ratio(*sides))
        mean = np.exp(np.mean([math.log(r["ratio"]) for r in found]))
        covered = np.mean([r["ci95"][0] <= mean <= r["ci95"][1] for r in found])
        assert 0.91 <= covered <= 0.985, name
        widths[name] = np.mean([r["ci95"][1] - r["ci95"][0] for r in found])
    assert widths["pairs"] < 0.5 * widths["strangers"]
    a, b = 0.4 + normal(n, d, 1), 0.3 + normal(n, d, 2)
    alone = [metrics.fid_jackknife(x, c) for x in (a, b)]
    got = metrics.fid_ratio(*alone)
    assert got["ratio"] == pytest.approx(metrics.fid(a, c) / metrics.fid(b, c))
    apart = math.hypot(*((r["ci95"][1] - r["ci95"][0]) / 2 / r["fid"] for r in alone))
    assert math.log(got["ci95"][1] / got["ratio"]) == pytest.approx(apart, rel=0.5)
    with pytest.raises(ValueError, match="do not pair"):
        metrics.fid_ratio(alone[0], metrics.fid_jackknife(b[1:], c))
    with pytest.raises(ValueError, match="distance of 0"):
        metrics.fid_ratio(alone[0], alone[1] | {"fid": 0.0})


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
    of_a, of_b = samples.block_of(21, 3), samples.block_of(33, 3)
    values = [naive_mmd2(a[of_a == j], b[of_b == j]) for j in range(3)]
    expected = np.mean(values), np.std(values, ddof=1) / math.sqrt(3)
    assert metrics.kid(a, b, subset=7) == pytest.approx(expected)
    monkeypatch.setattr(samples, "CHUNK", 10)  # slices of one row: the same sums
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
    assert metrics.kid(normal(400, 4, 1), normal(900, 4, 2, shift=0.5)) == metrics.kid(
        normal(400, 4, 1), normal(900, 4, 2, shift=0.5), 40
    )


def test_kid_is_unbiased_where_there_are_so_many_of_each_class():
    """Ten classes far apart: two images of one are rarer among ten each than by chance."""
    centres = 3 * normal(10, 4, 0)

    def of_classes(n, seed):
        at = np.tile(np.arange(10), n // 10)
        return centres[at] + normal(n, 4, seed), at

    found, blind = [], []
    for i in range(40):
        (a, of_a), (b, of_b) = of_classes(400, i), of_classes(200, i + 500)
        found.append(metrics.kid(a, b, strata=(of_a, of_b)))
        rows = np.argsort(of_a, kind="stable"), np.argsort(of_b, kind="stable")
        blind.append(metrics.kid(a[rows[0]], b[rows[1]])[0])
    means, errors = np.array(found).T
    assert abs(means.mean()) < 3 * means.std() / math.sqrt(40)
    assert means.std() == pytest.approx(math.sqrt((errors**2).mean()), rel=0.4)
    assert np.mean(blind) < -10 * means.std()
    with pytest.raises(ValueError, match="one image of each stratum"):
        metrics.kid(a, b, 20, strata=(np.arange(400), np.arange(200)))


def test_kids_error_counts_a_seed_once():
    """Five rows of each seed that are nearly alike say as little as one of them."""
    real, errors, spread = normal(3000, 4, 1), [], []
    for i in range(40):
        seeds = np.tile(np.arange(120), 5)
        drawn = normal(120, 4, 10 + i, shift=0.1)[seeds] + 1e-3 * normal(600, 4, 500 + i)
        mean, error = metrics.kid(drawn, real, groups=seeds)
        errors.append(error)
        spread.append(mean)
        assert error > 1.2 * metrics.kid(drawn, real)[1]
    assert np.std(spread) == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=0.35)


def test_kid_refuses():
    with pytest.raises(ValueError, match="needs 2000"):
        metrics.kid(normal(1999, 2, 1), normal(5000, 2, 2), 1000)
    with pytest.raises(ValueError, match="subset=1: an unbiased"):
        metrics.kid(normal(3, 2, 1), normal(5000, 2, 2))
    with pytest.raises(ValueError, match="4 groups for 10 subsets"):
        metrics.kid(normal(200, 2, 1), normal(200, 2, 2), groups=np.arange(200) % 4)
    with pytest.raises(ValueError, match="subset"):
        metrics.kid(normal(10, 2, 1), normal(10, 2, 2), subset=1)


# --- relative kernel test ------------------------------------------------------------------------


def naive_relative(x, y, z):
    """Both distances, and the variance of their difference, by loops over images."""

    def k(p, q):
        return (p @ q / len(p) + 1) ** 3

    def of_x(i):
        return np.mean([k(x[i], q) for q in y]) - np.mean([k(x[i], q) for q in z])

    def of_other(points, i):
        others = [k(points[i], q) for j, q in enumerate(points) if j != i]
        return np.mean(others) - np.mean([k(points[i], q) for q in x])

    parts = [
        [2 * of_x(i) for i in range(len(x))],
        [2 * of_other(y, i) for i in range(len(y))],
        [2 * of_other(z, i) for i in range(len(z))],
    ]
    variance = sum(np.var(p, ddof=1) / len(p) for p in parts)
    return naive_mmd2(x, y), naive_mmd2(x, z), variance


@pytest.mark.parametrize("chunk", [None, 5])
def test_relative_mmd_is_the_naive_one(chunk, monkeypatch):
    if chunk:
        monkeypatch.setattr(samples, "CHUNK", chunk)
    x, y, z = normal(6, 3, 1), normal(5, 3, 2, shift=0.2), normal(7, 3, 3, shift=-0.6)
    got = metrics.relative_mmd(x, y, z)
    xy, xz, variance = naive_relative(x, y, z)
    assert (got["mmd_xy"], got["mmd_xz"]) == pytest.approx((xy, xz))
    assert got["se"] == pytest.approx(math.sqrt(variance))
    (v, c), (d, w) = got["covariance"]
    assert c == d and v + w - 2 * c == pytest.approx(variance)
    assert got["statistic"] == pytest.approx((xy - xz) / math.sqrt(variance))
    assert got["p"] == pytest.approx(stats.norm.cdf(got["statistic"]))


def test_relative_mmd_by_hand():
    """One dimension, two images each: kernels (x y + 1)^3 of 0, 1 and 2."""
    got = metrics.relative_mmd([[0.0], [1.0]], [[0.0], [1.0]], [[1.0], [2.0]])
    # within x 1, within z 27; x with y (1 + 1 + 1 + 8) / 4, x with z (1 + 1 + 8 + 27) / 4
    assert got["mmd_xy"] == pytest.approx(1 + 1 - 2 * 11 / 4)
    assert got["mmd_xz"] == pytest.approx(1 + 27 - 2 * 37 / 4)


def test_relative_mmd_swaps():
    x, y, z = normal(80, 4, 1), normal(60, 4, 2, shift=0.1), normal(70, 4, 3, shift=0.5)
    one, two = metrics.relative_mmd(x, y, z), metrics.relative_mmd(x, z, y)
    assert one["statistic"] == pytest.approx(-two["statistic"])
    assert one["p"] == pytest.approx(1 - two["p"])
    assert metrics.relative_mmd(x, y, y)["p"] == 0.5  # no difference, no error: no evidence
    for bad in ([x[:1], y, z], [x, y, z[:, :2]]):
        with pytest.raises(ValueError, match="too few|one extractor"):
            metrics.relative_mmd(*bad)


def relative_ps(shift_y, shift_z, runs=150, n=150, d=4):
    def draw(seed, shift):
        return normal(n, d, seed) + np.eye(d)[0] * shift

    return np.array(
        [
            metrics.relative_mmd(draw(3 * i, 0), draw(3 * i + 1, shift_y), draw(3 * i + 2, shift_z))
            for i in range(runs)
        ]
    )


def test_relative_mmd_level_and_power():
    """Where both are as far, 5 % are called nearer; where all coincide, fewer; else it finds it."""
    at_null = relative_ps(0.6, -0.6)
    ps = np.array([r["p"] for r in at_null])
    assert 0.02 <= (ps < 0.05).mean() <= 0.09 and 0.4 < ps.mean() < 0.6
    spread = np.std([r["difference"] for r in at_null])
    assert spread == pytest.approx(np.sqrt(np.mean([r["se"] ** 2 for r in at_null])), rel=0.15)
    assert np.mean([r["p"] < 0.05 for r in relative_ps(0, 0, runs=100)]) <= 0.05
    assert np.mean([r["p"] < 0.05 for r in relative_ps(0.2, 0.8, runs=50)]) > 0.9
    assert np.mean([r["p"] < 0.05 for r in relative_ps(0.8, 0.2, runs=50)]) == 0


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
        monkeypatch.setattr(samples, "CHUNK", chunk)
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


@pytest.mark.parametrize("chunk", [None, 50])
@pytest.mark.parametrize("blocks", [2, 5, 20])
def test_the_jackknife_of_recall_leaves_out_what_it_says(blocks, chunk, monkeypatch):
    """Two blocks: half of a point's neighbours go, often more than were looked up first."""
    if chunk:
        monkeypatch.setattr(samples, "CHUNK", chunk)
    real, generated = normal(40, 3, 1), normal(100, 3, 2, shift=0.5, scale=0.7)
    groups = np.arange(100) % 50
    got = metrics.precision_recall_jackknife(real, generated, blocks, groups=groups)
    sets = [np.arange(40) * 100 // 40 + p for p in range(2)]
    assert not set(sets[0]) & set(sets[1]) and max(map(max, sets)) < 100
    block = samples.block_of(100, blocks, groups)

    def mean(keep):
        each = [metrics.precision_recall(real, generated[rows[keep[rows]]]) for rows in sets]
        return np.mean(each, axis=0)

    assert (got["precision"], got["recall"]) == pytest.approx(mean(block >= 0))
    for j, left_out in enumerate(got["left_out"]):
        assert left_out == pytest.approx(mean(block != j))


def test_the_interval_of_recall_is_that_of_another_draw():
    real, runs = normal(300, 4, 1), 60
    draws = [normal(600, 4, 10 + i, scale=0.8) for i in range(runs)]
    found = [metrics.precision_recall_jackknife(real, d) for d in draws]
    mean = np.mean([f["recall"] for f in found])
    inside = [f["recall_ci95"][0] <= mean <= f["recall_ci95"][1] for f in found]
    assert np.mean(inside) >= 0.9
    wide = np.mean([np.diff(f["recall_ci95"])[0] for f in found])
    assert wide < 2 * 4 * np.std([f["recall"] for f in found])


def test_recall_is_compared_in_pairs():
    real, generated = normal(200, 3, 1), normal(400, 3, 2)
    one = metrics.precision_recall_jackknife(real, generated)
    same = metrics.recall_difference(one, one)
    assert same["difference"] == 0 and same["ci95"] == [0, 0]
    less = metrics.precision_recall_jackknife(real, 0.6 * generated)
    found = metrics.recall_difference(less, one)
    assert found["difference"] == pytest.approx(less["recall"] - one["recall"])
    assert found["ci95"][0] < found["difference"] < found["ci95"][1] < 0
    with pytest.raises(ValueError, match="do not pair"):
        metrics.recall_difference(one, metrics.precision_recall_jackknife(real, generated[:300]))
    with pytest.raises(ValueError, match="blocks=1"):
        metrics.precision_recall_jackknife(real, generated, 1)


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
    "precision_recall_jackknife": metrics.precision_recall_jackknife,
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
