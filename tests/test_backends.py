"""The backends nudenet, clip, face and onnx, and what an audit makes of a detector that fails."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_files
import pytest
import torch
import yaml

from sfd import calibrate, classifiers, content, features, metrics
from sfd.classifiers import Card, Classifier, Network
from sfd.concepts import Concept
from sfd.eval import claims, evidence, judging, suites
from sfd.eval.suites import Claims, Direct, Samples, Suite

SQUARE = dict(size=8, channels=3, mean=[0.5] * 3, std=[0.25] * 3)
LABELS = ["dark", "left", "right"]


def write_card(folder: Path, **says: Any) -> Path:
    """A card; where it has no weights_sha256, the one that the backend asks for."""
    card = dict(version=1, name=folder.name, task="classify", labels=LABELS, licence="CC0-1.0")
    folder.mkdir(exist_ok=True)
    text = yaml.safe_dump(card | says)
    (folder / "card.yaml").write_text(text)
    if "weights_sha256" not in says:
        with pytest.raises(ValueError, match="weights_sha256 is missing; that of") as error:
            classifiers.load(str(folder))
        says["weights_sha256"] = str(error.value).rsplit(" ", 1)[1]
        (folder / "card.yaml").write_text(yaml.safe_dump(card | says))
    return folder


def edit(folder: Path, change) -> None:
    card = yaml.safe_load((folder / "card.yaml").read_text())
    change(card)
    (folder / "card.yaml").write_text(yaml.safe_dump(card))


def pictures(n: int = 7, side: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, side, side, channels)).astype(np.uint8)


def same_in_any_batch(judge: Classifier, images: np.ndarray, atol: float = 1e-5) -> np.ndarray:
    """What it says, after checks of the contract that every backend keeps."""
    whole = judge.probabilities(images)
    assert whole.dtype == np.float32 and whole.shape == (len(images), len(judge.card.labels))
    assert whole.min() >= 0 and whole.max() <= 1
    np.testing.assert_array_equal(whole, judge.probabilities(images))
    np.testing.assert_allclose(whole, judge.probabilities(images, batch=3), atol=atol)
    np.testing.assert_allclose(whole[::-1], judge.probabilities(images[::-1]), atol=atol)
    return whole


def refused(folder: Path, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        classifiers.load(str(folder))
    assert "\n" not in str(error.value)


# --- onnx ----------------------------------------------------------------------------------------

WEIGHT = np.random.default_rng(1).normal(size=(192, 3)).astype(np.float32) / 8


def expected(images: np.ndarray) -> np.ndarray:
    """Scores of the linear model, float64."""
    x = (images / 255 - 0.5) / 0.25
    return x.transpose(0, 3, 1, 2).reshape(len(x), -1) @ WEIGHT.astype(np.float64)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.fixture()
def linear(tmp_path) -> Path:
    onnx_files.linear(tmp_path / "linear" / "model.onnx", WEIGHT)
    options = {"model": {"path": "model.onnx"}, "activation": "softmax"}
    return write_card(tmp_path / "linear", backend="onnx", input=SQUARE, options=options)


def test_onnx_gives_what_the_model_gives(linear):
    judge, images = classifiers.load(str(linear)), pictures()
    assert judge.card.weights_sha256 == content.sha256(linear / "model.onnx")
    np.testing.assert_allclose(
        same_in_any_batch(judge, images), softmax(expected(images)), atol=1e-5
    )
    edit(linear, lambda c: c["options"].update(activation="sigmoid"))
    sigmoid = classifiers.load(str(linear)).probabilities(images)
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-expected(images))), atol=1e-5)
    edit(linear, lambda c: c["options"].update(columns=[2, 0], activation="softmax"))
    edit(linear, lambda c: c.update(labels=["right", "dark"]))
    some = classifiers.load(str(linear)).probabilities(images)
    np.testing.assert_allclose(some, softmax(expected(images))[:, [2, 0]], atol=1e-5)


def test_onnx_layouts_orders_and_fixed_batches_are_the_same_model(linear, tmp_path):
    images = pictures()
    said = classifiers.load(str(linear)).probabilities(images)
    flipped = WEIGHT.reshape(3, 64, 3)[::-1].reshape(192, 3)
    ways = {
        "nhwc": (dict(weight=WEIGHT, nhwc=True), dict(layout="NHWC")),
        "bgr": (dict(weight=flipped), dict(order="BGR")),
        "one": (dict(weight=WEIGHT, batch=1), {}),
        "four": (dict(weight=WEIGHT, batch=4), dict(input_name="x")),
    }
    for name, (built, fed) in ways.items():
        onnx_files.linear(tmp_path / name / "model.onnx", **built)
        options = {"model": {"path": "model.onnx", **fed}, "activation": "softmax"}
        folder = write_card(tmp_path / name, backend="onnx", input=SQUARE, options=options)
        judge = classifiers.load(str(folder))
        np.testing.assert_allclose(same_in_any_batch(judge, images), said, atol=1e-5)


def test_onnx_features_are_an_output_that_the_card_names(linear):
    images = pictures()
    with pytest.raises(ValueError, match="has no features"):
        classifiers.load(str(linear)).features(images)
    edit(linear, lambda c: c["options"].update(features_name="hidden"))
    edit(linear, lambda c: c.update(task="features"))
    x = ((images / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2).reshape(len(images), -1)
    np.testing.assert_allclose(features.load(str(linear))(images), x, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["options"].update(activaton="none"), "unknown key 'activaton'; did you mean"),
        (lambda c: c["options"]["model"].update(layuot="NCHW"), "'model.layuot'; did you mean"),
        (lambda c: c["options"].pop("activation"), "key 'activation' is missing"),
        (lambda c: c.update(options=None), "options: key 'model' is missing"),
        (lambda c: c["options"]["model"].update(path="none.onnx"), "no such ONNX file"),
        (lambda c: c["options"]["model"].update(path="card.yaml"), "onnxruntime: .*failed"),
        (lambda c: c["options"]["model"].update(input_name="y"), "no input 'y'; known: x"),
        (lambda c: c["options"].update(output_name="score"), "did you mean 'scores'"),
        (lambda c: c["options"].update(features_name="hiden"), "did you mean 'hidden'"),
        (lambda c: c["options"]["model"].update(layout="NHWC"), r"the card says \[B, 8, 8, 3\]"),
        (lambda c: c["input"].update(size=9), r"the card says \[B, 3, 9, 9\]"),
        (lambda c: c.update(labels=["dark", "left"]), "gives 3 columns for 2 labels"),
        (lambda c: c["options"].update(columns=[0, 1, 3]), "3 different numbers from 0 to 2"),
        (lambda c: c["options"].update(columns=[0, 1, 1]), "3 different numbers from 0 to 2"),
        (lambda c: c.update(input=None), "backend onnx needs input"),
        (lambda c: c.update(weights_sha256="0" * 64), "sha256 of model.onnx is .* the card says"),
        (lambda c: c.update(backend="onxx"), "did you mean 'onnx'"),
        (lambda c: c.update(option={}), "unknown key 'option'; did you mean 'options'"),
    ],
)
def test_a_wrong_onnx_card_is_refused_in_one_line(linear, change, says):
    edit(linear, change)
    refused(linear, says)


def test_weights_in_another_file_are_refused(linear):
    """The card's hash would not change with them."""
    onnx_files.linear(linear / "model.onnx", WEIGHT, apart="model.onnx.data")
    assert (linear / "model.onnx.data").stat().st_size == WEIGHT.size * 4
    refused(linear, "read alone .export it with external_data=False")


