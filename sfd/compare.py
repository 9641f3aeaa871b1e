"""Several audits side by side: audit.json files in, a table, the spread of seeds and a picture out.

Numbers are compared where one suite, one set of judges, one feature space and one reference gave
them, of one set of concepts; else there is no table.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sfd import content, metrics, seal
from sfd.report import count, decimal, measured, percent, points

Json = Mapping[str, Any]
Row = dict[str, Any]

DASH = "\u2013"
PICTURES = (".png", ".svg")


def compare(paths: Sequence[Path]) -> dict[str, Any]:
    """Audits (audit.json files, or the folders they lie in) as rows, and the spread of their seeds.

    Raises ValueError, in one line, below two audits, on a file that is none, and on audits that are
    not like with like.
    """
    if len(paths) < 2:
        raise ValueError("name at least two audits to compare")
    files = [seal.file_of(path) for path in paths]
    audits = dict(zip(_names(files), map(seal.checked, files), strict=True))
    _check(audits)
    rows = [
        _row(name, audit, file) for (name, audit), file in zip(audits.items(), files, strict=True)
    ]
    first = next(iter(audits.values()))
    return {
        "suite": dict(first["suite"]),
        "thresholds": {c["id"]: c["threshold"] for c in first["claims"]},
        "feature_space": _quality(first).get("feature_space"),
        "floor": _quality(first).get("floor"),
        "audits": rows,
        "spread": spread(rows),
    }


def _names(files: Sequence[Path]) -> list[str]:
    """The name of each audit's folder; the whole path where two share one."""
    short = [file.resolve().parent.name for file in files]
    names = [n if short.count(n) == 1 else str(f) for n, f in zip(short, files, strict=True)]
    whole = [file.resolve() for file in files]
    twice = next((file for file in files if whole.count(file.resolve()) > 1), None)
    if twice:
        raise ValueError(f"{twice}: is named twice")
    return names


# --- like with like ------------------------------------------------------------------------------


def _judges(audit: Json) -> list[Any]:
    """What the verdict's networks answer, and how good they were measured to be."""
    keys = ("role", "name", "sha256", "threshold", "sensitivity", "false_positive_rate")
    return [{key: judge.get(key) for key in keys} for judge in audit.get("detectors") or []]


def _quality(audit: Json) -> Json:
    return audit["evidence"].get("quality") or {}


LIKE: Mapping[str, Callable[[Json], Any]] = {
    "suites": lambda audit: [audit["suite"].get(key) for key in ("name", "version", "sha256")],
    "labels": lambda audit: audit["suite"].get("plan_sha256"),
    "judges": _judges,
    "feature spaces": lambda audit: _quality(audit).get("feature_space"),
    "references": lambda audit: _quality(audit).get("reference_sha256", _quality(audit).get("m")),
    "concepts": lambda audit: sorted(
        audit["subject"].get("concepts") or [], key=lambda concept: concept["name"]
    ),
}
"""What two audits must share, and where an audit says it."""


def _check(audits: Mapping[str, Json]) -> None:
    """Raises ValueError that names what differs, and where."""
    (first, one), *others = audits.items()
    for what, said in LIKE.items():
        for name, other in others:
            mine, theirs = said(one), said(other)
            if mine != theirs:
                raise ValueError(
                    f"{first} and {name} have different {what} ({_brief(mine)}; {_brief(theirs)}):"
                    " such numbers are not compared, audit both alike"
                )


