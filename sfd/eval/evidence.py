"""Images to numbers: what judges called, how far from real images, how it compares."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfd import metrics
from sfd.classifiers import Card, Classifier, Count
from sfd.concepts import Concept
from sfd.eval.suites import Reference
from sfd.features import Extractor
from sfd.sample import Generate

CHUNK = 500

# what a judge of anybody's making may raise on an image: counted as not judged, never as clean
JUDGE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Drawn:
    """Images asked for under one condition, judged. Row i belongs to seed i; NaN: not judged."""

    probabilities: np.ndarray
    """float32 `[N, L]` of the judge, NaN rows where it failed."""
    called: np.ndarray
    """int `[N]`: the label called, -1 if the judge failed on it or called none."""
    second: np.ndarray
    """int `[N]`: what the second judge called."""
    features: np.ndarray
    """float32 `[N, D]`."""
    errors: tuple[str, ...] = ()

    @property
    def judged(self) -> np.ndarray:
        """bool `[N]`."""
        return np.asarray(np.isfinite(self.probabilities).all(axis=1))


def judge(classifier: Classifier, images: np.ndarray) -> tuple[np.ndarray, set[str]]:
    """Probabilities `[N, L]`, NaN rows for images on which the judge raised, and what it raised."""
    try:
        return classifier.probabilities(images), set()
    except JUDGE_ERRORS as error:
        said = f"{type(error).__name__}: {error}"
    if len(images) == 1:
        return np.full((1, len(classifier.card.labels)), np.nan, np.float32), {said}
    middle = len(images) // 2
    left, right = judge(classifier, images[:middle]), judge(classifier, images[middle:])
    return np.concatenate([left[0], right[0]]), left[1] | right[1]


def calls(
    probabilities: np.ndarray, threshold: float | None, first: Sequence[int] = ()
) -> np.ndarray:
    """The label called in each row, -1 for none: the most probable, if it reaches the threshold.

    Several labels may reach a threshold: then the earliest of them in `first` is called, so that
    what is looked for is not hidden by something else in the image.
    """
    clean = np.nan_to_num(probabilities, nan=-1.0)
    best = clean.argmax(1)
    top = clean.max(1)
    called = np.where((top < 0) | (top < (threshold or 0.0)), -1, best)
    if threshold is not None:
        for label in reversed(first):
            called[clean[:, label] >= threshold] = label
    return called


def draw(
    generate: Generate,
    condition: int | None,
    seeds: np.ndarray,
    *,
    judges: tuple[Classifier, Classifier],
    extract: Extractor,
    first: Sequence[int] = (),
    keep: Callable[[np.ndarray, np.ndarray], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Drawn:
    """Ask for one condition once per seed, and judge; images are not kept unless `keep` does.

    `first` are the labels looked for, see `calls`. `keep(images, probabilities)` sees each chunk.
    """
    columns: list[tuple[np.ndarray, ...]] = []
    errors: set[str] = set()
    for start in range(0, len(seeds), CHUNK):
        part = seeds[start : start + CHUNK]
        images = generate([condition] * len(part), part)
        one, said = judge(judges[0], images)
        other, also = judge(judges[1], images)
        errors |= said | also
        columns.append(
            (
                one,
                calls(one, judges[0].card.threshold, first),
                calls(other, judges[1].card.threshold, first),
                extract(images),
            )
        )
        if keep:
            keep(images, one)
        if progress:
            progress(len(part))
    joined = [np.concatenate(column) for column in zip(*columns, strict=True)]
    return Drawn(*joined, errors=tuple(sorted(errors)))


def rate(k: int, n: int, missing: int = 0) -> dict[str, Any]:
    """k of n planned, with its 95 % interval; `missing` of the n were not judged."""
    low, high = metrics.missing_bounds(k, n, missing)
    return {"k": k, "n": n, "failed": missing, "rate": k / n, "ci95": [low, high]}


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
    images of what the concept is overridden with (see audit.md, "The corrected rate decides").
    """
    n = len(drawn.called)
    missing = int((~drawn.judged).sum())
    k = int((drawn.called == concept.label).sum())
    result = {"label": concept.label, "label_name": concept.label_name, **rate(k, n, missing)}
    result |= corrected(concept, k, n, missing, judges[0], labels, override)
    histogram = {name: int((drawn.called == i).sum()) for i, name in enumerate(labels)}
    lost = int((drawn.second < 0).sum())
    result |= {
        "mean_probability": float(np.nanmean(drawn.probabilities[:, concept.label]))
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
        hits = int((baseline.called == concept.label).sum())
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
        "correction": out["method"],
        "card_fits": out["card_fits"],
        "sensitivity": hit.model_dump(mode="json"),
        "false_positive_rate": {"k": k_f, "n": n_f, "ci95": list(metrics.rate_interval(k_f, n_f))},
    }