def test_another_onnx_file_is_refused(linear):
    onnx_files.linear(linear / "model.onnx", WEIGHT + 1)
    refused(linear, "sha256 of model.onnx is .* the card says .*sfd calibrate")


def test_a_model_that_takes_another_size_is_refused_when_it_is_loaded(tmp_path):
    shape = ["batch", 3, "h", "w"]
    nodes = [
        onnx_files.node("Flatten", ["x"], "flat", axis=1),
        onnx_files.node("MatMul", ["flat", "weight"], "scores"),
    ]
    path = tmp_path / "open" / "model.onnx"
    onnx_files.write(path, nodes, {"weight": WEIGHT}, {"x": shape}, {"scores": ["batch", 3]})
    options = {"model": {"path": "model.onnx"}, "activation": "softmax"}
    folder = write_card(tmp_path / "open", backend="onnx", input=SQUARE, options=options)
    assert classifiers.load(str(folder)).probabilities(pictures()).shape == (7, 3)
    edit(folder, lambda c: c["input"].update(size=9))
    refused(folder, "model.onnx: onnxruntime: ")


def test_numbers_that_are_no_probabilities_are_refused(linear):
    edit(linear, lambda c: c["options"].update(activation="none"))
    with pytest.raises(ValueError, match="which are no probabilities"):
        classifiers.load(str(linear)).probabilities(pictures())


def test_timm_has_no_options(tmp_path):
    with pytest.raises(ValueError, match="backend timm has no options"):
        card = classifiers.read_card("digits").model_copy(update={"options": {"a": 1}})
        classifiers.known_backend("timm")(card, tmp_path, "cpu")


# --- a detector that fails -----------------------------------------------------------------------

CONCEPT = Concept("mine", label=1, label_name="left", override={0: 1.0}, classifier="table")
SUITE = Suite(
    version=1,
    name="mine",
    threat_model="api",
    judge="table",
    second="other",
    features="pixels",
    reference="none",
    n=Samples(direct=200, per_class=1),
    claims=Claims(direct=Direct(below=0.05)),
)


def table_judge(folder: Path, sure: float = 1.0, **says: Any) -> Classifier:
    """Calls an image of brightness 0, 1 or 2 by its label, and raises on anything brighter."""
    onnx_files.table(folder / "model.onnx", sure * np.eye(3))
    plain = dict(size=4, channels=1, mean=[0.0], std=[1 / 255])
    options = {"model": {"path": "model.onnx"}, "activation": "none"}
    return classifiers.load(
        str(write_card(folder, backend="onnx", input=plain, options=options, **says))
    )


def marked(marks: list[int]) -> np.ndarray:
    return np.array(marks, np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2)


def measured(judge: Classifier) -> Classifier:
    marks = [0] * 300 + [1] * 300 + [2] * 300
    block = calibrate.calibrate(judge, marked(marks), np.array(marks), LABELS, data="by hand")
    return Classifier(judge.card.model_copy(update={"calibration": block}), judge.network)


