"""The worked example of CONTRIBUTING.md runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


@pytest.fixture
def example():
    for language, name in (("python", "mine.py"), ("yaml", "mine.yaml")):
        match = re.search(rf"```{language}\n# {name}\n(.*?)```", TEXT, re.DOTALL)
        assert match, name
        Path(name).write_text(match[1])


def sfd(*words):
    command = [sys.executable, "-m", "sfd", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_worked_example_validates_and_trains(example):
    done = sfd("validate", "mine.yaml")
    assert done.returncode == 0, done.stderr
    done = sfd("train", "mine.yaml")
    assert done.returncode == 0, done.stderr
    assert Path("runs/mine/student.safetensors").is_file()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("return both / 2, {}", "return (both / 2).mean(), {}", "one value a row"),
        ("return both / 2, {}", "return (both / 2).detach(), {}", "no gradient"),
        ("return both / 2, {}", "return both * torch.rand(()), {}", "differ"),
        ("def soft_override", "def hard_override", "no function 'soft_override'"),
    ],
)
def test_broken_contracts_are_named(example, old, new, says):
    source = Path("mine.py").read_text()
    assert old in source
    Path("mine.py").write_text(source.replace(old, new))
    done = sfd("validate", "mine.yaml")
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
