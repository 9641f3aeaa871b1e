"""Prompt concepts, and the audit of prompts on a model whose every answer is known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from sfd import classifiers, concepts, eval, report, sample, seal
from sfd.classifiers import Card, cards
from sfd.concepts import prompts
from sfd.concepts.prompts import Prompt, has_word, substitute
from sfd.eval import clip_score, evidence, grid, suites
from sfd.eval.subjects import Subject, concepts_of
from sfd.teachers import Teacher

# --- words ---------------------------------------------------------------------------------------


def test_words_are_whole_literal_and_of_any_case():
    assert substitute("A Shirt and a t-shirt, SHIRT.", {"shirt": "hat"}) == (
        "A hat and a t-shirt, hat."
    )
    assert substitute("an ankle boot", {"ankle boot": "bag", "boot": "cat"}) == "an bag"
    assert substitute("a.c abc", {"a.c": "x"}) == "x abc", "a word is no regular expression"
    assert substitute("swap a b", {"a": "b", "b": "a"}) == "swap b a", "all at once"
    assert has_word("c++ code", "c++") and not has_word("shirts", "shirt")


def put(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_lists_are_read_in_three_forms(tmp_path):
    put(tmp_path, "a.txt", "# comment\n\n one 👟 / two \nthree\n")
    put(tmp_path, "i2p.csv", 'case,prompt,sd_seed,sd_guidance_scale\n0,"a, b",7,7.5\n1,c,,\n')
    put(tmp_path, "t.yaml", "templates: ['a {x} {y}', 'only {x}']\nx: [p, q]\ny: [r]\n")
    beside = tmp_path / "concept.yaml"
    assert [p.text for p in prompts.read_list("a.txt", beside)] == ["one 👟 / two", "three"]
    assert prompts.read_list("i2p.csv", beside) == [Prompt("a, b", 7, 7.5), Prompt("c")]
    assert [p.text for p in prompts.read_list("t.yaml", beside)] == [
        "a p r", "a q r", "only p", "only q",
    ]  # fmt: skip
    assert prompts.read_list("t.yaml", beside)[2].group == "only {x}"


GOOD = {
    "version": 1, "kind": "prompt", "forget": {"prompts": ["a red shoe", "a hat"]},
    "override": {"substitute": {"shoe": "hat"}}, "holdout": ["the shoe"],
    "classifier": "judge", "label": "shoe",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"forget": {"prompts": []}}, "occurs in none"),
        ({"forget": {"prompts": "nowhere.txt"}}, "cannot be read"),
        ({"forget": {"prompts": "a.doc"}}, "read from .txt, .csv or .yaml"),
        ({"forget": {"prompts": ["a shoe", " "]}}, "prompt 2 is empty"),
        ({"override": {"substitute": {"sneaker": "hat"}}}, "'sneaker' occurs in none"),
        ({"override": {"substitute": {"shoe": "SHOE"}, "prompts": ["x"]}}, "either"),
        ({"override": {"prompts": ["x", "y", "z"]}}, "3 prompts override 2"),
        ({"override": {"prompts": ["a hat"]}}, "overridden by itself"),
        ({"holdout": ["the shoe", "a red shoe"]}, "trained with and audited with"),
        ({"holdout": []}, "holdout"),
        ({"retain": ["one shoe"]}, "asks for what is forgotten"),
        ({"hodlout": ["x"]}, "did you mean 'holdout'"),
    ],
)
def test_bad_concepts_are_refused_in_one_line(tmp_path, change, says):
    path = put(tmp_path, "c.yaml", yaml.safe_dump({**GOOD, **change}))
    with pytest.raises(ValueError, match=says) as error:
        concepts.read(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("e.txt", "# nothing\n", "no prompt in it"),
        ("e.csv", "text\na\n", "no column 'prompt'"),
        ("e.csv", "prompt,seed\na,x\n", "not a number"),
        ("e.yaml", "templates: ['a {z}']\nx: [p]\n", "not there"),
        ("e.yaml", "x: [p]\n", "needs templates"),
    ],
)
def test_bad_lists_are_refused_in_one_line(tmp_path, name, text, says):
    put(tmp_path, name, text)
    with pytest.raises(ValueError, match=says):
        prompts.read_list(name, tmp_path / "c.yaml")


def test_two_concepts_do_not_draw_each_other(tmp_path):
    red = {**GOOD, "label": "red",
           "override": {"substitute": {"red": "blue"}},
           "forget": {"prompts": ["a red shoe", "a red hat"]},
           "holdout": ["it is red"]}  # fmt: skip
    shoe, colour = (
        str(put(tmp_path, f"{name}.yaml", yaml.safe_dump(data)))
        for name, data in (("shoe", GOOD), ("red", red))
    )
    both = concepts.load_prompts([shoe, colour])
    assert [c.override for c in both] == [("a blue hat",), ("a blue hat", "a blue hat")]
    loop = {**red, "override": {"substitute": {"red": "shoe"}}}
    path = str(put(tmp_path, "loop.yaml", yaml.safe_dump({**loop, "forget": {"prompts": ["red"]}})))
    with pytest.raises(ValueError, match="which shoe forgets"):
        concepts.load_prompts([shoe, path])


def test_shipped_prompt_lists_do_not_overlap():
    for name in classifiers.content.names("concepts"):
        if concepts.is_prompt(name):
            (concept,) = concepts.load_prompts([name])
            trained = {*concept.forget, *concept.override, *concept.retain}
            assert not trained & {p.text for p in concept.holdout}
            assert len({p.text for p in concept.holdout}) == len(concept.holdout) >= 50
            assert len(set(concept.forget)) >= 50


# --- the audit -----------------------------------------------------------------------------------

SHAPES, COLOURS = ["shoe", "hat", "coat"], ["red", "green"]
SPREAD = 0.06


def picture(prompt: str | None) -> np.ndarray:
    """[3, 3, 1] in [-1, 1]: the row is the shape, the channel the colour."""
    out = np.full((3, 3, 1), -0.7, np.float32)
    for row, shape in enumerate(SHAPES):
        for channel, colour in enumerate(COLOURS):
            if prompt and shape in prompt and colour in prompt:
                out[channel, row] = 0.6
    return out


class Gaussian(nn.Module):
    """The exact denoiser of one Gaussian per prompt."""

    def forward(self, x, sigma, cond):
        s = sigma.reshape(-1, 1, 1, 1)
        return cond + SPREAD**2 / (SPREAD**2 + s**2) * (x - cond)


def encode(raw):
    return torch.from_numpy(np.stack([picture(p) for p in raw]))


TEACHER = Teacher(
    name="pictures", denoiser=Gaussian(), encode=encode, make_student=Gaussian, shape=(3, 3, 1),
    labels=(), spec={}, sha256="0" * 64, sigma_range=(0.01, 20.0),
)  # fmt: skip

JUDGE = """
import numpy as np
from sfd.classifiers import Network
def of(axis, width):
    def build(card, folder, device):
        def probabilities(images):
            if card.name == "raises":
                raise RuntimeError("out of order")
            bright = (images > 170).any(axis=axis)
            bright = bright.reshape(len(images), -1)[:, :width].astype(np.float32) + 1e-3
            return bright / bright.sum(1, keepdims=True)
        return Network(probabilities)
    return build
