"""The teacher at its best guidance."""

import numpy as np

from sfd.eval import guidance

RNG = np.random.default_rng(0)


def test_the_best_guidance_is_that_of_the_smallest_fid():
    real = RNG.normal(size=(500, 4))
    noise = RNG.normal(size=(400, 4))
    k, tried = guidance.best([1.0, 1.5, 2.0], lambda k: noise + 3 * abs(k - 1.5), real)
    assert k == 1.5 and list(tried) == ["1", "1.5", "2"]
    assert tried["1.5"] < tried["1"] and tried["1.5"] < tried["2"]


def test_a_guided_step_costs_two_evaluations():
    plain = guidance.described("teacher t", 18, 1.0, {})
    assert plain == {"what": "teacher t, Heun", "nfe": 35, "guidance": 1.0}
    guided = guidance.described("teacher t", 18, 1.5, {"1": 2.0, "1.5": 1.0})
    assert guided["nfe"] == 70 and guided["fid_by_guidance"] == {"1": 2.0, "1.5": 1.0}
