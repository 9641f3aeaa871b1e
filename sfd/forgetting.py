"""Forgetting rules: from a teacher and concepts to what the objective takes for the teacher.

A rule knows nothing of objectives. The forget step is the retain step with another target
condition: one forward pass serves both kinds of row.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import StrictInt
from scipy.special import ndtr
from torch import Tensor, nn

from sfd import classifiers, content, noise, plugins
from sfd.concepts import AnyConcept, Concept, PromptConcept
from sfd.concepts.prompts import substitute
from sfd.teachers import Raw, Teacher, unguided


@dataclass(frozen=True)
class Batch:
    """Three raw conditions per row, and weights; a retained row has the same one three times.

    A forget row has the forgotten label for the student, the override for the target, and for the
    fake score the forgotten label too, or, where a concept has several overrides, the pair of both.
    """

    student: Raw
    fake: Raw
    target: Raw
    is_forget: Tensor
    """`[B]`, bool."""
    weight_student: Tensor
    """`[B]`, float32."""
    weight_fake: Tensor
    """`[B]`, float32."""


@dataclass(frozen=True)
class Rule:
    """Up to three pure hooks.

    `target(x, sigma, batch, fake_x0) -> x0 [B, C, H, W]` is what the objective takes for the
    teacher; `penalty(student, x_g, batch) -> [B]` an extra term on the student; `mask(student) ->
    {parameter name: mask}` which weights may move. A `target` that looks at `fake_x0` says so by
    `reads_fake`, or it is spared the evaluation and given anything.
    """

    target: Callable[[Tensor, Tensor, Batch, Tensor], Tensor]
    penalty: Callable[[nn.Module, Tensor, Batch], Tensor] | None = None
    mask: Callable[[nn.Module], dict[str, Tensor]] | None = None
    reads_fake: bool = True

    def __post_init__(self) -> None:
        for name in ("target", "penalty", "mask"):
            hook = getattr(self, name)
            if not callable(hook) and (hook is not None or name == "target"):
                raise ValueError(f"a rule's {name} is a function, not {type(hook).__name__}")


def own(found: Any, where: str) -> Rule:
    """What a user's own rule returned, its hooks guarded. Raises ValueError if it is no Rule."""
    if not isinstance(found, Rule):
        raise ValueError(f"{where}: returned {type(found).__name__}, not sfd.Rule")
    hooks = {"target": found.target, "penalty": found.penalty, "mask": found.mask}
    return replace(found, **{n: plugins.guarded(h, where) for n, h in hooks.items() if h})


def _no_notes(options: Mapping[str, Any]) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Row:
    """A row of RULES: `build(teacher, concepts, **options) -> Rule` and whom to cite.

    `notes(options)` is what its user should know before a run, a sentence each. `twice`: its target
    asks the teacher twice for each forget row, which takes memory.
    """

    build: Callable[..., Rule]
    citation: str
    notes: Callable[[Mapping[str, Any]], tuple[str, ...]] = _no_notes
    twice: bool = False


Target = Callable[[Tensor, Tensor, Batch, Tensor], Tensor]


def none(teacher: Teacher, concepts: Sequence[AnyConcept]) -> Rule:
    """Plain distillation: the teacher at the row's own condition. Raises if there are concepts."""
    if concepts:
        raise ValueError(
            "forgetting rule 'none' forgets nothing: give another, such as `forgetting: {rule:"
            " override, share: 0.25}`, or remove `concepts`"
        )
    return Rule(target=_at_target_condition(teacher), reads_fake=False)


def override(teacher: Teacher, concepts: Sequence[AnyConcept]) -> Rule:
    """The teacher at the override's condition; it is never asked for what is forgotten.

    SFD, arXiv 2409.11219, eq. 11. Raises ValueError if there is no concept.
    """
    _need(concepts, "override")
    return Rule(target=_at_target_condition(teacher), reads_fake=False)


def _at_target_condition(teacher: Teacher) -> Target:
    def target(x: Tensor, sigma: Tensor, batch: Batch, fake_x0: Tensor) -> Tensor:
        return teacher.denoiser(x, sigma, teacher.encode(batch.target))

    return target


