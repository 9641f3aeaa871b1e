"""The command line: words in, one line out where something is wrong."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

# threads that wait must sleep: on a shared machine spinning ones collapse
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turn a pretrained diffusion model into a one-step generator that has forgotten a concept,"
    " and prove it.",
)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")]
Force = Annotated[bool, typer.Option("--force", help="Start over, whatever is there.")]
Out = Annotated[str | None, typer.Option("--out", help="Folder (default runs/NAME).")]
Device = Annotated[str | None, typer.Option(help="cuda or cpu (default: cuda if there is one).")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")]
AsJson = Annotated[bool, typer.Option("--json", help="For a program to read.")]


def say(text: str) -> None:
    """A result, on stdout."""
    print(text, flush=True)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Bars on stderr, one per kind of work; only in the first process."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    chief = os.environ.get("RANK", "0") == "0"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not chief) as bars:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield update


def _recipe(name: str, overrides: list[str] | None) -> tuple[Any, list[str], str | None]:
    """The recipe, its name, and `out=` taken out of the overrides."""
    from sfd import configs

    rest = [text for text in overrides or [] if not text.startswith("out=")]
    outs = [text.removeprefix("out=") for text in overrides or [] if text.startswith("out=")]
    return configs.load(name, rest), rest, outs[-1] if outs else None


def _print_yaml(data: Any, as_json: bool) -> None:
    import json

    import yaml

    say(json.dumps(data, indent=1) if as_json else yaml.safe_dump(data, sort_keys=False).rstrip())


@app.command()
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


@app.command()
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
    from sfd import configs, jobs

    recipe, _, out_too = _recipe(name, overrides)
    folder = jobs.folder_of(name, recipe, out or out_too)
    job = jobs.prepare(name, recipe, jobs.device_of(device))
    for note in jobs.notes(recipe) if os.environ.get("RANK", "0") == "0" else ():
        print(f"note: {note}", file=sys.stderr)
    if dry_run:
        resolved = {"folder": str(folder), "sha256": job.sha256, **configs.plain(recipe)}
        resolved["all_concepts"] = jobs.described(job)
        _print_yaml(resolved, as_json)
        return
    with progress_bars() as progress:
        work = jobs.run_job if audited else jobs.train_job
        audit = work(
            job, folder, device=jobs.device_of(device), force=force, say=say, progress=progress
        )
    if not audited or os.environ.get("RANK", "0") != "0":
        return
    if audit:
        _conclude(audit, folder, as_json)
    raise typer.Exit(jobs.code_of(audit))


def _conclude(audit: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Write the report of an audit, and say what it found."""
    import json

    from sfd import report as reports

    file = reports.write(folder)
    if as_json:
        say(json.dumps(audit, indent=1))
    else:
        say(reports.sentence(audit))
        say(f"{audit['verdict']}  {file}")


@app.command()
def pretrain(
    recipe: str,
    overrides: Overrides = None,
    out: Out = None,
    force: Force = False,
    dry_run: DryRun = False,
    device: Device = None,
) -> None:
    """Train a teacher: class-conditional from labelled images, or text-to-image from captions."""
    from sfd import configs, jobs, pretrain, pretrain_text

    rest = [t for t in overrides or [] if not t.startswith("out=")]
    outs = [t.removeprefix("out=") for t in overrides or [] if t.startswith("out=")]
    plan = configs.load_teacher(recipe, rest)
    folder = Path(out or (outs[-1] if outs else f"runs/{Path(recipe).stem}"))
    if dry_run:
        _print_yaml({"folder": str(folder), **configs.plain(plan)}, False)
        return
    where = jobs.device_of(device)
    with progress_bars() as progress:
        if isinstance(plan, configs.TextTeacherRecipe):
            made = pretrain_text.run(plan, folder, device=where, force=force, progress=progress)
            key = "diffusers"
        else:
            made = pretrain.run(plan, folder, device=where, force=force, progress=progress)
            key = "file"
    say(f"{made}: use it with teacher: {{{key}: {made}}}")


@app.command()
def sample(
    student: str,
    out: str,
    labels: Annotated[str, typer.Option(help="Comma-separated labels, or 'all'.")] = "all",
    prompt: Annotated[list[str] | None, typer.Option(help="Of a text-to-image student.")] = None,
    prompts: Annotated[str | None, typer.Option(help="A list: .txt, .csv or .yaml.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Images of each label or prompt.")] = 16,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = None,
) -> None:
    """Draw images of a student (a run folder or its file), with a sheet.

    Labels go into class folders; prompts into one folder with a metadata.jsonl.
    """
    from sfd import jobs, verbs
    from sfd import sample as samplers

    generator = samplers.load(student, str(jobs.device_of(device)))
    if generator.labels:
        if prompt or prompts:
            raise ValueError(f"{student}: is asked in classes: use --labels")
        count = verbs.sample_labels(generator, labels, Path(out), n=n, seed=seed)
    else:
        asked = verbs.prompts_of(prompt or [], prompts)
        count = verbs.sample_prompts(generator, asked, Path(out), n=n, seed=seed)
    say(f"{count} images in {out}; {Path(out) / 'sheet.png'}")


