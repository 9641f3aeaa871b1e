"""Networks, by name: written from the papers, named as the published checkpoints are."""

from typing import Any

from torch import nn

from sfd.networks.ddpm import DDPMUNet
from sfd.networks.edm import UNet
from sfd.networks.mlp import MLP

NETWORKS: dict[str, type[nn.Module]] = {"edm-unet": UNet, "ddpm-unet": DDPMUNet, "mlp": MLP}


def build(name: str, **options: Any) -> nn.Module:
    """A freshly initialised network by its row in NETWORKS. Raises ValueError on a wrong option."""
    try:
        return NETWORKS[name](**options)
    except KeyError:
        raise ValueError(f"no network called {name!r}; known: {', '.join(NETWORKS)}") from None
    except TypeError as error:
        raise ValueError(f"network {name}: {error}") from None