def direct_claim(judge: Classifier, second: Classifier, marks: list[int]) -> dict[str, Any]:
    """The claim that 'left' is drawn in under 5 % of images, of a model that draws these marks."""
    images = marked(marks)
    drawn = judging.draw(
        lambda conditions, seeds: images[seeds],
        CONCEPT.label,
        np.arange(len(marks)),
        judges=(judge, second),
        extract=features.pixels,
        first=[CONCEPT.label],
    )
    labels, valid = judge.card.labels, np.ones(len(marks), bool)
    found = evidence.direct(CONCEPT, drawn, None, (judge, second), labels, valid, CONCEPT.override)
    (claim,) = claims.decide(SUITE, {"direct": {"mine": found}}, [CONCEPT], [])
    return {**claim, "failed": found["failed"]}


def test_an_image_on_which_a_detector_raises_is_not_one_without_the_concept(tmp_path):
    judge = measured(table_judge(tmp_path / "table"))
    with pytest.raises(ValueError, match=r"model.onnx: onnxruntime: .*out of data bounds"):
        judge.probabilities(marked([0, 2, 3]))
    assert direct_claim(judge, judge, [0] * 200)["status"] == "PASS"
    some = direct_claim(judge, judge, [0] * 180 + [9] * 20)
    assert some["status"] == "INCONCLUSIVE" and some["failed"] == 20
    assert "20 not judged" in some["why"] and "onnxruntime" in some["why"]
    every = direct_claim(judge, judge, [9] * 200)
    assert every["status"] == "INCONCLUSIVE" and every["failed"] == 200
    assert direct_claim(judge, judge, [9] * 100 + [1] * 100)["status"] == "FAIL"


def test_a_detector_that_was_never_measured_is_inconclusive_and_names_the_remedy(tmp_path):
    judge = table_judge(tmp_path / "table")
    claim = direct_claim(judge, judge, [0] * 200)
    assert claim["status"] == "INCONCLUSIVE"
    assert "sensitivity for 'left' was never measured: run `sfd calibrate`" in claim["why"]
    assert direct_claim(judge, judge, [1] * 200)["status"] == "FAIL"


def test_something_else_in_the_image_does_not_hide_what_is_looked_for():
    p = np.array([[0.3, 0.9, 0.0], [0.2, 0.9, 0.0], [0.1, 0.2, 0.0], [np.nan] * 3], np.float32)
    assert judging.calls(p, 0.25).tolist() == [1, 1, -1, -1]
    assert judging.calls(p, 0.25, [0]).tolist() == [0, 1, -1, -1]
    assert judging.calls(p, 0.25, [2, 1, 0]).tolist() == [1, 1, -1, -1]
    # without a threshold there is one call an image, whatever is looked for
    assert judging.calls(p, None, [0]).tolist() == [1, 1, 1, -1]


def test_of_two_forgotten_labels_in_an_image_both_count_on_both_sides():
    says = np.array([[0.6, 0.9, 0.7], [0.1, 0.9, 0.7], [0.0, 0.9, 0.0], [0.0] * 3], np.float32)
    card = Card(version=1, name="many", task="classify", labels=LABELS, licence="own",
                backend="table", threshold=0.1)  # fmt: skip
    judge = Classifier(card, Network(lambda images: says[images[:, 0, 0, 0]]))

    def drawn(first: list[int]) -> judging.Drawn:
        judges, draws = (judge, judge), lambda _, seeds: marked(seeds.tolist())
        return judging.draw(
            draws, 1, np.arange(4), judges=judges, extract=features.pixels, first=first
        )

    now = drawn([0])
    teachers = judging.unpacked(judging.packed(drawn([1])), card.threshold)
    assert now.called.tolist() != teachers.called.tolist()
    for label, found in ((0, 0.5), (1, 0.75), (2, 0.5)):
        row = evidence.changed(teachers, now, label, 0.95, paired=True)
        assert (row["before"], row["after"], row["difference"]) == (found, found, 0), label
    gone = Concept("other", label=2, label_name="right", override={1: 1.0}, classifier="many")
    alone = evidence.leaks(gone, {1: now}, None, LABELS, [1], judge=judge, paired=())
    assert alone["by_label"]["left"]["after"] == 0.5
    assert alone["judge_finds"] is None, "its card was never measured"
    crossed = evidence.cross_leak({1: now}, LABELS)
    assert crossed["matrix"] == [[0] * 3, [2, 3, 2], [0] * 3] and crossed["n"] == [0, 4, 0]


def stated(evidence_of: dict, without: tuple[int, ...] = (), **claimed) -> dict[str, str]:
    """The statuses of these claims on this evidence."""
    suite = suites.load("mixture").model_copy(update={"claims": Claims(**claimed)})
    rows = claims.decide(suite, evidence_of, [CONCEPT], without)
    return {row["id"].split("<")[0]: row["status"] for row in rows}


def test_what_a_judge_overlooks_is_no_absence_of_leaks():
    row = {"before": 0.0, "after": 0.01, "difference": 0.01, "ci": [0.005, 0.015]}
    for finds, status in ((0.98, "PASS"), (0.6, "INCONCLUSIVE"), (None, "INCONCLUSIVE")):
        found = {"level": 0.95, "judge_finds": finds, "by_label": {"bright": row}}
        got = stated({"leaks": {CONCEPT.name: found}}, cross_leak={"margin": 0.02})
        assert got == {"cross_leak": status}, finds


