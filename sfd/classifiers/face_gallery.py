"""The face backend: does a face match a gallery of reference photographs?"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from sfd import images as pictures
from sfd.classifiers import Network, onnx_session
from sfd.classifiers.cards import CARD, Card, check_files, options_of, path_of
from sfd.classifiers.onnx_session import OnnxFile
from sfd.content import Strict

LEAST_SIDE = 4
"""Pixels of a box under which it is no face to compare."""

Faces = Callable[[np.ndarray], list[list[np.ndarray]]]
"""`faces(images)`: uint8 `[B, H, W, C]` -> the faces of each image, uint8 `[h, w, C]`."""


class Options(Strict):
    """What a card of the face backend says in `options`.

    `embedder` is an ONNX model that gives a face an embedding; `galleries` has a folder of
    photographs for each label, relative to the card's folder. `other` is the label that says that
    nobody of the galleries is there. `crop` cuts out each face that NudeNet finds ('nudenet-face'),
    or takes the whole image for a face ('none').
    """

    embedder: OnnxFile
    output_name: str | None = None
    galleries: dict[str, str]
    other: str | None = None
    crop: Literal["nudenet-face", "none"]


def load(card: Card, folder: Path, device: str) -> Network:
    """The network of a card whose backend is face; it runs on the CPU whatever `device` is.

    The probability of a label is (1 + c) / 2, c in [-1, 1] the highest cosine between a face of the
    image and a photograph of the gallery, 0 in an image without a face; that of `other` is 1 minus
    the highest of these. Raises ValueError if labels and galleries do not fit, a photograph shows
    no face or several, or the files are not those that the card was made for.
    """
    where = str(folder / CARD)
    options = options_of(card, where, Options)
    named = [*options.galleries, *([options.other] if options.other is not None else [])]
    if not options.galleries or sorted(named) != sorted(card.labels):
        raise ValueError(
            f"{where}: options.galleries needs a folder for each of {', '.join(card.labels)}, but"
            " for the one that options.other names"
        )
    if card.input is None or card.threshold is None:
        raise ValueError(
            f"{where}: backend face needs input, and a threshold: write any in (0, 1), and let"
            f" `sfd calibrate {card.name} DATA --impostors FOLDER` set it"
        )
    model = path_of(folder, options.embedder.path)
    session = onnx_session.open_session(model)
    photographs = photographs_of(card, folder)
    faces, more = _cropper(options.crop)
    files = [path for paths in photographs.values() for path in paths]
    check_files(card, where, [model, *files, *more], "embedder and photographs")
    run = onnx_session.network(session, options.embedder, card.input, str(model))
    output = onnx_session.output_of(session, options.output_name, str(model))

    def embedded(face: np.ndarray) -> np.ndarray:
        y = run(face[None], output)[0]
        length = float(np.linalg.norm(y))
        if not 0 < length < np.inf:
            raise ValueError(f"{model}: its embedding of a face has the length {length}")
        return y / length

    def known(path: Path) -> np.ndarray:
        found = faces(pictures.read_image(path)[None])[0]
        if len(found) != 1:
            raise ValueError(f"{path}: shows {len(found)} faces; a reference shows one: crop it")
        return embedded(found[0])

    galleries = [np.stack([known(path) for path in paths]) for paths in photographs.values()]

    def nearest(found: list[np.ndarray]) -> list[float]:
        if not found:
            return [0.0] * len(galleries)
        here = np.stack([embedded(face) for face in found])
        return [(1 + float((here @ gallery.T).max())) / 2 for gallery in galleries]

    def probabilities(images: np.ndarray) -> np.ndarray:
        table = np.array([nearest(found) for found in faces(images)], np.float32)
        column = dict(zip(photographs, table.T, strict=True))
        other = 1 - table.max(1)
        return np.stack([column.get(label, other) for label in card.labels], axis=1)

    return Network(probabilities)


def photographs_of(card: Card, folder: Path) -> dict[str, list[Path]]:
    """The files of each label's gallery, in the card's order of labels.

    Raises ValueError where a folder is missing or empty.
    """
    galleries = options_of(card, str(folder / CARD), Options).galleries
    return {
        label: _photographs(path_of(folder, galleries[label]))
        for label in card.labels
        if label in galleries
    }


def _photographs(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of reference photographs")
    paths = pictures.list_images(folder)
    if not paths:
        raise ValueError(f"{folder}: no photographs in it ({', '.join(pictures.SUFFIXES)})")
    return paths


def _cropper(crop: str) -> tuple[Faces, list[Path]]:
    """How faces are found, and the files that this follows from."""
    if crop == "none":
        return lambda images: [[image] for image in images], []
    from sfd.classifiers import nudenet_detector

    detect = nudenet_detector.detector()

    def faces(images: np.ndarray) -> list[list[np.ndarray]]:
        return [
            [
                square(image, d.box)
                for d in found
                if d.part in nudenet_detector.FACES and min(d.box[2:]) >= LEAST_SIDE
            ]
            for image, found in zip(images, detect(images), strict=True)
        ]

    return faces, [nudenet_detector.MODEL]


def square(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The square around a box (left, top, width, height), moved and cut to lie in the image.

    `image` uint8 `[H, W, C]` -> `[h, w, C]`, h and w at most the longer side of the box.
    """
    side = max(box[2:])
    spans = []
    for start, length, whole in (
        (box[1], box[3], image.shape[0]),
        (box[0], box[2], image.shape[1]),
    ):
        first = max(0, min(start + (length - side) // 2, whole - side))
        spans.append(slice(first, min(first + side, whole)))
    return image[spans[0], spans[1]]
