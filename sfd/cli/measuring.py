"""Commands that make judges and references: classifier, calibrate, reference."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sfd.cli.terminal import (
    Device,
    Overrides,
    progress_bars,
    say,
)


def classifier(
    data: str,
    out: str,
    overrides: Overrides = None,
    recipe: Annotated[str | None, typer.Option(help="YAML of the keys; the rest override.")] = None,
    heldout: Annotated[
        str | None, typer.Option(help="Labelled images to measure it on; else cross-fitted.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the classifier there.")] = False,
    device: Device = None,
) -> None:
    """Train a timm classifier on labelled images, measure it, and write its card."""
    from sfd import devices, verbs

    with progress_bars() as progress:
        card = verbs.train_judge(
            data, Path(out), recipe=recipe, overrides=overrides or [], heldout=heldout,
            command=" ".join(["sfd", *sys.argv[1:]]), force=force,
            device=devices.device_of(device), progress=progress,
        )  # fmt: skip
    assert card.calibration is not None
    right = card.calibration.accuracy
    say(f"{out}: {right.k} of {right.n} right, [{right.ci95[0]:.3f}, {right.ci95[1]:.3f}]")


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
    force: Annotated[bool, typer.Option("--force", help="Replace the measurement there.")] = False,
    device: Device = None,
) -> None:
    """Measure a detector on labelled images and write the result into its card."""
    from sfd import devices, verbs

    folder, card = verbs.measure_judge(
        name, data, how=how, out=Path(out) if out else None,
        impostors=Path(impostors) if impostors else None, rate=false_match_rate, label=label,
        force=force, device=devices.device_of(device),
    )  # fmt: skip
    block = card.calibration
    assert block is not None
    if impostors:
        say(f"threshold {card.threshold}: {block.how}")
    say(f"{folder}: {block.accuracy.k} of {block.accuracy.n} right")
    for name_, count in block.sensitivity.items():
        wrong = block.false_positive[name_]
        say(f"  {name_}: found {count.k} of {count.n}, wrongly {wrong.k} of {wrong.n}")


def reference(
    data: str,
    out: str,
    features: Annotated[str, typer.Option(help="A feature extractor's name.")],
    floor: Annotated[
        str | None, typer.Option(help="Other real images, unseen by the extractor.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Comma-separated names, in order.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file there.")] = False,
    device: Device = None,
) -> None:
    """Write reference statistics of labelled real images (an .npz)."""
    from sfd import devices, verbs

    file = verbs.write_reference(
        data, Path(out), extractor=features, floor=floor,
        names=labels.split(",") if labels else None, force=force,
        device=devices.device_of(device),
    )  # fmt: skip
    say(str(file))
