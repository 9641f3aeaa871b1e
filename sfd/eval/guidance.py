"""The teacher at its best guidance: what a student is compared with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sfd import metrics


def best(
    choices: Sequence[float], features_at: Callable[[float], np.ndarray], real: np.ndarray
) -> tuple[float, dict[str, float]]:
    """The guidance whose features `[N, D]` have the smallest FID to `real`, and each one's FID."""
    tried = {f"{k:g}": metrics.fid(features_at(k), real) for k in choices}
    return float(min(tried, key=lambda k: tried[k])), tried


def described(name: str, steps: int, k: float, tried: Mapping[str, float]) -> dict[str, Any]:
    """A teacher's sampling for the record; `nfe` counts both evaluations of a guided step."""
    guided = k != 1
    out: dict[str, Any] = {
        "what": f"{name}, Heun" + f", guidance {k:g}" * guided,
        "nfe": (2 * steps - 1) * (1 + guided),
        "guidance": k,
    }
    return out | ({"fid_by_guidance": dict(tried)} if tried else {})