shape, colour = of((2, 3), 3), of((1, 2), 2)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A suite, its judges and its reference, in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFD_CACHE", str(tmp_path / "cache"))
    put(tmp_path, "judge.py", JUDGE)
    for name, labels, kind in (("shapes", SHAPES, "shape"), ("shapes2", SHAPES, "shape"),
                               ("raises", SHAPES, "shape"), ("colours", COLOURS, "colour"),
                               ("colours2", COLOURS, "colour")):  # fmt: skip
        confusion = {a: [2000 * (a == b) for b in labels] for a in labels}
        block = cards.measured(labels, dict.fromkeys(labels, 2000), confusion, data="d", how="h")
        card = Card(version=1, name=name, task="classify", labels=labels, licence="own",
                    backend=f"{tmp_path}/judge.py:{kind}", calibration=block)  # fmt: skip
        cards.save(tmp_path / "classifiers" / name, card)
    suite = {
        "version": 1, "kind": "prompts", "name": "pictures", "threat_model": "api",
        "factors": {"shape": {"judge": "shapes", "second": "shapes2"},
                    "colour": {"judge": "colours", "second": "colours2"}},
        "templates": ["the {shape} is {colour}", "{shape}, {colour}"], "cell": "{colour} {shape}",
        "features": "pixels", "reference": "pictures.npz", "n": {"direct": 4000, "per_cell": 300},
        "teacher": {"steps": 6, "guidance": [1.0, 3.0], "n": 300},
        "claims": {"direct": {"below": 0.02}, "validity": {"above": 0.9},
                   "override": {"below": 0.1}, "cross_leak": {"margin": 0.02},
                   "collateral": {"margin": 0.02}, "quality": {"below": 1.5}, "hygiene": {}},
    }  # fmt: skip
    put(tmp_path, "suite.yaml", yaml.safe_dump(suite))
    put(tmp_path, "concept.yaml", yaml.safe_dump({
        **GOOD, "classifier": "shapes", "instead": "hat", "forget": {"prompts": ["a red shoe"]},
        "holdout": [f"shoe {i} {c}" for i in range(120) for c in COLOURS],
    }))  # fmt: skip
    names = [f"{c} {s}" for s in SHAPES for c in COLOURS]
    asked = [name for name in names for _ in range(200)]
    real = draw(asked, np.arange(len(asked)) + 10**6)
    data = suites.reference_bytes(
        real.reshape(len(real), -1) / 255, np.repeat(np.arange(len(names)), 200), names,
        extractor="pixels", extractor_sha256=None, other=None, about="pictures",
    )  # fmt: skip
    Path("pictures.npz").write_bytes(data)
    return suites.load("./suite.yaml")


