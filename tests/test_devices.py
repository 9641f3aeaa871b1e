"""How many threads a small network is given."""

import pytest
import torch
from torch import nn

from sfd import devices


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def threads(*widths: int, device: str = "cpu") -> int:
    modules = [nn.Linear(width, width, bias=False, device="meta") for width in widths]
    with devices.threads_for(modules, torch.device(device)):
        return torch.get_num_threads()


def test_small_networks_learn_in_one_thread(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads(10, 20) == 1
    assert torch.get_num_threads() == 2
    assert threads(10, 4000) == 2
    assert threads(10, device="cuda") == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads(10, 20) == 2
