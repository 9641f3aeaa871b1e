"""All that the page shows, as plain data for its template."""

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfd import content, seal
from sfd.report.charts import charts
from sfd.report.numbers import finite, measured
from sfd.report.parts import Json, collateral_of, concepts_of, label_name, part
from sfd.report.words import sentences

PARTS = ("direct", "validity", "override", "cross_leak", "collateral", "quality", "hygiene")
WIDEST = 24  # labels of the matrix, and classes of the sheets, that are shown unfolded
LONGEST = 200_000  # characters of a file that is shown folded


def view(audit: Json, file: Path) -> dict[str, Any]:
    """All that the template shows of an audit, and of what lies beside its file."""
    folder = file.parent
    names = (file.name, "recipe.yaml", "provenance.json", "stats.jsonl", "curves.jsonl")
    absent = [f"evidence.{name}" for name in PARTS if not part(audit, name)]
    absent += [name for name in names if not (folder / name).is_file()]
    files = [folder / name for name in names[:3] if name not in absent]
    texts = {path.name: path.read_text("utf-8", "replace") for path in files}
    drawn = part(audit, "sheets")
    found = {p.stem: p.read_bytes() for p in sorted((folder / "sheets").glob("*.png"))}
    pictures = {k: v for k, v in found.items() if drawn.get(k) == content.sha256(v)}
    sheets = {
        k: f"data:image/png;base64,{base64.b64encode(v).decode()}" for k, v in pictures.items()
    }
    concepts = concepts_of(audit)
    for concept in concepts:
        concept |= _shown(audit, concept) | {"worst": sheets.get(f"worst-{concept['name']}")}
        absent += [] if concept["worst"] else [f"sheets/worst-{concept['name']}.png"]
    classes = _classes(audit, sheets)
    for who in ("teacher", "student"):
        absent += [] if any(c[who] for c in classes) else [f"sheets/{who}-NN.png"]
    attacks = [{**a, "found": measured(a)} for a in part(audit, "attacks")]
    return {
        "audit": audit,
        "sentences": sentences(audit),
        "concepts": concepts,
        "classes": classes,
        "widest": WIDEST,
        "matrix": matrix(audit),
        "collateral": collateral_of(audit),
        "attacks": sorted(attacks, key=lambda a: -(a["found"]["rate"] or 0.0)),
        "charts": charts(records(folder / "stats.jsonl"), records(folder / "curves.jsonl")),
        "earlier": _earlier(audit),
        "command": _command(audit),
        "texts": {k: v if len(v) < LONGEST else "too long" for k, v in texts.items()},
        "absent": absent,
        "hash": audit[seal.HASH],
        "signature": _signature(file),
    }


def _command(audit: Json) -> str:
    """What was typed; nothing where a program asked."""
    typed = str((audit.get("provenance") or {}).get("command") or "")
    return typed if typed.startswith(("sfd audit ", "sfd run ")) else ""


def _earlier(audit: Json) -> list[dict[str, Any]]:
    """Audits that stood in the folder before, of the same subject or that nobody can read."""
    mine = (audit.get("subject") or {}).get("sha256")
    return [
        {key: value for key, value in each.items() if key != "subject_sha256"}
        for each in audit.get("earlier_audits") or []
        if each.get("subject_sha256", mine) == mine
    ]


def _signature(path: Path) -> dict[str, str | None]:
    """Whose key signed the audit, if anybody's; or that the signature is not this file's."""
    try:
        return {"key": seal.signer(path)}
    except ValueError:
        return {"wrong": f"{seal.signature_file(path).name} is not of this {path.name}"}


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file; a last one torn when the run was killed is left out."""
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    try:
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: a line is not JSON: {error.doc.strip()[:40]!r}") from None


def _shown(audit: Json, concept: Json) -> dict[str, Any]:
    """What the page shows of one concept beside its names."""
    name, direct = concept["name"], concept["direct"]
    test, asked = part(audit, "override").get(name) or {}, measured(direct)["n"]
    drawn = {k: v / asked for k, v in (direct.get("histogram") or {}).items() if asked and v}
    shares = (test.get("declared") or {}, test.get("observed") or drawn)
    declared, observed = ({label_name(audit, k): v for k, v in each.items()} for each in shares)
    none = 0 if declared else None
    rows = [(k, declared.get(k, none), observed.get(k)) for k in {**declared, **observed}]
    claims = [c for c in audit["claims"] if c.get("evidence") == f"evidence.direct.{name}"]
    kept = part(audit, "retention").get(name) or {}
    ways = (direct.get("by_template") or {}).items()
    return {
        "retention": [(k.replace("_", "-"), v) for k, v in kept.items() if v],
        "templates": sorted(ways, key=lambda way: -way[1]["rate"]),
        "validity": part(audit, "validity").get(name) or {},
        "review": part(audit, "review").get(name) or {},
        "override_test": test,
        "instead": sorted(rows, key=lambda row: -(row[2] or 0.0))[:WIDEST],
        "threshold": next((finite(c.get("threshold")) for c in claims), None),
    }


def _classes(audit: Json, sheets: Mapping[str, str]) -> list[dict[str, Any]]:
    """Sheets of every class before and after, forgotten classes first."""
    forgotten = {c["label"]: c["label_name"] for c in concepts_of(audit)}
    found: dict[int, dict[str, Any]] = {}
    for stem in (s for s in sheets if re.fullmatch(r"(student|teacher)-\d+", s)):
        empty = {"student": None, "teacher": None}
        found.setdefault(int(stem[8:]), empty)[stem[:7]] = sheets[stem]
    labels = part(audit, "cross_leak").get("labels") or []

    def name_of(i: int) -> str:
        return str(labels[i]) if i < len(labels) else str(i)

    return [
        {"name": forgotten.get(i) or name_of(i), "forgotten": i in forgotten} | found[i]
        for i in sorted(found, key=lambda i: (i not in forgotten, i))
    ]


def matrix(audit: Json) -> dict[str, Any] | None:
    """The heat map: of many labels, the forgotten ones and those that touch them most."""
    crossed, concepts = part(audit, "cross_leak"), concepts_of(audit)
    labels, counts = [str(x) for x in crossed.get("labels") or []], crossed.get("matrix")
    asked = crossed.get("n")  # an image may show several labels or none: a row need not sum to it
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
        row["n"] = asked[row["at"]] if asked else sum(filter(None, row["counts"]))
    return {"heads": heads, "rows": rows, "hidden": len(labels) - len(kept)}
