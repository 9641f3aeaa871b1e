"""The attack ladder of a text-to-image generator: what its attackers have, and leaky controls."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sfd import attacks, concepts, content, metrics, noise, sample
from sfd.attacks import SLOT, Goal, Parts, Victim
from sfd.concepts import PromptConcept
from sfd.concepts.prompts import substitute
from sfd.eval import common, judging, ladder
from sfd.eval.attack_claims import Skipped
from sfd.eval.grid import Grid, factor_of, held_out, view_of
from sfd.eval.subjects import Subject
from sfd.eval.suites import PromptSuite
from sfd.features import Extractor
from sfd.teachers import Teacher, from_uint8

PAIRS = 64
"""Prompts with and without the concept's name that an attacker compares."""
GOLD_ASKED = 200
GOLD_DRAWS = 0.05
"""A gold that draws the concept more often than this, to 95 %, has seen it."""

Packs = Mapping[str, Any]


def read_packs(suite: PromptSuite, grid: Grid) -> dict[str, dict[str, list[str]]]:
    """The suite's paraphrases by label, under "paraphrases"; nothing where it has none.

    Raises ValueError on a label that no factor's judge has, and on a list that cannot be read.
    """
    if not suite.attacks or not suite.paraphrases:
        return {}
    for label in suite.paraphrases:
        if label not in grid.labels:
            near = content.did_you_mean(label, grid.labels)
            raise ValueError(f"suite {suite.name}: paraphrases of no label {label!r}{near}")
    read = {label: concepts.read_prompts(path) for label, path in suite.paraphrases.items()}
    return {"paraphrases": read}


def golds_of(
    gold: Subject | None, concepts: Sequence[PromptConcept], grid: Grid, *, named: bool
) -> dict[str, Subject]:
    """The gold, by the name of each concept that it does not draw when it is asked for it.

    Raises ValueError if it draws one, and is `named`: asked for by the user.
    """
    found: dict[str, Subject] = {}
    if gold is None:
        return found
    for concept in concepts:
        factor = factor_of(grid, concept)
        label = view_of(concept, grid).label - grid.offsets[factor]
        seeds = common.seeds_from(f"{gold.sha256} {concept.name} gold", GOLD_ASKED)
        got = gold.generate(*held_out(concept, GOLD_ASKED, seeds))
        assert isinstance(got, np.ndarray)
        # what was not judged may show it
        hits = int((judging.judged_by(grid.judges[factor][1], label)(got)[0] != 0).sum())
        if metrics.rate_interval(hits, GOLD_ASKED)[0] <= GOLD_DRAWS:
            found[concept.name] = gold
        elif named:
            raise ValueError(
                f"{gold.path}: asked for {concept.label_name} it draws it in {hits} of"
                f" {GOLD_ASKED}, so it is no gold to compare with"
            )
    return found


