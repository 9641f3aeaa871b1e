"""The analytic teacher: exact, and what every method must do on it."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sfd import forgetting, objectives, sample
from sfd import train as training
from sfd.concepts import Concept
from sfd.teachers import mixture

CPU = torch.device("cpu")
MEANS = [[[0.5, 0.3]], [[-0.4, 0.3]], [[0.1, -0.6]]]
BASES = [
    [[[0.2, 0.0], [0.0, 0.12]]],
    [[[0.15, 0.08], [0.15, -0.08]]],
    [[[0.1, 0.15], [0.2, -0.075]]],
]
LABELS = ["a", "b", "c"]


def build(means=MEANS, bases=BASES, width=64):
    return mixture.build(
        means=means, bases=bases, labels=LABELS, shape=(1, 1, 2), width=width, device=CPU
    )


# --- the exact denoiser --------------------------------------------------------------------------


def covariance(basis, floor: float = 0.05) -> np.ndarray:
    b = np.asarray(basis)
    return b @ b.T + floor**2 * np.eye(len(b))


@pytest.mark.parametrize("sigma", [0.002, 0.1, 0.7, 5.0, 80.0])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_one_gaussian_in_closed_form(sigma, label):
    teacher = build()
    x = torch.randn(20, 1, 1, 2, generator=torch.Generator().manual_seed(0)) * (1 + sigma)
    x0 = teacher.denoiser(x, torch.full((20,), sigma), teacher.encode([label] * 20))
    mean, cov = np.array(MEANS[label][0]), covariance(BASES[label][0])
    gain = cov @ np.linalg.inv(cov + sigma**2 * np.eye(2))
    expected = mean + (x.reshape(20, 2).double().numpy() - mean) @ gain.T
    np.testing.assert_allclose(x0.reshape(20, 2).numpy(), expected, rtol=1e-5, atol=2e-6)
    assert x0.dtype == torch.float32 and x0.shape == x.shape


TWO_EACH = {
    "means": [[[0.5, 0.3], [-0.2, 0.0]], [[-0.4, 0.3], [0.4, -0.3]], [[0.1, -0.6], [0.0, 0.6]]],
    "bases": [b * 2 for b in BASES],
}


@pytest.mark.parametrize("label", [0, 2, None])
@pytest.mark.parametrize("sigma", [0.2, 0.6, 2.0])
def test_against_a_monte_carlo_posterior_mean(label, sigma):
    """E[x0 | x] = sum_i x_i N(x; x_i, sigma^2) / sum_i N(x; x_i, sigma^2) over samples x_i."""
    teacher = build(**TWO_EACH)
    rng, count = np.random.default_rng(0), 200_000
    own = range(3) if label is None else [label]
    draws = []
    for k in own:
        for m in range(2):
            cov = covariance(TWO_EACH["bases"][k][m])
            draws.append(rng.multivariate_normal(TWO_EACH["means"][k][m], cov, count // 4))
    samples = np.concatenate(draws)
    x = np.array([[0.3, 0.1], [-0.4, 0.4], [0.0, -0.5]])
    x0 = teacher.denoiser(
        torch.tensor(x).float().reshape(3, 1, 1, 2),
        torch.full((3,), sigma),
        teacher.encode([label] * 3),
    ).reshape(3, 2)
    for point, exact in zip(x, x0.numpy(), strict=True):
        log_w = -((samples - point) ** 2).sum(1) / (2 * sigma**2)
        w = np.exp(log_w - log_w.max())
        w /= w.sum()
        mean = w @ samples
        error = np.sqrt((w**2) @ (samples - mean) ** 2)
        assert (np.abs(exact - mean) < 4.5 * error + 1e-5).all(), (exact, mean, error)
        assert error.max() < 0.02


def test_null_condition_is_all_classes():
    teacher = build()
    x, sigma = torch.randn(8, 1, 1, 2), torch.full((8,), 0.4)
    null = teacher.denoiser(x, sigma, teacher.encode([None] * 8))
    even = teacher.denoiser(x, sigma, torch.ones(8, 3))
    torch.testing.assert_close(null, even)
    for label in range(3):
        assert not torch.allclose(null, teacher.denoiser(x, sigma, teacher.encode([label] * 8)))


def test_log_joint_is_the_density():
    teacher, x = build(), torch.randn(5, 1, 1, 2)
    log_p, _ = teacher.denoiser.log_joint(x.double(), torch.full((5,), 0.3).double())
    for k in range(3):
        cov = covariance(BASES[k][0]) + 0.3**2 * np.eye(2)
        exact = multivariate_normal(MEANS[k][0], cov).logpdf(x.reshape(5, 2).double().numpy())
        np.testing.assert_allclose(log_p[:, k, 0].numpy(), exact, rtol=1e-5, atol=1e-5)


def test_posterior_is_bayes():
    teacher = build()
    x = torch.randn(50, 1, 1, 2, generator=torch.Generator().manual_seed(2)) * 0.5
    densities = []
    for mean, basis in zip(MEANS, BASES, strict=True):
        cov = covariance(basis[0])
        offset = x.reshape(50, 2).double().numpy() - np.array(mean[0])
        squared = np.einsum("bi,ij,bj->b", offset, np.linalg.inv(cov), offset)
        densities.append(np.exp(-0.5 * squared) / (2 * math.pi * np.linalg.det(cov) ** 0.5))
    expected = np.stack(densities, 1) / np.sum(densities, 0)[:, None]
    actual = teacher.denoiser.posterior(x)
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-4)


def test_draw_has_the_class_moments():
    teacher = build()
    for label in range(3):
        assert_moments(teacher.denoiser.draw(label, 50_000, seed=label).numpy(), label)
    assert torch.equal(teacher.denoiser.draw(0, 10, 1), teacher.denoiser.draw(0, 10, 1))


def test_small_and_large_levels_are_finite():
    teacher = build()
    for sigma in (1e-4, 1e4):
        x0 = teacher.denoiser(torch.ones(3, 1, 1, 2), torch.full((3,), sigma), torch.eye(3))
        assert torch.isfinite(x0).all()


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ["a", "b"]},
        {"shape": (1, 2, 2)},
        {"bases": [[[[1.0]]]] * 3},
        {"means": [[0.0, 1.0]] * 3},
        {"bases": None},
    ],
)
def test_parts_that_do_not_fit(change):
    given = {"means": MEANS, "bases": BASES, "labels": LABELS, "shape": (1, 1, 2), "device": CPU}
    with pytest.raises(ValueError, match="mixture: ") as caught:
        mixture.build(**{**given, **change})
    assert "\n" not in str(caught.value)


# --- methods -------------------------------------------------------------------------------------

LEVELS = {
    "sid": {
        "alpha": 1.2,
        "sigma_student": {"name": "karras", "sigma_max": 5.0, "t_max": 0.9},
        "sigma_fake": {"name": "log-normal", "mean": -0.7},
    },
    "diff-instruct": {},
}


@dataclass
class Trained:
    teacher: mixture.Teacher
    student: nn.Module
    fake: nn.Module

    def draw(self, label: int, count: int = 1000) -> np.ndarray:
        """`[count, 2]` of a class, by seeds that training never used."""
        z = sample.initial_noise(np.arange(10**6, 10**6 + count), (1, 1, 2), CPU)
        x = sample.one_step(self.student, z, self.teacher.encode([label] * count), 2.5)
        return x.reshape(count, 2).double().numpy()

    def shares(self, label: int, count: int = 2000) -> np.ndarray:
        """Shares of a class's samples that the Bayes classifier gives each class, `[3]`."""
        x = torch.from_numpy(self.draw(label, count)).float().reshape(-1, 1, 1, 2)
        called = self.teacher.denoiser.posterior(x).argmax(1).numpy()
        return np.bincount(called, minlength=3) / count


