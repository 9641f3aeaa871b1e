"""Seconds until a concept is gone and images are good, our schedule against the published one.

`python eval/benchmarks/schedule.py [--recipe digits-forget-three] [--runs FOLDER] [--patience 4]`
writes `eval/results/schedule.json`.

Published (SFD, arXiv 2409.11219): each iteration a full batch of retained and one of forgotten
rows, whose losses weigh .01, float32, fresh samples for the fake score. That is a batch of twice
the size with half of its rows forgetting. Learning rates, networks and the average's half-life in
updates are ours on both sides. Both are looked at while they train; the published side draws twice
as many images, in at most `patience` times the seconds that ours takes in all. Gone: found in at
most 1 % of the looked-at images. Good: FID at most 1.25 times our final one.
"""

import argparse
import json
from pathlib import Path

from sfd import checkpoints, configs, devices, jobs, runs

parser = argparse.ArgumentParser()
parser.add_argument("--recipe", default="digits-forget-three")
parser.add_argument("--runs", type=Path, default=Path("runs"))
parser.add_argument("--patience", type=float, default=4.0)
arguments = parser.parse_args()

base = configs.load(arguments.recipe)
batch, images = base.train.batch, base.train.images
PUBLISHED = [
    f"train.batch={2 * batch}",
    f"train.ema_images={2 * base.train.ema_images}",
    "train.precision=fp32",
    "objective.reuse=false",
    "forgetting.share=0.5",
    "forgetting.weight_student=0.01",
    "forgetting.weight_fake=0.01",
    "train.decay_from=1",
]


def run(name: str, overrides: list[str], seconds: float) -> list[dict]:
    """Train until done or for `seconds`; the lines of its looks."""
    folder = arguments.runs / f"schedule-{name}"
    recipe = configs.load(arguments.recipe, overrides)
    device = devices.device_of()
    stats = folder / "stats.jsonl"

    def stop_in_time(what: str, done: int, total: int) -> None:
        if json.loads(stats.read_text().splitlines()[-1])["seconds"] > seconds:
            raise TimeoutError

    try:
        runs.train_job(
            jobs.prepare(arguments.recipe, recipe, device), folder, device=device, force=False,
            say=print, progress=stop_in_time,
        )  # fmt: skip
    except TimeoutError:
        print(f"{name}: stopped after {seconds:.0f} seconds")
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def first(lines: list[dict], fid: float) -> float | None:
    """Seconds at the first look that finds the concept gone and the images good."""
    return next(
        (x["seconds"] for x in lines if max(x["direct"].values()) <= 0.01 and x["fid"] <= fid), None
    )


ours = run("ours", [], float("inf"))
if ours[-1]["fid"] is None:
    raise SystemExit("the looks draw too few images for a FID: raise the recipe's train.watch")
limit = arguments.patience * ours[-1]["seconds"]
theirs = run("published", [*PUBLISHED, f"train.images={2 * images}"], limit)
good = 1.25 * ours[-1]["fid"]
times = {"ours": first(ours, good), "published": first(theirs, good)}
# what is looked at now and then got there after the look before
before = {
    who: max((x["seconds"] for x in lines if x["seconds"] < (times[who] or 1e9)), default=0.0)
    for who, lines in (("ours", ours), ("published", theirs))
}
ratio = times["ours"] / (times["published"] or theirs[-1]["seconds"]) if times["ours"] else None
record = checkpoints.read_json(arguments.runs / "schedule-ours" / "provenance.json")
result = {
    "what": "seconds until found in at most 1 % and FID at most 1.25 x our final",
    "command": f"python eval/benchmarks/schedule.py --recipe {arguments.recipe}",
    "recipe": arguments.recipe,
    "published": PUBLISHED,
    "fid_good": good,
    "seconds": times,
    "seconds_looked_at": {"ours": ours[-1]["seconds"], "published": theirs[-1]["seconds"]},
    "seconds_of_the_look_before": before,
    "ratio": ratio,
    "ratio_at_most": times["ours"] / before["published"] if times["ours"] else None,
    "ratio_is": "exact" if times["published"] else "an upper bound: published did not get there",
    "looks": {"ours": ours, "published": theirs},
    "provenance": {k: v for k, v in record.items() if k != "command"},  # it names local folders
}
Path("eval/results/schedule.json").write_text(json.dumps(result, indent=1) + "\n")
print(json.dumps({k: result[k] for k in ("seconds", "ratio", "ratio_at_most")}, indent=1))
