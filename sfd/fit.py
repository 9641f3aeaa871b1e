"""Train a timm classifier on labelled images, and measure it on some that it did not learn from."""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import torch

from sfd import calibrate, checkpoints
from sfd.classifiers import Architecture, Card, Classifier, Input, Training, timm_models

Progress = Callable[[str, int, int], None]
"""`progress(what, batches done, batches in all)`."""


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
    calibrate.check_labelled(images, labels, names)
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
        calibrate.check_labelled(*heldout, names)
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
    calibration = calibrate.counted(
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


def _folds(images: np.ndarray, labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each image, int `[N]`: every class spread evenly, copies in one fold."""
    first: dict[bytes, int] = {}
    twin = np.array(
        [first.setdefault(calibrate.digest(image), i) for i, image in enumerate(images)]
    )
    rng = np.random.default_rng(seed)
    fold = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero((labels == label) & (twin == np.arange(len(twin)))))
        fold[rows] = np.arange(len(rows)) % folds
    return fold[twin]


def _input(images: np.ndarray, size: int) -> Input:
    # sums of whole numbers, image by image: exact, and no copy of them all
    pixels = images.size // images.shape[-1]
    squares = sum(np.square(image, dtype=np.int64).sum((0, 1)) for image in images)
    mean = images.sum((0, 1, 2), dtype=np.int64) / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0.0))
    if std.min() == 0:
        raise ValueError("the images are all of one colour; is this the right data?")
    return Input(
        size=size,
        channels=images.shape[-1],
        mean=[round(float(m) / 255, 4) for m in mean],
        std=[max(round(float(s) / 255, 4), 1e-4) for s in std],
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
