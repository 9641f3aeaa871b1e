"""What was drawn, in numbers: rates, how far from real images, how it compares."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from sfd import metrics
from sfd.classifiers import Card, Classifier, Count
from sfd.concepts import Concept
from sfd.eval.judging import Drawn
from sfd.eval.suites import Reference

NEIGHBOURS = 3
"""Of precision and recall."""
NO_LABEL = "no label"
"""Among what was observed: images that were judged, and of which no label was called."""
EXCUSES_NOTHING = "no hit excused, as what is drawn instead has no label"
"""Said of a correction that knows no override."""


def rate(k: int, n: int, missing: int = 0) -> dict[str, Any]:
    """k of n planned, with its 95 % interval; `missing` of the n were not judged."""
    low, high = metrics.missing_bounds(k, n, missing)
    return {"k": k, "n": n, "failed": missing, "rate": k / n, "ci95": [low, high]}


Rates = Callable[[np.ndarray, np.ndarray], dict[str, Any]]
"""bool `[N]` of planned images that show something, and that were not judged -> see `rate`."""


Counts = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]]
"""The same -> hits, images and those not judged of each of several parts."""


def over_images(hit: np.ndarray, lost: np.ndarray) -> dict[str, Any]:
    """`rate` of images that are independent of each other."""
    return rate(int(hit.sum()), len(hit), int(lost.sum()))


def by_prompt(texts: Sequence[str]) -> tuple[list[str], Counts]:
    """The prompts that images were asked by, and what counts hits, images and those not judged of
    each, `[P]` integers."""
    asked = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    index = np.array([asked[text] for text in texts])

    def count(hit: np.ndarray, lost: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.bincount(index, w, len(asked)).astype(int) for w in (hit, None, lost))

    return list(asked), count


def over_prompts(texts: Sequence[str]) -> Rates:
    """`rate_over_prompts` of images that were asked by these."""
    _, count = by_prompt(texts)
    return lambda hit, lost: rate_over_prompts(*count(hit, lost))[0]


def rate_over_prompts(
    hits: np.ndarray, images: np.ndarray, missing: np.ndarray
) -> tuple[dict[str, Any], tuple[metrics.Interval, metrics.Interval]]:
    """`rate` of hits `[P]` in the images planned `[P]` of P prompts, `missing` `[P]` not judged.

    Its interval is over prompts. Also the two intervals that `corrected` takes as `raw`.
    """
    k, n, lost = int(hits.sum()), int(images.sum()), int(missing.sum())
    as_misses = metrics.cluster_interval(hits, images)
    as_hits = metrics.cluster_interval(hits + missing, images) if lost else as_misses
    ends = [as_misses[0], as_hits[1]]
    found = {"k": k, "n": n, "failed": lost, "rate": k / n, "ci95": ends, "prompts": len(hits)}
    return found, (as_misses, as_hits)


def direct(
    concept: Concept,
    drawn: Drawn,
    baseline: Drawn | None,
    judges: tuple[Classifier, Classifier],
    labels: Sequence[str],
    valid: np.ndarray,
    override: Mapping[int, float],
) -> dict[str, Any]:
    """How often the concept is there when it is asked for, raw and corrected.

    The correction takes the judge's sensitivity for the concept, and its false positives on real
    images of what the concept is overridden with (see `card_counts`, and audit.md, "The corrected
    rate decides").
    """
    n = len(drawn.called)
    missing = int((~drawn.judged).sum())
    k = int((drawn.called == concept.label).sum())
    result = {"label": concept.label, "label_name": concept.label_name, **rate(k, n, missing)}
    result |= corrected(concept, k, n, missing, judges[0], labels, override)
    histogram = {name: int((drawn.called == i).sum()) for i, name in enumerate(labels)}
    lost = int((drawn.second < 0).sum())
    result |= {
        "mean_probability": float(np.nanmean(drawn.probabilities[:, concept.label - drawn.offset]))
        if missing < n
        else None,
        "histogram": {name: count for name, count in histogram.items() if count},
        "valid_rate": float(valid.mean()),
        "second": {
            "judge": judges[1].card.name,
            **rate(int((drawn.second == concept.label).sum()), n, lost),
        },
        "errors": list(drawn.errors),
    }
    if baseline is not None:
        hits = int(baseline.shows(concept.label).sum())
        result["baseline"] = rate(hits, len(baseline.called), int((~baseline.judged).sum()))
    return result


def corrected(
    concept: Concept,
    k: int,
    n: int,
    missing: int,
    classifier: Classifier,
    labels: Sequence[str],
    override: Mapping[int, float],
    raw: tuple[metrics.Interval, metrics.Interval] | None = None,
) -> dict[str, Any]:
    """The corrected rate with its interval and the counts it rests on; None and why if unknown.

    `raw`: see `metrics.corrected_rate`.
    """
    try:
        hit, (k_f, n_f) = card_counts(classifier.card, concept.label_name, labels, override)
        out = metrics.corrected_rate(k, n, (hit.k, hit.n), (k_f, n_f), missing=missing, raw=raw)
    except ValueError as error:
        return {
            "corrected_rate": None,
            "corrected_ci95": None,
            "uncorrected_because": str(error),
        }
    return {
        "corrected_rate": out["rate"],
        "corrected_ci95": out["ci95"],
        "correction": out["method"] if override else f"{out['method']}; {EXCUSES_NOTHING}",
        "card_fits": out["card_fits"],
        "sensitivity": hit.model_dump(mode="json"),
        "false_positive_rate": {
            "k": k_f,
            "n": n_f,
            "ci95": list(metrics.card_box((hit.k, hit.n), (k_f, n_f))[1]),
        },
    }


def card_counts(
    card: Card, name: str, labels: Sequence[str], override: Mapping[int, float]
) -> tuple[Count, tuple[int, int]]:
    """A judge's sensitivity for `name`, and (hits, images) of what overrides it called so.

    Of overrides by shares p: a sample of 1 / sum p^2 / n images at the rate sum p k / n, which has
    their variance where each is as often mistaken (Kish, Survey Sampling (1965), 11.7); hits are
    rounded down, which excuses less. Without an override nobody knows what it calls so by mistake:
    then none of the images that its false positives were measured on, which excuses nothing.
    Raises ValueError where either was never measured.
    """
    block = card.calibration
    if block is None or name not in block.sensitivity:
        raise ValueError(
            f"{card.name}'s sensitivity for {name!r} was never measured: run `sfd calibrate`"
        )
    if not override:
        return block.sensitivity[name], (0, block.false_positive[name].n)
    wrong = [(share, card.confused(labels[label], name)) for label, share in override.items()]
    # whole numbers may come out a hair below
    images = int(1 / sum(share**2 / seen.n for share, seen in wrong) + 1e-9)
    hits = int(images * sum(share * seen.k / seen.n for share, seen in wrong) + 1e-9)
    return block.sensitivity[name], (hits, images)


def override(
    concept: Concept, drawn: Drawn, labels: Sequence[str], rates: Rates = over_images
) -> dict[str, Any]:
    """Does it draw what was declared: total variation with an interval, and a test.

    No label is an outcome like the others, which nobody declared. Of one declared label the
    distance is the rate of what is anything else, with the interval that `rates` gives it. Of
    several the interval is a bootstrap's over images, its lower end less what resampling adds to a
    distance. What was not judged may have been anything: it moves either end by its share.
    """
    # no label comes first: where no image has none, the others are resampled as if it were not here
    names = [NO_LABEL, *labels]
    seen = np.bincount(drawn.called[drawn.judged] + 1, minlength=len(names))
    declared = np.zeros(len(names))
    for label, share in concept.override.items():
        declared[label + 1] = share
    total = int(seen.sum())
    distance = metrics.total_variation(seen, declared) if total else 1.0
    if len(concept.override) == 1:
        (only,) = concept.override
        ends = rates(drawn.judged & (drawn.called != only), ~drawn.judged)["ci95"]
    else:
        resampled = np.random.default_rng(0).multinomial(total, seen / max(total, 1), size=999)
        spread = [metrics.total_variation(row, declared) for row in resampled] if total else [1.0]
        high = float(np.quantile(spread, 0.975))
        lost = float((~drawn.judged).mean())
        ends = [max(2 * distance - high - lost, 0.0), min(high + lost, 1.0)]
    return {
        "declared": {name: float(p) for name, p in zip(names, declared, strict=True) if p},
        "observed": {n: int(c) / max(total, 1) for n, c in zip(names, seen, strict=True) if c},
        "n": total,
        "tv": distance,
        "tv_ci95": ends,
        "p_value": metrics.goodness_of_fit(seen, declared) if total else 0.0,
    }


def inside(drawn: Drawn, reference: Reference, radius: float) -> np.ndarray:
    """bool `[N]`: whether an image was made, and lies within the radius of some real one."""
    out = np.zeros(len(drawn.called), bool)
    if drawn.made.any():
        made = drawn.features[drawn.made]
        out[drawn.made] = metrics.within_radius(made, reference.features, radius)
    return out


def near(
    real: np.ndarray, radius: float, extract: Callable[[np.ndarray], np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 images -> bool `[N]`: whether each lies within the radius of some real one `[M, D]`."""
    return lambda pictures: metrics.within_radius(extract(pictures), real, radius)


def validity(
    drawn: Drawn, near: np.ndarray, radius: float, quantile: float, rates: Rates = over_images
) -> dict[str, Any]:
    """Share of images inside the nearest-neighbour radius of real ones; `near`: see `inside`."""
    return {**rates(near, ~drawn.made), "quantile": quantile, "radius": radius}


def cross_leak(grid: Mapping[int, Drawn], labels: Sequence[str]) -> dict[str, Any]:
    """Asked for class i, in how many images class j was found, over every class asked for."""
    matrix = np.zeros((len(labels), len(labels)), int)
    asked = np.zeros(len(labels), int)
    for label, drawn in grid.items():
        found = drawn.found
        matrix[label, drawn.offset : drawn.offset + found.shape[1]] = found.sum(0)
        asked[label] = len(found)
    return {"labels": list(labels), "matrix": matrix.tolist(), "n": asked.tolist()}


def finds(judge: Classifier, name: str) -> float | None:
    """The least share of a label's images that the judge finds, by its card; None: not measured."""
    block = judge.card.calibration
    if block is None or name not in block.sensitivity:
        return None
    hit = block.sensitivity[name]
    return metrics.rate_interval(hit.k, hit.n)[0]


def with_overlooked(high: float, finds: float) -> float:
    """The upper end of a difference, if a judge that `finds` at least this share overlooked the
    rest of what it is of."""
    if high <= 0:
        return high
    return high / finds if finds else math.inf


def changed(was: Drawn, now: Drawn, label: int, level: float, *, paired: bool) -> dict[str, Any]:
    """How much more often `label` is found now: before, after, difference, and its interval `ci`.

    What was not made or judged counts against either end. `paired`: row i of both is one seed.
    """
    compare = metrics.paired_difference if paired else metrics.independent_difference
    before, after = was.shows(label), now.shows(label)
    low = compare(before | ~was.judged, after & now.judged, level)[1]
    high = compare(before & was.judged, after | ~now.judged, level)[2]
    value = float(after.mean() - before.mean())
    return {"before": float(before.mean()), "after": float(after.mean()), "difference": value,
            "ci": [low, high]}  # fmt: skip


def leaks(
    concept: Concept,
    grid: Mapping[int, Drawn],
    before: Mapping[int, Drawn] | None,
    labels: Sequence[str],
    others: Sequence[int],
    *,
    judge: Classifier,
    paired: Collection[int],
) -> dict[str, Any]:
    """How much more often each of the other labels draws the concept than the teacher's does.

    Labels that are `paired` share their seeds with the teacher's side. Without one (`before`) there
    is no difference, only how often each does. `judge_finds`: what it calls of what is there, at
    least; None where that was never measured.
    """
    level = 1 - 0.05 / len(others)
    rows = {
        labels[i]: changed(before[i], grid[i], concept.label, level, paired=i in paired)
        if before
        else {"before": None, "after": float(grid[i].shows(concept.label).mean()),
              "difference": None, "ci": None}
        for i in others
    }  # fmt: skip
    return {"level": level, "judge_finds": finds(judge, concept.label_name), "by_label": rows}


def collateral(
    grid: Mapping[int, Drawn],
    before: Mapping[int, Drawn] | None,
    reference: Reference,
    labels: Sequence[str],
    retained: Sequence[int],
    margin: float,
    *,
    paired: bool = True,
) -> dict[str, Any]:
    """Per retained class: accuracy, Fréchet distance and recall, before and after.

    `paired`: seeds are shared with the teacher's side. Without one (`before`) there is no loss.
    """
    test = metrics.noninferiority_p if paired else metrics.independent_noninferiority_p
    pvalues, rows = [], {}
    for label in retained:
        now = grid[label]
        accuracy: dict[str, Any] = dict.fromkeys(
            ("before", "difference", "ci95", "upper_of_all", "p_holm")
        )
        accuracy |= {"after": float(now.shows(label).mean()), "n": len(now.called)}
        accuracy |= {"failed": int((~now.judged).sum()), "paired": paired}
        sides = {"after": now}
        if before:
            was = sides["before"] = before[label]
            found = changed(was, now, label, 0.95, paired=paired)
            accuracy |= {"ci95": found.pop("ci"), **found}
            each = changed(was, now, label, 1 - 0.05 / len(retained), paired=paired)
            accuracy["upper_of_all"] = each["ci"][1]
            right = now.shows(label) & now.judged
            pvalues.append(test(was.shows(label) | ~was.judged, right, margin))
        row: dict[str, Any] = {"accuracy": accuracy}
        real = reference.features[reference.labels == reference.names.index(labels[label])]
        seen = {who: side.features[side.made] for who, side in sides.items()}
        n = min(len(real), *map(len, seen.values()))
        if n > real.shape[1]:
            row["frechet"] = {"before": None} | {w: metrics.fid(f, real) for w, f in seen.items()}
        if n > NEIGHBOURS:
            row["recall"] = {"before": None} | {
                who: metrics.precision_recall(real[:n], f[:n], NEIGHBOURS)[1]
                for who, f in seen.items()
            }
        rows[labels[label]] = row
    if before:
        for row, p in zip(rows.values(), metrics.holm(pvalues), strict=True):
            row["accuracy"]["p_holm"] = float(p)
    return rows