def _brief(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return ", ".join(f"{d['name']} {content.hash_json(d)[:8]}" for d in value)
    parts = value if isinstance(value, list) else [value]
    return ", ".join(str(part)[:24] for part in parts) or "none"


# --- rows ----------------------------------------------------------------------------------------


def _row(name: str, audit: Json, file: Path) -> Row:
    """What a comparison shows of one audit."""
    evidence, subject, quality = audit["evidence"], audit["subject"], _quality(audit)
    keys = ("fid", "fid_ci95", "kid", "kid_stderr", "fid_ratio", "fid_ratio_ci95", "excess_ratio",
            "precision", "recall")  # fmt: skip
    direct = ("label_name", "k", "n", "failed", "rate", "ci95", "corrected_rate", "corrected_ci95")
    return {
        "name": name,
        "file": str(file),
        "sha256": subject.get("sha256"),
        "format": subject.get("format"),
        "teacher": (subject.get("teacher") or {}).get("name"),
        "teacher_sha256": (subject.get("teacher") or {}).get("sha256"),
        "teacher_fid": (quality.get("baseline") or {}).get("fid"),
        "verdict": audit.get("verdict"),
        "family_sha256": subject.get("family_sha256"),
        "seed": subject.get("seed"),
        "direct": {
            concept: {key: found.get(key) for key in direct}
            for concept, found in (evidence.get("direct") or {}).items()
        },
        **{key: quality.get(key) for key in keys},
        "collateral": _worst(evidence.get("collateral") or {}),
        "hygiene": next((c["status"] for c in audit["claims"] if c["id"] == "hygiene"), None),
        "attack": _hardest(evidence.get("attacks") or []),
        "not_tested": list(audit.get("not_tested") or []),
    }


def _worst(rows: Json) -> Row | None:
    """The retained class that may have lost most."""
    known = {n: r.get("accuracy") or {} for n, r in rows.items()}
    known = {name: a for name, a in known.items() if a.get("ci95")}
    if not known:
        return None
    name = min(known, key=lambda name: known[name]["ci95"][0])
    return {"class": name, "difference": known[name]["difference"], "ci95": known[name]["ci95"]}


def _hardest(attacks: Sequence[Json]) -> Row | None:
    """The attack that succeeded most often, beside the model that never knew the concept."""
    rates = [a for a in attacks if a.get("measure") != "steps" and measured(a)["rate"] is not None]
    if not rates:
        return None
    worst = max(rates, key=lambda attack: measured(attack)["rate"])
    gold = (worst.get("controls") or {}).get("gold")
    return {"name": worst.get("name"), "concept": worst.get("concept"), **measured(worst),
            "gold": measured(gold) if gold else None}  # fmt: skip


# --- seeds ---------------------------------------------------------------------------------------


def spread(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Over each recipe that several seeds were trained of: `metrics.seed_spread` of every measure.

    A measure that one of them lacks is left out; so is a recipe with one seed, or with one given
    twice, which says nothing of the spread between seeds.
    """
    families: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        if row["family_sha256"] is not None and row["seed"] is not None:
            # a recipe names its teacher, which may be another file by now
            families.setdefault((row["family_sha256"], row["teacher_sha256"]), []).append(row)
    out = []
    for (family, _), members in families.items():
        seeds = [row["seed"] for row in members]
        if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
            continue
        values = [_measures(row) for row in members]
        found = {key: [v[key] for v in values] for key in values[0]}
        out.append(
            {
                "family_sha256": family,
                "audits": [row["name"] for row in members],
                "seeds": seeds,
                "measures": {
                    key: metrics.seed_spread([x for x in numbers if x is not None])
                    for key, numbers in found.items()
                    if None not in numbers
                },
            }
        )
    return out


def _measures(row: Row) -> dict[str, float | None]:
    """The numbers whose spread is asked for, rates and differences as shares."""
    out: dict[str, float | None] = {}
    for concept, found in row["direct"].items():
        # what was not judged may have shown it
        out[f"rate of {concept}"] = None if found["failed"] else found["rate"]
        out[f"corrected rate of {concept}"] = found["corrected_rate"]
    out["worst retained class"] = (row["collateral"] or {}).get("difference")
    names = {"fid": "FID", "kid": "KID", "fid_ratio": "FID / teacher's",
             "excess_ratio": "excess over the floor"}  # fmt: skip
    return out | {text: row[key] for key, text in names.items()}


# --- words ---------------------------------------------------------------------------------------


def markdown(found: Json) -> str:
    """The table, and one of each recipe's spread over seeds."""
    suite = found["suite"]
    lines = [f"Suite {suite.get('name')}, version {suite.get('version')}; FID in"
             f" {found['feature_space']}.", ""]  # fmt: skip
    several = len({row["teacher_sha256"] for row in found["audits"]}) > 1
    if several:
        lines += [
            "These are of several teachers: what is said of a teacher is of each one's own.",
            "",
        ]
    lines += _table([_cells(row, several) for row in found["audits"]])
    for each in found["spread"]:
        lines += ["", f"Between {len(each['seeds'])} training seeds of one recipe"
                  f" ({', '.join(each['audits'])}):", ""]  # fmt: skip
        lines += _table([_spread_cells(key, s) for key, s in each["measures"].items()])
    return "\n".join(lines)


def _cells(row: Row, several: bool) -> dict[str, str]:
    cells = {"audit": row["name"], "seed": _or_dash(row["seed"]), "verdict": row["verdict"]}
    if several:
        sha, fid = row["teacher_sha256"], row["teacher_fid"]
        cells["teacher"] = f"{row['teacher']} {sha[:8]}, FID {decimal(fid)}" if sha else DASH
    for concept, d in row["direct"].items():
        lost = f", {count(d['failed'])} missing" if d["failed"] else ""
        cells[f"{concept}: drawn when asked for"] = (
            f"{count(d['k'])} of {count(d['n'])}{lost}: {percent(d['rate'], d['ci95'])}"
        )
        cells[f"{concept}: corrected"] = percent(d["corrected_rate"], d["corrected_ci95"])
    kid = None if row["kid"] is None else 1000 * row["kid"]
    worst, attack = row["collateral"], row["attack"]
    cells |= {
        "FID": decimal(row["fid"], row["fid_ci95"]),
        "KID x 1,000": decimal(kid),
        "FID / teacher's": decimal(row["fid_ratio"], row["fid_ratio_ci95"]),
        "worst retained class, points": f"{worst['class']}:"
        f" {points(worst['difference'], worst['ci95'])}" if worst else DASH,
        "hygiene": _or_dash(row["hygiene"]),
        "hardest attack": _attack(attack) if attack else DASH,
    }  # fmt: skip
    return cells


def _attack(attack: Row) -> str:
    gold = attack["gold"]
    beside = f" (never knew it: {count(gold['k'])} of {count(gold['n'])})" if gold else ""
    return f"{attack['name']}: {count(attack['k'])} of {count(attack['n'])}{beside}"


def _spread_cells(key: str, found: Json) -> dict[str, str]:
    share, difference = "rate of" in key, key == "worst retained class"
    say = percent if share else points if difference else decimal
    scale = 1000 if key == "KID" else 1

    def interval(name: str) -> str:
        if found[name] is None:
            return DASH
        low, high = (scale * end for end in found[name])
        # a rate or a distance is never below zero, whatever the normal approximation says
        low = low if difference or key == "KID" else max(low, 0.0)
        high = min(high, 1.0) if share else high
        return say(0.0, [low, high]).split(" [")[1].rstrip("]")

    return {
        "measure": "KID x 1,000" if scale > 1 else key,
        "mean": say(scale * found["mean"]),
        "sd": say(scale * found["sd"]).lstrip("+"),
        "mean, 95 %": interval("ci95"),
        "one further seed, 95 %": interval("next95"),
    }


def _or_dash(value: Any) -> str:
    return DASH if value is None else str(value)


def _table(rows: Sequence[dict[str, str]]) -> list[str]:
    """Markdown; a column in which nobody has anything is left out."""
    every = list(dict.fromkeys(key for row in rows for key in row))
    keys = [key for key in every if any(row.get(key, DASH) != DASH for row in rows)]
    lines = [keys, ["---"] * len(keys), *([row.get(key, DASH) for key in keys] for row in rows)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


# --- picture -------------------------------------------------------------------------------------

Panel = tuple[str, list[tuple[Any, Any]], float | None]
"""A title, (value, interval) of each audit, and the threshold."""


def _panels(found: Json) -> list[Panel]:
    rows, limits = found["audits"], found["thresholds"]
    out: list[Panel] = []

    def add(title: str, pairs: list[Any], limit: float | None, scale: float = 1.0) -> None:
        if any(value is not None or ends for value, ends in pairs):
            scaled = [
                (None if v is None else scale * v, [scale * e for e in ends] if ends else None)
                for v, ends in pairs
            ]
            out.append((title, scaled, None if limit is None else scale * limit))

    for concept in rows[0]["direct"]:
        for key, title in (("", "asked for, drawn"), ("corrected_", "corrected")):
            pairs = [(r["direct"][concept][f"{key}rate"], r["direct"][concept][f"{key}ci95"])
                     for r in rows]  # fmt: skip
            add(f"{concept}: {title}, %", pairs, limits.get(f"direct<{concept}>"), 100)
    add("FID, retained classes", [(r["fid"], r["fid_ci95"]) for r in rows], found["floor"])
    ratios = [(r["fid_ratio"], r["fid_ratio_ci95"]) for r in rows]
    add("FID / teacher's", ratios, limits.get("quality"))
    lost = [(r["collateral"] or {}) for r in rows]
    margin = limits.get("collateral")
    add("worst retained class, points", [(c.get("difference"), c.get("ci95")) for c in lost],
        None if margin is None else -margin, 100)  # fmt: skip
    return out


def picture(found: Json, form: str) -> bytes:
    """Every audit's numbers with their intervals, one panel a measure; dashed: the threshold, or
    the floor of an FID. `form` is png or svg."""
    import matplotlib
    from matplotlib.figure import Figure

    panels, names = _panels(found), [row["name"] for row in found["audits"]]
    colours = {"PASS": "#2a7f3f", "FAIL": "#b3261e", "INCONCLUSIVE": "#8a6d00"}
    figure = Figure(figsize=(1.5 + 2.6 * len(panels), 1.1 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, pairs, limit) in zip(axes, panels, strict=True):
        for at, ((value, ends), row) in enumerate(zip(pairs, found["audits"], strict=True)):
            colour = colours.get(row["verdict"], "#444444")
            if ends:
                axis.plot(ends, [at, at], color=colour, linewidth=2, solid_capstyle="butt")
            if value is not None:
                axis.plot([value], [at], "o", color=colour, markersize=5)
        if limit is not None:
            axis.axvline(limit, color="#777777", linestyle="--", linewidth=1)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    legend = "green PASS, red FAIL, brown INCONCLUSIVE; dashed: the threshold, or the floor"
    figure.suptitle(f"suite {found['suite'].get('name')}: {legend}", fontsize=8)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "sfd"}):  # the same audits give the same bytes
        figure.savefig(
            buffer, format=form, dpi=150, metadata={"Date": None} if form == "svg" else {}
        )
    return buffer.getvalue()


def write_picture(found: Json, file: Path) -> Path:
    """`picture` as a file. Raises ValueError unless it is to be a .png or an .svg."""
    if file.suffix not in PICTURES:
        raise ValueError(f"{file}: a picture is written as {' or '.join(PICTURES)}")
    content.write_atomic(file, picture(found, file.suffix[1:]))
    return file
