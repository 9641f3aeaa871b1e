"""Adam for everything, or Muon for matrices: what one step does."""

import pytest
import torch
from torch import nn

from sfd import optimizers


def network():
    torch.manual_seed(0)
    return nn.ModuleDict({
        "first": nn.Conv2d(1, 48, 3),  # 9 columns
        "hidden": nn.Conv2d(48, 64, 3),
        "square": nn.Linear(40, 40),
        "adapter": nn.Linear(40, 8),
    })  # fmt: skip


def stepped(net, make, rounds=1, **options):
    """Steps with fixed gradients; returns what each parameter moved by, and the gradients."""
    before = {k: p.detach().clone() for k, p in net.named_parameters()}
    torch.manual_seed(1)
    gradients = {k: torch.randn_like(p) for k, p in net.named_parameters()}
    stepper = make(net.parameters(), **options)
    for _ in range(rounds):
        for key, p in net.named_parameters():
            p.grad = gradients[key].clone()
        stepper.step(0.01, 0.9)
    return {k: p.detach() - before[k] for k, p in net.named_parameters()}, gradients, stepper


def test_a_matrix_moves_along_its_orthogonalised_gradient():
    """U V^T of the gradient U S V^T, as large as Adam's steps; Newton and Schulz to within .35."""
    moved, gradients, _ = stepped(network(), optimizers.muon)
    for key in ("hidden.weight", "square.weight"):
        step, gradient = moved[key].flatten(1).double(), gradients[key].flatten(1).double()
        step = -step / (0.01 * 0.2 * max(step.shape) ** 0.5)
        u, _, v = torch.linalg.svd(gradient, full_matrices=False)
        inside = u.T @ step @ v.T
        assert float(inside.diagonal().min()) > 0.65 and float(inside.diagonal().max()) < 1.3
        rest = step - u @ torch.diag(inside.diagonal()) @ v
        assert float(rest.norm() / step.norm()) < 0.05
        assert 0.1 < float(moved[key].square().mean().sqrt() / 0.01) < 0.3


def test_what_is_thin_or_learns_partly_is_adams():
    net = network()
    theirs, *_ = stepped(network(), optimizers.adam, rounds=3)
    partly = [net["square"].weight]
    mine, _, stepper = stepped(net, optimizers.muon, rounds=3, partly=partly)
    same = {key for key in mine if torch.equal(mine[key], theirs[key])}
    assert same == mine.keys() - {"hidden.weight"}
    kept = sum(value.numel() for value in stepper.held())
    whole = sum(p.numel() for p in net.parameters())
    assert kept == 2 * whole - net["hidden"].weight.numel()


def test_both_parts_step_at_the_rate_that_is_given():
    net = network()
    stepper = optimizers.muon(net.parameters())
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in net.parameters()]
    stepper.step(0.0, 0.5)
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    assert stepper.parts[""].param_groups[0]["betas"] == (0.5, 0.999)


@pytest.mark.parametrize("make", optimizers.TABLE.values(), ids=optimizers.TABLE)
def test_what_has_no_gradient_stays(make):
    net = network()
    stepper = make(net.parameters())
    before = {k: p.detach().clone() for k, p in net.named_parameters()}
    net["first"].weight.grad = torch.ones_like(net["first"].weight)
    stepper.step(0.1, 0.0)
    moved = {k for k, p in net.named_parameters() if not torch.equal(p, before[k])}
    assert moved == {"first.weight"}
