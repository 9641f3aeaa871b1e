"""Our training step against the published schedule's, on the same network, in one run.

`python eval/benchmarks/step.py [--rounds 5] [--teacher digits] [--out RESULT.json]`

Published (SFD, arXiv 2409.11219): per iteration a full batch each of four terms (fake score on
retained and on forgotten rows, student on retained and on forgotten rows), float32, fresh samples
everywhere. Ours: one batch with a quarter of forget rows, bf16, the student's samples reused. Both
sides take turns in one process; medians over the rounds.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from sfd import concepts, forgetting, objectives, teachers, train
from sfd.provenance import collect

parser = argparse.ArgumentParser()
parser.add_argument("--teacher", default="digits")
parser.add_argument("--concept", default="digits-three")
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--out", type=Path)
arguments = parser.parse_args()

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
teacher = teachers.load(name=arguments.teacher, device=device)
forget = concepts.load([arguments.concept], teacher.labels)
rule = forgetting.override(teacher, forget)
retained = [i for i in range(len(teacher.labels)) if i != forget[0].label]
nets = {"student": teacher.make_student(), "fake": teacher.make_student()}
optimizers = {
    k: torch.optim.Adam(n.parameters(), lr=1e-6, betas=(0.0, 0.999)) for k, n in nets.items()
}


def step(phases, shares, precision):
    """One iteration: each phase once per share, as separate full batches, then one update."""
    for module in (teacher.denoiser, *nets.values()):
        teachers.set_precision(module, precision)
    numbers = np.arange(arguments.batch)
    memos = [{} for _ in shares]
    for phase in phases:
        for name, net in nets.items():
            net.requires_grad_(name in phase.learns)
        for share, memo in zip(shares, memos, strict=True):
            batch = forgetting.draw_batch(
                numbers,
                seed=0,
                shape=teacher.shape,
                retained=retained,
                concepts=forget,
                share=share,
                weight_student=1.0,
                weight_fake=1.0,
                device=device,
            )
            draw = train.draw_for(0, phase.name, numbers, teacher.shape, device)
            losses, _ = train.call(phase, teacher, rule, nets, batch, draw, memo, {})
            (losses.sum() / arguments.batch).backward()
        for name in phase.learns:
            optimizers[name].step()
            optimizers[name].zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(*work):
    start = time.perf_counter()
    step(*work)
    return time.perf_counter() - start


ours = (objectives.sid(sigma_init=teacher.sigma_init), [0.25], "bf16")
published = (objectives.sid(sigma_init=teacher.sigma_init, reuse=False), [0.0, 1.0], "fp32")
ours_full = (objectives.sid(sigma_init=teacher.sigma_init), [0.25], "fp32")
sides = {"ours": ours, "ours in float32": ours_full, "published": published}
seconds: dict[str, list[float]] = {name: [] for name in sides}
for work in sides.values():
    step(*work)
for _ in range(arguments.rounds):
    for name, work in sides.items():
        seconds[name].append(timed(*work))

median = {name: statistics.median(values) for name, values in seconds.items()}
batch = arguments.batch
# the published iteration generates four batches of which two are retained; each retained image
# serves one update of student and fake, as each of our batch * 3/4 does
retained_images = {"ours": 0.75 * batch, "ours in float32": 0.75 * batch, "published": batch}
generated = {"ours": batch, "ours in float32": batch, "published": 2 * batch}
result = {
    "what": "seconds of one training step, ours against the published schedule's",
    "command": "python eval/benchmarks/step.py",
    "teacher": arguments.teacher,
    "batch": batch,
    "rounds": arguments.rounds,
    "median_seconds": median,
    "all_seconds": seconds,
    "ratio_per_retained_image": {
        name: (median[name] / retained_images[name]) / (median["published"] / batch)
        for name in ("ours", "ours in float32")
    },
    "ratio_per_generated_image": {
        name: (median[name] / generated[name]) / (median["published"] / (2 * batch))
        for name in ("ours", "ours in float32")
    },
    "provenance": collect(str(device), threads=torch.get_num_threads()),
}
print(json.dumps({k: v for k, v in result.items() if k.startswith(("ratio", "median"))}, indent=1))
if arguments.out:
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
