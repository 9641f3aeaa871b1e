"""Low-rank adapters (arXiv 2106.09685): several networks over one shared base."""

import copy
from collections.abc import Sequence

from torch import nn

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def shared_copy(module: nn.Module) -> nn.Module:
    """A copy with modules of its own over the very same frozen parameters and buffers.

    Only what learns is duplicated.
    """
    kept = [p for p in module.parameters() if not p.requires_grad]
    memo = {id(tensor): tensor for tensor in (*kept, *module.buffers())}
    return copy.deepcopy(module, memo)


def adapted(
    denoiser: nn.Module,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str] = ATTENTION,
    seed: int = 0,
) -> nn.Module:
    """A denoiser over `denoiser`'s own frozen weights with new adapters, which alone learn.

    It begins equal to `denoiser`. Raises ValueError where no module is called as in `targets`.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    out = shared_copy(denoiser.requires_grad_(False))
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))  # pyright: ignore[reportArgumentType]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, out)
        except ValueError as error:
            said = " ".join(str(error).split())
            raise ValueError(f"train.lora: {said}") from None
    return out


def merged(denoiser: nn.Module) -> nn.Module:
    """A plain copy with every adapter added into its layer, on tensors of its own."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    out = copy.deepcopy(denoiser)
    for name, layer in list(out.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, leaf = name.rpartition(".")
            out.get_submodule(parent).register_module(leaf, layer.get_base_layer())
    return out
