"""How well it draws what it retained: distances to real images, beside the teacher's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sfd import metrics
from sfd.eval.judging import Drawn
from sfd.eval.suites import Reference


def quality(
    grid: Mapping[int, Drawn],
    before: Mapping[int, Drawn] | None,
    reference: Reference,
    labels: Sequence[str],
    retained: Sequence[int],
    *,
    feature_space: str,
    baseline: dict[str, Any],
) -> dict[str, Any]:
    """FID, KID, precision and recall on the retained classes, beside teacher and floor.

    The teacher is measured on the rows that the subject made. None where there are too few images.
    """
    names = [labels[label] for label in retained]
    which = np.isin(reference.labels, [reference.names.index(n) for n in names])
    real, classes = reference.features[which], reference.labels[which]
    made = {label: grid[label].made for label in retained}
    mine = _joined(grid, made)
    measured, jackknives = _distances(mine, real, _seeds(made), (_labels(made), classes))
    out: dict[str, Any] = {
        "feature_space": feature_space,
        "reference_sha256": reference.sha256,
        "n": len(mine),
        "m": len(real),
        "failed": sum(int((~rows).sum()) for rows in made.values()),
        **measured,
    }
    out |= dict.fromkeys(("baseline", "fid_ratio", "fid_ratio_ci95", "floor", "excess_ratio"))
    if before:
        both = {i: rows & before[i].made for i, rows in made.items()}
        theirs = _joined(before, both)
        measured, others = _distances(theirs, real, _seeds(both), (_labels(both), classes))
        out["baseline"] = {**baseline, "n": len(theirs), **measured}
        out |= _beside(jackknives, others)
    if out["fid"] is None:
        return out
    gone = [name for name in reference.names if name not in names]
    key = "all" if not gone else f"without {gone[0]}"
    if len(gone) <= 1 and key in reference.floor:
        at = reference.floor[key]
        floor = metrics.floor_at(len(mine), len(real), at["fid"], at["n"], at["m"])
        out |= {"floor": floor, "floor_n": at["n"]}
        if out["fid_ratio"] and out["baseline"]["fid"] > floor:
            out["excess_ratio"] = metrics.excess_ratio(out["fid"], out["baseline"]["fid"], floor)
    return out


def _joined(grid: Mapping[int, Drawn], rows: Mapping[int, np.ndarray]) -> np.ndarray:
    """Features `[M, D]` of some rows of each label, `[0, 0]` where there is none."""
    parts = [grid[label].features[keep] for label, keep in rows.items() if keep.any()]
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def _seeds(rows: Mapping[int, np.ndarray]) -> np.ndarray:
    """Which of its label's seeds each joined row has, `[M]`: row i of every label has one."""
    return np.concatenate([np.zeros(0, int), *map(np.flatnonzero, rows.values())])


def _labels(rows: Mapping[int, np.ndarray]) -> np.ndarray:
    """Which label each joined row was asked for, `[M]`."""
    counts = [int(each.sum()) for each in rows.values()]
    return np.repeat(np.arange(len(counts)), counts)


def _distances(
    features: np.ndarray,
    real: np.ndarray,
    seeds: np.ndarray,
    strata: tuple[np.ndarray, np.ndarray],
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What is recorded of the distances, and their jackknives, if they were measured."""
    try:
        near = metrics.fid_jackknife(features, real, groups=seeds)
        kid, kid_stderr = metrics.kid(features, real, groups=seeds, strata=strata)
        covered = metrics.precision_recall_jackknife(real, features, groups=seeds)
    except ValueError as error:
        keys = ("fid", "fid_ci95", "kid", "kid_stderr", "precision", "recall")
        return {**dict.fromkeys(keys), "unmeasured_because": str(error)}, None
    found = {
        "fid": near["fid"],
        "fid_ci95": list(near["ci95"]),
        "kid": kid,
        "kid_stderr": kid_stderr,
        **{key: covered[key] for key in ("precision", "precision_ci95", "recall", "recall_ci95")},
    }
    return found, {"fid": near, "recall": covered}


def _beside(mine: dict[str, Any] | None, theirs: dict[str, Any] | None) -> dict[str, Any]:
    """FID over the teacher's and recall less its, seed by seed; empty where one is unmeasured or
    lacks an image."""
    if mine is None or theirs is None:
        return {}
    try:
        ratio = metrics.fid_ratio(mine["fid"], theirs["fid"])
        recall = metrics.recall_difference(mine["recall"], theirs["recall"])
    except ValueError:
        return {}
    return {
        "fid_ratio": ratio["ratio"],
        "fid_ratio_ci95": list(ratio["ci95"]),
        "recall_difference": recall["difference"],
        "recall_difference_ci95": list(recall["ci95"]),
    }