def distil(
    folder: Path,
    concepts: list[Concept],
    *,
    objective: str = "diff-instruct",
    start: Trained | None = None,
    steps: int = 1200,
    batch: int = 192,
) -> Trained:
    teacher = build()
    rule = "override" if concepts else "none"
    phases = objectives.TABLE[objective].phases(sigma_init=2.5, **LEVELS[objective])
    student, fake = training.train(
        teacher,
        forgetting.RULES[rule].build(teacher, concepts),
        phases,
        student=start.student.requires_grad_(True) if start else teacher.make_student(),
        fake=start.fake.requires_grad_(True) if start else teacher.make_student(),
        retained=[n for n in range(3) if n not in {c.label for c in concepts}],
        concepts=concepts,
        share=0.4 if concepts else 0.0,
        weight_student=1.0,
        weight_fake=1.0,
        total=batch * steps,
        batch=batch,
        lr_student=2e-3,
        lr_fake=5e-3,
        decay_from=0.5,
        ema_images=20 * batch,
        seed=0,
        folder=folder,
        identity={},
        tick=10**9,
        checkpoint=10**9,
        device=CPU,
    )
    return Trained(teacher, student, fake)


def assert_moments(x: np.ndarray, label: int) -> None:
    """Mean and covariance of `x [N, 2]` within 4 standard errors of the class's own."""
    mean, cov = np.array(MEANS[label][0]), covariance(BASES[label][0])
    assert (np.abs(x.mean(0) - mean) < 4 * np.sqrt(cov.diagonal() / len(x))).all(), (
        label,
        x.mean(0),
        mean,
    )
    # Var of a Gaussian sample covariance: (c_ii c_jj + c_ij^2) / N
    error = np.sqrt((np.outer(cov.diagonal(), cov.diagonal()) + cov**2) / len(x))
    assert (np.abs(np.cov(x.T) - cov) < 4 * error).all(), (label, np.cov(x.T), cov)


