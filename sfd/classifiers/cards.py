"""The only reader and writer of classifier cards: what a classifier is and how good it is."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import pydantic
import yaml

from sfd import content, metrics
from sfd.content import Model, Pair, Strict

if TYPE_CHECKING:
    import torch

CARD, WEIGHTS = "card.yaml", "weights.safetensors"
NONE = "none"
"""The name, in calibration data, of images that show no label of the card."""


class Count(Strict):
    """k of n, with its two-sided 95 % interval."""

    k: int = pydantic.Field(ge=0)
    n: int = pydantic.Field(gt=0)
    ci95: Pair


class Curve(Strict):
    """What other thresholds would have called, on the images of a calibration.

    `found[label][i]` of the label's own images, and `wrong[label][i]` of all others, have a
    probability of at least `thresholds[i]`. The numbers of images stand in the calibration.
    """

    thresholds: list[float]
    found: dict[str, list[int]]
    wrong: dict[str, list[int]]


class Calibration(Strict):
    """What a classifier called on labelled images that its weights had not seen.

    `confusion[truth][j]` is on how many of the `images[truth]` images of that truth the label
    number j was called. From it follow `sensitivity[label]` (called on its own images) and
    `false_positive[label]` (called on images of everything else).
    """

    data: str
    how: str
    images: dict[str, int]
    confusion: dict[str, list[int]]
    accuracy: Count
    sensitivity: dict[str, Count]
    false_positive: dict[str, Count]
    curve: Curve | None = None


class Architecture(Strict):
    """`timm.create_model(arch, num_classes=..., in_chans=..., **kwargs)`."""

    arch: str
    kwargs: dict[str, Any] = {}


class Input(Strict):
    """What the network takes: square images, scaled to [0, 1], then (x - mean) / std."""

    size: int = pydantic.Field(gt=0)
    channels: Literal[1, 3]
    mean: list[float]
    std: list[float]
    resize: Literal["bilinear"] = "bilinear"

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channels or min(self.std) <= 0:
            raise ValueError(f"mean and std need {self.channels} numbers each, std above 0")
        return self


class Training(Strict):
    """How the weights came about. `command` is what to run, `images` how many it learned from."""

    command: str
    data: str
    images: int
    seed: int
    seconds: float
    versions: dict[str, str]


class Card(Strict):
    """What a classifier is, how good it is, on what, and under which licence.

    `task` is 'classify' (it judges) or 'features' (it judges nothing, so that no network measures
    both forgetting and quality). `threshold` is the probability from which a label counts as
    called; null means that the most probable label is called, and no other. `options` are the
    backend's own, `weights_sha256` pins every file that its answers follow from.
    """

    version: Literal[1]
    name: str
    task: Literal["classify", "features"]
    labels: list[str] = pydantic.Field(min_length=2)
    backend: str
    architecture: Architecture | None = None
    input: Input | None = None
    options: dict[str, Any] | None = None
    threshold: float | None = pydantic.Field(default=None, gt=0, lt=1)
    weights_sha256: str | None = None
    licence: str
    training: Training | None = None
    calibration: Calibration | None = None

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels: a label is given twice")
        if self.calibration is not None:
            block = self.calibration
            again = measured(
                self.labels, block.images, block.confusion, data=block.data, how=block.how
            )
            if not _same_counts(block, again):
                raise ValueError("calibration: the rates do not follow from the confusion counts")
            if (self.threshold is None) != (block.curve is None):
                raise ValueError(
                    "calibration: was measured with another threshold than the card's: set"
                    " calibration to null and run `sfd calibrate`"
                )
            if block.curve is not None:
                _check_curve(block, block.curve, self.labels, self.threshold)
        return self

    @property
    def fingerprint(self) -> str:
        """Hash of what its answers follow from: its weights, and all on how they are used."""
        used = (
            "weights_sha256",
            "backend",
            "architecture",
            "input",
            "options",
            "threshold",
            "labels",
        )
        return content.hash_json(self.model_dump(mode="json", include={*used}))

    def confused(self, truth: str, called: str) -> Count:
        """On how many held-out images of `truth` the label `called` was called.

        `truth` and `called` are labels of the card (`truth` may be 'none'). Raises ValueError
        where that was never measured.
        """
        if called not in self.labels:
            raise ValueError(
                f"classifier {self.name} has no label {called!r}"
                + content.did_you_mean(called, self.labels)
            )
        if self.calibration is None or truth not in self.calibration.images:
            raise ValueError(
                f"classifier {self.name} was never measured on images of {truth!r};"
                f" run `sfd calibrate {self.name} DATA`"
            )
        block = self.calibration
        return count(block.confusion[truth][self.labels.index(called)], block.images[truth])


def count(k: int, n: int) -> Count:
    """k of n with its 95 % interval, to six decimals."""
    low, high = metrics.rate_interval(k, n)
    return Count(k=k, n=n, ci95=(round(float(low), 6), round(float(high), 6)))


def measured(
    labels: list[str],
    images: dict[str, int],
    confusion: dict[str, list[int]],
    *,
    data: str,
    how: str,
) -> Calibration:
    """The calibration that follows from confusion counts.

    `images` says how many images of each truth there were; a truth is one of `labels`, or 'none'.
    `confusion[truth]` has one count per label. Raises ValueError where the counts are not possible.
    """
    for truth, row in confusion.items():
        if truth not in (*labels, NONE) or truth not in images:
            raise ValueError(f"confusion: unknown row {truth!r}")
        if len(row) != len(labels) or min(row) < 0 or max(row) > images[truth]:
            raise ValueError(
                f"confusion: row {truth!r} needs {len(labels)} counts up to {images[truth]}"
            )
    if set(images) != set(confusion) or len(confusion) < 2:
        raise ValueError("confusion: needs a row for each of two or more kinds of images")

    everything = sum(images.values())
    sensitivity, false_positive, right = {}, {}, 0
    for column, label in enumerate(labels):
        hits = confusion[label][column] if label in confusion else 0
        own = images.get(label, 0)
        called = sum(row[column] for row in confusion.values())
        right += hits
        if own:
            sensitivity[label] = count(hits, own)
        false_positive[label] = count(called - hits, everything - own)
    return Calibration(
        data=data,
        how=how,
        images=images,
        confusion=confusion,
        accuracy=count(right, sum(n for truth, n in images.items() if truth in labels)),
        sensitivity=sensitivity,
        false_positive=false_positive,
    )


def _same_counts(a: Calibration, b: Calibration) -> bool:
    def pairs(x: Calibration) -> list[dict[str, tuple[int, int]]]:
        blocks = ({"": x.accuracy}, x.sensitivity, x.false_positive)
        return [{label: (c.k, c.n) for label, c in block.items()} for block in blocks]

    return pairs(a) == pairs(b)


def _check_curve(
    block: Calibration, curve: Curve, labels: list[str], threshold: float | None
) -> None:
    """A curve falls from threshold to threshold, and at the card's own it is the calibration."""
    if curve.thresholds != sorted(set(curve.thresholds)):
        raise ValueError("curve: its thresholds must rise")
    if threshold not in curve.thresholds:
        raise ValueError(
            f"curve: was not measured at the threshold {threshold}: set calibration to null and run"
            " `sfd calibrate`"
        )
    own = curve.thresholds.index(threshold)
    everything = sum(block.images.values())
    sides = (
        ("found", curve.found, block.sensitivity, {k: block.images[k] for k in block.sensitivity}),
        (
            "wrong",
            curve.wrong,
            block.false_positive,
            {label: everything - block.images.get(label, 0) for label in labels},
        ),
    )
    for side, counts, stated, most in sides:
        if set(counts) != set(stated):
            raise ValueError(f"curve: {side} needs the labels {', '.join(stated)}")
        for label, row in counts.items():
            falls = row == sorted(row, reverse=True) and min(row) >= 0 and row[0] <= most[label]
            if len(row) != len(curve.thresholds) or not falls or row[own] != stated[label].k:
                raise ValueError(
                    f"curve: {side} of {label!r} does not fit the counts at {threshold}: set"
                    " calibration to null and run `sfd calibrate`"
                )


