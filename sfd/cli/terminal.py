"""What commands share: their options, their words on stdout, their bars on stderr."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

MAX_SEED = 2**62
"""Leaves room for as many seeds after it, in 64 bits."""

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")]
Force = Annotated[bool, typer.Option("--force", help="Start over, whatever is there.")]
Out = Annotated[str | None, typer.Option("--out", help="Folder (default runs/NAME).")]
AuditOut = Annotated[
    str | None, typer.Option("--out", help="Folder (default: the run's own, or SUBJECT-audit).")
]
Device = Annotated[str | None, typer.Option(help="cuda or cpu (default: cuda if there is one).")]
AtOnce = Annotated[
    int | None,
    typer.Option("--batch", min=1, help="Images drawn at once (default: what 24 GB hold)."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")]
AsJson = Annotated[bool, typer.Option("--json", help="For a program to read.")]


def say(text: str) -> None:
    """A result, on stdout."""
    print(text, flush=True)


def teller(as_json: bool) -> Callable[[str], None]:
    """`say`, or the same on stderr where stdout is one JSON document."""
    return (lambda text: print(text, file=sys.stderr, flush=True)) if as_json else say


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


def conclude(audit: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Write the report of an audit, and say what it found."""
    import json

    from sfd import report as reports

    file = reports.write(folder)
    if as_json:
        say(json.dumps(audit, indent=1))
    else:
        say(reports.sentence(audit))
        say(f"{audit['verdict']}  {file}")


def print_yaml(data: Any, as_json: bool) -> None:
    """Plain data on stdout."""
    import json

    from sfd import content

    say(json.dumps(data, indent=1) if as_json else content.dump_yaml(data).rstrip())
