"""Commands that prove: audit, compare, report, sign."""

from pathlib import Path
from typing import Annotated

import typer

from sfd.cli.terminal import (
    AsJson,
    AuditOut,
    Device,
    conclude,
    progress_bars,
    say,
    teller,
)


def audit(
    subject: Annotated[
        str,
        typer.Argument(help="A run folder, a student's file, a pipeline, an .onnx, images."),
    ] = "",
    suite: Annotated[str | None, typer.Option(help="Default: the run's own.")] = None,
    controls: Annotated[
        str | None, typer.Option(help="Build and audit the known answers of this recipe.")
    ] = None,
    gold: Annotated[
        str | None, typer.Option(help="Student (or pipeline) that never knew it, to compare with.")
    ] = None,
    plain: Annotated[
        str | None, typer.Option(help="Run of a student that forgot nothing, to compare with.")
    ] = None,
    attack_images: Annotated[
        str | None, typer.Option(help="An attacker's labelled images, or 'teacher'.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of a pipeline.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Of a pipeline.")] = None,
    start: Annotated[
        str | None, typer.Option(help="Of a pipeline: image to image from this folder's pictures.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of image to image; default .8.")
    ] = None,
    concepts: Annotated[
        str | None, typer.Option(help="What it has forgotten, if it does not say: NAME,NAME.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="The original: a name, a file, a diffusers folder.")
    ] = None,
    asks: Annotated[
        str | None, typer.Option(help="What this suite asks for, a line each; draws none.")
    ] = None,
    review: Annotated[
        int, typer.Option(min=0, help="Leave so many images of each concept for people to see.")
    ] = 0,
    reviewed: Annotated[
        str | None, typer.Option(help="Read this filled review.csv into the audit; draws none.")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="Folder of a CLIP model: do images show their prompts?")
    ] = None,
    plan: Annotated[
        str | None, typer.Option(help="How many samples this suite or recipe needs; draws none.")
    ] = None,
    out: AuditOut = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Audit a student, or anybody's model; exit 0 PASS, 3 FAIL, 4 INCONCLUSIVE."""
    import json

    from sfd import devices, runs, verbs

    ways = {"a subject": subject, "--controls": controls, "--plan": plan, "--asks": asks}
    given = [way for way, value in ways.items() if value]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other: give one")
    of_subjects = {
        "--suite": suite, "--plain": plain, "--attack-images": attack_images, "--teacher": teacher,
        "--review": review, "--reviewed": reviewed, "--clip": clip, "--steps": steps,
        "--guidance": guidance is not None, "--start": start, "--strength": strength is not None,
        "--gold": gold and not controls, "--out": out and not controls,
        "--concepts": concepts and not asks,
    }  # fmt: skip
    alone = next((option for option, value in of_subjects.items() if value), None)
    if given and not subject and alone:
        raise ValueError(f"{alone} goes with a subject, not with {given[0]}: leave it out")
    if plan:
        from sfd.eval import planning

        rows = verbs.plan_audit(plan)
        say(json.dumps(rows, indent=1) if as_json else "\n".join(planning.lines(rows)))
        return
    names = [name.strip() for name in concepts.split(",")] if concepts else []
    if asks:
        for condition, n in verbs.asked_of(asks, names).items():
            say(json.dumps({"condition": condition, "n": n}, ensure_ascii=False))
        return
    where = devices.device_of(device)
    with progress_bars() as progress:
        if controls:
            rows = verbs.run_controls(
                controls, Path(out) if out else None, device=where, say=teller(as_json),
                progress=progress,
                gold=Path(gold) if gold else None,
            )  # fmt: skip
            if as_json:
                say(json.dumps(rows, indent=1))
            raise typer.Exit(0 if all(r["expected"] == r["got"] for r in rows) else 3)
        if not subject:
            raise ValueError("name what to audit (a run folder, a file, images), or use --controls")
        from sfd.eval.pipelines import Sampling

        folder = Path(out) if out else verbs.folder_for(Path(subject))
        if reviewed and review:
            raise ValueError("--review leaves a packet, --reviewed reads one: not both at once")
        if reviewed:
            result = verbs.read_review(folder, Path(reviewed))
            conclude(result, folder, as_json)
            raise typer.Exit(runs.code_of(result))
        result = verbs.audit_file(
            Path(subject), suite, folder, device=where, progress=progress,
            gold=Path(gold) if gold else None, plain=Path(plain) if plain else None,
            attack_images=attack_images,
            sampling=Sampling(steps, guidance, Path(start) if start else None, strength),
            names=names, original=teacher, review=review,
            clip=Path(clip) if clip else None,
        )  # fmt: skip
    conclude(result, folder, as_json)
    raise typer.Exit(runs.code_of(result))


def compare(
    audits: Annotated[list[str], typer.Argument(help="audit.json files, or their folders.")],
    picture: Annotated[str, typer.Option(help="A .png or .svg to write.")] = "compare.png",
    as_json: AsJson = False,
) -> None:
    """Several audits of one suite: a table, the spread between training seeds, a picture."""
    import json
    import sys

    from sfd import compare as compares

    found = compares.compare([Path(path) for path in audits])
    file = compares.write_picture(found, Path(picture))
    say(json.dumps(found, indent=1) if as_json else compares.markdown(found))
    print(file, file=sys.stderr)


def report(
    folder: Annotated[str, typer.Argument(help="A run folder, or the audit.json in it.")],
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a model card's section instead.")
    ] = False,
    line: Annotated[
        bool, typer.Option("--line", help="Print one line instead, and exit as the audit does.")
    ] = False,
) -> None:
    """Write report.html again from what a run or an audit left in its folder."""
    from sfd import report as reports
    from sfd import seal

    if markdown and line:
        raise ValueError("--markdown or --line, not both")
    if not (markdown or line):
        say(str(reports.write(Path(folder))))
        return
    found = seal.checked(Path(folder))
    say(reports.line(found) if line else reports.markdown(found).rstrip())
    raise typer.Exit(seal.CODES[found["verdict"]] if line else 0)


def sign(
    audit: Annotated[str, typer.Argument(help="An audit.json, or a run folder.")],
    key: Annotated[str, typer.Option(help="PEM of your Ed25519 private key.")],
) -> None:
    """Sign an audit with your key, beside it; `sfd validate --public-key` checks it."""
    from sfd import seal

    say(str(seal.sign(seal.file_of(Path(audit)), Path(key))))