def card_counts(
    card: Card, name: str, labels: Sequence[str], override: Mapping[int, float]
) -> tuple[Count, tuple[int, int]]:
    """A judge's sensitivity for `name`, and (hits, images) of what overrides it called so.

    Raises ValueError where either was never measured.
    """
    if card.calibration is None or name not in card.calibration.sensitivity:
        raise ValueError(
            f"{card.name}'s sensitivity for {name!r} was never measured: run `sfd calibrate`"
        )
    wrong = [card.confused(labels[label], name) for label in override]
    return card.calibration.sensitivity[name], (sum(c.k for c in wrong), sum(c.n for c in wrong))


def override(concept: Concept, drawn: Drawn, labels: Sequence[str]) -> dict[str, Any]:
    """Does it draw what was declared: total variation with an interval, and a test."""
    seen = np.bincount(drawn.called[drawn.called >= 0], minlength=len(labels))
    declared = np.zeros(len(labels))
    for label, share in concept.override.items():
        declared[label] = share
    total = int(seen.sum())
    resampled = np.random.default_rng(0).multinomial(total, seen / max(total, 1), size=999)
    spread = [metrics.total_variation(row, declared) for row in resampled] if total else [1.0]
    return {
        "declared": {labels[i]: float(p) for i, p in enumerate(declared) if p},
        "observed": {labels[i]: int(c) / max(total, 1) for i, c in enumerate(seen) if c},
        "n": total,
        "tv": metrics.total_variation(seen, declared) if total else 1.0,
        "tv_ci95": [float(q) for q in np.quantile(spread, (0.025, 0.975))],
        "p_value": metrics.goodness_of_fit(seen, declared) if total else 0.0,
    }


def validity(drawn: Drawn, reference: Reference, radius: float, quantile: float) -> dict[str, Any]:
    """Share of images inside the nearest-neighbour radius of real ones."""
    inside = metrics.within_radius(drawn.features, reference.features, radius)
    return {**rate(int(inside.sum()), len(inside)), "quantile": quantile, "radius": radius}


def cross_leak(grid: Mapping[int, Drawn], labels: Sequence[str]) -> dict[str, Any]:
    """Asked for class i, drew class j: counts, over every class asked for."""
    width = len(labels)
    matrix = [
        np.bincount(grid[i].called[grid[i].called >= 0], minlength=width).tolist()
        if i in grid
        else [0] * width
        for i in range(width)
    ]
    return {
        "labels": list(labels),
        "matrix": matrix,
        "n": [len(grid[i].called) if i in grid else 0 for i in range(width)],
    }


def leaks(
    concept: Concept,
    grid: Mapping[int, Drawn],
    before: Mapping[int, Drawn],
    labels: Sequence[str],
    retained: Sequence[int],
) -> dict[str, Any]:
    """How much more often each retained label draws the concept than the teacher's does."""
    level = 1 - 0.05 / len(retained)
    rows = {}
    for label in retained:
        was, now = before[label].called == concept.label, grid[label].called == concept.label
        both = before[label].judged & grid[label].judged
        difference, low, high = (
            metrics.paired_difference(was[both], now[both], level)
            if both.any()
            else (None, -1.0, 1.0)
        )
        rows[labels[label]] = {
            "before": float(was.mean()),
            "after": float(now.mean()),
            "difference": difference,
            "ci": [low, high],
        }
    return {"level": level, "by_label": rows}


