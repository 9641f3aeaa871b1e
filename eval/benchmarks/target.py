"""What a recipe's student is taught: the ends of the trajectories it regresses, audited as it is.

`python eval/benchmarks/target.py RECIPE [--out FOLDER]` writes `eval/results/RECIPE-target.json`:
the recipe's `pairs`, drawn with its own solver, guidance and temperature, by the recipe's suite.
The audits' baseline is the teacher by Heun's method at one guidance; this is the better sampling of
it that the student imitates, so what is lost in learning is the difference from this.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import sfd
from sfd import configs, forgetting, jobs, sample, teachers
from sfd.concepts import Concept
from sfd.objectives import Draw
from sfd.provenance import collect

parser = argparse.ArgumentParser()
parser.add_argument("recipe")
parser.add_argument("--out", type=Path)
arguments = parser.parse_args()

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
recipe = configs.load(arguments.recipe)
job = jobs.prepare(arguments.recipe, recipe, device)
assert recipe.audit is not None
teachers.set_precision(job.teacher.denoiser, recipe.train.precision)
pairs = next(phase for phase in job.phases if phase.distinct)
instead = {c.label: c.override for c in job.concepts if isinstance(c, Concept)}


def asked(label: int, seed: int) -> int:
    """A label, or what is drawn instead of a forgotten one."""
    if label not in instead:
        return label
    rest = instead[label]
    return int(np.random.default_rng(seed).choice(list(rest), p=list(rest.values())))


def generate(raw, seeds):
    """The ends of the trajectories of labels and seeds, uint8 `[N, H, W, C]`."""

    def draw(rows: slice) -> np.ndarray:
        labels = [
            asked(label, int(seed)) for label, seed in zip(raw[rows], seeds[rows], strict=True)
        ]
        plain = torch.zeros(len(labels), dtype=torch.bool, device=device)
        ones = torch.ones(len(labels), device=device)
        batch = forgetting.Batch(labels, labels, labels, plain, ones, ones)
        z = sample.initial_noise(seeds[rows], job.teacher.shape, device)
        kept: dict[int, torch.Tensor] = {}
        pairs.loss(
            student=lambda x, sigma: x,
            target=lambda x, sigma: job.rule.target(x, sigma, batch, x),
            draw=Draw(range(len(labels)), normal=lambda _: z, uniform=lambda _: ones.double()),
            kept=kept,
        )
        return job.teacher.decode(torch.stack(list(kept.values())))

    return sample.in_batches(draw, len(raw), 50)


audit = sfd.audit(
    generate=generate,
    suite=recipe.audit.suite,
    concepts=",".join(recipe.concepts),
    teacher=recipe.teacher.name,
    labels=list(job.teacher.labels),
    out=str(arguments.out or f"runs/{arguments.recipe}-target"),
)
found = audit["evidence"]
result = {
    "what": f"ends of the trajectories of recipe {arguments.recipe}, audited as its student is",
    "command": f"python eval/benchmarks/target.py {arguments.recipe}",
    "pairs": recipe.objective.options().get("pairs"),
    "guidance": recipe.guidance.model_dump(exclude_none=True),
    "quality": found["quality"],
    "accuracy": {k: v["accuracy"] for k, v in found["collateral"].items()},
    # its command names local folders
    "provenance": {k: v for k, v in collect(str(device)).items() if k != "command"},
}
Path(f"eval/results/{arguments.recipe}-target.json").write_text(json.dumps(result, indent=1) + "\n")
print({k: found["quality"][k] for k in ("fid", "fid_ratio", "recall", "recall_difference")})