def _need(concepts: Sequence[AnyConcept], rule: str) -> None:
    if not concepts:
        raise ValueError(f"forgetting rule {rule!r} needs at least one entry in `concepts`")


# --- negative ------------------------------------------------------------------------------------


def negative(teacher: Teacher, concepts: Sequence[AnyConcept], *, k: float = 3.0) -> Rule:
    """Guided away from what is forgotten, towards the override: D(c-) + k (D(c) - D(c-)).

    c- are a concept's `negative` prompts, joined by commas, or the forgotten class; k takes the
    place of the recipe's guidance in the forget rows. Retained rows are those of `override`.
    ESD's target (arXiv 2303.07345) has the null in the place of c. Raises ValueError if there is no
    concept, or one of prompts without `negative`.
    """
    _need(concepts, "negative")
    away_from, plain = _negatives(concepts), unguided(teacher.denoiser)

    def guided_away(x: Tensor, sigma: Tensor, asked: Raw, safe: Raw) -> Tensor:
        cond = teacher.encode([*(away_from[raw] for raw in asked), *safe])
        bad, good = plain(x.repeat(2, 1, 1, 1), sigma.repeat(2), cond).chunk(2)
        return bad + k * (good - bad)

    def target(x: Tensor, sigma: Tensor, batch: Batch, fake_x0: Tensor) -> Tensor:
        out = torch.empty_like(x)
        forget = _forget_rows(batch)
        kept = sorted(set(range(len(x))) - set(forget))
        asked, safe = ([raw[n] for n in forget] for raw in (batch.student, batch.target))
        if forget:
            out[forget] = guided_away(x[forget], sigma[forget], asked, safe)
        if kept:
            cond = teacher.encode([batch.target[n] for n in kept])
            out[kept] = teacher.denoiser(x[kept], sigma[kept], cond)
        return out

    return Rule(target=target, reads_fake=False)


def _negatives(concepts: Sequence[AnyConcept]) -> dict[Any, Any]:
    """What each condition to forget is guided away from; of several concepts, from all of them."""
    words: dict[str, list[str]] = {}
    labels: dict[Any, Any] = {}
    for concept in concepts:
        if isinstance(concept, Concept):
            labels[concept.label] = concept.label
            continue
        if not concept.negative:
            raise ValueError(
                f"concept {concept.name} has no `negative` prompts, which rule 'negative' guides"
                " away from: add them"
            )
        for prompt in concept.forget:
            words.setdefault(prompt, []).extend(concept.negative)
    return labels | {prompt: ", ".join(dict.fromkeys(all_)) for prompt, all_ in words.items()}


def _forget_rows(batch: Batch) -> list[int]:
    return batch.is_forget.nonzero().flatten().tolist()


# --- anchor --------------------------------------------------------------------------------------


def anchor(teacher: Teacher, concepts: Sequence[AnyConcept], *, to: StrictInt | str | None) -> Rule:
    """The teacher at one condition for whatever is forgotten: a superclass, or (None) the null.

    `to` is a class by index or name, or a prompt. Ablating Concepts, arXiv 2303.13516.
    Raises ValueError if there is no concept, if `to` is no condition of the teacher, asks for
    what is forgotten, or is audited with.
    """
    _need(concepts, "anchor")
    safe = _anchored(teacher, concepts, to)

    def target(x: Tensor, sigma: Tensor, batch: Batch, fake_x0: Tensor) -> Tensor:
        raw = list(batch.target)
        for n in _forget_rows(batch):
            raw[n] = safe
        return teacher.denoiser(x, sigma, teacher.encode(raw))

    return Rule(target=target, reads_fake=False)


def _anchored(teacher: Teacher, concepts: Sequence[AnyConcept], to: int | str | None) -> Any:
    where = "forgetting.options.to"
    if to is None:
        if not teacher.knows_null:
            raise ValueError(f"{where}: {teacher.name} knows no null condition: name a class")
        return None
    if not teacher.labels:
        if not isinstance(to, str) or not to.strip():
            raise ValueError(f"{where}: {to!r} is not a prompt")
        for concept in (c for c in concepts if isinstance(c, PromptConcept)):
            if concept.mentions(to):
                raise ValueError(f"{where}: {to!r} asks for what {concept.name} forgets")
            if any(prompt.text == to for prompt in concept.holdout):
                raise ValueError(f"{where}: {concept.name} is audited with {to!r}: use another")
        return to
    label = teacher.labels.index(to) if to in teacher.labels else to
    if type(label) is not int or not 0 <= label < len(teacher.labels):
        near = content.did_you_mean(str(to), teacher.labels)
        raise ValueError(f"{where}: {teacher.name} has no class {to!r}{near}")
    if label in teacher.without or label in [c.label for c in concepts if isinstance(c, Concept)]:
        raise ValueError(
            f"{where}: {teacher.labels[label]!r} is not retained, name a class that is"
        )
    return label


