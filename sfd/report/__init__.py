"""An audit as a page, a sentence, a model-card section and a line: JSON and PNG in, text out."""

from sfd.report.numbers import count, decimal, log_position, md, measured, percent, plain, points
from sfd.report.page import write
from sfd.report.text import line, markdown, sentence

__all__ = [
    "count",
    "decimal",
    "line",
    "log_position",
    "markdown",
    "md",
    "measured",
    "percent",
    "plain",
    "points",
    "sentence",
    "write",
]
