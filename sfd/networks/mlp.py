"""A small perceptron, for analytic problems of a few dimensions."""

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """A raw network F on flattened input: `F(c_in x, c_noise, labels)`, SiLU, three layers."""

    def __init__(self, *, shape: tuple[int, ...], label_dim: int, width: int = 64):
        super().__init__()
        size = int(torch.tensor(shape).prod())
        self.label_dim = label_dim
        self.net = nn.Sequential(
            nn.Linear(size + 2 + label_dim, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, size),
        )

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor) -> Tensor:
        """Raw output of `x`'s shape; `c_noise [B]`; `labels [B, K]`."""
        noise = torch.stack([c_noise, c_noise.square()], 1)
        return self.net(torch.cat([x.flatten(1), noise, labels], 1)).reshape(x.shape)
