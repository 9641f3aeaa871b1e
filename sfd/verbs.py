"""The verbs beside the main job: audits of files, controls, references, listings, checks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfd import (
    attacks,
    checkpoints,
    classifiers,
    concepts,
    configs,
    content,
    features,
    forgetting,
    images,
    jobs,
    objectives,
    plan,
    plugins,
    teachers,
)
from sfd.eval import planning, suites
from sfd.eval.subjects import (
    Subject,
    concepts_of,
    of_noise,
    of_pipeline,
    of_student,
    of_teacher,
)
from sfd.jobs import Job, Progress, Say
from sfd.sample import Student
from sfd.teachers import Teacher


def audit_file(
    path: Path,
    suite: str | None,
    folder: Path,
    *,
    device: torch.device,
    progress: Progress,
    gold: Path | None = None,
    attack_images: str | None = None,
    steps: int = 1,
    guidance: float = 0.0,
) -> dict[str, Any]:
    """Audit a run folder, a student's file or an exported pipeline by a suite (the run's own).

    `gold` is what attacks are compared with (default: the run of `<teacher>-gold`, if it is there),
    `attack_images` an attacker's labelled images instead of the suite's. A pipeline is sampled by
    its own scheduler in `steps` with `guidance`.
    """
    if (path / "model_index.json").is_file():
        card = checkpoints.read_json(path / "sfd.json")
        subject = of_pipeline(
            path, concepts_of(card), device=str(device), steps=steps, guidance=guidance
        )
    else:
        if steps != 1 or guidance:
            raise ValueError(f"{path}: a student makes one step; steps and guidance are for a"
                             " pipeline folder (`sfd export diffusers`)")  # fmt: skip
        card = _card_of(path)
        subject = of_student(path, str(device))
    stored = path / "recipe.yaml"
    plan: Mapping[str, int] = {}
    if suite is None:
        recipe = configs.load(str(stored)) if stored.is_file() else None
        if recipe is None or recipe.audit is None:
            raise ValueError(f"{path}: names no suite; say --suite NAME")
        suite, plan = recipe.audit.suite, recipe.audit.n
    teacher = _teacher_of(path, card, device)
    chosen = suites.load(suite, plan)
    attacked = isinstance(chosen, suites.Suite) and chosen.attacks
    if (gold or attack_images) and not attacked:
        raise ValueError(
            f"suite {chosen.name} has no attacks: leave --gold and --attack-images out"
        )
    if attack_images is not None:
        chosen = chosen.model_copy(update={"attack_images": attack_images})
    return jobs.audit_subject(
        subject, chosen, teacher, folder, device=device, progress=progress, gold=gold
    )


def _card_of(path: Path) -> dict[str, Any]:
    """The card of a student's file or run folder."""
    file = path / "student.safetensors" if path.is_dir() else path
    return checkpoints.read_card(checkpoints.read_meta(file), str(file))


def _teacher_of(path: Path, card: Mapping[str, Any], device: torch.device) -> Teacher:
    """The original teacher of a student, as its card names it; its weights must be the same."""
    ref = dict(card["teacher"])
    expected = ref.pop("sha256")
    teacher = teachers.load(**ref, device=device)
    if teacher.sha256 != expected:
        raise ValueError(
            f"{path}: was distilled from a teacher {expected[:12]}..., the one here is"
            f" {teacher.sha256[:12]}...: put the original back, nothing can stand in for it"
        )
    return teacher


# --- samples -------------------------------------------------------------------------------------


def sample_labels(student: Student, labels: str, out: Path, *, n: int, seed: int) -> int:
    """Draw `n` images of each of the comma-separated labels (or 'all'); how many in all."""
    names = student.labels
    asked = names if labels == "all" else labels.split(",")
    for name in asked:
        if name not in names:
            raise ValueError(f"no label {name!r}{content.did_you_mean(name, names)}")
    drawn = []
    for name in asked:
        seeds = np.arange(seed, seed + n)
        pictures = student.sample([names.index(name)] * n, seeds)
        for number, picture in zip(seeds, pictures, strict=True):
            folder = out / name.replace("/", "_")
            content.write_atomic(folder / f"{number:08d}.png", images.png_bytes(picture))
        drawn.append(pictures[:16])
    _write_sheet(drawn, out, n)
    return len(asked) * n


def prompts_of(given: Sequence[str], source: str | None) -> list[str]:
    """Prompts from the command line and from a list. Raises ValueError if there are none."""
    asked = [*given, *(concepts.read_prompts(source) if source else [])]
    if not asked:
        raise ValueError("this student is asked in words: give --prompt TEXT or --prompts FILE")
    return asked


