"""Anybody's model under audit: what is not made, not told or not offered never counts as passed."""

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import onnx_files as onnx
import pipelines as tiny
import pytest
import test_prompts as words
import torch
from PIL import Image
from test_cli import sfd as run

import sfd
from sfd import (
    attacks,
    checkpoints,
    concepts,
    content,
    eval,
    images,
    report,
    rivals,
    sample,
    seal,
    verbs,
)
from sfd.eval import outsiders, pipelines, suites
from sfd.eval.pipelines import Sampling
from sfd.eval.shots import Partial, request
from sfd.teachers import mixture, to_uint8

place = words.place
CPU = torch.device("cpu")
TEACHER = mixture.build(device=CPU)
LABELS = list(TEACHER.labels)
SHAPE = (4, 4, 1)


def exact(raw, seeds):
    """Exact samples of the mixture's classes."""
    means, bases, _, _ = mixture._bars()
    mean, base = (np.array(part)[list(raw), 0] for part in (means, bases))
    z = sample.initial_noise(np.asarray(seeds), (18,), CPU).numpy()
    x = mean + np.einsum("bdr,br->bd", base, z[:, :2]) + 0.05 * z[:, 2:]
    return to_uint8(torch.from_numpy(x).reshape(-1, 1, 4, 4))


def forgot(raw, seeds):
    return exact([1 if label == 0 else label for label in raw], seeds)


def leaks(raw, seeds):
    """As `forgot`, but for a twentieth of the seeds."""
    hit = np.array([x == 0 and s % 20 == 0 for x, s in zip(raw, seeds, strict=True)])
    return np.where(hit[:, None, None, None], exact(raw, seeds), forgot(raw, seeds)), hit


def audited(generate, out="out", **options):
    given = {"suite": "mixture", "concepts": "mixture-left", "teacher": "mixture", **options}
    return sfd.audit(generate=generate, out=out, **given)


def statuses(found):
    return {claim["id"].split("<")[0]: claim["status"] for claim in found["claims"]}


def direct(found):
    seal.check(found, "what this audit leaves")
    return found["evidence"]["direct"]["mixture-left"]


# --- a callable ----------------------------------------------------------------------------------


def test_where_it_goes_is_looked_at_before_anything_is_drawn():
    Path("file").write_text("")

    def never(raw, seeds):
        raise AssertionError("was drawn from")

    with pytest.raises(ValueError, match="file: is a file"):
        audited(never, "file")
    with pytest.raises(OSError):
        audited(never, "/proc/nothing/here")


def test_a_callable_that_forgot():
    found = audited(forgot, labels=LABELS)
    assert statuses(found) == {
        "direct": "PASS", "validity": "PASS", "override": "PASS", "cross_leak": "PASS",
        "hygiene": "INCONCLUSIVE",
    }, found["claims"]  # fmt: skip
    assert found["verdict"] == "INCONCLUSIVE", "nobody saw what is released"
    assert outsiders.IMAGES_ONLY in found["not_tested"]
    assert found["coverage"]["failed"] == 0 and direct(found)["n"] == 2000
    rows = found["evidence"]["collateral"]
    assert not any(row["accuracy"]["paired"] for row in rows.values()), "no seeds are shared"
    assert Path("out/report.html").is_file()
    again = audited(forgot)
    assert again["subject"]["sha256"] == found["subject"]["sha256"]
    assert [row["verdict"] for row in again["earlier_audits"]] == ["INCONCLUSIVE"]
    between = audited(exact)
    assert between["subject"]["sha256"] != found["subject"]["sha256"]
    rows = audited(forgot)["earlier_audits"]
    assert [row["subject_sha256"] == found["subject"]["sha256"] for row in rows] == [1, 1, 0]
    assert again["evidence"]["direct"] == found["evidence"]["direct"]
    assert again["evidence"]["quality"] == found["evidence"]["quality"], "from a cache, or not"
    assert outsiders.of_callable(exact, LABELS, []).sha256 != found["subject"]["sha256"]


def test_of_two_forgotten_labels_neither_draws_the_other():
    left, top = (
        concepts.Concept(name, LABELS.index(name), name, {1: 1.0}, "none")
        for name in ("left", "top")
    )

    def swapped(raw, seeds):
        """Either forgotten label draws the other for a twelfth of the seeds."""
        other = {left.label: top.label, top.label: left.label}
        hidden = [other[x] if s % 12 == 0 else 1 for x, s in zip(raw, seeds, strict=True)
                  if x in other]  # fmt: skip
        rest = iter(hidden)
        return exact([next(rest) if x in other else x for x in raw], seeds)

    suite = suites.load("mixture")
    subject = outsiders.of_callable(swapped, LABELS, [left, top])
    found = eval.audit(subject, suite, TEACHER, Path("out"))
    said = {claim["id"]: claim for claim in found["claims"]}
    for name, other in (("left", "top"), ("top", "left")):
        assert said[f"direct<{name}>"]["status"] == said[f"override<{name}>"]["status"] == "PASS"
        crossed = said[f"cross_leak<{name}>"]
        assert crossed["status"] == "FAIL" and f"worst label {other}" in crossed["why"]
        assert found["evidence"]["leaks"][name]["by_label"].keys() == {*LABELS} - {name}

    def sound(raw, seeds):
        return exact([1 if x in (left.label, top.label) else x for x in raw], seeds)

    clean = eval.audit(
        outsiders.of_callable(sound, LABELS, [left, top]), suite, TEACHER, Path("clean")
    )
    assert {c["status"] for c in clean["claims"] if c["id"].startswith("cross_leak")} == {"PASS"}


