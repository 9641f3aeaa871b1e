"""What a classifier learns from a synthetic dataset, from real images, and from the teacher's.

`python eval/benchmarks/usefulness.py RUN TRAIN TEST [--each 400] [--seeds 0 1 2] [--out
RESULT.json]`; TRAIN and TEST are labelled real images (`digits_data.py` writes them).
As many of each kind are learned from; every seed trains its own classifier.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

import sfd
from sfd import metrics, verbs
from sfd.provenance import collect

parser = argparse.ArgumentParser()
parser.add_argument("run")
parser.add_argument("train")
parser.add_argument("test")
parser.add_argument("--each", type=int, default=400, help="images of each label")
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--out", type=Path)
arguments = parser.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"

student = sfd.load(arguments.run, device)
kinds: dict[str, list] = {}
with tempfile.TemporaryDirectory() as temporary:
    out = Path(temporary) / "set"
    labels = len(student.labels) - len(student.card["concepts"])
    report = sfd.synthesize(arguments.run, out, n=labels * arguments.each, device=device)
    assert report is not None
    for seed in arguments.seeds:
        found = verbs.add_usefulness(
            out, report, student, arguments.train, arguments.test, device=device, seed=seed
        )["usefulness"]
        for kind, row in found["accuracy"].items():
            kinds.setdefault(kind, []).append(row)
        print(seed, {kind: rows[-1]["k"] for kind, rows in kinds.items()}, flush=True)
right = {kind: sum(row["k"] for row in rows) for kind, rows in kinds.items()}
tested = sum(row["n"] for row in kinds["real images"])
real, teacher = right["real images"], right["the teacher's images"]
result = {
    "what": "accuracy on real held-out images of a classifier trained on each kind",
    "command": "python eval/benchmarks/usefulness.py RUN TRAIN TEST",
    "student": student.card["name"],
    "arch": found["arch"],
    "epochs": found["epochs"],
    "images": found["images"],
    "kept": report["kept"],
    "refused": report["refused"],
    "seeds": arguments.seeds,
    "by_seed": kinds,
    # images are tested by every seed's classifier, so their pooled interval is a rough one
    "pooled": {
        kind: {"k": k, "n": tested, "ci95": metrics.rate_interval(k, tested)}
        for kind, k in right.items()
    },
    "ratio_to_real": right["synthetic images"] / real,
    "ratio_to_teacher": right["synthetic images"] / teacher,
    "provenance": collect(device, threads=torch.get_num_threads()),
}
result["provenance"]["command"] = result["command"]
print(json.dumps({k: result[k] for k in ("pooled", "ratio_to_real", "ratio_to_teacher")}, indent=1))
if arguments.out:
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