def override(label: int, shares: dict[int, float]) -> Concept:
    return Concept(LABELS[label], label, LABELS[label], shares, "none")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Trained:
    return distil(tmp_path_factory.mktemp("plain"), [], steps=1500)


def test_diff_instruct_converges_to_the_classes(plain):
    for label in range(3):
        assert_moments(plain.draw(label), label)


def test_sid_converges_to_the_classes(tmp_path):
    trained = distil(tmp_path, [], objective="sid", steps=2500)
    for label in range(3):
        assert_moments(trained.draw(label), label)


def test_after_override_the_mass_is_the_overrides(tmp_path):
    trained = distil(tmp_path, [override(0, {1: 1.0})], objective="sid")
    shares = trained.shares(0)
    assert shares[0] < 0.01 and shares[1] > 0.97, shares
    assert_moments(trained.draw(0, 400), 1)
    for label in (1, 2):
        assert trained.shares(label)[label] > 0.97


@pytest.mark.parametrize(
    "shares", [{1: 0.7, 2: 0.3}, {1: 0.5, 2: 0.5}], ids=["weighted", "uniform"]
)
def test_overrides_get_their_shares(tmp_path, shares):
    found = distil(tmp_path, [override(0, shares)]).shares(0)
    assert found[0] < 0.03, found
    for label, share in shares.items():
        assert found[label] == pytest.approx(share, abs=0.08), found


def test_two_concepts_one_after_the_other(tmp_path, plain):
    first = [override(0, {2: 1.0})]
    once = distil(tmp_path / "1", first, start=plain, steps=700)
    assert once.shares(0)[2] > 0.97 and once.shares(1)[1] > 0.97
    # the second request keeps the first concept in its batches
    both = [*first, override(1, {2: 1.0})]
    twice = distil(tmp_path / "2", both, start=once, steps=700)
    for label in (0, 1):
        shares = twice.shares(label)
        assert shares[label] < 0.01 and shares[2] > 0.97, (label, shares)
    assert twice.shares(2)[2] > 0.97


# --- batches -------------------------------------------------------------------------------------


def draw(numbers, concepts, retained, **changes):
    given = {
        "seed": 5,
        "shape": (1, 1, 2),
        "share": 0.25,
        "weight_student": 0.3,
        "weight_fake": 1.0,
        "device": CPU,
    }
    return forgetting.draw_batch(
        numbers, retained=retained, concepts=concepts, **{**given, **changes}
    )


