"""A dataset from its plan to its card: what was asked for must stay the same, and is counted."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from sfd import checkpoints, content, images
from sfd.sample import Student
from sfd.synthesis import asked as asking
from sfd.synthesis import bounds, card, folders, merging, screening
from sfd.synthesis.asked import Asked
from sfd.synthesis.credentials import Credentials
from sfd.synthesis.folders import HIDDEN, META, Layout
from sfd.synthesis.screening import Detector, Private

SCHEMA = "sfd/dataset/2"
SIZE = 1000
BATCH = 250
TRIES = 20

Progress = Callable[[str, int, int], None]
"""`progress(what, images done, images in all)`."""
Report = dict[str, Any]


def synthesize(
    student: Student,
    out: Path,
    asked: Asked,
    detectors: Sequence[Detector],
    *,
    n: int,
    seed: int = 0,
    private: Private | None = None,
    about_private: Mapping[str, Any] | None = None,
    tries: int = TRIES,
    batch: int = BATCH,
    size: int = SIZE,
    keep_refused: bool = False,
    credentials: Credentials | None = None,
    shard: tuple[int, int] = (0, 1),
    device: str = "cpu",
    workers: int = 2,
    progress: Progress | None = None,
) -> Report | None:
    """Fill `n` places of the folder `out`, each by the first of `tries` images that is clean.

    Draws what is missing of shard (i, k), then, where every folder is there, writes the whole's
    `metadata.jsonl` and card; its report, or None while other shards are missing. The image of a
    place and a try has one seed and one batch whatever is resumed and whoever draws it, so the
    files are the same bytes; of images that `credentials` sign, the pixels and the text are, for
    signatures and their identifiers are random. Raises ValueError, in one line, where `out` holds
    something else, was begun with other arguments, is finished but damaged, or nothing in a folder
    is clean; OSError on a full disk.
    """
    numbers = (n, tries, batch, size, seed)
    if not all(isinstance(number, int) for number in numbers) or min(n, tries, batch, size) < 1:
        raise ValueError(
            "n, tries, batch and the images of a folder must be whole numbers of 1 or more, and the"
            " seed a whole number"
        )
    layout = Layout(out, n, size)
    asking.seeds(seed, np.array([n - 1]), tries - 1)  # raises before the folder is anybody's
    plan = {
        "schema": SCHEMA,
        "student": student.sha256,
        "n": n,
        "seed": seed,
        "conditions": asked.sha256,
        "detectors": [_of(detector) for detector in detectors],
        "private": dict(about_private) if about_private else None,
        "tries": tries,
        "batch": batch,
        "images a folder": size,
        "keep-quarantine": keep_refused,
        "device": device.partition(":")[0],
        "c2pa": credentials.sha256 if credentials else None,
    }
    _claim(layout, plan)
    plan_sha256 = content.hash_json(plan)  # shard and workers, which may differ, are none of it
    found = any(layout.folder(i).exists() for i in layout.numbers)  # who knows what was put there
    done, total = 0, folders.remaining(layout, shard)

    def count(images: int) -> None:
        nonlocal done
        done += images
        if progress:
            progress("synthesize", done, total)

    # judges switch settings of cudnn that every thread sees, which would show in the images' bytes
    alone = Lock() if plan["device"] == "cuda" else None
    folders.draw(
        layout, asked, generate=student.sample, turn=alone or nullcontext(),
        screen=screening.screen(detectors, private, alone),
        sha256=student.sha256, plan=plan_sha256, seed=seed, tries=tries, batch=batch,
        keep_refused=keep_refused, stamp=credentials.stamp if credentials else None, shard=shard,
        workers=workers, progress=count,
    )  # fmt: skip
    if not merging.merge(layout, plan=plan_sha256, tries=tries):
        return None
    merging.check(
        layout, asked, sha256=student.sha256, plan=plan_sha256, seed=seed, tries=tries, look=found
    )
    report = {
        "schema": SCHEMA,
        "plan": plan,
        "student": _student(student),
        "signer": credentials.subject if credentials else None,
        **_counts(layout, asked),
    }
    report["leak"] = bounds.leaked(
        [screening.described(d) for d in detectors], report["reasons"], kept=report["kept"],
        unjudged=screening.UNJUDGED,
    )  # fmt: skip
    return conclude(out, report)


def conclude(out: Path, report: Report) -> Report:
    """Write a report and its card, with what was added to the dataset since; the report."""
    added = {
        what: checkpoints.read_json(path) if (path := _added(out, what)).is_file() else None
        for what in ("review", "usefulness")
    }
    report = {**report, **added}
    content.write_json(out / HIDDEN / "report.json", report)
    content.write_atomic(out / "README.md", card.text(report))
    return report


def add(out: Path, report: Report, what: str, found: Mapping[str, Any]) -> Report:
    """Add 'review' or 'usefulness' to a dataset's report and card, for this and later reports."""
    content.write_json(_added(out, what), dict(found))
    return conclude(out, report)


def _added(out: Path, what: str) -> Path:
    return out / HIDDEN / f"{what}.json"