def test_what_excuses_hits_must_be_what_is_drawn():
    """200 leaks in 9,800 of what was never declared, and a judge that mistakes what was."""
    corrected = {"corrected_rate": 0.0, "corrected_ci95": [0.0, 0.0045], "card_fits": True}
    corrected |= {"sensitivity": {"k": 970, "n": 1000}}
    corrected |= {"false_positive_rate": {"k": 28, "n": 1000}}
    direct = {**evidence.rate(200, 10_000), "errors": [], **corrected}
    says = {"direct": {"below": 0.01, "decided_by": "corrected", "why": "its judge errs"}}
    for ends, without, status in (
        ([0.0, 0.01], (), "PASS"),
        ([0.97, 0.99], (), "INCONCLUSIVE"),
        ([0.0, 0.01], (CONCEPT.label,), "INCONCLUSIVE"),
    ):
        found = {"direct": {CONCEPT.name: direct}, "override": {CONCEPT.name: {"tv": ends[0]}}}
        found["override"][CONCEPT.name]["tv_ci95"] = ends
        got = stated(found, without, **says, override={"below": 0.1})
        assert got["direct"] == status, (ends, without)
    assert stated(found, **says)["direct"] == "INCONCLUSIVE", "nothing says what it draws"


def test_a_judge_that_is_lost_on_one_label_has_not_judged():
    rows = [[0.9, np.nan, 0.0], [0.9, 0.05, 0.05]]
    drawn = looked_at(rows, None, [0])
    assert drawn.called.tolist() == [-1, 0] and drawn.judged.tolist() == [False, True]


def looked_at(p: list[list[float]], threshold: float | None, first: list[int]) -> judging.Drawn:
    """Images of which the judge says this."""
    rows = np.array(p, np.float32)
    called = judging.calls(rows, threshold, first)
    return judging.Drawn(rows, called, called, np.zeros((len(rows), 1), np.float32))


def test_no_label_is_not_what_was_declared():
    nothing, instead, raised = [0.1] * 3, [0.9, 0.0, 0.0], [np.nan] * 3
    drawn = looked_at([nothing] * 990 + [instead] * 10, 0.25, [1])
    found = evidence.override(CONCEPT, drawn, LABELS)
    assert found["observed"] == {evidence.NO_LABEL: 0.99, "dark": 0.01}
    assert (found["n"], found["tv"], found["p_value"]) == (1000, 0.99, 0.0)
    assert found["tv_ci95"][0] > 0.98
    lost = evidence.override(CONCEPT, looked_at([instead] * 90 + [raised] * 10, 0.25, [1]), LABELS)
    assert lost["observed"] == {"dark": 1.0} and lost["n"] == 90
    ends = [metrics.rate_interval(0, 100)[0], metrics.rate_interval(10, 100)[1]]
    assert lost["tv_ci95"] == ends, "what was not judged may have been anything"
    few = evidence.override(CONCEPT, looked_at([instead] * 20, 0.25, [1]), LABELS)
    assert few["tv"] == 0 and few["tv_ci95"][1] > 0.16, "twenty images are no proof"


def test_a_generator_of_just_what_was_declared_is_not_refuted():
    """Resampling adds to a distance what sampling had added before: 59 of 60 such were."""
    shares = Concept("mine", 9, "9", dict.fromkeys(range(9), 1 / 9), "table")
    labels, refuted = [str(i) for i in range(10)], 0
    for seed in range(60):
        drawn = np.random.default_rng(seed).integers(0, 9, 50)
        found = evidence.override(shares, looked_at(np.eye(10)[drawn].tolist(), None, []), labels)
        refuted += found["tv_ci95"][0] > 0.1
    assert refuted <= 3


def test_a_judge_that_always_calls_something_is_resampled_as_it_was():
    """The upper end is that of the code before no label was an outcome; the lower one is less what
    resampling adds. Of 10,000 images of ten labels."""
    counts = [9000, 300, 200, 150, 120, 100, 60, 40, 20, 10]
    rows = np.repeat(np.eye(10), counts, axis=0).tolist()
    shares = Concept("mine", 9, "9", {0: 0.5, 1: 0.5}, "table")
    found = evidence.override(shares, looked_at(rows, None, []), [str(i) for i in range(10)])
    assert found["tv"] == pytest.approx(0.47, abs=1e-12)
    assert found["tv_ci95"] == pytest.approx([0.4669, 0.4731], abs=1e-12)


def test_the_cache_of_a_judge_follows_from_all_that_decides_its_answers():
    digits, nudenet = classifiers.read_card("digits"), classifiers.read_card("nudenet")
    others = [{"threshold": 0.5}, {"options": {}}, {"weights_sha256": "0"}]
    prints = {nudenet.model_copy(update=update).fingerprint for update in others}
    assert len(prints | {nudenet.fingerprint}) == 4
    assert digits.input is not None and digits.architecture is not None
    greyer = digits.input.model_copy(update={"mean": [0.4]})
    others = [{"input": greyer}, {"labels": digits.labels[::-1]}, {"architecture": None}]
    prints = {digits.model_copy(update=update).fingerprint for update in others}
    assert len(prints | {digits.fingerprint}) == 4
    assert nudenet.model_copy(update={"licence": "x"}).fingerprint == nudenet.fingerprint


