"""Images of a student, asked in labels or in words."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sfd import concepts, content, images
from sfd.sample import Student


def sample_labels(student: Student, labels: str, out: Path, *, n: int, seed: int) -> int:
    """Draw `n` images of each of the comma-separated labels (or 'all'); how many in all."""
    names = student.labels
    asked = names if labels == "all" else labels.split(",")
    for name in asked:
        if name not in names:
            raise ValueError(f"no label {name!r}{content.did_you_mean(name, names)}")
    folders = {name.replace("/", "_"): name for name in asked}
    if len(folders) < len(set(asked)):
        raise ValueError(f"two of {', '.join(asked)} would share a folder: ask for one at a time")
    _check_empty(out)
    drawn = []
    for folder, name in folders.items():
        seeds = np.arange(seed, seed + n)
        pictures = student.sample([names.index(name)] * n, seeds)
        for number, picture in zip(seeds, pictures, strict=True):
            content.write_atomic(out / folder / f"{number:08d}.png", images.png_bytes(picture))
        drawn.append(pictures[:16])
    _write_sheet(drawn, out, n)
    return len(folders) * n


def prompts_of(given: Sequence[str], source: str | None) -> list[str]:
    """Prompts from the command line and from a list. Raises ValueError if there are none."""
    asked = [*given, *(concepts.read_prompts(source) if source else [])]
    if not asked:
        raise ValueError("this student is asked in words: give --prompt TEXT or --prompts FILE")
    return asked


def sample_prompts(
    student: Student, prompts: Sequence[str], out: Path, *, n: int, seed: int
) -> int:
    """Draw `n` images of each prompt, numbered, with a metadata.jsonl; how many in all."""
    _check_empty(out)
    drawn, lines = [], []
    for row, prompt in enumerate(prompts):
        seeds = np.arange(seed, seed + n)
        pictures = student.sample([prompt] * n, seeds)
        for number, picture in zip(seeds, pictures, strict=True):
            name = f"{row:05d}-{number:08d}.png"
            content.write_atomic(out / name, images.png_bytes(picture))
            lines.append({"file_name": name, "text": prompt, "seed": int(number)})
        drawn.append(pictures[:16])
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    content.write_atomic(out / "metadata.jsonl", text)
    _write_sheet(drawn, out, n)
    return len(lines)


def _check_empty(out: Path) -> None:
    """Raises ValueError where images of another student would lie beside these."""
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty; name a new folder")
    content.check_writable(out)


def _write_sheet(drawn: Sequence[np.ndarray], out: Path, n: int) -> None:
    sheet = images.sheet(np.concatenate(drawn), columns=min(n, 16), scale=2)
    content.write_atomic(out / "sheet.png", images.png_bytes(sheet))
