"""Jobs: everything that a recipe names, found, built and checked before anything is computed."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sfd import (
    concepts,
    configs,
    content,
    forgetting,
    objectives,
    plugins,
    teachers,
)
from sfd.concepts import AnyConcept, Concept
from sfd.configs import Recipe
from sfd.eval import check_suite, suites
from sfd.forgetting import Rule
from sfd.objectives import Phase
from sfd.teachers import Teacher, lora


@dataclass(frozen=True)
class Job:
    """A recipe with everything that it names found, built and checked."""

    name: str
    recipe: Recipe
    teacher: Teacher
    concepts: list[AnyConcept]
    retained: list[Any]
    rule: Rule
    phases: tuple[Phase, ...]
    suite: suites.AnySuite | None
    sha256: str


def lineage(recipe: Recipe) -> list[str]:
    """Names of the concepts of a recipe and of all those that it starts from, the oldest first.

    Raises ValueError if recipes start from each other.
    """
    chain, starts = [recipe], list[str]()
    while start := chain[-1].start:
        if start in starts:
            way = " -> ".join([*starts, start])
            raise ValueError(f"start: {way}: starts from itself, so there is no beginning")
        starts.append(start)
        chain.append(_started_from(start))
    found: list[str] = []
    for link in reversed(chain):
        found += [name for name in link.concepts if name not in found]
    return found


def _started_from(start: str) -> Recipe:
    """The recipe that a run starts from, by its name, or the one stored in a run folder."""
    folder = Path(start).expanduser()
    if folder.is_dir():
        stored = folder / "recipe.yaml"
        if not (folder / "student.safetensors").is_file() or not stored.is_file():
            raise ValueError(f"start: {start} is not a finished run folder (no student in it)")
        return configs.load(str(stored))
    return configs.load(start)


def prepare(name: str, recipe: Recipe, device: torch.device, teacher: Teacher | None = None) -> Job:
    """Find and check everything that a recipe names. Raises ValueError in one line.

    `teacher` is the recipe's, where it is loaded already.
    """
    teacher = teacher or load_teacher(recipe, device)
    if recipe.teacher.factory:
        teachers.check_released(teacher, recipe.teacher.factory)
    found, retained = _conditions(recipe, teacher)
    plan = recipe.forgetting
    row = plugins.resolve(forgetting.RULES, plan.rule, "rules")
    build_rule = row.build if isinstance(row, forgetting.Row) else row
    guided = teachers.guided(
        teacher.denoiser, teacher.encode([None]), _guidance(recipe, teacher),
        recipe.guidance.interval,
    )  # fmt: skip
    target = replace(teacher, denoiser=guided)
    rule = _built(build_rule, f"forgetting.options ({plan.rule})", plan.options, target, found)
    if plan.rule not in forgetting.RULES:
        rule = forgetting.own(rule, plan.rule)
    if found and int(plan.share * recipe.train.images) < 1:
        raise ValueError(f"forgetting.share is {plan.share:g}, so not one of"
                         f" {recipe.train.images} images would forget: raise it")  # fmt: skip
    # a penalty weighs on retained rows too, so it may forget by these alone
    if found and not plan.weight_student and not rule.penalty:
        raise ValueError("forgetting.weight_student is 0, so the student would learn nothing from"
                         " what forgets: raise it")  # fmt: skip
    phases = phases_of(recipe, teacher.sigma_init, teacher.sigma_range)
    images = recipe.train.images
    late = next((p for p in phases if p.after >= images), None)
    if late:
        raise ValueError(f"objective: {late.name} begins after {late.after} images, and"
                         f" train.images is {images}: it would never learn")  # fmt: skip
    _check_networks(name, recipe, teacher)
    suite = suites.load(recipe.audit.suite, recipe.audit.n) if recipe.audit else None
    if suite:
        check_suite(suite, teacher.labels, found)
    return Job(name, recipe, teacher, found, retained, rule, phases, suite,
               configs.sha256(recipe))  # fmt: skip


def _guidance(recipe: Recipe, teacher: Teacher) -> float | torch.Tensor:
    """The target's k, or that of each class. Raises ValueError on a class that is not there, and
    if the teacher cannot be guided."""
    plan = recipe.guidance
    asked = [plan.target, *(plan.labels or {}).values(), plan.train, plan.fake]
    teachers.check_guided(teacher, *asked)
    if not plan.labels:
        return plan.target
    where = "guidance.labels"
    if not teacher.labels:
        raise ValueError(f"{where}: {teacher.name} is asked in words, remove this key")
    strange = next((name for name in plan.labels if name not in teacher.labels), None)
    if strange is not None:
        near = content.did_you_mean(strange, teacher.labels)
        raise ValueError(f"{where}: {teacher.name} has no class {strange!r}{near}")
    return torch.tensor([plan.labels.get(name, plan.target) for name in teacher.labels])


def _check_networks(name: str, recipe: Recipe, teacher: Teacher) -> None:
    """Raises ValueError if student and fake score cannot be had of this teacher as asked."""
    plan = recipe.train
    if plan.checkpointing:
        teachers.check_checkpointing(teacher.denoiser)
    if plan.lora:
        lora.adapted(teacher.denoiser, **plan.lora.model_dump())
    if plan.init and not teacher.spec:
        raise ValueError(f"{name}: train.init: {teacher.name} does not say how it is built")


def load_teacher(recipe: Recipe, device: torch.device) -> Teacher:
    """The teacher that a recipe names."""
    return teachers.load(**dict(recipe.teacher), device=device)


def phases_of(
    recipe: Recipe, sigma_init: float, sigma_range: tuple[float, float]
) -> tuple[Phase, ...]:
    """The phases of a recipe's objective. Raises ValueError on an option that it does not take."""
    objective = recipe.objective
    entry = plugins.resolve(objectives.TABLE, objective.name, "objectives")
    build = entry.phases if isinstance(entry, objectives.Objective) else entry
    given: dict[str, Any] = {"sigma_init": sigma_init}
    if "sigma_range" in inspect.signature(build).parameters:
        given["sigma_range"] = sigma_range
    phases = _built(build, f"objective ({objective.name})", objective.options(), **given)
    own = objective.name not in objectives.TABLE
    return _own_phases(phases, objective.name) if own else phases