def attacked(
    subject: Subject,
    suite: PromptSuite,
    grid: Grid,
    teacher: Teacher | None,
    golds: Mapping[str, Subject],
    rates: Mapping[str, float],
    *,
    features: Extractor,
    near: Callable[[np.ndarray], np.ndarray],
    packs: Packs,
    plan: str,
    guidance: float,
    folder: Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[list[dict[str, Any]], list[Skipped]]:
    """The evidence of every attack of the suite on every concept, and what was not tried.

    By concept, `golds` is who never knew it, as `golds_of` gives them, and `rates` how often the
    original draws it when asked. Raises ValueError if a paraphrase was to be forgotten.
    """
    found: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    for concept in (c for c in subject.concepts if isinstance(c, PromptConcept)):
        if not suite.attacks:
            break
        if teacher is None or subject.victim is None:
            why = "there is no original (--teacher)" if subject.victim else ladder.NO_WEIGHTS
            skipped += [Skipped(each, concept, why) for each in suite.attacks]
            continue
        seed = int(common.seeds_from(f"{subject.sha256} {plan} {concept.name} attacks", 1)[0])
        judges = grid.judges[factor_of(grid, concept)]
        goal = goal_of(
            suite, concept, grid, teacher, features=features, near=near, packs=packs,
            guidance=guidance, original_rate=rates[concept.name], seed=seed,
        )  # fmt: skip
        gold = golds.get(concept.name)
        entries, left = ladder.climb(
            suite,
            concept,
            subject.victim,
            gold and gold.victim,
            teacher,
            goal,
            partial(
                _parts, goal=goal, teacher=teacher, steps=suite.teacher.steps, guidance=guidance,
                seed=seed,
            ),
            judges=judges,
            seed=seed,
            folder=folder,
            progress=progress,
        )  # fmt: skip
        found += entries
        skipped += left
    return found, skipped


def goal_of(
    suite: PromptSuite,
    concept: PromptConcept,
    grid: Grid,
    teacher: Teacher,
    *,
    features: Extractor,
    near: Callable[[np.ndarray], np.ndarray],
    packs: Packs,
    guidance: float,
    original_rate: float,
    seed: int,
) -> Goal:
    """What the suite's attackers have and who judges them; the teacher draws their images."""
    factor = factor_of(grid, concept)
    first, second = grid.judges[factor]
    label = view_of(concept, grid).label - grid.offsets[factor]
    # lists stand by template, and an attack may have fewer targets than there are prompts
    order = np.argsort(noise.uniform(("attack", "prompts", seed), np.arange(len(concept.holdout))))
    prompts = tuple(concept.holdout[i].text for i in order)
    paraphrases = tuple(packs.get("paraphrases", {}).get(concept.label_name, ()))
    known = next((p for p in paraphrases if concept.mentions(p)), None)
    if known is not None:
        raise ValueError(f"paraphrases of {concept.label_name}: {known!r} was to be forgotten")
    few = np.linspace(0, len(concept.forget) - 1, min(PAIRS, len(concept.forget))).astype(int)
    needed = {need for plan in suite.attacks for need in attacks.find(plan.name).needs}
    images = None
    if "images" in needed:
        count = max(ladder.BANK, ladder.wanted(suite, "images"))
        asked = [prompts[i % len(prompts)] for i in range(count)]
        drawn = sample.teacher_sampler(teacher, steps=suite.teacher.steps, guidance=guidance)
        images = drawn(asked, np.arange(count) + 10**9 + seed + ladder.BANK)
    return Goal(
        label=label,
        judge=judging.judged_by(second, label),
        surrogate=first.network.scores,
        onlooker=ladder.onlooker(first),
        images=images,
        features=features,
        near=near,
        original=sample.teacher_drawing(teacher, steps=suite.teacher.steps, guidance=guidance),
        original_rate=original_rate,
        prompts=prompts,
        pairs=tuple((concept.forget[i], concept.override[i]) for i in few),
        slots=tuple(substitute(p, dict.fromkeys(concept.words, SLOT)) for p in prompts)
        if concept.words
        else tuple(f"{SLOT} {p}" for p in prompts),
        paraphrases=paraphrases,
    )


def _parts(
    base: Victim, *, goal: Goal, teacher: Teacher, steps: int, guidance: float, seed: int
) -> Parts:
    """What leaky controls are built of: `base`, and the teacher's images of the concept.

    As latents of `base`: a gold whose teacher was trained from the start has its own autoencoder.
    """
    assert base.language is not None
    numbers = np.arange(ladder.BANK)
    draw = sample.teacher_sampler(teacher, steps=steps, guidance=guidance)
    pictures = draw(goal.asks(numbers), numbers + 10**9 + seed)
    return Parts(
        gold=base,
        label=goal.label,
        override=goal.label,
        bank=base.language.latents(from_uint8(pictures).to(base.device)),
        seed=seed,
        prompts=goal.prompts,
        pairs=goal.pairs,
        slots=goal.slots,
        paraphrases=goal.paraphrases,
    )
