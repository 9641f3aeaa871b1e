"""The audit is audited: models whose verdicts are known, on real digits."""

from pathlib import Path

import pytest
import torch

from sfd import configs, content, verbs

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


def test_a_suite_without_the_claims_whose_answers_are_known_is_refused_at_once():
    suite = content.read_yaml(content.find("eval/suites", "mixture"))
    del suite["claims"]["validity"]
    Path("own.yaml").write_text(content.dump_yaml(suite))
    recipe = content.read_yaml(content.find("configs", "smoke"))
    Path("mine.yaml").write_text(content.dump_yaml(recipe | {"audit": {"suite": "./own.yaml"}}))
    with pytest.raises(ValueError, match="suite mixture does not claim validity"):
        verbs.run_controls("./mine.yaml", None, device=CPU, say=print, progress=lambda *a: None)


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
