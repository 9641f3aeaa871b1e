"""The identities of the distillation losses, in closed form on Gaussians."""

import copy
import dataclasses
import inspect

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfd import forgetting, objectives, state, teachers
from sfd import train as training
from sfd.concepts import Concept
from sfd.teachers import mixture

CPU = torch.device("cpu")
SHAPE = (1, 1, 2)


def randoms(batch: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> objectives.Draw:
    return training.draw_for(seed, "test", np.arange(batch), shape, CPU)


def tensors(count: int, shape: tuple[int, ...] = (5, 3, 2, 2)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


class Gaussian(nn.Module):
    """The exact denoiser of N(mean, std^2 I), differentiable in x, mean and std."""

    def __init__(self, mean: float, std: float):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.std = nn.Parameter(torch.tensor(std, dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s2, v = sigma.double().reshape(-1, 1, 1, 1) ** 2, self.std**2
        return (v * x.double() + s2 * self.mean) / (v + s2)


class Shift(nn.Module):
    """The one-step student x_g = mean + std z, whatever its input level."""

    def __init__(self, mean: float, std: float):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.std = nn.Parameter(torch.tensor(std, dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.mean + self.std * x.double() / sigma.double().reshape(-1, 1, 1, 1)


def phase(name: str, which: str = "student", **options) -> objectives.Phase:
    phases = objectives.TABLE[name].phases(sigma_init=2.5, **options)
    return next(p for p in phases if p.name == which)


def losses_of(name, student, target, fake, batch, *, memo=None, seed=0, **options) -> Tensor:
    chosen = phase(name, **options)
    offered = {
        "student": student,
        "target": target,
        "fake": fake,
        "draw": randoms(batch, seed=seed),
        "memo": {} if memo is None else memo,
        "kept": {},
    }
    wanted = inspect.signature(chosen.loss).parameters
    return chosen.loss(**{key: offered[key] for key in wanted})[0]


# --- the formulas --------------------------------------------------------------------------------


def test_sid_with_stopped_networks_is_dmd():
    x_g, target, fake = tensors(3)
    x_g.requires_grad_()
    for alpha in (0.0, 0.5, 1.2):
        loss = objectives.sid_loss(x_g, target, fake, alpha=alpha)
        (gradient,) = torch.autograd.grad(loss.sum(), x_g)
        w = 1 / (x_g - target).abs().mean((1, 2, 3), keepdim=True).detach()
        torch.testing.assert_close(gradient, -w * (target - fake), rtol=1e-6, atol=1e-7)


def test_sid_phase_without_gradient_through_the_networks_is_dmd():
    def gradient(name: str, **options) -> Tensor:
        student = Shift(0.4, 0.7)
        loss = losses_of(name, student, Gaussian(0.0, 1.0), Gaussian(0.4, 0.7), 64, **options)
        grads = torch.autograd.grad(loss.sum(), tuple(student.parameters()))
        return torch.stack(grads)

    levels = {"sigma_student": {"name": "log-normal"}}
    dmd = gradient("diff-instruct", normalise=True, **levels)
    torch.testing.assert_close(
        gradient("sid", through_networks=False, **levels), dmd, rtol=1e-5, atol=0
    )
    assert not torch.allclose(gradient("sid", **levels), dmd, rtol=0.05)


def test_sid_loss_values():
    x_g, target, fake = tensors(3)
    expected = []
    for g, p, q in zip(x_g.numpy(), target.numpy(), fake.numpy(), strict=True):
        delta = p - q
        expected.append((delta * (p - g - 1.2 * delta)).sum() / np.abs(g - p).mean())
    actual = objectives.sid_loss(x_g, target, fake, alpha=1.2)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5)


def test_normaliser_is_bounded_and_has_no_gradient():
    x = torch.zeros(2, 1, 1, 2, requires_grad=True)
    weight = objectives.normaliser(x, torch.tensor([0.0, 0.5]).reshape(2, 1, 1, 1))
    torch.testing.assert_close(weight, torch.tensor([1e5, 2.0]))
    assert not weight.requires_grad


def test_diff_instruct_gradient_is_minus_delta():
    x_g, target, fake = tensors(3)
    for leaf in (x_g, target, fake):
        leaf.requires_grad_()
    objectives.matching_loss(x_g, target, fake).sum().backward()
    torch.testing.assert_close(x_g.grad, fake.detach() - target.detach())
    assert target.grad is None and fake.grad is None


def test_losses_do_not_mix_rows():
    x_g, target, fake = tensors(3)
    whole = objectives.sid_loss(x_g, target, fake, alpha=1.2)
    for i in range(len(x_g)):
        row = slice(i, i + 1)
        one = objectives.sid_loss(x_g[row], target[row], fake[row], alpha=1.2)
        torch.testing.assert_close(whole[row], one)
    changed = x_g.clone()
    changed[0] += 1
    assert torch.equal(objectives.sid_loss(changed, target, fake, alpha=1.2)[1:], whole[1:])


# --- on Gaussians, with the student's exact score as fake ----------------------------------------

TEACHER = (0.0, 1.0)
LEVEL = 0.8


def fisher(mean: Tensor, std: Tensor) -> Tensor:
    """E |D_phi - D_psi|^2 over x_t ~ N(mean, std^2 + LEVEL^2), summed over two dimensions."""
    v, u, s2 = TEACHER[1] ** 2, std**2, LEVEL**2
    # D_phi - D_psi = slope (x_t - mean) + at_mean, for teacher N(0, v) and student N(mean, u)
    slope = v / (v + s2) - u / (u + s2)
    at_mean = (v * mean + s2 * TEACHER[0]) / (v + s2) - mean
    return 2 * (slope**2 * (u + s2) + at_mean**2)


def expected_gradient(mean: float, std: float, alpha: float, batch: int = 200_000):
    """Mean and standard error `[2]` of sid's gradient by (mean, std), at one level, w = 1."""
    # one copy of the student per row gives each row's own gradient
    m = torch.full((batch, 1, 1, 1), mean, dtype=torch.float64, requires_grad=True)
    s = torch.full((batch, 1, 1, 1), std, dtype=torch.float64, requires_grad=True)
    target, fake = Gaussian(*TEACHER), Gaussian(mean, std)
    one = {"name": "log-uniform", "sigma_min": LEVEL, "sigma_max": LEVEL}
    loss = losses_of(
        "sid",
        lambda x, sigma: m + s * x.double() / sigma.double().reshape(-1, 1, 1, 1),
        target,
        fake,
        batch,
        alpha=alpha,
        sigma_student=one,
    )
    rows = torch.stack([g.flatten() for g in torch.autograd.grad(loss.sum(), (m, s))])
    return rows.mean(1), rows.std(1) / batch**0.5


@pytest.mark.parametrize(("mean", "std"), [(0.5, 1.0), (0.0, 0.6), (-0.4, 1.3)])
def test_sid_at_one_half_is_half_the_fisher_gradient(monkeypatch, mean, std):
    monkeypatch.setattr(objectives, "normaliser", lambda x_g, _: x_g.new_ones(len(x_g)))
    gradient, error = expected_gradient(mean, std, 0.5)
    leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (mean, std)]
    exact = torch.stack(torch.autograd.grad(fisher(*leaves), leaves)) / 2
    assert (error < 0.02).all()  # the Monte Carlo mean is sharp enough to tell half from whole
    assert exact.abs().max() > 20 * error.max()
    assert ((gradient - exact).abs() < 4 * error + 1e-6).all(), (gradient, exact, error)


@pytest.mark.parametrize("name", ["sid", "diff-instruct"])
@pytest.mark.parametrize(
    ("mean", "std", "agree"),
    [(0.0, 1.0, True), (0.3, 1.0, False), (0.0, 0.7, False), (0.0, 1.4, False)],
)
def test_gradient_vanishes_only_where_student_and_teacher_agree(name, mean, std, agree):
    batch, parts = 512, 20
    student = Shift(mean, std)
    levels = {"sigma_student": {"name": "log-uniform", "sigma_min": 0.3, "sigma_max": 3.0}}
    rows = []
    for seed in range(parts):
        loss = losses_of(
            name, student, Gaussian(*TEACHER), Gaussian(mean, std), batch, seed=seed, **levels
        )
        grads = torch.autograd.grad(loss.sum() / batch, tuple(student.parameters()))
        rows.append(torch.stack(grads))
    values = torch.stack(rows)
    average, error = values.mean(0), values.std(0) / parts**0.5
    if agree:
        assert (average.abs() < 5 * error + 1e-9).all(), (average, error)
    else:
        off = 0 if mean else 1
        # descent moves the student towards the teacher
        wrong = (mean, std)[off] - TEACHER[off]
        assert average[off] * wrong > 0 and average[off].abs() > 10 * error[off], (average, error)


def test_the_teacher_as_fake_would_make_every_student_perfect():
    student = Shift(0.9, 0.2)
    loss = losses_of("sid", student, Gaussian(*TEACHER), Gaussian(*TEACHER), 32)
    (gradient,) = torch.autograd.grad(loss.sum(), (student.mean,))
    assert gradient.abs() < 1e-9


# --- denoising score matching --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["edm", "eps"])
def test_dsm_is_minimised_by_the_exact_denoiser(kind):
    batch, generator = 100_000, torch.Generator().manual_seed(1)
    x0 = 0.3 + 0.7 * torch.randn(batch, *SHAPE, generator=generator, dtype=torch.float64)
    sigma = torch.exp(torch.randn(batch, generator=generator, dtype=torch.float64) * 0.5)
    x_t = x0 + sigma.reshape(-1, 1, 1, 1) * torch.randn(
        x0.shape, generator=generator, dtype=torch.float64
    )
    exact = Gaussian(0.3, 0.7)
    rows = objectives.dsm_loss(exact(x_t, sigma), x0, sigma, kind=kind)
    for mean, std in ((0.33, 0.7), (0.27, 0.7), (0.3, 0.74), (0.3, 0.66)):
        other = objectives.dsm_loss(Gaussian(mean, std)(x_t, sigma), x0, sigma, kind=kind)
        more = (other - rows).detach()
        assert more.mean() > 4 * more.std() / batch**0.5, (mean, std)
    grads = torch.autograd.grad(rows.mean(), tuple(exact.parameters()))
    assert max(g.abs().item() for g in grads) < 0.03


@pytest.mark.parametrize(("kind", "weight"), [("edm", (4 + 0.25) / (2 * 0.5) ** 2), ("eps", 0.25)])
def test_dsm_weights(kind, weight):
    x0_hat, x0 = tensors(2)
    sigma = torch.full((5,), 2.0)
    expected = weight * (x0_hat - x0).square().sum((1, 2, 3))
    torch.testing.assert_close(objectives.dsm_loss(x0_hat, x0, sigma, kind=kind), expected)


# --- phases and the loop -------------------------------------------------------------------------


SCORES = [n for n, row in objectives.TABLE.items() if len(row.phases(sigma_init=2.5)) == 2]
"""The objectives that learn a fake score."""


@pytest.mark.parametrize("name", list(objectives.TABLE))
def test_no_gradient_reaches_whom_it_must_not(name):
    for which in ("student", "fake") if name in SCORES else ("student",):
        chosen, learner = phase(name, which), which
        assert chosen.learns == (learner,)
        nets = {
            "student": Shift(0.4, 0.7),
            "target": Gaussian(0.0, 1.0),
            "fake": Gaussian(0.1, 0.9),
        }
        for key, net in nets.items():
            net.requires_grad_(key in chosen.learns)
        offered = {**nets, "draw": randoms(8), "memo": {}, "kept": {}}
        wanted = inspect.signature(chosen.loss).parameters
        losses, logs = chosen.loss(**{key: offered[key] for key in wanted})
        assert losses.shape == (8,)
        assert all(v.shape == (8,) and not v.requires_grad for v in logs.values())
        losses.sum().backward()
        for key, net in nets.items():
            touched = [p.grad is not None and bool(p.grad.abs() > 0) for p in net.parameters()]
            assert all(touched) if key == learner else not any(touched), (which, key)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("reuse", [True, False])
def test_the_fake_phase_never_sees_the_students_graph(name, reuse):
    """Even where nobody has frozen the student, the fake's samples carry no gradient to it."""
    student, fake = Shift(0.4, 0.7), Gaussian(0.1, 0.9)
    memo: dict[str, Tensor] = {}
    losses_of(name, student, Gaussian(0.0, 1.0), fake, 8, memo=memo, reuse=reuse)
    assert not memo["x_g"].requires_grad
    loss = phase(name, "fake", reuse=reuse).loss(
        student=student, fake=fake, draw=randoms(8, seed=1), memo=memo
    )[0]
    loss.sum().backward()
    assert all(p.grad is None for p in student.parameters())
    assert all(p.grad is not None for p in fake.parameters())


@pytest.mark.parametrize("solver", ["heun", "dpm"])
def test_regression_is_the_distance_to_the_trajectorys_end(solver):
    """Of a Gaussian the end is affine in z: m + (sigma_max z - m) s / sqrt(s^2 + sigma_max^2)."""
    top, m, s = 80.0, 0.3, 0.5
    shrink = s / (s**2 + top**2) ** 0.5
    student = Shift(m - m * shrink, top * shrink)
    more = {"steps": 200, "sigma_max": top}
    found = losses_of("regression", student, Gaussian(m, s), None, 16, solver=solver, **more)
    assert found.max() < 1e-6
    off = Shift(m - m * shrink + 0.1, top * shrink)
    found = losses_of("regression", off, Gaussian(m, s), None, 16, solver=solver, **more)
    torch.testing.assert_close(found, torch.full((16,), 0.01 * np.prod(SHAPE)), rtol=0.02, atol=0)
    wide = Shift(m - m * shrink, 1.5 * top * shrink)
    hot = {**more, "temperature": 1.5, "solver": solver}
    assert losses_of("regression", wide, Gaussian(m, s), None, 16, **hot).max() < 1e-6


def test_regression_asks_the_target_once_a_pair(tmp_path):
    teacher = tiny_teacher()
    asked: list[int] = []
    teacher.denoiser.register_forward_pre_hook(lambda _, args: asked.append(len(args[0])))
    training.train(
        teacher, forgetting.none(teacher, []),
        objectives.TABLE["regression"].phases(sigma_init=2.5, pairs=16, steps=3),
        student=teacher.make_student(), fake=teacher.make_student(), retained=[0, 1], concepts=[],
        share=0.0, weight_student=1.0, weight_fake=1.0, total=64, batch=8, lr_student=1e-3,
        lr_fake=1e-3, ema_images=0, seed=3, folder=tmp_path, identity={}, tick=8, checkpoint=64,
        device=CPU,
    )  # fmt: skip
    assert sum(asked) == 16 * 5  # 2 steps - 1 evaluations each, whatever the images


def losses_at(numbers, phase, teacher, rule, nets):
    """A phase's losses of these images as the loop takes them, where nothing is forgotten."""
    batch = forgetting.draw_batch(
        numbers, seed=3, shape=teacher.shape, retained=[0, 1], concepts=[], share=0.0,
        weight_student=1.0, weight_fake=1.0, device=CPU,
    )  # fmt: skip
    draw = training.draw_for(3, phase.name, numbers, teacher.shape, CPU)
    return training.call(phase, teacher, rule, nets, batch, draw, {}, {})[0]


@pytest.mark.parametrize("hook", ["target", "penalty"])
def test_what_a_rule_sees_that_is_not_finite_is_a_loss_that_is_not(hook):
    """An error in one process would leave the others waiting: a loss they all share."""
    teacher = tiny_teacher()
    hooks = {"target": lambda x, sigma, batch, fake_x0: x}

    def blind(*given):
        teachers.to_uint8(torch.full((1, 1, 2, 2), float("nan")))

    rule = forgetting.Rule(**hooks | {hook: blind}, reads_fake=False)
    phase = objectives.TABLE["sid"].phases(sigma_init=2.5)[0]
    nets = {name: teacher.make_student().requires_grad_(True) for name in ("student", "fake")}
    losses = losses_at(np.arange(4), phase, teacher, rule, nets)
    assert losses.isnan().all()
    losses.sum().backward()
    assert not torch.isfinite(state.gradient_norm(nets["student"].parameters()))


def test_pairs_alone_have_their_own_beta1(tmp_path):
    """Two batches of pairs, one of both, against Adam stepped by hand; resumed before each."""
    teacher = tiny_teacher()
    rule = forgetting.none(teacher, [])
    options = {"pairs": 16, "steps": 2, "weight": 0.5, "beta1": 0.9}
    phases = objectives.TABLE["sid"].phases(sigma_init=2.5, pairs={**options, "alone": 16})
    student = teacher.make_student()
    fakes = {}

    def trained(total):
        fakes[total] = teacher.make_student()
        average, _ = training.train(
            teacher, rule, phases, student=teacher.make_student(), fake=fakes[total],
            retained=[0, 1], concepts=[], share=0.0, weight_student=1.0, weight_fake=1.0,
            total=total, batch=8, lr_student=1e-3, lr_fake=1e-3, decay_from=1.0, ema_images=0,
            seed=3, folder=tmp_path, identity={}, tick=8, checkpoint=8, device=CPU,
        )  # fmt: skip
        return average

    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    for start, names, beta1 in ((0, ["pairs"], 0.9), (8, ["pairs"], 0.9),
                                (16, ["pairs", "student"], 0.0)):  # fmt: skip
        numbers = np.arange(start, start + 8)
        nets = {"student": student, "fake": fakes.get(start, teacher.make_student())}
        for phase in (p for p in phases if p.name in names):
            shown = numbers % phase.distinct if phase.distinct else numbers
            (losses_at(shown, phase, teacher, rule, nets).sum() / 8).backward()
        optimizer.param_groups[0]["betas"] = (beta1, 0.999)
        optimizer.step()
        student.zero_grad()
        found = trained(start + 8)
        for mine, theirs in zip(student.parameters(), found.parameters(), strict=True):
            torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("sid", {"fake_updates": 0}, "every=0: give a whole number from 1"),
        ("diff-instruct", {"fake_updates": 1.5}, "every=1.5"),
        ("regression", {"pairs": 0}, "distinct=0"),
        ("regression", {"pairs": 2.5}, "distinct=2.5"),
        ("regression", {"steps": 0}, "steps=0"),
        ("regression", {"beta1": 1.0}, "beta1=1.0: give a number from 0 to below 1"),
        ("regression", {"solver": "huen"}, "no solver called 'huen'; did you mean 'heun'?"),
        ("sid", {"pairs": {"steps": 0}}, "steps=0"),
        ("sid", {"pairs": 4000}, "pairs=4000: give options"),
        ("sid", {"pairs": {"beta1": 0.9}}, "pairs.beta1 is Adam's where"),
        ("sid", {"pairs": {"beta1": 0.9, "alone": 64}, "fake_updates": 5}, "fake_updates of 1"),
        ("sid", {"pairs": {"alone": -1}}, "pairs.alone=-1: give a whole number"),
        ("sid", {"pairs": {"wieght": 1.0}}, "unknown key 'wieght'; did you mean 'weight'"),
        ("sid", {"pairs": {"sigma_range": (1.0, 2.0)}}, "unknown key 'sigma_range'"),
        ("diff-instruct", {"pairs": {"weight": -1.0}}, "weight=-1.0: give a number above 0"),
        ("sid", {"pairs": {"temperature": 0.0}}, "temperature=0.0: give a number above 0"),
        (
            "sid",
            {"sigma_range": (0.03, 14.6), "sigma_student": {"name": "karras"}},
            "sigma_student: 26% of its levels are outside what",
        ),
        (
            "diff-instruct",
            {"sigma_range": (0.3, 14.6)},
            "outside what the target knows, 0.3 to 14.6",
        ),
        ("regression", {"sigma_max": 80.0, "sigma_range": (0.03, 14.6)}, "from 14.6 to 0.03"),
        ("regression", {"sigma_min": 20.0, "sigma_range": (0.03, 14.6)}, "from 14.6 to 20"),
    ],
)
def test_options_that_cannot_be_are_refused(name, options, says):
    with pytest.raises(ValueError, match=says):
        objectives.TABLE[name].phases(sigma_init=2.5, **options)


@pytest.mark.parametrize("name", ["sid", "diff-instruct"])
def test_pairs_add_regression_times_its_weight(name):
    target, student = Gaussian(0.3, 0.5), Shift(0.1, 0.7)
    phases = objectives.TABLE[name].phases(
        sigma_init=2.5, fake_updates=3, pairs={"weight": 0.5, "pairs": 16, "steps": 5}
    )
    assert [(p.name, p.every, p.distinct, p.steps) for p in phases] == [
        ("pairs", 1, 16, False), ("student", 3, None, True), ("fake", 1, None, True)
    ]  # fmt: skip
    added = phases[0]
    assert added.learns == ("student",) and added.weight == "student"
    losses, _ = added.loss(student=student, target=target, draw=randoms(8), kept={})
    alone = losses_of("regression", student, target, None, 8, steps=5)
    torch.testing.assert_close(losses, 0.5 * alone)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_phases_without_a_step_add_their_gradients_to_the_next(tmp_path, accumulate):
    """Two losses in one step are their sum's."""

    def part(weight):
        def loss(student, draw):
            z = draw.normal("z")
            drawn = student(2.5 * z, z.new_full((len(z),), 2.5))
            return weight * (drawn - weight).square().flatten(1).sum(1), {}

        return loss

    def both(student, draw):
        return part(1.0)(student, draw)[0] + part(0.3)(student, draw)[0], {}

    def phase(name, loss, **options):
        return objectives.Phase(name, ("student",), loss, "student", **options)

    def trained(folder, *phases):
        teacher = tiny_teacher()
        student, _ = training.train(
            teacher, forgetting.none(teacher, []), phases, student=teacher.make_student(),
            fake=teacher.make_student(), retained=[0, 1], concepts=[], share=0.0,
            weight_student=1.0, weight_fake=1.0, total=64, batch=8, accumulate=accumulate,
            lr_student=1e-2, lr_fake=1e-3, ema_images=0, seed=3, folder=folder, identity={}, tick=8,
            checkpoint=64, device=CPU,
        )  # fmt: skip
        return student.state_dict()

    once = trained(tmp_path / "once", phase("both", both))
    parts = trained(tmp_path / "parts", phase("a", part(1.0), steps=False), phase("b", part(0.3)))
    apart = trained(tmp_path / "apart", phase("a", part(1.0)), phase("b", part(0.3)))
    for key, value in once.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-5)
    assert any(not torch.allclose(apart[key], value, atol=1e-4) for key, value in once.items())


def test_regression_follows_the_targets_own_range():
    asked: list[float] = []

    def target(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(float(sigma[0]))
        return x

    student = Shift(0.0, 1.0)
    losses_of("regression", student, target, None, 2, steps=3, sigma_range=(0.03, 14.6))
    assert max(asked) == pytest.approx(14.6) and min(asked) == pytest.approx(0.03)


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"stop": 24}])
def test_regression_in_parts_is_regression_at_once(tmp_path, changes):
    """Accumulated, or resumed where not every pair has been met: the same weights."""

    def trained(folder, *, accumulate=1, stop=None):
        teacher = tiny_teacher()
        start = teacher.make_student()
        for total in [stop, 64] if stop else [64]:
            student, _ = training.train(
                teacher, forgetting.none(teacher, []),
                objectives.TABLE["regression"].phases(sigma_init=2.5, pairs=20, steps=3),
                student=copy.deepcopy(start), fake=teacher.make_student(), retained=[0, 1],
                concepts=[], share=0.0, weight_student=1.0, weight_fake=1.0, total=total, batch=8,
                accumulate=accumulate, lr_student=1e-2, lr_fake=1e-3, ema_images=0, decay_from=1.0,
                seed=3, folder=folder, identity={}, tick=8, checkpoint=8, device=CPU,
            )  # fmt: skip
        return student.state_dict()

    once, parts = trained(tmp_path / "once"), trained(tmp_path / "parts", **changes)
    for key, value in once.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-5)