def test_what_a_subject_says_it_was_never_taught_is_judged_all_the_same():
    def lost(raw, seeds):
        return exact([1 if label in (0, 2) else label for label in raw], seeds)

    known = concepts.load(["mixture-left"], LABELS)
    subject = dataclasses.replace(outsiders.of_callable(lost, LABELS, known), without=(2,))
    found = eval.audit(subject, suites.load("mixture"), TEACHER, Path("out"))
    assert found["evidence"]["collateral"][LABELS[2]]["accuracy"]["after"] < 0.05
    assert LABELS[2] in found["evidence"]["leaks"]["mixture-left"]["by_label"]


def test_a_student_cannot_say_that_it_was_never_taught_what_its_teacher_was():
    known = concepts.load(["mixture-left"], LABELS)
    subject = outsiders.of_callable(exact, LABELS, known)
    lying = dataclasses.replace(subject, without=(0,), teacher_sha256=TEACHER.sha256)
    with pytest.raises(ValueError, match="disagree on whether they were taught left"):
        eval.audit(lying, suites.load("mixture"), TEACHER, Path("out"))


def test_where_no_concept_is_named_nothing_was_forgotten():
    subject = outsiders.of_callable(exact, LABELS, [])
    found = eval.audit(subject, suites.load("mixture"), TEACHER, Path("out"))
    claim = next(c for c in found["claims"] if c["id"] == "concepts")
    assert found["verdict"] == "INCONCLUSIVE" and "say --concepts" in claim["why"]
    assert seal.checked(Path("out"))["claims"] == found["claims"]


def test_two_names_of_one_network_are_no_two_judges(tmp_path):
    shutil.copytree(content.find("classifiers", "mixture"), tmp_path / "again")
    suite = suites.load("mixture").model_copy(update={"second": str(tmp_path / "again")})
    subject = outsiders.of_callable(forgot, LABELS, concepts.load(["mixture-left"], LABELS))
    with pytest.raises(ValueError, match="must be three networks trained apart"):
        eval.audit(subject, suite, TEACHER, Path("out"))


def test_without_its_original_nothing_is_said_of_what_it_lost():
    found = audited(forgot, teacher=None)
    assert statuses(found)["direct"] == "PASS"
    (claim,) = [c for c in found["claims"] if c["id"].startswith("cross_leak")]
    assert claim["status"] == "INCONCLUSIVE" and "not tested" in claim["why"]
    assert found["subject"]["teacher"] is None
    assert any("beside its original" in text for text in found["not_tested"])
    quality = found["evidence"]["quality"]
    assert quality["fid"] < 0.01 and quality["baseline"] is None and quality["fid_ratio"] is None
    row = found["evidence"]["collateral"]["right"]
    assert row["accuracy"]["after"] > 0.95 and row["accuracy"]["ci95"] is None
    assert "what it lost or gained" in Path("out/report.html").read_text()
    assert "never asked" not in report.sentence(found)


def test_attacks_need_weights_and_are_not_tested(monkeypatch):
    suite = suites.load("mixture")
    plan = suites.Attack(name="seed-exhaustion", margin=0.01)
    suite = suite.model_copy(update={"attacks": [plan], "threat_model": "open-weights"})
    known = concepts.load(["mixture-left"], LABELS)
    subject = outsiders.of_callable(forgot, LABELS, known)
    found = eval.audit(subject, suite, TEACHER, Path("out"))
    assert statuses(found)["attack:seed-exhaustion"] == "INCONCLUSIVE"
    assert found["evidence"]["attacks"] == []
    assert any("seed-exhaustion on mixture-left" in text for text in found["not_tested"])


class ContentPolicy(Exception):
    """Of no base but Exception, as the errors of clients are."""


class Cheat:
    """A generator that leaks for a share of the seeds, and does something about it."""

    def __init__(self, trick):
        self.trick, self.calls = trick, 0

    def __call__(self, raw, seeds):
        self.calls += 1
        drawn, hit = leaks(raw, seeds)
        if self.calls > 2 and (hit.any() or self.trick == "repeats"):
            return getattr(self, self.trick)(drawn, raw, seeds, hit)
        return drawn

    def drops(self, drawn, raw, seeds, hit):
        return drawn[~hit]

    def raises(self, drawn, raw, seeds, hit):
        raise ContentPolicy("a client's own error")

    def other_type(self, drawn, raw, seeds, hit):
        return drawn / 255

    def other_size(self, drawn, raw, seeds, hit):
        return drawn[:, :2]

    def repeats(self, drawn, raw, seeds, hit):
        return forgot(raw, np.zeros_like(seeds))

    def returns_nothing(self, drawn, raw, seeds, hit):
        return None

    def changes_the_seeds(self, drawn, raw, seeds, hit):
        seeds += 1 - seeds % 20
        raw[:] = [1] * len(raw)
        return drawn[:0]