@pytest.mark.parametrize("objective", list(objectives.TABLE))
def test_a_class_overridden_by_itself_is_retained_bit_for_bit(objective):
    """Forget rows whose override is their own class are retained rows: losses and gradients."""
    teacher = build(width=16)
    numbers = np.arange(32)

    def losses(concepts: list[Concept], **changes) -> list[Tensor]:
        phases = objectives.TABLE[objective].phases(sigma_init=2.5)
        batch = draw(numbers, concepts, [1], weight_student=1.0, weight_fake=1.0, **changes)
        nets = {"student": teacher.make_student(), "fake": teacher.make_student()}
        with torch.no_grad():
            next(nets["fake"].parameters()).add_(0.1)
        build_rule = forgetting.RULES["override" if concepts else "none"].build
        rule, memo, out = build_rule(teacher, concepts), {}, []
        for phase in phases:
            drawn = training.draw_for(0, phase.name, numbers, (1, 1, 2), CPU)
            rows, _ = training.call(phase, teacher, rule, nets, batch, drawn, memo, {})
            out += [rows, *torch.autograd.grad(rows.sum(), tuple(nets[phase.name].parameters()))]
        return out

    itself, other = [override(1, {1: 1.0})], [override(1, {2: 1.0})]
    assert draw(numbers, itself, [1]).is_forget.sum() == 8
    retained = losses([])
    for mine, theirs in zip(losses(itself), retained, strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(losses(other)[0], retained[0])


def test_a_batchs_rows_follow_from_their_numbers():
    concepts = [override(0, {1: 0.25, 2: 0.75})]
    whole = draw(np.arange(400), concepts, [1, 2])
    parts = [draw(np.arange(i, i + 50), concepts, [1, 2]) for i in range(0, 400, 50)]
    assert [c for p in parts for c in p.target] == whole.target
    assert torch.equal(torch.cat([p.is_forget for p in parts]), whole.is_forget)
    forget = whole.is_forget.tolist()
    assert sum(forget) == 100
    for student, fake, target, marked in zip(
        whole.student, whole.fake, whole.target, forget, strict=True
    ):
        assert (student == 0) == marked
        assert fake == ((0, target) if marked else student)
        assert target != 0 and (marked or target == student)
    torch.testing.assert_close(whole.weight_student, torch.where(whole.is_forget, 0.3, 1.0))
    assert (whole.weight_fake == 1).all()


def test_shares_of_forget_rows_and_overrides():
    numbers = np.arange(40_000)
    for share in (0.0, 0.1, 0.25, 0.9):
        marks = forgetting.is_forget(numbers, share)
        assert abs(marks.sum() - share * len(numbers)) <= 1
        assert abs(marks[:100].sum() - 100 * share) <= 1
    batch = draw(numbers, [override(0, {1: 0.25, 2: 0.75})], [1, 2], share=0.5)
    targets = np.array(batch.target)[batch.is_forget.numpy()]
    assert np.mean(targets == 2) == pytest.approx(0.75, abs=0.013)
    retained = np.array(batch.target)[~batch.is_forget.numpy()]
    assert np.mean(retained == 2) == pytest.approx(0.5, abs=0.015)
    two = draw(numbers, [override(0, {2: 1.0}), override(1, {2: 1.0})], [2], share=0.5)
    forgotten = np.array(two.student)[two.is_forget.numpy()]
    assert np.mean(forgotten == 1) == pytest.approx(0.5, abs=0.015)


def test_the_teacher_is_never_asked_for_what_is_forgotten(tmp_path):
    asked: set[int] = set()
    teacher = build(width=8)
    teacher.denoiser.register_forward_pre_hook(
        lambda _, args: asked.update(args[2].argmax(1).tolist())
    )
    concepts = [override(0, {1: 1.0})]
    phases = objectives.TABLE["sid"].phases(sigma_init=2.5)
    training.train(
        teacher, forgetting.override(teacher, concepts), phases, student=teacher.make_student(),
        fake=teacher.make_student(), retained=[1, 2], concepts=concepts, share=0.5,
        weight_student=1.0, weight_fake=1.0, total=160, batch=32, lr_student=1e-3, lr_fake=1e-3,
        ema_images=0, seed=0, folder=tmp_path, identity={}, tick=32, checkpoint=10**9, device=CPU,
    )  # fmt: skip
    assert asked == {1, 2}


def test_rules_want_what_they_need():
    teacher = build(width=8)
    with pytest.raises(ValueError, match="at least one entry in `concepts`"):
        forgetting.override(teacher, [])
    with pytest.raises(ValueError, match="forgets nothing"):
        forgetting.none(teacher, [override(0, {1: 1.0})])


def test_a_teacher_without_parameters_is_drawn_from_where_it_is():
    """As on a machine with CUDA, whose tensors are imagined here."""
    built = build()
    with FakeTensorMode(allow_non_fake_inputs=True):
        elsewhere = torch.device("cuda")
        denoiser = mixture.Mixture(
            torch.zeros(3, 1, 2, device=elsewhere), torch.ones(3, 1, 2, 2, device=elsewhere), 0.05
        )
        teacher = replace(
            built,
            denoiser=denoiser,
            encode=lambda raw: torch.zeros(len(raw), 3, device=elsewhere),
            decode=lambda x0: np.zeros((len(x0), 1, 1, 1), np.uint8),
        )
        assert len(sample.teacher_sampler(teacher, steps=2)([0, 1], np.arange(2))) == 2
