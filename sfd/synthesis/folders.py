"""Draws folder after folder: a folder is there whole or not at all, whatever is killed.

While it grows, every numbered folder has a `metadata.jsonl` of its own, so what is there can be
used; `merging` makes one of them when all are there. Nothing is held but one batch a worker.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from sfd import content, devices, images
from sfd.eval.shots import request
from sfd.sample import Generate
from sfd.synthesis import asked as asking
from sfd.synthesis.asked import Asked
from sfd.synthesis.screening import NOT_MADE, Screen, Seen
from sfd.teachers import NotFinite

META = "metadata.jsonl"
HIDDEN = ".sfd"
HOPELESS = 3
"""After so many tries of all places of a folder, a generator that made no image makes none."""
MEND = (
    "the dataset is damaged: put the file back from a copy, or draw it again into another folder,"
    " which makes the same images"
)
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    f' Iptc4xmpExt:DigitalSourceType="{SOURCE}"/></rdf:RDF></x:xmpmeta>'
)
"""What the IPTC asks generators to write (digital source type, photo metadata guide 2023)."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """Where a dataset of `n` places lies: `size` places a folder, what is refused beside it."""

    out: Path
    n: int
    size: int

    @property
    def numbers(self) -> range:
        """The folders' numbers."""
        return range(-(-self.n // self.size))

    @property
    def quarantine(self) -> Path:
        """Outside the dataset: no reader of that folder takes it for a part."""
        return self.out.with_name(f"{self.out.name}-quarantine")

    @property
    def finished(self) -> bool:
        """Whether all folders are merged."""
        return (self.out / META).is_file()

    def folder(self, number: int) -> Path:
        return self.out / f"{number:06d}"

    def refused(self, number: int) -> Path:
        """The list of what one folder's places refused."""
        return self.quarantine / f"{number:06d}.jsonl"

    def places(self, number: int) -> np.ndarray:
        return np.arange(number * self.size, min((number + 1) * self.size, self.n))

    def missing(self) -> list[int]:
        """Numbers of the folders that are not there yet."""
        return [] if self.finished else [i for i in self.numbers if not self.folder(i).is_dir()]


class _Halted(Exception):
    """Another worker failed."""


def mark(seed: int, condition: Any, sha256: str) -> dict[str, str]:
    """What every image says of itself, as text chunks of its PNG."""
    return {
        "Source": "generated: synthetic image, drawn by a one-step diffusion model",
        "Software": "sfd",
        "sfd": json.dumps({"seed": seed, "condition": condition, "student_sha256": sha256}),
        "XML:com.adobe.xmp": XMP,
    }


def draw(
    layout: Layout,
    asked: Asked,
    *,
    generate: Generate,
    turn: AbstractContextManager[Any],
    screen: Screen,
    sha256: str,
    plan: str,
    seed: int,
    tries: int,
    batch: int,
    keep_refused: bool,
    stamp: Callable[[bytes], bytes] | None = None,
    shard: tuple[int, int] = (0, 1),
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Draw the missing folders of shard (i, k): those whose number is i modulo k.

    Each worker fills a folder of its own, and generates in its `turn`, where they take turns, while
    another screens; what a folder holds depends on its number alone, but for what `stamp` signs
    into the bytes of an image (in several threads at once). Every row names the student and the
    plan by their hashes, `sha256` and `plan`. `progress` hears of places tried for the first time.
    Raises ValueError where folders are there and no image in any is clean, OSError on a full disk;
    what is there stays.
    """
    _check_any_clean(layout)
    mine = [i for i in layout.missing() if i % shard[1] == shard[0]]
    stop = Event()

    def fill(number: int) -> None:
        tried = _tries(
            layout.places(number), asked, generate=generate, turn=turn, screen=screen, seed=seed,
            tries=tries, batch=batch, stop=stop, progress=progress,
        )  # fmt: skip
        _fill(layout, number, tried, sha256, plan, keep_refused, stamp)
        _check_any_clean(layout)

    with devices.pool(workers) as pool:
        futures = [pool.submit(fill, number) for number in mine]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            errors = [e for f in done if (e := f.exception()) and not isinstance(e, _Halted)]
            if errors:
                raise errors[0]
        finally:
            stop.set()


@dataclass(frozen=True)
class _Tried:
    """One image, drawn and looked at."""

    place: int
    attempt: int
    seed: int
    fields: Mapping[str, Any]
    picture: np.ndarray | None
    """None: it was not made, as its values are not finite."""
    seen: Seen


def _tries(
    places: np.ndarray,
    asked: Asked,
    *,
    generate: Generate,
    turn: AbstractContextManager[Any],
    screen: Screen,
    seed: int,
    tries: int,
    batch: int,
    stop: Event,
    progress: Callable[[int], None] | None,
) -> Iterator[_Tried]:
    """Every place is tried until it is clean, at most `tries` times.

    Raises NotFinite where not one image of the first `HOPELESS` tries of all of them was made.
    """
    made = 0
    for attempt in range(tries):
        again: list[int] = []
        for start in range(0, len(places), batch):
            if stop.is_set():
                raise _Halted
            part = places[start : start + batch]
            numbers, rows = asking.seeds(seed, part, attempt), asked.rows(part)
            with turn:
                got = request(generate, [asked.conditions[i] for i in rows], numbers)
            looks = zip(got.images, screen(got.images) if len(got.images) else [], strict=True)
            made += len(got.images)
            for i, there in enumerate(got.made):
                picture, seen = next(looks) if there else (None, NOT_MADE)
                place = int(part[i])
                again += [place] if seen.reasons else []
                yield _Tried(place, attempt, int(numbers[i]), asked.fields[rows[i]], picture, seen)
            if not made and attempt + 1 == HOPELESS and start + batch >= len(places):
                raise NotFinite(got.images, got.made)
            if progress and not attempt:
                progress(len(part))
        if not again:
            return
        places = np.array(again)


def _fill(
    layout: Layout,
    number: int,
    tried: Iterator[_Tried],
    sha256: str,
    plan: str,
    keep_refused: bool,
    stamp: Callable[[bytes], bytes] | None,
) -> None:
    """One folder from its images; it appears by being renamed, whole.

    Another process may be at the same folder: each grows its own, and the first to end is kept. In
    quarantine both write the same files.
    """
    final = layout.folder(number)
    growing = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    aside = layout.quarantine / final.name
    shutil.rmtree(growing, ignore_errors=True)
    kept: dict[int, Row] = {}
    refused: list[Row] = []
    try:
        growing.mkdir(parents=True)
        for one in tried:
            row = _row(one, sha256, plan)
            if one.picture is not None and not one.seen.reasons:
                name = f"{one.place:08d}.png"
                (growing / name).write_bytes(_png(one, one.picture, sha256, stamp))
                kept[one.place] = {"file_name": name, **row}
                continue
            named: Row = {"place": one.place, **row}
            if keep_refused and one.picture is not None:
                name = f"{one.place:08d}-{one.attempt}.png"
                aside.mkdir(parents=True, exist_ok=True)
                (aside / name).write_bytes(_png(one, one.picture, sha256, stamp))
                named = {"file_name": f"{final.name}/{name}", **named}
            refused.append(named)
        (growing / META).write_text(_lines(kept[place] for place in sorted(kept)))
        content.write_atomic(layout.refused(number), _lines(refused))
        try:
            growing.rename(final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(growing, ignore_errors=True)


def _png(
    one: _Tried, picture: np.ndarray, sha256: str, stamp: Callable[[bytes], bytes] | None
) -> bytes:
    marked = images.png_bytes(picture, mark(one.seed, one.fields["condition"], sha256))
    return stamp(marked) if stamp else marked


def _check_any_clean(layout: Layout) -> None:
    """Raises ValueError where folders are there and none of them holds an image.

    It looks at what is there alone, so that the same command ends alike when it is given again. A
    folder without an image beside others with some is one of places that stayed empty.
    """
    if layout.finished or any(any(layout.folder(i).glob("*.png")) for i in layout.numbers):
        return
    first = next((i for i in layout.numbers if layout.folder(i).is_dir()), None)
    if first is not None:
        listed = layout.refused(first)
        row = next(read_lines(listed), None) if listed.is_file() else None
        why = f" ({row['reasons'][0]})" if row else ""
        raise ValueError(
            f"{layout.out}: not one image of a folder was clean{why}; see {layout.quarantine}, and"
            " start over in another folder with another detector or student, or more tries"
        )


def _row(one: _Tried, sha256: str, plan: str) -> Row:
    seen = one.seen
    return {
        **one.fields,
        "seed": one.seed,
        "attempt": one.attempt,
        "verdict": "refused" if seen.reasons else "clean",
        **({"reasons": list(seen.reasons)} if seen.reasons else {}),
        "scores": seen.scores,
        "student_sha256": sha256,
        "plan_sha256": plan,
    }


def _lines(rows: Sequence[Row] | Iterator[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_lines(path: Path) -> Iterator[Row]:
    """The rows of a list, one at a time. Raises ValueError that names the line that is none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON: {error}; {MEND}") from None
            if not isinstance(row, dict) or "condition" not in row:
                raise ValueError(f"{path}, line {number}: is no row of a dataset; {MEND}")
            yield row


def remaining(layout: Layout, shard: tuple[int, int]) -> int:
    """How many places this shard has yet to fill."""
    return sum(len(layout.places(i)) for i in layout.missing() if i % shard[1] == shard[0])
