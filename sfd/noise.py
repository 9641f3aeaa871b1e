"""Counter-based noise: image number n draws the same whatever batch, process or order it is in."""

import hashlib

import numpy as np
from scipy.special import ndtri


def _raw(key: tuple[object, ...], numbers: np.ndarray, words: int) -> np.ndarray:
    """uint64 `[len(numbers), words]` that depends on (key, number) alone (Philox 4x64)."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    philox_key = np.frombuffer(digest[:16], np.uint64)
    stride = -(-words // 4)  # one step of the counter yields four words
    out = np.empty((len(numbers), stride * 4), np.uint64)
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    for run in np.split(np.arange(len(numbers)), breaks):
        if len(run):
            counter = int(numbers[run[0]]) * stride
            generator = np.random.Philox(key=philox_key, counter=counter)
            out[run] = generator.random_raw(len(run) * stride * 4).reshape(len(run), -1)
    return out[:, :words]


def uniform(key: tuple[object, ...], numbers: np.ndarray) -> np.ndarray:
    """float64 `[N]` in (0, 1), one per image number.

    `key` is (seed, phase, purpose): plain values, hashed by their repr. `numbers` are
    non-negative integers `[N]`.
    """
    return _to_unit(_raw(key, numbers, 1)[:, 0])


def normal(key: tuple[object, ...], numbers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """float32 `[N, *shape]` of standard normal noise, one block per image number.

    The inverse distribution function uses up one word a value, so that every image's block
    starts at a known counter.
    """
    raw = _raw(key, numbers, int(np.prod(shape)))
    return ndtri(_to_unit(raw)).astype(np.float32).reshape(len(numbers), *shape)


def latent(seed: int) -> tuple[object, ...]:
    """The key of a run's z: it belongs to the image, whatever the phase."""
    return (seed, "latent", "z")


def _to_unit(raw: np.ndarray) -> np.ndarray:
    # 52 bits and a half: with 53 the largest would round to 1
    return ((raw >> np.uint64(12)) + 0.5) * 2.0**-52
