"""Reference statistics of real images."""

from pathlib import Path

import numpy as np
import torch

from sfd import calibrate, content, features, images
from sfd.eval import suites


def write_reference(
    data: str,
    out: Path,
    *,
    extractor: str,
    floor: str | None,
    names: list[str] | None,
    force: bool = False,
    device: torch.device,
) -> Path:
    """Write the reference of labelled real images, with the floor that `floor`'s images show.

    `force` replaces a file that is there. Raises ValueError in one line.
    """
    file = out if out.suffix == ".npz" else out.with_name(f"{out.name}.npz")
    if file.exists() and not force:
        raise ValueError(f"{file}: is there already, and audits may rest on it: give another name,"
                         " or replace it with --force")  # fmt: skip
    content.check_writable(file.parent)
    pictures, labels, names = _read(data, names)
    extract = features.load(extractor, str(device))
    other = None
    if floor is not None:
        more, more_labels, _ = _read(floor, names)
        calibrate.check_unseen(more, pictures, floor, f"those of {data}")
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


def _read(data: str, names: list[str] | None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labelled images of every name. Raises ValueError where one has none."""
    pictures, labels, names = images.read_as(data, names)
    empty = next((name for i, name in enumerate(names) if i not in labels), None)
    if empty is not None:
        raise ValueError(f"{data}: has no images of {empty!r}: name the labels that it has")
    return pictures, labels, names
