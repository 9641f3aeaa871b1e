"""The only reader of `concepts/`: what is to be forgotten, and what is drawn in its place."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from sfd import content
from sfd.concepts import prompts
from sfd.concepts.prompts import PromptConcept, PromptConceptFile, substitute
from sfd.content import Strict


class Label(Strict):
    """A class of the teacher: its index and its name."""

    label: int = Field(ge=0)
    name: str


class Weighted(Strict):
    """A class of the teacher with a weight among others."""

    label: int = Field(ge=0)
    name: str
    weight: float = Field(gt=0)


class ConceptFile(Strict):
    """What a concept's YAML says."""

    version: Literal[1]
    kind: Literal["class"]
    forget: Label
    override: Label | Annotated[list[Weighted], Field(min_length=1)] | Literal["uniform"]
    classifier: str
    hazard: str | None = None

    @model_validator(mode="after")
    def _by_another(self) -> Self:
        if any(part.label == self.forget.label for part in _overrides(self)):
            raise ValueError(f"the concept overrides label {self.forget.label} by itself")
        return self


@dataclass(frozen=True)
class Concept:
    """A class to forget, checked against a teacher's labels."""

    name: str
    label: int
    label_name: str
    override: dict[int, float]
    """Probability of each label that is drawn instead; sums to 1."""
    classifier: str

    @property
    def pairs(self) -> list[tuple[int, dict[int, float]]]:
        """Each condition to forget with the probabilities of what is drawn instead."""
        return [(self.label, self.override)]


AnyConcept = Concept | PromptConcept


def is_prompt(name: str) -> bool:
    """Whether the concept called `name` is one of prompts."""
    return content.read_yaml(content.find("concepts", name)).get("kind") == "prompt"


def read(name: str) -> ConceptFile | PromptConceptFile:
    """A concept's YAML by name or path. Raises ValueError in one line."""
    path = content.find("concepts", name)
    if is_prompt(name):
        prompts.load(path)
        return content.load(path, PromptConceptFile)
    return content.load(path, ConceptFile)


def concept_sha256(concept: AnyConcept) -> str:
    """Hash of all that a concept says: what is asked for, what instead, and who judges."""
    return content.hash_json(TypeAdapter(AnyConcept).dump_python(concept, mode="json"))


def load_prompts(names: Sequence[str]) -> list[PromptConcept]:
    """The prompt concepts called `names`; what one draws instead has the others' words replaced.

    Raises ValueError on a concept of another kind, and where one would still draw what another
    forgets.
    """
    for name in names:
        if not is_prompt(name):
            raise ValueError(
                f"concept {name} forgets a class, and this teacher is asked in prompts: name a"
                " concept of kind prompt"
            )
    alone = [prompts.load(content.find("concepts", name)) for name in names]
    words = {word: instead for concept in alone for word, instead in concept.words.items()}
    found = [
        replace(c, override=tuple(substitute(p, words) if words else p for p in c.override))
        for c in alone
    ]
    for concept in found:
        for other in found:
            bad = next((p for p in concept.override if other.mentions(p)), None)
            if bad is not None:
                raise ValueError(
                    f"concept {concept.name}: draws {bad!r} instead, which {other.name} forgets"
                )
    return found


def read_prompts(source: str) -> list[str]:
    """The prompts of a recipe: a list's path, or its path below `concepts/`."""
    places = [Path(source).expanduser(), *(root / source for root in content.roots("concepts"))]
    path = next((p for p in places if p.is_file()), places[0])
    return [p.text for p in prompts.read_list(path.name, path)]


def load(names: Sequence[str], labels: Sequence[str], kept: Sequence[int] | None = None):
    """The concepts called `names`, for a teacher with these `labels`.

    `kept` restricts the labels that can be retained (a teacher retrained without some). Raises
    ValueError on a label outside the teacher's, a name that the teacher gives another label, an
    override by something that is itself forgotten, and a label forgotten twice.
    """
    for name in names:
        if is_prompt(name):
            raise ValueError(
                f"concept {name} is one of prompts, and this teacher is asked in classes: name a"
                " concept of kind class"
            )
    files = {name: content.load(content.find("concepts", name), ConceptFile) for name in names}
    forgotten: dict[int, str] = {}
    for name, file in files.items():
        for part in (file.forget, *_overrides(file)):
            if part.label >= len(labels):
                raise ValueError(
                    f"concept {name}: label {part.label} is outside the teacher's 0 to"
                    f" {len(labels) - 1}"
                )
            if part.name != labels[part.label]:
                raise ValueError(
                    f"concept {name}: calls label {part.label} {part.name!r}, the teacher calls it"
                    f" {labels[part.label]!r}"
                )
        if file.forget.label in forgotten:
            raise ValueError(
                f"concepts {forgotten[file.forget.label]} and {name} both forget label"
                f" {file.forget.label}"
            )
        forgotten[file.forget.label] = name
    retained = [n for n in (range(len(labels)) if kept is None else kept) if n not in forgotten]
    return [
        Concept(
            name=name.rpartition("/")[2].removesuffix(".yaml"),
            label=file.forget.label,
            label_name=file.forget.name,
            override=_shares(name, file, retained),
            classifier=file.classifier,
        )
        for name, file in files.items()
    ]


def _overrides(file: ConceptFile) -> Sequence[Label | Weighted]:
    if isinstance(file.override, list):
        return file.override
    return [] if isinstance(file.override, str) else [file.override]


def _shares(name: str, file: ConceptFile, retained: Sequence[int]) -> dict[int, float]:
    if file.override == "uniform":
        if not retained:
            raise ValueError(f"concept {name}: nothing is retained, so nothing can override it")
        return {label: 1 / len(retained) for label in retained}
    parts = _overrides(file)
    for part in parts:
        if part.label not in retained:
            raise ValueError(
                f"concept {name}: overrides by label {part.label} ({part.name}), which is forgotten"
                " too; name a retained one"
            )
    weights = {p.label: p.weight if isinstance(p, Weighted) else 1.0 for p in parts}
    if len(weights) < len(parts):
        raise ValueError(f"concept {name}: names an override twice")
    total = sum(weights.values())
    if not math.isfinite(total):
        raise ValueError(f"concept {name}: the weights of its overrides are too large to be added")
    return {label: weight / total for label, weight in weights.items()}