@app.command()
def audit(
    subject: Annotated[
        str, typer.Argument(help="A run folder, a student's file, an exported pipeline.")
    ] = "",
    suite: Annotated[str | None, typer.Option(help="Default: the run's own.")] = None,
    controls: Annotated[
        str | None, typer.Option(help="Build and audit the known answers of this recipe.")
    ] = None,
    gold: Annotated[
        str | None, typer.Option(help="Run of a student that never knew it, for attacks.")
    ] = None,
    attack_images: Annotated[
        str | None, typer.Option(help="An attacker's labelled images, or 'teacher'.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of a pipeline.")] = 1,
    guidance: Annotated[float, typer.Option(min=0, help="Of a pipeline.")] = 0.0,
    plan: Annotated[
        str | None, typer.Option(help="How many samples this suite or recipe needs; draws none.")
    ] = None,
    out: Out = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Audit a student; exit 0 PASS, 3 FAIL, 4 INCONCLUSIVE."""
    import json

    from sfd import jobs, verbs

    if plan:
        rows = verbs.plan_audit(plan)
        say(json.dumps(rows, indent=1) if as_json else "\n".join(verbs.planning.lines(rows)))
        return
    where = jobs.device_of(device)
    with progress_bars() as progress:
        if controls:
            rows = verbs.run_controls(controls, Path(out) if out else None, device=where, say=say,
                                     progress=progress)  # fmt: skip
            if as_json:
                say(json.dumps(rows, indent=1))
            raise typer.Exit(0 if all(r["expected"] == r["got"] for r in rows) else 3)
        if not subject:
            raise ValueError("name a run folder or a student's file to audit, or use --controls")
        folder = Path(out) if out else Path(subject)
        if folder.is_file():
            folder = folder.parent / f"{folder.stem}-audit"
        result = verbs.audit_file(
            Path(subject), suite, folder, device=where, progress=progress,
            gold=Path(gold) if gold else None, attack_images=attack_images,
            steps=steps, guidance=guidance,
        )  # fmt: skip
    _conclude(result, folder, as_json)
    raise typer.Exit(jobs.code_of(result))


@app.command()
def plan(
    recipe: str,
    overrides: Overrides = None,
    device: Annotated[str, typer.Option(help="Plan for cuda or cpu, here or not.")] = "cuda",
    as_json: AsJson = False,
) -> None:
    """Bytes that a recipe's training holds by role, before anything is loaded."""
    import json

    from sfd import configs, verbs

    roles = verbs.plan_run(configs.load(recipe, overrides or []), cuda=device == "cuda")
    if as_json:
        say(json.dumps(roles, indent=1))
        return
    for role, size in roles.items():
        say(f"{role:12} {size / 2**30:9.3f} GiB")


@app.command()
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


@app.command()
def report(folder: str) -> None:
    """Write report.html again from what a run or an audit left in its folder."""
    from sfd import report as reports

    say(str(reports.write(Path(folder))))


@app.command()
def classifier(
    data: str,
    out: str,
    arch: Annotated[str, typer.Option(help="A timm architecture.")] = "resnet10t",
    kwargs: Annotated[str, typer.Option(help="Its keyword arguments, as YAML.")] = "{}",
    name: Annotated[str | None, typer.Option(help="Default: the folder's name.")] = None,
    heldout: Annotated[str | None, typer.Option(help="Labelled images to measure it on.")] = None,
    folds: Annotated[int, typer.Option(help="Cross-fit instead of held-out data.")] = 0,
    features: Annotated[bool, typer.Option(help="A feature extractor: it judges nothing.")] = False,
    epochs: Annotated[int, typer.Option(min=1)] = 12,
    size: Annotated[int | None, typer.Option(help="Side of what the network sees.")] = None,
    shift: float = 0.0,
    rotate: float = 0.0,
    scale: float = 0.0,
    flip: bool = False,
    seed: int = 0,
    licence: Annotated[str, typer.Option(help="Licence of the weights.")] = "unstated",
    device: Device = None,
) -> None:
    """Train a timm classifier on labelled images, measure it, and write its card."""
    from sfd import calibrate, classifiers, content, images, jobs

    options = content.parse_yaml(kwargs, "--kwargs")
    pictures, labels, names = images.read_labelled(data)
    held = images.read_labelled(heldout) if heldout else None
    if held and held[2] != names:
        raise ValueError(f"{heldout}: its classes {held[2]} are not those of {data}: {names}")
    with progress_bars() as progress:
        state, card = calibrate.train_classifier(
            pictures, labels, names, name=name or Path(out).name, arch=arch, kwargs=options,
            task="features" if features else "classify", size=size, epochs=epochs, seed=seed,
            shift=shift, rotate=rotate, scale=scale, flip=flip,
            heldout=held[:2] if held else None, heldout_data=heldout or "",
            folds=folds or (0 if held else 5), data=data, licence=licence,
            command=" ".join(["sfd", *sys.argv[1:]]), device=str(jobs.device_of(device)),
            progress=progress,
        )  # fmt: skip
    card = classifiers.save(Path(out), card, state)
    assert card.calibration is not None
    right = card.calibration.accuracy
    say(f"{out}: {right.k} of {right.n} right, [{right.ci95[0]:.3f}, {right.ci95[1]:.3f}]")


@app.command()
def calibrate(
    name: str,
    data: str,
    how: Annotated[str, typer.Option(help="Why the images are held out.")] = "held out",
    out: Annotated[str | None, typer.Option(help="Folder of the measured copy.")] = None,
    impostors: Annotated[
        str | None, typer.Option(help="Folder of images without the label: sets the threshold.")
    ] = None,
    false_match_rate: Annotated[
        float, typer.Option(help="Share of the impostors that may reach the threshold.")
    ] = 0.001,
    label: Annotated[
        str | None, typer.Option(help="What the impostors lack (default: the first label).")
    ] = None,
    device: Device = None,
) -> None:
    """Measure a detector on labelled images and write the result into its card."""
    from sfd import calibrate as measures
    from sfd import classifiers, images, jobs
    from sfd.eval import load_judge

    detector = load_judge(name, str(jobs.device_of(device)))
    labelled = images.read_labelled(data)
    if impostors:
        strangers, of = images.read_pictures(Path(impostors)), label or detector.card.labels[0]
        least = measures.impostor_threshold(detector, strangers, false_match_rate, of)
        detector = classifiers.with_threshold(detector, least)
        how += f"; {of!r} on at most {false_match_rate:g} of {len(strangers)} of {impostors}"
        say(f"threshold {least}: {how}")
    block = measures.calibrate(detector, *labelled, data=data, how=how)
    folder = classifiers.write_calibration(
        name, block, Path(out) if out else None, threshold=detector.card.threshold
    )
    say(f"{folder}: {block.accuracy.k} of {block.accuracy.n} right")
    for label, count in block.sensitivity.items():
        wrong = block.false_positive[label]
        say(f"  {label}: found {count.k} of {count.n}, wrongly {wrong.k} of {wrong.n}")


@app.command()
def reference(
    data: str,
    out: str,
    features: Annotated[str, typer.Option(help="A feature extractor's name.")],
    floor: Annotated[
        str | None, typer.Option(help="Other real images, unseen by the extractor.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Comma-separated names, in order.")] = None,
    device: Device = None,
) -> None:
    """Write reference statistics of labelled real images (an .npz)."""
    from sfd import jobs, verbs

    file = verbs.write_reference(
        data, Path(out), extractor=features, floor=floor,
        names=labels.split(",") if labels else None, device=jobs.device_of(device),
    )  # fmt: skip
    say(str(file))


@app.command()
def ls(as_json: AsJson = False) -> None:
    """List recipes, concepts, classifiers, suites, teachers, objectives, rules and attacks."""
    from sfd import verbs

    _print_yaml(verbs.listing(), as_json)


@app.command()
def validate(
    names: Annotated[list[str] | None, typer.Argument(metavar="[PATH]...")] = None,
) -> None:
    """Check content files (default: all), and the contracts of your own pieces in a recipe."""
    from sfd import verbs

    checked, wrong, notes = verbs.validate(names or [])
    for line in [*notes, *wrong]:
        print(line, file=sys.stderr)
    say(f"{checked} files checked, {len(wrong)} wrong")
    raise typer.Exit(2 if wrong else 0)


@app.command()
def cite(recipe: Annotated[str, typer.Argument()] = "") -> None:
    """Whom to cite for a recipe, or for everything here."""
    from sfd import verbs

    for line in verbs.citations(recipe):
        say(line)


def main() -> None:
    """Run the command line; the exit codes are those of the README."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    try:
        typer.main.get_command(app)()
    except ValueError as error:
        _stop(str(error), 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        rest = "; free some space, the same command resumes" if full else ""
        _stop(f"{where}{error.strerror or error}{rest}", 5 if full else 2)
    except RuntimeError as error:
        if "sfd.state" not in sys.modules:
            raise
        from sfd.state import Stopped

        if not isinstance(error, Stopped):
            raise
        _stop(str(error), error.code)


def _interrupted(number: int, frame: FrameType | None) -> None:
    _stop(
        f"{signal.Signals(number).name}; the same command starts again where it can", 128 + number
    )


def _stop(message: str, code: int) -> NoReturn:
    print(f"sfd: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
