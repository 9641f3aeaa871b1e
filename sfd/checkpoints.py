"""Tensor files: safetensors in and out, strictly, and nothing that executes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfd import content


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> None:
    """Write a safetensors file atomically. Raises OSError; the old file is then untouched."""
    from safetensors.torch import save

    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    content.write_atomic(path, save(plain, dict(meta)))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises ValueError if missing or truncated."""
    return _read(path, tensors=True)


def _read(path: Path, *, tensors: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys() if tensors else ()
            return {k: file.get_tensor(k) for k in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: truncated or not a safetensors file: {error}") from None


def read_meta(path: Path) -> dict[str, str]:
    """Metadata alone of a safetensors file. Raises ValueError if missing or truncated."""
    return _read(path, tensors=False)[1]


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as it is stored: floating point in half precision, on the CPU.

    Raises ValueError where a weight does not fit half precision.
    """
    out = {k: (v.half() if v.is_floating_point() else v).detach().cpu() for k, v in tensors.items()}
    worst = next((k for k, v in out.items() if not torch.isfinite(v).all()), None)
    if worst is not None:
        raise ValueError(f"{worst!r} is not finite in half precision; lower the learning rate")
    return out


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into a module whose names and shapes must be exactly these; see `fill`."""
    fill(module.state_dict(), tensors, where)


def fill(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into others whose names and shapes must be exactly these.

    Half-precision values are widened. Raises ValueError that names the first difference.
    """
    for key in sorted(own.keys() | tensors.keys()):
        if key not in tensors:
            raise ValueError(f"{where}: weight {key!r} is missing")
        if key not in own:
            raise ValueError(f"{where}: weight {key!r} does not belong to this network")
        if own[key].shape != tensors[key].shape:
            raise ValueError(
                f"{where}: weight {key!r} has shape {list(tensors[key].shape)},"
                f" the network wants {list(own[key].shape)}"
            )
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(tensors[key])


def write_model(path: Path, module: nn.Module, card: Mapping[str, Any], *, half: bool) -> None:
    """Write a network with the card that rebuilds it (JSON in the metadata, key `sfd`)."""
    tensors = halved(module.state_dict()) if half else module.state_dict()
    write_tensors(path, tensors, {"sfd": json.dumps(card, sort_keys=True)})


def read_card(meta: Mapping[str, str], where: str) -> dict[str, Any]:
    """The card that `write_model` put into the metadata. Raises ValueError if there is none."""
    if "sfd" not in meta:
        raise ValueError(f"{where}: not written by sfd (no card in its metadata)")
    return json.loads(meta["sfd"])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises ValueError in one line."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: missing, truncated or not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return data
