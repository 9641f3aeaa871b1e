"""Noise prediction at discrete times, seen as a denoiser (arXiv 2006.11239, eq. 12 and 15)."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from sfd import networks, schedules


class DiscreteTimes(nn.Module):
    """sigma of each discrete time, and the (fractional) time of a sigma."""

    def __init__(self, betas: Tensor):
        super().__init__()
        self.register_buffer("sigmas", schedules.vp_sigmas(betas), persistent=False)

    def forward(self, sigma: Tensor) -> Tensor:
        """t `[B]`, float32, linear in ln sigma between times, clamped to the chain's ends."""
        known = cast(Tensor, self.sigmas).log()
        wanted = sigma.double().log().clamp(known[0], known[-1])
        right = torch.searchsorted(known, wanted).clamp(1, len(known) - 1)
        left = known[right - 1]
        return (right - 1 + (wanted - left) / (known[right] - left)).float()

    def sigma_at(self, t: float) -> float:
        """The sigma of a (fractional) time: the other way round."""
        known = cast(Tensor, self.sigmas)
        return float(np.exp(np.interp(t, np.arange(len(known)), known.log().cpu().numpy())))


def prediction_of(x0: Tensor, x: Tensor, sigma: float, kind: str) -> Tensor:
    """The "epsilon" or "v_prediction" of a network that finds `x0` in x: see `predicted_x0`."""
    if kind == "epsilon":
        return (x - x0) / sigma
    a = (1 + sigma**2) ** -0.5
    return (a**2 * x - x0) / (a * sigma)


def predicted_x0(
    predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, t: Tensor, kind: str
) -> Tensor:
    """x0 from a network that predicts "epsilon" or "v_prediction" from the VP view of x.

    The VP view is a x with a = 1/sqrt(1 + sigma^2). x0 = x - sigma eps, or a^2 x - a sigma v
    (arXiv 2202.00512, appendix D).
    """
    s = sigma.float().reshape(-1, *[1] * (x.ndim - 1))
    a = (1 + s**2).rsqrt()
    output = predict(a * x, t).float()
    return x - s * output if kind == "epsilon" else a**2 * x - a * s * output


class DDPMDenoiser(nn.Module):
    """The class-conditional DDPM that SA, SalUn and the published SFD share, under `model`."""

    def __init__(self, *, network: str = "ddpm-unet", options: dict[str, Any], steps: int = 1000):
        super().__init__()
        self.model = networks.build(network, **options)
        self.times = DiscreteTimes(schedules.linear_betas(steps))
        self.precision: torch.dtype | None = None

    def forward(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            with torch.autocast(x.device.type, self.precision, enabled=self.precision is not None):
                return self.model(x_t, t, cond)

        return predicted_x0(predict, x, sigma, self.times(sigma), "epsilon")


def shape_of(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(C, h, w) that a diffusers UNet is configured for: `sample_size` is one side or both."""
    side = config["sample_size"]
    height, width = (side, side) if isinstance(side, int) else side
    return config["in_channels"], height, width
