"""Classifiers trained from labelled images."""

from collections.abc import Sequence
from pathlib import Path

import torch

from sfd import calibrate, classifiers, configs, content, images
from sfd.calibrate import Progress
from sfd.classifiers import Card

SEEN = 0.01
"""What share of held-out images may be among those learned from: data sets have their doubles."""


def train_judge(
    data: str,
    out: Path,
    *,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    heldout: str | None = None,
    command: str = "",
    force: bool = False,
    device: torch.device,
    progress: Progress | None = None,
) -> Card:
    """Train a classifier on labelled images, measure it, and write it into the folder `out`.

    `recipe` is a file as `configs.Judge` has it, `overrides` its keys as `key=value`. Measured on
    the labelled images `heldout`, or by cross-fitting in the recipe's folds (5 where it says none).
    Leaves every key it went by in `train.yaml`. `force` replaces a classifier that is there.
    Raises ValueError in one line.
    """
    asked, kept = configs.load_judge(recipe, overrides), out / "train.yaml"
    if (out / "card.yaml").is_file() and not force:
        raise ValueError(f"{out}: holds a classifier, which audits may rest on: name another"
                         " folder, or replace it with --force")  # fmt: skip
    pictures, labels, names = images.read_as(data, asked.labels)
    held = images.read_as(heldout, names)[:2] if heldout else None
    if held:
        known = {picture.tobytes() for picture in pictures[: asked.rows]}
        seen = sum(picture.tobytes() in known for picture in held[0])
        if seen > SEEN * len(held[0]):
            raise ValueError(f"{heldout}: {seen} of its {len(held[0])} images are among those to"
                             " learn from, so they are not held out")  # fmt: skip
    content.check_writable(out)
    state, card = calibrate.train_classifier(
        pictures[: asked.rows],
        labels[: asked.rows],
        names,
        name=asked.name or out.name,
        data=f"{asked.data} ({data})" if asked.data else data,
        heldout=held,
        heldout_data=f"{asked.heldout_data} ({heldout})" if asked.heldout_data else heldout or "",
        folds=asked.folds or (0 if held else 5),
        command=command,
        device=str(device),
        progress=progress,
        **asked.training(),
    )
    card = classifiers.save(out, card, state)
    if overrides or recipe is None or Path(recipe).expanduser().resolve() != kept.resolve():
        content.write_atomic(kept, content.dump_yaml(configs.plain(asked)))
    return card
