"""Runs of a job: it trains into a folder, and what came of it is audited."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sfd import (
    checkpoints,
    configs,
    content,
    provenance,
    rivals,
    seal,
    state,
    teachers,
    train,
)
from sfd.eval import Subject, audit, suites
from sfd.eval.common import judged
from sfd.eval.subjects import of_student
from sfd.jobs import Job, prepare
from sfd.teachers import Teacher, lora
from sfd.watch import Watch

LOOKS = (1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1)
"""When a run is looked at, as shares of its images."""

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]


def train_job(
    job: Job, folder: Path, *, device: torch.device, force: bool, say: Say, progress: Progress
) -> None:
    """Train a job into `folder`, resuming what is there; does nothing if it is finished.

    A job that starts from another recipe trains that one first, in its own folder.
    """
    student_file = folder / "student.safetensors"
    if not force:
        _claim_folder(job, folder, force=False)
        finished = student_file.is_file()
        state.barrier()  # before the first of the processes writes another
        if finished:
            say(f"{student_file}: trained already")
            return
    start = _start_folder(job, device=device, say=say, progress=progress)
    student, fake = _networks(job)
    origin: dict[str, str] = {}
    if start is not None:
        if start.resolve() == folder.resolve():
            raise ValueError(f"start: {folder} is where this run is to go: give it out=FOLDER")
        _load_start(job, start, student, fake)
        origin = {"start_sha256": content.sha256(start / "student.safetensors")}
    if force:  # nothing is deleted before all that the run needs is at hand
        _claim_folder(job, folder, force=True)
    for module in (job.teacher.denoiser, student, fake):
        teachers.set_precision(module, job.recipe.train.precision)
    numbers, plan = job.recipe.train, job.recipe.forgetting
    whole = _whole(job)
    card = _card(job) | origin  # of the code as it is now, whatever is edited while it trains
    watch = Watch(
        job.teacher, job.concepts, job.retained, job.suite, numbers.watch, folder, str(device)
    )
    average, fake = train.train(
        job.teacher,
        job.rule,
        job.phases,
        student=student,
        fake=fake,
        retained=job.retained,
        concepts=job.concepts,
        guidance_train=job.recipe.guidance.train,
        guidance_fake=job.recipe.guidance.fake,
        share=plan.share,
        weight_student=plan.weight_student,
        weight_fake=plan.weight_fake,
        total=numbers.images,
        batch=numbers.batch,
        accumulate=numbers.accumulate,
        lr_student=numbers.lr_student,
        lr_fake=numbers.lr_fake,
        optimizer_student=numbers.optimizer_student,
        warmup=numbers.warmup,
        decay_from=numbers.decay_from,
        ema_images=numbers.ema_images,
        seed=numbers.seed,
        folder=folder,
        identity=_identity(job) | origin,
        tick=numbers.tick,
        checkpoint=numbers.checkpoint,
        snapshots=[max(numbers.batch, round(share * numbers.images)) for share in LOOKS],
        on_snapshot=watch.look,
        on_tick=lambda line: progress("train", int(line["nimg"]), whole),
        device=device,
    )
    if state.world()[0] == 0:
        files = {"teacher": job.teacher.sha256, "recipe": job.sha256} | origin
        record = provenance.collect(str(device), seed=numbers.seed, sha256=files)
        content.write_json(folder / "provenance.json", record)
        checkpoints.write_model(student_file, lora.merged(average), card, half=False)
        say(f"{student_file}: trained on {whole:,} generated images")
    state.barrier()  # what starts from it finds it written


def _networks(job: Job) -> tuple[nn.Module, nn.Module]:
    """Student and fake score as they start from the teacher; only what is to learn does."""
    plan = job.recipe.train
    if plan.checkpointing:
        teachers.checkpoint_activations(job.teacher.denoiser)
    if plan.lora is None:
        fake = job.teacher.make_student()
        student = _fresh(job) if plan.init else job.teacher.make_student()
        return student.requires_grad_(True), fake.requires_grad_(True)
    options = plan.lora.model_dump()
    student, fake = (
        lora.adapted(job.teacher.denoiser, seed=seed, **options)
        for seed in (plan.seed, plan.seed + 1)
    )
    return student, fake


def _fresh(job: Job) -> nn.Module:
    """A student of the teacher's architecture with weights of the recipe's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(job.recipe.train.seed)
        student = teachers.build_denoiser(job.teacher.spec)
    if job.recipe.train.checkpointing:
        teachers.checkpoint_activations(student)
    return student


