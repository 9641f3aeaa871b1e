"""Commands that look at content: ls, validate, cite."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sfd.cli.terminal import (
    AsJson,
    print_yaml,
    say,
)


def ls(as_json: AsJson = False) -> None:
    """List recipes, concepts, classifiers, suites, teachers, objectives, rules and attacks."""
    from sfd import verbs

    print_yaml(verbs.listing(), as_json)


def validate(
    names: Annotated[list[str] | None, typer.Argument(metavar="[PATH]...")] = None,
    public_key: Annotated[
        str | None, typer.Option(help="PEM of the key that an audit must be signed by.")
    ] = None,
) -> None:
    """Check content files (default: all), your own pieces in a recipe, an audit.json or a run."""
    from sfd import verbs

    checked, wrong, notes = verbs.validate(names or [], Path(public_key) if public_key else None)
    for line in [*notes, *wrong]:
        print(line, file=sys.stderr)
    say(f"{checked} files checked, {len(wrong)} wrong")
    raise typer.Exit(2 if wrong else 0)


def cite(recipe: Annotated[str, typer.Argument()] = "") -> None:
    """Whom to cite for a recipe, or for everything here."""
    from sfd import verbs

    for line in verbs.citations(recipe):
        say(line)