def sample_prompts(
    student: Student, prompts: Sequence[str], out: Path, *, n: int, seed: int
) -> int:
    """Draw `n` images of each prompt, numbered, with a metadata.jsonl; how many in all."""
    drawn, lines = [], []
    for row, prompt in enumerate(prompts):
        seeds = np.arange(seed, seed + n)
        pictures = student.sample([prompt] * n, seeds)
        for number, picture in zip(seeds, pictures, strict=True):
            name = f"{row:05d}-{number:08d}.png"
            content.write_atomic(out / name, images.png_bytes(picture))
            lines.append({"file_name": name, "text": prompt, "seed": int(number)})
        drawn.append(pictures[:16])
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    content.write_atomic(out / "metadata.jsonl", text)
    _write_sheet(drawn, out, n)
    return len(lines)


def _write_sheet(drawn: Sequence[np.ndarray], out: Path, n: int) -> None:
    sheet = images.sheet(np.concatenate(drawn), columns=min(n, 16), scale=2)
    content.write_atomic(out / "sheet.png", images.png_bytes(sheet))


# --- plans ---------------------------------------------------------------------------------------


def plan_run(recipe: configs.Recipe, *, cuda: bool = False) -> dict[str, int]:
    """Bytes by role that a recipe's training holds; nothing is loaded. See `plan.memory`."""
    shape = plan.shape_of(recipe.teacher.model_dump())
    numbers = recipe.train
    return plan.memory(
        shape,
        jobs.phases_of(recipe, shape.sigma_init),
        batch=numbers.batch,
        accumulate=numbers.accumulate,
        precision=numbers.precision,
        guidance=recipe.guidance.model_dump(),
        adapters=numbers.lora.model_dump() if numbers.lora else None,
        checkpointing=numbers.checkpointing,
        fused=cuda,
    )


# --- controls ------------------------------------------------------------------------------------


def run_controls(
    name: str, out: Path | None, *, device: torch.device, say: Say, progress: Progress
) -> list[dict[str, Any]]:
    """Audit models whose verdicts are known, for a recipe's concepts and suite.

    The original teacher must FAIL; a one-step student of the gold twin (recipe
    `<teacher>-gold`, trained without the class) must PASS its concept's claims; noise must fail
    validity. Where the suite attacks, each leaky control must FAIL the claim on its attack. Trains
    the gold student first where it is not there.
    """
    recipe = configs.load(name)
    job = jobs.prepare(name, recipe, device)
    if job.suite is None or not job.concepts:
        raise ValueError(f"{name}: names no suite or no concept, so no answer is known")
    root = out or Path("runs") / f"{Path(name).stem}-controls"
    rows = []

    def audited(subject: Subject, what: str, gold: Path | None = None) -> dict[str, Any]:
        say(f"auditing {what}")
        assert job.suite
        return jobs.audit_subject(
            subject, job.suite, job.teacher, root / what, device=device, progress=progress,
            gold=gold,
        )  # fmt: skip

    suite = job.suite
    steps = suite.teacher_steps if isinstance(suite, suites.Suite) else suite.teacher.steps
    original = audited(of_teacher(job.teacher, job.concepts, steps), "original")
    rows.append(_row("original", "FAIL", _status(original, "direct")))
    height, width, channels = job.teacher.decode(torch.zeros(1, *job.teacher.shape))[0].shape
    shape = (channels, height, width)
    noise = audited(of_noise(job.teacher.labels, job.concepts, shape), "noise")
    rows.append(_row("noise", "FAIL", _status(noise, "validity")))
    gold = _gold(job, device=device, say=say, progress=progress)
    if gold is None:
        say(f"no gold twin of {job.teacher.name} without {[c.label_name for c in job.concepts]}")
    else:
        result = audited(of_student(gold, str(device), job.concepts), "gold", gold)
        got = [_status(result, kind) for kind in ("direct", "validity")]
        rows.append(_row("gold", "PASS", next((g for g in got if g != "PASS"), "PASS")))
        for entry in result["evidence"]["attacks"]:
            leaky = entry["controls"].get("leaky", {})
            if leaky.get("status"):
                rows.append(_row(f"leaky to {entry['name']}", "FAIL", leaky["status"]))
    content.write_json(root / "controls.json", rows)
    for row in rows:
        say(f"{row['model']}: expected {row['expected']}, got {row['got']}")
    return rows


def _row(model: str, expected: str, got: str) -> dict[str, Any]:
    return {"model": model, "expected": expected, "got": got}


def _status(result: Mapping[str, Any], kind: str) -> str:
    """The worst status of the claims of a kind."""
    order = ["PASS", "INCONCLUSIVE", "FAIL"]
    found = [c["status"] for c in result["claims"] if c["id"].split("<")[0] == kind]
    return max(found, key=order.index)


