"""The onnx backend: any ONNX image classifier that the user has."""

from pathlib import Path
from typing import Literal

import numpy as np
from scipy.special import expit, softmax

from sfd.classifiers import Network, onnx_session
from sfd.classifiers.cards import CARD, Card, check_files, options_of, path_of
from sfd.classifiers.onnx_session import OnnxFile
from sfd.content import Strict


class Options(Strict):
    """What a card of the onnx backend says in `options`.

    `activation` makes probabilities of the output ('none': it gives probabilities). `columns[i]` is
    the column of the card's label number i; null means the columns are the labels. `features_name`
    is the output that holds features.
    """

    model: OnnxFile
    activation: Literal["softmax", "sigmoid", "none"]
    output_name: str | None = None
    columns: list[int] | None = None
    features_name: str | None = None


def load(card: Card, folder: Path, device: str) -> Network:
    """The network of a card whose backend is onnx; it runs on the CPU whatever `device` is.

    Raises ValueError if the card and the ONNX file do not fit, or it fails on a black image.
    """
    where = str(folder / CARD)
    options = options_of(card, where, Options)
    if card.input is None:
        raise ValueError(f"{where}: backend onnx needs input")
    path = path_of(folder, options.model.path)
    session = onnx_session.open_session(path)
    check_files(card, where, [path], path.name)
    run = onnx_session.network(session, options.model, card.input, str(path))
    output = onnx_session.output_of(session, options.output_name, str(path))
    columns = list(range(len(card.labels))) if options.columns is None else options.columns
    black = np.zeros((1, card.input.size, card.input.size, 1), np.uint8)
    width = run(black, output).shape[1]
    if options.columns is None and width != len(card.labels):
        raise ValueError(
            f"{where}: {path.name} gives {width} columns for {len(card.labels)} labels; say which"
            " in options.columns"
        )
    if len(set(columns)) != len(card.labels) or not all(0 <= c < width for c in columns):
        raise ValueError(
            f"{where}: options.columns needs {len(card.labels)} different numbers from 0 to"
            f" {width - 1}"
        )

    def probabilities(images: np.ndarray) -> np.ndarray:
        y = run(images, output)
        if options.activation == "softmax":
            y = softmax(y, axis=1)
        elif options.activation == "sigmoid":
            y = expit(y)
        return y[:, columns]

    if options.features_name is None:
        return Network(probabilities)
    features = onnx_session.output_of(session, options.features_name, str(path))
    return Network(probabilities, lambda images: run(images, features))
