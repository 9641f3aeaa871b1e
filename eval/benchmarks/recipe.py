"""Run a recipe for several training seeds and collect what its audits found.

`python eval/benchmarks/recipe.py RECIPE [--seeds 0 1 2] [--runs FOLDER]` writes
`eval/results/RECIPE.json`. Finished runs are not run again.
"""

import argparse
import json
from pathlib import Path

import sfd
from sfd import checkpoints

parser = argparse.ArgumentParser()
parser.add_argument("recipe")
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
parser.add_argument("--runs", type=Path, default=Path("runs"))
arguments = parser.parse_args()

folders = [arguments.runs / f"{arguments.recipe}-seed{seed}" for seed in arguments.seeds]
rows = []
for seed, folder in zip(arguments.seeds, folders, strict=True):
    outcome = sfd.run(arguments.recipe, f"train.seed={seed}", out=str(folder))
    assert outcome.audit is not None
    found = outcome.audit["evidence"]
    stats = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    curves = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    final = curves[-1]["fid"]
    reached = [
        line["seconds"]
        for line in curves
        if max(line["direct"].values(), default=0) <= 0.01
        and final is not None
        and line["fid"] <= 1.25 * final
    ]
    forgotten = [
        line["seconds"] for line in curves if max(line["direct"].values(), default=0) <= 0.01
    ]
    rows.append(
        {
            "seed": seed,
            "verdict": outcome.audit["verdict"],
            "claims": {c["id"]: [c["status"], c["why"]] for c in outcome.audit["claims"]},
            "direct": {
                name: {k: d[k] for k in ("k", "n", "ci95", "corrected_ci95")}
                for name, d in found["direct"].items()
            },
            "quality": found["quality"],
            "accuracy": {k: v["accuracy"] for k, v in found["collateral"].items()},
            "seconds": stats[-1]["seconds"],
            "seconds_to_forget": forgotten[0] if forgotten else None,
            "seconds_to_forget_and_draw_well": reached[0] if reached else None,
            "subject_sha256": outcome.audit["subject"]["sha256"],
        }
    )
record = checkpoints.read_json(folders[-1] / "provenance.json")
result = {
    "what": f"recipe {arguments.recipe}, audited",
    "command": f"python eval/benchmarks/recipe.py {arguments.recipe} --seeds "
    + " ".join(map(str, arguments.seeds)),
    "runs": rows,
    "provenance": {k: v for k, v in record.items() if k != "command"},  # it names local folders
}
Path(f"eval/results/{arguments.recipe}.json").write_text(json.dumps(result, indent=1) + "\n")
for row in rows:
    print(row["seed"], row["verdict"], row["quality"]["fid"], row["quality"]["excess_ratio"])
