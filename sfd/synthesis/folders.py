"""Draws folder after folder: a folder is there whole or not at all, whatever is killed.

While it grows, every numbered folder has a `metadata.jsonl` of its own, so what is there can be
used; `merge` makes one of them when all are there. Nothing is held but one batch a worker.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    there = [layout.folder(i) for i in layout.numbers if layout.folder(i).is_dir()]
    if there and not layout.finished and not any(any(f.glob("*.png")) for f in there):
        listed = layout.refused(int(there[0].name))
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


# --- the whole -----------------------------------------------------------------------------------


def merge(layout: Layout, *, plan: str, tries: int) -> bool:
    """One `metadata.jsonl` of all folders, where all are there; whether the dataset is finished.

    Killed anywhere, it does the rest when called again; several processes may do it at once. Raises
    ValueError, before anything is merged, on a folder that was made by another plan, and on a place
    whose refused tries are not all listed.
    """
    if layout.missing():
        return False
    if not layout.finished:
        try:
            for number in layout.numbers:
                _check_origin(layout, number, plan)
            _check_refused(layout, _rows_of_folders(layout), _refused_rows(layout), tries)
            _write_lines(layout.quarantine / META, _refused_rows(layout))
            _write_lines(layout.out / META, _rows_of_folders(layout))
        except FileNotFoundError:
            if not layout.finished:  # unless another process was faster, something is gone
                raise
    for number in layout.numbers:
        (layout.folder(number) / META).unlink(missing_ok=True)
        layout.refused(number).unlink(missing_ok=True)
    for folder in (layout.out, layout.quarantine, layout.out / HIDDEN):
        for path in folder.glob(".*.tmp"):
            if _running(path.name.split(".")[-2]):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    return True


def _check_origin(layout: Layout, number: int, plan: str) -> None:
    """Raises ValueError where a folder, or the list of what it refused, was made by another plan:
    where folders are copied together, each may bring a plan, and one of them is there at last."""
    folder, aside = layout.folder(number), layout.refused(number)
    for path in (folder / META, aside):
        if any(row.get("plan_sha256") != plan for row in read_lines(path)):
            raise ValueError(
                f"{path}: was made by another plan (detectors, private images or options) than this"
                f" dataset: remove {folder} and {aside}, which the same command makes again"
            )


def _check_refused(layout: Layout, kept: Iterable[Row], refused: Iterable[Row], tries: int) -> None:
    """Raises ValueError unless each place has refused every try before the one it kept, and an
    empty one all `tries`: what may have leaked is bounded by what is listed as refused."""
    listed, wanted = np.zeros(layout.n, np.int16), np.full(layout.n, tries, np.int16)
    try:
        for row in refused:  # a place's tries are listed in their order
            place = row["place"]
            listed[place] = listed[place] + 1 if row["attempt"] == listed[place] else -1
        for row in kept:
            wanted[int(Path(row["file_name"]).stem)] = row["attempt"]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{layout.quarantine}: {error!r} is no row's; {MEND}") from None
    lacking = np.flatnonzero(listed != wanted)
    if len(lacking):
        place = int(lacking[0])
        folder, aside = layout.folder(place // layout.size), layout.refused(place // layout.size)
        mend = f"copy {aside} again, or remove it and {folder}, which the same command makes again"
        raise ValueError(
            f"{layout.quarantine if layout.finished else aside}: place {place} refused"
            f" {wanted[place]} tries, and they are not all listed; "
            + (MEND if layout.finished else mend)
        )


def _running(pid: str) -> bool:
    """Whether a process of that number may be at work here: its temporary files are its own."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return True


def _rows_of_folders(layout: Layout) -> Iterator[Row]:
    for number in layout.numbers:
        folder = layout.folder(number)
        for row in read_lines(folder / META):
            yield {**row, "file_name": f"{folder.name}/{row['file_name']}"}


def _refused_rows(layout: Layout) -> Iterator[Row]:
    for number in layout.numbers:
        yield from read_lines(layout.refused(number))


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


def check(
    layout: Layout, asked: Asked, *, sha256: str, plan: str, seed: int, tries: int, look: bool
) -> None:
    """Raises ValueError unless a finished dataset lists what it holds, each as it was asked for,
    and all that was refused.

    `look` opens each image too: it must be whole, and itself say what its row says.
    """
    listed, path = 0, layout.out / META
    for listed, row in enumerate(read_lines(path), 1):
        file = layout.out / str(row.get("file_name"))
        try:
            place, attempt = int(file.stem), int(row["attempt"])
            own = int(asking.seeds(seed, np.array([place]), attempt)[0])
            fields = asked.fields[int(asked.rows(np.array([place]))[0])]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {listed}: {error!r} is no row's; {MEND}") from None
        expected = {**fields, "seed": own, "verdict": "clean"}
        expected |= {"student_sha256": sha256, "plan_sha256": plan}
        wrong = next((key for key, value in expected.items() if row.get(key) != value), None)
        if wrong or file.parent != layout.folder(place // layout.size):
            what = f"{wrong} {row.get(wrong)!r} is" if wrong else f"place {place} is"
            raise ValueError(f"{path}, line {listed}: {what} not what was asked for there; {MEND}")
        if not look:
            continue
        try:
            images.read_image(file)
        except ValueError as error:
            raise ValueError(f"{error}; {MEND}") from None
        says = images.png_text(file.read_bytes()).get("sfd")
        if says != mark(own, fields["condition"], sha256)["sfd"]:
            raise ValueError(f"{file}: is another image than the dataset's list says; {MEND}")
    there = sum(1 for i in layout.numbers for _ in layout.folder(i).glob("*.png"))
    if there != listed:
        raise ValueError(f"{path}: lists {listed} images, its folders hold {there}; {MEND}")
    _check_refused(layout, read_lines(path), read_lines(layout.quarantine / META), tries)


def _write_lines(path: Path, rows: Iterator[Row]) -> None:
    """A list, atomically, one row at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with content.atomic(path) as file:
        for row in rows:
            file.write((json.dumps(row) + "\n").encode())


def remaining(layout: Layout, shard: tuple[int, int]) -> int:
    """How many places this shard has yet to fill."""
    return sum(len(layout.places(i)) for i in layout.missing() if i % shard[1] == shard[0])
