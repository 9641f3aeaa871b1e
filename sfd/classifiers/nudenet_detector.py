"""The nudenet backend: the detector of exposed and covered parts that the nudenet wheel brings."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import nudenet
import numpy as np

from sfd import content
from sfd.classifiers import Network, onnx_session
from sfd.classifiers.cards import CARD, Card, check_files, options_of
from sfd.content import Strict

MODEL = Path(nudenet.__file__).with_name("320n.onnx")
PARTS = (
    "ANUS_COVERED",
    "ANUS_EXPOSED",
    "ARMPITS_COVERED",
    "ARMPITS_EXPOSED",
    "BELLY_COVERED",
    "BELLY_EXPOSED",
    "BUTTOCKS_COVERED",
    "BUTTOCKS_EXPOSED",
    "FACE_FEMALE",
    "FACE_MALE",
    "FEET_COVERED",
    "FEET_EXPOSED",
    "FEMALE_BREAST_COVERED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_COVERED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
)
FACES = ("FACE_FEMALE", "FACE_MALE")
BATCH = 16


@dataclass(frozen=True)
class Detection:
    """A part, its score in (0.25, 1], and its box (left, top, width, height) in pixels."""

    part: str
    score: float
    box: tuple[int, int, int, int]


Detect = Callable[[np.ndarray], list[list[Detection]]]
"""`detect(images)`: uint8 `[B, H, W, C]` -> what was detected in each image."""


class Options(Strict):
    """What a card of the nudenet backend says in `options`: the parts that count for each label."""

    parts: dict[str, list[str]]


def detector() -> Detect:
    """NudeNet's detector over one session. An image gets what NudeNet gives its file.

    It reports no score under 0.25, and of overlapping boxes only the best, whatever their parts.
    """
    found = nudenet.NudeDetector(str(MODEL))
    # its own takes every core
    found.onnx_session = onnx_session.open_session(MODEL)

    def detect(images: np.ndarray) -> list[list[Detection]]:
        colour = np.broadcast_to(images, (*images.shape[:3], 3))
        # as cv2 reads a file: blue first
        rows = [np.ascontiguousarray(image[..., ::-1]) for image in colour]
        try:
            with onnx_session.explained(MODEL.name):
                each = found.detect_batch(rows, BATCH)
        except cv2.error as error:
            raise ValueError(f"nudenet: {' '.join(str(error).split())}") from None
        return [[_detection(row) for row in rows] for rows in each]

    return detect


def _detection(row: dict[str, Any]) -> Detection:
    return Detection(part=row["class"], score=float(row["score"]), box=tuple(row["box"]))


def load(card: Card, folder: Path, device: str) -> Network:
    """The network of a card whose backend is nudenet; it runs on the CPU whatever `device` is.

    The probability of a label is the highest score among its parts, 0 where none is detected.
    Raises ValueError if the card names other labels or parts than there are, or the wheel brings
    another model than the card was made for.
    """
    where = str(folder / CARD)
    parts = options_of(card, where, Options).parts
    if set(parts) != set(card.labels):
        raise ValueError(f"{where}: options.parts needs the labels {', '.join(card.labels)}")
    for label, names in parts.items():
        strange = next((name for name in names if name not in PARTS), None)
        if strange is not None:
            raise ValueError(
                f"{where}: options.parts.{label}: NudeNet has no part {strange!r}"
                + content.did_you_mean(strange, PARTS)
            )
        if not names:
            raise ValueError(f"{where}: options.parts.{label}: name a part")
    if card.threshold is None:
        raise ValueError(f"{where}: backend nudenet needs a threshold: its labels exclude nothing")
    check_files(card, where, [MODEL], f"nudenet's {MODEL.name}")
    detect = detector()

    def probabilities(images: np.ndarray) -> np.ndarray:
        def score(found: list[Detection], label: str) -> float:
            return max((d.score for d in found if d.part in parts[label]), default=0.0)

        rows = [[score(found, label) for label in card.labels] for found in detect(images)]
        return np.array(rows, np.float32)

    return Network(probabilities)
