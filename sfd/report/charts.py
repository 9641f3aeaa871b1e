"""Charts of a run, as geometry that the template draws."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sfd.report.numbers import MINUS, finite
from sfd.report.parts import Json

BOX = (46, 350, 12, 168)  # left, right, top and bottom of a chart's axes


def charts(stats: Sequence[Json], curves: Sequence[Json]) -> list[dict[str, Any]]:
    """A chart of each kind of number that training and looks left."""
    series: dict[str, dict[str, list[tuple[Any, Any]]]] = {}

    def add(title: str, line: str, x: Any, y: Any) -> None:
        value, scale = finite(y), 100 if title.endswith("%") else 1
        point = (x, None if value is None else scale * value)
        series.setdefault(title, {}).setdefault(line, []).append(point)

    for row in curves:
        seconds, valid = row["seconds"], "Valid images, and agreement on retained classes, %"
        for name, share in (row.get("direct") or {}).items():
            add("Forgotten, yet found when asked for, %", name, seconds, share)
        for name, share in (row.get("valid") or {}).items():
            add(valid, f"valid: {name}", seconds, share)
        add(valid, "agreement", seconds, row.get("agreement"))
        add("Fr\u00e9chet distance, retained classes", "FID", seconds, row.get("fid"))
    for row in stats[:: len(stats) // 300 + 1]:
        for key in (key for key in row if key.startswith("loss_")):
            name, _, band = key.removeprefix("loss_").partition("_sigma_")
            title = f"Loss of the {name}" + (", by noise level" if band else "")
            add(title, "\u03c3 " + band.replace("_", " to "), row["nimg"], row[key])
    made = [_chart(title, lines) for title, lines in series.items()]
    return [chart for chart in made if chart]


def _chart(title: str, lines: Mapping[str, Sequence[tuple[Any, Any]]]) -> dict[str, Any] | None:
    """One line chart, or None of less than two points; a span over 30-fold is drawn in log."""
    end = max(x for line in lines.values() for x, _ in line)
    ys = [y for line in lines.values() for _, y in line if y is not None]
    if len(ys) < 2 or end <= 0:
        return None
    left, right, top, bottom = BOX
    log = min(ys) > 0 and max(ys) > 30 * min(ys) and not title.endswith("%")
    bend = math.log10 if log else float
    low, high = bend(min(ys)), bend(max(ys))
    margin = 0.06 * (high - low) or 0.5
    low, high = low - margin, high + margin
    units = ("images", "thousand images", 1000)
    units = units if title.startswith("Loss") else ("seconds", "minutes", 60)
    many = units[2] if end >= 5 * units[2] else 1

    def at(x: float, y: float) -> tuple[float, float]:
        up = (bend(y) - low) / (high - low)
        return round(left + (right - left) * x / end, 1), round(bottom - (bottom - top) * up, 1)

    paths = []
    for name, line in lines.items():
        pens = ["M", *("M" if y is None else "L" for _, y in line[:-1])]
        known = [(pen, at(x, y)) for pen, (x, y) in zip(pens, line, strict=True) if y is not None]
        paths.append((name, " ".join(f"{pen}{x} {y}" for pen, (x, y) in known)))
    ticks = [(at(0, tick)[1], f"{tick:.4g}") for tick in _ticks(low, high, log)]
    return {
        "title": title + (" (log scale)" if log else ""),
        "box": BOX,
        "paths": paths,
        "x": [(at(many * x, ys[0])[0], f"{x:.4g}") for x in _ticks(0, end / many, False)],
        "y": [(y, text.replace("-", MINUS)) for y, text in ticks],
        "unit": units[many > 1],
    }


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """Round numbers from low to high, or from 10^low to 10^high."""
    if log:
        leads = (1, 2, 5) if high - low < 2 else (1,)
        ticks = [m * 10.0**p for p in range(math.floor(low), math.ceil(high)) for m in leads]
        return [tick for tick in ticks if low <= math.log10(tick) <= high]
    size = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(m * size for m in (1, 2, 5, 10) if high - low <= 5 * m * size)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
