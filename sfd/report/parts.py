"""Parts of an audit, whichever of them are there."""

from collections.abc import Mapping
from typing import Any

from sfd.report.numbers import ends

Json = Mapping[str, Any]


def part(audit: Json, name: str) -> Any:
    """A part of the evidence, empty if it is not there."""
    return (audit.get("evidence") or {}).get(name) or ([] if name == "attacks" else {})


def concepts_of(audit: Json) -> list[dict[str, Any]]:
    """Concepts as {name, label, label_name, direct}, also those that only the evidence names."""
    given = (audit.get("subject") or {}).get("concepts") or []
    found = {c["name"]: c for c in (c if isinstance(c, dict) else {"name": c} for c in given)}
    direct = part(audit, "direct")
    return [
        {"label": (direct.get(name) or {}).get("label"), "label_name": name}
        | {key: value for key, value in found.get(name, {}).items() if value is not None}
        | {"name": name, "direct": direct.get(name) or {}}
        for name in dict.fromkeys([*found, *direct])
    ]


def label_name(audit: Json, label: Any) -> str:
    """A label's name, given its name or its index (which JSON writes as a string)."""
    text, labels = (
        str(label),
        [str(each) for each in part(audit, "cross_leak").get("labels") or []],
    )
    known = text in labels or not text.isdecimal() or int(text) >= len(labels)
    return text if known else labels[int(text)]


def collateral_of(audit: Json) -> list[dict[str, Any]]:
    """Rows of the per-class table, each difference with its place (in %) on one common scale."""
    found = part(audit, "collateral").items()
    rows: list[dict[str, Any]] = [
        {**(row or {}), "name": label_name(audit, key)} for key, row in found
    ]
    spans = [ends((row.get("accuracy") or {}).get("ci95")) or () for row in rows]
    reach = max([abs(x) for pair in spans for x in pair] + [0.005])
    strips = [[round(50 + 48 * x / reach, 2) for x in pair] for pair in spans]
    return [row | {"strip": strip} for row, strip in zip(rows, strips, strict=True)]