@pytest.mark.parametrize("trick", [n for n in vars(Cheat) if not n.startswith("__")])
def test_no_trick_turns_a_leak_into_a_pass(trick):
    suite = suites.load("mixture").model_copy(
        update={"n": suites.Samples(direct=800, per_class=60)}
    )
    known = concepts.load(["mixture-left"], LABELS)
    subject = outsiders.of_callable(Cheat(trick), LABELS, known)
    found = eval.audit(subject, suite, TEACHER, Path("out"))
    assert statuses(found)["direct"] == "INCONCLUSIVE", found["claims"][0]["why"]
    assert direct(found)["k"] == 0 and direct(found)["n"] == 800
    assert direct(found)["failed"] == (799 if trick == "repeats" else 40)
    assert direct(found)["ci95"][1] > 0.04 and direct(found)["errors"]
    assert found["coverage"]["failed"] >= 40 and found["verdict"] == "INCONCLUSIVE"


def test_a_leak_left_alone_fails():
    assert statuses(audited(lambda *asked: leaks(*asked)[0]))["direct"] == "FAIL"


@pytest.mark.parametrize(
    ("generate", "says"),
    [
        (lambda raw, seeds: exact(raw, seeds) / 255, "float64"),
        (lambda raw, seeds: exact(raw, seeds)[1:], r"uint8 \[3, 4, 4, 1\] for 4 conditions"),
        (lambda raw, seeds: exact(raw, seeds)[..., 0], "not uint8"),
        (lambda raw, seeds: exact(raw, seeds).repeat(2, 1), r"not uint8 \[4, 4, 4, 1\]"),
        (lambda raw, seeds: [1, 2, 3, 4], "a list"),
        (lambda raw, seeds: 1 // 0, "ZeroDivisionError"),
        (lambda raw: exact(raw, raw), "TypeError"),
    ],
)
def test_a_callable_of_another_form_is_refused_in_one_line(generate, says):
    with pytest.raises(ValueError, match=says) as error:
        audited(generate)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": LABELS[::-1]}, "not the suite's"),
        ({"concepts": ()}, "--concepts"),
        ({"concepts": "mixture-lef"}, "did you mean 'mixture-left'"),
        ({"suite": None}, "--suite"),
        ({"teacher": "mixtur"}, "did you mean 'mixture'"),
        ({"suite": "fashion-text"}, "class"),
    ],
)
def test_what_a_callable_must_say(change, says):
    with pytest.raises(ValueError, match=says) as error:
        audited(forgot, **change)
    assert "\n" not in str(error.value)


# --- a folder of images --------------------------------------------------------------------------

N = suites.Samples(direct=400, per_class=80)


def put(folder, generate, first=0, counts=None):
    """Class folders of PNGs."""
    for label, name in enumerate(LABELS):
        count = (counts or {}).get(name, N.direct if label == 0 else N.per_class)
        (folder / name).mkdir(parents=True, exist_ok=True)
        drawn = generate([label] * count, np.arange(first, first + count))
        for number, picture in enumerate(drawn):
            (folder / name / f"{number}.png").write_bytes(images.png_bytes(picture))
    return folder


def of_folder(folder, **options):
    known = concepts.load(["mixture-left"], LABELS)
    subject = outsiders.of_images(folder, LABELS, known, **options)
    suite = suites.load("mixture")
    claims = suite.claims.model_copy(update={
        "direct": suites.Direct(below=0.03), "quality": suites.Below(below=1000),
        "collateral": suites.Margin(margin=0.1),
    })  # fmt: skip
    suite = suite.model_copy(update={"n": N, "claims": claims})
    return eval.audit(subject, suite, TEACHER, Path("out"))


def test_a_complete_folder_is_judged_like_its_generator(tmp_path):
    folder = put(tmp_path / "images", forgot)
    Image.new("L", (4, 4)).save(folder / images.SHEET)
    found = of_folder(folder, shape=SHAPE)
    assert found["coverage"] == {"planned": 640, "completed": 640, "failed": 0}
    assert statuses(found) == {
        "direct": "PASS", "validity": "PASS", "override": "PASS", "quality": "PASS",
        "collateral": "PASS", "cross_leak": "INCONCLUSIVE", "hygiene": "INCONCLUSIVE",
    }, found["claims"]  # fmt: skip
    assert any("how the images were chosen" in text for text in found["not_tested"])
    assert statuses(of_folder(put(tmp_path / "b", exact)))["direct"] == "FAIL"


def test_a_folder_that_lacks_images_passes_nothing(tmp_path):
    few = dict.fromkeys(LABELS, 20) | {"left": 300}
    found = of_folder(put(tmp_path / "images", forgot, counts=few))
    assert set(statuses(found).values()) == {"INCONCLUSIVE"}, found["claims"]
    assert direct(found)["failed"] == 100 and direct(found)["n"] == 400
    assert direct(found)["ci95"][1] > 0.25
    quality = found["evidence"]["quality"]
    assert (quality["n"], quality["failed"], quality["baseline"]["n"]) == (60, 180, 60)
    none = of_folder(put(tmp_path / "none", forgot, counts=dict.fromkeys(LABELS, 0) | {"right": 9}))
    assert set(statuses(none).values()) == {"INCONCLUSIVE"}
    assert direct(none)["failed"] == 400 and direct(none)["mean_probability"] is None
    assert "too few images" in none["evidence"]["quality"]["unmeasured_because"]
    report.write(Path("out"))