def _identity(job: Job) -> dict[str, Any]:
    """What must not change between the parts of a resumed run."""
    return {"recipe": job.sha256, "teacher": job.teacher.sha256,
            "concepts": [asdict(c) for c in job.concepts],
            "retained": content.hash_json(job.retained),
            "code": configs.own_code(job.recipe)}  # fmt: skip


def _whole(job: Job) -> int:
    """How many images a run trains on: batches are whole."""
    plan = job.recipe.train
    return -(-plan.images // plan.batch) * plan.batch


def _card(job: Job) -> dict[str, Any]:
    teacher = job.teacher
    return {
        "schema": "sfd/model/1",
        "role": "student",
        "name": Path(job.name).stem,
        "spec": teacher.spec,
        "shape": list(teacher.shape),
        "labels": list(teacher.labels),
        "without": list(teacher.without),
        "sigma_range": list(teacher.sigma_range),
        "sigma_init": teacher.sigma_init,
        "concepts": [asdict(c) for c in job.concepts],
        "teacher": {
            **job.recipe.teacher.model_dump(mode="json", exclude_none=True),
            "sha256": teacher.sha256,
        },
        "recipe_sha256": job.sha256,
        "identity_sha256": content.hash_json(_identity(job)),
        "family_sha256": configs.family_sha256(job.recipe),
        "seed": job.recipe.train.seed,
        "images": _whole(job),
    }


def _claim_folder(job: Job, folder: Path, force: bool) -> None:
    """Make the folder this recipe's. Raises ValueError if it is another's, or cannot be written.

    A folder in which nothing was trained yet is nobody's. What does not shape the weights, as the
    suite, may be new: it is stored, and later audits go by it.
    """
    stored, student = folder / "recipe.yaml", folder / "student.safetensors"
    another = ValueError(
        f"{folder}: holds a run of another recipe; give this one out=FOLDER, or start over with"
        " --force"
    )
    trained = student.is_file() or (folder / "state").exists()
    if stored.exists() and not trained and not _is_stored(stored):
        raise ValueError(f"{stored}: is a recipe that no run stored, and one here would overwrite"
                         " it: give out=FOLDER")  # fmt: skip
    state.claim(folder, force=force)
    state.barrier()
    if student.is_file():
        _, meta = checkpoints.read_tensors(student)
        card = checkpoints.read_card(meta, str(student))
        if card.get("recipe_sha256") != job.sha256:
            raise another
        if not _is_as_it_was(job, card):
            raise ValueError(
                f"{folder}: was trained before {CHANGED} that the recipe names was changed; give"
                " this one out=FOLDER, or start over with --force"
            )
        _check_start(job, card, folder)
    if stored.exists() and trained and configs.sha256(configs.load(str(stored))) != job.sha256:
        raise another
    if state.world()[0] == 0:
        text = content.dump_yaml(configs.plain(job.recipe))
        content.write_atomic(stored, text)


CHANGED = "a concept, a list of prompts or a file of code"


def _is_as_it_was(job: Job, card: Mapping[str, Any]) -> bool:
    """Whether all that a job's recipe names is what a finished run of it was trained by."""
    now = content.hash_json(_identity(job))
    return card.get("identity_sha256", now) == now


def _check_start(job: Job, card: Mapping[str, Any], folder: Path) -> None:
    """Raises ValueError if what a finished run started from has been trained anew since."""
    start, before = job.recipe.start, card.get("start_sha256")
    if not start or not before:
        return
    there = _folder_of_start(start) / "student.safetensors"
    if there.is_file() and content.sha256(there) != before:
        raise ValueError(
            f"{folder}: started from another student than {there} is now; give this one"
            " out=FOLDER, or start over with --force"
        )


def _folder_of_start(start: str) -> Path:
    folder = Path(start).expanduser()
    return folder if folder.is_dir() else configs.folder_of(start, configs.load(start))


def _is_stored(recipe: Path) -> bool:
    """Whether a recipe's file is as a run stores it, to the letter."""
    try:
        return recipe.read_text() == content.dump_yaml(configs.plain(configs.load(str(recipe))))
    except (ValueError, OSError):
        return False


def _start_folder(job: Job, *, device: torch.device, say: Say, progress: Progress) -> Path | None:
    """The finished run that this job starts from, made first if it is a recipe not yet run."""
    start = job.recipe.start
    if not start:
        return None
    folder = _folder_of_start(start)
    if Path(start).expanduser().is_dir():
        return folder
    recipe = configs.load(start)
    student = folder / "student.safetensors"
    if student.is_file():
        same = job.teacher if recipe.teacher == job.recipe.teacher else None
        first = prepare(start, recipe, device, same)
        card = checkpoints.read_card(checkpoints.read_meta(student), str(student))
        again = f"train that one again (--force), or mean this run by start={folder}"
        if card.get("recipe_sha256") != first.sha256:
            raise ValueError(f"{folder}: holds a run of another recipe than {start}: {again}")
        if not _is_as_it_was(first, card):
            raise ValueError(f"{folder}: was trained before {CHANGED} of {start} was changed:"
                             f" {again}")  # fmt: skip
        _check_start(first, card, folder)
    else:
        say(f"{job.name} starts from {start}: training that first, in {folder}")
        first = prepare(start, recipe, device)
        train_job(first, folder, device=device, force=False, say=say, progress=progress)
    return folder


def _load_start(job: Job, folder: Path, student: nn.Module, fake: nn.Module) -> None:
    """Start from another run's student and fake score; the target stays the original teacher."""
    file = folder / "student.safetensors"
    tensors, meta = checkpoints.read_tensors(file)
    card = checkpoints.read_card(meta, str(file))
    if card["teacher"]["sha256"] != job.teacher.sha256:
        raise ValueError(
            f"start: {folder} was distilled from another teacher than {job.name} names"
        )
    before = configs.load(str(folder / "recipe.yaml")).train.lora
    if before != job.recipe.train.lora:
        said = "without train.lora" if before is None else f"with train.lora {before.model_dump()}"
        raise ValueError(f"start: {folder} was trained {said}, and {job.name} is not: make the two"
                         " alike")  # fmt: skip
    path = folder / "state" / "state.safetensors"
    if not path.is_file():
        raise ValueError(
            f"start: {path} is gone; its fake score is needed, so run that recipe again"
        )
    held, _ = checkpoints.read_tensors(path)

    def part(name: str) -> dict[str, Any]:
        return {k.removeprefix(name): v for k, v in held.items() if k.startswith(name)}

    if job.recipe.train.lora is None:
        checkpoints.load_strictly(student, tensors, str(file))
        checkpoints.load_strictly(fake, part("fake."), str(path))
        return
    for module, name in ((student, "ema."), (fake, "fake.")):
        learned = {k: p for k, p in module.named_parameters() if p.requires_grad}
        checkpoints.fill(learned, part(name), f"{path} ({name[:-1]})")


# --- the whole -----------------------------------------------------------------------------------


def run_job(
    job: Job, folder: Path, *, device: torch.device, force: bool, say: Say, progress: Progress
) -> dict[str, Any] | None:
    """Train, then audit: audit.json's content, or None where there is nothing to judge by.

    What is finished is not done again.
    """
    train_job(job, folder, device=device, force=force, say=say, progress=progress)
    if state.world()[0]:
        return None
    return audit_job(job, folder, device=device, say=say, progress=progress)


def audit_job(
    job: Job, folder: Path, *, device: torch.device, say: Say, progress: Progress
) -> dict[str, Any] | None:
    """Audit what a job has trained: audit.json's content, or None where there is nothing to judge
    by. What is judged already is not judged again."""
    if job.suite is None:
        say("no claims to judge: the recipe names no audit suite")
        return None
    subject = of_student(folder, str(device))
    if done := judged(folder, subject, job.suite, job.teacher, say):
        say(f"{folder}: finished already; `sfd audit {folder}` judges again, --force starts over")
        return done
    return audit_subject(subject, job.suite, job.teacher, folder, device=device, progress=progress)


def code_of(audit: Mapping[str, Any] | None) -> int:
    """The exit code of an audit: 0 every claim PASS, 3 a FAIL, 4 INCONCLUSIVE or nothing judged."""
    return seal.CODES[audit["verdict"] if audit else "INCONCLUSIVE"]


def audit_subject(
    subject: Subject,
    suite: suites.AnySuite,
    teacher: Teacher | None,
    folder: Path,
    *,
    device: torch.device,
    progress: Progress,
    gold: Path | None = None,
    plain: Path | None = None,
    controls: Sequence[dict[str, Any]] = (),
    review: int = 0,
    clip: Path | None = None,
) -> dict[str, Any]:
    """`eval.audit`, with the teacher as it is for sampling: in float32.

    `gold` and `plain` are run folders or files of students that never knew the concepts and that
    forgot nothing; by default the finished runs of `<teacher>-gold` and `<teacher>-plain`.
    """
    if teacher:
        teachers.set_precision(teacher.denoiser, "fp32")
    return audit(
        subject, suite, teacher, folder, device=str(device), controls=controls,
        gold=rivals.gold_of(subject, teacher, gold, device), gold_named=gold is not None,
        plain=rivals.plain_of(subject, teacher, plain, device),
        review=review, clip=clip, progress=progress,
    )  # fmt: skip