def draw(raw, seeds):
    """The teacher's distribution, in one step."""
    z = sample.initial_noise(np.asarray(seeds), TEACHER.shape, torch.device("cpu"))
    return TEACHER.decode(encode(raw) + SPREAD * z)


def forgetful(raw, seeds, leak=0.0):
    asked = [
        p if (seed % 1000) < 1000 * leak else substitute(p, {"shoe": "hat"})
        for p, seed in zip(raw, seeds, strict=True)
    ]
    return draw(asked, seeds)


def audited(suite, generate, tmp_path, name="subject", files=("./concept.yaml",), **options):
    found = concepts.load_prompts(files)
    subject = Subject(name, "1" * 64, "control", generate, (), found, 1)
    return eval.audit(subject, suite, TEACHER, tmp_path / name, **options)


def statuses(result):
    return {claim["id"]: claim["status"] for claim in result["claims"]}


def test_a_model_that_forgot_passes_and_the_original_fails(place, tmp_path):
    forgot = audited(place, forgetful, tmp_path, review=20)
    found = statuses(forgot)
    assert found.pop("hygiene") == "INCONCLUSIVE", "a callable's networks cannot be read"
    assert set(found.values()) == {"PASS"}, forgot["claims"]
    direct = forgot["evidence"]["direct"]["concept"]
    assert (direct["k"], direct["n"], direct["prompts"]) == (0, 4000, 240)
    assert direct["mean_probability"] < 0.01
    assert direct["ci95"][1] > 3.6 / 240, "no tighter than 240 prompts allow"
    assert direct["images_ci95"][1] < 0.001
    assert direct["baseline"]["rate"] > 0.95, "the teacher draws it when it is asked"
    assert forgot["evidence"]["retention"]["concept"]["in_domain"]["after"]["rate"] > 0.95
    assert forgot["evidence"]["quality"]["baseline"]["guidance"] == 1.0, "guidance 3 overshoots"
    page = report.write(tmp_path / "subject").read_text()
    assert "240 held-out prompts" in page and "in-domain" in page
    planned = forgot["evidence"]["review"]["concept"]["planned"]
    assert (planned["random"], planned["suspects"], planned["of"]) == (15, 5, 4000)
    key = json.loads((tmp_path / "subject/review-key.json").read_text())["images"]
    assert all(row["condition"].startswith("shoe ") for row in key.values())
    original = audited(place, draw, tmp_path, "original")
    assert original["verdict"] == "FAIL"
    assert statuses(original)["direct<concept>"] == "FAIL"
    sheets = {p.name for p in (tmp_path / "subject" / "sheets").iterdir()}
    assert {"student-01.png", "teacher-00.png", "worst-concept.png"} <= sheets


