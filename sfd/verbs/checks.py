"""Is content well formed, and does a piece of the user's own keep its contract."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sfd import (
    classifiers,
    concepts,
    configs,
    content,
    forgetting,
    jobs,
    objectives,
    plan,
    plugins,
    seal,
    teachers,
)
from sfd.eval import suites
from sfd.jobs import Job
from sfd.teachers import Teacher, stable_diffusion

CPU = torch.device("cpu")
KINDS = ("configs", "concepts", "eval/suites", "classifiers")
"""What is checked where nothing is named."""


def validate(
    names: Sequence[str], public_key: Path | None = None
) -> tuple[int, list[str], list[str]]:
    """How many files were checked, a line for each that is wrong, and notes on the rest.

    A `.json`, or a run folder with an audit.json, is an audit: by the schema, its hash, its
    verdict, the student beside it, and its signature, which must be of `public_key` where one is
    given.
    """
    files = [path for n in names for path in _files(n)] or [
        path for kind in KINDS for name in content.names(kind) for path in _of(kind, name)
    ]
    if public_key and not any(_is_audit(path) for path in files):
        raise ValueError("--public-key is for an audit: name an audit.json or a run folder")
    wrong, notes = [], []
    loaded: dict[str, Teacher] = {}
    for path in files:
        try:
            audit = _is_audit(path)
            found = (
                _validate_audit(path, public_key)
                if audit
                else _validate(path, loaded, named=bool(names))
            )
            notes += [f"note: {path}: {text}" for text in found]
        except ValueError as error:
            said = str(error)
            wrong.append(said if str(path) in said else f"{path}: {said}")
    return len(files), wrong, notes


def _of(kind: str, name: str) -> list[Path]:
    """The files of a piece of content."""
    found = content.find(kind, name)
    return _cards(found) if found.is_dir() else [found]


def _cards(folder: Path) -> list[Path]:
    return [folder / n for n in ("card.yaml", "train.yaml") if (folder / n).is_file()]


def _files(name: str) -> list[Path]:
    """What a user means: a file, a folder, or the name of content of any kind."""
    path = Path(name)
    if path.is_dir():
        inside = _cards(path) or sorted(path.glob("*.yaml"))
        run = any((path / n).exists() for n in ("audit.json", "student.safetensors"))
        return inside if inside and not run else [path]
    if path.exists() or path.suffix or path.name != name:
        return [path]
    return [p for kind in KINDS if name in content.names(kind) for p in _of(kind, name)] or [path]


def _is_audit(path: Path) -> bool:
    return path.suffix == ".json" or path.is_dir()


def _validate_audit(path: Path, public_key: Path | None) -> tuple[str, ...]:
    file = seal.file_of(path)
    audit, student = seal.checked(file), file.with_name("student.safetensors")
    if not student.is_file():
        notes = ["the model that it is of does not lie beside it, and was not compared"]
    elif content.sha256(student) == audit["subject"]["sha256"]:
        notes = []
    else:
        raise ValueError(f"{file}: is of another model than {student.name} beside it")
    if public_key:
        return (*notes, f"signed by the key {seal.verify(file, public_key)}")
    key = seal.signer(file)
    signed = [f"signed by the key {key}: compare it, or give --public-key"] if key else []
    return (*notes, *signed)


def _validate(path: Path, loaded: dict[str, Teacher], *, named: bool) -> tuple[str, ...]:
    """Check one file, and what it names; a recipe also against the contracts of what it names.

    Returns what its user should know. `loaded` holds the teachers that other recipes named. A
    pipeline is loaded for the user's own recipes and for those asked for by name alone: it takes
    longer than all else together, and the tests name what is shipped.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    data = content.read_yaml(path)
    own = not path.resolve().is_relative_to(content.shipped().resolve())
    if path.name == "card.yaml":
        classifiers.read_card(str(path.parent))
    elif path.name == "train.yaml" or "arch" in data:
        configs.load_judge(str(path))
    elif "forget" in data:
        judge = concepts.read(str(path)).classifier
        return _judge_note(judge) if named or own else ()
    elif "claims" in data:
        suites.load(str(path))
    elif configs.kind_of(path) is not configs.Recipe:
        configs.load_teacher(str(path))
    else:
        return _validate_recipe(path, loaded, pipelines=named or own)
    return ()


