"""Anybody's model under audit: a folder of images, a callable, an ONNX generator.

What these could not draw (a file that is missing or cannot be read, a call that raised, a picture
given twice) is counted as not made, and never as clean.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfd import content, images
from sfd.concepts import AnyConcept, PromptConcept
from sfd.eval.judging import JUDGE_ERRORS
from sfd.eval.shots import Ask, Partial
from sfd.eval.subjects import IMAGES_ONLY, Subject
from sfd.teachers import Raw

Function = Callable[[list[Any], np.ndarray], np.ndarray]
"""`generate(conditions, seeds)` of anybody's making -> uint8 `[N, H, W, C]`, C 1 or 3."""
Shape = tuple[int, int, int]
"""(H, W, C) of an image."""

CLASS_KEYS, PROMPT_KEYS = ("label", "condition", "text"), ("text", "prompt", "condition")
REPEATED = "a picture that it had given before"
ALIKE = 8
"""Levels of 255 that a picture may be away from itself on average, drawn again by a device."""


def of_images(
    folder: Path,
    labels: Sequence[str],
    concepts: Sequence[AnyConcept],
    *,
    prompts: Collection[str] = (),
    shape: Shape | None = None,
) -> Subject:
    """A folder of images, drawn by whatever: class folders, or files that a metadata names.

    Conditions are `labels` (or their indices), or without any the `prompts` that a suite asks for.
    `shape` is the original's, else the most frequent: nothing is resized, another size is counted
    as not made. Images are taken in the order of their hashes, which nobody chose; each answers
    one seed. Raises ValueError on a condition that nothing asks for, or a folder of another size.
    """
    files = _by_condition(folder, labels, prompts)
    every = [path for paths in files.values() for path in paths]
    expected = _shape(folder, every, shape)
    hashes = {path: content.sha256(path) if path.is_file() else "" for path in every}
    for paths in files.values():
        paths.sort(key=lambda path: (hashes[path], path.name))
    taken: dict[Any, dict[int, int]] = defaultdict(dict)
    repeats = Repeats()

    def one(condition: Any, seed: int) -> np.ndarray | str:
        number = taken[condition].setdefault(seed, len(taken[condition]))
        if number >= len(files.get(condition, ())):
            return "the folder has no more of them"
        path = files[condition][number]
        try:
            picture = images.read_image(path)
        except ValueError as error:
            return str(error)
        fitted = images.in_channels(picture, expected[2])
        if fitted is None or fitted.shape != expected:
            return f"{path}: is {list(picture.shape)}, not {list(expected)}"
        return REPEATED if repeats(condition, str(path), fitted) else fitted

    def generate(raw: Raw, seeds: np.ndarray) -> Partial:
        got = [one(condition, int(seed)) for condition, seed in zip(raw, seeds, strict=True)]
        return _gathered(got, expected)

    return Subject(
        path=str(folder),
        sha256=content.hash_json(sorted([str(c), hashes[p]] for c in files for p in files[c])),
        format=f"folder of {len(every)} images",
        generate=generate,
        labels=labels,
        concepts=concepts,
        nfe=None,
        paired=False,
        not_offered=[IMAGES_ONLY, "how the images were chosen: the audit did not draw them itself"],
    )


def _by_condition(
    folder: Path, labels: Sequence[str], prompts: Collection[str]
) -> dict[Any, list[Path]]:
    """The files of each label's index, or of each prompt."""
    files: dict[Any, list[Path]] = defaultdict(list)
    names = {name.replace("/", "_"): i for i, name in enumerate(labels)}
    names |= {name: i for i, name in enumerate(labels)}
    for path, given in images.list_conditions(folder, CLASS_KEYS if labels else PROMPT_KEYS):
        if not labels:
            if given not in prompts:
                near = content.did_you_mean(str(given), prompts)
                raise ValueError(f"{folder}: the suite never asks for {str(given)!r}{near}")
            files[given].append(path)
        elif isinstance(given, str) and given in names:
            files[names[given]].append(path)
        elif str(given).isdecimal() and int(given) < len(labels):
            files[int(given)].append(path)
        else:
            near = content.did_you_mean(str(given), labels)
            raise ValueError(f"{folder}: {str(given)!r} is no label of the suite's judge{near}")
    return dict(files)


