"""Audits of files, and of models whose verdicts are known."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sfd import concepts, configs, content, jobs, runs
from sfd.eval import suites
from sfd.eval.outsiders import Function
from sfd.eval.pipelines import AS_IT_IS, Sampling
from sfd.eval.subjects import Subject, of_hidden, of_noise, of_student, of_teacher
from sfd.jobs import Job
from sfd.runs import Progress, Say
from sfd.verbs.subjects import Opened, open_function, open_path


def _check_free(path: Path, folder: Path) -> None:
    """Raises ValueError if an audit would go into the folder of another student's run."""
    own = {path.resolve(), path.resolve().parent}
    if (folder / "student.safetensors").is_file() and folder.resolve() not in own:
        raise ValueError(f"{folder}: holds the run of another student, whose audit this one would"
                         " replace: give another --out")  # fmt: skip


def audit_file(
    path: Path,
    suite: str | None,
    folder: Path,
    *,
    device: torch.device,
    progress: Progress,
    gold: Path | None = None,
    plain: Path | None = None,
    attack_images: str | None = None,
    sampling: Sampling = AS_IT_IS,
    names: Sequence[str] = (),
    original: str | None = None,
    review: int = 0,
    clip: Path | None = None,
) -> dict[str, Any]:
    """Audit what lies at a path by a suite (the run's own): see `subjects.open_path`.

    `gold` is what attacks are compared with (default: the run of `<teacher>-gold`, if it is there),
    `plain` a student that forgot nothing (`<teacher>-plain`): the audit says which of the two the
    subject is nearer to. `attack_images` are an attacker's labelled images instead of the suite's.
    A pipeline is sampled by its own scheduler as `sampling` says. `review` images of each
    concept are left for people to look at. `clip` is the folder of a CLIP model, for a suite of
    prompts: how well images show what was asked for.
    """
    _check_free(path, folder)
    content.check_writable(folder)
    opened = open_path(
        path, suite, names=names, original=original, sampling=sampling, device=device
    )
    return _audited(opened, folder, device, progress, review, gold, plain, attack_images, clip)


def audit_function(
    function: Function,
    suite: str | None,
    folder: Path,
    *,
    device: torch.device,
    progress: Progress,
    labels: Sequence[str] | None = None,
    names: Sequence[str] = (),
    original: str | None = None,
    review: int = 0,
    clip: Path | None = None,
) -> dict[str, Any]:
    """Audit a function of conditions and seeds by a suite: see `subjects.open_function`."""
    content.check_writable(folder)
    opened = open_function(
        function, suite, labels=labels, names=names, original=original, device=device
    )
    return _audited(opened, folder, device, progress, review, clip=clip)


def _audited(
    opened: Opened,
    folder: Path,
    device: torch.device,
    progress: Progress,
    review: int,
    gold: Path | None = None,
    plain: Path | None = None,
    attack_images: str | None = None,
    clip: Path | None = None,
) -> dict[str, Any]:
    subject, chosen, teacher = opened
    if attack_images and not chosen.attacks:
        raise ValueError(f"suite {chosen.name} has no attacks: leave --attack-images out")
    if attack_images is not None and isinstance(chosen, suites.PromptSuite):
        raise ValueError(
            f"suite {chosen.name} asks in words: what its attackers have the teacher draws, leave"
            " --attack-images out"
        )
    if plain is not None and isinstance(chosen, suites.PromptSuite):
        raise ValueError(
            f"suite {chosen.name} asks in words: only classes are compared with --plain"
        )
    if clip is not None and not isinstance(chosen, suites.PromptSuite):
        raise ValueError(f"suite {chosen.name} asks for classes: --clip compares images with words")
    if attack_images is not None:
        chosen = chosen.model_copy(update={"attack_images": attack_images})
    return runs.audit_subject(
        subject,
        chosen,
        teacher,
        folder,
        device=device,
        progress=progress,
        gold=gold,
        plain=plain,
        review=review,
        clip=clip,
    )


# --- controls -------------------------------------------------------------------------------------


