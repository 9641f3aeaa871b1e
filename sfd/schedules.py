"""sigma <-> t, and samplers of sigma. The VE view throughout: x = x0 + sigma * eps."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from pydantic import PositiveFloat
from torch import Tensor

from sfd import content

Sampler = Callable[[Tensor], Tensor]
Time = TypeVar("Time", Tensor, float)


def karras_sigma(t: Time, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Time:
    """sigma at t in [0, 1]: sigma_max at 0, sigma_min at 1. arXiv 2206.00364, eq. 5."""
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (high + t * (low - high)) ** rho


def karras_t(sigma: Tensor, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """The inverse of `karras_sigma`."""
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (sigma ** (1 / rho) - high) / (low - high)


def vp_sigmas(betas: Tensor) -> Tensor:
    """sigma of every discrete time of a variance-preserving chain, float64 `[T]`.

    sigma_t = sqrt(1/abar_t - 1), abar_t = prod(1 - beta). arXiv 2006.11239, eq. 4.
    """
    alphas_bar = torch.cumprod(1 - betas.double(), 0)
    return (1 / alphas_bar - 1).sqrt()


def linear_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """The DDPM's betas, float64 `[steps]`. arXiv 2006.11239, section 4."""
    return torch.linspace(start, end, steps, dtype=torch.float64)


def named_betas(*, name: str, start: float, end: float, steps: int) -> Tensor:
    """A chain's betas by the name diffusers gives them, float64 `[steps]`."""
    if name == "linear":
        return linear_betas(steps, start, end)
    if name == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    raise ValueError(f"no betas called {name!r}; known: linear, scaled_linear")


def log_normal(*, mean: float = -1.2, std: PositiveFloat = 1.2) -> Sampler:
    """ln sigma ~ N(mean, std^2), from u ~ U(0, 1). arXiv 2206.00364, table 1."""

    def sample(u: Tensor) -> Tensor:
        return (mean + std * torch.special.ndtri(u.double())).exp().float()

    return sample


def karras(
    *,
    t_max: PositiveFloat = 0.8,
    sigma_min: PositiveFloat = 0.002,
    sigma_max: PositiveFloat = 80.0,
    rho: PositiveFloat = 7.0,
) -> Sampler:
    """sigma(1 - t) of the Karras schedule with t ~ U[0, t_max], from u ~ U(0, 1).

    The default covers [0.002, 24.4]. SiD, arXiv 2404.04057, section 4. Raises ValueError on times
    beyond the schedule's, or a range upside down.
    """
    if t_max > 1:
        raise ValueError(f"karras: t_max={t_max:g}: the schedule ends at 1, give at most that")
    if sigma_min >= sigma_max:
        raise ValueError(
            f"karras: sigma_min={sigma_min:g} is not below sigma_max={sigma_max:g}: lower it"
        )

    def sample(u: Tensor) -> Tensor:
        return karras_sigma(1 - t_max * u.double(), sigma_min, sigma_max, rho).float()

    return sample


def log_uniform(*, sigma_min: PositiveFloat = 0.02, sigma_max: PositiveFloat = 25.0) -> Sampler:
    """ln sigma uniform over a range, from u ~ U(0, 1); over one level where both ends are it.

    Raises ValueError on a range upside down.
    """
    if sigma_min > sigma_max:
        raise ValueError(
            f"log-uniform: sigma_min={sigma_min:g} is above sigma_max={sigma_max:g}: lower it"
        )
    low, high = math.log(sigma_min), math.log(sigma_max)

    def sample(u: Tensor) -> Tensor:
        return (low + (high - low) * u.double()).exp().float()

    return sample


def uniform_t(
    *,
    t_min: int = 38,
    t_max: int = 712,
    steps: int = 1000,
    betas: str = "linear",
    start: float = 1e-4,
    end: float = 0.02,
) -> Sampler:
    """sigma of a discrete time t uniform over [t_min, t_max), from u ~ U(0, 1).

    The chain is that of `named_betas(name=betas, ...)`; the default is the published
    class-conditional setting, sigma 0.137 to 13.0. SFD, arXiv 2409.11219. Raises ValueError if the
    times are none of the chain's.
    """
    if not 0 <= t_min < t_max <= steps:
        raise ValueError(f"uniform-t: [{t_min}, {t_max}) are no times of a chain of {steps} steps")
    sigmas = vp_sigmas(named_betas(name=betas, start=start, end=end, steps=steps))

    def sample(u: Tensor) -> Tensor:
        index = t_min + (u.double() * (t_max - t_min)).long().clamp(max=t_max - t_min - 1)
        return sigmas.to(u.device)[index].float()

    return sample


SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "log-normal": log_normal,
    "karras": karras,
    "log-uniform": log_uniform,
    "uniform-t": uniform_t,
}


def sampler(name: str | None = None, **options: Any) -> Sampler:
    """A row of SAMPLERS by name: a function from u ~ U(0, 1) `[B]` to sigma float32 `[B]`.

    Raises ValueError if there is none, or on options that it does not take.
    """
    if name not in SAMPLERS:
        near = content.did_you_mean(str(name), SAMPLERS)
        raise ValueError(f"no noise levels called {name!r}{near}")
    build = SAMPLERS[name]
    return build(**content.options_of(build, options, f"noise levels {name!r}"))
