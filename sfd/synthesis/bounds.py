"""What may have leaked past the screening: counts in, upper ends out."""

import csv
import heapq
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import nbinom

from sfd import content, metrics, noise

LEVEL = 0.95
COLUMNS = ("file_name", "found")
ANSWERS = {"yes": True, "y": True, "1": True, "true": True}
ANSWERS |= {"no": False, "n": False, "0": False, "false": False}
ANSWERS |= {"unsure": None, "": None}


def leak_upper(
    called: int, missing: int, kept: int, sensitivity: tuple[int, int], level: float
) -> int:
    """At most so many of the `kept` images show what a detector looked for and did not call.

    It called `called` images and judged `missing` not, all of them refused. Each image that shows
    it is called with probability s, so those that passed before one more is called are at most the
    quantile of a negative binomial with called + missing + 1 successes, s the lower end of the
    sensitivity (hits, images): the inverted binomial test of how many there were. Not one false
    positive is excused. Both ends are of `level`, two-sided, so that together they miss in at most
    1 - level. Raises ValueError on impossible counts, or where nothing was kept.
    """
    if kept < 1 or min(called, missing) < 0:
        raise ValueError(f"called={called}, missing={missing}, kept={kept}: counts of some images")
    low = metrics.rate_interval(*sensitivity, level)[0]
    passed = nbinom.ppf((1 + level) / 2, called + missing + 1, low) if low else kept
    return min(kept, int(passed))


def leaked(
    detectors: Sequence[Mapping[str, Any]],
    reasons: Mapping[str, int],
    *,
    kept: int,
    unjudged: str,
) -> list[dict[str, Any]]:
    """For each label looked for, what every detector of it found, and the least upper end (images).

    `detectors` as `screening.described` gives them, `reasons` counts the refused by reason. An
    image that passed all of them passed each, so the best bound holds; each is of a level that
    allows for the choice. A detector never measured bounds nothing.
    """
    out = []
    for label in dict.fromkeys(label for d in detectors for label in d["labels"]):
        looking = [d for d in detectors if label in d["labels"]]
        measured = sum(label in d["sensitivity"] for d in looking)
        rows = []
        for d in looking:
            called = reasons.get(f"{d['name']}: {label}", 0)
            missing = reasons.get(f"{d['name']}: {unjudged}", 0)
            row = {"detector": d["name"], "called": called, "not_judged": missing}
            row |= {"sensitivity": d["sensitivity"].get(label), "at_most": None}
            if row["sensitivity"] and kept:
                level = 1 - (1 - LEVEL) / measured
                sure = tuple(row["sensitivity"])
                row["at_most"] = leak_upper(called, missing, kept, sure, level)
            rows.append(row)
        uppers = [row["at_most"] for row in rows if row["at_most"] is not None]
        out.append({"label": label, "detectors": rows, "at_most": min(uppers, default=None)})
    return out


# --- the reviewed sample -------------------------------------------------------------------------


def drawn_for_review(names: Iterable[tuple[str, int]], key: str, count: int) -> list[str]:
    """The `count` file names of a random sample of the kept, sorted; the same for the same dataset.

    `names` are (file name, place) of every kept image, in any order, streamed. A larger sample
    holds the smaller.
    """
    chosen = heapq.nsmallest(count, _ranked(names, ("review", key)))
    return sorted(name for _, name in chosen)


def _ranked(
    names: Iterable[tuple[str, int]], key: tuple[object, ...]
) -> Iterator[tuple[float, str]]:
    block: list[tuple[str, int]] = []

    def rank() -> Iterator[tuple[float, str]]:
        numbers = noise.uniform(key, np.array([place for _, place in block], np.int64))
        yield from zip(numbers.tolist(), [name for name, _ in block], strict=True)

    for entry in names:
        block.append(entry)
        if len(block) == 1000:
            yield from rank()
            block = []
    if block:
        yield from rank()


def review_csv(names: Sequence[str]) -> str:
    """A table for people to fill: `found` is yes, no or unsure."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([COLUMNS, *((name, "") for name in names)])
    return out.getvalue()


def read_review(path: Path) -> dict[str, bool | None]:
    """What was found, by file name; None where nobody looked or is sure. Raises ValueError."""
    found: dict[str, bool | None] = {}
    for row in content.read_table(path, COLUMNS):
        name, answer = row["file_name"], row["found"].lower()
        if answer not in ANSWERS or name in found:
            raise ValueError(f"{path}: {name}: name each image once, and answer yes, no or unsure")
        found[name] = ANSWERS[answer]
    return found


def reviewed(answers: Mapping[str, bool | None], sample: Sequence[str]) -> dict[str, Any]:
    """The rate that people found in a random sample of the kept, with its interval.

    It trusts no detector; an image without an answer counts for and against. Raises ValueError
    unless `answers` are of exactly the sample.
    """
    if not answers or set(answers) != set(sample):
        raise ValueError(
            f"the review has {len(answers)} images that are not the random sample of this dataset:"
            " have it written by --review, and answer every line of it"
        )
    found = sum(answer is True for answer in answers.values())
    missing = sum(answer is None for answer in answers.values())
    low, high = metrics.missing_bounds(found, len(answers), missing)
    return {"found": found, "n": len(answers), "not_looked_at": missing, "ci95": [low, high]}
