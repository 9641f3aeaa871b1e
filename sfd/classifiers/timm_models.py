"""The timm backend: build, load and run a timm image model as a judge or feature extractor."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sfd import checkpoints, content
from sfd.classifiers import Network
from sfd.classifiers.cards import CARD, WEIGHTS, Architecture, Card, Input
from sfd.classifiers.inputs import fit, prepare


def build(architecture: Architecture, *, channels: int, labels: int, where: str) -> nn.Module:
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
    if card.options is not None:
        raise ValueError(f"{where}: backend timm has no options")
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
