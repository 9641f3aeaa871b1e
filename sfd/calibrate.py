"""Measure any classifier on labelled images, and set its threshold by impostors."""

import hashlib
import math
from collections.abc import Iterable, Sequence

import numpy as np

from sfd import classifiers, content
from sfd.classifiers import (
    NONE,
    Calibration,
    Card,
    Classifier,
    Curve,
)

GRID = tuple(round(i / 20, 2) for i in range(1, 20))
"""Thresholds of the curve in a card, beside the card's own."""

SEEN = 0.01
"""What share of held-out images may be among those learned from: data sets have their doubles."""

LEAST = 10
"""Images of one label below which a rate is not worth writing down."""


def calibrate(
    classifier: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    names: list[str],
    *,
    data: str,
    how: str = "held out",
    batch: int = 256,
) -> Calibration:
    """How often a classifier is right, and wrong, on labelled images that it never learned from.

    `images` uint8 `[N, H, W, C]`, `labels` int `[N]` into `names`. A name is a label of the card,
    or 'none' for images that show none of them; data without names ('0', '1', ...) goes by the
    number of the card's label. `data` names the images and `how` says why they are held out. A
    classifier with a threshold also gets the curve of what others would call.
    Raises ValueError where there are no images, one kind of them alone, fewer than ten of a kind,
    or a name that the card does not know.
    """
    check_labelled(images, labels, names)
    names = _known(names, classifier.card)
    present = np.unique(labels)
    if len(present) < 2:
        raise ValueError(
            f"{data}: every image is of {names[int(present[0])]!r}; add others (a folder 'none'"
            " for images of no label), or the false-positive rate stays unknown"
        )
    counts = np.bincount(labels, minlength=len(names))
    few = next((int(i) for i in present if counts[i] < LEAST), None)
    if few is not None:
        raise ValueError(f"{data}: {counts[few]} images of {names[few]!r}; give {LEAST} or more")
    probabilities = classifier.probabilities(images, batch)
    threshold, columns = classifier.card.threshold, classifier.card.labels
    called = classifiers.called(probabilities, threshold)
    block = counted(columns, names, labels, called, data=data, how=how)
    if threshold is None:
        return block
    curve = _curve(probabilities, labels, names, columns, sorted({threshold, *GRID}))
    return block.model_copy(update={"curve": curve})


def impostor_threshold(
    classifier: Classifier, impostors: Sequence[np.ndarray], rate: float, label: str
) -> tuple[float, int, int]:
    """The least threshold at which `label` is called on a share of at most `rate` of impostors.

    `impostors` are images uint8 `[H, W, C]`, of any shapes, that do not show what the label names.
    Those with a probability of 0 (no face in them, say) tell nothing and are left out; `rate` in
    (0, 1) needs at least 1 / rate of the others. The threshold, rounded up to six decimals, on how
    many the label may be called, and of how many. Raises ValueError where there are too few, the
    label is unknown, or no threshold below 1 will do.
    """
    known = classifier.card.labels
    if label not in known:
        raise ValueError(
            f"classifier {classifier.card.name} has no label {label!r}"
            + content.did_you_mean(label, known)
        )
    if not 0 < rate < 1:
        raise ValueError(f"a false-match rate of {rate:g}; give one between 0 and 1")
    column = known.index(label)
    every = [float(classifier.probabilities(image[None])[0, column]) for image in impostors]
    scores = sorted((score for score in every if score > 0), reverse=True)
    if len(scores) < 1 / rate:
        blank = len(every) - len(scores)
        without = f" ({blank} more have a probability of 0)" if blank else ""
        raise ValueError(
            f"{len(scores)} impostors{without} say nothing about a false-match rate of {rate:g};"
            f" give {math.ceil(1 / rate):,} or more"
        )
    # as many as the rate allows may lie above; the next one must not
    allowed = math.floor(len(scores) * rate)
    highest_below = scores[allowed]
    threshold = (math.floor(highest_below * 1e6) + 2) / 1e6
    if threshold >= 1:
        raise ValueError(
            f"more than {rate:g} of the impostors have a probability of 1 for {label!r}: are they"
            " impostors?"
        )
    return threshold, allowed, len(scores)


def check_labelled(images: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
    """Raises ValueError where there are no images, or not a label within `names` for each."""
    if len(images) == 0 or labels.shape != (len(images),):
        raise ValueError(f"{len(images)} images and labels of shape {list(labels.shape)}")
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, but there are {len(names)} names"
        )


def _known(names: list[str], card: Card) -> list[str]:
    """The names as labels of the card; bare numbers go by position."""
    bare = [str(i) for i in range(len(names))]
    if names == bare and not set(names) <= set(card.labels) and len(names) <= len(card.labels):
        return card.labels[: len(names)]
    strange = next((n for n in names if n not in (*card.labels, NONE)), None)
    if strange is not None:
        raise ValueError(
            f"classifier {card.name} has no label {strange!r}"
            + content.did_you_mean(strange, [*card.labels, NONE])
        )
    return names


def counted(
    columns: list[str],
    names: list[str],
    labels: np.ndarray,
    called: np.ndarray,
    *,
    data: str,
    how: str,
) -> Calibration:
    """A measurement from what was `called`, bool `[N, len(columns)]`, of labels `[N]`."""
    present = [int(i) for i in np.unique(labels)]
    return classifiers.measured(
        columns,
        {names[i]: int((labels == i).sum()) for i in present},
        {names[i]: [int(k) for k in called[labels == i].sum(0)] for i in present},
        data=data,
        how=how,
    )


def _curve(
    probabilities: np.ndarray,
    labels: np.ndarray,
    names: list[str],
    columns: list[str],
    thresholds: list[float],
) -> Curve:
    found, wrong = {}, {}
    for column, label in enumerate(columns):
        own = labels == names.index(label) if label in names else np.zeros(len(labels), bool)
        above = probabilities[:, column, None] >= np.array(thresholds, np.float32)
        if own.any():
            found[label] = [int(k) for k in above[own].sum(0)]
        wrong[label] = [int(k) for k in above[~own].sum(0)]
    return Curve(thresholds=thresholds, found=found, wrong=wrong)


def check_unseen(images: np.ndarray, seen: Iterable[np.ndarray], where: str, what: str) -> None:
    """Raises ValueError where more than `SEEN` of held-out `images` are among those `seen`."""
    known = {digest(picture) for picture in seen}
    twice = sum(digest(image) in known for image in images)
    if twice > SEEN * len(images):
        raise ValueError(f"{where}: {twice} of its {len(images)} images are among {what}, so they"
                         " are not held out")  # fmt: skip


def digest(image: np.ndarray) -> bytes:
    """What copies of a picture share."""
    return hashlib.sha256(image.tobytes()).digest()
