"""The teacher's side of an audit of prompts: the whole grid, at its best guidance."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfd import content, features, sample
from sfd.eval import common, guidance, judging
from sfd.eval.clip_score import Scorer
from sfd.eval.grid import Answers, Grid, Shown, ask, asked_of_cells
from sfd.eval.suites import PromptSuite, Reference
from sfd.teachers import Teacher


@dataclass(frozen=True)
class TeacherSide:
    """The teacher's answers to the whole grid at the guidance that gave the best FID."""

    answers: Answers
    sheets: dict[int, np.ndarray]
    guidance: float
    tried: dict[str, float]
    """FID of each guidance on the suite's smaller number of images; empty if there is no choice."""


def teacher_side(
    teacher: Teacher,
    suite: PromptSuite,
    grid: Grid,
    extract: features.Extractor,
    reference: Reference,
    plan: str,
    progress: common.Progress | None,
    clip: Scorer | None = None,
) -> TeacherSide:
    """The grid as the teacher draws it, at its best guidance over all of it.

    Cached by all it rests on, which is nothing of what a subject has forgotten.
    """
    cards = [judge.card.fingerprint for pair in grid.judges for judge in pair]
    prompts, seeds = asked_of_cells(grid, suite.n.per_cell, plan)
    key = {"teacher": teacher.sha256, "judges": cards, "reference": reference.sha256,
           "plan": plan, "seeds": content.sha256(seeds.tobytes())}  # fmt: skip
    if clip:
        key["clip"] = clip.sha256
    path = common.cached(f"teacher-{teacher.name}-{content.hash_json(key)[:16]}.npz")
    if path.is_file():
        return _read_side(path, grid)
    names = [reference.names.index(cell.name) for cell in grid.cells]
    real = reference.features[np.isin(reference.labels, names)]
    few = -(-suite.teacher.n // len(grid.cells))
    trial, trial_seeds = asked_of_cells(grid, few, plan + "guidance")
    count = common.counter(
        (lambda _, n, of: progress(f"teacher {teacher.name}", n, of)) if progress else None,
        len(suite.teacher.choices) * len(trial) + suite.n.per_cell * len(grid.cells),
    )

    best, tried = guidance.chosen(
        teacher, suite.teacher, trial, trial_seeds, extract=extract, real=real, count=count
    )
    shown = Shown(grid, suite.n.per_cell)
    answers = ask(
        sample.teacher_sampler(teacher, steps=suite.teacher.steps, guidance=best),
        prompts,
        seeds,
        grid,
        extract,
        clip=clip,
        keep=shown.keep,
        progress=count,
    )
    common.whole(answers.by_factor[0], f"teacher {teacher.name}")
    _write_side(path, TeacherSide(answers, shown.pictures(), best, tried))
    return _read_side(path, grid)  # in the cache's half precision, as every later audit sees it


def _write_side(path: Path, side: TeacherSide) -> None:
    arrays: dict[str, Any] = {}
    for i, drawn in enumerate(side.answers.by_factor):
        packed = judging.packed(drawn)
        arrays["features"] = packed.pop("features")  # of every factor the same
        arrays |= {f"{name}{i}": values for name, values in packed.items()}
    if side.answers.clip is not None:
        arrays["clip"] = side.answers.clip
    arrays |= {f"sheet{label}": sheet for label, sheet in side.sheets.items()}
    meta = {"guidance": side.guidance, "tried": side.tried}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, meta=np.array(json.dumps(meta)), **arrays)
    content.write_atomic(path, buffer.getvalue())


def _read_side(path: Path, grid: Grid) -> TeacherSide:
    with np.load(path, allow_pickle=False) as file:
        arrays = {k: file[k] for k in file.files}
    meta = json.loads(str(arrays["meta"]))
    drawn = tuple(
        judging.unpacked(
            {name: arrays[f"{name}{i}"] for name in ("probabilities", "called", "second")}
            | {"features": arrays["features"]},
            judge.card.threshold,
            offset,
        )
        for i, ((judge, _), offset) in enumerate(zip(grid.judges, grid.offsets, strict=True))
    )
    sheets = {int(k.removeprefix("sheet")): v for k, v in arrays.items() if k.startswith("sheet")}
    return TeacherSide(Answers(drawn, arrays.get("clip")), sheets, meta["guidance"], meta["tried"])
