"""The timm backend: build, load and run a timm image model as a judge or feature extractor."""

from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn

from sfd import checkpoints, content
from sfd.classifiers import Network
from sfd.classifiers.cards import CARD, WEIGHTS, Architecture, Card, Input


def prepare(images: np.ndarray, to: Input, device: str = "cpu") -> Tensor:
    """uint8 `[B, H, W, C]` -> what the network takes: float32 `[B, to.channels, size, size]`.

    Grey images are repeated for a network of three channels; colour becomes luminance
    (0.299 R + 0.587 G + 0.114 B) for a network of one. Another size is resampled to the square of
    the network bilinearly with antialiasing, so the aspect ratio of other images is not kept.
    """
    return fit(torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float() / 255, to)


def fit(x: Tensor, to: Input) -> Tensor:
    """`prepare` from float images `[B, C, H, W]` in [0, 1] on; gradients flow."""
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


def build(architecture: Architecture, *, channels: int, labels: int, where: str) -> nn.Module:
    """An untrained timm model. Raises ValueError where timm does not know the name or a keyword."""
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


def network(model: nn.Module, to: Input, device: str = "cpu") -> Network:
    """A timm model as judge and feature extractor, in evaluation mode and in float32."""
    model = model.to(device=device, dtype=torch.float32, memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]

    def run(images: np.ndarray, features: bool) -> np.ndarray:
        exact = torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            x = prepare(images, to, device).contiguous(memory_format=torch.channels_last)
            hidden = model.forward_features(x)  # pyright: ignore[reportCallIssue]
            y = model.forward_head(hidden, pre_logits=features)  # pyright: ignore[reportCallIssue]
            return (y.flatten(1) if features else y.softmax(1)).float().cpu().numpy()

    def scores(x0: Tensor) -> Tensor:
        return model(fit((x0.clamp(-1, 1) + 1) / 2, to)).log_softmax(1)

    return Network(lambda images: run(images, False), lambda images: run(images, True), scores)


def load(card: Card, folder: Path, device: str) -> Network:
    """The network of a card whose backend is timm. Raises ValueError if card and weights differ."""
    where = str(folder / CARD)
    if card.architecture is None or card.input is None or card.weights_sha256 is None:
        raise ValueError(f"{where}: backend timm needs architecture, input and weights_sha256")
    model = build(
        card.architecture, channels=card.input.channels, labels=len(card.labels), where=where
    )
    path = folder / WEIGHTS
    tensors, _ = checkpoints.read_tensors(path)
    actual = content.sha256(path)
    if actual != card.weights_sha256:
        raise ValueError(
            f"{path}: sha256 is {actual[:12]}..., the card says {card.weights_sha256[:12]}...:"
            " put back the weights that belong to the card, or train again"
        )
    checkpoints.load_strictly(model, tensors, str(path))
    model.requires_grad_(False)
    return network(model, card.input, device)
