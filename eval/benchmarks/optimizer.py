"""How many images of trajectories Muon needs for what Adam has learned, and how many seconds.

`python eval/benchmarks/optimizer.py [--teacher fashion] [--pairs 10000] [--images 20000]` writes
`eval/results/optimizer.json`.

The same student from the same start regresses the same trajectories in the same order, by Adam with
beta1 0 (as score distillation has it), by Adam with beta1 .9, and by Muon, at one constant rate.
Each is looked at twenty times: the error of its average on trajectories that it never saw. The
ratios are of images, and of seconds (trajectories are drawn as they are met, by each side anew),
until that error is what Adam ends with.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from sfd import devices, forgetting, noise, objectives, provenance, solvers, teachers, train

parser = argparse.ArgumentParser()
parser.add_argument("--teacher", default="fashion")
parser.add_argument("--pairs", type=int, default=10_000)
parser.add_argument("--images", type=int, default=20_000)
parser.add_argument("--rate", type=float, default=5e-4)
arguments = parser.parse_args()
BATCH, HELD_OUT, STEPS = 32, 500, 10
SIDES = {"adam, beta1 0": ("adam", 0.0), "adam, beta1 .9": ("adam", 0.9), "muon": ("muon", 0.9)}
"""Whose Adam has which beta1; Muon's is of what is not a matrix."""

device = devices.device_of()
teacher = teachers.load(name=arguments.teacher, device=device)
labels = list(range(len(teacher.labels)))
z = torch.from_numpy(noise.normal(("held out",), np.arange(HELD_OUT), teacher.shape)).to(device)
cond = teacher.encode([labels[i % len(labels)] for i in range(HELD_OUT)])


def follow(z: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
    low, high = teacher.sigma_range
    with torch.no_grad():
        return solvers.dpm(lambda x, s: teacher.denoiser(x, s, cond), z, steps=STEPS,
                           sigma_min=low, sigma_max=high)  # fmt: skip


ends = torch.cat([follow(*part) for part in zip(z.split(100), cond.split(100), strict=True)])


def trained(optimizer: str, beta1: float) -> list[dict]:
    looks: list[dict] = []

    def look(average: torch.nn.Module, nimg: int, seconds: float) -> None:
        with torch.no_grad():
            x = average(teacher.sigma_init * z, z.new_full((len(z),), teacher.sigma_init), cond)
        error = float((x.float() - ends).square().mean())
        looks.append({"images": nimg, "seconds": round(seconds, 2), "error": error})
        print(f"{optimizer}, {beta1}: {looks[-1]}", flush=True)

    student, fake = (teacher.make_student().requires_grad_(True) for _ in range(2))
    for net in (student, teacher.denoiser):
        teachers.set_precision(net, "bf16")
    with TemporaryDirectory() as folder:
        train.train(
            teacher, forgetting.none(teacher, []),
            objectives.regression(
                sigma_init=teacher.sigma_init, sigma_range=teacher.sigma_range,
                pairs=arguments.pairs, solver="dpm", steps=STEPS, beta1=beta1,
            ),
            student=student, fake=fake, retained=labels, concepts=[], share=0.0,
            weight_student=1.0, weight_fake=1.0, total=arguments.images, batch=BATCH,
            lr_student=arguments.rate, lr_fake=arguments.rate, optimizer_student=optimizer,
            ema_images=1000, seed=0, folder=Path(folder), identity={}, tick=1000,
            checkpoint=arguments.images, device=device, on_snapshot=look,
            snapshots=[i * arguments.images // 20 for i in range(1, 21)],
        )  # fmt: skip
    return looks


found = {side: trained(*how) for side, how in SIDES.items()}
ratios = {}
for side in (side for side in SIDES if side != "muon"):
    theirs = found[side][-1]
    mine = next((look for look in found["muon"] if look["error"] <= theirs["error"]), None)
    if mine is None:
        raise SystemExit(f"muon did not get where {side} did: {found['muon'][-1]} for {theirs}")
    ratios[side] = {what: mine[what] / theirs[what] for what in ("images", "seconds")}
record = provenance.collect(str(device), seed=0, sha256={"teacher": teacher.sha256})
result = {
    "what": "what Muon takes, of what Adam takes, to the same error on trajectories not learned",
    "command": "python eval/benchmarks/optimizer.py",
    "teacher": arguments.teacher,
    "pairs": arguments.pairs,
    "rate": arguments.rate,
    "ratios": ratios,
    "looks": found,
    "provenance": {k: v for k, v in record.items() if k != "command"},
}
Path("eval/results/optimizer.json").write_text(json.dumps(result, indent=1) + "\n")
print(json.dumps(ratios, indent=1))
