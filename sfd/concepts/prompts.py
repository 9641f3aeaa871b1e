"""Concepts of kind prompt: what a text-to-image model is to forget, in words."""

import csv
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from sfd import content
from sfd.content import Strict

Source = str | list[str]
"""A file of prompts beside the concept, or the prompts themselves."""

SEED_COLUMNS = ("seed", "evaluation_seed", "sd_seed")
GUIDANCE_COLUMNS = ("guidance", "evaluation_guidance", "sd_guidance_scale")


class Forget(Strict):
    """What the model must stop drawing."""

    prompts: Source


class Override(Strict):
    """What it draws instead: words for words, or prompts row by row (one serves all rows)."""

    substitute: dict[str, str] = {}
    prompts: Source = []

    @model_validator(mode="after")
    def _one_way(self) -> "Override":
        if bool(self.substitute) == bool(self.prompts):
            raise ValueError("give either substitute or prompts")
        return self


class PromptConceptFile(Strict):
    """What a prompt concept's YAML says; `label` and `instead` are labels of `classifier`."""

    version: Literal[1]
    kind: Literal["prompt"]
    forget: Forget
    override: Override
    negative: Source = []
    retain: Source = []
    holdout: Source = Field(min_length=1)
    classifier: str
    label: str
    instead: str | None = None
    hazard: str | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt, the seed and guidance that its list gives it, and the template it came from."""

    text: str
    seed: int | None = None
    guidance: float | None = None
    group: str | None = None


@dataclass(frozen=True)
class PromptConcept:
    """Something to forget that is asked for in words; `override[i]` takes `forget[i]`'s place."""

    name: str
    label_name: str
    """The classifier's label for it."""
    instead: str | None
    """The classifier's label for what is drawn instead, where there is one."""
    forget: tuple[str, ...]
    override: tuple[str, ...]
    words: dict[str, str]
    """Words that stand for the concept in a prompt, and theirs; none where whole prompts do."""
    negative: tuple[str, ...]
    retain: tuple[str, ...]
    holdout: tuple[Prompt, ...]
    classifier: str

    @property
    def pairs(self) -> list[tuple[str, dict[str, float]]]:
        """Each condition to forget with the probabilities of what is drawn instead."""
        return [(a, {b: 1.0}) for a, b in zip(self.forget, self.override, strict=True)]

    def mentions(self, prompt: str) -> bool:
        """Whether a prompt asks for the concept."""
        return prompt in self.forget or any(has_word(prompt, word) for word in self.words)


def has_word(prompt: str, word: str) -> bool:
    """Whether `word` (or a phrase) stands in a prompt as such, in capitals or not."""
    return _words([word]).search(prompt) is not None


def substitute(prompt: str, words: Mapping[str, str]) -> str:
    """A prompt with whole words replaced: literally, in capitals or not, all at once.

    A hyphen belongs to its word: 'shirt' does not occur in 't-shirt'.
    """
    lower = {key.lower(): value for key, value in words.items()}
    return _words(words).sub(lambda found: lower[found[0].lower()], prompt)


def _words(words: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=len, reverse=True)
    anyone = "|".join(re.escape(word) for word in longest_first)
    return re.compile(rf"(?<![\w-])(?:{anyone})(?![\w-])", re.IGNORECASE)


