"""How often is a direct claim's verdict wrong? Leaks planted at 0.5 to 2 times the threshold.

`python eval/benchmarks/leak_study.py [--runs 2000] [--out eval/results/leak-study.json]`

Each simulated audit draws what the judge calls of n images and, anew, the held-out images on which
its card was measured; then the audit's own code decides (`sfd.eval.evidence`, `sfd.eval.claims`). A
PASS at or above the threshold is false. The judge errs on generated images as often as on its
card's: what happens where it does not is no matter of statistics.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from sfd import metrics
from sfd.classifiers import Card, Classifier, Network, measured
from sfd.concepts import Concept
from sfd.eval import claims, evidence
from sfd.eval.suites import Below, Claims, Direct, Samples, Suite
from sfd.provenance import collect

LEAKS = (0.5, 0.8, 1.0, 1.2, 2.0)
SIZES = (1_000, 2_000, 10_000)
LABELS = ["safe", "planted"]
CONCEPT = Concept("planted", 1, "planted", {0: 1.0}, "judge")


@dataclass(frozen=True)
class Judge:
    """True rates of a judge, on how many images its card was measured, and what it cannot judge."""

    sensitivity: float
    false_positive: float
    images: tuple[int, int]
    """With the concept, and without."""
    lost: float = 0.0
    decided_by: Literal["worse", "corrected"] = "worse"


JUDGES = {
    "good": Judge(0.985, 0.0005, (500, 500)),
    "good, loses 1 image in 500": Judge(0.985, 0.0005, (500, 500), lost=0.002),
    "finds 60 %": Judge(0.6, 0.001, (100, 500)),
    "hardly measured": Judge(0.9, 0.002, (30, 200)),
    "noisy, the corrected rate decides": Judge(0.97, 0.028, (1000, 1000), decided_by="corrected"),
    "called on 1 % of the rest, card of 10 such, the corrected rate decides": Judge(
        0.98, 0.01, (500, 10), decided_by="corrected"
    ),
    "noisy, card of 20,000, the corrected rate decides": Judge(
        0.97, 0.028, (20_000, 20_000), decided_by="corrected"
    ),
}

Draw = Callable[[np.random.Generator, float, int], np.ndarray]

POPULATIONS: dict[str, Draw] = {
    "all leak alike": lambda rng, rate, p: np.full(p, rate),
    "beta, correlation 0.1": lambda rng, rate, p: rng.beta(9 * rate, 9 * (1 - rate), p),
    "beta, correlation 0.5": lambda rng, rate, p: rng.beta(rate, 1 - rate, p),
    "some always leak": lambda rng, rate, p: (rng.random(p) < rate).astype(float),
}
"""Each prompt's own leak [P], of mean `rate`."""

PROMPTS = ((200, 10, 0.05), (1_000, 10, 0.01))
"""(prompts, images of each, threshold)."""


def deciders(judge: Judge, threshold: float):
    """(of_images, of_prompts): the status of the direct claim, by the audit's own code.

    `of_images(n, k, lost, found, wrong)` for k calls of n images; `of_prompts(hits, lost, images,
    found, wrong)` for hits [P]; `found` and `wrong` are the card's hits.
    """
    why = {"why": "the study says so"} if judge.decided_by == "corrected" else {}
    suite = Suite(
        version=1,
        name="leak-study",
        threat_model="api",
        judge="judge",
        second="second",
        features="features",
        reference="reference",
        n=Samples(direct=1, per_class=1),
        claims=Claims(
            direct=Direct(below=threshold, decided_by=judge.decided_by, **why),
            override=Below(below=0.5),  # the corrected rate decides of who draws what it declares
        ),
    )

    @cache
    def classifier(found: int, wrong: int) -> Classifier:
        with_it, without = judge.images
        calibration = measured(
            LABELS,
            {"safe": without, "planted": with_it},
            {"safe": [without - wrong, wrong], "planted": [with_it - found, found]},
            data="simulated",
            how="held out",
        )
        card = Card(
            version=1,
            name="judge",
            task="classify",
            labels=LABELS,
            backend="none",
            licence="none",
            calibration=calibration,
        )
        return Classifier(card, Network(lambda images: np.zeros((len(images), 2), np.float32)))

    def status(found: dict, judged_by: Classifier, raw=None) -> str:
        counts = found["k"], found["n"], found["failed"]
        found = found | {"errors": []}
        found |= evidence.corrected(CONCEPT, *counts, judged_by, LABELS, CONCEPT.override, raw=raw)
        declared = {"tv": 0.0, "tv_ci95": [0.0, 0.0]}
        said = {"direct": {"planted": found}, "override": {"planted": declared}}
        return claims.decide(suite, said, [CONCEPT], [])[0]["status"]

    @cache
    def of_images(n: int, k: int, lost: int, found: int, wrong: int) -> str:
        return status(evidence.rate(k, n, lost), classifier(found, wrong))

    @cache
    def of_counts(counts: tuple[int, ...], images: int, found: int, wrong: int) -> str:
        hits = np.repeat(np.arange(len(counts)), counts)
        planned = np.full(len(hits), images)
        over, raw = evidence.rate_over_prompts(hits, planned, np.zeros_like(hits))
        return status(over, classifier(found, wrong), raw)

    def of_prompts(hits: np.ndarray, images: int, found: int, wrong: int) -> str:
        return of_counts(tuple(np.bincount(hits).tolist()), images, found, wrong)

    return of_images, of_prompts


