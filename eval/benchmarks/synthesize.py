"""Screened images a second against bare sampling, and the memory of small and large datasets.

`python eval/benchmarks/synthesize.py RUN [--detector digits] [--images 2000] [--rounds 5]
[--large 20000] [--where FOLDER --about memory] [--out RESULT.json]`;
all sides take turns in one process, medians over the rounds; memory is the peak of a process of its
own for each size.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from sfd import images, sample
from sfd.concepts import Concept
from sfd.eval.subjects import concepts_of
from sfd.provenance import collect
from sfd.synthesis import asked as asking
from sfd.synthesis import screening, synthesize

BATCH, FOLDER = 250, 500
PEAK = """
import resource, sys
import sfd
run, out, n, detector = sys.argv[1:]
sfd.synthesize(run, out, n=int(n), size=250, detectors=[detector])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""

parser = argparse.ArgumentParser()
parser.add_argument("run")
parser.add_argument("--detector", default="digits")
parser.add_argument("--second", default="digits-second")
parser.add_argument("--images", type=int, default=2000)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--small", type=int, default=1000)
parser.add_argument("--large", type=int, default=20000)
parser.add_argument("--where", help="folder to write to; one in memory leaves the disk out")
parser.add_argument("--about", default="disk", help="what kind of folder that is")
parser.add_argument("--out", type=Path)
arguments = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
student = sample.load(arguments.run, device, BATCH)
gone = [c for c in concepts_of(student.card) if isinstance(c, Concept)]
asked = asking.of_labels(student.labels, {c.label: "is forgotten" for c in gone}, "all", {})
detectors = screening.detectors_of([arguments.detector, arguments.second], gone, device)
places = np.arange(arguments.images)
conditions = [asked.conditions[i] for i in asked.rows(places)]


def bare(folder: Path) -> None:
    for i in range(0, len(places), BATCH):
        student.sample(conditions[i : i + BATCH], places[i : i + BATCH])


def written(folder: Path) -> None:
    """The same images as PNG files, screened by nobody."""
    for i in range(0, len(places), BATCH):
        drawn = student.sample(conditions[i : i + BATCH], places[i : i + BATCH])
        for number, picture in enumerate(drawn, i):
            (folder / f"{number:08d}.png").write_bytes(images.png_bytes(picture))


def screened(count: int, workers: int):
    def work(folder: Path) -> None:
        synthesize(
            student, folder / "set", asked, detectors[:count], n=len(places), batch=BATCH,
            size=FOLDER, workers=workers, device=device,
        )  # fmt: skip

    return work


sides = {
    "bare": bare,
    "bare, written": written,
    "one detector": screened(1, 2),
    "one detector, one worker": screened(1, 1),
    "two detectors": screened(2, 2),
}
wall: dict[str, list[float]] = {name: [] for name in sides}
busy: dict[str, list[float]] = {name: [] for name in sides}
bare(Path())
for _ in range(arguments.rounds):
    for name, work in sides.items():
        with tempfile.TemporaryDirectory(dir=arguments.where) as folder:
            start, before = time.perf_counter(), time.process_time()
            work(Path(folder))
            wall[name].append(time.perf_counter() - start)
            busy[name].append(time.process_time() - before)
peak = {}
for n in (arguments.small, arguments.large):
    with tempfile.TemporaryDirectory(dir=arguments.where) as folder:
        words = [sys.executable, "-c", PEAK, arguments.run, f"{folder}/set", str(n)]
        done = subprocess.run(
            [*words, arguments.detector], capture_output=True, text=True, check=True
        )
        peak[str(n)] = round(float(done.stdout), 1)
median = {name: statistics.median(values) for name, values in wall.items()}
result = {
    "what": "images a second: screened, marked and written, against bare sampling; peak memory",
    "command": "python eval/benchmarks/synthesize.py RUN",
    "student": student.card["name"],
    "detectors": [detector.name for detector in detectors],
    "images": arguments.images,
    "rounds": arguments.rounds,
    "written_to": arguments.about,
    "images_per_second": {name: arguments.images / seconds for name, seconds in median.items()},
    "ratio_to_bare": {name: median["bare"] / seconds for name, seconds in median.items()},
    "ratio_to_bare_written": {
        name: median["bare, written"] / seconds for name, seconds in median.items()
    },
    "ratio_by_round": {
        name: [b / s for b, s in zip(wall["bare"], values, strict=True)]
        for name, values in wall.items()
    },
    "processor_seconds": {name: statistics.median(values) for name, values in busy.items()},
    "peak_memory_MiB": peak,
    "cores": os.cpu_count(),
    "load_average": os.getloadavg()[0],
    "provenance": collect(device, threads=torch.get_num_threads()),
}
result["provenance"]["command"] = result["command"]
shown = (
    "images_per_second",
    "ratio_to_bare",
    "ratio_to_bare_written",
    "processor_seconds",
    "peak_memory_MiB",
)
print(json.dumps({k: result[k] for k in shown}, indent=1))
if arguments.out:
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
