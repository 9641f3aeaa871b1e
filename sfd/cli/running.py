"""Commands that train, and what they leave: run, train, pretrain, sample, plan, export."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from sfd.cli.terminal import (
    MAX_SEED,
    AsJson,
    AtOnce,
    Device,
    DryRun,
    Force,
    Out,
    Overrides,
    conclude,
    print_yaml,
    progress_bars,
    say,
    teller,
)


def run(
    recipe: str,
    overrides: Overrides = None,
    out: Out = None,
    force: Force = False,
    dry_run: DryRun = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """The main job: train, audit, report. The same command again resumes."""
    _main_job(recipe, overrides, out, force, dry_run, device, as_json, audited=True)


def train(
    recipe: str,
    overrides: Overrides = None,
    out: Out = None,
    force: Force = False,
    dry_run: DryRun = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Train only. Several processes: accelerate launch -m sfd train RECIPE."""
    _main_job(recipe, overrides, out, force, dry_run, device, as_json, audited=False)


def _out_of(overrides: list[str] | None, out: str | None) -> tuple[list[str], str | None]:
    """The overrides but for `out=`, and the folder. Raises ValueError if two are given."""
    rest = [text for text in overrides or [] if not text.startswith("out=")]
    said = {text.removeprefix("out=") for text in overrides or [] if text.startswith("out=")}
    asked = sorted(said if out is None else {*said, out})
    if "" in asked:
        raise ValueError("out: is empty: name a folder, or leave it out")
    if len(asked) > 1:
        raise ValueError(f"out: {' and '.join(asked)} are both given: give one folder")
    return rest, asked[0] if asked else None


def _main_job(
    name: str,
    overrides: list[str] | None,
    out: str | None,
    force: bool,
    dry_run: bool,
    device: str | None,
    as_json: bool,
    *,
    audited: bool,
) -> None:
    from sfd import configs, devices, jobs, runs, state

    rest, chosen = _out_of(overrides, out)
    recipe = configs.load(name, rest)
    folder = configs.folder_of(name, recipe, chosen)
    where = devices.device_of(device)
    job = jobs.prepare(name, recipe, where)
    chief = state.world()[0] == 0
    for note in jobs.notes(recipe) if chief else ():
        print(f"note: {note}", file=sys.stderr)
    if dry_run:
        resolved = {"folder": str(folder), "sha256": job.sha256, **configs.plain(recipe)}
        resolved["all_concepts"] = jobs.described(job)
        print_yaml(resolved, as_json)
        return
    tell = teller(as_json)
    with progress_bars() as progress:
        runs.train_job(job, folder, device=where, force=force, say=tell, progress=progress)
        state.leave()
        if not chief:
            return
        audit = (
            runs.audit_job(job, folder, device=where, say=tell, progress=progress)
            if audited
            else None
        )
    if audit:
        conclude(audit, folder, as_json)
    elif as_json:
        say(json.dumps({"folder": str(folder), "audit": None}))
    if audited:
        raise typer.Exit(runs.code_of(audit))


def pretrain(
    recipe: str,
    overrides: Overrides = None,
    out: Out = None,
    force: Force = False,
    dry_run: DryRun = False,
    device: Device = None,
) -> None:
    """Train a teacher: class-conditional from labelled images, or text-to-image from captions."""
    from sfd import configs, devices, pretrain, pretrain_text, state

    rest, chosen = _out_of(overrides, out)
    plan = configs.load_teacher(recipe, rest)
    folder = Path(chosen or f"runs/{Path(recipe).stem}")
    if dry_run:
        print_yaml({"folder": str(folder), **configs.plain(plan)}, False)
        return
    where = devices.device_of(device)
    with progress_bars() as progress:
        if isinstance(plan, configs.TextTeacherRecipe):
            made = pretrain_text.run(plan, folder, device=where, force=force, progress=progress)
            key = "diffusers"
        else:
            made = pretrain.run(plan, folder, device=where, force=force, progress=progress)
            key = "file"
    state.leave()
    say(f"{made}: use it with teacher: {{{key}: {made}}}")


def sample(
    student: str,
    out: str,
    labels: Annotated[
        str | None, typer.Option(help="Comma-separated labels, or 'all' (default).")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Of a text-to-image student.")] = None,
    prompts: Annotated[str | None, typer.Option(help="A list: .txt, .csv or .yaml.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Images of each label or prompt.")] = 16,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED)] = 0,
    batch: AtOnce = None,
    device: Device = None,
) -> None:
    """Draw images of a student (a run folder or its file), with a sheet.

    Labels go into class folders; prompts into one folder with a metadata.jsonl.
    """
    from sfd import devices, verbs
    from sfd import sample as samplers

    generator = samplers.load(student, str(devices.device_of(device)), batch)
    if generator.labels:
        if prompt or prompts:
            raise ValueError(f"{student}: is asked in classes: use --labels")
        asked = "all" if labels is None else labels
        count = verbs.sample_labels(generator, asked, Path(out), n=n, seed=seed)
    else:
        if labels:
            raise ValueError(f"{student}: is asked in words: use --prompt or --prompts")
        asked = verbs.prompts_of(prompt or [], prompts)
        count = verbs.sample_prompts(generator, asked, Path(out), n=n, seed=seed)
    say(f"{count} images in {out}; {Path(out) / 'sheet.png'}")


def plan(
    recipe: str,
    overrides: Overrides = None,
    device: Annotated[str, typer.Option(help="Plan for cuda or cpu, here or not.")] = "cuda",
    as_json: AsJson = False,
) -> None:
    """Bytes that a recipe's training holds by role, before anything is loaded."""
    from sfd import configs, verbs

    if device not in ("cuda", "cpu"):
        raise ValueError(f"no device {device!r} to plan for: give cuda or cpu")
    roles = verbs.plan_run(configs.load(recipe, overrides or []), cuda=device == "cuda")
    if as_json:
        say(json.dumps(roles, indent=1))
        return
    for role, size in roles.items():
        say(f"{role:12} {size / 2**30:9.3f} GiB")


def export(
    form: Annotated[str, typer.Argument(help="diffusers")],
    student: str,
    out: str,
) -> None:
    """Write a text-to-image student as a pipeline folder that stock diffusers samples in a step."""
    from sfd import content
    from sfd import export as exports

    if form != "diffusers":
        raise ValueError(f"no form {form!r}{content.did_you_mean(form, ['diffusers'])}")
    folder = exports.diffusers(Path(student), Path(out))
    say(f"{folder}: StableDiffusionPipeline.from_pretrained, num_inference_steps=1, guidance 0")
