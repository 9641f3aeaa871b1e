"""Numbers and JSON values as text; a dash for what is not known, never a 0."""

import html
import math
import re
from collections.abc import Mapping
from typing import Any

DASH, MINUS = "\u2013", "\u2212"


def finite(value: Any) -> float | None:
    """A finite number, or None for whatever is not one."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if known else None


def ends(interval: Any) -> tuple[float, float] | None:
    """The ends of an interval, or None for whatever is not one."""
    pair = interval if isinstance(interval, list | tuple) and len(interval) == 2 else (None, None)
    lo, hi = map(finite, pair)
    return None if lo is None or hi is None else (lo, hi)


def measured(record: Any) -> dict[str, Any]:
    """A record as {k, n, rate, ci95}, None where unknown; the rate is its own, or k of n."""
    found = record if isinstance(record, Mapping) else {}
    k, n, rate = (finite(found.get(key)) for key in ("k", "n", "rate"))
    rate = k / n if rate is None and k is not None and n else rate
    return {"k": k, "n": n, "rate": rate, "ci95": ends(found.get("ci95"))}


def say(value: Any, interval: Any, scale: float, least: int, unit: str, sign: str) -> str:
    """A number and its interval, with so many decimals that what is not zero does not look it."""
    known, span = finite(value), ends(interval)
    width = (span[1] - span[0]) / 2 if span else (known or 0) / 10
    sizes = [abs(x) * scale for x in (width, known if sign == "-" else 0) if x]
    places = min(max([least, *(math.ceil(-math.log10(size)) for size in sizes)]), 6)

    def fixed(x: float) -> str:  # + 0.0: no minus zero
        return f"{round(scale * x, places) + 0.0:{sign},.{places}f}".replace("-", MINUS)

    text = DASH if known is None else fixed(known) + unit
    return f"{text} [{', '.join(map(fixed, span))}]" if span else text


def percent(share: Any, interval: Any = None) -> str:
    """A share in [0, 1] as '0.03 %', with its interval as '0.03 % [0.01, 0.09]'."""
    return say(share, interval, 100, int(bool(interval) or share not in (0, 1)), " %", "-")


def points(difference: Any, interval: Any = None) -> str:
    """A difference of shares in percentage points: '+0.1 [-0.2, +0.4]'."""
    return say(difference, interval, 100, 1, "", "+")


def decimal(value: Any, interval: Any = None) -> str:
    """A number as '2.61', with its interval as '2.61 [2.48, 2.74]'."""
    return say(value, interval, 1, 2, "", "-")


def count(value: Any) -> str:
    """A whole number as '10,000'."""
    return DASH if finite(value) is None else f"{value:,.0f}"


def plain(value: Any) -> str:
    """Any JSON value in one line: 'steps: 200, lr: 0.05'."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items()) or DASH
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or DASH
    if isinstance(value, float):
        return DASH if finite(value) is None else f"{value:.6g}"
    return str(value) if isinstance(value, str | int) and value != "" else DASH


def log_position(share: float) -> float:
    """Where a share stands between 0.001 % and all below, 0, and 100 %, 100."""
    return round(20 * max(0.0, 5 + math.log10(max(share, 1e-5))), 2)


def md(text: Any) -> str:
    """Text that Markdown shows as it is, in one line."""
    line = html.escape(" ".join(plain(text).split()), quote=False)
    return re.sub(r"([\\`*_|]|!(?=\[)|\](?=[(\[:]))", r"\\\1", line)
