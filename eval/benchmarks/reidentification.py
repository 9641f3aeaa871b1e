"""Re-identification before and after near neighbours of private images are refused.

`python eval/benchmarks/reidentification.py RUN TRAIN TEST [--private 1000] [--n 900] [--out
RESULT.json]`; TRAIN and TEST are labelled real images (`digits_data.py` writes them).

The first images of TRAIN are private. Two generators: the student, and one of whose images a share
are copies of private ones, in another light and noised, as of a generator that has memorised. The
filter looks in `--features`. The attacker matches in another network's (`--matcher`): an image is
re-identified if it is nearer to a private one than all but 1 % of TEST are, so 1 % is what chance
gives. Counts are of drawn images before the filter, and of those it kept.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sfd import classifiers, features, images, metrics, noise, sample
from sfd.concepts import Concept
from sfd.eval.subjects import concepts_of
from sfd.provenance import collect
from sfd.synthesis import asked as asking
from sfd.synthesis import screening, synthesize

CHANCE = 0.01

parser = argparse.ArgumentParser()
parser.add_argument("run")
parser.add_argument("train")
parser.add_argument("test")
parser.add_argument("--private", type=int, default=1000)
parser.add_argument("--n", type=int, default=900)
parser.add_argument("--share", type=float, default=0.2, help="of copies")
parser.add_argument("--features", default="digits-features")
parser.add_argument("--matcher", default="digits-second")
parser.add_argument("--quantiles", type=float, nargs="+", default=[0.01, 0.1, 0.5])
parser.add_argument("--out", type=Path)
arguments = parser.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"

student = sample.load(arguments.run, device)
gone = [c for c in concepts_of(student.card) if isinstance(c, Concept)]
asked = asking.of_labels(student.labels, {c.label: "is forgotten" for c in gone}, "all", {})
names = [c.label_name for c in gone]
detector = f"{gone[0].classifier}={','.join(names)}"
detectors = screening.detectors_of([detector], gone, device)
secret = images.read_labelled(arguments.train)[0][: arguments.private]
others = images.read_labelled(arguments.test)[0]
extract = features.load(arguments.features, device)
match = classifiers.load(arguments.matcher, device).features
secret_matched, other_matched = match(secret), match(others)


def nearest(found: np.ndarray) -> np.ndarray:
    """Distance from each row to the nearest private image, as the attacker sees it."""
    squared = ((found[:, None] - secret_matched[None]) ** 2).sum(2)
    return np.sqrt(squared.min(1))


def in_parts(pictures: np.ndarray) -> np.ndarray:
    found = match(pictures)
    return np.concatenate([nearest(found[i : i + 50]) for i in range(0, len(found), 50)])


radius = float(np.quantile(in_parts(others), CHANCE))


def is_copy(seeds: np.ndarray) -> np.ndarray:
    return noise.uniform(("reidentification", "copy"), seeds) < arguments.share


def memorising(raw, seeds):
    """The student, but for a share of seeds that give a private image again, lit and noised."""
    drawn = student.sample(raw, seeds)
    which = (noise.uniform(("reidentification", "which"), seeds) * len(secret)).astype(int)
    grain = noise.normal(("reidentification", "grain"), seeds, drawn.shape[1:])
    light = 0.8 + 0.4 * noise.uniform(("reidentification", "light"), seeds)
    for i in np.flatnonzero(is_copy(seeds)):
        drawn[i] = (light[i] * secret[which[i]] + 8 * grain[i]).clip(0, 255)
    return drawn


def rate(hits: np.ndarray) -> dict:
    k, n = int(hits.sum()), len(hits)
    return {"k": k, "n": n, "rate": k / n, "ci95": metrics.rate_interval(k, n)}


def measured(generate, quantile: float) -> dict:
    """Synthesize with the filter; who is re-identified among all drawn, and among the kept."""
    private = screening.private_set(list(secret), extract, quantile)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "set"
        report = synthesize(
            replace(student, sample=generate), out, asked, detectors, n=arguments.n,
            private=private, keep_refused=True, device=device,
            about_private={"images": len(secret), "features": arguments.features,
                           "quantile": quantile, "radius": private.radius},
        )  # fmt: skip
        assert report is not None
        sides = []
        for folder in (out, out.with_name("set-quarantine")):
            lines = (folder / "metadata.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines]
            pictures = [images.read_image(folder / row["file_name"]) for row in rows]
            far = in_parts(np.stack(pictures)) if pictures else np.zeros(0)
            seeds = np.array([row["seed"] for row in rows], np.int64)
            copies = is_copy(seeds) if generate is memorising else np.zeros(len(rows), bool)
            sides.append((far < radius, copies))
    (kept, kept_copies), (refused, refused_copies) = sides
    found = {
        "quantile": quantile,
        "drawn": report["drawn"],
        "kept": report["kept"],
        "refused_as_too_near": report["reasons"].get(screening.NEAR, 0),
        "before": rate(np.concatenate([kept, refused])),
        "after": rate(kept),
    }
    if generate is memorising:
        copies = np.concatenate([np.zeros(kept_copies.sum()), np.ones(refused_copies.sum())])
        found["copies_refused"] = rate(copies)
    return found


result = {
    "what": "re-identification of private images, before and after the filter",
    "command": "python eval/benchmarks/reidentification.py RUN TRAIN TEST",
    "student": student.card["name"],
    "private_images": len(secret),
    "filter": arguments.features,
    "matcher": arguments.matcher,
    "chance": CHANCE,
    "copies": arguments.share,
    "student_itself": [measured(student.sample, q) for q in arguments.quantiles],
    "memorising": [measured(memorising, q) for q in arguments.quantiles],
    "provenance": collect(device, threads=torch.get_num_threads()),
}
result["provenance"]["command"] = result["command"]
for who in ("student_itself", "memorising"):
    for row in result[who]:
        print(who, {k: v["rate"] if isinstance(v, dict) else v for k, v in row.items()})
if arguments.out:
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
