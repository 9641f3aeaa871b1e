"""Concept classifiers: who judges, and the backends behind them.

A classifier is a folder: `card.yaml` says what it is and how good it is on named held-out data, and
holds the sha256 of its weights: `weights.safetensors` in half precision, or what the backend reads.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sfd import content
from sfd.classifiers.cards import (
    CARD,
    NONE,
    WEIGHTS,
    Architecture,
    Calibration,
    Card,
    Count,
    Curve,
    Input,
    Training,
    count,
    folder_of,
    measured,
    read_card,
    save,
    write_calibration,
)

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = 1e-4
"""How far outside [0, 1] a probability may come to lie by rounding."""


@dataclass(frozen=True)
class Network:
    """What a backend gives: two functions of uint8 images `[B, H, W, C]`, C 1 or 3.

    `probabilities` returns float32 `[B, L]` in [0, 1], one column per label of the card; `features`
    returns float32 `[B, D]`, and is None where the network has none. `scores` takes float images
    `[B, C, H, W]` in [-1, 1] to log-probabilities `[B, L]` through which gradients flow; None where
    the backend has no gradients.
    """

    probabilities: Callable[[np.ndarray], np.ndarray]
    features: Callable[[np.ndarray], np.ndarray] | None = None
    scores: Callable[["Tensor"], "Tensor"] | None = None


Backend = Callable[[Card, Path, str], Network]
"""`backend(card, folder of the card, device) -> Network`."""


@dataclass(frozen=True)
class Classifier:
    """A card and its network. The same image gets the same answer whatever else is in the batch."""

    card: Card
    network: Network

    def probabilities(self, images: np.ndarray, batch: int = 256) -> np.ndarray:
        """Probability of each label: uint8 `[N, H, W, C]`, C 1 or 3 -> float32 `[N, L]` in [0, 1].

        Raises ValueError for images of another form, and for a card whose task is 'features'.
        """
        if self.card.task != "classify":
            raise ValueError(
                f"classifier {self.card.name} gives features and judges nothing; name another"
            )
        out = self._in_batches(self.network.probabilities, images, batch, len(self.card.labels))
        if out.min() < -ROUNDING or out.max() > 1 + ROUNDING:
            raise ValueError(
                f"classifier {self.card.name} ({self.card.backend}) returned {out.min():.4g} to"
                f" {out.max():.4g}, which are no probabilities"
            )
        return out.clip(0, 1)

    def called(self, images: np.ndarray, batch: int = 256) -> np.ndarray:
        """Which labels are called: uint8 `[N, H, W, C]` -> bool `[N, L]`, see `Card.threshold`."""
        return called(self.probabilities(images, batch), self.card.threshold)

    def features(self, images: np.ndarray, batch: int = 256) -> np.ndarray:
        """Penultimate activations: uint8 `[N, H, W, C]`, C 1 or 3 -> float32 `[N, D]`.

        Raises ValueError for images of another form, and for a backend without features.
        """
        if self.network.features is None:
            raise ValueError(f"classifier {self.card.name} ({self.card.backend}) has no features")
        return self._in_batches(self.network.features, images, batch, None)

    def _in_batches(
        self,
        function: Callable[[np.ndarray], np.ndarray],
        images: np.ndarray,
        batch: int,
        columns: int | None,
    ) -> np.ndarray:
        _check_images(images)
        parts = [function(images[i : i + batch]) for i in range(0, len(images), batch)]
        out = np.concatenate(parts).astype(np.float32, copy=False)
        if out.shape[0] != len(images) or out.ndim != 2 or columns not in (None, out.shape[1]):
            raise ValueError(
                f"classifier {self.card.name} ({self.card.backend}) returned {list(out.shape)}"
                f" for {len(images)} images and {columns or 'some'} columns"
            )
        if not np.isfinite(out).all():
            raise ValueError(f"classifier {self.card.name} returned numbers that are not finite")
        return out


def called(probabilities: np.ndarray, threshold: float | None) -> np.ndarray:
    """Which labels count as called: float `[N, L]` -> bool `[N, L]`.

    Those with a probability of at least `threshold`; the most probable alone if it is None.
    """
    if threshold is not None:
        return probabilities >= threshold
    return np.arange(probabilities.shape[1]) == probabilities.argmax(1)[:, None]


def with_threshold(classifier: Classifier, threshold: float) -> Classifier:
    """The same classifier under another threshold in (0, 1), of which nothing was measured yet."""
    update = {"threshold": threshold, "calibration": None}
    return Classifier(classifier.card.model_copy(update=update), classifier.network)


def _check_images(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"expected uint8 images [N, H, W, 1 or 3], found {images.dtype} {list(images.shape)}"
        )
    if len(images) == 0:
        raise ValueError("there are no images")


def _timm(card: Card, folder: Path, device: str) -> Network:
    from sfd.classifiers import timm_models

    return timm_models.load(card, folder, device)


def _nudenet(card: Card, folder: Path, device: str) -> Network:
    from sfd.classifiers import nudenet_detector

    return nudenet_detector.load(card, folder, device)


def _clip(card: Card, folder: Path, device: str) -> Network:
    from sfd.classifiers import clip_zero_shot

    return clip_zero_shot.load(card, folder, device)


def _face(card: Card, folder: Path, device: str) -> Network:
    from sfd.classifiers import face_gallery

    return face_gallery.load(card, folder, device)


def _onnx(card: Card, folder: Path, device: str) -> Network:
    from sfd.classifiers import onnx_model

    return onnx_model.load(card, folder, device)


BACKENDS: dict[str, Backend] = {
    "timm": _timm,
    "nudenet": _nudenet,
    "clip": _clip,
    "face": _face,
    "onnx": _onnx,
}


def known_backend(name: str) -> Backend:
    """The backend called `name`. Raises ValueError with the nearest known one."""
    if name not in BACKENDS:
        raise ValueError(f"no classifier backend {name!r}" + content.did_you_mean(name, BACKENDS))
    return BACKENDS[name]


def refuse_code(names: Iterable[str], where: str, instead: str) -> None:
    """Raise ValueError if one of the classifiers that a model's own files name is a file of code:
    it may have come with the model. `instead` is how the user names it."""
    for name in names:
        backend = read_card(name).backend
        if ".py:" in backend:
            raise ValueError(
                f"{where}: names the classifier {name}, whose card names {backend}, and code that a"
                f" model names is not run; if it is yours, {instead}"
            )


def load(
    name: str, device: str = "cpu", *, backend: Callable[[str], Backend] = known_backend
) -> Classifier:
    """A classifier by name, or by the path of its folder.

    `backend` finds the function behind the card's `backend` (a caller that knows of the user's own
    backends hands in another than `known_backend`). Raises ValueError, in one line, where the card
    or the weights are missing, damaged, or do not belong together.
    """
    folder = folder_of(name)
    card = content.load(folder / CARD, Card)
    return Classifier(card, backend(card.backend)(card, folder, device))


__all__ = [
    "BACKENDS",
    "CARD",
    "NONE",
    "WEIGHTS",
    "Architecture",
    "Backend",
    "Calibration",
    "Card",
    "Classifier",
    "Count",
    "Curve",
    "Input",
    "Network",
    "Training",
    "called",
    "count",
    "folder_of",
    "known_backend",
    "load",
    "measured",
    "read_card",
    "refuse_code",
    "save",
    "with_threshold",
    "write_calibration",
]