def sample_for_review(out: Path, report: Report, count: int) -> list[str]:
    """File names of a random sample of what was kept. Raises ValueError if there are fewer."""
    if not 0 < count <= report["kept"]:
        raise ValueError(f"a review of {count} of {report['kept']} images: give 1 or more of them")
    names = (
        (row["file_name"], int(Path(row["file_name"]).stem))
        for row in folders.read_lines(out / META)
    )
    key = report["plan"]["student"] + str(report["plan"]["seed"])
    return bounds.drawn_for_review(names, key, count)


def promise_review(out: Path, count: int) -> None:
    """Note how many images people are to look at. Raises ValueError if it were fewer than before:
    a sample holds the smaller, which could then end before what was found in the larger."""
    check_promised(out, count)
    content.write_json(_added(out, "review-promised"), {"n": count})


def check_promised(out: Path, count: int) -> None:
    """Raises ValueError if a review has fewer images than were once to be looked at."""
    path = _added(out, "review-promised")
    promised = checkpoints.read_json(path)["n"] if path.is_file() else count
    if count < promised:
        raise ValueError(
            f"a review of {count} images, and {promised} were to be looked at: look at all of them"
        )


def labelled(out: Path, labels: Sequence[str], each: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `each` kept images of each label: uint8 `[N, H, W, C]`, int `[N]` into `labels`.

    Raises ValueError where a label has fewer.
    """
    found: dict[str, list[np.ndarray]] = {label: [] for label in labels}
    for row in folders.read_lines(out / META):
        mine = found.get(row.get("label", ""))
        if mine is not None and len(mine) < each:
            mine.append(images.read_image(out / row["file_name"]))
    few = next((label for label, mine in found.items() if len(mine) < each), None)
    if few is not None:
        raise ValueError(f"{out}: {len(found[few])} images of {few!r} where {each} are wanted")
    numbers = np.repeat(np.arange(len(labels)), each)
    return np.stack([image for label in labels for image in found[label]]), numbers


def _of(detector: Detector) -> dict[str, Any]:
    """What must not change of a detector; its card may be measured anew."""
    said = screening.described(detector)
    return {key: said[key] for key in ("name", "labels", "threshold", "weights")}


def _student(student: Student) -> dict[str, Any]:
    teacher = student.card["teacher"]
    return {
        "name": student.card["name"],
        "sha256": student.sha256,
        "recipe_sha256": student.card.get("recipe_sha256"),
        "teacher_sha256": teacher["sha256"],
        "concepts": {c["name"]: c["label_name"] for c in student.card["concepts"]},
    }


def _claim(layout: Layout, plan: dict[str, Any]) -> None:
    """Make the folder this plan's. Raises ValueError if it is another's."""
    path, strange = layout.out / HIDDEN / "plan.json", None
    for folder in (layout.out, layout.quarantine):
        # killed before its plan was written, it holds the hidden folder alone
        foreign = folder.is_dir() and any(entry.name != HIDDEN for entry in folder.iterdir())
        strange = folder if foreign or folder.is_file() else strange
    # only now: another process may have written the plan and begun since
    if path.is_file():
        theirs = checkpoints.read_json(path)
        for key in plan:
            if plan[key] != theirs.get(key):
                raise ValueError(
                    f"{layout.out}: was begun with {key} {_short(theirs.get(key))}, not"
                    f" {_short(plan[key])}: say the same again, or name another folder"
                )
        return
    if strange is not None:
        raise ValueError(f"{strange}: is there and holds no dataset begun here: name another")
    content.write_json(path, plan)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _counts(layout: Layout, asked: Asked) -> dict[str, Any]:
    """What was asked for, drawn, kept and refused, in all and by condition; why it was refused."""
    kept, refused = Counter[Any](), Counter[Any]()
    reasons, together = Counter[str](), Counter[str]()
    for row in folders.read_lines(layout.out / META):
        kept[row["condition"]] += 1
    for row in folders.read_lines(layout.quarantine / META):
        refused[row["condition"]] += 1
        reasons.update(row["reasons"])
        together[" + ".join(row["reasons"])] += 1
    whole, rest = divmod(layout.n, len(asked.pattern))
    width = len(asked.conditions)
    wanted = whole * np.bincount(asked.pattern, minlength=width)
    wanted = wanted + np.bincount(asked.pattern[:rest], minlength=width)
    by: dict[str, dict[str, int]] = {}
    for condition, fields, number in zip(asked.conditions, asked.fields, wanted, strict=True):
        row = by.setdefault(fields.get("label") or fields["text"], {"asked": 0})
        row["asked"] += int(number)
        row |= {"kept": kept[condition], "refused": refused[condition]}
    return {
        "asked": layout.n,
        "drawn": kept.total() + refused.total(),
        "kept": kept.total(),
        "refused": refused.total(),
        "unmet": layout.n - kept.total(),
        "fields": sorted(asked.fields[0]),
        "reasons": dict(sorted(reasons.items())),
        "reasons_together": dict(sorted(together.items())),
        "by": by,
    }
