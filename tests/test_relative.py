"""The relative test in an audit: gold, original, and what is between them."""

from dataclasses import replace

import numpy as np
import pytest

from sfd.concepts import Concept
from sfd.eval.judging import Drawn
from sfd.eval.relative import relative
from sfd.eval.subjects import Subject

LABELS = ["one", "two", "three"]
GONE = Concept("gone", 2, "three", {0: 1.0}, "judge")


def student(name: str, brightness: dict[int, float]) -> Subject:
    """Draws noisy images whose mean brightness depends on the label."""

    def generate(raw, seeds):
        rows = [
            np.random.default_rng(int(s) % 2**63).normal(brightness[label], 20, (4, 4, 1))
            for label, s in zip(raw, seeds, strict=True)
        ]
        return np.clip(rows, 0, 255).astype(np.uint8)

    return Subject(name, (name * 64)[:64], "toy", generate, LABELS, [], 1)


def extract(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)[:, :4].astype(np.float32) / 100


def drawn(subject: Subject, label: int, n: int = 300) -> Drawn:
    images = subject.generate([label] * n, np.arange(10**6, 10**6 + n))
    assert isinstance(images, np.ndarray)
    blank = np.zeros(n, int)
    return Drawn(np.zeros((n, 3), np.float32), blank, blank, extract(images))


GOLD = student("a", {0: 100, 1: 150, 2: 100})
PLAIN = student("b", {0: 120, 1: 170, 2: 200})


def compared(subject: Subject, gold: Subject | None = GOLD, plain: Subject | None = PLAIN):
    grid = {label: drawn(subject, label) for label in (0, 1)}
    return relative(
        gold, plain, grid, {"gone": drawn(subject, 2)}, [GONE], plan="p", extract=extract
    )


def test_a_model_like_the_gold_is_nearer_to_it_and_an_untouched_one_to_the_original():
    found = compared(student("c", {0: 100, 1: 150, 2: 100}))
    assert found and found["retained"]["nearer"] == found["concepts"]["gone"]["nearer"] == "gold"
    assert found["gold"] == GOLD.sha256 and found["original"] == PLAIN.sha256
    found = compared(student("d", {0: 120, 1: 170, 2: 200}))
    assert found and found["retained"]["nearer"] == "original"
    assert found["concepts"]["gone"]["nearer"] == "original"


def test_retained_classes_and_the_concept_are_told_apart():
    found = compared(student("e", {0: 120, 1: 170, 2: 100}))
    assert found and found["retained"]["nearer"] == "original"
    assert found["concepts"]["gone"]["nearer"] == "gold"


def test_half_way_between_is_undecided():
    found = compared(student("f", {0: 110, 1: 160, 2: 150}))
    assert found and found["retained"]["nearer"] == "undecided"


@pytest.mark.parametrize("lacking", [{"gold": None}, {"plain": None}])
def test_without_both_rivals_nothing_is_said(lacking):
    assert compared(GOLD, **lacking) is None


def test_images_that_were_not_made_are_left_out():
    whole = drawn(GOLD, 2)
    features = whole.features.copy()
    features[:250] = np.nan
    grid = {label: drawn(GOLD, label) for label in (0, 1)}
    holey = {"gone": replace(whole, features=features)}
    found = relative(GOLD, PLAIN, grid, holey, [GONE], plan="p", extract=extract)
    assert found and found["concepts"]["gone"]["n"][0] == 50
    none = {"gone": replace(whole, features=np.full_like(features, np.nan))}
    found = relative(GOLD, PLAIN, grid, none, [GONE], plan="p", extract=extract)
    assert found and found["concepts"]["gone"] == {"n": [0, 2000, 2000], "nearer": "undecided"}
