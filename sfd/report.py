"""An audit as a page, a sentence and a model-card section: JSON and PNG files in, text out."""

import base64
import html
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfd import content

SCHEMA = "sfd/audit/1"
VERDICTS = {"FAIL": "failed", "INCONCLUSIVE": "undecided", "PASS": "passed"}  # worst first
THREATS = {
    "api": "an attacker who sends conditions and sees the images",
    "open-weights": "an attacker who holds the weights",
}
PARTS = ("direct", "validity", "override", "cross_leak", "collateral", "quality", "hygiene")
DASH, MINUS = "\u2013", "\u2212"
WIDEST = 24  # labels of the matrix, and classes of the sheets, that are shown unfolded
LONGEST = 200_000  # characters of a file that is shown folded
BOX = (46, 350, 12, 168)  # left, right, top and bottom of a chart's axes
Json = Mapping[str, Any]


def write(folder: Path) -> Path:
    """The report of what a run or an audit left in `folder`, as `folder/report.html`.

    Only audit.json is needed; what else is missing is named in the report. The page is one file,
    without scripts, and opens offline. Raises ValueError, in one line, if audit.json is missing,
    is not JSON, has another schema, or has a verdict better than its worst claim.
    """
    import jinja2

    path = folder / "audit.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run `sfd audit {folder}` first")
    try:
        audit = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    _check(audit, str(path))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = (percent, points, decimal, count, plain, measured, log_position)
    environment.filters |= {each.__name__: each for each in filters}
    template = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(template).render(_view(audit, folder))
    content.write_atomic(folder / "report.html", page)
    return folder / "report.html"


def sentence(audit: Json) -> str:
    """What the audit found, for a reader of contracts: a sentence per concept, then the verdict.

    Raises ValueError as `write` does on another schema or an incoherent verdict.
    """
    _check(audit, "audit")
    return " ".join(_sentences(audit))


def markdown(audit: Json) -> str:
    """A model card's section on the audit, level 2, with every claim and what was not tested.

    Raises ValueError as `write` does on another schema or an incoherent verdict.
    """
    lines = [_md(sentence(audit)), ""]
    lines += ["| Claim | Result | Why |", "|---|---|---|"] if audit["claims"] else []
    for claim in audit["claims"]:
        text, why = _md(claim.get("text") or claim.get("id")), _md(claim.get("why"))
        lines.append(f"| {text} | **{claim['status']}** | {why} |")
    lines += ["", "Not tested:", ""] if audit.get("not_tested") else []
    lines += [f"- {_md(item)}" for item in audit.get("not_tested") or []]
    suite, subject = audit.get("suite") or {}, audit.get("subject") or {}
    lines += ["", f"Suite {_md(suite.get('name'))}, version {_md(suite.get('version'))}."]
    lines += [f"Sha256 of the subject: {_md(subject.get('sha256'))}."]
    return "\n".join([f"## Forgetting audit: {audit['verdict']}", "", *lines, ""])


