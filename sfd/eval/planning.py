"""Before an audit: how many samples each rate claim takes, given its detector."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from sfd import content, metrics
from sfd.classifiers import Card
from sfd.concepts import Concept, PromptConcept
from sfd.eval.evidence import EXCUSES_NOTHING, card_counts
from sfd.eval.suites import PromptSuite, Suite

SHARES = (0.0, 0.1, 0.5)
"""True rates to plan for, as shares of the threshold."""
POWER = 0.9
AUDITS = 60
"""Simulated for each number of prompts."""
_GRID = [round(100 * 1.25**i) for i in range(28)]

Row = dict[str, Any]


def plan(suite: Suite, card: Card, concepts: Sequence[Concept]) -> list[Row]:
    """A row for each rate that the suite bounds: the direct claim's, and the share that is invalid.

    `card` is the judge's, whose labels are the teacher's. Each row holds claim, detector, `below`
    (the threshold), the card's counts (`excuses`: whether false positives on what is drawn instead
    are among them), `planned` (the suite's n), `least_upper` (what the raw and the corrected upper
    end tend to with n if the true rate is 0) and, for each true rate in `at`: n (None and `why`
    where no number does), `passes` (how likely PASS is at the planned n) and `enough`.
    """
    rows = []
    for concept in concepts:
        if suite.claims.direct:
            args = concept.name, concept.label_name, concept.override, suite.n.direct
            rows.append(_direct(suite, card, *args))
        if suite.claims.validity:
            claim = f"validity<{concept.name}>, the share that is not valid"
            below = 1 - suite.claims.validity.above
            rows.append(
                {"claim": claim, "detector": "radius in " + suite.features, "below": below}
                | _planned(below, suite.n.direct, *metrics.PERFECT, raw_too=True)
            )
    return rows


def plan_prompts(
    suite: PromptSuite, cards: Sequence[Card], concepts: Sequence[PromptConcept]
) -> list[Row]:
    """A row for the direct claim on each concept, as `plan` has it; n are held-out prompts.

    A rate over prompts is bounded by their number, however many images each is drawn. Audits are
    simulated, with the suite's images a prompt, in which a prompt draws the concept always or never
    and the judge errs image by image; so n is right to within a quarter. `cards` are those of the
    factors' judges. Raises ValueError on a concept that none of them judges.
    """
    by_name = {card.name: card for card in cards}
    rows = []
    for concept in concepts if suite.claims.direct else []:
        if concept.classifier not in by_name:
            raise ValueError(
                f"concept {concept.name} is judged by {concept.classifier}, which suite"
                f" {suite.name} does not ask"
            )
        card = by_name[concept.classifier]
        if concept.instead and concept.instead not in card.labels:
            near = content.did_you_mean(concept.instead, card.labels)
            raise ValueError(f"concept {concept.name}: {card.name} has no label"
                             f" {concept.instead!r}{near}")  # fmt: skip
        instead = {card.labels.index(concept.instead): 1.0} if concept.instead else {}
        prompts = min(len(concept.holdout), suite.n.direct)
        images = -(-suite.n.direct // prompts)
        row = _direct(suite, card, concept.name, concept.label_name, instead, prompts, images)
        rows.append(row | {"unit": "held-out prompts"})
    return rows


def _direct(
    suite: Suite | PromptSuite,
    card: Card,
    name: str,
    label: str,
    override: Mapping[int, float],
    n: int,
    images: int | None = None,
) -> Row:
    stated = suite.claims.direct
    assert stated
    row: Row = {"claim": f"direct<{name}>", "detector": card.name, "below": stated.below}
    raw_too = stated.decided_by == "worse"
    row["decided_by"] = "the worse" if raw_too else "the corrected"
    try:
        hit, wrong = card_counts(card, label, card.labels, override)
        row |= {"sensitivity": [hit.k, hit.n], "false_positives": list(wrong)}
        row["excuses"] = bool(override)
        row |= _planned(stated.below, n, (hit.k, hit.n), wrong, raw_too=raw_too, images=images)
    except ValueError as error:  # without a card that says something, no claim can PASS
        at = [{"true_rate": share * stated.below, "n": None, "why": str(error)} for share in SHARES]
        row |= {"planned": n, "least_upper": None}
        row["at"] = [line | {"passes": 0.0, "enough": False} for line in at]
    return row


def _planned(
    below: float,
    planned: int,
    sensitivity: tuple[int, int],
    false_positive: tuple[int, int],
    *,
    raw_too: bool,
    images: int | None = None,
) -> Row:
    """The numbers for one threshold; of prompts with `images` each, where that is given."""
    card = sensitivity, false_positive
    raw, corrected = metrics.upper_limit(0.0, *card)
    at = []
    for rate in (share * below for share in SHARES):
        found = metrics.plan_samples(below, rate, *card, power=POWER, raw_too=raw_too)
        if images is None:
            passes = metrics.pass_probability(planned, below, rate, *card, raw_too=raw_too)
        else:
            simulated = partial(
                _passes, below=below, rate=rate, card=card, raw_too=raw_too, images=images
            )
            passes = simulated(planned)
            if found["n"] is not None:
                n = next((n for n in _GRID if simulated(n) >= POWER), None)
                found = {"n": n, "why": None if n else f"more than {_GRID[-1]:,} would be needed"}
        at.append({"true_rate": rate, **found, "passes": passes, "enough": passes >= POWER})
    return {"planned": planned, "least_upper": {"raw": raw, "corrected": corrected}, "at": at}


def _passes(
    prompts: int, *, below: float, rate: float, card: Any, raw_too: bool, images: int
) -> float:
    """The share of simulated audits in which the claim holds."""
    rng = np.random.default_rng(prompts)
    (found, of), (wrong, of_others) = card
    passed = 0
    for _ in range(AUDITS):
        called = np.where(rng.random(prompts) < rate, found / of, wrong / of_others)
        hits = rng.binomial(images, called)
        raw = metrics.cluster_interval(hits, images)
        k, n = int(hits.sum()), prompts * images
        high = metrics.corrected_rate(k, n, *card, raw=(raw, raw))
        alone = high["card_fits"] and not raw_too
        passed += (high["ci95"][1] if alone else max(raw[1], high["ci95"][1])) < below
    return passed / AUDITS


def lines(rows: Sequence[Row]) -> list[str]:
    """A plan for people to read."""
    out = [f"Samples for a PASS {10 * POWER:.0f} times in 10, two-sided 95 % intervals:"]
    for row in rows:
        judged = f"judged by {row['detector']}"
        if "sensitivity" in row:
            (s, s_n), (f, f_n) = row["sensitivity"], row["false_positives"]
            wrongly = f"wrongly {f:,} of {f_n:,}" if row["excuses"] else EXCUSES_NOTHING
            judged += f" (finds {s:,} of {s_n:,}, {wrongly})"
        out.append(f"{row['claim']}, below {row['below']:.3g}, {judged}")
        if "sensitivity" in row and row["least_upper"]:
            least = row["least_upper"]
            out.append(
                f"  least upper end within reach: raw {least['raw']:.2%}, corrected"
                f" {least['corrected']:.2%}; {row['decided_by']} decides"
            )
        for line in row["at"]:
            if line["n"] is None:
                said = f"no number does: {line['why']}"
            else:
                verb = "do" if line["enough"] else "do not"
                unit = f" {row['unit']}" if "unit" in row else ""
                said = f"{line['n']:,}{unit}; the {row['planned']:,} planned {verb} (PASS"
                said += f" {100 * line['passes']:.0f} times in 100)"
            out.append(f"  true rate {line['true_rate']:.2%}: {said}")
    return out
