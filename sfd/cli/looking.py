"""Commands that look at content: ls, validate, cite."""

import sys
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
) -> None:
    """Check content files (default: all), and the contracts of your own pieces in a recipe."""
    from sfd import verbs

    checked, wrong, notes = verbs.validate(names or [])
    for line in [*notes, *wrong]:
        print(line, file=sys.stderr)
    say(f"{checked} files checked, {len(wrong)} wrong")
    raise typer.Exit(2 if wrong else 0)


def cite(recipe: Annotated[str, typer.Argument()] = "") -> None:
    """Whom to cite for a recipe, or for everything here."""
    from sfd import verbs

    for line in verbs.citations(recipe):
        say(line)