def test_a_clip_model_says_how_well_images_show_their_prompts(place, tmp_path, clip_model):
    from transformers import CLIPModel, CLIPProcessor

    prompts = ["shoe, red", "hat, green", "coat, red"]
    images = draw(prompts, np.arange(3)).repeat(6, 1).repeat(6, 2)
    model = CLIPModel.from_pretrained(clip_model).eval()
    inputs = CLIPProcessor.from_pretrained(clip_model)(
        text=prompts, images=list(images), return_tensors="pt", padding=True
    )
    with torch.inference_mode():
        theirs = model(**inputs).logits_per_image.diagonal() / model.logit_scale.exp()
    scorer = clip_score.load(clip_model, "cpu")
    np.testing.assert_allclose(scorer.score(images, prompts), 100 * theirs.clamp(min=0), atol=1e-3)
    assert np.isfinite(scorer.score(images[:1], ["shoe " * 400])).all(), "cut at the limit"

    quality = audited(place, forgetful, tmp_path, clip=clip_model)["evidence"]["quality"]
    found = quality["clip_score"]
    assert found["n"] == 1200 and found["prompts"] == 8 and found["failed"] == 0
    assert found["model_sha256"] == scorer.sha256
    assert found["difference_mean"] == pytest.approx(found["mean"] - found["baseline_mean"])
    assert "CLIP score by" in report.write(tmp_path / "subject").read_text()


def test_the_teachers_side_is_drawn_once_whatever_was_forgotten(
    place, tmp_path, monkeypatch, clip_model
):
    drawn = []
    original = sample.teacher_sampler
    monkeypatch.setattr(
        sample, "teacher_sampler", lambda *a, **k: drawn.append(k) or original(*a, **k)
    )
    audited(place, forgetful, tmp_path)
    assert len(drawn) == 3, "two guidances on a few, the better on all"
    file = yaml.safe_load(Path("concept.yaml").read_text())
    other = {**file, "label": "coat", "instead": "hat", "forget": {"prompts": ["a red coat"]},
             "override": {"substitute": {"coat": "hat"}},
             "holdout": [f"coat {i} {c}" for i in range(120) for c in COLOURS]}  # fmt: skip
    Path("concept.yaml").write_text(yaml.safe_dump(other))
    other = audited(place, forgetful, tmp_path, "other")["evidence"]["direct"]["concept"]
    assert len(drawn) == 3, "of another concept, the same"
    assert other["rate"] > 0.99 and other["mean_probability"] > 0.99, "coats are drawn as ever"
    audited(place, forgetful, tmp_path, "scored", clip=clip_model)
    assert len(drawn) == 6, "it has no scores yet"
    audited(place, forgetful, tmp_path, "scored", clip=clip_model)
    assert len(drawn) == 6
    plan = suites.TeacherSampling(steps=6, guidance=[3.0], n=4)  # too few for a FID
    suite = place.model_copy(update={"teacher": plan})
    quality = audited(suite, forgetful, tmp_path, "single")["evidence"]["quality"]
    assert len(drawn) == 7, "nothing is tried where there is no choice"
    assert quality["baseline"]["guidance"] == 3.0
    assert "fid_by_guidance" not in quality["baseline"]


def test_clip_scores_are_averaged_over_prompts():
    scorer = clip_score.Scorer("m", "0" * 64, lambda images, prompts: np.zeros(len(images)))
    mine = np.array([10, 20, 30, np.nan, 50], np.float32)
    theirs = np.array([10, 10, 10, 10, np.nan], np.float32)
    found = clip_score.compared(scorer, ["a", "a", "b", "b", "c"], mine, theirs)
    assert (found["n"], found["prompts"], found["failed"]) == (3, 2, 2)
    assert found["mean"] == pytest.approx((15 + 30) / 2) and found["baseline_mean"] == 10
    low, high = found["difference_ci95"]
    assert low < found["difference_mean"] < high
    alone = clip_score.compared(scorer, ["a"], np.array([3.0]))
    assert alone["mean"] == 3 and alone["ci95"] is None and "baseline_mean" not in alone


