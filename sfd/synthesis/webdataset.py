"""A finished dataset as WebDataset shards: plain tar files, the same bytes every time."""

import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sfd import content
from sfd.synthesis import folders
from sfd.synthesis.folders import META


def write(out: Path, to: Path) -> int:
    """Pack the dataset `out` into `to`, one `NNNNNN.tar` a folder; how many.

    A sample is KEY.png, KEY.json (its metadata), and KEY.cls (the label's number) or KEY.txt (the
    prompt), KEY its place. Raises ValueError where `to` lies inside `out`, whose readers would open
    the tars too, or holds tars of another dataset.
    """
    check_place(out, to)
    own = {
        (row["file_name"].split("/")[0], row["plan_sha256"])
        for row in folders.read_lines(out / META)
    }
    strange = next((p for p in sorted(to.glob("*.tar")) if (p.stem, _plan_of(p)) not in own), None)
    if strange:
        raise ValueError(
            f"{to}: holds {strange.name}, which is none of this dataset's: name another"
        )
    rows = folders.read_lines(out / META)
    count = 0
    for count, (number, group) in enumerate(  # noqa: B007
        itertools.groupby(rows, key=lambda row: row["file_name"].split("/")[0]), 1
    ):
        with (
            content.atomic(to / f"{number}.tar") as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for name, data in _members(out, group):
                # the defaults of a member are what makes it the same: no time, no owner
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return count


def check_place(out: Path, to: Path) -> None:
    """Raises ValueError or OSError unless `to` can hold the tars of the image folder `out`."""
    if to.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"{to}: lies inside the image folder, which it must not: name another")
    content.check_writable(to)


def _plan_of(path: Path) -> str | None:
    """The hash of the plan that the first sample of a tar was made by; None where none is said."""
    try:
        with tarfile.open(path) as tar:
            first = next((member for member in tar if member.name.endswith(".json")), None)
            file = tar.extractfile(first) if first else None
            row = json.load(file) if file else None
    except (tarfile.TarError, ValueError):
        return None
    return row.get("plan_sha256") if isinstance(row, dict) else None


def _members(out: Path, rows: Iterator[dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    for row in rows:
        path = out / row.pop("file_name")
        yield f"{path.stem}.png", path.read_bytes()
        if "text" in row:
            yield f"{path.stem}.txt", row["text"].encode()
        else:
            yield f"{path.stem}.cls", str(row["condition"]).encode()
        yield f"{path.stem}.json", json.dumps(row).encode()
