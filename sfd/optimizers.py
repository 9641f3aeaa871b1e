"""What a step does to a network: Adam for everything, or Muon for its matrices."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

THIN = 32
"""A matrix with fewer rows or columns than this is not orthogonalised: what enters and leaves the
network, its class embedding, low-rank adapters."""


@dataclass(frozen=True)
class Optimizer:
    """One step for all of a network's parameters."""

    parts: dict[str, torch.optim.Optimizer]
    """By what follows the network's name in a checkpoint: "" for Adam, "-matrices" for Muon."""
    flat: tuple[tuple[nn.Parameter, nn.Parameter], ...] = ()
    """Parameters beside what Muon knows of them: the same memory as a matrix."""

    def step(self, rate: float, beta1: float) -> None:
        """Step once at this learning rate, the same for both parts; `beta1` is Adam's."""
        for parameter, matrix in self.flat:
            matrix.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        for name, part in self.parts.items():
            for group in part.param_groups:
                group["lr"] = rate
                if not name:
                    group["betas"] = beta1, 0.999
            part.step()
        for _, matrix in self.flat:
            matrix.grad = None

    def held(self) -> list[Tensor]:
        """The moments that are kept between steps."""
        states = (part.state.values() for part in self.parts.values())
        kept = (value for entries in states for entry in entries for value in entry.values())
        return [value for value in kept if value.ndim]  # Adam counts its steps as well


def adam(parameters: Iterable[nn.Parameter], partly: Iterable[nn.Parameter] = ()) -> Optimizer:
    """Adam (arXiv 1412.6980), with beta2 .999."""
    return Optimizer({"": torch.optim.Adam(list(parameters), fused=True)})


def muon(parameters: Iterable[nn.Parameter], partly: Iterable[nn.Parameter] = ()) -> Optimizer:
    """Muon (Jordan et al., 2024) for matrices of `THIN` rows and columns or more; else Adam.

    A convolution is the matrix `[out, in x height x width]`. Momentum is .95 throughout. An update
    is as large as Adam's are by experience (arXiv 2502.16982, eq. 4), so that one rate does for
    both; there is no weight decay. What learns `partly` (some of its values must stay as they are)
    is Adam's too: an orthogonalised update moves every value of a matrix.
    """
    left = {id(p) for p in partly}
    matrices, rest = list[nn.Parameter](), list[nn.Parameter]()
    for p in parameters:
        thin = p.ndim < 2 or min(len(p), p[0].numel()) < THIN
        (rest if thin or id(p) in left else matrices).append(p)
    flat = tuple((p, nn.Parameter(p.detach().view(len(p), -1))) for p in matrices)
    parts: dict[str, torch.optim.Optimizer] = {}
    if rest:
        parts[""] = torch.optim.Adam(rest, fused=True)
    if flat:
        parts["-matrices"] = torch.optim.Muon(
            [matrix for _, matrix in flat], weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        )
    return Optimizer(parts, flat)


TABLE: dict[str, Callable[..., Optimizer]] = {"adam": adam, "muon": muon}