def _check(audit: Any, where: str) -> None:
    """Raise ValueError unless schema, verdict and claims are there and agree."""
    schema = audit.get("schema") if isinstance(audit, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{where}: schema is {schema!r}, this version of sfd reads {SCHEMA!r}")
    verdict, claims, order = str(audit.get("verdict")), audit.get("claims"), list(VERDICTS)
    if not isinstance(claims, list) or not all(isinstance(claim, dict) for claim in claims):
        raise ValueError(f"{where}: 'claims' must be a list of mappings")
    for status in (verdict, *(claim.get("status") for claim in claims)):
        if status not in order:
            raise ValueError(f"{where}: {status!r} is no verdict; known: {', '.join(order)}")
    for claim in claims or [{"id": "(none was made)", "status": "INCONCLUSIVE"}]:
        if order.index(verdict) > order.index(claim["status"]):
            worse = f"claim {claim.get('id')!r} is {claim['status']}"
            raise ValueError(f"{where}: the verdict is {verdict} but {worse}")


# --- the sentence --------------------------------------------------------------------------------


def _sentences(audit: Json) -> list[str]:
    clauses = [[*_asked(c), *_attacked(audit, c["name"])] for c in _concepts(audit)] or [[]]
    clauses[-1] += [] if _part(audit, "attacks") else ["no attack was tried"]
    clauses[-1] += _harmed(audit)
    found = ["; ".join(clause) + "." for clause in clauses]
    ids = {s: [str(c.get("id")) for c in audit["claims"] if c["status"] == s] for s in VERDICTS}
    text = f"{len(ids['PASS'])} of {len(audit['claims'])} claims passed"
    for status in ("FAIL", "INCONCLUSIVE"):
        if ids[status]:
            text += f", {len(ids[status])} {VERDICTS[status]} ({', '.join(ids[status])})"
    if audit["claims"] and audit["verdict"] != next(status for status in VERDICTS if ids[status]):
        text += ", but the audit itself is in doubt (its controls or its coverage)"
    model = str(audit.get("threat_model"))
    text += f"; tested against {THREATS.get(model, 'an attacker')} (threat model {model})"
    closing = f"Verdict {audit['verdict']}: {text}; it says nothing beyond that."
    return [*(s[:1].upper() + s[1:] for s in found), closing]


def _asked(concept: Json) -> list[str]:
    name, direct = f"\u201c{concept['label_name']}\u201d", concept["direct"]
    raw, upper = measured(direct), _ends(direct.get("corrected_ci95"))
    if raw["k"] is None or not raw["n"]:
        return [f"the generator was never asked for {name}, so nothing is known of it"]
    images = {0: "no image", 1: "1 image"}.get(raw["k"], f"{count(raw['k'])} images")
    text = f"asked for {name} {count(raw['n'])} times, the generator drew {images} in which the"
    text += f" detector found it: {percent(raw['rate'], raw['ci95'])}, "
    if upper:
        text += f"up to {percent(upper[1])} once the detector\u2019s own errors are counted"
    else:
        text += "and the detector\u2019s own errors were not measured"
    before, failed = measured(direct.get("baseline"))["rate"], _finite(direct.get("failed"))
    text += "" if before is None else f" (the original, asked the same: {percent(before)})"
    return [text, f"{count(failed)} images could not be made or judged"][: 2 if failed else 1]


def _attacked(audit: Json, name: str) -> list[str]:
    tried = [a for a in _part(audit, "attacks") if a.get("concept") == name]
    tried = [a for a in tried if a.get("measure") != "steps"]  # who trains finds it in the end
    rates = [(measured(a), a) for a in tried if measured(a)["rate"] is not None]
    if not rates:
        return []
    found, attack = max(rates, key=lambda pair: pair[0]["rate"])
    text = f"the hardest attack ({plain(attack.get('name'))}) found it in {count(found['k'])} of"
    gold = measured((attack.get("controls") or {}).get("gold"))
    never = f", against {count(gold['k'])} of {count(gold['n'])} in a model that never knew it"
    return [f"{text} {count(found['n'])} tries" + (never if gold["n"] else "")]


def _harmed(audit: Json) -> list[str]:
    rows = {row["name"]: row.get("accuracy") or {} for row in _collateral(audit)}
    rows = {name: a for name, a in rows.items() if _finite(a.get("difference")) is not None}
    if not rows:
        return []
    name = min(rows, key=lambda name: rows[name]["difference"])
    ends = _ends(rows[name].get("ci95"))
    mirrored = ends and (-ends[1], -ends[0])
    loss = _say(-rows[name]["difference"], mirrored, 100, 1, " points", "-")
    return [f"of {len(rows)} retained classes the most harmed ({name}) lost {loss}"]


# --- parts of the audit, and numbers as text -----------------------------------------------------


def _part(audit: Json, name: str) -> Any:
    return (audit.get("evidence") or {}).get(name) or ([] if name == "attacks" else {})


def _concepts(audit: Json) -> list[dict[str, Any]]:
    """Concepts as {name, label, label_name, direct}, also those that only the evidence names."""
    given = (audit.get("subject") or {}).get("concepts") or []
    found = {c["name"]: c for c in (c if isinstance(c, dict) else {"name": c} for c in given)}
    direct = _part(audit, "direct")
    return [
        {"label": (direct.get(name) or {}).get("label"), "label_name": name}
        | {key: value for key, value in found.get(name, {}).items() if value is not None}
        | {"name": name, "direct": direct.get(name) or {}}
        for name in dict.fromkeys([*found, *direct])
    ]


def _name(audit: Json, label: Any) -> str:
    """A label's name, given its name or its index (which JSON writes as a string)."""
    text, labels = (
        str(label),
        [str(each) for each in _part(audit, "cross_leak").get("labels") or []],
    )
    known = text in labels or not text.isdecimal() or int(text) >= len(labels)
    return text if known else labels[int(text)]


def _finite(value: Any) -> float | None:
    """A finite number, or None for whatever is not one."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if known else None


def _ends(interval: Any) -> tuple[float, float] | None:
    pair = interval if isinstance(interval, list | tuple) and len(interval) == 2 else (None, None)
    lo, hi = map(_finite, pair)
    return None if lo is None or hi is None else (lo, hi)


def measured(record: Any) -> dict[str, Any]:
    """A record as {k, n, rate, ci95}, None where unknown; the rate is its own, or k of n."""
    found = record if isinstance(record, Mapping) else {}
    k, n, rate = (_finite(found.get(key)) for key in ("k", "n", "rate"))
    rate = k / n if rate is None and k is not None and n else rate
    return {"k": k, "n": n, "rate": rate, "ci95": _ends(found.get("ci95"))}


def _say(value: Any, interval: Any, scale: float, least: int, unit: str, sign: str) -> str:
    """A number and its interval, with so many decimals that what is not zero does not look it."""
    known, ends = _finite(value), _ends(interval)
    width = (ends[1] - ends[0]) / 2 if ends else (known or 0) / 10
    sizes = [abs(x) * scale for x in (width, known if sign == "-" else 0) if x]
    places = min(max([least, *(math.ceil(-math.log10(size)) for size in sizes)]), 6)

    def fixed(x: float) -> str:  # + 0.0: no minus zero
        return f"{round(scale * x, places) + 0.0:{sign},.{places}f}".replace("-", MINUS)

    text = DASH if known is None else fixed(known) + unit
    return f"{text} [{', '.join(map(fixed, ends))}]" if ends else text


def percent(share: Any, interval: Any = None) -> str:
    """A share in [0, 1] as '0.03 %', with its interval as '0.03 % [0.01, 0.09]'."""
    return _say(share, interval, 100, int(bool(interval) or share not in (0, 1)), " %", "-")


def points(difference: Any, interval: Any = None) -> str:
    """A difference of shares in percentage points: '+0.1 [-0.2, +0.4]'."""
    return _say(difference, interval, 100, 1, "", "+")


def decimal(value: Any, interval: Any = None) -> str:
    """A number as '2.61', with its interval as '2.61 [2.48, 2.74]'."""
    return _say(value, interval, 1, 2, "", "-")


def count(value: Any) -> str:
    """A whole number as '10,000'."""
    return DASH if _finite(value) is None else f"{value:,.0f}"


def plain(value: Any) -> str:
    """Any JSON value in one line: 'steps: 200, lr: 0.05'."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items()) or DASH
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or DASH
    if isinstance(value, float):
        return DASH if _finite(value) is None else f"{value:.6g}"
    return str(value) if isinstance(value, str | int) and value != "" else DASH


def log_position(share: float) -> float:
    """Where a share stands between 0.001 % and all below, 0, and 100 %, 100."""
    return round(20 * max(0.0, 5 + math.log10(max(share, 1e-5))), 2)


def _md(text: Any) -> str:
    """Text that Markdown shows as it is, in one line."""
    line = html.escape(" ".join(plain(text).split()), quote=False)
    return re.sub(r"([\\`*_|]|!(?=\[)|\](?=[(\[:]))", r"\\\1", line)


# --- the page ------------------------------------------------------------------------------------


def _view(audit: Json, folder: Path) -> dict[str, Any]:
    """All that the template shows."""
    names = ("audit.json", "recipe.yaml", "provenance.json", "stats.jsonl", "curves.jsonl")
    absent = [f"evidence.{part}" for part in PARTS if not _part(audit, part)]
    absent += [name for name in names if not (folder / name).is_file()]
    files = [folder / name for name in names[:3] if name not in absent]
    texts = {path.name: path.read_text("utf-8", "replace") for path in files}
    pictures = {p.stem: p.read_bytes() for p in sorted((folder / "sheets").glob("*.png"))}
    sheets = {
        k: f"data:image/png;base64,{base64.b64encode(v).decode()}" for k, v in pictures.items()
    }
    concepts = _concepts(audit)
    for concept in concepts:
        concept |= _shown(audit, concept) | {"worst": sheets.get(f"worst-{concept['name']}")}
        absent += [] if concept["worst"] else [f"sheets/worst-{concept['name']}.png"]
    classes = _classes(audit, sheets)
    for who in ("teacher", "student"):
        absent += [] if any(c[who] for c in classes) else [f"sheets/{who}-NN.png"]
    attacks = [{**a, "found": measured(a)} for a in _part(audit, "attacks")]
    subject = audit.get("subject") or {}
    return {
        "audit": audit,
        "sentences": _sentences(audit),
        "concepts": concepts,
        "classes": classes,
        "widest": WIDEST,
        "matrix": _matrix(audit),
        "collateral": _collateral(audit),
        "attacks": sorted(attacks, key=lambda a: -(a["found"]["rate"] or 0.0)),
        "charts": _charts(_records(folder / "stats.jsonl"), _records(folder / "curves.jsonl")),
        "command": f"sfd audit {shlex.quote(str(subject['path']))}" if subject.get("path") else "",
        "texts": {k: v if len(v) < LONGEST else "too long" for k, v in texts.items()},
        "absent": absent,
    }


def _records(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file; a last one torn when the run was killed is left out."""
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    try:
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: a line is not JSON: {error.doc.strip()[:40]!r}") from None


def _shown(audit: Json, concept: Json) -> dict[str, Any]:
    """What the page shows of one concept beside its names."""
    name, direct = concept["name"], concept["direct"]
    test, asked = _part(audit, "override").get(name) or {}, measured(direct)["n"]
    drawn = {k: v / asked for k, v in (direct.get("histogram") or {}).items() if asked and v}
    shares = (test.get("declared") or {}, test.get("observed") or drawn)
    declared, observed = ({_name(audit, k): v for k, v in each.items()} for each in shares)
    none = 0 if declared else None
    rows = [(k, declared.get(k, none), observed.get(k)) for k in {**declared, **observed}]
    claims = [c for c in audit["claims"] if c.get("evidence") == f"evidence.direct.{name}"]
    kept = _part(audit, "retention").get(name) or {}
    ways = (direct.get("by_template") or {}).items()
    return {
        "retention": [(k.replace("_", "-"), v) for k, v in kept.items() if v],
        "templates": sorted(ways, key=lambda way: -way[1]["rate"]),
        "validity": _part(audit, "validity").get(name) or {},
        "override_test": test,
        "instead": sorted(rows, key=lambda row: -(row[2] or 0.0))[:WIDEST],
        "threshold": next((_finite(c.get("threshold")) for c in claims), None),
    }


def _classes(audit: Json, sheets: Mapping[str, str]) -> list[dict[str, Any]]:
    """Sheets of every class before and after, forgotten classes first."""
    forgotten = {c["label"]: c["label_name"] for c in _concepts(audit)}
    found: dict[int, dict[str, Any]] = {}
    for stem in (s for s in sheets if re.fullmatch(r"(student|teacher)-\d+", s)):
        empty = {"student": None, "teacher": None}
        found.setdefault(int(stem[8:]), empty)[stem[:7]] = sheets[stem]
    return [
        {"name": forgotten.get(i) or _name(audit, i), "forgotten": i in forgotten} | found[i]
        for i in sorted(found, key=lambda i: (i not in forgotten, i))
    ]


def _matrix(audit: Json) -> dict[str, Any] | None:
    """The heat map: of many labels, the forgotten ones and those that touch them most."""
    crossed, concepts = _part(audit, "cross_leak"), _concepts(audit)
    labels, counts = [str(x) for x in crossed.get("labels") or []], crossed.get("matrix")
    if not labels or not counts:
        return None
    if {len(labels)} != {len(counts), *map(len, counts)}:
        raise ValueError(f"evidence.cross_leak: the matrix is not {len(labels)} x {len(labels)}")
    every = range(len(labels))
    ours = {i for c in concepts for i in every if c["label_name"] == labels[i] or c["label"] == i}
    touch = [sum((counts[i][j] or 0) + (counts[j][i] or 0) for j in ours) for i in every]
    kept = sorted(every, key=lambda i: (i not in ours, -touch[i]))[:WIDEST]
    heads = [{"at": i, "name": labels[i], "ours": i in ours} for i in sorted(kept)]
    rows = [head | {"counts": counts[head["at"]]} for head in heads]
    for row in rows:
        row["n"] = sum(filter(None, row["counts"]))
    return {"heads": heads, "rows": rows, "hidden": len(labels) - len(kept)}


def _collateral(audit: Json) -> list[dict[str, Any]]:
    """Rows of the per-class table, each difference with its place (in %) on one common scale."""
    found = _part(audit, "collateral").items()
    rows: list[dict[str, Any]] = [{**(row or {}), "name": _name(audit, key)} for key, row in found]
    ends = [_ends((row.get("accuracy") or {}).get("ci95")) or () for row in rows]
    reach = max([abs(x) for pair in ends for x in pair] + [0.005])
    strips = [[round(50 + 48 * x / reach, 2) for x in pair] for pair in ends]
    return [row | {"strip": strip} for row, strip in zip(rows, strips, strict=True)]


# --- charts --------------------------------------------------------------------------------------


def _charts(stats: Sequence[Json], curves: Sequence[Json]) -> list[dict[str, Any]]:
    """Charts of the run, as geometry that the template draws."""
    series: dict[str, dict[str, list[tuple[Any, Any]]]] = {}

    def add(title: str, line: str, x: Any, y: Any) -> None:
        value, scale = _finite(y), 100 if title.endswith("%") else 1
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
    charts = [_chart(title, lines) for title, lines in series.items()]
    return [chart for chart in charts if chart]


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