def _own_phases(found: Any, where: str) -> tuple[Phase, ...]:
    """What a user's own objective returned, its losses guarded. Raises ValueError if no phases."""
    if not isinstance(found, tuple | list) or not all(isinstance(p, Phase) for p in found):
        raise ValueError(f"{where}: returned {type(found).__name__}, not a tuple of sfd.Phase")
    with plugins.blamed(where):
        objectives.check_phases(found)
    return tuple(replace(phase, loss=plugins.guarded(phase.loss, where)) for phase in found)


def notes(recipe: Recipe) -> tuple[str, ...]:
    """What the user of a recipe's rule should know before a run. Raises if there is no such."""
    row = plugins.resolve(forgetting.RULES, recipe.forgetting.rule, "rules")
    return row.notes(recipe.forgetting.options) if isinstance(row, forgetting.Row) else ()


def _conditions(recipe: Recipe, teacher: Teacher) -> tuple[list[AnyConcept], list[Any]]:
    """What a recipe forgets, all that it starts from included, and what it retains."""
    if not teacher.labels:
        found = concepts.load_prompts(lineage(recipe))
        asked = concepts.read_prompts(recipe.prompts) if recipe.prompts else []
        asked += [prompt for concept in found for prompt in concept.retain]
        kept = [p for p in dict.fromkeys(asked) if not any(c.mentions(p) for c in found)]
        if not kept:
            raise ValueError("prompts: a text-to-image recipe needs a list of prompts to retain")
        audited = {prompt.text for concept in found for prompt in concept.holdout}
        both = next((p for p in kept if p in audited), None)
        if both is not None:
            raise ValueError(f"prompts: {both!r} is audited with, so it must not be trained with")
        return list(found), kept
    if recipe.prompts:
        raise ValueError(f"prompts: {teacher.name} is asked in classes, remove this key")
    kept = [i for i in range(len(teacher.labels)) if i not in teacher.without]
    classes = concepts.load(lineage(recipe), teacher.labels, kept)
    forgotten = [c.label for c in classes]
    retained: list[Any] = [i for i in kept if i not in forgotten]
    if teacher.without:
        retained.append(None)  # what its untaught labels are asked as
    return list(classes), retained


def _built(
    build: Callable[..., Any], where: str, options: Mapping[str, Any], *args: Any, **given: Any
) -> Any:
    """`build(*args, **given, **options)`, the options checked by its signature."""
    signature = inspect.signature(build)
    try:
        taken = {*signature.bind_partial(*args, **given).arguments, *given}
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None
    return build(*args, **given, **content.options_of(build, options, where, taken=taken))


def described(job: Job) -> dict[str, Any]:
    """What a job forgets and what is drawn instead, as plain data."""
    out: dict[str, Any] = {}
    for concept in job.concepts:
        if isinstance(concept, Concept):
            instead = {job.teacher.labels[k]: round(v, 4) for k, v in concept.override.items()}
            out[concept.name] = {"forget": concept.label_name, "override": instead}
        else:
            pairs = dict(zip(concept.forget, concept.override, strict=True))
            out[concept.name] = {"forget": concept.label_name, "override": pairs}
    return out