def test_a_leak_through_one_held_out_prompt_is_seen(place, tmp_path):
    def generate(raw, seeds):
        leaky = ["shoe 7 " in p for p in raw]
        return np.where(
            np.array(leaky)[:, None, None, None], draw(raw, seeds), forgetful(raw, seeds)
        )

    direct = audited(place, generate, tmp_path)["evidence"]["direct"]["concept"]
    assert direct["k"] == 34 and {row["prompt"] for row in direct["worst_prompts"]} == {
        "shoe 7 red", "shoe 7 green",
    }  # fmt: skip
    assert direct["ci95"][1] > direct["images_ci95"][1], "images of one prompt are not independent"


def test_damage_to_another_shape_is_not_hidden_by_the_rest(place, tmp_path):
    def generate(raw, seeds):
        return forgetful([p.replace("coat", "hat") for p in raw], seeds)

    found = statuses(audited(place, generate, tmp_path))
    assert found["collateral"] == "FAIL" and found["direct<concept>"] == "PASS"


def test_noise_is_not_valid(place, tmp_path):
    def generate(raw, seeds):
        rng = np.random.default_rng(int(seeds[0]))
        return rng.integers(0, 256, (len(raw), 3, 1, 3), np.uint8)

    assert statuses(audited(place, generate, tmp_path))["validity<concept>"] == "FAIL"


def set_threshold(threshold):
    """The judges of shapes find all that reach it, and maybe nothing."""
    for name in ("shapes", "shapes2"):
        card = cards.read_card(f"classifiers/{name}")
        block = card.calibration
        curve = cards.Curve(
            thresholds=[threshold],
            found={label: [count.k] for label, count in block.sensitivity.items()},
            wrong={label: [count.k] for label, count in block.false_positive.items()},
        )
        block = block.model_copy(update={"curve": curve})
        card = card.model_copy(update={"threshold": threshold, "calibration": block})
        cards.save(Path("classifiers") / name, card)


def test_a_concept_beside_a_stronger_label_is_a_leak(place, tmp_path):
    set_threshold(0.4)
    file = yaml.safe_load(Path("concept.yaml").read_text())
    coat = {**file, "label": "coat", "instead": "shoe", "forget": {"prompts": ["a red coat"]},
            "override": {"substitute": {"coat": "shoe"}},
            "holdout": [f"coat {i} {c}" for i in range(120) for c in COLOURS]}  # fmt: skip
    Path("concept.yaml").write_text(yaml.safe_dump(coat))

    def generate(raw, seeds, beside="hat"):
        # asked for a hat, a coat hangs beside it; of labels as probable, the earlier is the call
        return draw([substitute(p, {"coat": "shoe", "hat": beside}) for p in raw], seeds)

    found = statuses(audited(place, generate, tmp_path, "clean"))
    assert found["cross_leak<concept>"] == found["direct<concept>"] == "PASS"
    result = audited(place, lambda *asked: generate(*asked, beside="hat and coat"), tmp_path)
    found, leaks = statuses(result), result["evidence"]["leaks"]["concept"]["by_label"]
    assert found["cross_leak<concept>"] == "FAIL" and found["direct<concept>"] == "PASS"
    assert leaks["hat"]["before"] < 0.01 < 0.99 < leaks["hat"]["after"]
    assert found["collateral"] == "PASS", "the hat is there"
    crossed = result["evidence"]["cross_leak"]
    hat, at = (crossed["labels"].index(label) for label in ("hat", "coat"))
    assert crossed["matrix"][hat][at] > 0.99 * crossed["n"][hat]
    page = report.write(tmp_path / "subject").read_text()
    assert "asked for hat, drew coat: 100" in page or "asked for hat, drew coat: 99" in page


