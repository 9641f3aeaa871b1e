"""One-step sampling against the teacher's 35 evaluations, and how soon the command line answers.

`python eval/benchmarks/sampling.py [--teacher digits] [--rounds 5] [--out RESULT.json]`; both sides
take turns in one process, medians over the rounds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from sfd import sample, teachers
from sfd.provenance import collect

parser = argparse.ArgumentParser()
parser.add_argument("--teacher", default="digits")
parser.add_argument("--images", type=int, default=250)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--out", type=Path)
arguments = parser.parse_args()

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
teacher = teachers.load(name=arguments.teacher, device=device)
sides = {
    "one step": sample.student_sampler(teacher.make_student(), teacher),
    "teacher, 35 evaluations": sample.teacher_sampler(teacher, steps=18),
}
labels = [i % len(teacher.labels) for i in range(arguments.images)]
seeds = np.arange(arguments.images)


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


seconds: dict[str, list[float]] = {name: [] for name in (*sides, "sfd --help", "sfd validate")}
sides["one step"](labels, seeds)
for _ in range(arguments.rounds):
    for name, generate in sides.items():
        seconds[name].append(timed(lambda generate=generate: generate(labels, seeds)))
    for verb in ("--help", "validate"):
        command = [sys.executable, "-m", "sfd", verb]
        seconds[f"sfd {verb}"].append(
            timed(lambda command=command: subprocess.run(command, capture_output=True, check=True))
        )
median = {name: statistics.median(values) for name, values in seconds.items()}
result = {
    "what": "seconds to draw the same images in one step and by the teacher; of two verbs",
    "command": "python eval/benchmarks/sampling.py",
    "teacher": arguments.teacher,
    "images": arguments.images,
    "rounds": arguments.rounds,
    "median_seconds": median,
    "all_seconds": seconds,
    "times_faster": median["teacher, 35 evaluations"] / median["one step"],
    "provenance": collect(str(device), threads=torch.get_num_threads()),
}
print(json.dumps({k: result[k] for k in ("median_seconds", "times_faster")}, indent=1))
if arguments.out:
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