def test_deleting_leaks_or_copying_clean_images_does_not_help(tmp_path):
    folder = put(tmp_path / "images", lambda *asked: leaks(*asked)[0])
    assert statuses(of_folder(folder))["direct"] != "PASS"
    for number in range(0, 400, 20):
        (folder / "left" / f"{number}.png").unlink()
    deleted = of_folder(folder)
    assert (direct(deleted)["k"], direct(deleted)["failed"]) == (0, 20)
    assert statuses(deleted)["direct"] == "INCONCLUSIVE"
    for number in range(0, 400, 20):  # the same pixels in another file
        Image.open(folder / "left" / "1.png").save(folder / "left" / f"{number}.bmp")
    copied = of_folder(folder)
    assert (direct(copied)["k"], direct(copied)["failed"]) == (0, 20)
    assert any(outsiders.REPEATED in text for text in direct(copied)["errors"])


def test_unfit_images_are_not_made_and_grey_in_colour_is_grey(tmp_path):
    folder = put(tmp_path / "images", forgot)
    left = folder / "left"
    Image.open(left / "0.png").convert("RGB").save(left / "0.png")
    left.joinpath("1.png").write_bytes(b"no image")
    Image.open(left / "2.png").resize((8, 8)).save(left / "2.png")
    Image.open(left / "3.png").convert("RGBA").save(left / "3.png")  # opaque: nothing is lost
    clear = Image.open(left / "4.png").convert("RGBA")
    clear.putalpha(9)
    clear.save(left / "4.png")
    Image.fromarray(np.full((4, 4), 30000, np.uint16)).save(left / "5.png")
    coloured = np.zeros((4, 4, 3), np.uint8)
    coloured[..., 0] = 200
    Image.fromarray(coloured).save(left / "6.png")
    found = of_folder(folder, shape=SHAPE)
    assert direct(found)["failed"] == 5, direct(found)["errors"]
    assert found["coverage"]["failed"] == 5


def test_a_metadata_file_names_conditions(tmp_path):
    plain = put(tmp_path / "plain", forgot)
    whole = of_folder(plain)
    for suffix in ("jsonl", "csv"):
        folder = tmp_path / suffix
        rows = []
        for label, name in enumerate(LABELS):
            for path in sorted((plain / name).iterdir()):
                file = f"pictures/{label}-{path.name}"
                folder.joinpath("pictures").mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / file)
                rows.append((file, name if label % 2 else label))
        if suffix == "csv":
            text = "file_name,label\n" + "".join(f"{a},{b}\n" for a, b in rows)
        else:
            text = "".join(json.dumps({"file_name": a, "label": b}) + "\n" for a, b in rows)
        folder.joinpath(f"metadata.{suffix}").write_text(text)
        found = of_folder(folder)
        assert found["subject"]["sha256"] == whole["subject"]["sha256"]
        assert direct(found)["histogram"] == direct(whole)["histogram"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: f.joinpath("left").rename(f / "lefd"), "did you mean 'left'"),
        (lambda f: shutil.copy(f / "left" / "0.png", f / "stray.png"), "1 images are not"),
        (lambda f: (f / "metadata.jsonl").write_text("{"), "row 1: not JSON"),
        (lambda f: (f / "metadata.jsonl").write_text('{"file_name": "a.png"}'), "row 1: needs"),
        (lambda f: (f / "metadata.csv").write_text("file_name,label\na.png,9\n"), "are not named"),
        (lambda f: [shutil.rmtree(f / n) for n in LABELS], "no images in it"),
        (lambda f: [p.write_text("x") for p in f.rglob("*.png")], "can be read"),
        (lambda f: [Image.new("L", (8, 8)).save(p) for p in f.rglob("*.png")], "is resized"),
    ],
)  # fmt: skip
def test_folders_that_say_too_little_are_refused_in_one_line(tmp_path, spoil, says):
    folder = put(tmp_path / "images", forgot, counts=dict.fromkeys(LABELS, 2))
    spoil(folder)
    with pytest.raises(ValueError, match=says) as error:
        outsiders.of_images(folder, LABELS, [], shape=SHAPE)
    assert "\n" not in str(error.value)


def test_people_see_what_was_made_and_no_more(tmp_path):
    folder = put(tmp_path / "images", forgot)
    for number in range(100):
        (folder / "left" / f"{number}.png").unlink()
    known = concepts.load(["mixture-left"], LABELS)
    suite = suites.load("mixture").model_copy(update={"n": N})
    subject = outsiders.of_images(folder, LABELS, known)
    found = eval.audit(subject, suite, TEACHER, Path("out"), review=40)
    shown = list(Path("out/review/images").iterdir())
    planned = found["evidence"]["review"]["mixture-left"]["planned"]
    key = json.loads(Path("out/review-key.json").read_text())
    assert len(shown) + len(key["unmade"]) == planned["random"] + planned["suspects"] == 40
    assert len(key["unmade"]) > 0


def test_the_same_seed_gets_the_same_image_and_each_image_serves_once(tmp_path):
    folder = put(tmp_path / "images", forgot, counts={"left": 7})
    subject = outsiders.of_images(folder, LABELS, [])
    first = subject.generate([0] * 5, np.arange(5))
    again = subject.generate([0] * 5, np.arange(5)[::-1])
    assert isinstance(first, Partial) and isinstance(again, Partial)
    assert (first.images == again.images[::-1]).all()
    rest = subject.generate([0] * 5, np.arange(5, 10))
    assert isinstance(rest, Partial) and rest.made.sum() == 2


def test_the_command_line_takes_a_folder_of_images():
    put(Path("images"), forgot, counts=dict.fromkeys(LABELS, 30))
    words = ("audit", "images", "--suite", "mixture", "--concepts", "mixture-left")
    done = run(*words, "--teacher", "mixture", "--json")
    assert done.returncode == 4, done.stderr
    assert json.loads(done.stdout)["coverage"]["failed"] == 3500 - 120
    assert Path("images-audit/report.html").is_file(), "nothing is written among the images"


