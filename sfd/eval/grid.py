"""Every combination of a prompt's factors: asked for, judged, and looked at factor by factor."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sfd import classifiers, content, features
from sfd.classifiers import Classifier
from sfd.concepts import Concept, PromptConcept
from sfd.eval import common, judging
from sfd.eval.clip_score import Scorer
from sfd.eval.judging import Drawn
from sfd.eval.shots import Ask, request, stacked
from sfd.eval.suites import PromptSuite, Reference


@dataclass(frozen=True)
class Cell:
    """One combination of the factors' values; `values[f]` is a row of factor f's labels."""

    name: str
    values: tuple[int, ...]
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """The suite's factors with their judges, and every combination of their values."""

    factors: tuple[str, ...]
    judges: tuple[tuple[Classifier, Classifier], ...]
    cells: tuple[Cell, ...]

    @property
    def offsets(self) -> list[int]:
        """Where each factor's values begin in `labels`."""
        sizes = [len(first.card.labels) for first, _ in self.judges]
        return [sum(sizes[:i]) for i in range(len(sizes))]

    @property
    def labels(self) -> list[str]:
        """The values of all factors, one after the other."""
        return [label for first, _ in self.judges for label in first.card.labels]


@dataclass(frozen=True)
class Answers:
    """Images of one list of prompts, judged for every factor; see `Drawn`."""

    by_factor: tuple[Drawn, ...]
    clip: np.ndarray | None = None
    """float32 `[N]`: how well each image shows its prompt, if that was asked; NaN: no image."""


def pick(drawn: Drawn, keep: np.ndarray) -> Drawn:
    """The images numbered by `keep`."""
    return replace(
        drawn,
        probabilities=drawn.probabilities[keep],
        called=drawn.called[keep],
        second=drawn.second[keep],
        features=drawn.features[keep],
    )


def build_grid(suite: PromptSuite, device: str) -> Grid:
    """The grid of a suite. Raises ValueError where two judges of a factor differ in labels."""
    judges = []
    for name, pair in suite.factors.items():
        first, second = (common.load_judge(n, device) for n in (pair.judge, pair.second))
        if first.card.labels != second.card.labels:
            raise ValueError(f"suite {suite.name}: {name} needs two judges of one set of labels")
        common.check_apart(suite.name, first, second, suite.features)
        judges.append((first, second))
    cells = _cells(suite, [first.card.labels for first, _ in judges])
    return Grid(tuple(suite.factors), tuple(judges), tuple(cells))


def _cells(suite: PromptSuite, labels: Sequence[Sequence[str]]) -> list[Cell]:
    """Every combination of the labels of the suite's factors."""
    cells = []
    for values in itertools.product(*(range(len(some)) for some in labels)):
        words = {n: some[v] for n, some, v in zip(suite.factors, labels, values, strict=True)}
        asked = tuple(template.format(**words) for template in suite.templates)
        cells.append(Cell(suite.cell.format(**words), values, asked))
    return cells


def requests(suite: PromptSuite, concepts: Sequence[PromptConcept]) -> dict[str, int]:
    """How many images a suite asks for of each prompt, for these concepts."""
    labels = [classifiers.read_card(pair.judge).labels for pair in suite.factors.values()]
    asked: list[str] = []
    for cell in _cells(suite, labels):
        asked += itertools.islice(itertools.cycle(cell.prompts), suite.n.per_cell)
    for concept in concepts:
        held = itertools.cycle([row.text for row in concept.holdout])
        asked += itertools.islice(held, suite.n.direct)
    return dict(Counter(asked))


