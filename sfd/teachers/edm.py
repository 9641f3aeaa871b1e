"""EDM's preconditioning around a raw network (arXiv 2206.00364, table 1)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfd import networks


class EDMDenoiser(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x, ln(sigma)/4), with F's weights under `model`.

    `patch` > 1 shows F each patch x patch block of pixels as channels (space to depth, an
    orthonormal rearrangement: noise stays white). `precision` is the autocast type of F, or None;
    input and output are float32 always.
    """

    def __init__(
        self, *, network: str, options: dict[str, Any], patch: int = 1, sigma_data: float = 0.5
    ):
        super().__init__()
        self.model = networks.build(network, **options)
        self.patch, self.sigma_data = patch, sigma_data
        self.precision: torch.dtype | None = None

    def forward(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        s, d = sigma.float().reshape(-1, *[1] * (x.ndim - 1)), self.sigma_data
        c_skip, c_out = d**2 / (s**2 + d**2), s * d / (s**2 + d**2).sqrt()
        y = x * (s**2 + d**2).rsqrt()
        if self.patch > 1:
            y = F.pixel_unshuffle(y, self.patch)
        with torch.autocast(x.device.type, self.precision, enabled=self.precision is not None):
            y = self.model(y, sigma.float().log() / 4, cond)
        y = y.float()
        if self.patch > 1:
            y = F.pixel_shuffle(y, self.patch)
        return c_skip * x + c_out * y