def folder_of(name: str) -> Path:
    """The folder of the classifier called `name`, or at that path. Raises ValueError if none."""
    path = content.find("classifiers", name)
    folder = path if path.is_dir() else path.parent
    if not (folder / CARD).is_file():
        raise ValueError(f"{folder}: no {CARD} in it; `sfd classifier DATA {folder}` makes one")
    return folder


def read_card(name: str) -> Card:
    """The card of a classifier, by name or path. Raises ValueError in one line."""
    return content.load(folder_of(name) / CARD, Card)


class _Dumper(content.Dumper):
    """A count with its interval goes on one line."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> Any:
        one_line = True if "ci95" in dict(mapping) else flow_style
        return super().represent_mapping(tag, mapping, one_line)


def save(folder: Path, card: Card, state: "dict[str, torch.Tensor] | None" = None) -> Card:
    """Write the card, and the weights if given (half precision); returns the card as written.

    Each file is written atomically, the weights first.
    """
    if state is not None:
        from sfd import checkpoints

        checkpoints.write_tensors(folder / WEIGHTS, checkpoints.halved(state), {})
        card = card.model_copy(update={"weights_sha256": content.sha256(folder / WEIGHTS)})
    text = yaml.dump(
        card.model_dump(mode="json"),
        Dumper=_Dumper,
        sort_keys=False,
        width=100,
        default_flow_style=None,
        allow_unicode=True,
    )
    content.write_atomic(folder / CARD, text)
    return card


def write_calibration(
    name: str, block: Calibration, out: Path | None = None, *, threshold: float | None = None
) -> Path:
    """Write a measurement into a classifier's card, in its folder or in a copy of it at `out`.

    `threshold` is the one measured at, where that is not the card's.
    """
    source = folder_of(name)
    folder = out or source
    card = read_card(name)
    update = {"calibration": block, "threshold": threshold or card.threshold}
    if folder != source:
        for path in [p for p in source.rglob("*") if p.is_file()]:
            content.write_atomic(folder / path.relative_to(source), path.read_bytes())
    save(folder, card.model_copy(update=update))
    return folder


def options_of(card: Card, where: str, model: type[Model]) -> Model:
    """The card's options as the backend's record. Raises ValueError in one line."""
    return content.check(card.options or {}, model, f"{where}: options")


def path_of(folder: Path, text: str) -> Path:
    """A path that a card names, as it is meant: relative to the card's folder."""
    return folder / Path(text).expanduser()


def check_files(card: Card, where: str, paths: list[Path], what: str) -> None:
    """Raises ValueError if `paths`, called `what`, are not the files that the card was made for.

    A single file is pinned by its own sha256, several by `content.sha256_of_files`.
    """
    one = len(paths) == 1
    actual = content.sha256(paths[0]) if one else content.sha256_of_files(paths)
    if card.weights_sha256 is None:
        raise ValueError(f"{where}: weights_sha256 is missing; that of {what} here is {actual}")
    if actual != card.weights_sha256:
        raise ValueError(
            f"{where}: sha256 of {what} is {actual}, the card says {card.weights_sha256[:12]}...:"
            " put back what the card was measured with, or write that one into the card, set"
            " calibration to null and run `sfd calibrate`"
        )
