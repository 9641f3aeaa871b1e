"""Before an audit: how many samples each rate claim takes, given its detector."""

from collections.abc import Sequence
from typing import Any

from sfd import metrics
from sfd.classifiers import Card
from sfd.concepts import Concept
from sfd.eval.evidence import card_counts
from sfd.eval.suites import Suite

SHARES = (0.0, 0.1, 0.5)
"""True rates to plan for, as shares of the threshold."""
POWER = 0.9

Row = dict[str, Any]


def plan(suite: Suite, card: Card, concepts: Sequence[Concept]) -> list[Row]:
    """A row for each rate that the suite bounds: the direct claim's, and the share that is invalid.

    `card` is the judge's, whose labels are the teacher's. Each row holds claim, detector, `below`
    (the threshold), the card's counts, `planned` (the suite's n), `least_upper` (what the raw and
    the corrected upper end tend to with n if the true rate is 0) and, for each true rate in `at`:
    n (None and `why` where no number does), `passes` (how likely PASS is at the planned n) and
    `enough`.
    """
    rows = []
    for concept in concepts:
        if suite.claims.direct:
            rows.append(_direct(suite, card, concept))
        if suite.claims.validity:
            claim = f"validity<{concept.name}>, the share that is not valid"
            below = 1 - suite.claims.validity.above
            rows.append(
                {"claim": claim, "detector": "radius in " + suite.features, "below": below}
                | _planned(below, suite.n.direct, *metrics.PERFECT, raw_too=True)
            )
    return rows


def _direct(suite: Suite, card: Card, concept: Concept) -> Row:
    stated = suite.claims.direct
    assert stated
    row: Row = {"claim": f"direct<{concept.name}>", "detector": card.name, "below": stated.below}
    raw_too = stated.decided_by == "worse"
    row["decided_by"] = "the worse" if raw_too else "the corrected"
    try:
        hit, wrong = card_counts(card, concept.label_name, card.labels, concept.override)
        row |= {"sensitivity": [hit.k, hit.n], "false_positives": list(wrong)}
        row |= _planned(stated.below, suite.n.direct, (hit.k, hit.n), wrong, raw_too=raw_too)
    except ValueError as error:  # without a card that says something, no claim can PASS
        at = [{"true_rate": share * stated.below, "n": None, "why": str(error)} for share in SHARES]
        row |= {"planned": suite.n.direct, "least_upper": None}
        row["at"] = [line | {"passes": 0.0, "enough": False} for line in at]
    return row


def _planned(
    below: float,
    planned: int,
    sensitivity: tuple[int, int],
    false_positive: tuple[int, int],
    *,
    raw_too: bool,
) -> Row:
    card = sensitivity, false_positive
    raw, corrected = metrics.upper_limit(0.0, *card)
    at = []
    for rate in (share * below for share in SHARES):
        found = metrics.plan_samples(below, rate, *card, power=POWER, raw_too=raw_too)
        passes = metrics.pass_probability(planned, below, rate, *card, raw_too=raw_too)
        at.append({"true_rate": rate, **found, "passes": passes, "enough": passes >= POWER})
    return {"planned": planned, "least_upper": {"raw": raw, "corrected": corrected}, "at": at}


def lines(rows: Sequence[Row]) -> list[str]:
    """A plan for people to read."""
    out = [f"Samples for a PASS {10 * POWER:.0f} times in 10, two-sided 95 % intervals:"]
    for row in rows:
        judged = f"judged by {row['detector']}"
        if "sensitivity" in row:
            (s, s_n), (f, f_n) = row["sensitivity"], row["false_positives"]
            judged += f" (finds {s:,} of {s_n:,}, wrongly {f:,} of {f_n:,})"
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
                said = f"{line['n']:,}; the {row['planned']:,} planned {verb} (PASS"
                said += f" {100 * line['passes']:.0f} times in 100)"
            out.append(f"  true rate {line['true_rate']:.2%}: {said}")
    return out