# --- nudenet -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    from skimage import data

    return data.astronaut()


@pytest.fixture(scope="module")
def nudenet() -> Classifier:
    return classifiers.load("nudenet")


def test_nudenet_finds_a_face_and_no_nudity_in_the_astronaut(nudenet, astronaut):
    grey = np.repeat(astronaut.mean(-1).astype(np.uint8)[..., None], 3, -1)
    images = np.stack([astronaut, np.zeros_like(astronaut), grey, astronaut])
    said = same_in_any_batch(nudenet, images)
    assert said[0].tolist() == [0.0, pytest.approx(0.7203, abs=2e-3)]
    assert said[1].tolist() == [0.0, 0.0] and said[2, 1] > 0.5
    assert nudenet.called(images).tolist() == [[False, f] for f in (True, False, True, True)]
    np.testing.assert_allclose(nudenet.probabilities(grey[None, ..., :1]), said[2:3], atol=1e-6)


def test_nudenet_says_of_an_array_what_it_says_of_its_file(astronaut, tmp_path):
    import nudenet as package

    from sfd import images
    from sfd.classifiers import nudenet_detector

    path = tmp_path / "astronaut.png"
    path.write_bytes(images.png_bytes(astronaut))
    (own,) = package.NudeDetector().detect(str(path))
    ((ours,),) = nudenet_detector.detector()(astronaut[None])
    assert (ours.part, list(ours.box)) == (own["class"], own["box"])
    assert ours.score == pytest.approx(own["score"], abs=1e-5)


def test_the_parts_are_those_of_the_wheel():
    from nudenet import nudenet as module

    from sfd.classifiers import nudenet_detector

    assert sorted(vars(module)["__labels"]) == sorted(nudenet_detector.PARTS)
    card = classifiers.read_card("nudenet")
    assert card.options and set(card.options["parts"]) == set(card.labels)


def test_nudenet_opens_one_session_for_all_images(nudenet, astronaut, monkeypatch):
    from sfd.classifiers import onnx_session

    def never(path):
        raise AssertionError("a session was opened")

    monkeypatch.setattr(onnx_session, "open_session", never)
    monkeypatch.setattr("onnxruntime.InferenceSession", never)
    assert nudenet.probabilities(astronaut[None].repeat(3, 0), batch=1).shape == (3, 2)


def test_the_shipped_nudenet_is_unmeasured_so_an_audit_with_it_is_inconclusive(nudenet):
    assert nudenet.card.calibration is None
    drawn = judging.draw(
        lambda conditions, seeds: np.zeros((len(seeds), 16, 16, 3), np.uint8),
        0,
        np.arange(8),
        judges=(nudenet, nudenet),
        extract=features.pixels,
    )
    bare = Concept("nudity", label=0, label_name="nudity", override={1: 1.0}, classifier="nudenet")
    found = evidence.direct(
        bare, drawn, None, (nudenet, nudenet), nudenet.card.labels, np.ones(8, bool),
        bare.override,
    )  # fmt: skip
    assert found["k"] == 0 and found["failed"] == 0
    (claim,) = claims.decide(SUITE, {"direct": {"nudity": found}}, [bare], [])
    assert claim["status"] == "INCONCLUSIVE"
    assert "nudenet's sensitivity for 'nudity' was never measured" in claim["why"]
    assert "sfd calibrate" in claim["why"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["options"]["parts"].update(face=["FACE"]), "did you mean 'FACE_MALE'"),
        (lambda c: c["options"]["parts"].update(face=[]), "parts.face: name a part"),
        (lambda c: c["options"]["parts"].pop("face"), "needs the labels nudity, face"),
        (lambda c: c["options"].update(part={}), "unknown key 'part'; did you mean 'parts'"),
        (lambda c: c.update(threshold=None), "needs a threshold"),
        (lambda c: c.update(weights_sha256="0" * 64), "sha256 of nudenet's 320n.onnx is c15d8273"),
    ],
)
def test_a_wrong_nudenet_card_is_refused_in_one_line(tmp_path, change, says):
    shipped = content.shipped() / "classifiers" / "nudenet" / "card.yaml"
    (tmp_path / "card.yaml").write_text(shipped.read_text())
    edit(tmp_path, change)
    refused(tmp_path, says)


# --- clip ----------------------------------------------------------------------------------------

PROMPTS = {"dark": ["a dark image", "night"], "left": ["bright on the left"], "right": ["right"]}


@pytest.fixture()
def clip(clip_model, tmp_path) -> Path:
    options = {"folder": str(clip_model), "prompts": PROMPTS}
    return write_card(tmp_path / "clip", backend="clip", options=options)


def test_clip_is_the_softmax_of_cosines_with_each_labels_prompts(clip, clip_model):
    from transformers import CLIPModel, CLIPProcessor

    judge, images = classifiers.load(str(clip)), pictures(side=20)
    said = same_in_any_batch(judge, images)
    np.testing.assert_allclose(said.sum(1), 1, atol=1e-5)
    assert said.std(0).min() > 0

    model = CLIPModel.from_pretrained(clip_model).eval()
    processor = CLIPProcessor.from_pretrained(clip_model)
    logits = []
    for label in ("left", "right"):  # those with one prompt are what the model itself scores
        batch = processor(text=PROMPTS[label], images=list(images), return_tensors="pt")
        with torch.inference_mode():
            logits.append(model(**batch).logits_per_image[:, 0].numpy())
    np.testing.assert_allclose(
        np.log(said[:, 1]) - np.log(said[:, 2]), logits[0] - logits[1], atol=1e-4
    )


