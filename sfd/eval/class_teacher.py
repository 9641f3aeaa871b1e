"""The teacher's side of an audit of classes: every label, at the teacher's best guidance."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfd import content, features, sample
from sfd.classifiers import Classifier
from sfd.eval import common, guidance, judging, suites
from sfd.eval.judging import Drawn
from sfd.eval.suites import Reference, Suite
from sfd.teachers import Teacher


@dataclass(frozen=True)
class TeacherSide:
    """Every label as the teacher draws it, at the guidance that gave the best FID."""

    drawn: dict[int, Drawn]
    sheets: dict[int, np.ndarray]
    guidance: float
    tried: dict[str, float]
    """FID of each guidance on the suite's smaller number of images; empty if there is no choice."""


def teacher_side(
    teacher: Teacher,
    suite: Suite,
    judges: tuple[Classifier, Classifier],
    extract: features.Extractor,
    reference: Reference,
    progress: common.Progress | None,
) -> TeacherSide:
    """The teacher's side, cached by all it rests on; labels drawn before an interruption stay.

    A label the teacher was never taught is drawn all the same (its null condition).
    """
    labels = list(range(len(teacher.labels)))
    plan = suites.plan_sha256(suite, teacher.labels)
    few = -(-suite.teacher.n // len(labels))
    trial = common.seeds_from(plan + "guidance", few)
    asked = common.seeds_from(plan, suite.n.per_class)
    key = {
        "teacher": teacher.sha256,
        "judges": [j.card.fingerprint for j in judges],
        "extractor": [suite.features, reference.extractor_sha256],
        "reference": reference.sha256,
        "sampling": suite.teacher.model_dump(),
        "n": suite.n.per_class,
        "first_seed": int(asked[0]),
    }
    path = common.cached(f"teacher-{teacher.name}-{content.hash_json(key)[:16]}.npz")
    threshold = judges[0].card.threshold
    unfinished = path.with_suffix(".unfinished.npz")
    try:
        known = _read(unfinished, threshold)
    except FileNotFoundError:  # nothing was begun, or another audit has just finished it
        known = None
    if path.is_file():
        return _read(path, threshold)
    tries = 0 if known else len(suite.teacher.choices)
    left = labels[len(known.drawn) :] if known else labels
    taught = [i for i in labels if i not in teacher.without]
    count = common.counter(
        (lambda _, n, of: progress(f"teacher {teacher.name}", n, of)) if progress else None,
        tries * len(taught) * few + len(left) * suite.n.per_class,
    )
    names = [teacher.labels[i] for i in taught]
    real = reference.features[np.isin(reference.labels, [reference.names.index(n) for n in names])]

    best, tried = (
        (known.guidance, known.tried)
        if known
        else guidance.chosen(
            teacher,
            suite.teacher,
            [label for label in taught for _ in range(few)],
            np.tile(trial, len(taught)),
            extract=extract,
            real=real,
            count=count,
        )
    )
    generate = sample.teacher_sampler(teacher, steps=suite.teacher.steps, guidance=best)
    drawn, sheets = (known.drawn, known.sheets) if known else ({}, {})
    for label in left:
        kept: list[np.ndarray] = []
        got = judging.draw(
            generate,
            label,
            asked,
            judges=judges,
            extract=extract,
            first=[label],
            keep=lambda images, _, kept=kept: kept.append(images[: common.PER_SHEET]),
            progress=count,
        )
        drawn[label] = common.whole(got, f"teacher {teacher.name}")
        sheets[label] = np.concatenate(kept)[: common.PER_SHEET]
        _write(unfinished, TeacherSide(drawn, sheets, best, tried))
    _write(path, TeacherSide(drawn, sheets, best, tried))
    unfinished.unlink(missing_ok=True)  # another audit of this teacher may have been first
    return _read(path, threshold)  # in the cache's half precision, as every later audit sees it


def _write(path: Path, side: TeacherSide) -> None:
    rows = [judging.packed(drawn) for drawn in side.drawn.values()]
    arrays: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    arrays["sheets"] = np.stack(list(side.sheets.values()))
    arrays["meta"] = np.array(json.dumps({"guidance": side.guidance, "tried": side.tried}))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    content.write_atomic(path, buffer.getvalue())


def _read(path: Path, threshold: float | None) -> TeacherSide:
    with np.load(path, allow_pickle=False) as file:
        arrays = {k: file[k] for k in file.files}
    meta, sheets = json.loads(str(arrays.pop("meta"))), arrays.pop("sheets")
    drawn = {
        i: judging.unpacked({name: stack[i] for name, stack in arrays.items()}, threshold)
        for i in range(len(sheets))
    }
    return TeacherSide(drawn, dict(enumerate(sheets)), meta["guidance"], meta["tried"])