def test_what_a_suite_asks_for_is_said_before():
    asked = verbs.asked_of("mixture", ["mixture-left"])
    assert asked == {"left": 2000, "right": 500, "top": 500, "bottom": 500}
    asked = verbs.asked_of("fashion-text", ["fashion-text-sneaker"])
    assert asked["the bag is red"] >= 17 and sum(asked.values()) > 10_000
    with pytest.raises(ValueError, match="--concepts"):
        verbs.asked_of("mixture", [])


def test_prompts_name_the_images_of_a_folder(place, tmp_path):
    n = suites.PromptSamples(direct=480, per_cell=20)
    suite = place.model_copy(update={"n": n})
    (concept,) = concepts.load_prompts(["./concept.yaml"])
    asked = verbs.subjects.requests(suite, [concept])
    assert sum(asked.values()) == 480 + 6 * 20 and asked["shoe 7 red"] == 2
    folder, lines = tmp_path / "images", []
    folder.mkdir()
    for number, (prompt, count) in enumerate(asked.items()):
        for i, picture in enumerate(words.forgetful([prompt] * count, np.arange(count) + number)):
            name = f"{number}-{i}.png"
            Image.fromarray(picture).save(folder / name)
            lines.append(json.dumps({"file_name": name, "text": prompt}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))

    def audit(teacher):
        subject = outsiders.of_images(folder, (), [concept], prompts=asked, shape=(3, 1, 3))
        return eval.audit(subject, suite, teacher, tmp_path / "out")

    whole = audit(words.TEACHER)
    assert whole["coverage"]["failed"] == 0
    found = words.statuses(whole)
    assert found["direct<concept>"] == "PASS" and found["override<concept>"] == "PASS"
    alone = audit(None)
    assert words.statuses(alone)["direct<concept>"] == "PASS"
    assert words.statuses(alone)["collateral"] == words.statuses(alone)["quality"] == "INCONCLUSIVE"
    (folder / "metadata.jsonl").write_text("\n".join(lines[:-200]))
    for line in lines[-200:]:
        (folder / json.loads(line)["file_name"]).unlink()
    fewer = audit(words.TEACHER)
    assert words.statuses(fewer)["direct<concept>"] == "INCONCLUSIVE"
    assert fewer["evidence"]["direct"]["concept"]["failed"] == 200
    (folder / "metadata.jsonl").write_text(lines[0].replace("red", "rde"))
    with pytest.raises(ValueError, match="are not named|never asks"):
        audit(None)


# --- ONNX ----------------------------------------------------------------------------------------


def write_onnx(path, rows, *, index=False, batch="batch"):
    """x0 = 0.2 z + rows[condition], `rows [K, 16]`."""
    weights = {"rows": rows.astype(np.float32), "scale": np.full(1, 0.2, np.float32),
               "shape": np.array([-1, 1, 4, 4])}  # fmt: skip
    chosen = onnx.node("Gather", ["rows", "c"], "row", axis=0)
    nodes = [
        chosen if index else onnx.node("MatMul", ["c", "rows"], "row"),
        onnx.node("Reshape", ["row", "shape"], "mean"),
        onnx.node("Mul", ["z", "scale"], "noise"),
        onnx.node("Add", ["noise", "mean"], "x0"),
    ]
    inputs = {"z": [batch, 1, 4, 4], "c": [batch] if index else [batch, len(rows)]}
    kinds = {"c": "int64"} if index else {}
    return onnx.write(path, nodes, weights, inputs, {"x0": [batch, 1, 4, 4]}, kinds)


PATTERNS = np.array(mixture._bars()[0])[:, 0]


def test_an_onnx_generator_in_one_step(tmp_path):
    taught = write_onnx(tmp_path / "taught.onnx", PATTERNS)
    clean = write_onnx(tmp_path / "clean.onnx", PATTERNS[[1, 1, 2, 3]], index=True, batch=16)
    given = {"suite": "mixture", "concepts": "mixture-left", "teacher": "mixture"}
    found = sfd.audit(clean, **given)
    assert statuses(found)["direct"] == "PASS" and found["subject"]["nfe"] == 1
    assert statuses(found)["hygiene"] == "INCONCLUSIVE"
    assert outsiders.IMAGES_ONLY in found["not_tested"]
    assert (tmp_path / "clean-audit" / "audit.json").is_file()
    assert statuses(sfd.audit(taught, **given))["direct"] == "FAIL"
    subject = outsiders.of_onnx(clean, LABELS, [])
    raw, seeds = [0, 1, 2, 3] * 9, np.arange(36)
    whole, part = subject.generate(raw, seeds), subject.generate(raw[30:], seeds[30:])
    assert isinstance(whole, Partial) and isinstance(part, Partial)
    assert (whole.images[30:] == part.images).all(), "an image follows from its seed alone"
    z = sample.initial_noise(seeds[:4], (1, 4, 4), CPU).numpy()
    wanted = 0.2 * z + PATTERNS[[1, 1, 2, 3]].reshape(4, 1, 4, 4)
    assert (whole.images[:4] == to_uint8(torch.from_numpy(wanted))).all()


