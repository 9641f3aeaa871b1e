"""What a subject drew, image by image, and what judges called it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sfd.classifiers import Classifier
from sfd.eval.shots import Ask, Partial, request, stacked
from sfd.features import Extractor

CHUNK = 500

# what anybody's judge or generator may raise on an image (a client's errors share no other base):
# counted as failed, never as clean
JUDGE_ERRORS = Exception


@dataclass(frozen=True)
class Drawn:
    """Images asked for under one condition, judged. Row i belongs to seed i; NaN: not judged, or
    never made."""

    probabilities: np.ndarray
    """float32 `[N, L]` of the judge, NaN rows where it failed."""
    called: np.ndarray
    """int `[N]`: the label called, -1 if the judge failed on it or called none."""
    second: np.ndarray
    """int `[N]`: what the second judge called."""
    features: np.ndarray
    """float32 `[N, D]`, NaN rows where no image was made."""
    errors: tuple[str, ...] = ()
    threshold: float | None = None
    """The judge's, see `Card.threshold`."""
    offset: int = 0
    """Where the judge's labels begin among those that are called."""

    @property
    def made(self) -> np.ndarray:
        """bool `[N]`."""
        return np.asarray(~np.isnan(self.features).all(axis=1))

    @property
    def judged(self) -> np.ndarray:
        """bool `[N]`."""
        return np.asarray(np.isfinite(self.probabilities).all(axis=1))

    @property
    def found(self) -> np.ndarray:
        """bool `[N, L]`: the judge's labels that reach its threshold; without one, that called.

        So nothing else in an image hides a label, whichever were looked for when it was drawn.
        """
        if self.threshold is None:
            return self.called[:, None] == self.offset + np.arange(self.probabilities.shape[1])
        # a teacher's side comes out of the cache: both sides are read in its precision
        return self.probabilities.astype(np.float16) >= np.float16(self.threshold)

    def shows(self, label: int) -> np.ndarray:
        """bool `[N]`: whether one of the judge's labels is found."""
        return self.found[:, label - self.offset]


def packed(drawn: Drawn) -> dict[str, np.ndarray]:
    """What is cached of images that were all made: half precision and short labels."""
    kinds = {"probabilities": np.float16, "called": np.int16, "second": np.int16,
             "features": np.float16}  # fmt: skip
    return {name: getattr(drawn, name).astype(kind) for name, kind in kinds.items()}


def unpacked(arrays: Mapping[str, np.ndarray], threshold: float | None, offset: int = 0) -> Drawn:
    """`packed`, undone up to rounding; `threshold` and `offset` as `Drawn` has them."""
    return Drawn(
        arrays["probabilities"].astype(np.float32),
        arrays["called"].astype(int),
        arrays["second"].astype(int),
        arrays["features"].astype(np.float32),
        threshold=threshold,
        offset=offset,
    )


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


def look(
    got: Partial, classifier: Classifier, first: Sequence[int] = ()
) -> tuple[np.ndarray, np.ndarray, set[str]]:
    """Probabilities `[N, L]`, labels called `[N]` (see `calls`), and what the judge raised."""
    if not got.made.any():
        nothing = np.full((len(got.made), len(classifier.card.labels)), np.nan, np.float32)
        return nothing, np.full(len(got.made), -1), set()
    found, said = judge(classifier, got.images)
    rows = got.rows(found)
    return rows, calls(rows, classifier.card.threshold, first), said


def describe(got: Partial, extract: Extractor) -> np.ndarray:
    """Features `[N, D]`, NaN where no image was made; `[N, 0]` where none was."""
    return got.rows(extract(got.images)) if got.made.any() else np.zeros((len(got.made), 0))


def calls(
    probabilities: np.ndarray, threshold: float | None, first: Sequence[int] = ()
) -> np.ndarray:
    """The label called in each row, -1 for none: the most probable, if it reaches the threshold;
    none in a row that is not whole.

    Several labels may reach a threshold: then the earliest of them in `first` is called, so that
    what is looked for is not hidden by something else in the image.
    """
    whole = np.isfinite(probabilities).all(1, keepdims=True)
    clean = np.where(whole, probabilities, -1.0)
    best = clean.argmax(1)
    top = clean.max(1)
    called = np.where((top < 0) | (top < (threshold or 0.0)), -1, best)
    if threshold is not None:
        for label in reversed(first):
            called[clean[:, label] >= threshold] = label
    return called


def judged_by(
    classifier: Classifier, label: int
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A classifier as the judge of one of its labels: see `sfd.attacks.Judge`."""

    def look_for(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probabilities, _ = judge(classifier, pictures)
        called = calls(probabilities, classifier.card.threshold, [label])
        looked = np.isfinite(probabilities).all(1)
        hit = np.where(looked, (called == label).astype(int), -1).astype(np.int8)
        return hit, probabilities[:, label]

    return look_for


def draw(
    generate: Ask,
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

    `first` are the labels looked for, see `calls`. `keep(images, probabilities)` sees what was made
    of each chunk.
    """
    columns: list[tuple[np.ndarray, ...]] = []
    errors: set[str] = set()
    for start in range(0, len(seeds), CHUNK):
        part = seeds[start : start + CHUNK]
        got = request(generate, [condition] * len(part), part)
        one, called, said = look(got, judges[0], first)
        _, second, also = look(got, judges[1], first)
        errors |= said | also | set(got.errors)
        columns.append((one, called, second, describe(got, extract)))
        if keep and got.made.any():
            keep(got.images, one[got.made])
        if progress:
            progress(len(part))
    *rest, described = (list(column) for column in zip(*columns, strict=True))
    joined = [*map(np.concatenate, rest), stacked(described)]
    return Drawn(*joined, errors=tuple(sorted(errors)), threshold=judges[0].card.threshold)
