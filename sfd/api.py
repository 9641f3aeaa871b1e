"""The Python face: what the command line does, from a program."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfd import configs, devices, jobs, report, runs, sample, verbs
from sfd.eval.outsiders import Function
from sfd.eval.pipelines import AS_IT_IS, Sampling
from sfd.sample import Student


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, its student, its audit (None without a suite), its exit code."""

    folder: Path
    student: Student
    audit: dict[str, Any] | None
    code: int


def _quiet(what: str, done: int, total: int) -> None:
    pass


def run(
    recipe: str,
    *overrides: str,
    out: str | None = None,
    device: str | None = None,
    force: bool = False,
) -> Outcome:
    """Train, audit and report a recipe by name or path, with `key=value` overrides.

    Resumes what is in the folder. Raises ValueError on bad input, `sfd.Stopped` if it ends in the
    middle.
    """
    plan = configs.load(recipe, overrides)
    where = devices.device_of(device)
    folder = configs.folder_of(recipe, plan, out)
    job = jobs.prepare(recipe, plan, where)
    found = runs.run_job(
        job, folder, device=where, force=force, say=lambda text: None, progress=_quiet
    )
    if found:
        report.write(folder)
    return Outcome(folder, sample.load(folder, str(where)), found, runs.code_of(found))


def load(path: str | Path, device: str = "cpu", batch: int | None = None) -> Student:
    """A student from its file or its run folder, drawing `batch` images at once, or as many as fit
    a card of 24 GB.

    Raises ValueError if it is not one, or there is no such device.
    """
    devices.check_device(device)
    return sample.load(path, device, batch)


def audit(
    path: str | Path | None = None,
    *,
    generate: Function | None = None,
    labels: Sequence[str] | None = None,
    concepts: str | Sequence[str] = (),
    teacher: str | None = None,
    suite: str | None = None,
    out: str | Path | None = None,
    device: str | None = None,
    gold: str | Path | None = None,
    plain: str | Path | None = None,
    attack_images: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    start: str | Path | None = None,
    strength: float | None = None,
    review: int = 0,
    clip: str | Path | None = None,
) -> dict[str, Any]:
    """Audit what lies at a path, or a function; audit.json's content, also left in `out`.

    A path is a run folder, a student's file, a diffusers folder (sampled in `steps` with
    `guidance`, or image to image from the pictures in the folder `start`), an ONNX generator or a
    folder of images. `generate(conditions, seeds)` is asked for uint8 images `[N, H, W, C]`; a
    condition is a prompt, or the index of one of `labels` (those of the suite's judge). What no
    student is must say its `concepts`, by name, and may say its original `teacher` (a name, a
    file, a folder). `gold` is the run of a student that never knew the concepts (for a
    pipeline, a pipeline), `plain` of one that forgot nothing; `attack_images` are an attacker's
    images. `review` images of each concept are left in `review/` for people to look at. `clip` is
    the folder of a CLIP model, which says how well images show what their prompts ask for. Raises
    ValueError in one line.
    """
    if (path is None) == (generate is None):
        raise ValueError("audit: give either a path or generate=")
    where = devices.device_of(device)
    sampling = Sampling(steps, guidance, Path(start) if start else None, strength)
    names = concepts.split(",") if isinstance(concepts, str) else list(concepts)
    if generate is not None:
        if gold or plain or attack_images or sampling != AS_IT_IS:
            raise ValueError("audit: gold, plain, attack_images and how a pipeline is sampled go"
                             " with a path, not with generate=")  # fmt: skip
        folder = Path(out or "audit")
        result = verbs.audit_function(
            generate, suite, folder, device=where, progress=_quiet, labels=labels, names=names,
            original=teacher, review=review, clip=Path(clip) if clip else None,
        )  # fmt: skip
    else:
        assert path is not None
        if labels is not None:
            raise ValueError("audit: labels are those of generate=, a path has its own")
        folder = Path(out) if out else verbs.folder_for(Path(path))
        result = verbs.audit_file(
            Path(path), suite, folder, device=where, progress=_quiet,
            gold=Path(gold) if gold else None,
            plain=Path(plain) if plain else None, attack_images=attack_images,
            sampling=sampling, names=names, original=teacher, review=review,
            clip=Path(clip) if clip else None,
        )  # fmt: skip
    report.write(folder)
    return result


def synthesize(path: str | Path, out: str | Path, *, n: int, device: str | None = None,
               **options: Any) -> dict[str, Any] | None:  # fmt: skip
    """A safe synthetic dataset of a run folder or a student's file, in the folder `out`.

    `options` are those of the command, as `verbs.synthesize_run` takes them. Its report, or None
    while other shards are missing.
    """
    where = str(devices.device_of(device))
    return verbs.synthesize_run(Path(path), Path(out), n=n, device=where, **options)[1]
