"""What a dataset asks for: a condition for each of its places, and a seed for each try."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfd import content

PLACES, TRIES, SEEDS = 2**32, 2**8, 2**22
"""How many places, tries and seeds the number of an image has room for (40 + 22 bits)."""
LONGEST = 10**6


@dataclass(frozen=True)
class Asked:
    """Place j asks for `conditions[pattern[j % len(pattern)]]`, so n places hold the shares asked.

    A condition is a label's index or a prompt; `fields[i]` is what the metadata says of it.
    """

    conditions: tuple[Any, ...]
    fields: tuple[dict[str, Any], ...]
    pattern: np.ndarray
    """int `[P]` into `conditions`."""

    def rows(self, places: np.ndarray) -> np.ndarray:
        """Which condition each place asks for: int `[N]` -> int `[N]`."""
        return self.pattern[places % len(self.pattern)]

    @property
    def sha256(self) -> str:
        """Hash of the conditions and of their order."""
        return content.hash_json([list(self.conditions), self.pattern.tolist()])


def seeds(seed: int, places: np.ndarray, attempt: int) -> np.ndarray:
    """The seed of each image, int64 `[N]`: no two of (seed, attempt, place) share one.

    Raises ValueError where a number is outside its room.
    """
    if not 0 <= seed < SEEDS or not 0 <= attempt < TRIES:
        raise ValueError(f"--seed {seed}, try {attempt}: give a seed from 0 to {SEEDS - 1:,}")
    if (places >= PLACES).any():
        raise ValueError(f"n={places.max() + 1:,}: give at most {PLACES:,}, more would share seeds")
    return places.astype(np.int64) + attempt * PLACES + seed * PLACES * TRIES


def spread(weights: Sequence[int]) -> np.ndarray:
    """The shortest pattern that holds each row in proportion to its weight, evenly spread.

    `weights` are whole numbers >= 1; int `[P]`, P their sum over their greatest common divisor.
    """
    parts = np.array(weights) // math.gcd(*weights)
    if parts.sum() > LONGEST:
        raise ValueError(f"the balance repeats after {parts.sum():,} images only: round its parts")
    rows = np.repeat(np.arange(len(parts)), parts)
    first = np.repeat(np.cumsum(parts) - parts, parts)
    when = (np.arange(len(rows)) - first + 0.5) / parts[rows]
    return rows[np.argsort(when, kind="stable")]


def of_labels(
    labels: Sequence[str],
    gone: Mapping[int, str],
    asked: str | Sequence[str],
    balance: Mapping[str, int],
) -> Asked:
    """Labels in the proportions of `balance`, one to one without it.

    `asked` is 'all' (of those left), comma-separated names, or a list of names. `gone` says
    of a label why it cannot be asked for: it would be drawn as something else, under its name.
    Raises ValueError on a label that is unknown, gone or given twice, and on a balance of others.
    """
    said = asked.split(",") if isinstance(asked, str) else list(asked)
    names = list(balance) if asked == "all" and balance else said
    if asked == "all" and not balance:
        names = [name for i, name in enumerate(labels) if i not in gone]
    for name in (*names, *balance):
        if name not in labels:
            raise ValueError(f"no label {name!r}{content.did_you_mean(name, labels)}")
        why = gone.get(labels.index(name))
        if why:
            raise ValueError(f"label {name!r} {why}: its images would be mislabelled, leave it out")
    if len(set(names)) < len(names) or (balance and set(balance) != set(names)):
        raise ValueError("give each label once, and a balance of just the labels asked for")
    if not names:
        raise ValueError("there is no label left to ask for")
    return Asked(
        tuple(labels.index(name) for name in names),
        tuple({"label": name, "condition": labels.index(name)} for name in names),
        spread([balance.get(name, 1) for name in names]),
    )


def of_prompts(prompts: Sequence[str], forgotten: Sequence[str]) -> Asked:
    """Every prompt as often. `forgotten` are those that ask for what is gone: refused."""
    if forgotten:
        raise ValueError(
            f"{len(forgotten)} of {len(prompts)} prompts ask for what was forgotten, the first"
            f" {forgotten[0]!r}: their images would be mislabelled, leave them out"
        )
    return Asked(
        tuple(prompts),
        tuple({"text": prompt, "condition": prompt} for prompt in prompts),
        np.arange(len(prompts)),
    )


def parse_balance(said: str | Mapping[str, int] | None) -> dict[str, int]:
    """`cat=2,dog=1`, or the same as a mapping, as parts; empty where nothing is said.

    Raises ValueError unless they are whole numbers >= 1.
    """
    if isinstance(said, Mapping):
        pieces = [f"{name}={number}" for name, number in said.items()]
    else:
        pieces = said.split(",") if said else []
    parts: dict[str, int] = {}
    for piece in pieces:
        name, _, number = piece.rpartition("=")
        if not name or not number.isdecimal() or int(number) < 1 or name in parts:
            raise ValueError(f"balance {piece!r}: give LABEL=PARTS once each, PARTS a whole number")
        parts[name] = int(number)
    return parts