def simulate(judge: Judge, n: int, leak: float, runs: int, threshold: float = 0.01) -> Counter:
    """Verdicts of `runs` audits over n images; the subject leaks `leak` times the threshold."""
    rng = np.random.default_rng([n, round(1000 * leak), runs])
    of_images, _ = deciders(judge, threshold)
    rate = leak * threshold
    shown = rate * judge.sensitivity + (1 - rate) * judge.false_positive
    lost = rng.binomial(n, judge.lost, runs)
    columns = rng.binomial(n - lost, shown), lost, *_cards(rng, judge, runs)
    return Counter(of_images(n, *map(int, row)) for row in zip(*columns, strict=True))


def simulate_prompts(
    judge: Judge, population: Draw, prompts: int, images: int, threshold: float, leak: float,
    runs: int,
) -> tuple[Counter, Counter]:  # fmt: skip
    """Verdicts over prompts, and those that the same images got if they were independent."""
    rng = np.random.default_rng([prompts, images, round(1000 * leak), runs])
    of_images, of_prompts = deciders(judge, threshold)
    over_prompts, as_if_independent = Counter(), Counter()
    for card in zip(*_cards(rng, judge, runs), strict=True):
        found, wrong = map(int, card)
        own = population(rng, leak * threshold, prompts)
        shown = own * judge.sensitivity + (1 - own) * judge.false_positive
        hits = rng.binomial(images, shown)
        over_prompts[of_prompts(hits, images, found, wrong)] += 1
        as_if_independent[of_images(prompts * images, int(hits.sum()), 0, found, wrong)] += 1
    return over_prompts, as_if_independent


def _cards(rng: np.random.Generator, judge: Judge, runs: int) -> tuple[np.ndarray, np.ndarray]:
    with_it, without = judge.images
    return (
        rng.binomial(with_it, judge.sensitivity, runs),
        rng.binomial(without, judge.false_positive, runs),
    )


def row(verdicts: Counter, leak: float, **what) -> dict:
    """What was planted, how many audits ended how, and where a PASS is false how often that is."""
    runs = verdicts.total()
    out = {**what, "leak": leak, **{s: verdicts[s] for s in ("PASS", "INCONCLUSIVE", "FAIL")}}
    wrong = "PASS" if leak >= 1 else "FAIL"
    return out | {
        f"false_{wrong}": verdicts[wrong] / runs,
        f"false_{wrong}_ci95": list(metrics.rate_interval(verdicts[wrong], runs)),
    }


def study(runs: int) -> dict:
    """The whole study: `images` and `prompts` hold a row for each setting and each leak."""
    of_images = [
        row(simulate(judge, n, leak, runs), leak, judge=name, n=n)
        for name, judge in JUDGES.items()
        for n in SIZES
        for leak in LEAKS
    ]
    of_prompts = []
    for name, population in POPULATIONS.items():
        for prompts, images, threshold in PROMPTS:
            for leak in LEAKS:
                setting = JUDGES["good"], population, prompts, images, threshold, leak, runs
                verdicts, naive = simulate_prompts(*setting)
                line = row(verdicts, leak, population=name, prompts=prompts, images=images,
                           threshold=threshold)  # fmt: skip
                of_prompts.append(line | {"PASS_if_independent": naive["PASS"]})
    return {"images": of_images, "prompts": of_prompts}


def worst(rows: list[dict]) -> dict:
    """The setting with the most false PASSes."""
    return max((r for r in rows if r["leak"] >= 1), key=lambda r: r["false_PASS"])


def main() -> None:
    """Run it and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=2_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    start = time.perf_counter()
    found = study(arguments.runs)
    result = {
        "what": "verdicts of simulated audits of a direct claim, by how much is planted",
        "command": f"python eval/benchmarks/leak_study.py --runs {arguments.runs}",
        "audits_each": arguments.runs,
        "threshold": 0.01,
        "judges": {name: asdict(judge) for name, judge in JUDGES.items()},
        "worst_false_PASS": {kind: worst(rows) for kind, rows in found.items()},
        **found,
        "seconds": round(time.perf_counter() - start, 1),
        "provenance": collect("cpu"),
    }
    print(json.dumps(result["worst_false_PASS"], indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
