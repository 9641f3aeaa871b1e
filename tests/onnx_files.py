"""ONNX files written by hand, so that no test needs the onnx package."""

import struct
from pathlib import Path

import numpy as np

ELEMENT = {"float32": 1, "int64": 7}


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: int | float | str | bytes) -> bytes:
    """One protobuf field."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def node(kind: str, inputs: list[str], output: str, **attributes: int | list[int]) -> bytes:
    text = b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, kind)
    for name, value in attributes.items():
        if isinstance(value, int):
            body = field(3, value) + field(20, 2)
        else:
            body = b"".join(field(8, v) for v in value) + field(20, 7)
        text += field(5, field(1, name) + body)
    return text


def tensor(name: str, array: np.ndarray, apart: str | None = None) -> bytes:
    """A weight, or where the file `apart` has it."""
    dims = b"".join(field(1, size) for size in array.shape)
    kind = field(2, ELEMENT[str(array.dtype)])
    if apart:
        where = field(13, field(1, "location") + field(2, apart))
        return dims + kind + field(8, name) + where + field(14, 1)
    return dims + kind + field(8, name) + field(9, array.tobytes())


def value(name: str, shape: list[int | str], kind: str = "float32") -> bytes:
    dims = b"".join(field(1, field(1 if isinstance(d, int) else 2, d)) for d in shape)
    return field(1, name) + field(2, field(1, field(1, ELEMENT[kind]) + field(2, dims)))


def write(
    path: Path,
    nodes: list[bytes],
    weights: dict[str, np.ndarray],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]],
    kinds: dict[str, str] = {},
    apart: str | None = None,
) -> Path:
    """A model of opset 13 with inputs and outputs of these shapes, float32 unless `kinds` says.

    The one weight lies in the file `apart` beside it, if there is a name for that.
    """
    graph = b"".join(field(1, n) for n in nodes) + field(2, "graph")
    graph += b"".join(field(5, tensor(name, array, apart)) for name, array in weights.items())
    if apart:
        (array,) = weights.values()
        path.with_name(apart).write_bytes(array.tobytes())
    graph += b"".join(
        field(11, value(n, shape, kinds.get(n, "float32"))) for n, shape in inputs.items()
    )
    graph += b"".join(field(12, value(name, shape)) for name, shape in outputs.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13)))
    return path


def linear(
    path: Path,
    weight: np.ndarray,
    *,
    side: int = 8,
    batch: int | str = "batch",
    nhwc: bool = False,
    apart: str | None = None,
) -> Path:
    """Input `[batch, 3, side, side]` (or NHWC) -> 'hidden', its pixels, and 'scores' `[batch, L]`.

    `weight` float32 `[3 side side, L]`, for pixels in the order of NCHW.
    """
    shape = [batch, side, side, 3] if nhwc else [batch, 3, side, side]
    first = [node("Transpose", ["x"], "first", perm=[0, 3, 1, 2])] if nhwc else []
    return write(
        path,
        [
            *first,
            node("Flatten", ["first" if nhwc else "x"], "hidden", axis=1),
            node("MatMul", ["hidden", "weight"], "scores"),
        ],
        {"weight": weight.astype(np.float32)},
        {"x": shape},
        {"scores": [batch, weight.shape[1]], "hidden": [batch, len(weight)]},
        apart=apart,
    )


def table(path: Path, rows: np.ndarray) -> Path:
    """Gives an image whose brightest pixel is i the row i of `rows`, and fails where there is none.

    Input `[batch, 1, h, w]` in [0, 255].
    """
    return write(
        path,
        [
            node("ReduceMax", ["x"], "top", axes=[1, 2, 3], keepdims=0),
            node("Cast", ["top"], "index", to=7),
            node("Gather", ["rows", "index"], "scores", axis=0),
        ],
        {"rows": rows.astype(np.float32)},
        {"x": ["batch", 1, "h", "w"]},
        {"scores": ["batch", rows.shape[1]]},
    )
