"""The only reader and writer of images and of labelled image sets (uint8 [N, H, W, C])."""

import csv
import gzip
import io
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from sfd import content

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
OTHERS = (".avif", ".dng", ".heic", ".heif", ".jxl")
"""Pictures too, whether or not the installed Pillow has a name for them."""
SHEET = "sheet.png"
"""What `sfd sample` leaves beside the images; it is none of them."""
TABLES = ("metadata.jsonl", "metadata.csv")
"""Say of the images of a folder what they are, by `file_name`."""

UNREADABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,  # a broken PNG
    struct.error,  # broken EXIF data
)
"""What Pillow raises of a file that is no picture, or of one that is damaged or too large."""


def read_labelled(source: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labelled images: uint8 `[N, H, W, C]`, int64 labels `[N]`, and a name for each label.

    `source` is an image folder with one subfolder per class (sorted names are the labels), one with
    a `metadata.jsonl` of `file_name` and `label` (what `sfd synthesize` writes), an `.npz` with
    `images` and `labels`, or idx files as `FOLDER:PREFIX` for
    `FOLDER/PREFIX-images-idx3-ubyte[.gz]` and its labels. Raises ValueError, in one line, on
    anything missing, empty, truncated or of unequal shape.
    """
    path = Path(source).expanduser()
    folder, _, prefix = source.rpartition(":")
    if folder and not path.exists():
        images, labels = _read_idx(Path(folder).expanduser(), prefix)
    elif path.is_dir():
        listed = (path / "metadata.jsonl").is_file()
        return _read_listed(path) if listed else _read_folder(path)
    elif path.suffix == ".npz" and path.exists():
        images, labels = _read_npz(path)
    else:
        raise ValueError(
            f"{source}: no such data; give a folder of class folders, an .npz with 'images' and"
            " 'labels', or FOLDER:PREFIX of idx files"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"{source}: expected uint8 images [N, H, W] or [N, H, W, 1 or 3],"
            f" found {images.dtype} {list(images.shape)}"
        )
    if len(images) == 0 or labels.shape != (len(images),):
        raise ValueError(f"{source}: {len(images)} images but labels of shape {labels.shape}")
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(f"{source}: labels must be integers from 0")
    labels = labels.astype(np.int64)
    return images, labels, [str(label) for label in range(int(labels.max()) + 1)]


def read_as(source: str, labels: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """What `read_labelled` reads, its labels numbered as in `labels` (None: the data's own).

    By name where the data have names; by number where these are mere numbers ('0', '1', ...).
    Raises ValueError, in one line, on a class that is none of `labels`.
    """
    images, numbers, names = read_labelled(source)
    if labels is None:
        return images, numbers, names
    if set(names) <= set(labels):
        numbers = np.array([labels.index(name) for name in names])[numbers]
    elif names != [str(i) for i in range(len(names))]:
        strange = next(name for name in names if name not in labels)
        raise ValueError(f"{source}: no label {strange!r}{content.did_you_mean(strange, labels)}")
    elif len(names) > len(labels):
        raise ValueError(f"{source}: has {len(names)} classes for {len(labels)} labels")
    return images, numbers, list(labels)


def read_captioned(source: str) -> tuple[np.ndarray, list[str]]:
    """Captioned images: uint8 `[N, H, W, C]` and a caption for each.

    `source` is an image folder with a `metadata.jsonl` of `file_name` and `text` (the form that
    `datasets` reads), or an `.npz` with `images` and `captions`. Raises ValueError, in one line, on
    anything missing, empty, truncated or of unequal shape.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        images, captions = _read_metadata(path, "text")
    elif path.suffix == ".npz" and path.exists():
        images, captions = _read_npz(path, "captions")
        captions = [str(text) for text in captions]
    else:
        raise ValueError(
            f"{source}: no such data; give a folder with metadata.jsonl, or an .npz with 'images'"
            " and 'captions'"
        )
    if len(images) == 0 or len(images) != len(captions):
        raise ValueError(f"{source}: {len(images)} images but {len(captions)} captions")
    return images, captions


def _read_listed(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    images, found = _read_metadata(folder, "label")
    if not found:
        raise ValueError(f"{folder}: no images in it")
    names = sorted(set(found))
    return images, np.array([names.index(name) for name in found]), names


def _read_metadata(folder: Path, key: str) -> tuple[np.ndarray, list[str]]:
    path = folder / "metadata.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder}: no metadata.jsonl in it (lines of file_name and {key})")
    images, said = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            name, text = row["file_name"], row[key]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: needs file_name and {key}: {error}") from None
        images.append(read_image(folder / str(name)))
        said.append(str(text))
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise ValueError(f"{folder}: images of different shapes: {sorted(shapes)[:3]}; resize them")
    return np.stack(images) if images else np.zeros((0, 1, 1, 1), np.uint8), said


def _read_idx(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for kind, magic in (("images-idx3", 2051), ("labels-idx1", 2049)):
        plain = folder / f"{prefix}-{kind}-ubyte"
        packed = plain.with_name(plain.name + ".gz")
        if packed.exists():
            try:
                data = gzip.decompress(packed.read_bytes())
            except (EOFError, OSError, zlib.error) as error:
                raise ValueError(f"{packed}: truncated or not gzip: {error}") from None
        elif plain.exists():
            data = plain.read_bytes()
        else:
            raise ValueError(f"{plain}: no such file (nor with .gz)")
        head = 16 if magic == 2051 else 8
        if len(data) < head or struct.unpack(">I", data[:4])[0] != magic:
            raise ValueError(f"{plain}: not an idx file of {kind.split('-')[0]}")
        shape = struct.unpack(f">{head // 4 - 1}I", data[4:head])
        if len(data) - head != int(np.prod(shape)):
            raise ValueError(f"{plain}: truncated: {len(data) - head} of {np.prod(shape)} bytes")
        arrays.append(np.frombuffer(data, np.uint8, offset=head).reshape(shape))
    return arrays[0], arrays[1].astype(np.int64)


def _read_npz(path: Path, other: str = "labels") -> tuple[np.ndarray, np.ndarray]:
    # numpy takes what is no archive for a pickle, and says so
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: truncated or not an npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            if "images" not in file or other not in file:
                raise ValueError(f"{path}: needs arrays 'images' and '{other}', has {file.files}")
            try:
                return file["images"], file[other]
            except ValueError as error:
                raise ValueError(f"{path}: its arrays cannot be read: {error}") from None
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{path}: truncated or not an npz: {error}") from None


def _read_folder(root: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise ValueError(f"{root}: no class folders in it")
    images, labels = [], []
    for label, name in enumerate(names):
        paths = list_images(root / name)
        if not paths:
            raise ValueError(f"{root / name}: no images in it ({', '.join(SUFFIXES)})")
        images += [read_image(path) for path in paths]
        labels += [label] * len(paths)
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise ValueError(f"{root}: images of different shapes: {sorted(shapes)[:3]}; resize them")
    return np.stack(images), np.array(labels), names


def read_pictures(folder: Path) -> list[np.ndarray]:
    """The images of one folder in the order of `list_images`, uint8 `[H, W, C]` of any shapes.

    Raises ValueError where there is no such folder, no image in it, or one that cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images")
    paths = list_images(folder)
    if not paths:
        raise ValueError(f"{folder}: no images in it ({', '.join(SUFFIXES)})")
    return [read_image(path) for path in paths]


def read_below(folder: Path) -> list[np.ndarray]:
    """Every image below a folder, and whatever else its table names, uint8 `[H, W, C]`, any shapes.

    Raises ValueError where there is no image, one cannot be read, or one is of a kind that is not:
    none is left out in silence.
    """
    tables = [p for p in (folder / name for name in TABLES) if p.is_file()]
    known = {
        _named(folder, row, ("file_name",), f"{table}, row {n}")[0]
        for table in tables
        for n, row in _read_table(table)
    }
    paths = sorted({*_pictures_below(folder, known), *known})
    if not paths:
        raise ValueError(f"{folder}: no images in it ({', '.join(SUFFIXES)})")
    return [read_image(path) for path in paths]


def _pictures_below(folder: Path, known: Container[Path]) -> list[Path]:
    """Every file below a folder that is a picture by its name, linked folders' too, sorted.

    Raises ValueError on one of a kind that is not read, unless it is `known`.
    """
    kinds = {*SUFFIXES, *OTHERS, *Image.registered_extensions()}
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link leads back
            folders.clear()
            continue
        seen.add(real)
        found += [Path(place, name) for name in names]
    found = sorted(path for path in found if path.suffix.lower() in kinds)
    if other := [p for p in found if p.suffix.lower() not in SUFFIXES and p not in known]:
        raise ValueError(f"{folder}: {len(other)} images are of kinds that are not read, first"
                         f" {other[0]}: save them as one of {', '.join(SUFFIXES)}")  # fmt: skip
    return found


def list_conditions(folder: Path, keys: Sequence[str]) -> list[tuple[Path, str | int]]:
    """Every image of a folder with the condition it was drawn under.

    A `metadata.jsonl` or `metadata.csv` names each file (`file_name`) and its condition (the first
    of `keys` that is there); without one, subfolders do. Raises ValueError, in one line, on a line
    without either, and on an image whose condition nothing names: none is left out in silence.
    """
    listed: list[tuple[Path, str | int]]
    tables = [p for p in (folder / name for name in TABLES) if p.is_file()]
    if tables:
        rows = _read_table(tables[0])
        listed = [_named(folder, row, keys, f"{tables[0]}, row {n}") for n, row in rows]
        where = f"named in {tables[0].name}"
    else:
        places = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        listed = [(path, place.name) for place in places for path in list_images(place)]
        where = "in a folder named as its condition"
    known = {path for path, _ in listed}
    strange = [p for p in _pictures_below(folder, known) if p not in known and p != folder / SHEET]
    if strange:
        raise ValueError(f"{folder}: {len(strange)} images are not {where}, first {strange[0]}")
    if not listed:
        raise ValueError(f"{folder}: no images in it ({', '.join(SUFFIXES)})")
    return listed


def _read_table(path: Path) -> list[tuple[int, dict[str, str | int]]]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        return list(enumerate(csv.DictReader(io.StringIO(text)), 1))
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            rows.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, row {number}: not JSON: {error}") from None
    return rows


def _named(
    folder: Path, row: dict[str, str | int], keys: Sequence[str], where: str
) -> tuple[Path, str | int]:
    name = row.get("file_name") if isinstance(row, dict) else None
    key = next((key for key in keys if row.get(key) not in (None, "")), None) if name else None
    if not isinstance(name, str) or key is None or not isinstance(row[key], str | int):
        raise ValueError(f"{where}: needs file_name and one of {', '.join(keys)}")
    return folder / name, row[key]


def shape_of(path: Path) -> tuple[int, int, int] | None:
    """(H, W, C) of an image as `read_image` gives it, by its head; None if it cannot be read."""
    try:
        with Image.open(path) as image:
            sideways = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            height, width = image.size if sideways else image.size[::-1]
            return height, width, 1 if image.mode in ("L", "LA", "1") else 3
    except (*UNREADABLE, ValueError):
        return None


def in_channels(image: np.ndarray, channels: int) -> np.ndarray | None:
    """The same picture `[H, W, C]` in 1 or 3 channels; None where colours would be lost."""
    if channels == 3:
        return image if image.shape[-1] == 3 else image.repeat(3, axis=-1)
    return image[..., :1] if (image == image[..., :1]).all() else None


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder in the order of their names, numbers in them counted as numbers."""
    return sorted(
        (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES),
        key=lambda p: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", p.name)],
    )


def read_image(path: Path) -> np.ndarray:
    """One image, uint8 `[H, W, C]`, C = 1 (grey) or 3, the way up that its EXIF data says.

    Raises ValueError if it cannot be read, or something would be lost by it: 16 bits, transparency.
    """
    try:
        with Image.open(path) as image:
            mode, bands = image.mode, image.getbands()
            clear = "A" in bands and np.asarray(image.getchannel("A")).min() < 255
            plain = mode in ("L", "RGB", "P", "1", "LA", "RGBA", "CMYK", "YCbCr")
            if clear or not plain or "transparency" in image.info:
                raise ValueError(f"{path}: of mode {mode}, not plain 8 bits a channel: save it as"
                                 " grey or RGB, without transparency")  # fmt: skip
            upright = ImageOps.exif_transpose(image)
            grey = mode in ("L", "LA", "1")
            array = np.asarray(upright.convert("L" if grey else "RGB"))
    except UNREADABLE as error:
        raise ValueError(f"{path}: not a readable image: {error}") from None
    return array[..., None] if array.ndim == 2 else array


def png_bytes(image: np.ndarray, text: Mapping[str, str] = {}) -> bytes:
    """One uint8 image `[H, W, C]` as PNG bytes, with text chunks under the keywords of `text`."""
    chunks = PngInfo()
    for keyword, value in text.items():
        # readers look for XMP in an international chunk alone
        add = chunks.add_itxt if keyword.startswith("XML:") else chunks.add_text
        add(keyword, value)
    buffer = io.BytesIO()
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def png_text(data: bytes) -> dict[str, str]:
    """The text chunks of a PNG as `png_bytes` writes them, by keyword."""
    with Image.open(io.BytesIO(data)) as picture:
        return {str(key): text for key, text in picture.info.items() if isinstance(text, str)}


def sheet(images: np.ndarray, columns: int, scale: int = 1) -> np.ndarray:
    """Images `[N, H, W, C]` in rows of `columns` with a one-pixel gap, enlarged `scale` times."""
    n, h, w, c = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (h + 1) - 1, columns * (w + 1) - 1, c), 128, np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (h + 1), (i % columns) * (w + 1)
        canvas[y : y + h, x : x + w] = image
    return canvas.repeat(scale, 0).repeat(scale, 1)
