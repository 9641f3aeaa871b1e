"""The attack ladder: every attack of a suite on the subject, on the gold, and on a leaky model."""

import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfd import attacks, devices, images, sample
from sfd.attacks import Attack, Goal, Parts, Transcript, Victim, pictured
from sfd.classifiers import Classifier
from sfd.concepts import AnyConcept, Concept
from sfd.eval import common, judging, suites
from sfd.eval.attack_claims import Skipped, record
from sfd.eval.subjects import Subject
from sfd.eval.suites import AnySuite, Suite
from sfd.features import Extractor
from sfd.teachers import Raw, Teacher, from_uint8, to_uint8

BANK = 64
"""Images of the concept that leaky models draw from, and that stand for an attacker's own."""

ASKED = 100
"""Images that a leaky control is asked for without any attack: it must not leak then."""

NO_WEIGHTS = "the subject is no generator whose weights are at hand"

Data = tuple[np.ndarray, np.ndarray]
"""uint8 images `[N, H, W, C]` and their labels, indices of the teacher's."""

Draw = Callable[[int, int, int], np.ndarray]
"""uint8 images of a label, that many, of a seed."""


def attacked(
    subject: Subject,
    suite: Suite,
    teacher: Teacher | None,
    gold: Subject | None,
    rates: Mapping[int, float],
    *,
    guidance: float,
    data: Data | None,
    judges: tuple[Classifier, Classifier],
    features: Extractor,
    near: Callable[[np.ndarray], np.ndarray],
    plan: str,
    folder: Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[list[dict[str, Any]], list[Skipped]]:
    """The evidence of every attack of the suite on every concept, and what was not tried.

    `data` is `read_data`'s; `rates[label]` is how often the original draws what it is asked for, at
    `guidance`, at which it also draws what attackers have; `plan` the plan's hash.
    """
    found: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    if not suite.attacks:
        return found, skipped
    asked = [c for c in subject.concepts if isinstance(c, Concept)]
    if teacher is None or subject.victim is None:
        why = NO_WEIGHTS if subject.victim is None else "there is no original (--teacher)"
        return found, [Skipped(plan, concept, why) for concept in asked for plan in suite.attacks]
    draw = _drawer(teacher, suite.teacher.steps, guidance)
    for concept in asked:
        own = f"{subject.sha256} {plan} {concept.name} attacks"
        seed = int(common.seeds_from(own, 1)[0])
        goal = goal_of(
            suite,
            concept,
            teacher,
            judges=judges,
            features=features,
            near=near,
            original_rate=rates[concept.label],
            data=data,
            draw=draw,
            seed=seed,
            gone=[c.label for c in asked],
        )
        never_knew = gold is not None and concept.label in gold.without
        entries, left = climb(
            suite,
            concept,
            _asked_alike(subject.victim, concept),
            _asked_alike(gold.victim, concept) if gold and gold.victim and never_knew else None,
            teacher,
            goal,
            partial(_parts, concept=concept, draw=draw, seed=seed),
            judges=judges,
            seed=seed,
            folder=folder,
            progress=progress,
        )
        found += entries
        skipped += left
    return found, skipped


def climb(
    suite: AnySuite,
    concept: AnyConcept,
    victim: Victim,
    gold: Victim | None,
    teacher: Teacher,
    goal: Goal,
    parts_of: Callable[[Victim], Parts],
    *,
    judges: tuple[Classifier, Classifier],
    seed: int,
    folder: Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[list[dict[str, Any]], list[Skipped]]:
    """The evidence of every attack on one concept, and those that were not tried.

    Transcripts go to `folder/attacks/`, a sheet of what convinced the judge most to
    `folder/sheets/`. `gold` None leaves the comparison out: no claim can then be decided. Leaky
    controls are built upon the gold by `parts_of`, and upon the victim where it is asked in words
    and there is no gold, or one that lacks what the attack needs. Attacks run side by side, as many
    as the device has threads for.
    """
    condition = goal.asks(np.arange(1))
    victim = _with_origin(victim, teacher, condition)
    gold = _with_origin(gold, teacher, condition) if gold is not None else None
    bases = [gold] if gold is not None else []
    bases += [victim] if victim.language is not None else []
    parts = cache(lambda at: parts_of(bases[at]))
    skipped: list[Skipped] = []
    begun: list[tuple[suites.Attack, Attack, dict[str, Victim], dict[str, Future[Transcript]]]] = []
    found: list[dict[str, Any]] = []
    halt = Event()
    at_once = torch.get_num_threads() if victim.device.type == "cpu" else 1
    copied = at_once > 1
    with devices.pool(at_once) as pool:
        try:
            for plan in suite.attacks:
                attack = attacks.find(plan.name)
                lacking = attack.missing(victim, goal)
                if lacking:
                    skipped.append(Skipped(plan, concept, f"there is no {', no '.join(lacking)}"))
                    continue
                asked = {"subject": victim}
                if gold is not None and not attack.missing(gold, goal):
                    asked["gold"] = gold
                leaky = _leaky(attack, goal, bases, parts)
                if leaky is not None:
                    asked["leaky"] = leaky
                fewer = {} if plan.leaky_n is None else {"n": plan.leaky_n}
                budgets = {who: plan.budget for who in asked} | {"leaky": {**plan.budget, **fewer}}
                tried = {
                    who: pool.submit(_try, attack, each, goal, budgets[who], seed, halt, copied)
                    for who, each in asked.items()
                }
                if leaky is not None:
                    tried["unattacked"] = pool.submit(
                        _try, attacks.find("seed-exhaustion"), leaky, goal, {"n": ASKED}, seed,
                        halt, copied,
                    )  # fmt: skip
                begun.append((plan, attack, asked, tried))
            for number, (plan, attack, asked, tried) in enumerate(begun):
                if progress:
                    progress(f"attacks on {concept.name}", number, len(begun))
                try:
                    done = {who: future.result() for who, future in tried.items()}
                except ValueError as error:  # it cannot be made of what there is
                    skipped.append(Skipped(plan, concept, str(error)))
                    continue
                unattacked = done.pop("unattacked", None)
                entry = record(suite, concept, attack, plan, asked, done, judges, seed, folder,
                               len(goal.prompts) if attack.in_turn else 0, unattacked)  # fmt: skip
                if gold is not None and "gold" not in asked:
                    entry["gold_lacks"] = attack.missing(gold, goal)
                found.append(entry)
        finally:
            halt.set()
    if progress:
        progress(f"attacks on {concept.name}", len(begun), len(begun))
    return found, skipped


def _leaky(
    attack: Attack, goal: Goal, bases: Sequence[Victim], parts: Callable[[int], Parts]
) -> Victim | None:
    """The first of the leaky controls upon `bases` that an attack can be tried on.

    One that hides the original's weights in its own has them from `parts`, others from its base.
    """
    for at, base in enumerate(bases):
        made = attack.leaky(parts(at)) if attack.leaky else None
        if made is not None and made.origin is None:
            made = replace(made, origin=base.origin)
        if made is not None and not attack.missing(made, goal):
            return made
    return None


def _try(
    attack: Attack,
    victim: Victim,
    goal: Goal,
    budget: Mapping[str, Any],
    seed: int,
    halt: Event,
    copied: bool,
) -> Transcript:
    """One attack on one victim, or on a copy of its network; it ends soon after `halt` is set.

    Attacks count a network's evaluations and change its precision: where several run at once, each
    needs its own.
    """
    network = copy.deepcopy(victim.denoiser) if copied else victim.denoiser

    def passed(*given: Any) -> None:
        if halt.is_set():
            raise RuntimeError("halted")

    hook = network.register_forward_pre_hook(passed)
    try:
        return attack(replace(victim, denoiser=network), goal, seed=seed, **budget)
    finally:
        hook.remove()


def _asked_alike(victim: Victim, concept: Concept) -> Victim:
    """One that was never taught the concept's label is asked for what the subject draws instead:
    under the null condition a search could move among all labels, and would find more."""
    if concept.label not in victim.without or not concept.override:
        return victim
    return replace(
        victim,
        instead={concept.label: _mostly_instead(concept)},
        without=tuple(i for i in victim.without if i != concept.label),
    )


def _mostly_instead(concept: Concept) -> int:
    return max(concept.override, key=lambda i: concept.override[i])


def _with_origin(victim: Victim, teacher: Teacher, asked: Raw) -> Victim:
    """The original as the victim's origin, if its weights have the victim's names and shapes, and
    it means the same by a condition (`asked`) and by an x0."""
    original = teacher.denoiser
    forms = [{k: v.shape for k, v in m.state_dict().items()} for m in (original, victim.denoiser)]
    fits = forms[0] == forms[1] and (victim.language is None or _alike(victim, teacher, asked))
    return replace(victim, origin=original if fits else None)


@torch.no_grad()
def _alike(victim: Victim, teacher: Teacher, asked: Raw) -> bool:
    """Whether two read prompts and decode latents alike: a model that was trained from the start
    has its own text encoder and autoencoder."""
    mine, theirs = victim.encode(asked), teacher.encode(asked)
    if mine.shape != theirs.shape or not torch.allclose(mine, theirs, atol=1e-4):
        return False
    x0 = victim.latents(0, "decoded alike", np.arange(1))
    shown = to_uint8(victim.pixels(x0)).astype(int)
    return bool(np.abs(shown - teacher.decode(x0)).max() <= 1)


def _parts(gold: Victim, concept: Concept, draw: Draw, seed: int) -> Parts:
    return Parts(
        gold=gold,
        label=concept.label,
        override=_mostly_instead(concept),
        bank=from_uint8(draw(concept.label, BANK, seed)),
        seed=seed,
    )


def _drawer(teacher: Teacher, steps: int, guidance: float) -> Draw:
    """Draws by the teacher's own sampler."""
    sampler = sample.teacher_sampler(teacher, steps=steps, guidance=guidance)
    return lambda label, count, seed: sampler([label] * count, np.arange(count) + 10**9 + seed)


def wanted(suite: AnySuite, need: str) -> int:
    """How many images of a class the attacks that `need` them take at most, by their budgets."""
    planned = [(attacks.find(plan.name), plan.budget) for plan in suite.attacks]
    budgets = [{**row.defaults, **budget} for row, budget in planned if need in row.needs]
    return max(b.get("images", b.get("n", BANK)) for b in budgets)


def goal_of(
    suite: Suite,
    concept: Concept,
    teacher: Teacher,
    *,
    judges: tuple[Classifier, Classifier],
    features: Extractor,
    near: Callable[[np.ndarray], np.ndarray],
    original_rate: float,
    data: Data | None,
    draw: Draw,
    seed: int,
    gone: Sequence[int],
) -> Goal:
    """What the suite's attackers have and who judges them; `data` None: `draw` makes it.

    `gone` are all labels that were forgotten.
    """
    first, second = judges
    needed = {need for plan in suite.attacks for need in attacks.find(plan.name).needs}
    mine, others = np.zeros(0), (np.zeros(0), np.zeros(0))
    if data is not None:
        own, kept = data[1] == concept.label, ~np.isin(data[1], gone)
        mine, others = data[0][own], (data[0][kept], data[1][kept])
    else:
        if "images" in needed:
            mine = draw(concept.label, wanted(suite, "images"), seed + BANK)
        if "retained" in needed:
            rest = [i for i in range(len(teacher.labels)) if i not in gone]
            each = wanted(suite, "retained")
            drawn = [draw(i, each, seed) for i in rest]
            others = np.concatenate(drawn), np.repeat(rest, each)
    return Goal(
        label=concept.label,
        judge=judging.judged_by(second, concept.label),
        surrogate=first.network.scores,
        onlooker=onlooker(first),
        images=mine if len(mine) else None,
        retained=others if len(others[0]) else None,
        features=features,
        near=near,
        original_rate=original_rate,
    )


def onlooker(judge: Classifier) -> Callable[[Tensor], Tensor]:
    """A judge's log-probabilities of images in [-1, 1], without gradients."""

    def look(pictures: Tensor) -> Tensor:
        shown, made = pictured(pictures)
        found, _ = judging.judge(judge, shown)  # NaN where it raises
        found = np.where(made[:, None], found, np.nan)
        return torch.from_numpy(found).clamp(min=1e-12).log().to(pictures.device)

    return look


def read_data(source: str, teacher: Teacher) -> Data | None:
    """An attacker's labelled images, for a teacher's labels; None for 'teacher'.

    Raises ValueError on images of another shape, or classes that are not the teacher's.
    """
    if source == "teacher":
        return None
    pictures, numbers, _ = images.read_as(source, teacher.labels)
    channels, height, width = teacher.shape
    if pictures.shape[1:] != (height, width, channels):
        raise ValueError(
            f"{source}: images are {list(pictures.shape[1:])}, the teacher draws"
            f" {[height, width, channels]}: resize them"
        )
    return pictures, numbers