def _gold(job: Job, *, device: torch.device, say: Say, progress: Progress) -> Path | None:
    """The run folder of the gold twin's student, trained where it is not there yet."""
    recipe_name = f"{job.teacher.name}-gold"
    if recipe_name not in content.names("configs"):
        return None
    recipe = configs.load(recipe_name)
    gold = jobs.prepare(recipe_name, recipe, device)
    if set(gold.teacher.without) != {
        c.label for c in job.concepts if isinstance(c, concepts.Concept)
    }:
        return None
    folder = jobs.folder_of(recipe_name, recipe)
    jobs.train_job(gold, folder, device=device, force=False, say=say, progress=progress)
    return folder


# --- plans of audits -----------------------------------------------------------------------------


def plan_audit(name: str) -> list[planning.Row]:
    """How many samples each rate claim of a suite, or of a recipe's audit, takes; nothing is drawn.

    A suite is planned for every concept that its judge is named for. Raises ValueError where there
    is none, or where a name is both a suite's and a recipe's.
    """
    kinds = [kind for kind in ("configs", "eval/suites") if name in content.names(kind)]
    if len(kinds) > 1:
        raise ValueError(f"{name}: both a recipe and a suite are called that; give a file's path")
    kind = kinds[0] if kinds else "eval/suites"
    path = content.find(kind, name)
    if "claims" in content.read_yaml(path):
        suite = suites.load(str(path))
        if isinstance(suite, suites.PromptSuite):
            raise ValueError(_NO_PLAN.format(name))
        known = {n: concepts.read(n) for n in content.names("concepts")}
        names = [n for n, file in known.items() if file.classifier == suite.judge]
    else:
        recipe = configs.load(str(path))
        if recipe.audit is None:
            raise ValueError(f"{name}: names no suite to plan; add audit: {{suite: NAME}}")
        suite, names = suites.load(recipe.audit.suite, recipe.audit.n), jobs.lineage(recipe)
    if isinstance(suite, suites.PromptSuite):
        raise ValueError(_NO_PLAN.format(name))
    if not names:
        raise ValueError(f"{name}: no concept here is judged by {suite.judge}; plan a recipe")
    card = classifiers.read_card(suite.judge)
    # one by one: concepts that exclude each other in a run can be planned side by side
    found = [c for n in names for c in concepts.load([n], card.labels)]
    return planning.plan(suite, card, found)


_NO_PLAN = (
    "{}: plans are for suites of classes; over prompts, a rate below x needs at least 3.7/x"
    " held-out prompts without a hit"
)


# --- references ----------------------------------------------------------------------------------


def write_reference(
    data: str,
    out: Path,
    *,
    extractor: str,
    floor: str | None,
    names: list[str] | None,
    device: torch.device,
) -> Path:
    """Write the reference of labelled real images, with the floor that `floor`'s images show."""
    pictures, labels, found = images.read_labelled(data)
    names = _named(data, names or found, found)
    extract = features.load(extractor, str(device))
    other = None
    if floor is not None:
        more, more_labels, more_found = images.read_labelled(floor)
        _named(floor, names, more_found)
        other = (extract(more), more_labels)
    packed = suites.reference_bytes(
        extract(pictures),
        labels,
        names,
        extractor=extractor,
        extractor_sha256=features.sha256(extractor),
        other=other,
        about=f"{len(pictures)} images of {Path(data).name}",
    )
    file = out if out.suffix == ".npz" else out.with_suffix(".npz")
    content.write_atomic(file, packed)
    return file


def _named(data: str, names: list[str], found: list[str]) -> list[str]:
    if len(names) != len(found):
        raise ValueError(f"{data}: has {len(found)} classes, {len(names)} names were given")
    return names


# --- listings and checks -------------------------------------------------------------------------


def listing() -> dict[str, list[str]]:
    """Names of everything that a recipe can name."""
    recipes = content.names("configs")
    kinds = {n: configs.kind_of(content.find("configs", n)) for n in recipes}
    return {
        "recipes": [n for n in recipes if kinds[n] is configs.Recipe],
        "teacher recipes": [n for n in recipes if kinds[n] is not configs.Recipe],
        "concepts": content.names("concepts"),
        "classifiers": content.names("classifiers"),
        "suites": content.names("eval/suites"),
        "teachers": teachers.embedded(),
        "objectives": sorted(objectives.TABLE),
        "rules": sorted(forgetting.RULES),
        "attacks": sorted(attacks.TABLE),
    }


