"""Classifiers trained from labelled images."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from sfd import calibrate, classifiers, configs, content, fit, images, metrics
from sfd.classifiers import Card
from sfd.eval import load_judge
from sfd.fit import Progress


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
    if held and heldout:
        calibrate.check_unseen(held[0], pictures[: asked.rows], heldout, "those to learn from")
    content.check_writable(out)
    state, card = fit.train_classifier(
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


def _learned(card: Card) -> Iterable[np.ndarray]:
    """The images that a classifier learned from, if they are still where its card says."""
    where = card.training and Path(card.training.data).expanduser()
    try:
        return images.read_labelled(str(where))[0] if where and where.exists() else ()
    except ValueError:  # something else lies there now
        return ()


def measure_judge(
    name: str,
    data: str,
    *,
    how: str = "held out",
    out: Path | None = None,
    impostors: Path | None = None,
    rate: float = 0.001,
    label: str | None = None,
    force: bool = False,
    device: torch.device,
) -> tuple[Path, Card]:
    """Measure a classifier on labelled images: the folder its card is written to, and the card.

    `out` takes a measured copy; `force` replaces a measurement in its own folder. `impostors` is a
    folder of images without `label` (default: the first), which set the threshold: see
    `calibrate.impostor_threshold`. Raises ValueError in one line, also where the images are those
    that set the threshold, that it learned from (if they are still there), or the photographs of a
    gallery.
    """
    folder = out or classifiers.folder_of(name)
    if (folder / "card.yaml").is_file() and not force:
        there = classifiers.read_card(str(folder.resolve())).calibration
        if there is not None:
            raise ValueError(f"{folder}: was measured already ({there.how}), and audits may rest on"
                             " it: give --out, or replace that with --force")  # fmt: skip
    detector = load_judge(name, str(device))
    labelled = images.read_labelled(data)
    if detector.card.backend == "face":
        from sfd.classifiers import face_gallery

        galleries = face_gallery.photographs_of(detector.card, classifiers.folder_of(name))
        known = [images.read_image(path) for paths in galleries.values() for path in paths]
        calibrate.check_unseen(labelled[0], known, data, "the gallery's")
    calibrate.check_unseen(labelled[0], _learned(detector.card), data, "those it learned from")
    if impostors:
        strangers, of = images.read_pictures(impostors), label or detector.card.labels[0]
        calibrate.check_unseen(labelled[0], strangers, data, "the impostors")
        least, k, n = calibrate.impostor_threshold(detector, strangers, rate, of)
        detector = classifiers.with_threshold(detector, least)
        most = metrics.clopper_pearson(k, n)[1]
        how += f"; {of!r} on {k} of {n} of {impostors}, up to {most:.2g} of others (95 %)"
    block = calibrate.calibrate(detector, *labelled, data=data, how=how)
    to = classifiers.write_calibration(name, block, out, threshold=detector.card.threshold)
    return to, classifiers.read_card(str(to.resolve()))
