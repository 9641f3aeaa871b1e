"""Is a student nearer to one that never knew the concept, or to one that forgot nothing?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sfd import metrics
from sfd.concepts import Concept
from sfd.eval import common
from sfd.eval.judging import CHUNK, Drawn, describe
from sfd.eval.shots import request, stacked
from sfd.eval.subjects import Subject
from sfd.features import Extractor

IMAGES = 2000
"""Of each of the three models, over the retained classes, and for each concept."""
LEVEL = 0.05


def relative(
    gold: Subject | None,
    plain: Subject | None,
    grid: Mapping[int, Drawn],
    asked: Mapping[str, Drawn],
    concepts: Sequence[Concept],
    *,
    plan: str,
    extract: Extractor,
) -> dict[str, Any] | None:
    """The relative test over the retained classes, and for what is asked for each concept.

    `gold` never knew the concepts, `plain` was distilled from the same teacher and forgot nothing;
    both are one-step students, as the subject is. Their images come from seeds of their own, so
    that the samples are independent. None without both. Bounliphone et al., arXiv 1511.04581.
    """
    if gold is None or plain is None or not grid:
        return None
    few = -(-IMAGES // len(grid))

    def others(label: int, n: int) -> list[np.ndarray]:
        return [
            _features(rival, label, common.seeds_from(rival.sha256 + plan, n), extract)
            for rival in (gold, plain)
        ]

    drawn = [(grid[label].features[:few], *others(label, few)) for label in grid]
    retained = _compared(*(np.concatenate(part) for part in zip(*drawn, strict=True)))
    return {
        "gold": gold.sha256,
        "original": plain.sha256,
        "retained": retained,
        "concepts": {
            c.name: _compared(asked[c.name].features[:IMAGES], *others(c.label, IMAGES))
            for c in concepts
        },
    }


def _features(rival: Subject, label: int, seeds: np.ndarray, extract: Extractor) -> np.ndarray:
    parts = [seeds[i : i + CHUNK] for i in range(0, len(seeds), CHUNK)]
    return stacked(
        [describe(request(rival.generate, [label] * len(part), part), extract) for part in parts]
    )


def _compared(mine: np.ndarray, gold: np.ndarray, plain: np.ndarray) -> dict[str, Any]:
    """Features `[N, D]` of the three, rows of NaN left out."""
    made = [part[~np.isnan(part).any(1)] for part in (mine, gold, plain)]
    sizes = [len(part) for part in made]
    if min(sizes) < 2:
        return {"n": sizes, "nearer": "undecided"}
    found = metrics.relative_mmd(*made)
    p = float(found["p"])
    nearer = "gold" if p < LEVEL / 2 else "original" if p > 1 - LEVEL / 2 else "undecided"
    return {
        "n": sizes,
        "mmd_gold": found["mmd_xy"],
        "mmd_original": found["mmd_xz"],
        "difference": found["difference"],
        "se": found["se"],
        "p_gold": p,
        "nearer": nearer,
    }
