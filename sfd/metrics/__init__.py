"""Rates with intervals, paired tests, distances of feature sets: arrays in, numbers out.

`rates` and `clusters` bound a rate, `planning` says how many samples a bound takes, `comparisons`
sets two sides or several runs against each other. Of features, `distances` are Fréchet's, `kernels`
MMDs, `neighbours` precision, recall and validity.
"""

from sfd.metrics.clusters import cluster_interval
from sfd.metrics.comparisons import (
    goodness_of_fit,
    holm,
    independent_difference,
    independent_noninferiority_p,
    noninferiority_p,
    paired_difference,
    seed_spread,
    total_variation,
)
from sfd.metrics.distances import (
    excess_ratio,
    fid,
    fid_jackknife,
    fid_ratio,
    floor_at,
    frechet,
    moments,
)
from sfd.metrics.kernels import kid, relative_mmd
from sfd.metrics.neighbours import (
    nn_radius,
    precision_recall,
    precision_recall_jackknife,
    recall_difference,
    within_radius,
)
from sfd.metrics.planning import PERFECT, pass_probability, plan_samples, upper_limit
from sfd.metrics.rates import (
    Interval,
    card_box,
    clopper_pearson,
    corrected_rate,
    missing_bounds,
    rate_interval,
    samples_to_settle,
    verdict,
    wilson,
)

__all__ = [
    "PERFECT",
    "Interval",
    "card_box",
    "clopper_pearson",
    "cluster_interval",
    "corrected_rate",
    "excess_ratio",
    "fid",
    "fid_jackknife",
    "fid_ratio",
    "floor_at",
    "frechet",
    "goodness_of_fit",
    "holm",
    "independent_difference",
    "independent_noninferiority_p",
    "kid",
    "missing_bounds",
    "moments",
    "nn_radius",
    "noninferiority_p",
    "paired_difference",
    "pass_probability",
    "plan_samples",
    "precision_recall",
    "precision_recall_jackknife",
    "rate_interval",
    "recall_difference",
    "relative_mmd",
    "samples_to_settle",
    "seed_spread",
    "total_variation",
    "upper_limit",
    "verdict",
    "wilson",
    "within_radius",
]
