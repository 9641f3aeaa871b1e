"""One list of all folders of a dataset, and whether what lies there is what was asked for."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from sfd import content, images
from sfd.synthesis import asked as asking
from sfd.synthesis.asked import Asked
from sfd.synthesis.folders import HIDDEN, MEND, META, Layout, Row, mark, read_lines


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
    listed, wanted = np.zeros(layout.n, np.int32), np.full(layout.n, tries, np.int32)
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
