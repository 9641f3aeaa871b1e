"""Train a timm classifier on labelled images, and measure any classifier on labelled images."""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import torch

from sfd import checkpoints, classifiers, content
from sfd.classifiers import (
    NONE,
    Architecture,
    Calibration,
    Card,
    Classifier,
    Curve,
    Input,
    Training,
    timm_models,
)

Progress = Callable[[str, int, int], None]
"""`progress(what, batches done, batches in all)`."""

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
    _check_labelled(images, labels, names)
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
    block = _count(columns, names, labels, called, data=data, how=how)
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


def train_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    names: list[str],
    *,
    name: str,
    arch: str,
    kwargs: dict[str, Any] | None = None,
    task: Literal["classify", "features"] = "classify",
    size: int | None = None,
    epochs: int = 12,
    seed: int = 0,
    batch: int = 128,
    lr: float = 3e-3,
    weight_decay: float = 0.05,
    smoothing: float = 0.05,
    shift: float = 0.0,
    rotate: float = 0.0,
    scale: float = 0.0,
    flip: bool = False,
    precision: Literal["fp32", "bf16"] = "fp32",
    device: str = "cpu",
    heldout: tuple[np.ndarray, np.ndarray] | None = None,
    heldout_data: str = "",
    folds: int = 0,
    data: str,
    licence: str,
    command: str = "",
    progress: Progress | None = None,
) -> "tuple[dict[str, torch.Tensor], Card]":
    """Train a timm classifier from scratch and measure it on images that it did not learn from.

    `images` uint8 `[N, H, W, C]`, C 1 or 3, `labels` int `[N]` into `names`. `arch` and `kwargs` go
    to timm; the network sees squares of `size` (default: the longer side of the images).
    AdamW under one cosine cycle (warm-up over the first fifth). Each image is moved at random, by
    up to `shift` pixels, `rotate` degrees and a factor of 1 +- `scale`, and mirrored if `flip`.

    Measured on `heldout` (images, labels), called `heldout_data`; or, with `folds` >= 2, by
    cross-fitting: every image is judged by a network that learned from the other folds, and the
    weights returned, which learned from all images, were not themselves measured. One of the two is
    needed. The same seed gives the same weights (on one device and number of threads).

    Returns the state dict in half precision (what `classifiers.save` writes) and the card, measured
    with weights so rounded. Raises ValueError where there are no images, too few of a class, one
    class alone, no held-out data, or a recipe that diverges.
    """
    _check_labelled(images, labels, names)
    counts = np.bincount(labels, minlength=len(names))
    if len(names) < 2 or (counts > 0).sum() < 2:
        raise ValueError(f"{data}: a classifier needs images of two or more classes")
    least = max(2, folds)
    few = next((i for i, n in enumerate(counts) if n < least), None)
    if few is not None:
        raise ValueError(
            f"{data}: class {names[few]!r} has {counts[few]} images; give {least} or more"
        )
    if (heldout is None) == (folds == 0) or folds == 1 or folds < 0:
        raise ValueError(
            "a card needs a measurement: give held-out images, or folds=5 to cross-fit (not both)"
        )
    if heldout is not None:
        _check_labelled(*heldout, names)
        if len(np.unique(heldout[1])) < 2:
            raise ValueError(f"{heldout_data}: every image is of one class: how often others are"
                             " taken for it would stay unknown")  # fmt: skip
    if epochs < 1 or batch < 2 or not lr > 0:
        raise ValueError("epochs must be 1 or more, batch 2 or more, lr above 0")

    began = time.monotonic()
    architecture = Architecture(arch=arch, kwargs=kwargs or {})
    side = size or max(images.shape[1:3])

    def fit(rows: np.ndarray, what: str) -> tuple[dict[str, Any], Classifier]:
        x, to = images[rows], _input(images[rows], side)
        model = _fit(
            x,
            labels[rows],
            architecture,
            to,
            len(names),
            epochs=epochs,
            seed=seed,
            batch=min(batch, len(rows)),
            lr=lr,
            weight_decay=weight_decay,
            smoothing=smoothing,
            motion=(shift, rotate, scale, flip),
            precision=precision,
            device=device,
            progress=None if progress is None else partial(progress, what),
        )
        state = checkpoints.halved(model.state_dict())
        model.load_state_dict(state)
        card = Card(
            version=1,
            name=name,
            task="classify",
            labels=names,
            backend="timm",
            architecture=architecture,
            input=to,
            licence=licence,
        )
        return state, Classifier(card, timm_models.network(model, to, device))

    called = np.zeros((len(images), len(names)), bool)
    if folds:
        fold = _folds(images, labels, folds, seed)
        for k in range(folds):
            judge = fit(np.flatnonzero(fold != k), f"fold {k + 1} of {folds}")[1]
            called[fold == k] = judge.called(images[fold == k])
    state, classifier = fit(np.arange(len(images)), "train")
    if heldout is not None:
        called = classifier.called(heldout[0])
    calibration = _count(
        names,
        names,
        labels if heldout is None else heldout[1],
        called,
        data=data if heldout is None else heldout_data,
        how=f"cross-fitted in {folds} folds" if folds else "held out",
    )
    training = Training(
        command=command,
        data=data,
        images=len(images),
        seed=seed,
        seconds=round(time.monotonic() - began, 1),
        versions={package: version(package) for package in ("torch", "timm", "numpy")},
    )
    update = {"task": task, "training": training, "calibration": calibration}
    return state, classifier.card.model_copy(update=update)


