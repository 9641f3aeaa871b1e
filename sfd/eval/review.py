"""People look too: a packet whose reviewer is blind, the key kept apart, and what they saw.

The packet is `review/` (images in random order, a page, a CSV to fill in); the key that says which
image is which is `review-key.json` beside it, and stays with whoever audits.
"""

import csv
import io
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfd import checkpoints, content, images
from sfd.eval import claims, common, evidence
from sfd.eval.shots import Ask, request

KEY = "sfd/review-key/1"
SUSPECTS = 1 / 4
"""Share of a packet that the detector chooses; the rest is random, and says how often."""
CHUNK = 64
COLUMNS = ["id", "question", "answer"]
ANSWERS = ("yes", "no", "unsure")


@dataclass(frozen=True)
class Asked:
    """The images of one concept's direct evidence, one row each; they can be drawn again."""

    concept: str
    label_name: str
    conditions: Sequence[Any]
    seeds: np.ndarray
    scores: np.ndarray
    """The judge's probability of the concept, NaN where it did not judge."""
    called: np.ndarray
    """bool: the judge calls it the concept."""
    made: np.ndarray
    """bool: there is an image. A random row without one is counted as one nobody could judge."""


def choose(asked: Asked, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows drawn at random from all, and of the others those that the judge suspects most.

    `min(n, all)` in all. What was not judged is suspected first, what was not made never.
    """
    n = min(n, len(asked.seeds))
    order = np.random.default_rng(seed).permutation(len(asked.seeds))
    cut = n - int(SUSPECTS * n)
    others = order[cut:][asked.made[order[cut:]]]
    scores = np.nan_to_num(asked.scores[others], nan=2.0)
    return order[:cut], others[np.argsort(-scores, kind="stable")[: n - cut]]


def packet(
    folder: Path, asked: Sequence[Asked], n: int, generate: Ask, sha256: str, plan: str
) -> dict[str, Any]:
    """Write a packet of `n` images of each concept into `folder`; the content of `evidence.review`.

    The choice follows from the subject's hash and the plan's. What cannot be drawn again counts as
    never made. Raises ValueError as `unanswered`.
    """
    unanswered(folder)
    rows, planned, unmade = [], {}, []
    for each in asked:
        seed = int(common.seeds_from(f"{sha256} {plan} {each.concept} review", 1)[0])
        parts = choose(each, n, seed)
        planned[each.concept] = {"random": len(parts[0]), "suspects": len(parts[1]),
                                 "of": len(each.seeds)}  # fmt: skip
        rows += [
            (each, int(row), part)
            for part, chosen in zip(("random", "suspects"), parts, strict=True)
            for row in chosen
            if each.made[row]
        ]
        unmade += [{"concept": each.concept, "part": "random", "condition": each.conditions[row]}
                   for row in parts[0] if not each.made[row]]  # fmt: skip
    shuffle = int(common.seeds_from(f"{sha256} {plan} review", 1)[0])
    rows = [rows[i] for i in np.random.default_rng(shuffle).permutation(len(rows))]
    key: dict[str, Any] = {"schema": KEY, "subject_sha256": sha256, "plan_sha256": plan}
    key |= {"unmade": unmade, "images": {}}
    new, shown = folder / "review.new", []
    shutil.rmtree(new, ignore_errors=True)
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        conditions = [each.conditions[row] for each, row, _ in part]
        seeds = np.array([each.seeds[row] for each, row, _ in part])
        got = request(generate, conditions, seeds)
        unmade += [{"concept": each.concept, "part": kind, "condition": each.conditions[row]}
                   for (each, row, kind), made in zip(part, got.made, strict=True)
                   if not made and kind == "random"]  # fmt: skip
        again = [part[i] for i in np.flatnonzero(got.made)]
        for picture, (each, row, kind) in zip(got.images, again, strict=True):
            name, png = f"i{len(shown) + 1:05d}", images.png_bytes(picture)
            shown.append((name, each))
            content.write_atomic(new / "images" / f"{name}.png", png)
            key["images"][name] = {
                "concept": each.concept,
                "part": kind,
                "condition": each.conditions[row],
                "seed": int(each.seeds[row]),
                "called": bool(each.called[row]),
                "sha256": content.sha256(png),
            }
    _write_forms(new, shown)
    shutil.rmtree(folder / "review", ignore_errors=True)
    new.rename(folder / "review")
    content.write_json(folder / "review-key.json", key)
    sha = content.sha256((folder / "review-key.json").read_bytes())
    return {
        each.concept: {"label_name": each.label_name,
                       "planned": {**planned[each.concept], "key_sha256": sha}}
        for each in asked
    }  # fmt: skip


def _write_forms(folder: Path, rows: Sequence[tuple[str, Asked]]) -> None:
    """The CSV to fill in, and the page to look at; neither knows the key."""
    import jinja2

    questions = [(name, f"does it show {each.label_name}?") for name, each in rows]
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    lines.writerows([name, question, ""] for name, question in questions)
    content.write_atomic(folder / "review.csv", text.getvalue())
    template = Path(__file__).with_name("review.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(questions=questions, answers=ANSWERS)
    content.write_atomic(folder / "index.html", page)


def check(folder: Path, n: int, direct: int, *, repeatable: bool) -> None:
    """Raises ValueError, before anything is drawn, on a packet that could not be written."""
    if not repeatable:
        raise ValueError("a review needs a model that draws the same picture for a seed again:"
                         " people would see others than the detector did")  # fmt: skip
    if n > direct:
        raise ValueError(f"a review of {n} of {direct} images of each concept: ask for fewer, or"
                         " raise the suite's n.direct")  # fmt: skip
    unanswered(folder)


def unanswered(folder: Path) -> None:
    """Raise ValueError if the packet in a folder has answers that a new one would overwrite."""
    path = folder / "review" / "review.csv"
    if path.is_file() and any(row["answer"] for row in _read_rows(path)):
        raise ValueError(
            f"{path}: has answers; read them with `sfd audit {folder} --reviewed {path}`, or move"
            " them away"
        )


# --- what people saw -----------------------------------------------------------------------------


def _read_rows(path: Path) -> list[dict[str, str]]:
    rows = content.read_table(path, COLUMNS)
    return [row | {"answer": row["answer"].lower()} for row in rows]


def read_answers(path: Path, ids: Sequence[str]) -> dict[str, str]:
    """An answer for each image of a packet, by its id.

    Raises ValueError, in one line, on an id that is unknown, missing or there twice, and on answers
    that are missing or unknown.
    """
    rows = _read_rows(path)
    given = Counter(row["id"] for row in rows)
    strange = [name for name in given if name not in set(ids)]
    if strange:
        raise ValueError(f"{path}: {strange[0]!r} is no image of this packet: another's CSV?")
    twice = [name for name, count in given.items() if count > 1]
    if twice:
        raise ValueError(f"{path}: {twice[0]} is there {given[twice[0]]} times, give one answer")
    gone = [name for name in ids if name not in given]
    if gone:
        raise ValueError(f"{path}: {len(gone)} of {len(ids)} images are gone, first {gone[0]}")
    known = ", ".join(ANSWERS)
    empty = [row["id"] for row in rows if not row["answer"]]
    if empty:
        raise ValueError(
            f"{path}: {len(empty)} of {len(ids)} images have no answer, first {empty[0]}: write"
            f" one of {known}"
        )
    for row in rows:
        if row["answer"] not in ANSWERS:
            raise ValueError(f"{path}: {row['id']} is answered {row['answer']!r}, not by {known}")
    return {row["id"]: row["answer"] for row in rows}


def read_key(folder: Path, audit: Mapping[str, Any]) -> dict[str, Any]:
    """The key of the packet that an audit planned.

    Raises ValueError, in one line, where none was planned, or the key is another's.
    """
    planned = audit["evidence"].get("review") or {}
    if not planned:
        raise ValueError(f"{folder}: its audit has no packet: `sfd audit {folder} --review N`")
    path = folder / "review-key.json"
    key = checkpoints.read_json(path)
    sha = content.sha256(path.read_bytes())
    if any(each["planned"]["key_sha256"] != sha for each in planned.values()):
        raise ValueError(f"{path}: is not the key of this audit's packet: put that one back")
    return key


def seen(
    audit: Mapping[str, Any], key: Mapping[str, Any], answers: Mapping[str, str], sha256: str
) -> dict[str, Any]:
    """An audit with what people saw; `sha256` is that of the CSV.

    The rate is that of the random images, with unsure answers counted against either end of its
    interval, which is over prompts where the subject is asked in prompts. No review makes a verdict
    better; where people surely see the concept more often than a claim that PASSed allows, the
    verdict is INCONCLUSIVE, and stays so whatever is answered later.
    """
    stored, found = audit["evidence"]["review"], {}
    for concept, each in stored.items():
        rows = [(r, answers[name]) for name, r in key["images"].items() if r["concept"] == concept]
        random = [pair for pair in rows if pair[0]["part"] == "random"]
        random += [(row, "unsure") for row in key["unmade"] if row["concept"] == concept]
        chosen = [answer for row, answer in rows if row["part"] == "suspects"]
        sure = Counter((a, row["called"]) for row, a in rows if a != "unsure")
        rate, prompts = _rate(random)
        limits = [claim["threshold"] for claim in audit["claims"] if claim["status"] == "PASS"
                  and claim["evidence"] == f"evidence.direct.{concept}"]  # fmt: skip
        found[concept] = {
            "label_name": each["label_name"],
            "planned": each["planned"],
            "random": rate,
            **({"prompts": prompts} if prompts else {}),
            "suspects": {"k": chosen.count("yes"), "n": len(chosen),
                         "failed": chosen.count("unsure")},
            "agreement": {"both": sure["yes", True], "people": sure["yes", False],
                          "detector": sure["no", True], "neither": sure["no", False]},
            "answers_sha256": sha256,
            "contradicts": any(rate["ci95"][0] > limit for limit in limits),
        }  # fmt: skip
    found = common.review_beside(found, stored)
    return {
        **audit,
        "verdict": claims.with_review(audit["verdict"], found),
        "evidence": {**audit["evidence"], "review": found},
        "not_tested": [text for text in audit["not_tested"] if text != common.NOT_REVIEWED],
    }


def _rate(rows: Sequence[tuple[Mapping[str, Any], str]]) -> tuple[dict[str, Any], int]:
    """How often people saw it, and over how many prompts (0: the images are independent)."""
    hit, lost = (np.array([answer == said for _, answer in rows]) for said in ("yes", "unsure"))
    if not isinstance(rows[0][0]["condition"], str):
        return evidence.rate(int(hit.sum()), len(rows), int(lost.sum())), 0
    prompts = list(dict.fromkeys(row["condition"] for row, _ in rows))
    index = np.array([prompts.index(row["condition"]) for row, _ in rows])
    hits, planned, missing = (
        np.bincount(index, weights, len(prompts)).astype(int) for weights in (hit, None, lost)
    )
    over_prompts, _ = evidence.rate_over_prompts(hits, planned, missing)
    return over_prompts, over_prompts.pop("prompts")
