"""The teacher's side of an audit of classes: every label, at the teacher's best guidance."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfd import content, features, sample
from sfd.classifiers import Classifier
from sfd.eval import common, evidence, guidance, suites
from sfd.eval.evidence import Drawn
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
    """The teacher's side, cached by all it rests on.

    A label the teacher was never taught is drawn all the same (its null condition).
    """
    labels = list(range(len(teacher.labels)))
    plan = content.hash_json({"suite": suites.plain(suite), "labels": list(teacher.labels)})
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
    if path.is_file():
        return _read(path)
    choices = suite.teacher.guidance if len(suite.teacher.guidance) > 1 else []
    count = common.counter(
        (lambda _, n, of: progress(f"teacher {teacher.name}", n, of)) if progress else None,
        len(labels) * (len(choices) * few + suite.n.per_class),
    )
    taught = [i for i in labels if i not in teacher.without]
    names = [teacher.labels[i] for i in taught]
    real = reference.features[np.isin(reference.labels, [reference.names.index(n) for n in names])]

    def features_at(k: float) -> np.ndarray:
        generate = sample.teacher_sampler(teacher, steps=suite.teacher.steps, guidance=k)
        found = []
        for label in taught:
            found.append(extract(generate([label] * few, trial)))
            count(few)
        return np.concatenate(found)

    only = suite.teacher.guidance[0]
    best, tried = guidance.best(choices, features_at, real) if choices else (only, {})
    generate = sample.teacher_sampler(teacher, steps=suite.teacher.steps, guidance=best)
    drawn: dict[int, Drawn] = {}
    sheets: dict[int, np.ndarray] = {}
    for label in labels:
        kept: list[np.ndarray] = []
        drawn[label] = evidence.draw(
            generate,
            label,
            asked,
            judges=judges,
            extract=extract,
            first=[label],
            keep=lambda images, _, kept=kept: kept.append(images[: common.PER_SHEET]),
            progress=count,
        )
        sheets[label] = np.concatenate(kept)[: common.PER_SHEET]
    _write(path, TeacherSide(drawn, sheets, best, tried))
    return _read(path)  # in the cache's half precision, as every later audit sees it


def _write(path: Path, side: TeacherSide) -> None:
    labels = list(side.drawn)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        meta=np.array(json.dumps({"guidance": side.guidance, "tried": side.tried})),
        probabilities=np.stack([side.drawn[i].probabilities for i in labels]).astype(np.float16),
        called=np.stack([side.drawn[i].called for i in labels]).astype(np.int16),
        second=np.stack([side.drawn[i].second for i in labels]).astype(np.int16),
        features=np.stack([side.drawn[i].features for i in labels]).astype(np.float16),
        sheets=np.stack([side.sheets[i] for i in labels]),
    )
    content.write_atomic(path, buffer.getvalue())


def _read(path: Path) -> TeacherSide:
    with np.load(path, allow_pickle=False) as file:
        arrays = {k: file[k] for k in file.files}
    meta = json.loads(str(arrays["meta"]))
    drawn = {
        i: Drawn(
            arrays["probabilities"][i].astype(np.float32),
            arrays["called"][i].astype(int),
            arrays["second"][i].astype(int),
            arrays["features"][i].astype(np.float32),
        )
        for i in range(len(arrays["called"]))
    }
    sheets = dict(enumerate(arrays["sheets"]))
    return TeacherSide(drawn, sheets, meta["guidance"], meta["tried"])
