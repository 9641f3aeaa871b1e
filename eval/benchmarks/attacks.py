"""Collect what attacks did to several subjects of one suite.

`python eval/benchmarks/attacks.py SUITE NAME=AUDIT_FOLDER...` writes
`eval/results/attacks-SUITE.json`, from audits as
`sfd audit RUN --suite SUITE --gold GOLD --out AUDIT_FOLDER` leaves them.
"""

import argparse
import json
from pathlib import Path

from sfd import seal

parser = argparse.ArgumentParser()
parser.add_argument("suite")
parser.add_argument("audits", nargs="+", metavar="NAME=AUDIT_FOLDER")
arguments = parser.parse_args()


def told(entry: dict) -> dict:
    """One attack on one subject, beside its controls."""
    rows = {"subject": entry, **entry["controls"]}
    return {
        "attack": entry["name"],
        "measure": entry["measure"],
        "budget": entry["budget"],
        "status": entry.get("status"),
        "against_gold": entry.get("against_gold"),
        **{
            who: {k: row[k] for k in ("k", "n", "near", "ci95", "cost") if k in row}
            | {k: v for k, v in row["detail"].items() if k in ("steps_to_half", "bound")}
            | {k: row[k] for k in ("model", "sha256") if k in row}
            for who, row in rows.items()
        },
    }


subjects = []
for each in arguments.audits:
    name, _, folder = each.partition("=")
    audit = seal.checked(Path(folder))
    assert audit["suite"]["name"] == arguments.suite, f"{name}: by suite {audit['suite']['name']}"
    subjects.append(
        {
            "name": name,
            "sha256": audit["subject"]["sha256"],
            "plan_sha256": audit["suite"]["plan_sha256"],
            "verdict": audit["verdict"],
            "seconds": audit["cost"]["seconds"],
            "git_commit": audit["provenance"]["git_commit"],
            "attacks": [told(entry) for entry in audit["evidence"]["attacks"]],
        }
    )
result = {
    "what": f"attacks of suite {arguments.suite}",
    "command": f"python eval/benchmarks/attacks.py {arguments.suite} "
    + " ".join(f"{each.partition('=')[0]}=FOLDER" for each in arguments.audits),
    "suite": arguments.suite,
    "subjects": subjects,
}
Path(f"eval/results/attacks-{arguments.suite}.json").write_text(json.dumps(result, indent=1) + "\n")
for subject in subjects:
    for row in subject["attacks"]:
        print(subject["name"], row["attack"], *(row[w]["k"] for w in ("subject", "gold", "leaky")
                                                if w in row), row["status"])  # fmt: skip