def _check_labelled(images: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
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


def _count(
    columns: list[str],
    names: list[str],
    labels: np.ndarray,
    called: np.ndarray,
    *,
    data: str,
    how: str,
) -> Calibration:
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
    known = {_digest(picture) for picture in seen}
    twice = sum(_digest(image) in known for image in images)
    if twice > SEEN * len(images):
        raise ValueError(f"{where}: {twice} of its {len(images)} images are among {what}, so they"
                         " are not held out")  # fmt: skip


def _digest(image: np.ndarray) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()


def _folds(images: np.ndarray, labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each image, int `[N]`: every class spread evenly, copies in one fold."""
    first: dict[bytes, int] = {}
    twin = np.array([first.setdefault(_digest(image), i) for i, image in enumerate(images)])
    rng = np.random.default_rng(seed)
    fold = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero((labels == label) & (twin == np.arange(len(twin)))))
        fold[rows] = np.arange(len(rows)) % folds
    return fold[twin]


def _input(images: np.ndarray, size: int) -> Input:
    # of whole numbers, image by image: exact, and no copy of them all
    pixels = images.size // images.shape[-1]
    squares = sum(np.square(image, dtype=np.int64).sum((0, 1)) for image in images)
    mean = images.sum((0, 1, 2), dtype=np.int64) / pixels / 255
    std = np.sqrt(np.maximum(squares / pixels / 255**2 - mean**2, 0.0))
    if std.min() == 0:
        raise ValueError("the images are all of one colour; is this the right data?")
    return Input(
        size=size,
        channels=images.shape[-1],
        mean=[round(float(m), 4) for m in mean],
        std=[max(round(float(s), 4), 1e-4) for s in std],
    )


def _fit(
    images: np.ndarray,
    labels: np.ndarray,
    architecture: Architecture,
    to: Input,
    classes: int,
    *,
    epochs: int,
    seed: int,
    batch: int,
    lr: float,
    weight_decay: float,
    smoothing: float,
    motion: tuple[float, float, float, bool],
    precision: str,
    device: str,
    progress: Callable[[int, int], None] | None,
) -> torch.nn.Module:
    """One training run. The caller's random state is left as it was."""
    from torch.nn.functional import cross_entropy

    steps = len(images) // batch * epochs
    y = torch.from_numpy(np.array(labels)).to(device)
    shift, rotate, scale, flip = motion
    reach = (2 * shift / images.shape[2], 2 * shift / images.shape[1])
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        model = timm_models.build(
            architecture, channels=to.channels, labels=classes, where="this architecture"
        )
        model = model.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        _check_size(model, architecture.arch, timm_models.prepare(images[:1], to, device))
        optimiser = torch.optim.AdamW(
            [
                {"params": [p for p in model.parameters() if p.ndim > 1]},
                {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=lr,
            weight_decay=weight_decay,
        )
        model.train()
        for step, rows in enumerate(_batches(len(images), batch, epochs, seed)):
            for group in optimiser.param_groups:
                group["lr"] = lr * _one_cycle(step / steps)
            x = _moved(
                timm_models.prepare(images[rows], to, device), to, reach, rotate, scale, flip
            )
            with torch.autocast(device.split(":")[0], torch.bfloat16, precision == "bf16"):
                logits = model(x.contiguous(memory_format=torch.channels_last))
            loss = cross_entropy(logits.float(), y[rows], label_smoothing=smoothing)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            if step % 50 == 49 and not math.isfinite(loss.item()):
                raise ValueError(f"training diverged at step {step + 1}; lower lr={lr}")
            if progress is not None:
                progress(step + 1, steps)
    return model


def _check_size(model: torch.nn.Module, arch: str, x: torch.Tensor) -> None:
    try:
        with torch.no_grad():
            model.eval()(x)
    except (AssertionError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"{arch} does not take {x.shape[-1]} x {x.shape[-1]} images: {said}; give another size,"
            " or img_size among its kwargs"
        ) from None


def _batches(n: int, batch: int, epochs: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers of each step's batch, int `[batch]`; each epoch leaves n % batch images out."""
    for epoch in range(epochs):
        order = np.random.default_rng((seed, epoch)).permutation(n)
        for start in range(0, n - batch + 1, batch):
            yield order[start : start + batch]


def _one_cycle(t: float, warm: float = 0.2) -> float:
    """Factor of the learning rate at the share t in [0, 1) of a run: linear up, cosine down."""
    return t / warm if t < warm else 0.5 * (1 + math.cos(math.pi * (t - warm) / (1 - warm)))


def _moved(
    x: torch.Tensor,
    to: Input,
    reach: tuple[float, float],
    rotate: float,
    scale: float,
    flip: bool,
) -> torch.Tensor:
    """Each image under its own random affine map, black coming in from outside.

    `x` `[B, C, S, S]`, prepared; `reach` is the largest shift (x, y) in units of half the side.
    Draws from torch's global generator.
    """
    from torch.nn.functional import affine_grid, grid_sample

    if not (any(reach) or rotate or scale or flip):
        return x
    a, s, dx, dy, f = torch.rand(5, len(x)) * 2 - 1
    a, s = a * math.radians(rotate), 1 + s * scale
    f = torch.where(f < 0, -1.0, 1.0) if flip else torch.ones(len(x))
    rows = (
        f * s * a.cos(),
        -s * a.sin(),
        dx * reach[0],
        f * s * a.sin(),
        s * a.cos(),
        dy * reach[1],
    )
    grid = affine_grid(
        torch.stack(rows, 1).view(-1, 2, 3).to(x.device), list(x.shape), align_corners=False
    )
    black = (-x.new_tensor(to.mean) / x.new_tensor(to.std)).view(1, -1, 1, 1)
    return grid_sample(x - black, grid, align_corners=False) + black