def run_controls(
    name: str,
    out: Path | None,
    *,
    device: torch.device,
    say: Say,
    progress: Progress,
    gold: Path | None = None,
    untrained: bool = True,
) -> list[dict[str, Any]]:
    """Audit models whose verdicts are known, for a recipe's concepts and suite.

    The original teacher must FAIL; a one-step student of the gold twin (`gold`, or the recipe
    `<teacher>-gold`, trained first where it is not there) must PASS its concept's claims; noise
    must fail validity; the gold student with the concept hidden under another label must FAIL
    cross_leak. Where the suite attacks, each leaky control must FAIL the claim on its attack.
    `untrained` False leaves out the first and the third, which no training seed changes.
    """
    recipe = configs.load(name)
    job = jobs.prepare(name, recipe, device)
    if job.suite is None or not job.concepts:
        raise ValueError(f"{name}: names no suite or no concept, so no answer is known")
    lacking = [k for k in ("direct", "validity") if getattr(job.suite.claims, k) is None]
    if lacking:
        raise ValueError(
            f"suite {job.suite.name} does not claim {' or '.join(lacking)}, whose answers are"
            " known: audit with one that does"
        )
    root = out or Path("runs") / f"{Path(name).stem}-controls"
    content.check_writable(root)
    gold = gold or _gold(job, device=device, say=say, progress=progress)
    innocent = of_student(gold, str(device), job.concepts) if gold else None
    rows = []

    def audited(subject: Subject, what: str, gold: Path | None = None) -> dict[str, Any]:
        say(f"auditing {what}")
        assert job.suite
        return runs.audit_subject(
            subject, job.suite, job.teacher, root / what, device=device, progress=progress,
            gold=gold,
        )  # fmt: skip

    suite = job.suite
    original = of_teacher(job.teacher, job.concepts, suite.teacher.steps)
    if untrained:
        rows.append(_row("original", "FAIL", _status(audited(original, "original"), "direct")))
        height, width, channels = job.teacher.decode(torch.zeros(1, *job.teacher.shape))[0].shape
        shape = (channels, height, width)
        noise = audited(of_noise(job.teacher.labels, job.concepts, shape), "noise")
        rows.append(_row("noise", "FAIL", _status(noise, "validity")))
    if innocent is None:
        say(f"no gold twin of {job.teacher.name} without {[c.label_name for c in job.concepts]}")
    else:
        result = audited(innocent, "gold", gold)
        got = [_status(result, kind) for kind in ("direct", "validity")]
        rows.append(_row("gold", "PASS", next((g for g in got if g != "PASS"), "PASS")))
        for entry in result["evidence"]["attacks"]:
            leaky = entry["controls"].get("leaky", {})
            if leaky.get("status"):
                rows.append(_row(f"leaky to {entry['name']}", "FAIL", leaky["status"]))
        hiding = _hiding_place(job) if suite.claims.cross_leak else None
        if hiding is not None:
            hidden = of_hidden(innocent, original, *hiding)
            status = _status(audited(hidden, "hidden"), "cross_leak")
            rows.append(_row("hidden under another label", "FAIL", status))
    content.write_json(root / "controls.json", rows)
    for row in rows:
        say(f"{row['model']}: expected {row['expected']}, got {row['got']}")
    return rows


def _hiding_place(job: Job) -> tuple[concepts.Concept, int] | None:
    """The first concept and the last retained label; None where a concept is not a class."""
    concept = job.concepts[0]
    retained = [label for label in job.retained if isinstance(label, int)]
    return (concept, retained[-1]) if isinstance(concept, concepts.Concept) and retained else None


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
    pipeline = recipe.teacher.diffusers
    if pipeline and not Path(pipeline).expanduser().is_dir():
        say(f"{pipeline}: no such folder: `sfd pretrain {recipe_name}-teacher` makes it")
        return None
    gold = jobs.prepare(recipe_name, recipe, device)
    classes = {c.label for c in job.concepts if isinstance(c, concepts.Concept)}
    words = [c for c in job.concepts if isinstance(c, concepts.PromptConcept)]
    taught = any(c.mentions(p) for c in words for p in gold.retained)
    if taught or set(gold.teacher.without) != classes:
        return None
    folder = configs.folder_of(recipe_name, recipe)
    runs.train_job(gold, folder, device=device, force=False, say=say, progress=progress)
    return folder
