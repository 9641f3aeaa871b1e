"""The README's table of results: `python eval/benchmarks/table.py [--write]`."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def table() -> str:
    """Markdown, one line per audited run of a recipe."""
    lines = [
        "| recipe | seed | verdict | asked for it, drew it | FID (teacher, 35 evaluations)"
        " | excess over the floor | recall (teacher) | training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted((ROOT / "eval/results").glob("*.json")):
        result = json.loads(path.read_text())
        for run in result.get("runs", []):
            q = run["quality"]
            asked = "; ".join(
                f"{d['k']} of {d['n']:,} (corrected up to {100 * d['corrected_ci95'][1]:.2f} %)"
                for d in run["direct"].values()
            )
            excess = f"{q['excess_ratio']:.2f}" if q["excess_ratio"] is not None else "–"
            low, high = q["fid_ci95"]
            lines.append(
                f"| `{path.stem}` | {run['seed']} | {run['verdict']} | {asked or '–'} |"
                f" {q['fid']:.2f} [{low:.2f}, {high:.2f}] ({q['baseline']['fid']:.2f}) | {excess} |"
                f" {q['recall']:.2f} ({q['baseline']['recall']:.2f}) |"
                f" {run['seconds'] / 60:.0f} min |"
            )
    return "\n".join(lines)


def readme_with_table() -> str:
    """The README with the table between its marks."""
    text = (ROOT / "README.md").read_text()
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        (ROOT / "README.md").write_text(readme_with_table())
    else:
        print(table())