def validate(names: Sequence[str]) -> tuple[int, list[str], list[str]]:
    """How many content files were checked, a line for each that is wrong, and notes on the rest."""
    files = [Path(n) for n in names] or [
        path
        for kind in ("configs", "concepts", "eval/suites")
        for name in content.names(kind)
        for path in [content.find(kind, name)]
    ] + [classifiers.folder_of(name) / "card.yaml" for name in content.names("classifiers")]
    wrong, notes = [], []
    for path in files:
        try:
            notes += [f"note: {path}: {text}" for text in _validate(path)]
        except ValueError as error:
            wrong.append(str(error))
    return len(files), wrong, notes


def _validate(path: Path) -> tuple[str, ...]:
    """Check one file, and what it names; a recipe also against the contracts of what it names.

    Returns what its user should know.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    data = content.read_yaml(path)
    if path.name == "card.yaml":
        classifiers.read_card(str(path.parent))
    elif "forget" in data:
        concepts.read(str(path))
    elif "claims" in data:
        suites.load(str(path))
    elif configs.kind_of(path) is not configs.Recipe:
        configs.load_teacher(str(path))
    else:
        return _validate_recipe(path)
    return ()


def _validate_recipe(path: Path) -> tuple[str, ...]:
    recipe = configs.load(str(path))
    for name in jobs.lineage(recipe):
        concepts.read(name)
    if recipe.prompts:
        concepts.read_prompts(recipe.prompts)
    if recipe.audit:
        suites.load(recipe.audit.suite, recipe.audit.n)
    ref = recipe.teacher
    if ref.name and ref.name not in teachers.embedded():
        near = content.did_you_mean(ref.name, teachers.embedded())
        raise ValueError(f"{path}: no teacher called {ref.name!r}{near}")
    notes = jobs.notes(recipe)
    if ref.file or ref.diffusers:
        plugins.resolve(objectives.TABLE, recipe.objective.name, "objectives")
        return notes  # the user's weights need not be here for a recipe to be well formed
    job = jobs.prepare(str(path), recipe, torch.device("cpu"))
    check_job(job)
    return notes


def check_job(job: Job) -> None:
    """Contract check of a recipe's objective and rule on one small batch.

    Raises ValueError that says what is off: shapes, types, missing gradients, or two calls with the
    same numbers that differ.
    """
    from sfd import train

    numbers = np.arange(4)
    plan = job.recipe.forgetting
    device = torch.device("cpu")
    batch = forgetting.draw_batch(
        numbers,
        seed=0,
        shape=job.teacher.shape,
        retained=job.retained,
        concepts=job.concepts,
        share=plan.share,
        weight_student=1.0,
        weight_fake=1.0,
        device=device,
    )
    nets = {"student": job.teacher.make_student(), "fake": job.teacher.make_student()}
    memo: dict[str, torch.Tensor] = {}
    for phase in job.phases:
        where = f"{job.name}: phase {phase.name}"
        for name, net in nets.items():
            net.requires_grad_(name in phase.learns)
        draw = train.draw_for(0, phase.name, numbers, job.teacher.shape, device)
        before = dict(memo)
        losses, _ = train.call(phase, job.teacher, job.rule, nets, batch, draw, memo)
        again, _ = train.call(phase, job.teacher, job.rule, nets, batch, draw, before)
        if losses.shape != (4,) or losses.dtype != torch.float32:
            raise ValueError(
                f"{where}: its loss is {losses.dtype} {list(losses.shape)}, the contract wants"
                " float32 [B], one value a row"
            )
        if not torch.equal(losses, again):
            raise ValueError(f"{where}: two calls with the same numbers differ")
        if not losses.requires_grad:
            raise ValueError(f"{where}: its loss has no gradient")
        losses.sum().backward()
        for name in phase.learns:
            if all(p.grad is None for p in nets[name].parameters()):
                raise ValueError(f"{where}: learns {name}, but no gradient reaches it")
        for name in nets.keys() - set(phase.learns):
            if any(p.grad is not None for p in nets[name].parameters()):
                raise ValueError(f"{where}: a gradient reaches {name}, which it does not learn")
        for net in nets.values():
            net.zero_grad(set_to_none=True)


def citations(name: str) -> list[str]:
    """Whom to cite: for a recipe's pieces, or for every row of every table."""
    if name:
        recipe = configs.load(name)
        rule = forgetting.RULES.get(recipe.forgetting.rule)
        objective = objectives.TABLE.get(recipe.objective.name)
        rows = [rule, objective]
    else:
        rows = [*forgetting.RULES.values(), *objectives.TABLE.values()]
    lines = [row.citation for row in rows if row is not None]
    return list(dict.fromkeys([*lines, "Karras et al., EDM, arXiv 2206.00364"]))
