"""The page: one HTML file, without scripts, that opens offline."""

from pathlib import Path

from sfd import content, seal
from sfd.report.numbers import count, decimal, log_position, measured, percent, plain, points
from sfd.report.view import view


def write(path: Path) -> Path:
    """The report of what a run or an audit left in a folder, as `report.html` there.

    `path` is the folder, or the audit.json in it. Only that is needed; what else is missing is
    named in the report. Raises ValueError, in one line, as `seal.checked` does.
    """
    import jinja2

    file, audit = seal.file_of(path), seal.checked(path)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = (percent, points, decimal, count, plain, measured, log_position)
    environment.filters |= {each.__name__: each for each in filters}
    template = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(template).render(view(audit, file))
    content.write_atomic(file.with_name("report.html"), page)
    return file.with_name("report.html")
