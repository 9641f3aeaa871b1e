"""Rates over prompts: the images of one prompt are not independent."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import root_scalar

from sfd.metrics.rates import Interval, clopper_pearson, rate_interval, tail

Array = NDArray[np.float64]

STEP = 0.02
LOG_S = np.arange(-25.0, 45.0)


def _whole(hits: ArrayLike, images: ArrayLike) -> tuple[Array, Array]:
    h = np.asarray(hits, dtype=np.float64)
    m = np.asarray(images, dtype=np.float64)
    m = np.full(h.shape, m) if m.ndim == 0 else m
    if h.ndim != 1 or not h.size or h.shape != m.shape:
        raise ValueError(
            f"shapes {h.shape}, {m.shape}: give hits [P >= 1] and images, one a prompt"
        )
    if not np.all((h >= 0) & (h <= m) & (m >= 1) & (h % 1 == 0) & (m % 1 == 0)):
        raise ValueError("give whole hits between 0 and each prompt's images, and images >= 1")
    return h, m


def cluster_interval(
    hits_per_prompt: ArrayLike, images_per_prompt: ArrayLike, level: float = 0.95
) -> Interval:
    """The interval for the rate of hits among all images, over prompts drawn from a population.

    `hits_per_prompt` [P] of `images_per_prompt` ([P] or one number for all), planned and not those
    that survived. The bootstrap over prompts in Rubin's form, its Dirichlet weights integrated
    exactly and not drawn; at the upper end one more prompt that always hits is weighed in, at the
    lower end one that never does. So P prompts never bound the rate below what an unseen prompt
    that always hits would allow: no hits give Clopper-Pearson of 0 of P, prompts that hit always or
    never give Clopper-Pearson over prompts, and so does one image a prompt. The ends rise with
    every hit. At least as wide as `rate_interval` of all images. Its cover is proven for such
    prompts and conjectured for the rest, where simulation finds no exception. Raises ValueError
    unless the counts are whole, hits <= images. Gaffke (2005), as in Learned-Miller and Thomas,
    arXiv 1905.06208; Rubin, Ann. Stat. 9 (1981).
    """
    h, m = _whole(hits_per_prompt, images_per_prompt)
    side, share, most = tail(level), h / m.mean(), float(m.max() / m.mean())
    los, his = zip(
        rate_interval(int(h.sum()), int(m.sum()), level),
        (_quantile(share, 0.0, side), _quantile(share, most, 1 - side)),
        (1.0, most * clopper_pearson(0, len(h), level)[1]),  # holds anyway, but for rounding
        strict=True,
    )
    return max(min(los), 0.0), min(max(his), 1.0)


def _quantile(share: Array, extra: float, probability: float) -> float:
    """That quantile of the mean of `share` [P] and `extra` under uniform Dirichlet weights."""
    values, counts = np.unique(np.append(share, extra), return_counts=True)
    if len(values) == 1:
        return float(values[0])
    ends = values[0], values[-1]
    found = root_scalar(lambda t: _below(t, values, counts) - probability, bracket=ends, xtol=1e-12)
    return float(found.root)


def _below(t: float, values: Array, counts: NDArray[np.int64]) -> float:
    """P(weighted mean <= t): with weights E_i / sum E, that is P(sum E_i (v_i - t) <= 0), from the
    characteristic function of that sum of gamma variables. Imhof, Biometrika 48 (1961), eq. 3.2.
    """
    a = values - t
    scaled = a / float(counts @ np.abs(a))

    def size(s: Array) -> Array:
        return counts @ np.log1p(np.outer(scaled, s) ** 2) / 2

    # in log s the integrand is analytic and dies at both ends: the trapezoidal rule is exact enough
    last = LOG_S[np.argmax(size(np.exp(LOG_S)) > 37)]
    s = np.exp(np.arange(LOG_S[0], last, STEP))
    angle = counts @ np.arctan(np.outer(scaled, s))
    return 0.5 - STEP / math.pi * float((np.sin(angle) * np.exp(-size(s))).sum())
