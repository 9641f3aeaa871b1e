"""The only reader and writer of `classifiers/`: cards, their weights, and who judges with them.

A classifier is a folder: `card.yaml` says what it is and how good it is on named held-out data,
`weights.safetensors` holds half-precision weights whose sha256 is in the card.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pydantic
import yaml

from sfd import content, metrics
from sfd.content import Strict

if TYPE_CHECKING:
    import torch

CARD, WEIGHTS = "card.yaml", "weights.safetensors"
NONE = "none"
"""The name, in calibration data, of images that show no label of the card."""


class Count(Strict):
    """k of n, with its two-sided 95 % interval."""

    k: int = pydantic.Field(ge=0)
    n: int = pydantic.Field(gt=0)
    ci95: tuple[float, float]


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
    called; null means that the most probable label is called, and no other.
    """

    version: Literal[1]
    name: str
    task: Literal["classify", "features"]
    labels: list[str] = pydantic.Field(min_length=2)
    backend: str
    architecture: Architecture | None = None
    input: Input | None = None
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
        return self

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
        accuracy=count(right, sum(n for truth, n in images.items() if truth != NONE)),
        sensitivity=sensitivity,
        false_positive=false_positive,
    )


def _same_counts(a: Calibration, b: Calibration) -> bool:
    def pairs(x: Calibration) -> list[dict[str, tuple[int, int]]]:
        blocks = ({"": x.accuracy}, x.sensitivity, x.false_positive)
        return [{label: (c.k, c.n) for label, c in block.items()} for block in blocks]

    return pairs(a) == pairs(b)


@dataclass(frozen=True)
class Network:
    """What a backend gives: two functions of uint8 images `[B, H, W, C]`, C 1 or 3.

    `probabilities` returns float32 `[B, L]` in [0, 1], one column per label of the card; `features`
    returns float32 `[B, D]`, and is None where the network has none.
    """

    probabilities: Callable[[np.ndarray], np.ndarray]
    features: Callable[[np.ndarray], np.ndarray] | None = None


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
        return self._in_batches(self.network.probabilities, images, batch, len(self.card.labels))

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


def _check_images(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"expected uint8 images [N, H, W, 1 or 3], found {images.dtype} {list(images.shape)}"
        )
    if len(images) == 0:
        raise ValueError("there are no images")