def read_list(source: Source, beside: Path) -> list[Prompt]:
    """The prompts of a list, or of a file beside `beside`.

    `.txt` has one a line (`#` begins a comment line), `.csv` a column `prompt` and maybe a seed and
    a guidance (the I2P file is read as it is), `.yaml` has `templates` and lists for the names in
    their braces, and stands for every combination. Raises ValueError, in one line, on a file that
    is missing, empty or of another form, and on a prompt that is empty.
    """
    if isinstance(source, list):
        return [Prompt(text) for text in _not_empty(source, str(beside))]
    path = beside.parent / source
    readers = {".txt": _read_txt, ".csv": _read_csv, ".yaml": _read_templates}
    if path.suffix not in readers:
        raise ValueError(f"{path}: prompts are read from .txt, .csv or .yaml")
    try:
        prompts = readers[path.suffix](path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: prompts cannot be read: {error}") from None
    if not prompts:
        raise ValueError(f"{path}: there is no prompt in it")
    return prompts


def _not_empty(prompts: Sequence[str], where: str) -> Sequence[str]:
    for number, text in enumerate(prompts, 1):
        if not text.strip():
            raise ValueError(f"{where}: prompt {number} is empty")
    return prompts


def _read_txt(path: Path) -> list[Prompt]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [Prompt(line) for line in lines if line and not line.startswith("#")]


def _read_csv(path: Path) -> list[Prompt]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if rows and "prompt" not in rows[0]:
        raise ValueError(f"{path}: has no column 'prompt', only {', '.join(map(str, rows[0]))}")
    _not_empty([row["prompt"] or "" for row in rows], str(path))
    return [
        Prompt(
            row["prompt"],
            _number(row, SEED_COLUMNS, int, path),
            _number(row, GUIDANCE_COLUMNS, float, path),
        )
        for row in rows
    ]


def _number(row: Mapping[str, str | None], columns: Sequence[str], kind: Any, path: Path) -> Any:
    column = next((c for c in columns if row.get(c)), None)
    if column is None:
        return None
    try:
        return kind(row[column])
    except ValueError:
        raise ValueError(f"{path}: {column} is {row[column]!r}, not a number") from None


def _read_templates(path: Path) -> list[Prompt]:
    data = content.read_yaml(path)
    templates = data.pop("templates", None)
    if not isinstance(templates, list) or not all(isinstance(v, list) for v in data.values()):
        raise ValueError(f"{path}: needs templates, and a list for each name in their braces")
    prompts: list[Prompt] = []
    for template in map(str, templates):
        used = [name for name in data if "{" + name + "}" in template]
        for values in itertools.product(*(data[name] for name in used)):
            text = template
            for name, value in zip(used, values, strict=True):
                text = text.replace("{" + name + "}", str(value))
            if "{" in text:
                raise ValueError(f"{path}: {template!r} names a list that is not there")
            prompts.append(Prompt(text, group=template))
    _not_empty([p.text for p in prompts], str(path))
    return prompts


def load(path: Path) -> PromptConcept:
    """A prompt concept from its YAML.

    Raises ValueError, in one line: an empty list; a word to substitute that occurs in none of the
    forget prompts; a forget prompt that the substitution leaves as it is; override prompts that
    are neither one nor as many; an audit prompt that training sees too.
    """
    file = content.load(path, PromptConceptFile)

    def texts(source: Source) -> tuple[str, ...]:
        return tuple(p.text for p in read_list(source, path)) if source else ()

    forget = texts(file.forget.prompts)
    words = file.override.substitute
    for word in words:
        if not any(has_word(prompt, word) for prompt in forget):
            raise ValueError(f"{path}: {word!r} occurs in none of the prompts to forget")
    if words:
        forget = tuple(p for p in forget if any(has_word(p, word) for word in words))
        override = tuple(substitute(prompt, words) for prompt in forget)
    else:
        override = texts(file.override.prompts)
        if len(override) not in (1, len(forget)):
            raise ValueError(
                f"{path}: {len(override)} prompts override {len(forget)}: give one, or one for each"
            )
        override = override * len(forget) if len(override) == 1 else override
    for before, after in zip(forget, override, strict=True):
        if before == after:
            raise ValueError(f"{path}: {before!r} would be overridden by itself")
    concept = PromptConcept(
        name=path.stem,
        label_name=file.label,
        instead=file.instead,
        forget=forget,
        override=override,
        words=words,
        negative=texts(file.negative),
        retain=texts(file.retain),
        holdout=tuple(read_list(file.holdout, path)),
        classifier=file.classifier,
    )
    seen = {*forget, *override, *concept.retain}
    both = next((p.text for p in concept.holdout if p.text in seen), None)
    if both is not None:
        raise ValueError(f"{path}: {both!r} is trained with and audited with: take it out of one")
    clash = next((p for p in concept.retain if concept.mentions(p)), None)
    if clash is not None:
        raise ValueError(f"{path}: {clash!r} is to be retained and asks for what is forgotten")
    return concept
