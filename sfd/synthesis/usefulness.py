"""How useful a dataset is: what a classifier learns from it for real images."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sfd import content, fit

ARCH = "resnet18"
KWARGS = {
    "stem_type": "deep",
    "stem_width": 16,
    "channels": [32, 64, 128, 64],
    "layers": [2, 2, 2, 1],
}
EPOCHS = 16
LEAST_SIDE = 32

Labelled = tuple[np.ndarray, np.ndarray]
"""uint8 images `[N, H, W, C]` and int labels `[N]` into the dataset's."""


def measure(
    kinds: dict[str, Callable[[], Labelled]],
    test: Labelled,
    labels: Sequence[str],
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    device: str = "cpu",
    progress: fit.Progress | None = None,
) -> dict[str, Any]:
    """One classifier trained on each kind of images, all tested on the same real ones.

    `kinds` give as many images each; they are asked one after another. The accuracies are counts
    with their intervals. Raises ValueError as `fit.train_classifier`.
    """
    accuracy, sizes = {}, []
    for name, kind in kinds.items():
        images, numbers = kind()
        sizes.append(len(images))
        _, card = fit.train_classifier(
            images, numbers, list(labels), name="usefulness", arch=ARCH, kwargs=KWARGS,
            size=max(LEAST_SIDE, *images.shape[1:3]), epochs=epochs, seed=seed, shift=1.5,
            rotate=10, scale=0.1, heldout=test, heldout_data="real images", data=name,
            licence="none", device=device,
            progress=(lambda _, done, total, name=name: progress(f"train on {name}", done, total))
            if progress
            else None,
        )  # fmt: skip
        assert card.calibration is not None
        accuracy[name] = card.calibration.accuracy.model_dump(mode="json")
    if len(set(sizes)) > 1:
        raise ValueError(f"{sizes} images of {list(kinds)}: as many of each compare like with like")
    return {"arch": ARCH, "epochs": epochs, "seed": seed, "images": sizes[0], "accuracy": accuracy}


def matched(
    data: str, real: tuple[np.ndarray, np.ndarray, list[str]], labels: Sequence[str],
    student_labels: Sequence[str],
) -> Labelled:  # fmt: skip
    """The real images of a dataset's labels, numbered as they are; others are left out.

    Names that are mere numbers go by the student's. Raises ValueError where a label has none.
    """
    images, numbers, names = real
    if names == [str(i) for i in range(len(names))] and not set(labels) <= set(names):
        names = list(student_labels[: len(names)])
    missing = next((label for label in labels if label not in names), None)
    if missing is not None:
        raise ValueError(f"{data}: no class {missing!r}{content.did_you_mean(missing, names)}")
    number = {names.index(label): i for i, label in enumerate(labels)}
    rows = np.isin(numbers, list(number))
    return images[rows], np.array([number[int(i)] for i in numbers[rows]])


def first_of_each(labelled: Labelled, labels: int, each: int) -> Labelled:
    """The first `each` images of each of `labels` labels, in the order of the labels."""
    rows = np.concatenate([np.flatnonzero(labelled[1] == i)[:each] for i in range(labels)])
    return labelled[0][rows], labelled[1][rows]
