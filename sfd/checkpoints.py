"""Tensor files: safetensors in and out, strictly, and nothing that executes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor, nn

from sfd import content
from sfd.concepts import AnyConcept, Concept
from sfd.configs import TeacherRef
from sfd.content import Strict

SCHEMA = "sfd/model/1"


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

    Half-precision values are widened. Raises ValueError that names the first difference, or the
    first weight that is not finite: such a network draws something all the same.
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
        if not torch.isfinite(tensors[key]).all():
            raise ValueError(
                f"{where}: weight {key!r} holds values that are not finite: the file is damaged, or"
                " its training failed; put a good one in its place"
            )
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(tensors[key])


def write_model(path: Path, module: nn.Module, card: Mapping[str, Any], *, half: bool) -> None:
    """Write a network with the card that rebuilds it (JSON in the metadata, key `sfd`)."""
    tensors = halved(module.state_dict()) if half else module.state_dict()
    write_tensors(path, tensors, {"sfd": json.dumps(card, sort_keys=True)})


Positive = Annotated[float, Field(gt=0)]
Index = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(gt=0)]


class _Card(Strict):
    """What every model file says of itself; it may say more."""

    model_config = ConfigDict(extra="allow")

    role: Literal["student", "teacher"]
    name: str
    spec: dict[str, Any]
    shape: Annotated[list[Size], Field(min_length=3, max_length=3)]
    labels: list[str]
    without: list[Index]
    sigma_range: Annotated[list[Positive], Field(min_length=2, max_length=2)]
    sigma_init: Positive
    knows_null: bool = True
    """Whether it was shown images without their label."""

    @model_validator(mode="after")
    def _labels_are_names(self) -> Self:
        for label in self.labels:
            if not label.isprintable() or label.strip() in ("", ".", ".."):
                raise ValueError(f"its label {label!r} is no name")
        twice = next((each for each in self.labels if self.labels.count(each) > 1), None)
        if twice is not None:
            raise ValueError(f"two of its labels are called {twice!r}")
        return self


class _Ref(TeacherRef):
    """A teacher as a student's card names it: as its recipe does, and by its hash."""

    sha256: str


class _StudentCard(_Card):
    """What a student's file says beside."""

    concepts: list[AnyConcept]
    teacher: _Ref

    @model_validator(mode="after")
    def _labels_of_its_own(self) -> "_StudentCard":
        classes = [c for c in self.concepts if isinstance(c, Concept)]
        asked = [label for c in classes for label in (c.label, *c.override)]
        outside = [label for label in (*asked, *self.without) if label >= len(self.labels)]
        if outside:
            raise ValueError(f"names label {outside[0]} among {len(self.labels)} labels")
        return self


def read_card(meta: Mapping[str, str], where: str) -> dict[str, Any]:
    """The card that `write_model` put into the metadata; see `check_card`."""
    if "sfd" not in meta:
        raise ValueError(f"{where}: not written by sfd (no card in its metadata)")
    try:
        card = json.loads(meta["sfd"])
    except ValueError as error:
        raise ValueError(f"{where}: the card in its metadata is not JSON: {error}") from None
    return check_card(card, where)


def check_card(card: Any, where: str) -> dict[str, Any]:
    """A model's card, as it is. Raises ValueError, in one line, on another version's, and on what
    is missing or of another form.
    """
    schema = card.get("schema") if isinstance(card, dict) else None
    if schema != SCHEMA:
        raise ValueError(
            f"{where}: its card's schema is {schema!r}, this version of sfd reads {SCHEMA!r}"
        )
    model = _StudentCard if card.get("role") == "student" else _Card
    content.check_json(json.dumps(card), model, f"{where}, its card")
    return card


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises ValueError in one line."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: missing, truncated or not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return data