def ask(
    generate: Ask,
    prompts: Sequence[str],
    seeds: np.ndarray,
    grid: Grid,
    extract: features.Extractor,
    *,
    clip: Scorer | None = None,
    first: Mapping[int, Sequence[int]] = {},
    keep: Callable[[np.ndarray, np.ndarray, tuple[np.ndarray, ...]], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Answers:
    """Draw and judge one image per prompt and seed.

    `first` are the labels looked for by factor, see `judging.calls`. `keep(rows, images,
    probabilities per factor)` sees what was made of each chunk.
    """
    parts: list[list[list[np.ndarray]]] = [[[], [], [], []] for _ in grid.factors]
    shows: list[np.ndarray] = []
    errors: list[set[str]] = [set() for _ in grid.factors]
    for start in range(0, len(prompts), judging.CHUNK):
        rows = slice(start, start + judging.CHUNK)
        got = request(generate, list(prompts[rows]), seeds[rows])
        found = judging.describe(got, extract)
        seen = []
        for at, ((judge, other), offset) in enumerate(zip(grid.judges, grid.offsets, strict=True)):
            looked_for = first.get(at, ())
            own, called, said = judging.look(got, judge, looked_for)
            _, second, also = judging.look(got, other, looked_for)
            errors[at] |= said | also | set(got.errors)
            columns = (own, _shifted(called, offset), _shifted(second, offset), found)
            for column, value in zip(parts[at], columns, strict=True):
                column.append(value)
            seen.append(own[got.made])
        if clip:
            asked = [prompts[start + i] for i in np.flatnonzero(got.made).tolist()]
            column = np.full(len(got.made), np.nan, np.float32)
            column[got.made] = clip.score(got.images, asked) if asked else []
            shows.append(column)
        if keep and got.made.any():
            keep(start + np.flatnonzero(got.made), got.images, tuple(seen))
        if progress:
            progress(len(got.made))
    joined = [[*map(np.concatenate, rest), stacked(found)] for *rest, found in parts]
    about = zip(joined, errors, grid.judges, grid.offsets, strict=True)
    drawn = tuple(
        Drawn(*c, errors=tuple(sorted(e)), threshold=judge.card.threshold, offset=offset)
        for c, e, (judge, _), offset in about
    )
    return Answers(drawn, np.concatenate(shows) if clip else None)


def _shifted(called: np.ndarray, offset: int) -> np.ndarray:
    return np.where(called < 0, -1, called + offset)


def asked_of_cells(grid: Grid, per_cell: int, text: str) -> tuple[list[str], np.ndarray]:
    """A prompt and a seed for each image of the grid, cell after cell, templates in turn.

    Seeds follow from `text`, and no two cells share one: noise that decides more than the prompt
    does would otherwise be counted once a cell.
    """
    prompts = [cell.prompts[i % len(cell.prompts)] for cell in grid.cells for i in range(per_cell)]
    return prompts, common.seeds_from(text, len(prompts))


def held_out(concept: PromptConcept, n: int, seeds: np.ndarray) -> tuple[list[str], np.ndarray]:
    """`n` prompts of a concept's held-out list, in turn, and their seeds.

    A prompt whose list gives it a seed takes that one, then those that follow it.
    """
    rows = [concept.holdout[i % len(concept.holdout)] for i in range(n)]
    turns = np.arange(n) // len(concept.holdout)
    own = [
        row.seed + turn if row.seed is not None else seed
        for row, turn, seed in zip(rows, turns, seeds, strict=True)
    ]
    return [row.text for row in rows], np.array(own, np.int64)


class Shown:
    """Collects the first pictures of each value of each factor, a few of each combination."""

    def __init__(self, grid: Grid, per_cell: int):
        self.grid, self.per_cell = grid, per_cell
        self.found: dict[int, list[np.ndarray]] = {}

    def keep(self, rows: np.ndarray, pictures: np.ndarray, _: Any) -> None:
        for row, picture in zip(rows, pictures, strict=True):
            cell, number = divmod(int(row), self.per_cell)
            if number < 2:
                values = self.grid.cells[cell].values
                for value, offset in zip(values, self.grid.offsets, strict=True):
                    self.found.setdefault(value + offset, []).append(picture)

    def pictures(self) -> dict[int, np.ndarray]:
        return {k: np.stack(v[: common.PER_SHEET]) for k, v in self.found.items()}


def cells_of(grid: Grid, concept: PromptConcept) -> list[int]:
    """Numbers of the combinations that ask for a concept: in its words, or by its label.

    A concept that whole prompts override has no words. Raises as `view_of`.
    """
    factor = factor_of(grid, concept)
    value = view_of(concept, grid).label - grid.offsets[factor]
    return [
        i
        for i, cell in enumerate(grid.cells)
        if cell.values[factor] == value or any(map(concept.mentions, cell.prompts))
    ]


def retained_cells(grid: Grid, forgotten: Sequence[PromptConcept]) -> list[int]:
    """Numbers of the combinations that ask for nothing forgotten. Raises as `view_of`."""
    gone = {i for concept in forgotten for i in cells_of(grid, concept)}
    return [i for i in range(len(grid.cells)) if i not in gone]


def factor_of(grid: Grid, concept: PromptConcept) -> int:
    """Which factor's judge is the concept's classifier. Raises ValueError if none is."""
    names = [first.card.name for first, _ in grid.judges]
    if concept.classifier not in names:
        raise ValueError(
            f"concept {concept.name} is judged by {concept.classifier}, the suite asks"
            f" {', '.join(names)}: name a suite whose judges fit"
        )
    return names.index(concept.classifier)


def values_of(grid: Grid, factor: int) -> range:
    """Where a factor's values stand among the labels of all."""
    start = grid.offsets[factor]
    return range(start, start + len(grid.judges[factor][0].card.labels))


def view_of(concept: PromptConcept, grid: Grid) -> Concept:
    """The concept as a class among the values of its factor.

    Raises ValueError, in one line, if no factor's judge is its classifier, or lacks its labels.
    """
    factor = factor_of(grid, concept)
    names = grid.judges[factor][0].card.labels
    for label in (concept.label_name, *([concept.instead] if concept.instead else [])):
        if label not in names:
            raise ValueError(
                f"concept {concept.name}: {concept.classifier} has no label {label!r}"
                + content.did_you_mean(label, names)
            )
    start = grid.offsets[factor]
    instead = {start + names.index(concept.instead): 1.0} if concept.instead else {}
    label = start + names.index(concept.label_name)
    return Concept(concept.name, label, concept.label_name, instead, concept.classifier)


def rows_of(grid: Grid, answers: Answers, cells: Sequence[int]) -> np.ndarray:
    """Numbers of the images of some combinations among the answers to the whole grid."""
    per_cell = len(answers.by_factor[0].called) // len(grid.cells)
    return np.concatenate([np.arange(i * per_cell, (i + 1) * per_cell) for i in cells])


def by_value(grid: Grid, answers: Answers, kept: Sequence[int]) -> dict[int, Drawn]:
    """The retained images of each value of each factor that some retained cell has."""
    out: dict[int, Drawn] = {}
    for factor, (drawn, offset) in enumerate(zip(answers.by_factor, grid.offsets, strict=True)):
        for label in values_of(grid, factor):
            cells = [i for i in kept if grid.cells[i].values[factor] + offset == label]
            if cells:
                out[label] = pick(drawn, rows_of(grid, answers, cells))
    return out


def by_factor(reference: Reference, grid: Grid) -> Reference:
    """The reference with each image once under each of its values."""
    names = {cell.name: cell.values for cell in grid.cells}
    values = np.array([names[reference.names[label]] for label in reference.labels])
    return replace(
        reference,
        features=np.concatenate([reference.features] * len(grid.factors)),
        labels=np.concatenate([values[:, f] + o for f, o in enumerate(grid.offsets)]),
        names=grid.labels,
    )


def by_cell(grid: Grid, answers: Answers, kept: Sequence[int]) -> dict[int, Drawn]:
    """The retained images of each combination."""
    drawn = answers.by_factor[0]
    return {i: pick(drawn, rows_of(grid, answers, [i])) for i in kept}
