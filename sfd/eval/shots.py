"""Images asked for, of which some may not have been made."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sfd.teachers import NotFinite, Raw


@dataclass(frozen=True)
class Partial:
    """What came of a request for N images: M of them, and why the others did not."""

    images: np.ndarray
    """uint8 `[M, H, W, C]`, in the order asked for."""
    made: np.ndarray
    """bool `[N]`, M of them true."""
    errors: tuple[str, ...] = ()

    def rows(self, values: np.ndarray) -> np.ndarray:
        """Values `[M, D]` of the images as `[N, D]`, NaN where there is none."""
        if self.made.all():
            return values
        out = np.full((len(self.made), values.shape[1]), np.nan, np.float32)
        out[self.made] = values
        return out


Ask = Callable[[Raw, np.ndarray], np.ndarray | Partial]
"""(conditions, seeds `[N]`) -> uint8 images `[N, H, W, C]`, or those of them that were made.

Asked through `request`, what it raises as `NotFinite` was not made either."""


def request(generate: Ask, raw: Raw, seeds: np.ndarray) -> Partial:
    """What a generator draws, complete or not."""
    try:
        got = generate(raw, seeds)
    except NotFinite as error:
        assert len(error.made) == len(raw)
        return Partial(error.images, error.made, ("values that are not finite",))
    return got if isinstance(got, Partial) else Partial(got, np.ones(len(got), bool))


def stacked(parts: list[np.ndarray]) -> np.ndarray:
    """Features of consecutive requests `[N, D]`; NaN where a whole request came to nothing."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate(
        [p if p.shape[1] else np.full((len(p), width), np.nan, np.float32) for p in parts]
    )