def test_the_average_counts_images_whoever_learns_from_them(tmp_path, monkeypatch):
    told: list[int] = []
    monkeypatch.setattr(training.state, "update_ema", lambda *_, images, **__: told.append(images))
    teacher = tiny_teacher()
    training.train(
        teacher, forgetting.none(teacher, []),
        objectives.TABLE["sid"].phases(sigma_init=2.5, fake_updates=4, pairs={"pairs": 16}),
        student=teacher.make_student(), fake=teacher.make_student(), retained=[0, 1], concepts=[],
        share=0.0, weight_student=1.0, weight_fake=1.0, total=64, batch=8, lr_student=1e-3,
        lr_fake=1e-3, ema_images=10, seed=3, folder=tmp_path, identity={}, tick=8, checkpoint=64,
        device=CPU,
    )  # fmt: skip
    assert told == [8] * 8, "each image once, whatever the number of updates"


@pytest.mark.parametrize(("k", "share", "batch"), [(5, 0.05, 16), (5, 0.1, 8), (2, 0.25, 2)])
def test_whoever_learns_seldom_misses_no_image(tmp_path, monkeypatch, k, share, batch):
    """Forget rows come at a fixed distance: every k-th batch of all might hold none of them."""
    seen: dict[str, list[int]] = {"student": [], "fake": []}

    def call(phase, teacher, rule, networks, batch, draw, memo, kept):
        seen[phase.name] += draw.numbers
        loss = sum(p.sum() for p in networks[phase.name].parameters())
        return 0 * loss * torch.ones(len(batch.student)), {}

    monkeypatch.setattr(training, "call", call)
    teacher = tiny_teacher()
    gone = Concept("c", 0, "a", {1: 1.0}, "none")
    training.train(
        teacher, forgetting.none(teacher, []),
        objectives.TABLE["sid"].phases(sigma_init=2.5, fake_updates=k),
        student=teacher.make_student(), fake=teacher.make_student(), retained=[1],
        concepts=[gone], share=share, weight_student=1.0, weight_fake=1.0, total=40 * batch,
        batch=batch, lr_student=0.0, lr_fake=0.0, ema_images=10, seed=3, folder=tmp_path,
        identity={}, tick=1000, checkpoint=1000, device=CPU,
    )  # fmt: skip
    assert seen["fake"] == list(range(40 * batch))
    assert seen["student"] == list(range(40 // k * batch))
    assert forgetting.is_forget(np.array(seen["student"]), share).any()


def test_levels_reach_the_phase():
    seen: list[Tensor] = []

    def target(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma)
        return x

    losses_of("sid", Shift(0.0, 1.0), target, Gaussian(0.0, 1.0), 4000)
    assert 0.0019 < seen[0].min() < 0.01 and 22 < seen[0].max() < 24.5


def tiny_teacher():
    return mixture.build(
        means=[[[0.5, 0.3]], [[-0.4, 0.2]]],
        bases=[[[[0.3, 0.0], [0.0, 0.1]]], [[[0.2, 0.1], [0.2, -0.1]]]],
        labels=["a", "b"],
        shape=SHAPE,
        width=8,
        device=CPU,
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batch_loss_is_the_weighted_sum_over_the_batch_size(tmp_path, monkeypatch, accumulate):
    """The gradient that the loop takes is d/dtheta sum_i weight_i l_i / B, for both networks."""
    teacher = tiny_teacher()
    concept = Concept("a", 0, "a", {1: 1.0}, "none")
    rule = forgetting.override(teacher, [concept])
    phases = objectives.TABLE["sid"].phases(sigma_init=2.5, reuse=False)
    student, fake = (teacher.make_student().requires_grad_(True) for _ in range(2))
    torch.manual_seed(1)
    for p in fake.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    weights = {"student": 0.3, "fake": 0.7}
    numbers = np.arange(8)
    batch = forgetting.draw_batch(
        numbers, seed=3, retained=[1], concepts=[concept], share=0.5, shape=(1, 1, 2),
        weight_student=0.3, weight_fake=0.7, device=CPU,
    )  # fmt: skip
    assert batch.is_forget.sum() == 4
    expected = {}
    for chosen in phases:
        nets = {"student": student, "fake": fake}
        for name, net in nets.items():
            net.requires_grad_(name in chosen.learns)
        draw = training.draw_for(3, chosen.name, numbers, SHAPE, CPU)
        losses, _ = training.call(chosen, teacher, rule, nets, batch, draw, {}, {})
        row = torch.where(batch.is_forget, weights[chosen.name], 1.0)
        learner = nets[chosen.name]
        expected[chosen.name] = torch.autograd.grad(
            (row * losses).sum() / 8, tuple(learner.parameters())
        )
    found: dict[str, list[Tensor]] = {}

    def note(parameters):
        parameters = list(parameters)
        key = "student" if "student" not in found else "fake"
        found[key] = [p.grad.clone() for p in parameters]
        return torch.tensor(float("nan"))  # not finite: the loop steps nothing and stops

    for net in (student, fake):
        net.requires_grad_(True)
    monkeypatch.setattr(state, "gradient_norm", note)
    with pytest.raises(state.Stopped):
        training.train(
            teacher, rule, phases, student=student, fake=fake, retained=[1], concepts=[concept],
            share=0.5, weight_student=0.3, weight_fake=0.7, total=8, batch=8,
            accumulate=accumulate, lr_student=1e-3, lr_fake=1e-3, ema_images=0, seed=3,
            folder=tmp_path, identity={}, tick=8, checkpoint=8, device=CPU,
        )  # fmt: skip
    for name, grads in expected.items():
        for mine, theirs in zip(grads, found[name], strict=True):
            torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["sid", "diff-instruct"])
def test_pairs_alone_come_first_and_step_themselves(name):
    options = {"pairs": {"pairs": 16, "steps": 2, "alone": 100}}
    phases = objectives.TABLE[name].phases(sigma_init=2.5, **options)

    def told(nimg):
        return [(p.name, p.steps) for p in objectives.due(phases, nimg, 10)]

    assert told(0) == told(80) == [("pairs", True)]
    assert told(90) == [("pairs", True), ("fake", True)], "the fake score joins for the last tenth"
    assert told(100) == [("pairs", False), ("student", True), ("fake", True)]
    every = objectives.TABLE[name].phases(sigma_init=2.5, fake_updates=2, **options)
    due = [(p.name, p.steps) for p in objectives.due(every, 110, 10)]
    assert due == [("pairs", True), ("fake", True)], "pairs in each batch, also where SiD waits"
    with pytest.raises(ValueError, match="after=-1: give a whole number from 0"):
        dataclasses.replace(phases[0], after=-1)


def test_pairs_alone_are_regression_and_then_are_not(tmp_path):
    """Up to `alone` the student is `regression`'s, bit for bit."""

    def trained(phases, total, folder):
        teacher = tiny_teacher()
        average, fake = training.train(
            teacher, forgetting.none(teacher, []), phases, student=teacher.make_student(),
            fake=teacher.make_student(), retained=[0, 1], concepts=[], share=0.0,
            weight_student=1.0, weight_fake=1.0, total=total, batch=8, lr_student=1e-3,
            lr_fake=1e-3, decay_from=1.0, ema_images=0, seed=3, folder=tmp_path / folder,
            identity={}, tick=8, checkpoint=64, device=CPU,
        )  # fmt: skip
        return average.state_dict(), fake.state_dict()

    options = {"pairs": 16, "steps": 2, "weight": 0.5}
    alone = objectives.TABLE["regression"].phases(sigma_init=2.5, **options)
    first = (dataclasses.replace(alone[0], name="pairs"),)
    both = objectives.TABLE["sid"].phases(sigma_init=2.5, pairs={**options, "alone": 40})
    by_pairs, untaught = trained(first, 32, "a")
    mixed, still = trained(both, 32, "b")
    assert all(torch.equal(by_pairs[k], mixed[k]) for k in by_pairs)
    assert all(torch.equal(untaught[k], still[k]) for k in untaught)
    by_pairs, _ = trained(first, 64, "c")
    mixed, taught = trained(both, 64, "d")
    assert any(not torch.equal(by_pairs[k], mixed[k]) for k in by_pairs)
    assert any(not torch.equal(untaught[k], taught[k]) for k in untaught)
