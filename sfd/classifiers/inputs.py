"""Images to what a network takes."""

import numpy as np
import torch
from torch import Tensor

from sfd.classifiers.cards import Input


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
