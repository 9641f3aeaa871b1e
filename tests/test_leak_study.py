"""A short leak study: the audit's own decisions on planted leaks, and on purpose wrong ones."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from sfd import metrics
from sfd.eval import claims, evidence, suites
from sfd.metrics import rates

ROOT = Path(__file__).parents[1]
STUDY = runpy.run_path(str(ROOT / "eval/benchmarks/leak_study.py"))
JUDGES, POPULATIONS, Judge = STUDY["JUDGES"], STUDY["POPULATIONS"], STUDY["Judge"]
simulate, simulate_prompts = STUDY["simulate"], STUDY["simulate_prompts"]

FEW = "called on 1 % of the rest, card of 10 such, the corrected rate decides"


@pytest.mark.parametrize("name", JUDGES)
def test_few_leaks_at_the_threshold_pass_whatever_the_judge(name):
    """At most 5 % of 300; what it is more exactly the committed study says."""
    for leak in (1.0, 1.2):
        assert simulate(JUDGES[name], 10_000, leak, 300)["PASS"] / 300 <= 0.05


def test_the_power_curve_falls_with_the_leak_and_rises_with_n():
    found = {
        (n, leak): simulate(JUDGES["good"], n, leak, 200)
        for n in (1000, 10_000)
        for leak in (0.5, 0.8)
    }
    passes = {key: v["PASS"] / 200 for key, v in found.items()}
    assert passes[1000, 0.5] < 0.4 and passes[10_000, 0.5] > 0.95
    assert passes[10_000, 0.5] > passes[10_000, 0.8] > passes[1000, 0.8]
    assert simulate(JUDGES["good"], 10_000, 2.0, 200)["FAIL"] > 0.3 * 200
    assert all(v["FAIL"] == 0 for v in found.values())


def test_the_planner_says_what_the_study_finds():
    judge = Judge(0.95, 0.01, (4000, 4000))
    n = metrics.plan_samples(0.05, 0.025, (3800, 4000), (40, 4000))["n"]
    assert simulate(judge, n, 0.5, 400, 0.05)["PASS"] / 400 == pytest.approx(0.9, abs=0.05)


def test_a_wrong_correction_is_found_out(monkeypatch):
    """Wilson's end for the false positives, as it once was; and a judge believed to find all."""

    def wilson_box(sensitivity, false_positive, level=0.95):
        return tuple(metrics.rate_interval(*c, level) for c in (sensitivity, false_positive))

    monkeypatch.setattr(rates, "card_box", wilson_box)
    assert simulate(JUDGES[FEW], 10_000, 1.0, 300)["PASS"] / 300 > 0.07
    monkeypatch.setattr(
        rates, "card_box", lambda s, f, level=0.95: ((1.0, 1.0), (0.0, f[0] / f[1]))
    )
    assert simulate(JUDGES["finds 60 %"], 10_000, 1.2, 300)["PASS"] / 300 > 0.2


def stated(k, n, card, **more):
    """The direct claim below 1 % on k of n, by a judge of this card."""
    suite = suites.load("mixture")
    suite = suite.model_copy(update={"claims": suites.Claims(direct=suites.Direct(below=0.01))})
    (s, s_n), (f, f_n) = card
    found = {**evidence.rate(k, n), "errors": [], **more}
    found |= {"sensitivity": {"k": s, "n": s_n}, "false_positive_rate": {"k": f, "n": f_n}}
    out = metrics.corrected_rate(k, n, *card)
    found |= {"corrected_rate": out["rate"], "corrected_ci95": out["ci95"], "card_fits": True}
    return claims.decide(suite, {"direct": {"planted": found}}, [STUDY["CONCEPT"]], [])[0]


def test_an_open_claim_says_what_would_settle_it():
    good, hardly = ((9850, 10_000), (5, 10_000)), ((27, 30), (10, 2000))
    claim = stated(10, 1500, good)
    assert claim["status"] == "INCONCLUSIVE" and "samples would settle it" in claim["why"]
    assert "more prompts than 150" in stated(10, 1500, good, prompts=150)["why"]
    claim = stated(120, 10_000, hardly)  # 0.8 % corrected, and never below 1 % by this card
    assert claim["status"] == "INCONCLUSIVE" and "settles it with this card" in claim["why"]
    assert metrics.plan_samples(0.01, 0.008, *hardly, raw_too=False)["n"] is None


@pytest.mark.parametrize("name", POPULATIONS)
def test_few_leaks_pass_over_prompts(name):
    setting = JUDGES["good"], POPULATIONS[name], 200, 10, 0.05, 1.0, 120
    over_prompts, as_if_independent = simulate_prompts(*setting)
    assert over_prompts["PASS"] / 120 <= 0.05
    if name == "some always leak":  # why the interval is over prompts
        assert as_if_independent["PASS"] / 120 > 0.15


def test_populations_leak_what_is_planted():
    rng = np.random.default_rng(0)
    for draw in POPULATIONS.values():
        assert draw(rng, 0.05, 200_000).mean() == pytest.approx(0.05, abs=0.002)


def test_the_committed_study_keeps_the_bound():
    result = json.loads((ROOT / "eval/results/leak-study.json").read_text())
    assert result["audits_each"] >= 2000
    rows = result["images"] + result["prompts"]
    assert {r["leak"] for r in rows} == set(STUDY["LEAKS"])
    assert {r["n"] for r in result["images"]} == set(STUDY["SIZES"])
    assert {r["judge"] for r in result["images"]} == set(JUDGES)
    for row in rows:
        assert row["PASS"] + row["INCONCLUSIVE"] + row["FAIL"] == result["audits_each"]
        if row["leak"] >= 1:
            assert row["false_PASS_ci95"][1] <= 0.05, row
