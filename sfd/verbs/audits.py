"""Audits of files, and of models whose verdicts are known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sfd import checkpoints, concepts, configs, content, jobs, teachers
from sfd.eval import suites
from sfd.eval.subjects import (
    Subject,
    concepts_of,
    of_noise,
    of_pipeline,
    of_student,
    of_teacher,
)
from sfd.jobs import Job, Progress, Say
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
    review: int = 0,
) -> dict[str, Any]:
    """Audit a run folder, a student's file or an exported pipeline by a suite (the run's own).

    `gold` is what attacks are compared with (default: the run of `<teacher>-gold`, if it is there),
    `attack_images` an attacker's labelled images instead of the suite's. A pipeline is sampled by
    its own scheduler in `steps` with `guidance`. `review` images of each concept are left for
    people to look at.
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
        subject, chosen, teacher, folder, device=device, progress=progress, gold=gold, review=review
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


# --- controls -------------------------------------------------------------------------------------


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
    original = audited(of_teacher(job.teacher, job.concepts, suite.teacher.steps), "original")
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
