"""The audit is audited: models whose verdicts are known, on real digits."""

from pathlib import Path

import pytest
import torch

from sfd import configs, verbs

CPU = torch.device("cpu")


@pytest.fixture
def quick_gold():
    """The gold twin's recipe, long enough to draw digits and no more."""
    text = Path(configs.__file__).parents[1].joinpath("configs/digits-gold.yaml").read_text()
    Path("configs").mkdir()
    assert "images: 44800" in text
    Path("configs/digits-gold.yaml").write_text(text.replace("images: 44800", "images: 12800"))
    recipe = Path(configs.__file__).parents[1].joinpath("configs/digits-forget-three.yaml")
    assert "suite: digits}" in recipe.read_text()
    quick = recipe.read_text().replace("suite: digits}", "suite: digits-quick}")
    Path("configs/digits-forget-three.yaml").write_text(quick)


def test_original_and_hidden_fail_gold_passes_noise_is_not_valid(quick_gold):
    rows = verbs.run_controls(
        "digits-forget-three", None, device=CPU, say=print, progress=lambda *a: None
    )
    assert {row["model"]: (row["expected"], row["got"]) for row in rows} == {
        "original": ("FAIL", "FAIL"),
        "noise": ("FAIL", "FAIL"),
        "gold": ("PASS", "PASS"),
        "hidden under another label": ("FAIL", "FAIL"),
    }
