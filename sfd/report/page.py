"""The page: one HTML file, without scripts, that opens offline."""

from pathlib import Path
from typing import Any

from sfd import content, seal
from sfd.report.numbers import count, decimal, log_position, measured, percent, plain, points
from sfd.report.view import view


def write(path: Path) -> Path:
    """The report of what a run or an audit left in a folder, as `report.html` there.

    `path` is the folder, or the audit.json in it. Only that is needed; what else is missing is
    named in the report. Raises ValueError, in one line, if audit.json is missing, is not JSON, is
    not of the schema, is not what its hash says, or has a verdict better than its worst claim.
    """
    import jinja2

    file, audit = seal.file_of(path), read(path)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = (percent, points, decimal, count, plain, measured, log_position)
    environment.filters |= {each.__name__: each for each in filters}
    template = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(template).render(view(audit, file))
    content.write_atomic(file.with_name("report.html"), page)
    return file.with_name("report.html")


def read(path: Path) -> dict[str, Any]:
    """An audit.json, or the one in a folder, fit to be reported. Raises ValueError as `write` does.

    One without a hash, of an earlier version, is read all the same.
    """
    file = seal.file_of(path)
    audit = seal.read(file)
    seal.check_old(audit, str(file))
    return audit
