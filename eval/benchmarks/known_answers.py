"""Are the known answers right whatever the training seed?

`python eval/benchmarks/known_answers.py [--seeds 20] [--runs FOLDER]` trains a gold student a seed
(`digits-gold`, 12,800 images), audits each, and the concept hidden in each under another label,
by `digits-quick`, and once the original and noise, which have no seed; writes
`eval/results/known-answers.json`. Resumes: a seed that was audited is not audited again.
"""

import argparse
import json
from pathlib import Path

import yaml

from sfd import configs, content, devices, jobs, metrics, runs, verbs
from sfd.provenance import collect

parser = argparse.ArgumentParser()
parser.add_argument("--seeds", type=int, default=20)
parser.add_argument("--runs", type=Path, default=Path("runs"))
arguments = parser.parse_args()

device = devices.device_of()
asked = arguments.runs / "known-answers.yaml"
recipe = configs.load("digits-forget-three", ["audit.suite=digits-quick"])
content.write_atomic(asked, yaml.safe_dump(configs.plain(recipe), sort_keys=False))


def quiet(*_: object) -> None:
    pass


answers: dict[str, list[bool]] = {}
for seed in range(arguments.seeds):
    folder = arguments.runs / f"known-answers-seed{seed}"
    done = folder / "controls" / "controls.json"
    if not done.is_file():
        gold = configs.load("digits-gold", [f"train.seed={seed}", "train.images=12800"])
        job = jobs.prepare("digits-gold", gold, device)
        runs.train_job(job, folder, device=device, force=False, say=print, progress=quiet)
        verbs.run_controls(
            str(asked), done.parent, device=device, say=print, progress=quiet, gold=folder,
            untrained=seed == 0,
        )  # fmt: skip
    for row in json.loads(done.read_text()):
        answers.setdefault(row["model"], []).append(row["expected"] == row["got"])

record = collect(str(device))
del record["command"]  # the result has its own, without the folders of one machine
found = {
    model: {
        "right": sum(right),
        "n": len(right),
        "ci95": metrics.rate_interval(sum(right), len(right)),
    }
    for model, right in answers.items()
}
content.write_json(Path(__file__).parents[1] / "results" / "known-answers.json", {
    "command": f"python eval/benchmarks/known_answers.py --seeds {arguments.seeds}",
    "suite": "digits-quick",
    "answers": found,
    "provenance": record,
})  # fmt: skip
for model, row in found.items():
    print(f"{model}: right in {row['right']} of {row['n']}")