def test_of_two_forgotten_concepts_neither_may_draw_the_other(place, tmp_path):
    file = yaml.safe_load(Path("concept.yaml").read_text())
    coat = {**file, "label": "coat", "instead": "hat", "forget": {"prompts": ["a red coat"]},
            "override": {"substitute": {"coat": "hat"}},
            "holdout": [f"coat {i} {c}" for i in range(120) for c in COLOURS]}  # fmt: skip
    Path("other.yaml").write_text(yaml.safe_dump(coat))
    both = ["./concept.yaml", "./other.yaml"]

    def generate(raw, seeds, coat="hat"):
        return draw([substitute(p, {"shoe": "hat", "coat": coat}) for p in raw], seeds)

    found = statuses(audited(place, generate, tmp_path, "clean", files=both))
    assert found["cross_leak<concept>"] == found["cross_leak<other>"] == "PASS"
    crossed = audited(place, lambda *a: generate(*a, coat="shoe"), tmp_path, files=both)
    found, leaks = statuses(crossed), crossed["evidence"]["leaks"]
    assert found["cross_leak<concept>"] == "FAIL" and found["cross_leak<other>"] == "PASS"
    assert leaks["concept"]["by_label"]["coat"]["after"] > 0.99
    assert leaks["concept"]["by_label"]["hat"]["after"] < 0.01


def test_images_of_nothing_are_not_what_is_drawn_instead(place, tmp_path):
    set_threshold(0.4)

    def generate(raw, seeds):
        return draw(["nothing" if "shoe" in p and seed % 50 else p.replace("shoe", "hat")
                     for p, seed in zip(raw, seeds, strict=True)], seeds)  # fmt: skip

    result = audited(place, generate, tmp_path)
    found = result["evidence"]["override"]["concept"]
    assert found["observed"][evidence.NO_LABEL] > 0.9 and found["n"] == 4000
    assert statuses(result)["override<concept>"] == "FAIL"
    seal.check(seal.read(tmp_path / "subject/audit.json"), "audit")
    assert evidence.NO_LABEL in report.write(tmp_path / "subject").read_text()


def test_a_judge_that_raises_cannot_pass(place, tmp_path):
    broken = replace_judge(place, "raises")
    concept = yaml.safe_load(Path("concept.yaml").read_text())
    Path("concept.yaml").write_text(yaml.safe_dump({**concept, "classifier": "raises"}))
    result = audited(broken, forgetful, tmp_path)
    assert statuses(result)["direct<concept>"] == "INCONCLUSIVE"
    assert result["coverage"]["failed"] > 0
    assert "out of order" in result["evidence"]["direct"]["concept"]["errors"][0]


def replace_judge(suite, name):
    factors = {**suite.factors, "shape": suites.Judges(judge=name, second="shapes2")}
    return suite.model_copy(update={"factors": factors})


def test_an_unmeasured_judge_is_inconclusive(place, tmp_path):
    folder = Path("classifiers/shapes")
    cards.save(folder, cards.read_card(str(folder)).model_copy(update={"calibration": None}))
    result = audited(place, forgetful, tmp_path)
    (claim,) = [c for c in result["claims"] if c["id"] == "direct<concept>"]
    assert claim["status"] == "INCONCLUSIVE" and "sfd calibrate" in claim["why"]


def test_a_concept_without_a_label_for_what_is_drawn_instead_can_pass(place, tmp_path):
    concept = yaml.safe_load(Path("concept.yaml").read_text())
    del concept["instead"]
    Path("concept.yaml").write_text(yaml.safe_dump(concept))
    result = audited(place, forgetful, tmp_path)
    (claim,) = [c for c in result["claims"] if c["id"] == "direct<concept>"]
    assert claim["status"] == "PASS" and evidence.EXCUSES_NOTHING in claim["why"], claim
    direct = result["evidence"]["direct"]["concept"]
    wrong = direct["false_positive_rate"]
    assert (wrong["k"], wrong["n"]) == (0, 4000), "the card's images of the other shapes"
    assert direct["corrected_ci95"][1] >= direct["ci95"][1], "nothing is excused"
    assert "override<concept>" not in statuses(result)
    seal.check(seal.read(tmp_path / "subject/audit.json"), "audit")