def test_clip_gives_unit_features(clip):
    images = pictures(side=20)
    edit(clip, lambda c: c.update(task="features"))
    extract = features.load(str(clip))
    out = extract(images)
    assert out.shape == (7, 8) and out.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(extract(images[2:4]), out[2:4], atol=1e-5)


def test_clip_repeats_grey_images(clip):
    judge, grey = classifiers.load(str(clip)), pictures(side=20, channels=1)
    np.testing.assert_allclose(
        judge.probabilities(grey), judge.probabilities(grey.repeat(3, -1)), atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["options"].update(folder="/nowhere"), "/nowhere: no such folder of a CLIP"),
        (lambda c: c["options"].update(folder="."), "no config.json in it"),
        (lambda c: c["options"]["prompts"].pop("left"), "needs one for each of dark, left, right"),
        (lambda c: c["options"]["prompts"].update(left=[]), "needs one for each of"),
        (lambda c: c["options"]["prompts"].update(left=["x" * 99]), "has 101 tokens, .* takes 32"),
        (lambda c: c["options"].update(prompt={}), "unknown key 'prompt'; did you mean 'prompts'"),
        (lambda c: c.update(weights_sha256="0" * 64), "the card says 000000000000"),
    ],
)
def test_a_wrong_clip_card_is_refused_in_one_line(clip, change, says):
    edit(clip, change)
    refused(clip, says)


def test_a_clip_folder_that_is_damaged_is_refused_in_one_line(clip, clip_model, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    copy.mkdir()
    for path in clip_model.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    weights = load_file(copy / "model.safetensors")
    weights.pop("visual_projection.weight")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    options = {"folder": str(copy), "prompts": PROMPTS}
    lacking = write_card(tmp_path / "lacking", backend="clip", options=options)
    refused(lacking, "its weights lack 1 tensors of a CLIP model: visual_projection")
    (copy / "model.safetensors").write_bytes(b"nonsense")
    broken = write_card(tmp_path / "broken", backend="clip", options=options)
    refused(broken, "not a CLIP model: ")
    (copy / "tokenizer_config.json").unlink()
    refused(broken, "no tokenizer_config.json in it")


# --- face ----------------------------------------------------------------------------------------

PEOPLE = ["ada", "grace", "nobody"]


def save_images(folder: Path, images) -> Path:
    from sfd import images as files

    for i, image in enumerate(images):
        content.write_atomic(folder / f"{i}.png", files.png_bytes(image))
    return folder


@pytest.fixture()
def face(tmp_path) -> Path:
    folder = tmp_path / "face"
    rng = np.random.default_rng(2)
    onnx_files.linear(folder / "embedder.onnx", rng.normal(size=(192, 32)))
    save_images(folder / "ada", pictures(2, seed=10))
    save_images(folder / "grace", pictures(1, seed=11))
    options = dict(
        embedder={"path": "embedder.onnx"},
        galleries={"ada": "ada", "grace": "grace"},
        other="nobody",
        crop="none",
    )
    says = dict(backend="face", labels=PEOPLE, input=SQUARE, options=options, threshold=0.9)
    return write_card(folder, **says)


def test_a_face_is_as_probable_as_its_cosine_with_the_nearest_photograph(face):
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(192, 32)).astype(np.float32)

    def embedded(images):
        y = ((images / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2).reshape(len(images), -1) @ weight
        return y / np.linalg.norm(y, axis=1, keepdims=True)

    ada, grace, others = pictures(2, seed=10), pictures(1, seed=11), pictures(5, seed=12)
    images = np.concatenate([ada, grace, others])
    judge = classifiers.load(str(face))
    said = same_in_any_batch(judge, images)
    for column, gallery in enumerate((ada, grace)):
        cosine = (embedded(images) @ embedded(gallery).T).max(1)
        np.testing.assert_allclose(said[:, column], (1 + cosine) / 2, atol=1e-5)
    np.testing.assert_allclose(said[:, 2], 1 - said[:, :2].max(1), atol=1e-6)
    assert judge.called(images)[:3, :2].tolist() == [[True, False], [True, False], [False, True]]
    assert not judge.called(images)[3:, :2].any()


def test_faces_are_cut_out_and_an_image_without_one_is_nobody(face, astronaut):
    small = astronaut[40:240, 100:340]
    save_images(face / "ada", [astronaut])
    (face / "ada" / "1.png").unlink()
    edit(face, lambda c: c["options"].update(crop="nudenet-face", galleries={"ada": "ada"}))
    edit(face, lambda c: c.update(labels=["ada", "nobody"], weights_sha256=None))
    with pytest.raises(ValueError, match="weights_sha256 is missing") as error:
        classifiers.load(str(face))
    edit(face, lambda c: c.update(weights_sha256=str(error.value).rsplit(" ", 1)[1]))
    judge = classifiers.load(str(face))
    images = np.stack([small, np.zeros_like(small), small[:, ::-1]])
    said = same_in_any_batch(judge, images)
    assert said[1].tolist() == [0.0, 1.0]
    # the same face in another picture of another size, cut out a pixel or two off
    assert said[0, 0] > 0.95 > said[2, 0] > 0.3


def test_a_square_stays_in_the_image():
    from sfd.classifiers.face_gallery import square

    image = np.arange(20 * 30).reshape(20, 30, 1).astype(np.uint8)
    np.testing.assert_array_equal(square(image, (10, 5, 6, 6)), image[5:11, 10:16])
    np.testing.assert_array_equal(square(image, (10, 5, 2, 6)), image[5:11, 8:14])
    np.testing.assert_array_equal(square(image, (0, 0, 2, 6)), image[0:6, 0:6])
    np.testing.assert_array_equal(square(image, (28, 16, 2, 4)), image[16:20, 26:30])
    np.testing.assert_array_equal(square(image, (0, 0, 30, 20)), image)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["options"].update(cropp="none"), "unknown key 'cropp'; did you mean 'crop'"),
        (lambda c: c["options"]["galleries"].update(ada="adda"), "adda: no such folder of ref"),
        (lambda c: c["options"]["galleries"].update(ada="."), "no photographs in it"),
        (lambda c: c["options"]["galleries"].pop("ada"), "a folder for each of ada, grace, nobod"),
        (lambda c: c["options"].update(other=None), "a folder for each of ada, grace, nobody"),
        (lambda c: c["options"].update(crop="nudenet-face"), "sha256 of embedder and photographs"),
        (lambda c: c.update(threshold=None), "needs input, and a threshold"),
        (lambda c: c.update(input=None), "needs input, and a threshold"),
        (lambda c: c["options"].update(crop="mtcnn"), "'nudenet-face' or 'none'"),
    ],
)
def test_a_wrong_face_card_is_refused_in_one_line(face, change, says):
    edit(face, change)
    refused(face, says)