def _judge_note(name: str) -> tuple[str, ...]:
    """A concept is well formed without its classifier, which may be trained later."""
    try:
        classifiers.read_card(name)
    except ValueError as error:
        return (f"its classifier: {error}",)
    return ()


def _validate_recipe(path: Path, loaded: dict[str, Teacher], *, pipelines: bool) -> tuple[str, ...]:
    recipe = configs.load(str(path))
    judges = [concepts.read(name).classifier for name in jobs.lineage(recipe)]
    if recipe.prompts:
        concepts.read_prompts(recipe.prompts)
    if recipe.audit:
        suites.load(recipe.audit.suite, recipe.audit.n)
    ref = recipe.teacher
    if ref.name and ref.name not in teachers.embedded():
        near = content.did_you_mean(ref.name, teachers.embedded())
        raise ValueError(f"{path}: no teacher called {ref.name!r}{near}")
    notes = jobs.notes(recipe)
    notes += tuple(note for name in judges for note in _judge_note(name)) if pipelines else ()
    if ref.file or ref.diffusers:
        plugins.resolve(objectives.TABLE, recipe.objective.name, "objectives")
        return notes  # the user's weights need not be here for a recipe to be well formed
    if stable_diffusion.embedded(ref.name) and not pipelines:
        shape = plan.shape_of(ref.model_dump(mode="json"))
        jobs.phases_of(recipe, shape.sigma_init, shape.sigma_range)
        return notes
    key = content.hash_json(ref.model_dump(mode="json"))
    if key not in loaded:
        loaded[key] = jobs.load_teacher(recipe, CPU)
    job = jobs.prepare(str(path), recipe, CPU, loaded[key])
    known = {*objectives.TABLE, *forgetting.RULES}
    if ref.factory or not {recipe.objective.name, recipe.forgetting.rule} <= known:
        check_job(job)  # what is shipped keeps its contract: the tests see to that
    return notes


def check_job(job: Job) -> None:
    """Contract check of a recipe's objective and rule on one small batch.

    Raises ValueError that says what is off: shapes, types, missing gradients, or two calls with the
    same numbers that differ.
    """
    from sfd import train

    numbers = np.arange(4)
    asked = job.recipe.forgetting
    device = torch.device("cpu")
    batch = forgetting.draw_batch(
        numbers,
        seed=0,
        shape=job.teacher.shape,
        retained=job.retained,
        concepts=job.concepts,
        share=asked.share,
        weight_student=1.0,
        weight_fake=1.0,
        device=device,
    )
    nets = {"student": job.teacher.make_student(), "fake": job.teacher.make_student()}
    train.masks_of(job.rule, nets["student"].requires_grad_(True))
    memo: dict[str, torch.Tensor] = {}
    for phase in job.phases:
        where = f"{job.name}: phase {phase.name}"
        for name, net in nets.items():
            net.requires_grad_(name in phase.learns)
        draw = train.draw_for(0, phase.name, numbers, job.teacher.shape, device)
        before = dict(memo)
        losses, _ = train.call(phase, job.teacher, job.rule, nets, batch, draw, memo, {})
        if not losses.isfinite().all():
            raise ValueError(f"{where}: its loss is not finite, by itself or by the rule's target")
        again, _ = train.call(phase, job.teacher, job.rule, nets, batch, draw, before, {})
        if not torch.equal(losses, again):
            raise ValueError(f"{where}: two calls with the same numbers differ")
        losses.sum().backward()
        for name in phase.learns:
            if all(p.grad is None for p in nets[name].parameters()):
                raise ValueError(f"{where}: learns {name}, but no gradient reaches it")
        for name in nets.keys() - set(phase.learns):
            if any(p.grad is not None for p in nets[name].parameters()):
                raise ValueError(f"{where}: a gradient reaches {name}, which it does not learn")
        for net in nets.values():
            net.zero_grad(set_to_none=True)
