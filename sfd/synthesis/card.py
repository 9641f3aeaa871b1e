"""The dataset's card: what it is, what was refused, and what may have leaked."""

import json
import math
from collections.abc import Mapping
from typing import Any

from sfd.report import md

ROWS = 100
"""Conditions up to which the card has a table of them."""


def text(report: Mapping[str, Any]) -> str:
    """README.md of a dataset, the same for the same report."""
    parts = [_front(report), _head(report), _screened(report), _leaked(report)]
    parts += [_private(report), _useful(report), _made(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(report: Mapping[str, Any]) -> str:
    classes = "label" in report["fields"]
    task = "image-classification" if classes else "text-to-image"
    return f"---\ntags: [synthetic, sfd]\ntask_categories: [{task}]\n---"


def _head(report: Mapping[str, Any]) -> str:
    student = report["student"]
    gone = ", ".join(map(md, student["concepts"].values())) or "nothing"
    lines = [
        f"# {report['kept']:,} synthetic images of {md(student['name'])}",
        "",
        f"Every image is generated, in one network evaluation, by a student that has forgotten"
        f" **{gone}** (sha256 `{student['sha256']}`), and was screened before it was kept.",
        "",
        f"Asked for {report['asked']:,}; drawn {report['drawn']:,}, kept {report['kept']:,},"
        f" refused {report['refused']:,}. A place whose image was refused was drawn again with"
        f" another seed, up to {report['plan']['tries']} times"
        + (f"; **{report['unmet']:,} places stayed empty**." if report["unmet"] else "."),
    ]
    by = report["by"]
    if len(by) <= ROWS:
        lines += ["", "| asked for | images asked | kept | refused |", "|---|---|---|---|"]
        lines += [
            f"| {md(name)} | {row['asked']:,} | {row['kept']:,} | {row['refused']:,} |"
            for name, row in by.items()
        ]
    else:
        often = [row["asked"] for row in by.values() if row["asked"]]
        equal = ", one as often as another" if min(often) == max(often) else ""
        lines += ["", f"{len(often):,} different prompts were asked for{equal}."]
    return "\n".join(lines)


def _screened(report: Mapping[str, Any]) -> str:
    lines = ["## Screening", ""]
    lines += ["An image is refused if any of these speaks against it, or fails on it:", ""]
    for detector in report["plan"]["detectors"]:
        rule = detector["threshold"]
        how = "the most probable label" if rule is None else f"a probability of at least {rule}"
        lines.append(f"- `{detector['name']}` for {', '.join(map(md, detector['labels']))} ({how})")
    if report["reasons"]:
        lines += ["", "| what spoke against it | images |", "|---|---|"]
        lines += [f"| {md(why)} | {count:,} |" for why, count in report["reasons_together"].items()]
    return "\n".join(lines)


def _leaked(report: Mapping[str, Any]) -> str:
    kept, lines = report["kept"], ["## What may have leaked", ""]
    review = report["review"]
    if review:
        low, high = review["ci95"]
        lines.append(
            f"- **People looked at {review['n']:,} of the kept images, drawn at random, and found"
            f" {review['found']:,}**"
            + (
                f" ({review['not_looked_at']:,} without an answer)"
                if review["not_looked_at"]
                else ""
            )
            + f": between {_percent(low)} and {_percent(high)} of the dataset, up to"
            f" {math.ceil(high * kept):,} images (95 %). This trusts no detector."
        )
    for found in report["leak"]:
        if found["at_most"] is None:
            lines.append(
                f"- {md(found['label'])}: **no bound**. No detector's sensitivity for it was ever"
                " measured (`sfd calibrate`), so nothing is known of what they missed."
            )
            continue
        lines.append(
            f"- {md(found['label'])}: at most **{found['at_most']:,} of the kept images**,"
            f" {_percent(found['at_most'] / kept)} (95 %):"
        )
        lines += [f"  - {_detector(row, report['drawn'], kept)}" for row in found["detectors"]]
    searched = {found["label"] for found in report["leak"]}
    lines += [
        f"- {md(label)}: **no bound**. No detector looked for a label of that name."
        for label in report["student"]["concepts"].values()
        if label not in searched
    ]
    if any(found["at_most"] is not None for found in report["leak"]):
        lines += [
            "",
            "A bound from a detector takes it to err on these images as on those of its card: it is"
            " how many can pass before it calls one more, each called with the lower end of its"
            " sensitivity, and no false positive excused. What one detector alone calls is a sign"
            " that these images are harder than its card's: only a review settles that.",
        ]
    if not review:
        lines += ["", "Nobody has reviewed a sample of it (`sfd synthesize --review`)."]
    return "\n".join(lines)


def _detector(row: Mapping[str, Any], drawn: int, kept: int) -> str:
    said = (
        f"`{row['detector']}` called it in {row['called']:,} of {drawn:,} images drawn"
        f" ({row['not_judged']:,} not judged)"
    )
    if row["at_most"] is None:
        return f"{said}; its sensitivity was never measured"
    hits, looked = row["sensitivity"]
    return (
        f"{said} and found {hits:,} of {looked:,} real ones when it was measured: at most"
        f" {row['at_most']:,} ({_percent(row['at_most'] / kept)})"
    )


def _private(report: Mapping[str, Any]) -> str:
    private = report["plan"]["private"]
    if not private:
        return ""
    near = report["reasons"].get("private: too near", 0)
    return "\n".join(
        [
            "## Private images",
            "",
            f"Refused: whatever lies nearer to one of {private['images']:,} different private"
            f" images than {_percent(private['quantile'])} of these lie to each other (features"
            f" `{private['features']}`, radius {private['radius']:.4g}). {near:,} of"
            f" {report['drawn']:,} images drawn did ({_percent(near / report['drawn'])}); a"
            f" generator that had never seen them would lose about {_percent(private['quantile'])}."
            " None that was kept does, in these features; another matcher may see more.",
        ]
    )


def _useful(report: Mapping[str, Any]) -> str:
    found = report["usefulness"]
    if not found:
        return ""
    lines = [
        "## Usefulness",
        "",
        f"One small classifier ({found['arch']}, {found['epochs']} epochs) trained on"
        f" {found['images']:,} images of each kind, tested on real ones:",
        "",
        "| trained on | right | 95 % |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['k']:,} of {row['n']:,} | {_percent(row['ci95'][0])} to"
        f" {_percent(row['ci95'][1])} |"
        for name, row in found["accuracy"].items()
    ]
    return "\n".join(lines)


def _made(report: Mapping[str, Any]) -> str:
    plan = report["plan"]
    said = {
        "student": plan["student"],
        "conditions": plan["conditions"],
        "n": plan["n"],
        "seed": plan["seed"],
    }
    return "\n".join(
        [
            "## How it was made",
            "",
            "`metadata.jsonl` has a line for each image: file, condition, seed, the detectors'"
            " scores, the sha256 of the student and of the plan. The same student draws the same"
            " image for a seed: `sfd sample RUN OUT --n 1 --seed SEED`. Each PNG says that it is"
            " generated, in its text chunks and as the IPTC's digital source type"
            " `trainedAlgorithmicMedia`; " + _signed(report),
            "",
            f"    {json.dumps(said)}",
        ]
    )


def _signed(report: Mapping[str, Any]) -> str:
    certificate = report["plan"]["c2pa"]
    if certificate is None:
        return "it carries no C2PA signature, and a text chunk can be taken off."
    return (
        f"its Content Credentials (C2PA) say the same, signed by `{report['signer']}` (the"
        f" certificate's sha256: `{certificate}`). Whether to trust that signer is the reader's to"
        " decide. Signatures are random: drawn again, a file has the same pixels and other bytes."
        " A text chunk can be taken off and so can a credential: an image without is not"
        " therefore real."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