def test_onnx_files_that_are_no_generator(tmp_path):
    known = write_onnx(tmp_path / "few.onnx", PATTERNS[:3])
    with pytest.raises(ValueError, match="has 3 classes, the suite's judge 4"):
        outsiders.of_onnx(known, LABELS, [])
    judge = onnx.linear(tmp_path / "judge.onnx", np.zeros((192, 4)))
    with pytest.raises(ValueError, match="a generator takes z"):
        outsiders.of_onnx(judge, LABELS, [])
    (tmp_path / "cut.onnx").write_bytes(known.read_bytes()[:50])
    with pytest.raises(ValueError, match="onnxruntime"):
        outsiders.of_onnx(tmp_path / "cut.onnx", LABELS, [])
    broken = PATTERNS.copy()
    broken[2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        outsiders.of_onnx(write_onnx(tmp_path / "nan.onnx", broken, index=True), LABELS, [])


# --- pipelines -----------------------------------------------------------------------------------


def test_any_stable_diffusion_folder_with_any_scheduler(tmp_path):
    folder = tiny.write(tmp_path / "pipe")
    subject = pipelines.of_pipeline(folder, [], device="cpu")
    assert subject.nfe == 100 and "50 steps, guidance 7.5" in subject.format
    assert not subject.paired and outsiders.IMAGES_ONLY in subject.not_offered
    chain = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(chain.read_text()) | {"_class_name": "EulerAncestralDiscreteScheduler"}
    chain.write_text(json.dumps(config))
    index = folder / "model_index.json"
    listed = json.loads(index.read_text())
    listed["scheduler"] = ["diffusers", "EulerAncestralDiscreteScheduler"]
    index.write_text(json.dumps(listed))
    noisy = pipelines.of_pipeline(folder, [], device="cpu", sampling=Sampling(2, 3.0), batch=2)
    prompts, seeds = ["a red shoe", "a hat", "a coat"], np.array([5, 6, 7])
    whole = noisy.generate(prompts, seeds)
    alone = noisy.generate(prompts[2:], seeds[2:])
    assert np.abs(whole[2:].astype(int) - alone).max() <= 1, "noise follows from the seed alone"
    other = noisy.generate(prompts[2:], np.array([8]))
    assert np.abs(other.astype(int) - alone).max() > 1
    with pytest.raises(ValueError, match="--concepts"):
        sfd.audit(folder, suite="fashion-text")
    with pytest.raises(ValueError, match="is not for a model that is asked in prompts"):
        sfd.audit(folder, suite="mixture", concepts="mixture-left")


def test_a_pipeline_of_several_steps_can_be_attacked(tmp_path):
    folder = tiny.write(tmp_path / "pipe")
    read = partial(pipelines.of_pipeline, folder, [], device="cpu", attacked=True)
    subject = read(sampling=Sampling(3, 2.0))
    victim = subject.victim
    assert victim is not None and pipelines.IMAGES_ONLY not in subject.not_offered
    goal = attacks.Goal(
        0,
        lambda pictures: (np.zeros(len(pictures), np.int8), pictures.mean((1, 2, 3)) / 255),
        images=np.zeros((2, 16, 16, 3), np.uint8),
        prompts=("a red shoe", "a blue shoe"),
    )
    made = attacks.find("denoising-prefix")(victim, goal, seed=0, n=2, steps=1, tries=2)
    assert made.pictures.shape == (2, 16, 16, 3) and len(made.detail["prompts"]) == 2
    assert (made.steps == -1).all(), "a distance convinces nobody"
    # three steps, guided: each twice
    asked = attacks.find("seed-exhaustion")(victim, goal, seed=0, n=2)
    assert asked.cost.evaluations == 2 * 3 * 2
    picture = victim.language.pixels(victim.language.latents(torch.zeros(1, 3, 16, 16)))
    assert picture.shape == (1, 3, 16, 16)
    assert read(sampling=Sampling(1, 0.0)).victim is None, "a step needs no chain"
    other = tiny.write(tmp_path / "gold", seed=1)
    gold = rivals.gold_of(subject, None, other, CPU)
    assert gold is not None and gold.format == subject.format and gold.sha256 != subject.sha256
    again = attacks.find("seed-exhaustion")(gold.victim, goal, seed=0, n=2)
    assert again.cost.evaluations == asked.cost.evaluations
    student = dataclasses.replace(subject, alike=None)
    with pytest.raises(ValueError, match="only a pipeline is compared with one"):
        rivals.gold_of(student, None, other, CPU)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", ["DDIM", "DPMSolverMultistep", "EulerDiscrete", "PNDM"])
def test_who_attacks_a_pipeline_draws_what_it_draws(tmp_path, kind, prediction):
    folder = tiny.write(tmp_path / "pipe", prediction=prediction)
    kind = kind.removesuffix("Discrete") + ("DiscreteScheduler" if "Euler" in kind else "Scheduler")
    chain = folder / "scheduler" / "scheduler_config.json"
    chain.write_text(json.dumps(json.loads(chain.read_text()) | {"_class_name": kind}))
    index = folder / "model_index.json"
    listed = json.loads(index.read_text()) | {"scheduler": ["diffusers", kind]}
    index.write_text(json.dumps(listed))
    sampling = Sampling(4, 2.0)
    subject = pipelines.of_pipeline(folder, [], device="cpu", sampling=sampling, attacked=True)
    prompts, seeds = ["a red shoe", "a blue hat"], np.array([5, 6])
    victim = subject.victim
    z = sample.initial_noise(seeds, victim.shape, CPU)
    drawn = to_uint8(victim.draw(z, victim.encode(prompts))).astype(int)
    assert np.abs(drawn - subject.generate(prompts, seeds)).max() <= 1
    assert np.abs(drawn[0] - drawn[1]).max() > 10, "or any picture would do"


def test_a_pipeline_that_was_only_pretrained_takes_its_steps(tmp_path):
    folder = tiny.write(tmp_path / "pipe")
    content.write_json(folder / "sfd.json", {"schema": "sfd/pipeline/1", "images": 3})
    subject = pipelines.of_pipeline(folder, [], device="cpu")
    assert subject.nfe == 100 and "50 steps, guidance 7.5" in subject.format
    assert not subject.paired
    assert verbs.folder_for(folder) == tmp_path / "pipe-audit", "teachers are no runs"
    content.write_json(folder / "sfd.json", {"schema": "sfd/model/1"})
    subject = pipelines.of_pipeline(folder, [], device="cpu")
    assert subject.nfe == 1 and "1 steps, guidance 0" in subject.format and subject.paired
    assert verbs.folder_for(folder) == folder


def test_what_lies_in_a_pipeline_and_is_no_part_of_it_is_found(tmp_path, unet):
    folder = tiny.write(tmp_path / "pipe")
    read = partial(pipelines.of_pipeline, folder, [], device="cpu")
    assert read().findings == []
    hidden = (
        "original/unet.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.msgpack", "unet/model.onnx", "unet/teacher.safetensors",
        "v1-5-pruned.safetensors",
    )  # fmt: skip
    for name in ("v1-5-pruned.CKPT", "unet/old/model.bin", *hidden):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"the original")
    wanted = ["v1-5-pruned.CKPT: a pickle", "model.bin: a pickle",
              *(f"{name}: weights that no part loads by itself" for name in hidden)]  # fmt: skip
    assert read().findings == wanted
    for name in hidden:
        (folder / name).unlink()
    for i in (1, 2):  # what is loaded then
        (folder / f"vae/diffusion_pytorch_model-0000{i}-of-00002.safetensors").touch()
    assert pipelines._strays(folder)[2:] == [
        "vae/diffusion_pytorch_model.safetensors: weights that no part loads by itself"
    ]
    for i in (1, 2):
        (folder / f"vae/diffusion_pytorch_model-0000{i}-of-00002.safetensors").unlink()
    whole = shutil.copytree(unet, tmp_path / "unet")
    options = {"device": "cpu", "sampling": Sampling(1)}
    assert pipelines.of_unet(whole, LABELS, [], **options).findings == []
    (whole / "all.ckpt").write_bytes(b"the original")
    found = pipelines.of_unet(whole, LABELS, [], **options)
    assert eval.common.hygiene(found, None)["findings"] == ["all.ckpt: a pickle"]


