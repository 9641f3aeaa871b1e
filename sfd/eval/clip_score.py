"""How well images show what their prompts ask for, in a CLIP model that the user names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfd import content, metrics


@dataclass(frozen=True)
class Scorer:
    """A CLIP model and `score(images uint8 [N, H, W, C], prompts) -> float32 [N]`.

    The score is 100 max(cos, 0) between the embeddings of an image and of its prompt (arXiv
    2104.08718, times 40); a prompt is cut at the model's limit.
    """

    name: str
    sha256: str
    score: Callable[[np.ndarray, Sequence[str]], np.ndarray]


def load(folder: Path, device: str) -> Scorer:
    """The scorer of a folder with a CLIP model. Raises ValueError, in one line, if it is none."""
    from sfd.classifiers import clip_model

    sha256 = content.sha256_of_files(clip_model.files(folder))
    clip = clip_model.read(folder, device)

    def score(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        seen = clip_model.embed_images(clip, images)
        unlike, which = np.unique(np.array(prompts), return_inverse=True)
        asked = clip_model.embed_texts(clip, unlike.tolist(), cut=True)[which]
        return (100 * (seen * asked).sum(-1).clamp(min=0)).cpu().numpy()

    return Scorer(folder.name, sha256, score)


def compared(
    scorer: Scorer, prompts: Sequence[str], mine: np.ndarray, theirs: np.ndarray | None = None
) -> dict[str, Any]:
    """Mean score over prompts, beside the original's, with Student's intervals over prompts.

    Row i of `mine` and `theirs`, `[N]`, answers `prompts[i]`; a row that either lacks (NaN) counts
    for neither.
    """
    there = np.isfinite(mine) & (np.isfinite(theirs) if theirs is not None else True)
    asked, index = np.unique(np.array(prompts)[there], return_inverse=True)
    images = np.bincount(index, minlength=len(asked))

    def by_prompt(scores: np.ndarray) -> np.ndarray:
        return np.bincount(index, scores[there].astype(np.float64), len(asked)) / images

    out: dict[str, Any] = {"model": scorer.name, "model_sha256": scorer.sha256,
                           "n": int(there.sum()), "prompts": len(asked),
                           "failed": int((~there).sum())}  # fmt: skip
    out |= _mean("", by_prompt(mine))
    if theirs is not None:
        out |= _mean("baseline_", by_prompt(theirs))
        out |= _mean("difference_", by_prompt(mine) - by_prompt(theirs))
    return out


def _mean(name: str, values: np.ndarray) -> dict[str, Any]:
    if len(values) < 2:
        return {f"{name}mean": float(values[0]) if len(values) else None, f"{name}ci95": None}
    spread = metrics.seed_spread(values)
    return {f"{name}mean": spread["mean"], f"{name}ci95": spread["ci95"]}
