"""The teacher at its best guidance: what a student is compared with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sfd import metrics, sample
from sfd.eval import judging
from sfd.eval.suites import TeacherSampling
from sfd.features import Extractor
from sfd.teachers import Raw, Teacher


def chosen(
    teacher: Teacher,
    plan: TeacherSampling,
    asked: Raw,
    seeds: np.ndarray,
    *,
    extract: Extractor,
    real: np.ndarray,
    count: Callable[[int], None],
) -> tuple[float, dict[str, float]]:
    """The `best` guidance of a plan by images of these conditions and seeds `[N]`.

    `real` are features `[M, D]`; `count` is told of what is drawn. A single guidance is not tried.
    Raises ValueError, before anything is drawn, unless N and M are above D.
    """
    if not plan.choices:
        return plan.guidance[0], {}
    if min(len(asked), len(real)) <= real.shape[1]:
        raise ValueError(
            f"the suite's teacher.guidance is chosen by FID, which takes over {real.shape[1]}"
            f" images, not {len(asked)} drawn and {len(real)} real: raise teacher.n, or give one"
            " guidance"
        )

    def features_at(k: float) -> np.ndarray:
        generate = sample.teacher_sampler(teacher, steps=plan.steps, guidance=k)
        found = []
        for start in range(0, len(asked), judging.CHUNK):
            part = slice(start, start + judging.CHUNK)
            found.append(extract(generate(asked[part], seeds[part])))
            count(len(asked[part]))
        return np.concatenate(found)

    return best(plan.choices, features_at, real)


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
