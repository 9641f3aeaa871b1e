"""Rates with intervals, paired tests, distances of feature sets: arrays in, numbers out.

`rates` and `clusters` bound a rate, `planning` says how many samples a bound takes, `comparisons`
sets two sides or several runs against each other, `distances` measures features.
"""

from sfd.metrics.comparisons import (
    goodness_of_fit,
    holm,
    noninferiority_p,
    paired_difference,
    total_variation,
)
from sfd.metrics.distances import (
    excess_ratio,
    fid,
    fid_jackknife,
    floor_at,
    frechet,
    kid,
    moments,
    nn_radius,
    precision_recall,
    within_radius,
)
from sfd.metrics.rates import (
    clopper_pearson,
    corrected_rate,
    missing_bounds,
    rate_interval,
    samples_to_settle,
    verdict,
    wilson,
)

__all__ = [
    "clopper_pearson",
    "corrected_rate",
    "excess_ratio",
    "fid",
    "fid_jackknife",
    "floor_at",
    "frechet",
    "goodness_of_fit",
    "holm",
    "kid",
    "missing_bounds",
    "moments",
    "nn_radius",
    "noninferiority_p",
    "paired_difference",
    "precision_recall",
    "rate_interval",
    "samples_to_settle",
    "total_variation",
    "verdict",
    "wilson",
    "within_radius",
]