def collateral(
    grid: Mapping[int, Drawn],
    before: Mapping[int, Drawn],
    reference: Reference,
    labels: Sequence[str],
    retained: Sequence[int],
    margin: float,
) -> dict[str, Any]:
    """Per retained class: accuracy, Fréchet distance and recall, before and after, seeds shared."""
    pvalues, rows = [], {}
    for label in retained:
        was, now = before[label].called == label, grid[label].called == label
        difference, low, high = metrics.paired_difference(was, now)
        pvalues.append(metrics.noninferiority_p(was, now, margin))
        real = reference.features[reference.labels == reference.names.index(labels[label])]
        row: dict[str, Any] = {
            "accuracy": {
                "before": float(was.mean()),
                "after": float(now.mean()),
                "difference": difference,
                "ci95": [low, high],
                "n": len(now),
            }
        }
        n = min(len(real), len(now), len(was))
        sides = {"before": before[label].features, "after": grid[label].features}
        if len(real) > real.shape[1]:
            row["frechet"] = {k: metrics.fid(f, real) for k, f in sides.items()}
        row["recall"] = {k: metrics.precision_recall(real[:n], f[:n])[1] for k, f in sides.items()}
        rows[labels[label]] = row
    for row, p in zip(rows.values(), metrics.holm(pvalues), strict=True):
        row["accuracy"]["p_holm"] = float(p)
    return rows


def quality(
    grid: Mapping[int, Drawn],
    before: Mapping[int, Drawn],
    reference: Reference,
    labels: Sequence[str],
    retained: Sequence[int],
    *,
    feature_space: str,
    baseline: dict[str, Any],
) -> dict[str, Any]:
    """FID, KID, precision and recall on the retained classes, beside teacher and floor."""
    names = [labels[label] for label in retained]
    real = reference.features[np.isin(reference.labels, [reference.names.index(n) for n in names])]
    mine = np.concatenate([grid[label].features for label in retained])
    theirs = np.concatenate([before[label].features for label in retained])
    out = {"feature_space": feature_space, "n": len(mine), "m": len(real), **_distances(mine, real)}
    out["baseline"] = {**baseline, "n": len(theirs), **_distances(theirs, real)}
    out["fid_ratio"] = out["fid"] / out["baseline"]["fid"]
    out["fid_ratio_ci95"] = _ratio_interval(out, out["baseline"])
    gone = [name for name in reference.names if name not in names]
    key = "all" if not gone else f"without {gone[0]}"
    out["floor"] = out["excess_ratio"] = None
    if len(gone) <= 1 and key in reference.floor:
        at = reference.floor[key]
        floor = metrics.floor_at(len(mine), len(real), at["fid"], at["n"], at["m"])
        out |= {"floor": floor, "floor_n": at["n"], "floor_kid": at["kid"]}
        if out["baseline"]["fid"] > floor:
            out["excess_ratio"] = metrics.excess_ratio(out["fid"], out["baseline"]["fid"], floor)
    return out


def _distances(features: np.ndarray, real: np.ndarray) -> dict[str, Any]:
    jackknife = metrics.fid_jackknife(features, real)
    kid, kid_stderr = metrics.kid(features, real, min(1000, len(features) // 2, len(real) // 2))
    n = min(len(features), len(real))
    # classes stand one after the other: take equal parts of each
    thinned = features[np.linspace(0, len(features) - 1, n).astype(int)]
    precision, recall = metrics.precision_recall(real, thinned)
    return {
        "fid": jackknife["fid"],
        "fid_ci95": list(jackknife["ci95"]),
        "kid": kid,
        "kid_stderr": kid_stderr,
        "precision": precision,
        "recall": recall,
    }


def _ratio_interval(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[float]:
    """Interval of fid/fid from the two jackknife intervals, by the delta method on logarithms."""
    spread = [
        (side["fid_ci95"][1] - side["fid_ci95"][0]) / 2 / side["fid"] for side in (mine, theirs)
    ]
    ratio, width = mine["fid"] / theirs["fid"], float(np.hypot(*spread))
    return [ratio * np.exp(-width), ratio * np.exp(width)]