def _notes_of_anchor(options: Mapping[str, Any]) -> tuple[str, ...]:
    if options.get("to") is not None:
        return ()
    return (
        "the unconditional prediction draws what is forgotten at its prior share (one class of ten:"
        " 10 %), so a claim of 1 % cannot pass: name a condition in forgetting.options.to",
    )


# --- pseudo-label --------------------------------------------------------------------------------


def pseudo_label(teacher: Teacher, concepts: Sequence[AnyConcept]) -> Rule:
    """The override is what the concept's classifier calls D_psi(x_t), the forgotten masked out.

    A class becomes the class called; in a prompt the concept's words become the label called.
    D_psi(x_t) is decoded to uint8 and takes no gradient. The classifier is loaded when it is first
    asked. Raises ValueError if there is no concept, or one without a classifier that has a label
    left, or one of prompts without words to replace.
    """
    _need(concepts, "pseudo-label")
    load = functools.cache(_load_classifier)
    call = {concept.name: _masked(load, concept, teacher, concepts) for concept in concepts}

    def relabelled(asked: Raw, pictures: np.ndarray, device: str) -> Raw:
        out, words = list(asked), [dict[str, str]() for _ in asked]
        for concept in concepts:
            rows = [n for n, raw in enumerate(asked) if _asks_for(concept, raw)]
            called = call[concept.name](pictures[rows], device) if rows else []
            for n, label in zip(rows, called, strict=True):
                if isinstance(concept, PromptConcept):
                    words[n] |= dict.fromkeys(concept.words, label)
                else:
                    out[n] = teacher.labels.index(label)
        return [substitute(raw, w) if w else raw for raw, w in zip(out, words, strict=True)]

    def target(x: Tensor, sigma: Tensor, batch: Batch, fake_x0: Tensor) -> Tensor:
        raw, rows = list(batch.target), _forget_rows(batch)
        if rows:
            pictures = teacher.decode(fake_x0[rows].detach())
            instead = relabelled([batch.student[n] for n in rows], pictures, str(x.device))
            for n, safe in zip(rows, instead, strict=True):
                raw[n] = safe
        return teacher.denoiser(x, sigma, teacher.encode(raw))

    return Rule(target=target)


def _load_classifier(name: str, device: str) -> classifiers.Classifier:
    return classifiers.load(
        name, device, backend=lambda b: plugins.resolve(classifiers.BACKENDS, b, "classifiers")
    )


def _asks_for(concept: AnyConcept, raw: Any) -> bool:
    return concept.mentions(raw) if isinstance(concept, PromptConcept) else concept.label == raw


def _masked(
    load: Callable[[str, str], classifiers.Classifier],
    concept: AnyConcept,
    teacher: Teacher,
    concepts: Sequence[AnyConcept],
) -> Callable[[np.ndarray, str], list[str]]:
    """What a concept's classifier calls images, among labels that are not forgotten."""
    if isinstance(concept, PromptConcept) and not concept.words:
        raise ValueError(
            f"concept {concept.name} has no words that rule 'pseudo-label' could replace: give"
            " override.substitute"
        )
    labels = classifiers.read_card(concept.classifier).labels
    left = [n for n, label in enumerate(labels) if _is_retained(label, teacher, concepts)]
    if not left:
        raise ValueError(
            f"concept {concept.name}: classifier {concept.classifier} has no label that is a"
            " retained condition; rule 'pseudo-label' needs one"
        )

    def call(pictures: np.ndarray, device: str) -> list[str]:
        best = load(concept.classifier, device).probabilities(pictures)[:, left].argmax(1)
        return [labels[left[n]] for n in best]

    return call


