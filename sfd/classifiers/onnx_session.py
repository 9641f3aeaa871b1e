"""ONNX files: the sessions, the feeding and the errors that the other backends share.

They run on the CPU, in as many threads as torch has.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
import torch

from sfd import content
from sfd.classifiers.cards import Input
from sfd.classifiers.inputs import prepare
from sfd.content import Strict

# what onnxruntime raises derives from Exception, with no base in common
_BINDINGS = vars(importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state"))
ERRORS = tuple(
    kind for kind in _BINDINGS.values() if isinstance(kind, type) and issubclass(kind, Exception)
)

Run = Callable[[np.ndarray, str], np.ndarray]
"""`run(images, output)`: uint8 `[B, H, W, C]` -> float32 `[B, D]` of the output of that name."""


class OnnxFile(Strict):
    """An ONNX file and how it is fed.

    `path` is relative to the card's folder, `input_name` the one input if null. `order` is that of
    the channels; the card's mean and std are in the order R, G, B all the same.
    """

    path: str
    input_name: str | None = None
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    order: Literal["RGB", "BGR"] = "RGB"


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turns what onnxruntime raises into a ValueError of one line."""
    try:
        yield
    except ERRORS as error:
        raise ValueError(f"{where}: onnxruntime: {' '.join(str(error).split())}") from None


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """A session of an ONNX file. Raises ValueError where there is none, it cannot be read, or its
    weights lie in other files: the hash of this one would not say which network it is.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such ONNX file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what it logs as an error, it also raises
    with explained(f"{path}: read alone (export it with external_data=False)"):
        # of its bytes: files beside it are not found then
        return onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )


def output_of(session: onnxruntime.InferenceSession, name: str | None, where: str) -> str:
    """The output called `name`, the first if None. Raises ValueError with the nearest known."""
    known = [output.name for output in session.get_outputs()]
    if name is not None and name not in known:
        raise ValueError(f"{where}: no output {name!r}{content.did_you_mean(name, known)}")
    return name or known[0]


def network(session: onnxruntime.InferenceSession, file: OnnxFile, to: Input, where: str) -> Run:
    """How images go through a session. A model of a fixed batch gets it, filled up with zeros.

    Raises ValueError if the model's input does not fit what the file and `to` say.
    """
    known = {put.name: put for put in session.get_inputs()}
    name = file.input_name or next(iter(known))
    if name not in known:
        raise ValueError(f"{where}: no input {name!r}{content.did_you_mean(name, known)}")
    if len(known) > 1:
        raise ValueError(f"{where}: has the inputs {', '.join(known)}; a classifier has one")
    if known[name].type != "tensor(float)":
        raise ValueError(f"{where}: its input is a {known[name].type}, not tensor(float)")
    shape = list(known[name].shape)
    wants = [to.size, to.size]
    wants.insert(0 if file.layout == "NCHW" else 2, to.channels)
    fits = len(shape) == 4 and all(
        not isinstance(side, int) or side == want
        for side, want in zip(shape[1:], wants, strict=True)
    )
    if not fits:
        raise ValueError(f"{where}: its input is {shape}, the card says [B, {str(wants)[1:]}")
    fixed = shape[0] if isinstance(shape[0], int) else None

    def run(images: np.ndarray, output: str) -> np.ndarray:
        x = prepare(images, to).numpy()
        if file.order == "BGR":
            x = x[:, ::-1]
        if file.layout == "NHWC":
            x = x.transpose(0, 2, 3, 1)
        step = fixed or len(x)
        return np.concatenate([some(x[i : i + step], output) for i in range(0, len(x), step)])

    def some(x: np.ndarray, output: str) -> np.ndarray:
        missing = (fixed or len(x)) - len(x)
        filled = np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)])
        with explained(where):
            y = np.asarray(session.run([output], {name: filled})[0])
        if y.ndim < 2 or len(y) != len(filled):
            raise ValueError(f"{where}: output {output!r} is {list(y.shape)} for {len(x)} images")
        return y.reshape(len(y), -1).astype(np.float32, copy=False)[: len(x)]

    return run