def test_a_pipeline_that_overflows_makes_no_black_images(tmp_path, unet, monkeypatch):
    folder = tiny.write(tmp_path / "pipe")
    prompts, seeds = ["a red shoe", "a hat", "a coat"], np.array([5, 6, 7])
    subject = pipelines.of_pipeline(folder, [], device="cpu", sampling=Sampling(1, 0.0), batch=2)
    whole = request(subject.generate, prompts, seeds)
    assert whole.made.all() and whole.errors == ()

    draw = sample.initial_noise

    def overflow(seeds, shape, device):
        z = draw(seeds, shape, device)
        z[np.asarray(seeds) == 6] = torch.nan
        return z

    monkeypatch.setattr(sample, "initial_noise", overflow)
    part = request(subject.generate, prompts, seeds)
    assert part.made.tolist() == [True, False, True]
    assert part.errors == ("values that are not finite",)
    assert (part.images == whole.images[part.made]).all()
    classes = pipelines.of_unet(unet, LABELS, [], device="cpu", sampling=Sampling(2), batch=2)
    assert request(classes.generate, [0, 1, 2], seeds).made.tolist() == [True, False, True]


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_what_a_student_could_not_draw_is_not_clean(share):
    card = {
        "schema": "sfd/model/1", "role": "student", "name": "s", "spec": TEACHER.spec,
        "shape": [1, 4, 4], "labels": LABELS, "without": [], "concepts": [],
        "sigma_range": [0.002, 80.0], "sigma_init": 2.5,
        "teacher": {"name": "mixture", "sha256": TEACHER.sha256},
    }  # fmt: skip
    file = Path("run", "student.safetensors")
    checkpoints.write_model(file, TEACHER.make_student(), card, half=False)
    known = concepts.load(["mixture-left"], LABELS)
    subject = eval.subjects.of_student(file, "cpu", known)
    suite = suites.load("mixture")
    level = float(torch.distributions.Normal(0.0, 2.5).icdf(torch.tensor(share)))

    def overflow(module, given, x0):
        return x0.masked_fill(given[0][:, :, :1, :1] < level, torch.nan)

    assert subject.victim is not None
    subject.victim.denoiser.register_forward_hook(overflow)
    found = eval.audit(subject, suite, TEACHER, Path("out"))
    told = direct(found)
    assert told["failed"] == pytest.approx(share * told["n"], rel=0.5)
    assert told["errors"] == ["values that are not finite"]
    assert told["ci95"][1] > share / 2 and statuses(found)["direct"] != "PASS"
    assert found["coverage"]["failed"] > 0 and found["verdict"] != "PASS"