def _is_retained(label: str, teacher: Teacher, concepts: Sequence[AnyConcept]) -> bool:
    if not teacher.labels:
        prompted = [c for c in concepts if isinstance(c, PromptConcept)]
        return not any(label == c.label_name or c.mentions(label) for c in prompted)
    gone = {*teacher.without, *(c.label for c in concepts if isinstance(c, Concept))}
    return label in teacher.labels and teacher.labels.index(label) not in gone


def _notes_of_pseudo_label(options: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        "the concept's classifier takes part in the training, so its own verdict on the result is"
        " not independent: read the second judge's",
    )


RULES: dict[str, Row] = {
    "none": Row(none, "Zhou et al., Score identity Distillation, arXiv 2404.04057"),
    "override": Row(override, "Chen et al., Score Forgetting Distillation, arXiv 2409.11219"),
    "negative": Row(
        negative, "Gandikota et al., Erasing Concepts (ESD), arXiv 2303.07345", twice=True
    ),
    "anchor": Row(anchor, "Kumari et al., Ablating Concepts, arXiv 2303.13516", _notes_of_anchor),
    "pseudo-label": Row(
        pseudo_label, "Lee, Pseudo-Label, ICML 2013 workshop (WREPL)", _notes_of_pseudo_label
    ),
}


# --- batches -------------------------------------------------------------------------------------


def is_forget(numbers: np.ndarray, share: float) -> np.ndarray:
    """Which image numbers are forget rows, bool `[N]`: n is iff floor((n+1)p) > floor(np).

    So the stream does not depend on the batch.
    """
    return np.floor((numbers + 1) * share) > np.floor(numbers * share)


def draw_batch(
    numbers: np.ndarray,
    *,
    seed: int,
    shape: tuple[int, ...],
    retained: Raw,
    concepts: Sequence[AnyConcept],
    share: float,
    weight_student: float,
    weight_fake: float,
    device: torch.device,
) -> Batch:
    """The conditions of image numbers `[B]`, drawn from `(seed, number)` alone.

    A share `share` of the rows forgets, each a concept drawn uniformly and one of its conditions
    drawn uniformly; the others retain a
    condition drawn uniformly. The weights are a forget row's; a retained row weighs 1.

    Where a concept has several overrides, the image's own z says which: its mean brightness, a
    standard normal number, falls into intervals of the overrides' probabilities. An override drawn
    apart from z would average the overrides' scores, whose fixed point is their normalised
    geometric mean and not their mixture; and the fake score has to be told which part it sees, or
    it would hold the whole mixture against one of its parts.
    """
    forget = is_forget(numbers, share if concepts else 0.0)
    u = noise.uniform((seed, "conditions", "row"), numbers)
    part = np.full(len(numbers), 0.5)
    rows = [pair for concept in concepts for pair in concept.pairs]
    if any(len(instead) > 1 for _, instead in rows):
        z = noise.normal(noise.latent(seed), numbers, shape).reshape(len(numbers), -1)
        part = ndtr(z.sum(1, dtype=np.float64) / np.sqrt(z.shape[1]))
    student: list[Any] = []
    fake: list[Any] = []
    target: list[Any] = []
    for forgets, which, place in zip(forget, u, part, strict=True):
        if forgets:
            index, rest = divmod(which * len(concepts), 1.0)
            pairs = concepts[int(index)].pairs
            gone, instead = pairs[int(rest * len(pairs))]
            safe = _pick(instead, place)
            student.append(gone)
            fake.append((gone, safe) if len(instead) > 1 else gone)
            target.append(safe)
        else:
            student.append(retained[int(which * len(retained))])
            fake.append(student[-1])
            target.append(student[-1])
    marks = torch.from_numpy(forget).to(device)
    ones = torch.ones(len(numbers), device=device)
    return Batch(
        student=student,
        fake=fake,
        target=target,
        is_forget=marks,
        weight_student=torch.where(marks, weight_student * ones, ones),
        weight_fake=torch.where(marks, weight_fake * ones, ones),
    )


def _pick(shares: Mapping[Any, float], u: float) -> Any:
    labels = list(shares)
    index = np.searchsorted(np.cumsum(list(shares.values())), u, side="right")
    return labels[min(int(index), len(labels) - 1)]
