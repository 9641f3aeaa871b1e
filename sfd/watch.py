"""Looks at a student while it trains: a line of numbers and a sheet each."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sfd import content, features, images, metrics, sample
from sfd.classifiers import Classifier
from sfd.concepts import AnyConcept, Concept, PromptConcept
from sfd.eval import AnySuite, PromptSuite, Suite, load_judge
from sfd.eval.grid import build_grid, factor_of, retained_cells
from sfd.eval.suites import read_reference
from sfd.teachers import Raw, Teacher

Expected = tuple[tuple[Classifier, int], ...]
"""What judges should call: a column of each."""


@dataclass(frozen=True)
class Questions:
    """What a look asks, and who judges."""

    direct: dict[str, tuple[Raw, Classifier, int]]
    """Per concept: conditions that ask for it, its judge, and its column there."""
    kept: Sequence[tuple[Any, Expected]]
    """Retained conditions, and what should be there."""
    extract: features.Extractor
    real: np.ndarray
    """Features `[N, D]` of real images of what is retained."""


class Watch:
    """`look` appends to `curves.jsonl` and writes sheets to `samples/` in a run's folder.

    It draws `n` images per concept and twice as many retained ones; only sheets if `n` is 0 or
    there is no suite. The line's `fid` is null where these are no more than the features are wide.
    """

    def __init__(
        self,
        teacher: Teacher,
        concepts: Sequence[AnyConcept],
        retained: Raw,
        suite: AnySuite | None,
        n: int,
        folder: Path,
        device: str,
    ):
        self.teacher, self.folder, self.n = teacher, folder, n
        self.shown = _shown(teacher, concepts, retained)
        self.questions: Questions | None = None
        if n and isinstance(suite, Suite):
            self.questions = _of_classes(teacher, concepts, retained, suite, device)
        elif n and isinstance(suite, PromptSuite):
            self.questions = _of_prompts(concepts, suite, device)

    def look(self, average: nn.Module, nimg: int, seconds: float) -> None:
        """Draw from the average, judge, write one line and one sheet."""
        generate = sample.student_sampler(average, self.teacher)
        pictures = np.concatenate([generate([raw] * 8, np.arange(8)) for raw in self.shown])
        picture = images.sheet(pictures, columns=8, scale=max(1, 48 // pictures.shape[1]))
        for path in (f"samples/{nimg:09d}.png", "samples.png"):
            content.write_atomic(self.folder / path, images.png_bytes(picture))
        if self.questions is None:
            return
        asked = self.questions
        line: dict[str, Any] = {"nimg": nimg, "seconds": round(seconds, 3), "direct": {}}
        for name, (conditions, judge, column) in asked.direct.items():
            drawn = generate(_cycle(conditions, self.n), np.arange(self.n))
            line["direct"][name] = float(judge.called(drawn)[:, column].mean())
        wanted = _cycle(asked.kept, 2 * self.n)
        drawn = generate([raw for raw, _ in wanted], np.arange(len(wanted)))
        line["agreement"] = float(_right(drawn, [e for _, e in wanted]).mean())
        found = asked.extract(drawn)
        enough = min(len(found), len(asked.real)) > found.shape[1]
        line["fid"] = metrics.fid(found, asked.real) if enough else None
        line["n"] = self.n
        log = self.folder / "curves.jsonl"
        old = log.read_text().splitlines() if log.exists() else []
        kept = [text for text in old if json.loads(text)["nimg"] < nimg]
        content.write_atomic(log, "".join(f"{t}\n" for t in [*kept, json.dumps(line)]))


def _cycle(items: Sequence[Any], n: int) -> list[Any]:
    return [items[i % len(items)] for i in range(n)]


def _right(drawn: np.ndarray, expected: Sequence[Expected]) -> np.ndarray:
    """bool `[N]`: whether every judge calls what is expected of the image."""
    right = np.ones(len(drawn), bool)
    for factor, (judge, _) in enumerate(expected[0]):
        columns = [each[factor][1] for each in expected]
        right &= judge.called(drawn)[np.arange(len(drawn)), columns]
    return right


def _shown(teacher: Teacher, concepts: Sequence[AnyConcept], retained: Raw) -> Raw:
    if 0 < len(teacher.labels) <= sample.ROWS:
        return list(range(len(teacher.labels)))
    gone = [c.label if isinstance(c, Concept) else c.forget[0] for c in concepts][: sample.ROWS]
    some = np.linspace(0, len(retained) - 1, sample.ROWS - len(gone)).astype(int)
    return [*gone, *(retained[i] for i in some)]


def _of_classes(
    teacher: Teacher, concepts: Sequence[AnyConcept], retained: Raw, suite: Suite, device: str
) -> Questions:
    reference = read_reference(suite.reference)
    asked = [i for i in retained if i is not None]
    rows = [reference.names.index(teacher.labels[i]) for i in asked]
    judge = load_judge(suite.judge, device)
    return Questions(
        {c.name: ([c.label], judge, c.label) for c in concepts if isinstance(c, Concept)},
        [(i, ((judge, i),)) for i in asked],
        features.load(suite.features, device),
        reference.features[np.isin(reference.labels, rows)],
    )


def _of_prompts(concepts: Sequence[AnyConcept], suite: PromptSuite, device: str) -> Questions:
    reference = read_reference(suite.reference)
    grid = build_grid(suite, device)
    forgotten = [c for c in concepts if isinstance(c, PromptConcept)]
    kept = [grid.cells[i] for i in retained_cells(grid, forgotten)]
    direct: dict[str, tuple[Raw, Classifier, int]] = {}
    for concept in forgotten:
        judge = grid.judges[factor_of(grid, concept)][0]
        direct[concept.name] = (
            concept.forget,
            judge,
            judge.card.labels.index(concept.label_name),
        )
    judges = [first for first, _ in grid.judges]
    return Questions(
        direct,
        [(cell.prompts[0], tuple(zip(judges, cell.values, strict=True))) for cell in kept],
        features.load(suite.features, device),
        reference.features[
            np.isin(reference.labels, [reference.names.index(cell.name) for cell in kept])
        ],
    )