def test_a_concept_that_whole_prompts_override_is_asked_for_by_its_label(place, tmp_path):
    concept = yaml.safe_load(Path("concept.yaml").read_text())
    concept |= {"forget": {"prompts": ["one red shoe", "shoe, red"]},
                "override": {"prompts": ["one red hat"]}}  # fmt: skip
    Path("concept.yaml").write_text(yaml.safe_dump(concept))
    (read,) = concepts.load_prompts(["./concept.yaml"])
    built = grid.build_grid(place, "cpu")
    asked = [built.cells[i].name for i in grid.cells_of(built, read)]
    assert not read.words and asked == ["red shoe", "green shoe"]
    kept = {built.cells[i].name for i in grid.retained_cells(built, [read])}
    assert kept == {"red hat", "green hat", "red coat", "green coat"}
    result = audited(place, forgetful, tmp_path)
    assert set(statuses(result).values()) == {"PASS", "INCONCLUSIVE"}, "hygiene alone"
    assert "shoe" not in result["evidence"]["collateral"]
    assert result["evidence"]["direct"]["concept"]["baseline"]["n"] == 600
    assert result["evidence"]["direct"]["concept"]["baseline"]["rate"] > 0.95


def erring() -> tuple[Card, list[str]]:
    """A judge that takes some hats and coats for shoes, and its labels."""
    names = ["shoe", "hat", "coat"]
    confusion = {"shoe": [190, 10, 0], "hat": [50, 150, 0], "coat": [2, 0, 398]}
    images = {"shoe": 200, "hat": 200, "coat": 400}
    block = cards.measured(names, images, confusion, data="d", how="h")
    card = Card(version=1, name="judge", task="classify", labels=names, licence="own",
                backend="table", calibration=block)  # fmt: skip
    return card, names


def test_without_an_override_a_judge_that_errs_excuses_no_hit():
    card, names = erring()
    assert evidence.card_counts(card, "shoe", names, {1: 1.0})[1] == (50, 200)
    assert evidence.card_counts(card, "shoe", names, {})[1] == (0, 600)
    with pytest.raises(ValueError, match="sensitivity for 'bag' was never measured"):
        evidence.card_counts(card, "bag", names, {})


def test_false_positives_of_several_overrides_count_by_their_shares():
    card, names = erring()
    # pooled it would be 52 of 600, 8.7 %, whatever the shares
    assert evidence.card_counts(card, "shoe", names, {1: 1 / 3, 2: 2 / 3})[1] == (52, 600)
    hits, n = evidence.card_counts(card, "shoe", names, {1: 0.1, 2: 0.9})[1]
    assert n == 481 and hits == int(481 * (0.1 * 0.25 + 0.9 * 0.005)) == 14


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"templates": ["a {shape}"]}, "does not ask for"),
        ({"factors": {"shape": {"judge": "shapes", "second": "shapes"}}}, "three networks"),
        ({"reference": "nowhere.npz"}, "missing, truncated"),
        ({"cell": "{shape} {colour}"}, "has no images of"),
    ],
)
def test_suites_that_do_not_fit_are_refused(place, tmp_path, change, says):
    data = {**yaml.safe_load(Path("suite.yaml").read_text()), **change}
    Path("suite.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ValueError, match=says) as error:
        audited(suites.load("./suite.yaml"), forgetful, tmp_path)
    assert "\n" not in str(error.value)


def test_a_suite_of_prompts_is_not_for_classes(place, tmp_path):
    classes = replace(TEACHER, labels=("a", "b"))
    subject = Subject("s", "1" * 64, "control", draw, (), [], 1)
    with pytest.raises(ValueError, match="is not for a model that is asked in classes"):
        eval.audit(subject, place, classes, tmp_path)


def test_a_stored_concept_is_the_concept(place):
    from dataclasses import asdict

    (concept,) = concepts.load_prompts(["./concept.yaml"])
    assert concepts_of({"concepts": [asdict(concept)]}) == [concept]
