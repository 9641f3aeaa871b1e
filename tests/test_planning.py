"""How many samples: against closed forms, enumeration, and the decisions of real claims."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from sfd import classifiers, metrics, teachers, verbs
from sfd.eval import planning, suites
from sfd.eval.evidence import EXCUSES_NOTHING

CARDS = {
    "digits": ((493, 500), (0, 500)),
    "noisy": ((90, 100), (30, 1000)),
    "blunt": ((60, 100), (1, 500)),
    "hardly measured": ((27, 30), (1, 40)),
}


def upper(k, n, card, raw_too):
    """The end that decides, written out as `claims` has it."""
    raw = metrics.rate_interval(k, n)[1]
    found = metrics.corrected_rate(k, n, *card)
    return found["ci95"][1] if found["card_fits"] and not raw_too else max(raw, found["ci95"][1])


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("raw_too", [True, False])
def test_pass_probability_is_the_sum_over_all_counts(name, raw_too):
    card, (s, f) = CARDS[name], (k / n for k, n in CARDS[name])
    for n, threshold, true in [
        (60, 0.2, 0.02),
        (300, 0.05, 0.005),
        (300, 0.05, 0.0),
        (200, 0.1, 0.2),
    ]:
        passing = [k for k in range(n + 1) if upper(k, n, card, raw_too) < threshold]
        expected = stats.binom.pmf(passing, n, true * s + (1 - true) * f).sum()
        got = metrics.pass_probability(n, threshold, true, *card, raw_too=raw_too)
        assert got == pytest.approx(expected, abs=1e-9)


def test_a_perfect_detector_needs_the_textbook_number():
    """No hits: Clopper-Pearson's 3.7 / x; at half the threshold, the power of the audit's page."""
    for threshold in (0.001, 0.01, 0.05):
        n = math.floor(math.log(0.025) / math.log(1 - threshold)) + 1
        assert metrics.plan_samples(threshold, 0.0, *metrics.PERFECT) == {"n": n, "why": None}
    assert metrics.pass_probability(2000, 0.01, 0.005, *metrics.PERFECT) == pytest.approx(
        0.7, abs=0.01
    )
    assert metrics.plan_samples(0.01, 0.005, *metrics.PERFECT, power=0.7)["n"] == pytest.approx(
        2000, rel=0.05
    )


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_the_planned_number_suffices_and_one_less_does_not(name, share):
    card = CARDS[name]
    for power in (0.5, 0.9):
        found = metrics.plan_samples(0.08, share * 0.08, *card, power=power)
        if (n := found["n"]) is None:
            assert max(metrics.upper_limit(share * 0.08, *card)) >= 0.08 and found["why"]
            continue
        assert metrics.pass_probability(n, 0.08, share * 0.08, *card) >= power
        assert metrics.pass_probability(n - 1, 0.08, share * 0.08, *card) < power


def test_a_planned_number_passes_as_often_as_promised():
    card, rng = CARDS["blunt"], np.random.default_rng(0)
    n = metrics.plan_samples(0.05, 0.02, *card, power=0.8)["n"]
    ks = rng.binomial(n, 0.02 * 0.6 + 0.98 * 0.002, 2000)
    limits = {k: upper(int(k), n, card, True) for k in set(ks)}
    assert np.mean([limits[k] < 0.05 for k in ks]) == pytest.approx(
        metrics.pass_probability(n, 0.05, 0.02, *card), abs=0.03
    )


def test_no_number_suffices_and_why():
    noisy = CARDS["noisy"]
    raw, corrected = metrics.upper_limit(0.0, *noisy)
    assert raw == 0.03 and corrected == pytest.approx(
        metrics.corrected_rate(30_000_000, 10**9, *noisy)["ci95"][1], rel=2e-3
    )
    assert "false positives" in metrics.plan_samples(0.01, 0.0, *noisy)["why"]
    found = metrics.plan_samples(0.01, 0.0, *noisy, raw_too=False)
    assert found["n"] is None and "calibrate on more images than 100" in found["why"]
    # ten times the card: the same detector can then show it
    more = (900, 1000), (300, 10_000)
    assert metrics.plan_samples(0.01, 0.0, *more, raw_too=False)["n"] > 1000
    assert "not below" in metrics.plan_samples(0.01, 0.01, *CARDS["digits"])["why"]
    with pytest.raises(ValueError, match="not informative"):
        metrics.plan_samples(0.01, 0.0, (50, 100), (50, 100))
    for bad in ({"threshold": 0}, {"true_rate": -0.1}, {"power": 1}):
        with pytest.raises(ValueError, match="give"):
            metrics.plan_samples(
                **{"threshold": 0.1, "true_rate": 0, "power": 0.9} | bad,
                sensitivity=(9, 10),
                false_positive=(0, 10),
            )


# --- sfd audit --plan ----------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a plan loads no network")

    monkeypatch.setattr(classifiers, "load", refuse)
    monkeypatch.setattr(teachers, "load", refuse)


def test_the_plan_of_a_suite_and_of_a_recipe(no_network):
    rows = verbs.plan_audit("digits-forget-three")
    by_claim = {row["claim"].split(",")[0]: row for row in rows}
    direct = by_claim["direct<digits-three>"]
    suite = suites.load("digits")
    assert direct["planned"] == suite.n.direct and direct["below"] == suite.claims.direct.below
    card = classifiers.read_card(suite.judge)
    assert direct["sensitivity"] == [card.calibration.sensitivity["3"].k, 500]
    assert [line["true_rate"] for line in direct["at"]] == [0.0, 0.001, 0.005]
    assert all(line["enough"] for line in direct["at"])
    assert direct["at"][2]["n"] < suite.n.direct
    whole = {row["claim"] for row in verbs.plan_audit("digits")}
    assert whole > {row["claim"] for row in rows}
    text = planning.lines(rows)
    assert any("0.50%" in line and "the 10,000 planned do" in line for line in text)


def test_a_plan_says_where_no_number_does(no_network):
    rows = verbs.plan_audit("fashion-forget-sneaker")
    assert rows[0]["claim"] == "direct<fashion-sneaker>"
    assert all(line["n"] is None and not line["enough"] for line in rows[0]["at"])
    assert rows[0]["least_upper"]["corrected"] < 0.01 < rows[0]["least_upper"]["raw"]
    assert "no number does: 2.800% are called" in "\n".join(planning.lines(rows))


def test_a_plan_of_a_judge_without_a_card(no_network):
    from sfd import concepts

    suite = suites.load("digits")
    card = classifiers.read_card(suite.judge).model_copy(update={"calibration": None})
    found = concepts.load(["digits-three"], card.labels)
    rows = planning.plan(suite, card, found)
    assert all("sfd calibrate" in line["why"] for line in rows[0]["at"])
    assert "sfd calibrate" in "\n".join(planning.lines(rows))


def test_plans_that_cannot_be_made(no_network, tmp_path):
    with pytest.raises(ValueError, match="called 'nothere'"):
        verbs.plan_audit("nothere")
    with pytest.raises(ValueError, match="names no suite to plan"):
        (tmp_path / "bare.yaml").write_text(
            "version: 1\nteacher: {name: digits}\nconcepts: [digits-three]\n"
            "objective: {name: sid}\nforgetting: {rule: override, share: 0.25}\n"
            "train: {images: 64, lr_student: 0.1, lr_fake: 0.1, ema_images: 1}\n"
        )
        verbs.plan_audit(str(tmp_path / "bare.yaml"))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.yaml").write_text("version: 1\n")
    with pytest.raises(ValueError, match="both a recipe and a suite"):
        verbs.plan_audit("digits")


def test_prompts_are_planned_by_simulated_audits(no_network, monkeypatch):
    from sfd import concepts

    monkeypatch.setattr(planning, "SHARES", (0.0, 0.5))
    monkeypatch.setattr(planning, "AUDITS", 20)
    suite = suites.load("fashion-text")
    cards = [classifiers.read_card(pair.judge) for pair in suite.factors.values()]
    red = concepts.load_prompts(["fashion-text-red"])
    (row,) = planning.plan_prompts(suite, cards, red)
    clean, half = row["at"]
    # the judge of colours never erred: 3.7 / x prompts without a hit, to within a quarter
    assert 369 <= clean["n"] <= 1.25 * 369 and clean["enough"] and row["planned"] == 480
    assert half["n"] > 2000 and not half["enough"], "prompts, not images, bound the rate"
    assert "381 held-out prompts; the 480 planned do" in "\n".join(planning.lines([row]))
    unnamed = [replace(concept, instead=None) for concept in red]
    (blind,) = planning.plan_prompts(suite, cards, unnamed)
    assert blind["at"][0]["enough"] and blind["false_positives"][0] == 0
    assert EXCUSES_NOTHING in "\n".join(planning.lines([blind]))
    assert EXCUSES_NOTHING not in "\n".join(planning.lines([row]))
    with pytest.raises(ValueError, match="is judged by fashion-text-colour, which suite"):
        planning.plan_prompts(suite, cards[:1], red)
    claims = suite.claims.model_copy(update={"direct": None})
    assert planning.plan_prompts(suite.model_copy(update={"claims": claims}), cards, red) == []
