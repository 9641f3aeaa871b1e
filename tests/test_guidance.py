"""The teacher at its best guidance."""

import numpy as np
import pytest
import torch

from sfd import features, teachers
from sfd.eval import class_teacher, common, guidance, judging, suites

RNG = np.random.default_rng(0)


def test_the_best_guidance_is_that_of_the_smallest_fid():
    real = RNG.normal(size=(500, 4))
    noise = RNG.normal(size=(400, 4))
    k, tried = guidance.best([1.0, 1.5, 2.0], lambda k: noise + 3 * abs(k - 1.5), real)
    assert k == 1.5 and list(tried) == ["1", "1.5", "2"]
    assert tried["1.5"] < tried["1"] and tried["1.5"] < tried["2"]


def test_a_guidance_is_chosen_from_enough_images_or_before_any():
    teacher = teachers.load(name="mixture", device=torch.device("cpu"))
    extract, real = features.load("pixels", "cpu"), RNG.random((500, 16))
    counted = []

    def chosen(n, real=real, **plan):
        plan = suites.TeacherSampling(steps=2, **plan)
        return guidance.chosen(teacher, plan, [0] * n, np.arange(n), extract=extract, real=real,
                               count=counted.append)  # fmt: skip

    assert chosen(3, guidance=[2.0]) == (2.0, {}) and not counted
    for n, known in ((16, real), (600, real[:16])):
        with pytest.raises(ValueError, match=r"takes over 16 images.*: raise teacher\.n"):
            chosen(n, known, guidance=[1.0, 2.0])
    assert not counted
    _, tried = chosen(600, guidance=[1.0, 2.0])
    assert list(tried) == ["1", "2"] and counted == [500, 100] * 2


def test_a_guided_step_costs_two_evaluations():
    plain = guidance.described("teacher t", 18, 1.0, {})
    assert plain == {"what": "teacher t, Heun", "nfe": 35, "guidance": 1.0}
    guided = guidance.described("teacher t", 18, 1.5, {"1": 2.0, "1.5": 1.0})
    assert guided["nfe"] == 70 and guided["fid_by_guidance"] == {"1": 2.0, "1.5": 1.0}


@pytest.fixture
def side(monkeypatch):
    """The teacher's side of the mixture at the better of two guidances, cached in a folder."""
    suite = suites.load("mixture", {}).model_copy(
        update={
            "n": suites.Samples(direct=100, per_class=40),
            "teacher": suites.TeacherSampling(steps=4, guidance=[1.0, 1.5], n=80),
        }
    )
    teacher = teachers.load(name="mixture", device=torch.device("cpu"))
    judges = (common.load_judge(suite.judge, "cpu"), common.load_judge(suite.second, "cpu"))
    extract, reference = (
        features.load(suite.features, "cpu"),
        suites.read_reference(suite.reference),
    )

    def make(cache):
        monkeypatch.setenv("SFD_CACHE", str(cache))
        return class_teacher.teacher_side(teacher, suite, judges, extract, reference, None)

    return make


def test_a_teacher_that_was_interrupted_goes_on_where_it_was(side, tmp_path, monkeypatch):
    whole = side(tmp_path / "a")
    draw, labels = judging.draw, []

    def interrupted(generate, condition, *rest, **options):
        labels.append(condition)
        if labels == [0, 1, 2]:
            raise KeyboardInterrupt
        return draw(generate, condition, *rest, **options)

    monkeypatch.setattr(judging, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        side(tmp_path / "b")
    monkeypatch.setattr(guidance, "best", None)  # it was chosen already
    resumed = side(tmp_path / "b")
    assert labels == [0, 1, 2, 2, 3] and len(list((tmp_path / "b").iterdir())) == 1
    assert (resumed.guidance, resumed.tried) == (whole.guidance, whole.tried)
    for label, drawn in whole.drawn.items():
        assert np.array_equal(drawn.features, resumed.drawn[label].features)
        assert np.array_equal(drawn.probabilities, resumed.drawn[label].probabilities)
        assert np.array_equal(whole.sheets[label], resumed.sheets[label])
    side(tmp_path / "b")
    assert len(labels) == 5  # nothing is drawn twice