def _shape(folder: Path, files: Sequence[Path], shape: Shape | None) -> Shape:
    """The shape of most images, which must be the original's where there is one."""
    found = [s for s in map(images.shape_of, files) if s]
    if not found:
        raise ValueError(f"{folder}: none of its {len(files)} images can be read")
    most = max(sorted(set(found)), key=found.count)
    if shape is None:
        return most
    if most[:2] != shape[:2]:
        raise ValueError(
            f"{folder}: its images are {most[0]} x {most[1]}, the original draws {shape[0]} x"
            f" {shape[1]}, and nothing is resized here: audit what the model draws"
        )
    return shape


class Repeats:
    """Whether a picture was given before under its condition, by somebody else."""

    def __init__(self) -> None:
        self.first: dict[tuple[Any, bytes], Any] = {}

    def __call__(self, condition: Any, who: Any, picture: np.ndarray) -> bool:
        key = (condition, hashlib.sha256(picture.tobytes()).digest())
        return self.first.setdefault(key, who) != who


def _gathered(rows: Sequence[np.ndarray | str], shape: Shape) -> Partial:
    """What was made of a request, each row a picture or why there is none."""
    pictures = [row for row in rows if not isinstance(row, str)]
    said = {row: None for row in rows if isinstance(row, str)}
    stack = np.stack(pictures) if pictures else np.zeros((0, *shape), np.uint8)
    few = [*said][:3]
    made = np.array([not isinstance(row, str) for row in rows])
    return Partial(stack, made, tuple(few))


# --- functions -----------------------------------------------------------------------------------


def of_callable(
    function: Function,
    labels: Sequence[str],
    concepts: Sequence[AnyConcept],
    *,
    shape: Shape | None = None,
    name: str = "callable",
) -> Subject:
    """A function of conditions (label indices or prompts) and seeds, however it draws.

    Its sha256 is of what it draws for a few seeds: nothing else of it is known. `shape` is the
    original's, where there is one. Raises ValueError, in one line, if that first call fails.
    """
    probe = list(range(len(labels))) or [
        row.text for c in concepts if isinstance(c, PromptConcept) for row in c.holdout[:4]
    ]
    first, again = (_first(function, probe, shape, name) for _ in range(2))
    apart = np.abs(first.astype(int) - again).mean(axis=(1, 2, 3))
    return Subject(
        path=name,
        sha256=content.hash_json([str(first.shape), content.sha256(first.tobytes())]),
        format=f"python callable, by what it drew for {len(probe)} seeds",
        repeatable=bool((apart <= ALIKE).all()),
        generate=guarded(function, first.shape[1:]),
        labels=labels,
        concepts=concepts,
        nfe=None,
        paired=False,
        not_offered=[IMAGES_ONLY],
    )


def _first(function: Function, raw: list[Any], shape: Shape | None, where: str) -> np.ndarray:
    """What it draws for a few seeds, checked. Raises ValueError in one line."""
    try:
        drawn = _checked(function(list(raw), np.arange(len(raw))), len(raw), shape)
    except JUDGE_ERRORS as error:
        said = " ".join(str(error).split())
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{where}: {kind}{said}") from None
    return drawn


def _checked(drawn: Any, count: int, shape: Sequence[int] | None) -> np.ndarray:
    """A copy of what a function drew. Raises ValueError unless it is as many images of the form."""
    if not isinstance(drawn, np.ndarray):
        raise ValueError(f"returned a {type(drawn).__name__}, not uint8 [{count}, H, W, C]")
    wants = list(shape) if shape is not None else ["H", "W", "1 or 3"]
    form = drawn.ndim == 4 and drawn.shape[3] in (1, 3) and len(drawn) == count
    if drawn.dtype != np.uint8 or not form or (shape and drawn.shape[1:] != tuple(shape)):
        raise ValueError(
            f"returned {drawn.dtype} {list(drawn.shape)} for {count} conditions, not uint8"
            f" [{count}, {', '.join(map(str, wants))}]"
        )
    return drawn.copy()


def guarded(function: Function, shape: Sequence[int]) -> Ask:
    """A function that may raise, or return something else: what it could not draw was not made.

    A request that fails is halved until it is known on which images. A picture that it gives twice
    under one condition, for two seeds, is one picture.
    """
    expected: Shape = (shape[0], shape[1], shape[2])
    repeats = Repeats()

    def draw(raw: Raw, seeds: np.ndarray) -> list[np.ndarray | str]:
        try:
            return [*_checked(function(list(raw), seeds.copy()), len(raw), expected)]
        except JUDGE_ERRORS as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if len(raw) == 1:
            return [said]
        half = len(raw) // 2
        return draw(raw[:half], seeds[:half]) + draw(raw[half:], seeds[half:])

    def generate(raw: Raw, seeds: np.ndarray) -> Partial:
        rows = draw(raw, np.asarray(seeds))
        for i, (condition, seed, row) in enumerate(zip(raw, seeds, rows, strict=True)):
            if not isinstance(row, str) and repeats(condition, int(seed), row):
                rows[i] = REPEATED
        return _gathered(rows, expected)

    return generate


