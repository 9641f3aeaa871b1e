"""Noise levels by round trip and by the numbers the papers' settings imply; counter-based noise."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sfd import noise, schedules, solvers
from sfd.teachers.ddpm import DiscreteTimes

KEY = (0, "phase", "purpose")
GOLDEN_NORMAL = [[1.6271418333053589, -1.711592435836792], [1.1144460439682007, 0.7621279954910278]]
GOLDEN_UNIFORM = [0.7045448147137731, 0.29285634307078834]


# --- schedules -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high", "rho"), [(0.002, 80.0, 7.0), (0.1, 13.0, 3.0)])
def test_karras_round_trip(low, high, rho):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    sigma = schedules.karras_sigma(t, low, high, rho)
    torch.testing.assert_close(schedules.karras_t(sigma, low, high, rho), t, rtol=0, atol=1e-12)
    assert (sigma.diff() < 0).all()
    assert sigma[0].item() == pytest.approx(high) and sigma[-1].item() == pytest.approx(low)


def test_sids_range_of_levels():
    top = schedules.karras_sigma(torch.tensor(0.2, dtype=torch.float64), 0.002, 80.0)
    assert top.item() == pytest.approx(24.4, abs=0.05)


def test_vp_sigmas_are_the_products():
    betas = schedules.linear_betas()
    assert len(betas) == 1000 and betas[0] == 1e-4 and betas[-1].item() == pytest.approx(0.02)
    product, expected = 1.0, []
    for beta in betas.tolist():
        product *= 1 - beta
        expected.append(math.sqrt(1 / product - 1))
    np.testing.assert_allclose(schedules.vp_sigmas(betas).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("t", "sigma"), [(38, 0.1373), (440, 2.5023), (711, 13.013), (712, 13.107)]
)
def test_named_sigmas_of_the_linear_chain(t, sigma):
    known = schedules.vp_sigmas(schedules.linear_betas())[t].item()
    assert known == pytest.approx(sigma, abs=6e-4 if sigma > 5 else 6e-5)


@pytest.mark.parametrize(("t", "sigma"), [(20, 0.138), (625, 2.5017), (980, 13.04)])
def test_named_sigmas_of_the_scaled_linear_chain(t, sigma):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    known = schedules.vp_sigmas(betas)[t].item()
    assert known == pytest.approx(sigma, rel=6e-3 if t == 20 else 6e-4)


def test_discrete_times_at_exact_sigmas():
    times = DiscreteTimes(schedules.linear_betas())
    sigmas = schedules.vp_sigmas(schedules.linear_betas())
    t = torch.arange(1000, dtype=torch.float32)
    torch.testing.assert_close(times(sigmas), t, rtol=0, atol=1e-3)
    torch.testing.assert_close(times(sigmas.float()), t, rtol=0, atol=1e-2)


def test_discrete_times_between_and_beyond():
    times = DiscreteTimes(schedules.linear_betas())
    sigmas = schedules.vp_sigmas(schedules.linear_betas())
    middle = (sigmas[99] * sigmas[100]).sqrt()
    assert times(middle[None]).item() == pytest.approx(99.5, abs=1e-3)
    beyond = times(torch.tensor([1e-6, 1e6]))
    assert beyond.tolist() == [0.0, 999.0]
    assert beyond.dtype == torch.float32


U = torch.from_numpy(noise.uniform(KEY, np.arange(50_000)))
EDGES = torch.tensor([2.0**-53, 0.5, 1 - 2.0**-53], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "options", "low", "high"),
    [
        ("karras", {}, 0.002, 24.43),
        ("karras", {"t_max": 1.0}, 0.002, 80.0),
        ("log-uniform", {}, 0.02, 25.0),
        ("uniform-t", {}, 0.1373, 13.013),
        ("uniform-t", {"t_min": 20, "t_max": 980}, 0.0793, 128.86),
    ],
)
def test_sampler_ranges(name, options, low, high):
    sample = schedules.sampler(name, **options)
    sigma = sample(U)
    assert sigma.dtype == torch.float32 and sigma.shape == U.shape
    ends = sample(EDGES)
    for values in (sigma, ends):
        assert values.min() >= low * 0.998 and values.max() <= high * 1.001
    # both ends are reached
    assert ends.min().item() == pytest.approx(low, rel=2e-3)
    assert ends.max().item() == pytest.approx(high, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("karras", {"t_max": 1.5}, "t_max=1.5: the schedule ends at 1"),
        ("karras", {"sigma_min": 5.0, "sigma_max": 1.0}, "sigma_min=5 is not below sigma_max=1"),
        ("karras", {"sigma_min": 1.0, "sigma_max": 1.0}, "sigma_min=1 is not below sigma_max=1"),
        ("log-uniform", {"sigma_min": 30.0}, "sigma_min=30 is above sigma_max=25"),
    ],
)
def test_ranges_that_are_none(name, options, says):
    with pytest.raises(ValueError, match=says) as error:
        schedules.sampler(name, **options)
    assert "\n" not in str(error.value)


def test_log_normal_distribution():
    sigma = schedules.sampler("log-normal")(U)
    assert sigma.dtype == torch.float32
    assert stats.kstest(sigma.log().numpy(), stats.norm(-1.2, 1.2).cdf).pvalue > 1e-3
    other = schedules.sampler("log-normal", mean=0.3, std=0.5)(U).log()
    assert other.mean().item() == pytest.approx(0.3, abs=0.02)
    assert other.std().item() == pytest.approx(0.5, abs=0.02)
    assert torch.isfinite(schedules.sampler("log-normal")(EDGES)).all()


def test_karras_sampler_is_uniform_in_t():
    sigma = schedules.sampler("karras")(U).double()
    t = 1 - schedules.karras_t(sigma, 0.002, 80.0)
    assert stats.kstest((t / 0.8).numpy(), "uniform").pvalue > 1e-3


def test_uniform_t_draws_every_time_equally():
    sigma = schedules.sampler("uniform-t", t_min=38, t_max=48)(U)
    known, counts = torch.unique(sigma, return_counts=True)
    torch.testing.assert_close(
        known.double(), schedules.vp_sigmas(schedules.linear_betas())[38:48], rtol=1e-6, atol=0
    )
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


# --- noise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 4, 4), (3, 5, 5)])
def test_an_images_noise_depends_on_its_number_alone(shape):
    whole = noise.normal(KEY, np.arange(64), shape)
    assert whole.dtype == np.float32 and whole.shape == (64, *shape)
    order = np.random.default_rng(0).permutation(64)
    np.testing.assert_array_equal(noise.normal(KEY, order, shape), whole[order])
    for n in (0, 1, 17, 63):
        np.testing.assert_array_equal(noise.normal(KEY, np.array([n]), shape)[0], whole[n])
    np.testing.assert_array_equal(noise.normal(KEY, np.arange(32, 64), shape), whole[32:])
    mixed = np.array([5, 5, 40, 6, 7])
    np.testing.assert_array_equal(noise.normal(KEY, mixed, shape), whole[mixed])
    assert len(np.unique(whole.reshape(64, -1)[:, 0])) == 64


def test_an_images_uniform_depends_on_its_number_alone():
    whole = noise.uniform(KEY, np.arange(64))
    assert whole.dtype == np.float64 and whole.shape == (64,)
    order = np.random.default_rng(0).permutation(64)
    np.testing.assert_array_equal(noise.uniform(KEY, order), whole[order])
    np.testing.assert_array_equal(noise.uniform(KEY, np.array([41])), whole[[41]])
    assert len(np.unique(whole)) == 64


def test_noise_never_changes():
    """Released students are sampled by seed: these values are part of the format."""
    np.testing.assert_allclose(
        noise.normal(("sample", "z"), np.array([0, 12345]), (2,)), GOLDEN_NORMAL, rtol=1e-6
    )
    np.testing.assert_allclose(noise.uniform(KEY, np.array([0, 7])), GOLDEN_UNIFORM, rtol=1e-12)


def test_no_numbers():
    assert noise.normal(KEY, np.arange(0), (2, 3)).shape == (0, 2, 3)
    assert noise.uniform(KEY, np.arange(0)).shape == (0,)


def test_keys_and_numbers_are_independent():
    n = 100_000
    numbers = np.arange(n)
    keys = [KEY, (1, "phase", "purpose"), (0, "other", "purpose"), (0, "phase", "z")]
    rows = [noise.normal(key, numbers, (1,))[:, 0] for key in keys]
    rows += [np.roll(rows[0], 1), noise.normal(KEY, numbers, (5,))[:, 3]]
    correlation = np.corrcoef(rows)
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 4.5 / n**0.5


def test_values_within_an_image_are_independent():
    block = noise.normal(KEY, np.arange(20_000), (8,))
    correlation = np.corrcoef(block.T)
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 4.5 / 20_000**0.5


def test_normal_moments_and_distribution():
    values = noise.normal(KEY, np.arange(20_000), (3, 4)).ravel().astype(np.float64)
    n = len(values)
    assert abs(values.mean()) < 4 / n**0.5
    assert abs(values.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((values**3).mean()) < 4 * (15 / n) ** 0.5
    assert abs((values**4).mean() - 3) < 4 * (96 / n) ** 0.5
    assert stats.kstest(values, "norm").pvalue > 1e-3


def test_uniform_is_uniform_and_open():
    values = noise.uniform(KEY, np.arange(100_000))
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    ends = noise._to_unit(np.array([0, 2**64 - 1], np.uint64))
    assert 0 < ends[0] < 1e-15 and 1 - 1e-15 < ends[1] < 1


# --- solvers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "calls"), [("heun", 31), ("dpm", 16)])
def test_solvers_are_of_second_order_and_count_their_calls(solver, calls):
    """Gaussian data: the flow scales x - mean as sqrt(spread^2 + sigma^2), in closed form."""
    mean, spread, low, high, z = 0.3, 0.4, 0.02, 20.0, torch.randn(4, 1, 2, 2, dtype=torch.float64)
    counted = []

    def denoise(x, sigma):
        counted.append(len(sigma))
        s = sigma.reshape(-1, 1, 1, 1) ** 2
        return (spread**2 * x + s * mean) / (spread**2 + s)

    def wrong(steps: int) -> float:
        x = mean + (high * z - mean) * ((spread**2 + low**2) / (spread**2 + high**2)) ** 0.5
        exact = denoise(x, torch.full((4,), low))  # both end with the posterior's mean at `low`
        found = solvers.SOLVERS[solver](denoise, z, steps=steps, sigma_min=low, sigma_max=high)
        return float((found - exact).abs().max())

    coarse, fine = wrong(32), wrong(64)
    assert 3.3 < coarse / fine < 5 and fine < 2e-3
    counted.clear()
    solvers.SOLVERS[solver](denoise, z, steps=16, sigma_min=low, sigma_max=high)
    assert counted == [4] * calls
    one = solvers.SOLVERS[solver](denoise, z, steps=1, sigma_min=low, sigma_max=high)
    torch.testing.assert_close(one, denoise(high * z, torch.full((4,), high)))
