"""Reference statistics of real images."""

from pathlib import Path

import torch

from sfd import content, features, images
from sfd.eval import suites


def write_reference(
    data: str,
    out: Path,
    *,
    extractor: str,
    floor: str | None,
    names: list[str] | None,
    device: torch.device,
) -> Path:
    """Write the reference of labelled real images, with the floor that `floor`'s images show."""
    file = out if out.suffix == ".npz" else out.with_suffix(".npz")
    content.check_writable(file.parent)
    pictures, labels, found = images.read_labelled(data)
    names = _named(data, names or found, found)
    extract = features.load(extractor, str(device))
    other = None
    if floor is not None:
        more, more_labels, more_found = images.read_labelled(floor)
        _named(floor, names, more_found)
        other = (extract(more), more_labels)
    packed = suites.reference_bytes(
        extract(pictures),
        labels,
        names,
        extractor=extractor,
        extractor_sha256=features.sha256(extractor),
        other=other,
        about=f"{len(pictures)} images of {Path(data).name}",
    )
    content.write_atomic(file, packed)
    return file


def _named(data: str, names: list[str], found: list[str]) -> list[str]:
    if len(names) != len(found):
        raise ValueError(f"{data}: has {len(found)} classes, {len(names)} names were given")
    return names
