"""Who looks at each image before it is kept, and what is refused."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from sfd import content, metrics
from sfd.classifiers import Classifier, called
from sfd.concepts import AnyConcept
from sfd.eval import judging, load_judge
from sfd.features import Extractor

UNJUDGED = "not judged"
NEAR = "private: too near"


@dataclass(frozen=True)
class Seen:
    """What one image showed: a score per detector (None: not judged), and why it is refused."""

    scores: dict[str, float | None]
    reasons: tuple[str, ...]


NOT_MADE = Seen({}, ("not made: values that are not finite",))
"""Of an image that nobody could look at."""


@dataclass(frozen=True)
class Detector:
    """A classifier and those of its labels that no kept image may show."""

    classifier: Classifier
    labels: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name on its card."""
        return self.classifier.card.name

    def look(self, images: np.ndarray) -> list[tuple[float | None, tuple[str, ...]]]:
        """The highest probability among its labels and the reasons against each image.

        An image on which it raised, or answered no number, is refused as not judged.
        """
        card = self.classifier.card
        columns = [card.labels.index(label) for label in self.labels]
        probabilities, _ = judging.judge(self.classifier, images)
        hits = called(np.nan_to_num(probabilities, nan=-1.0), card.threshold)
        out: list[tuple[float | None, tuple[str, ...]]] = []
        for row, hit in zip(probabilities, hits, strict=True):
            if not np.isfinite(row).all():
                out.append((None, (f"{self.name}: {UNJUDGED}",)))
                continue
            found = tuple(f"{self.name}: {card.labels[c]}" for c in columns if hit[c])
            out.append((round(float(row[columns].max()), 6), found))
        return out


@dataclass(frozen=True)
class Private:
    """Images that none may come too near to: their features `[M, D]`, the radius around each."""

    extract: Extractor
    reference: np.ndarray
    radius: float

    def near(self, images: np.ndarray) -> list[tuple[str, ...]]:
        """The reasons against each image; one that cannot be embedded is refused as not judged."""
        try:
            inside = metrics.within_radius(self.extract(images), self.reference, self.radius)
            return [(NEAR,) if found else () for found in inside]
        except judging.JUDGE_ERRORS:
            if len(images) == 1:
                return [(f"private: {UNJUDGED}",)]
        middle = len(images) // 2
        return self.near(images[:middle]) + self.near(images[middle:])


Screen = Callable[[np.ndarray], list[Seen]]
"""uint8 images `[N, H, W, C]` -> what each showed."""


def screen(
    detectors: Sequence[Detector],
    private: Private | None,
    turn: AbstractContextManager[Any] | None = None,
) -> Screen:
    """Every detector looks at every image, and so does the private set; one at a time each.

    All of them wait for `turn`, where one is given.
    """
    *locks, last = [turn or Lock() for _ in (*detectors, private)]

    def look(images: np.ndarray) -> list[Seen]:
        columns = []
        for detector, lock in zip(detectors, locks, strict=True):
            with lock:
                columns.append(detector.look(images))
        near: list[tuple[str, ...]] = [()] * len(images)
        if private is not None:
            with last:
                near = private.near(images)
        names = [detector.name for detector in detectors]
        return [
            Seen(
                {name: score for name, (score, _) in zip(names, answers, strict=True)},
                tuple(reason for _, found in answers for reason in found) + too_near,
            )
            for *answers, too_near in zip(*columns, near, strict=True)
        ]

    return look


def private_set(images: Sequence[np.ndarray], extract: Extractor, quantile: float) -> Private:
    """Refuse what lies nearer to a private image than `quantile` of them lie to each other.

    `images` are uint8 `[H, W, C]` of any shapes, at least two that differ: of exact copies one
    counts, as a set that holds many lies no nearer to what is drawn. A generator that had never
    seen them would lose about that share; the rest is memory. The filter is that of Privacy
    Distillation (arXiv 2306.01322) with a distance in place of a trained matcher. Raises ValueError
    as `metrics.nn_radius`, and where the radius is 0, which only exact copies would be within.
    """
    images = list({(image.shape, image.tobytes()): image for image in images}.values())
    one_shape = len({image.shape for image in images}) == 1
    batches = [np.stack(images)] if one_shape else [image[None] for image in images]
    reference = np.concatenate([extract(batch) for batch in batches])
    radius = metrics.nn_radius(reference, quantile)
    if radius == 0:
        raise ValueError(
            f"{quantile:.3g} of the private images or more are the same in these features: the"
            " radius is 0 and nothing but copies would be refused; give a larger --private-quantile"
            " or other --private-features"
        )
    return Private(extract, reference, radius)


def detectors_of(
    asked: Sequence[str], concepts: Sequence[AnyConcept], device: str
) -> list[Detector]:
    """Detectors by `NAME` or `NAME=LABEL,LABEL`; without labels, those of the concepts it knows.

    Raises ValueError on an unknown label, on a detector that knows none of the concepts, on a
    concept that nothing looks for (unless labels were said), and where there is no detector.
    """
    if not asked:
        raise ValueError("nothing to screen for is known of this student: --detector NAME=LABEL")
    wanted = [concept.label_name for concept in concepts]
    found = []
    for text in asked:
        name, said, labels = text.partition("=")
        classifier = load_judge(name, device)
        card = classifier.card
        if card.task != "classify":
            raise ValueError(f"detector {name} gives features and judges nothing; name another")
        chosen = labels.split(",") if said else [label for label in wanted if label in card.labels]
        strange = next((label for label in chosen if label not in card.labels), None)
        if strange is not None:
            near = content.did_you_mean(strange, card.labels)
            raise ValueError(f"detector {name} has no label {strange!r}{near}")
        if not chosen:
            raise ValueError(
                f"detector {name} has no label for {' or '.join(map(repr, wanted)) or 'anything'}:"
                f" say which of its own, --detector {name}=LABEL ({', '.join(card.labels[:12])})"
            )
        found.append(Detector(classifier, tuple(dict.fromkeys(chosen))))
    names = [detector.name for detector in found]
    if len(set(names)) < len(names):
        raise ValueError(f"two detectors are called the same: {', '.join(names)}")
    if not any("=" in text for text in asked):
        looked = {label for detector in found for label in detector.labels}
        missing = next((label for label in wanted if label not in looked), None)
        if missing is not None:
            raise ValueError(f"no detector here looks for {missing!r}: add one that knows it")
    return found


def described(detector: Detector) -> dict[str, Any]:
    """A detector as plain data: what it looks for, and what its card says of that."""
    card = detector.classifier.card
    measured = card.calibration.sensitivity if card.calibration else {}
    counts = {label: measured[label] for label in detector.labels if label in measured}
    return {
        "name": card.name,
        "labels": list(detector.labels),
        "threshold": card.threshold,
        "weights": card.fingerprint,
        "sensitivity": {label: [count.k, count.n] for label, count in counts.items()},
    }