# --- ONNX ----------------------------------------------------------------------------------------


def of_onnx(
    path: Path,
    labels: Sequence[str],
    concepts: Sequence[AnyConcept],
    *,
    shape: Shape | None = None,
    batch: int = 100,
) -> Subject:
    """A one-step generator as an ONNX file; it runs on the CPU.

    It takes z `[B, C, H, W]` (float, standard normal) and a condition, `[B, K]` (float, one-hot) or
    `[B]` (int64 or int32, the label's index), and gives first float `[B, C, H, W]` in [-1, 1].
    Raises ValueError where the file cannot be read or its inputs are others.
    """
    from sfd.classifiers import onnx_session

    session = onnx_session.open_session(path)
    function = _of_session(session, path, len(labels), batch)
    first = _first(function, list(range(len(labels))), shape, str(path))
    # what lies beside it under its name are its weights
    parts = [p for p in path.parent.iterdir() if p.is_file() and p.name.startswith(path.name)]
    return Subject(
        path=str(path),
        sha256=content.sha256_of_files(parts),
        format="ONNX generator",
        generate=guarded(function, first.shape[1:]),
        labels=labels,
        concepts=concepts,
        nfe=1,
        paired=False,
        not_offered=[IMAGES_ONLY],
    )


def _of_session(session: Any, path: Path, classes: int, batch: int) -> Function:
    """The function that a session is; see `of_onnx`."""
    import torch

    from sfd import sample
    from sfd.classifiers import onnx_session
    from sfd.teachers import to_uint8

    puts = {len(put.shape): put for put in session.get_inputs()}
    index = puts.get(1) is not None
    said = ", ".join(f"{put.name} {put.type} {put.shape}" for put in session.get_inputs())
    kinds = ("tensor(int64)", "tensor(int32)") if index else ("tensor(float)",)
    cond = puts.get(1) or puts.get(2)
    fits = set(puts) in ({1, 4}, {2, 4}) and len(session.get_inputs()) == 2
    if not fits or cond is None or cond.type not in kinds or puts[4].type != "tensor(float)":
        raise ValueError(
            f"{path}: its inputs are {said}; a generator takes z, float [B, C, H, W], and a"
            " condition, float [B, K] or int [B]"
        )
    sides = puts[4].shape[1:]
    if not all(isinstance(side, int) for side in sides):
        raise ValueError(f"{path}: z is {puts[4].shape}: export it with C, H and W fixed")
    if not index and cond.shape[1] not in (classes, None) and isinstance(cond.shape[1], int):
        raise ValueError(f"{path}: has {cond.shape[1]} classes, the suite's judge {classes}")
    fixed = next((put.shape[0] for put in puts.values() if isinstance(put.shape[0], int)), None)
    output = onnx_session.output_of(session, None, str(path))
    kind = np.int32 if cond.type == "tensor(int32)" else np.int64

    def some(raw: list[Any], seeds: np.ndarray) -> np.ndarray:
        rows = np.zeros(fixed or len(raw), kind)
        rows[: len(raw)] = raw
        z = np.zeros((len(rows), *sides), np.float32)
        z[: len(raw)] = sample.initial_noise(seeds, tuple(sides), torch.device("cpu")).numpy()
        given = rows if index else np.eye(classes, dtype=np.float32)[rows]
        with onnx_session.explained(str(path)):
            x0 = np.asarray(session.run([output], {puts[4].name: z, cond.name: given})[0])
        if x0.ndim != 4 or x0.dtype != np.float32 or not np.isfinite(x0).all():
            raise ValueError(f"gave {x0.dtype} {list(x0.shape)}, not finite float32 [B, C, H, W]")
        return to_uint8(torch.from_numpy(x0[: len(raw)]))

    def function(raw: list[Any], seeds: np.ndarray) -> np.ndarray:
        step = fixed or batch
        starts = range(0, len(raw), step)
        return np.concatenate([some(raw[i : i + step], seeds[i : i + step]) for i in starts])

    return function