def prepare(images: np.ndarray, to: Input, device: str = "cpu") -> "torch.Tensor":
    """uint8 `[B, H, W, C]` -> what the network takes: float32 `[B, to.channels, size, size]`.

    Grey images are repeated for a network of three channels; colour becomes luminance
    (0.299 R + 0.587 G + 0.114 B) for a network of one. Another size is resampled to the square of
    the network bilinearly with antialiasing, so the aspect ratio of other images is not kept.
    """
    import torch

    x = torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float() / 255
    if x.shape[1] > to.channels:
        x = (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    elif x.shape[1] < to.channels:
        x = x.expand(-1, to.channels, -1, -1)
    if x.shape[-2:] != (to.size, to.size):
        x = torch.nn.functional.interpolate(
            x, size=(to.size, to.size), mode="bilinear", antialias=True, align_corners=False
        )
    shape = (1, to.channels, 1, 1)
    return (x - x.new_tensor(to.mean).view(shape)) / x.new_tensor(to.std).view(shape)


def build_timm(
    architecture: Architecture, *, channels: int, labels: int, where: str
) -> "torch.nn.Module":
    """An untrained timm model. Raises ValueError where timm does not know the name or a keyword."""
    import timm

    if not timm.is_model(architecture.arch):
        raise ValueError(
            f"{where}: timm has no architecture {architecture.arch!r}"
            + content.did_you_mean(architecture.arch, timm.list_models())
        )
    try:
        return timm.create_model(
            architecture.arch, in_chans=channels, num_classes=labels, **architecture.kwargs
        )
    except (TypeError, AssertionError, IndexError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{where}: timm refuses {architecture.kwargs}: {said}") from None


def timm_network(model: "torch.nn.Module", to: Input, device: str = "cpu") -> Network:
    """A timm model as judge and feature extractor, in evaluation mode and in float32."""
    import torch

    model = model.to(device=device, dtype=torch.float32, memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]

    def run(images: np.ndarray, features: bool) -> np.ndarray:
        exact = torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            x = prepare(images, to, device).contiguous(memory_format=torch.channels_last)
            hidden = model.forward_features(x)  # pyright: ignore[reportCallIssue]
            y = model.forward_head(hidden, pre_logits=features)  # pyright: ignore[reportCallIssue]
            return (y.flatten(1) if features else y.softmax(1)).float().cpu().numpy()

    return Network(lambda images: run(images, False), lambda images: run(images, True))


def _timm(card: Card, folder: Path, device: str) -> Network:
    where = str(folder / CARD)
    if card.architecture is None or card.input is None or card.weights_sha256 is None:
        raise ValueError(f"{where}: backend timm needs architecture, input and weights_sha256")
    state = read_weights(folder / WEIGHTS, card.weights_sha256)
    model = build_timm(
        card.architecture, channels=card.input.channels, labels=len(card.labels), where=where
    )
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    wrong = next((k for k in wanted | found if wanted.get(k) != found.get(k)), None)
    if wrong is not None:
        raise ValueError(
            f"{folder / WEIGHTS}: {wrong!r} has shape {found.get(wrong)}, the card's architecture"
            f" needs {wanted.get(wrong)}; the card and the weights are not of one training"
        )
    model.load_state_dict(state)
    return timm_network(model, card.input, device)


BACKENDS: dict[str, Backend] = {"timm": _timm}


def known_backend(name: str) -> Backend:
    """The backend called `name`. Raises ValueError with the nearest known one."""
    if name not in BACKENDS:
        raise ValueError(f"no classifier backend {name!r}" + content.did_you_mean(name, BACKENDS))
    return BACKENDS[name]


def read_weights(path: Path, expected: str) -> "dict[str, torch.Tensor]":
    """Weights of a safetensors file with that sha256; half precision comes out as float32.

    Raises ValueError where the file is missing, another, or truncated.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.is_file():
        raise ValueError(f"{path}: missing; put back the weights that belong to the card")
    data = path.read_bytes()
    actual = content.sha256(data)
    if actual != expected:
        raise ValueError(
            f"{path}: sha256 is {actual[:12]}..., the card says {expected[:12]}...: truncated or"
            " replaced; put back the weights that belong to the card, or train again"
        )
    try:
        state = load(data)
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated or not safetensors: {error}; train again") from None
    halves = (torch.float16, torch.bfloat16)
    return {k: v.float() if v.dtype in halves else v for k, v in state.items()}


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


def halved(state: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """A state dict as it is stored: floating point in half precision, on the CPU.

    Raises ValueError where a weight does not fit half precision.
    """
    import torch

    out = {
        k: (v.half() if v.is_floating_point() else v).detach().cpu().contiguous()
        for k, v in state.items()
    }
    worst = next((k for k, v in out.items() if not torch.isfinite(v).all()), None)
    if worst is not None:
        raise ValueError(f"{worst!r} is not finite in half precision; lower the learning rate")
    return out


class _Dumper(yaml.SafeDumper):
    """A count with its interval goes on one line."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> Any:
        one_line = True if "ci95" in dict(mapping) else flow_style
        return super().represent_mapping(tag, mapping, one_line)


def save(folder: Path, card: Card, state: "dict[str, torch.Tensor] | None" = None) -> Card:
    """Write the card, and the weights if given (half precision); returns the card as written.

    Each file is written atomically, the weights first.
    """
    if state is not None:
        from safetensors.torch import save as to_bytes

        data = to_bytes(halved(state))
        content.write_atomic(folder / WEIGHTS, data)
        card = card.model_copy(update={"weights_sha256": content.sha256(data)})
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


def write_calibration(name: str, block: Calibration, out: Path | None = None) -> Path:
    """Write a measurement into a classifier's card, in its folder or in a copy at `out`."""
    source = folder_of(name)
    folder = out or source
    card = read_card(name).model_copy(update={"calibration": block})
    if folder != source and (source / WEIGHTS).is_file():
        content.write_atomic(folder / WEIGHTS, (source / WEIGHTS).read_bytes())
    save(folder, card)
    return folder