def test_image_to_image_starts_from_the_pictures(tmp_path):
    folder, pictures = tiny.write(tmp_path / "pipe"), tmp_path / "pictures"
    pictures.mkdir()
    side = pipelines.of_pipeline(folder, [], device="cpu", sampling=Sampling(1, 0.0)).generate(
        ["a"], np.array([0])
    )
    for n, grey in enumerate((0, 255)):
        Image.fromarray(np.full_like(side[0], grey)).save(pictures / f"{n}.png")

    def drawn(strength: float) -> np.ndarray:
        sampling = Sampling(4, 1.0, pictures, strength)
        subject = pipelines.of_pipeline(folder, [], device="cpu", sampling=sampling)
        assert subject.nfe == int(4 * strength) and not subject.paired
        assert f"image to image from {pictures} (2 pictures, sha256" in subject.format
        assert f"at strength {strength:g}" in subject.format
        return subject.generate(["a hat"] * 3, np.array([2, 3, 4])).astype(int)

    near = drawn(0.25)
    assert np.abs(near[0] - near[1]).mean() > np.abs(near[0] - near[2]).mean(), "seed 4 starts as 2"
    assert (drawn(1.0) != near).any()
    with pytest.raises(ValueError, match="takes none of 1 steps"):
        pipelines.of_pipeline(folder, [], device="cpu", sampling=Sampling(1, start=pictures))
    with pytest.raises(ValueError, match=r"strength=1.5: give a share"):
        drawn(1.5)
    with pytest.raises(ValueError, match="say which pictures"):
        pipelines.of_pipeline(folder, [], device="cpu", sampling=Sampling(strength=0.5))
    Image.fromarray(np.zeros((3, 5, 3), np.uint8)).save(pictures / "odd.png")
    with pytest.raises(ValueError, match="differ in size"):
        pipelines.of_pipeline(folder, [], device="cpu", sampling=Sampling(4, start=pictures))
    (tmp_path / "small").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "small" / "0.png")
    with pytest.raises(ValueError, match=r"pictures of \[9, 9\], the pipeline draws \[16, 16\]"):
        start = Sampling(4, start=tmp_path / "small")
        pipelines.of_pipeline(folder, [], device="cpu", sampling=start)


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("unet")
    UNet2DModel(
        sample_size=4, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4,
        layers_per_block=1, down_block_types=("DownBlock2D",) * 2, num_class_embeds=5,
        up_block_types=("UpBlock2D",) * 2,
    ).save_pretrained(folder / "unet")  # fmt: skip
    DDPMScheduler().save_pretrained(folder / "scheduler")
    return folder


def test_a_class_conditional_unet_with_any_scheduler(unet):
    options = {"device": "cpu", "batch": 3}
    plain = pipelines.of_unet(unet, LABELS, [], sampling=Sampling(3), **options)
    raw, seeds = [0, 1, 2, 3], np.arange(4)
    whole = plain.generate(raw, seeds)
    assert whole.shape == (4, 4, 4, 1) and plain.nfe == 3 and "DDPMScheduler" in plain.format
    assert np.abs(whole[1:].astype(int) - plain.generate(raw[1:], seeds[1:])).max() <= 1
    guided = pipelines.of_unet(unet, LABELS, [], sampling=Sampling(3, 4.0), **options)
    assert guided.nfe == 6 and (guided.generate(raw, seeds) != whole).any()
    with pytest.raises(ValueError, match="has 5 classes, the suite's judge 3"):
        pipelines.of_unet(unet, LABELS[:3], [], **options)
    with pytest.raises(ValueError, match="no row for no class"):
        pipelines.of_unet(unet, [*LABELS, "e"], [], sampling=Sampling(guidance=2.0), **options)


def test_a_unet_folder_from_its_path(unet):
    subject, suite, teacher = verbs.subjects.open_path(
        unet,
        "mixture",
        names=["mixture-left"],
        original=str(unet),
        sampling=Sampling(2),
        device=CPU,
    )
    assert subject.nfe == 2 and suite.name == "mixture"
    assert teacher is not None and list(teacher.labels) == LABELS
    assert eval.common.hygiene(subject, teacher)["findings"] == ["unet is the un-forgotten teacher"]


def test_a_pretrained_pipeline_is_as_good_as_anybodys(unet):
    content.write_json(unet / "sfd.json", {"schema": "sfd/pipeline/1", "images": 3})
    subject, _, _ = verbs.subjects.open_path(
        unet, "mixture", names=["mixture-left"], sampling=Sampling(2), device=CPU
    )
    assert "DDPMScheduler" in subject.format
    content.write_json(unet / "sfd.json", {"schema": "sfd/model/9"})
    with pytest.raises(ValueError, match=r"sfd\.json: .*sfd/model/9"):
        verbs.subjects.open_path(unet, "mixture", names=["mixture-left"], device=CPU)


# --- what a path is ------------------------------------------------------------------------------


def test_paths_that_are_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither student.safetensors"):
        sfd.audit(tmp_path / "empty", suite="mixture")
    with pytest.raises(ValueError, match="either a path or generate="):
        sfd.audit()
    (tmp_path / "pipe" / "unet").mkdir(parents=True)
    (tmp_path / "pipe" / "unet" / "config.json").write_text('{"_class_name": "Transformer"}')
    with pytest.raises(ValueError, match="holds a Transformer"):
        sfd.audit(tmp_path / "pipe", suite="mixture", concepts="mixture-left")