def test_another_gallery_is_refused(face):
    save_images(face / "grace", pictures(1, seed=13))
    refused(face, "sha256 of embedder and photographs is .* the card says")


def test_a_photograph_without_a_face_is_refused(face):
    edit(face, lambda c: c.update(weights_sha256=None))
    edit(face, lambda c: c["options"].update(crop="nudenet-face"))
    with pytest.raises(ValueError, match="weights_sha256 is missing") as error:
        classifiers.load(str(face))
    edit(face, lambda c: c.update(weights_sha256=str(error.value).rsplit(" ", 1)[1]))
    refused(face, "ada/0.png: shows 0 faces; a reference shows one")


def test_impostors_set_the_threshold_at_a_false_match_rate(face):
    judge, strangers = classifiers.load(str(face)), list(pictures(50, seed=20))
    scores = np.sort(judge.probabilities(np.stack(strangers))[:, 0])[::-1]
    for rate, above in ((0.02, 1), (0.1, 5), (0.5, 25)):
        threshold, k, n = calibrate.impostor_threshold(judge, strangers, rate, "ada")
        assert (k, n) == (above, 50)
        assert (scores >= np.float32(threshold)).sum() == above
        assert 0 < threshold - scores[above] < 3e-6
    for few, rate, says in (
        (49, 0.02, "49 impostors say nothing about .* 0.02; give 50 or more"),
        (50, 1.5, "between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=says):
            calibrate.impostor_threshold(judge, strangers[:few], rate, "ada")
    with pytest.raises(ValueError, match="did you mean 'ada'"):
        calibrate.impostor_threshold(judge, strangers, 0.1, "adda")
    with pytest.raises(ValueError, match="are they impostors"):
        calibrate.impostor_threshold(judge, [pictures(1, seed=11)[0]] * 10, 0.1, "grace")


def test_impostors_in_whom_nothing_was_seen_set_no_threshold():
    """No face is found in most: a threshold at their zeros would call anybody."""
    judge = fake(np.array([[0.0, 0, 0], [0.2, 0, 0], [0.6, 0, 0]]), 0.5)
    blank, seen = list(marked([0] * 90)), list(marked([1] * 9 + [2]))
    with pytest.raises(ValueError, match=r"10 impostors \(90 more have a probability of 0\) say"):
        calibrate.impostor_threshold(judge, [*blank, *seen], 0.05, "dark")
    threshold, k, n = calibrate.impostor_threshold(judge, [*blank, *seen], 0.1, "dark")
    assert (k, n) == (1, 10) and 0.2 < threshold < 0.21


def near(image, n):
    """Copies of one image that differ in a pixel each: other photographs of the same face."""
    out = image[None].repeat(n, 0)
    out[np.arange(n), 0, np.arange(n) % out.shape[2], 0] ^= 1 + np.arange(n).astype(np.uint8)
    return out


def test_the_command_line_sets_the_threshold_and_measures_a_whole_copy(face, capsys):
    from sfd.cli import measuring

    ada, grace = pictures(2, seed=10), pictures(1, seed=11)
    save_images(Path("data/ada"), np.concatenate([near(image, 5) for image in ada]))
    save_images(Path("data/grace"), near(grace[0], 10))
    save_images(Path("data/none"), pictures(10, seed=14))
    save_images(Path("strangers"), pictures(40, seed=15))
    options = {"impostors": "strangers", "false_match_rate": 0.05, "label": "ada"}
    measuring.calibrate(str(face), "data", out="copy", **options)
    card = classifiers.load("./copy").card
    assert card.threshold and card.threshold < 0.9 and card.calibration
    assert card.calibration.sensitivity["ada"].k == 10
    how = "held out; 'ada' on 2 of 40 of strangers, up to 0.17 of others (95 %)"
    assert card.calibration.how == how
    assert card.calibration.curve and card.threshold in card.calibration.curve.thresholds
    assert f"threshold {card.threshold}" in capsys.readouterr().out
    assert classifiers.read_card(str(face)).calibration is None
    with pytest.raises(ValueError, match="copy: was measured already .*--out, or .*--force"):
        measuring.calibrate("./copy", "data")
    measuring.calibrate("./copy", "data", force=True)
    again = classifiers.read_card("./copy").calibration
    assert again and again.how == "held out"
    save_images(Path("gallery/ada"), pictures(2, seed=10).repeat(5, 0))
    save_images(Path("gallery/none"), pictures(10, seed=14))
    with pytest.raises(ValueError, match="10 of its 20 images are among the gallery's"):
        measuring.calibrate(str(face), "gallery", out="other")
    save_images(Path("data/none"), pictures(40, seed=15)[:10])
    with pytest.raises(ValueError, match="10 of its 30 images are among the impostors"):
        measuring.calibrate(str(face), "data", out="other", **options)


# --- the curve -----------------------------------------------------------------------------------


def fake(table: np.ndarray, threshold: float | None) -> Classifier:
    """A classifier that gives an image whose first pixel is i the probabilities `table[i]`."""
    card = Card(
        version=1,
        name="fake",
        task="classify",
        labels=LABELS,
        backend="none",
        threshold=threshold,
        licence="CC0-1.0",
    )
    return Classifier(card, Network(lambda x: table[x[:, 0, 0, 0]].astype(np.float32)))


def test_the_curve_of_a_threshold_by_hand():
    # of ten dark images six have .9 and four .3; of ten others five have .45 (for 'dark')
    table = np.array([[0.9, 0, 0], [0.3, 0, 0], [0.45, 0.6, 0], [0, 0.6, 0]])
    marks = [0] * 6 + [1] * 4 + [2] * 5 + [3] * 5
    labels = np.repeat([0, 1], 10)
    names = ["dark", "left"]
    block = calibrate.calibrate(fake(table, 0.33), marked(marks), labels, names, data="by hand")
    curve = block.curve
    assert curve and curve.thresholds == sorted([0.33, *calibrate.GRID])
    at = {t: i for i, t in enumerate(curve.thresholds)}
    picked = [at[t] for t in (0.05, 0.3, 0.33, 0.45, 0.5, 0.9, 0.95)]
    assert [curve.found["dark"][i] for i in picked] == [10, 10, 6, 6, 6, 6, 0]
    assert [curve.wrong["dark"][i] for i in picked] == [5, 5, 5, 5, 0, 0, 0]
    assert [curve.found["left"][i] for i in picked] == [10, 10, 10, 10, 10, 0, 0]
    assert "right" not in curve.found and set(curve.wrong["right"]) == {0}
    assert block.sensitivity["dark"].k == 6 and block.false_positive["dark"].k == 5
    none = calibrate.calibrate(fake(table, None), marked(marks), labels, names, data="by hand")
    assert none.curve is None


@pytest.fixture()
def curved(tmp_path) -> Path:
    judge = table_judge(tmp_path / "table", sure=0.55, threshold=0.5)
    marks = np.repeat([0, 1, 2], 10)
    block = calibrate.calibrate(judge, marked(list(marks)), marks, LABELS, data="by hand")
    classifiers.write_calibration(str(tmp_path / "table"), block, tmp_path / "measured")
    return tmp_path / "measured"


def test_a_measured_copy_is_whole_and_its_curve_compact(curved):
    card = classifiers.load(str(curved)).card
    assert card.calibration and card.calibration.curve
    assert card.calibration.sensitivity["left"].k == 10
    lines = (curved / "card.yaml").read_text().splitlines()
    assert sum("thresholds" in line for line in lines) == 1 and len(lines) < 70
    again = classifiers.write_calibration(str(curved), card.calibration, threshold=0.5)
    assert again == curved and classifiers.read_card(str(curved)) == card


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(threshold=0.6), "found of 'dark' does not fit the counts at 0.6: set"),
        (lambda c: c.update(threshold=0.61), "not measured at the threshold 0.61: set calibration"),
        (lambda c: c["calibration"]["curve"]["found"]["left"].__setitem__(9, 9), "found of 'left'"),
        (lambda c: c["calibration"]["curve"]["wrong"]["left"].pop(), "wrong of 'left'"),
        (lambda c: c["calibration"]["curve"]["wrong"].pop("left"), "wrong needs the labels"),
        (lambda c: c["calibration"]["curve"]["thresholds"].reverse(), "must rise"),
    ],
)
def test_a_curve_that_does_not_belong_is_refused(curved, change, says):
    edit(curved, change)
    refused(curved, says)


def test_a_threshold_set_after_the_calibration_is_refused():
    card = classifiers.read_card("digits").model_dump(mode="json")
    with pytest.raises(ValueError, match="measured with another threshold than the card's"):
        content.check_json(json.dumps({**card, "threshold": 0.999}), Card, "mine")
    content.check_json(json.dumps({**card, "threshold": 0.999, "calibration": None}), Card, "mine")
