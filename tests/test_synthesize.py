"""Safe synthetic datasets: whole or resumed, split or not, the same bytes; nothing unscreened."""

import csv
import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import webdataset as reader
from PIL import Image
from scipy.stats import binom

from sfd import concepts, configs, content, features, images, jobs, runs, sample, teachers, verbs
from sfd.classifiers import Calibration, Card, Classifier, Network, measured
from sfd.cli.datasets import _numbers
from sfd.synthesis import asked as asking
from sfd.synthesis import bounds, dataset, folders, screening, synthesize, webdataset
from sfd.synthesis.folders import META, Layout
from sfd.verbs import datasets as commands

SMALL = {"n": 30, "size": 10, "batch": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A student of the mixture that was hardly trained: the machinery is tested, not the images."""
    root = tmp_path_factory.mktemp("run")
    recipe = configs.load("smoke", ["train.images=128", "train.watch=0"])
    job = jobs.prepare("smoke", recipe, torch.device("cpu"))
    runs.train_job(
        job, root, device=torch.device("cpu"), force=False, say=print, progress=lambda *a: None
    )
    return root


@pytest.fixture(scope="module")
def student(run):
    return sample.load(run)


def files(folder):
    """Every file below a folder, hidden ones too, and its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def block(found=90, of=100, wrong=0):
    """What a card measured of the label 'bad'."""
    counts = {"bad": [found, of - found], "good": [wrong, 100 - wrong]}
    sizes = {"bad": of, "good": 100}
    return measured(["bad", "good"], sizes, counts, data="made up", how="by hand")


def detector(probability, name="judge", calibration: Calibration | None = None):
    """A detector of 'bad' whose probability is a function of the images."""

    def both(pictures):
        p = np.asarray(probability(pictures), np.float32)
        return np.stack([p, 1 - p], 1)

    card = Card(
        version=1, name=name, task="classify", labels=["bad", "good"], backend="timm",
        threshold=None, licence="none", calibration=calibration,
    )  # fmt: skip
    return screening.Detector(Classifier(card, Network(both)), ("bad",))


def pseudo_random(pictures):
    """0 or 1, half of each, from the bytes of an image."""
    return [int(content.sha256(p.tobytes())[:4], 16) % 2 for p in pictures]


def never(pictures):
    return [0.0] * len(pictures)


def ask(student, labels="right,top"):
    return asking.of_labels(student.labels, {}, labels, {})


def make(student, out, look=never, **changed):
    options = SMALL | changed
    asked = options.pop("asked", None) or ask(student)
    detectors = options.pop("detectors", None) or [detector(look)]
    return synthesize(student, Path(out), asked, detectors, **options)


# --- the same bytes ------------------------------------------------------------------------------


@pytest.mark.parametrize("dies", ["rename", "replace", "write_bytes", "unlink"])
def test_killed_anywhere_and_resumed_is_the_same_bytes(student, dies):
    """kill -9 at the first call of what writes, then at the second, until it gets through."""
    make(student, "whole", pseudo_random, keep_refused=True)

    def attempt(last):
        """In a process of its own, dead at its last call; whether it got to the end."""
        child = os.fork()
        if child:
            return os.waitpid(child, 0)[1] == 0
        real, count = getattr(Path, dies), [0]

        def die(self, *words, **options):
            count[0] += 1
            if count[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, *words, **options)

        setattr(Path, dies, die)
        try:
            make(student, "cut", pseudo_random, keep_refused=True, workers=1)
        finally:
            os._exit(0)

    step = 7 if dies == "write_bytes" else 1
    killed = next(i for i in range(60) if attempt(1 + i * step))
    assert killed >= 1, "nothing was killed"
    make(student, "cut", pseudo_random, keep_refused=True)
    assert files(Path("cut")) == files(Path("whole"))
    assert files(Path("cut-quarantine")) == files(Path("whole-quarantine"))
    assert len(files(Path("cut-quarantine"))) > 5, "nothing was refused, so nothing was tested"


def test_the_command_line_from_end_to_end(run):
    words = [sys.executable, "-m", "sfd", "synthesize", str(run), "set", "n=24", "--batch", "8"]
    words += ["--webdataset", "tars", "--review", "5", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kept"] == 24
    assert report["leak"][0]["label"] == "left"
    assert 0 < report["leak"][0]["at_most"] < 30
    assert Path("tars/000000.tar").is_file()
    assert len(Path("set-review.csv").read_text().splitlines()) == 6
    assert report == json.loads(Path("set/.sfd/report.json").read_text())


def test_shards_in_any_order_are_the_whole(student):
    whole = make(student, "whole", pseudo_random)
    assert whole["refused"] > 5
    for i in (2, 0):
        assert make(student, "parts", pseudo_random, shard=(i, 3), workers=1) is None
    assert not Path("parts", META).exists()
    # what is there can be used before the rest is: each folder lists its own
    assert {r["file_name"] for r in rows(Path("parts/000000", META))} == {
        p.name for p in Path("parts/000000").glob("*.png")
    }
    assert make(student, "parts", pseudo_random, shard=(1, 3)) == whole
    assert files(Path("parts")) == files(Path("whole"))
    assert files(Path("parts-quarantine")) == files(Path("whole-quarantine"))


def test_shards_made_apart_are_merged_by_copying(student):
    make(student, "whole", pseudo_random)
    for i in range(2):
        assert make(student, f"machine{i}/set", pseudo_random, shard=(i, 2)) is None
    for i in range(2):
        for name in ("set", "set-quarantine"):
            shutil.copytree(f"machine{i}/{name}", name, dirs_exist_ok=True)
    make(student, "set", lambda _: pytest.fail("nothing is left to draw"))
    assert files(Path("set")) == files(Path("whole"))


def test_shards_that_others_screened_are_refused_and_the_mend_is_true(student):
    """The plan that is copied last wins: a folder itself says by which it was made."""
    make(student, "whole", pseudo_random)
    make(student, "machine0/set", never, detectors=[detector(never, "other")], shard=(0, 2))
    make(student, "machine1/set", pseudo_random, shard=(1, 2))
    for i in range(2):
        for name in ("set", "set-quarantine"):
            shutil.copytree(f"machine{i}/{name}", name, dirs_exist_ok=True)
    for _ in range(2):
        with pytest.raises(ValueError, match="set/000000/.* made by another plan") as error:
            make(student, "set", pseudo_random)
        assert "\n" not in str(error.value)
    for i in (0, 2):
        shutil.rmtree(f"set/{i:06d}")
        Path(f"set-quarantine/{i:06d}.jsonl").unlink()
    make(student, "set", pseudo_random)
    assert files(Path("set")) == files(Path("whole"))


def test_a_foreign_shard_is_not_merged_and_a_swapped_image_is_found(student):
    make(student, "set", pseudo_random, keep_refused=True, shard=(0, 2))
    make(student, "other", pseudo_random, seed=5)
    shutil.copytree("other/000001", "set/000001")
    lines = [row for row in rows(Path("other", META)) if row["file_name"].startswith("000001/")]
    own = [{**row, "file_name": Path(row["file_name"]).name} for row in lines]
    Path("set/000001", META).write_text("".join(json.dumps(row) + "\n" for row in own))
    Path("set-quarantine/000001.jsonl").write_text("")
    with pytest.raises(ValueError, match="set/000001/.* made by another plan"):
        make(student, "set", pseudo_random, keep_refused=True, shard=(1, 2))
    # nor is one that says it is of this plan, as nobody edits by accident
    mine = rows(Path("set/000000", META))[0]["plan_sha256"]
    own = [{**row, "plan_sha256": mine} for row in own]
    Path("set/000001", META).write_text("".join(json.dumps(row) + "\n" for row in own))
    lines = [row for row in rows(Path("other-quarantine", META)) if row["place"] in range(10, 20)]
    lines = [{**row, "plan_sha256": mine} for row in lines]
    Path("set-quarantine/000001.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    with pytest.raises(ValueError, match="seed .* is not what was asked for there"):
        make(student, "set", pseudo_random, keep_refused=True, shard=(1, 2))

    make(student, "swap", pseudo_random, keep_refused=True)
    refused = rows(Path("swap-quarantine", META))[0]
    kept = Path("swap", refused["file_name"].split("-")[0] + ".png")
    assert kept.is_file()
    shutil.copy(Path("swap-quarantine", refused["file_name"]), kept)
    with pytest.raises(ValueError, match="is another image than the dataset's list says"):
        make(student, "swap", pseudo_random, keep_refused=True)


def test_two_processes_at_one_folder_leave_no_hole(student):
    """The second begins and ends while the first is at its third image."""
    make(student, "whole", pseudo_random, keep_refused=True)
    calls = []

    def slow(pictures):
        calls.append(len(pictures))
        if len(calls) == 3:
            other = multiprocessing.get_context("fork").Process(
                target=make, args=(student, "set", pseudo_random), kwargs={"keep_refused": True}
            )
            other.start()
            other.join()
            assert other.exitcode == 0
        return pseudo_random(pictures)

    report = make(student, "set", slow, keep_refused=True)
    assert report["kept"] == 30 and len(calls) > 3
    assert files(Path("set")) == files(Path("whole"))
    assert files(Path("set-quarantine")) == files(Path("whole-quarantine"))


def test_the_same_image_for_the_same_seed(student):
    make(student, "set", pseudo_random)
    for row in rows(Path("set", META))[::7]:
        again = student.sample([row["condition"]], np.array([row["seed"]]))[0]
        stored = images.read_image(Path("set", row["file_name"]))
        assert np.abs(again.astype(int) - stored).max() <= 1
        assert student.labels[row["condition"]] == row["label"]
    every = rows(Path("set", META)) + rows(Path("set-quarantine", META))
    assert len({r["seed"] for r in every}) == len(every)


def test_no_two_of_seed_try_and_place_share_an_image():
    places = np.array([0, 1, 2**32 - 1])
    every = [asking.seeds(s, places, t) for s in (0, 1, 2**22 - 1) for t in (0, 1, 255)]
    found = np.concatenate(every)
    assert len(np.unique(found)) == 27
    assert found.min() == 0
    with pytest.raises(ValueError, match="seed"):
        asking.seeds(2**22, places, 0)
    with pytest.raises(ValueError, match="n=4,294,967,297: give at most 4,294,967,296"):
        asking.seeds(0, np.array([2**32]), 0)


def remove(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def overwrite(path):
    path.write_text("text")


def drop_lines(path):
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-3]))


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        ("000001/00000012.png", remove, "000001/00000012.png: not a readable image"),
        ("000001/00000012.png", cut, "000001/00000012.png: not a readable image"),
        ("000001/00000012.png", overwrite, "000001/00000012.png: not a readable image"),
        (META, cut, "metadata.jsonl, line 30: not JSON"),
        (META, drop_lines, "metadata.jsonl: lists 27 images, its folders hold 30"),
    ],
)
def test_a_damaged_dataset_is_refused_and_the_mend_is_true(student, name, spoil, says):
    make(student, "set")
    spoil(Path("set", name))
    for _ in range(2):
        with pytest.raises(ValueError, match=says) as error:
            make(student, "set")
        assert "into another folder" in str(error.value) and "\n" not in str(error.value)
    make(student, "again")
    shutil.copyfile(Path("again", name), Path("set", name))
    assert make(student, "set")["kept"] == 30
    assert files(Path("set")) == files(Path("again"))


@pytest.mark.parametrize("line", [0, -1])
def test_what_was_refused_is_listed_or_nothing_is_bounded(student, line):
    """A list that lost a line would make the bound on what leaked smaller, in silence."""
    options = {"look": pseudo_random, "tries": 2}
    whole = make(student, "set", **options)
    assert whole["unmet"] > 0, "no empty place, so half is not tested"
    path = Path("set-quarantine", META)
    text = path.read_text()
    cut_short = text.splitlines(keepends=True)
    place = json.loads(cut_short.pop(line))["place"]
    path.write_text("".join(cut_short))
    with pytest.raises(ValueError, match=rf"set-quarantine: place {place} refused [12] tries"):
        make(student, "set", **options)
    path.write_text(text)
    assert make(student, "set", **options) == whole


def test_a_shards_list_that_was_copied_short_is_refused_before_the_merge(student):
    whole = make(student, "whole", pseudo_random)
    for i in range(2):
        make(student, f"machine{i}/set", pseudo_random, shard=(i, 2))
        for name in ("set", "set-quarantine"):
            shutil.copytree(f"machine{i}/{name}", name, dirs_exist_ok=True)
    path = Path("set-quarantine/000001.jsonl")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="set-quarantine/000001.jsonl: place 1. refused") as error:
        make(student, "set", pseudo_random)
    assert "\n" not in str(error.value) and "remove it and set/000001" in str(error.value)
    path.unlink()
    shutil.rmtree("set/000001")
    assert make(student, "set", pseudo_random) == whole


def test_real_images_that_do_not_fit_are_found_before_the_drawing(run):
    Path("real/right").mkdir(parents=True)
    for real, says in (("nowhere", "no such data"), ("real", "no images in it")):
        with pytest.raises(ValueError, match=says):
            verbs.synthesize_run(run, Path("set"), n=4, usefulness=(real, real))
    images_of = np.zeros((2, 4, 4, 1), np.uint8)
    np.savez("two.npz", images=images_of, labels=np.arange(2))
    with pytest.raises(ValueError, match=r"two.npz: no class 'top'"):
        verbs.synthesize_run(
            run, Path("set"), n=4, labels="right,top", usefulness=("two.npz", "two.npz")
        )
    assert not Path("set").exists()


def test_python_says_labels_and_balance_as_data_and_counts_as_whole_numbers(run):
    asked = {"labels": ["right", "top"], "balance": {"right": 2, "top": 1}, "detectors": []}
    _, report = verbs.synthesize_run(run, Path("set"), n=6, tries=1, **asked)
    assert {name: row["asked"] for name, row in report["by"].items()} == {"right": 4, "top": 2}
    with pytest.raises(ValueError, match=r"balance 'right=1.5'"):
        verbs.synthesize_run(run, Path("other"), n=6, balance={"right": 1.5})
    for wrong in ({"n": 1.5}, {"n": "x"}, {"n": 4, "seed": 0.5}, {"n": 4, "batch": 2.0}):
        with pytest.raises(ValueError, match="whole number"):
            verbs.synthesize_run(run, Path("other"), **wrong)


def test_other_arguments_are_refused_in_one_line(student):
    make(student, "set")
    for changed, says in (
        ({"n": 31}, "begun with n 30, not 31"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"batch": 5}, "batch 4, not 5"),
        ({"asked": ask(student, "top")}, "conditions"),
        ({"detectors": [detector(never, "other")]}, "detectors"),
        ({"keep_refused": True}, "keep-quarantine"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            make(student, "set", **changed)
        assert "\n" not in str(error.value)
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("")
    with pytest.raises(ValueError, match="mine: is there and holds no dataset"):
        make(student, "mine")


# --- what is refused -----------------------------------------------------------------------------


def test_a_seed_that_cannot_be_claims_no_folder(student):
    with pytest.raises(ValueError, match="give a seed from 0"):
        make(student, "set", pseudo_random, seed=2**22)
    assert not Path("set").exists()
    make(student, "set", pseudo_random, seed=2**22 - 1)


def test_what_a_detector_calls_is_drawn_again_and_counted(student):
    report = make(student, "set", pseudo_random, keep_refused=True)
    kept, refused = rows(Path("set", META)), rows(Path("set-quarantine", META))
    assert report["kept"] == len(kept) == 30
    assert report["refused"] == len(refused) == report["drawn"] - 30 > 5
    assert report["reasons"] == {"judge: bad": len(refused)}
    for row in kept:
        assert pseudo_random([images.read_image(Path("set", row["file_name"]))]) == [0]
        assert row["verdict"] == "clean"
        assert row["scores"] == {"judge": 0.0}
        assert row["student_sha256"] == student.sha256
    for row in refused:
        assert pseudo_random([images.read_image(Path("set-quarantine", row["file_name"]))]) == [1]
        assert row["reasons"] == ["judge: bad"]
    assert max(row["attempt"] for row in kept) > 0
    assert {p.name for p in Path("set").iterdir()} == {
        "000000", "000001", "000002", META, "README.md", ".sfd"
    }  # fmt: skip
    assert not any(Path("set").rglob(".*.tmp"))


def test_refused_images_are_not_kept_unless_asked(student):
    make(student, "set", pseudo_random)
    assert [p.name for p in Path("set-quarantine").iterdir()] == [META]
    assert "file_name" not in rows(Path("set-quarantine", META))[0]


def test_an_image_that_could_not_be_judged_is_refused(student):
    def fragile(pictures):
        if any(pseudo_random(pictures)):
            raise RuntimeError("out of memory")
        return never(pictures)

    report = make(student, "set", fragile)
    assert report["reasons"] == {"judge: not judged": report["refused"]}
    assert report["refused"] > 5
    assert rows(Path("set-quarantine", META))[0]["scores"] == {"judge": None}
    also = make(student, "nan", lambda p: [float("nan") if x else 0.0 for x in pseudo_random(p)])
    assert also["reasons"] == report["reasons"]
    assert files(Path("nan", "000001")) == files(Path("set", "000001"))


def spoilt(student, look):
    """The student, but those images of which `look` says 1 were never finite."""

    def draw(raw, seeds):
        pictures = student.sample(raw, seeds)
        made = np.array(look(pictures)) == 0
        if made.all():
            return pictures
        raise teachers.NotFinite(pictures[made], made)

    return replace(student, sample=draw)


def test_an_image_that_is_not_finite_is_drawn_again_and_counted(student):
    some = spoilt(student, pseudo_random)
    looks = [detector(never, calibration=block())]
    report = make(some, "set", detectors=looks, keep_refused=True)
    whole, refused = make(student, "whole", detectors=looks), rows(Path("set-quarantine", META))
    assert report["kept"] == whole["kept"] == 30 and whole["refused"] == 0
    assert report["reasons"] == {screening.NOT_MADE.reasons[0]: report["refused"]}
    assert report["refused"] == len(refused) > 5
    assert all(row["scores"] == {} and "file_name" not in row for row in refused)
    assert not list(Path("set-quarantine").rglob("*.png"))  # there is nothing to look at
    first = {row["seed"]: row["file_name"] for row in rows(Path("whole", META))}
    same = [r for r in rows(Path("set", META)) if not r["attempt"]]
    assert 0 < len(same) < 30
    for row in same:
        theirs = images.read_image(Path("whole", first[row["seed"]]))
        np.testing.assert_array_equal(images.read_image(Path("set", row["file_name"])), theirs)
    assert whole["leak"][0]["at_most"] > 0
    assert report["leak"] == whole["leak"]  # they are no images that were looked at and found clean


def test_where_nothing_is_finite_it_stops_at_once(student):
    broken = spoilt(student, lambda pictures: [1] * len(pictures))
    with pytest.raises(teachers.NotFinite, match="not finite: the model's training diverged"):
        make(broken, "set")
    unlucky = iter([True, True])  # a folder of one place
    late = spoilt(student, lambda pictures: [int(next(unlucky, False)) for _ in pictures])
    assert make(late, "one", n=1)["kept"] == 1


def test_one_of_several_detectors_is_enough(student):
    second = [detector(never), detector(pseudo_random, "second")]
    report = make(student, "set", detectors=second)
    assert set(report["reasons"]) == {"second: bad"}
    assert set(rows(Path("set", META))[0]["scores"]) == {"judge", "second"}


def test_where_nothing_is_clean_it_stops_in_one_line(student):
    for _ in range(3):  # the same words end alike
        with pytest.raises(ValueError, match="not one image of a folder was clean") as error:
            make(student, "set", lambda p: [1.0] * len(p), tries=3, workers=1)
        assert "judge: bad" in str(error.value)
    assert len(rows(Path("set-quarantine/000000.jsonl"))) == 30
    assert not Path("set/000001").exists()


@pytest.mark.parametrize("empty", [1, 2])
def test_a_folder_of_empty_places_beside_others_is_no_end(student, empty):
    """Of ten places and of one."""
    calls = []

    def look(pictures):  # three batches of each folder of ten
        calls.append(len(pictures))
        return [float((len(calls) - 1) // 3 == empty)] * len(pictures)

    report = make(student, "set", look, n=21, tries=1, workers=1)
    assert report["unmet"] == {1: 10, 2: 1}[empty]
    assert make(student, "set", look, n=21, tries=1) == report


def test_places_that_stay_empty_are_said(student):
    report = make(student, "set", pseudo_random, tries=1)
    assert 0 < report["unmet"] == report["refused"] == 30 - report["kept"]
    assert f"**{report['unmet']} places stayed empty**" in Path("set/README.md").read_text()


def test_a_neighbour_of_a_private_image_is_refused(student):
    make(student, "drawn")
    drawn = images.read_labelled("drawn")[0]
    secret = [*drawn[[3, 17]], *np.random.default_rng(0).integers(0, 255, (40, *drawn[0].shape))]
    private = screening.private_set([s.astype(np.uint8) for s in secret], features.pixels, 0.01)
    report = make(student, "set", private=private, about_private={
        "images": 42, "features": "pixels", "quantile": 0.01, "radius": private.radius,
    })  # fmt: skip
    assert report["reasons"][screening.NEAR] >= 2
    first = {r["place"] for r in rows(Path("set-quarantine", META)) if r["attempt"] == 0}
    assert {3, 17} <= first
    kept = images.read_labelled("set")[0]
    for s in secret[:2]:
        assert not (kept == s).all((1, 2, 3)).any()
    assert "42 different private images" in Path("set/README.md").read_text()


# --- who screens ---------------------------------------------------------------------------------


def test_private_images_are_all_protected_or_refused():
    names = ("top.png", "inner/deep.png", "inner/more/deepest.PNG", ".hidden/x.png", "away/y.png")
    for i, name in enumerate(names):
        content.write_atomic(Path("own", name), images.png_bytes(np.full((4, 4, 1), i, np.uint8)))
    shutil.move("own/away", "elsewhere")
    Path("own/linked").symlink_to(Path("elsewhere").resolve())
    Path("own/inner/back").symlink_to(Path("own").resolve())
    found = commands._pictures("own")
    assert sorted(int(image.max()) for image in found) == [0, 1, 2, 3, 4]
    Path("own/metadata.jsonl").write_text('{"file_name": "top.png", "label": "a"}\n')
    assert len(commands._pictures("own")) == 5, "a table leaves none of the others out"
    for name in ("scan.tif", "inner/more/moving.gif", "inner/phone.HEIC"):
        Path("own", name).write_bytes(b"")
        with pytest.raises(ValueError, match=f"kinds that are not read, first own/{name}: save"):
            commands._pictures("own")
        Path("own", name).unlink()


def test_copies_of_private_images_do_not_shrink_the_radius():
    rng = np.random.default_rng(0)
    secret = [rng.integers(0, 255, (4, 4, 1)).astype(np.uint8) for _ in range(40)]
    alone = screening.private_set(secret, features.pixels, 0.05)
    twice = screening.private_set([*secret, *secret[:9]], features.pixels, 0.05)
    assert twice.radius == alone.radius > 0
    assert len(twice.reference) == 40

    def blind(pictures):
        return np.minimum(features.pixels(pictures), 0.0)

    with pytest.raises(ValueError, match="the radius is 0 and nothing but copies") as error:
        screening.private_set(secret, blind, 0.05)
    assert "\n" not in str(error.value)


def test_tars_of_another_dataset_are_not_mixed_with(student):
    make(student, "set")
    make(student, "small", n=10)
    assert webdataset.write(Path("set"), Path("tars")) == 3
    with pytest.raises(ValueError, match="holds 000000.tar, which is none of this dataset's"):
        webdataset.write(Path("small"), Path("tars"))
    make(student, "other", seed=5)  # whose tars are called the same
    whole = files(Path("tars"))
    with pytest.raises(ValueError, match="holds 000000.tar, which is none of this dataset's"):
        webdataset.write(Path("other"), Path("tars"))
    assert files(Path("tars")) == whole
    assert webdataset.write(Path("set"), Path("tars")) == 3
    Path("tars/000002.tar").write_text("no tar")
    with pytest.raises(ValueError, match="holds 000002.tar, which is none of this dataset's"):
        webdataset.write(Path("set"), Path("tars"))


def test_detectors_by_name(run):
    student = sample.load(run)
    from sfd.eval.subjects import concepts_of

    gone = concepts_of(student.card)
    (one,) = screening.detectors_of(["mixture"], gone, "cpu")
    assert one.labels == ("left",)
    (other,) = screening.detectors_of(["mixture=top,left"], gone, "cpu")
    assert other.labels == ("top", "left")
    for names, says in (
        (["mixture=topp"], "did you mean 'top'"),
        (["mixtur"], "did you mean 'mixture'"),
        (["digits"], "digits has no label for 'left'"),
        (["digits-features"], "judges nothing"),
        (["mixture", "mixture"], "called the same"),
        ([], "--detector NAME=LABEL"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            screening.detectors_of(names, gone, "cpu")
    unseen = [*gone, replace(gone[0], label_name="nudity")]
    with pytest.raises(ValueError, match="no detector here looks for 'nudity'"):
        screening.detectors_of(["mixture"], unseen, "cpu")


def student_labels(run):
    return sample.load(run).labels


def test_a_run_brings_its_own_judges_and_marks(run):
    report = verbs.synthesize_run(run, Path("set"), n=12, batch=6)[1]
    assert [d["name"] for d in report["plan"]["detectors"]] == ["mixture", "mixture-second"]
    assert "left" not in report["by"]
    assert set(report["by"]) == set(student_labels(run)) - {"left"}
    with Image.open(sorted(Path("set").rglob("*.png"))[0]) as picture:
        said = picture.text
    assert "generated" in said["Source"]
    assert json.loads(said["sfd"])["seed"] == rows(Path("set", META))[0]["seed"]
    assert "trainedAlgorithmicMedia" in said["XML:com.adobe.xmp"]


# --- what is asked -------------------------------------------------------------------------------


def test_balance():
    labels = ["a", "b", "c"]
    asked = asking.of_labels(labels, {}, "all", {"a": 500, "c": 300})
    assert asked.pattern.tolist() == [0, 1, 0, 0, 1, 0, 1, 0]
    found = asked.rows(np.arange(800))
    assert np.bincount(found).tolist() == [500, 300]
    assert [asked.conditions[i] for i in (0, 1)] == [0, 2]
    even = asking.of_labels(labels, {1: "is forgotten"}, "all", {})
    assert even.conditions == (0, 2)
    assert np.bincount(even.rows(np.arange(101))).tolist() == [51, 50]
    for said, says in (
        ({"asked": "d"}, "no label 'd'"),
        ({"asked": "b"}, "'b' is forgotten"),
        ({"asked": "a,a"}, "once"),
        ({"asked": "a", "balance": {"c": 1}}, "just the labels"),
    ):
        with pytest.raises(ValueError, match=says):
            options = {"asked": "all", "balance": {}} | said
            asking.of_labels(labels, {1: "is forgotten"}, **options)
    assert asking.parse_balance("a=2,b=3") == {"a": 2, "b": 3}
    for text in ("a", "a=0", "a=1,a=2", "a=x"):
        with pytest.raises(ValueError, match="LABEL=PARTS"):
            asking.parse_balance(text)


def test_a_label_with_a_comma_is_asked_for_in_a_list():
    words = SimpleNamespace(labels=("bird, small", "cat", "a=b"), card={"without": []})
    for labels, balance in (
        (["bird, small", "a=b"], None),
        ("all", {"bird, small": 2, "a=b": 1}),
        (["a=b", "bird, small"], {"bird, small": 2, "a=b": 1}),
    ):
        asked = commands._asked(words, [], labels, balance, [], None)
        assert set(asked.conditions) == {0, 2}


def test_a_balance_is_met_by_drawing_more(student):
    asked = asking.of_labels(student.labels, {}, "all", {"right": 2, "top": 1})
    report = make(student, "set", pseudo_random, asked=asked)
    assert {k: v["kept"] for k, v in report["by"].items()} == {"right": 20, "top": 10}
    assert sum(v["refused"] for v in report["by"].values()) == report["refused"] > 0


def test_prompts_are_asked_in_turn(student):
    asked = asking.of_prompts(["a red bag", "a blue bag"], [])
    as_words = replace(student, sample=lambda raw, seeds: student.sample([1] * len(raw), seeds))
    make(as_words, "set", asked=asked)
    found = rows(Path("set", META))
    assert [r["text"] for r in found[:3]] == ["a red bag", "a blue bag", "a red bag"]
    assert images.read_captioned("set")[1][:2] == ["a red bag", "a blue bag"]
    webdataset.write(Path("set"), Path("tars"))
    with tarfile.open("tars/000000.tar") as tar:
        assert tar.extractfile("00000001.txt").read() == b"a blue bag"
    with pytest.raises(ValueError, match="1 of 2 prompts ask for what was forgotten"):
        asking.of_prompts(["a bag", "a sneaker"], ["a sneaker"])


def test_prompts_that_the_audit_asks_it_with_are_refused_too():
    (nude,) = concepts.load_prompts(["nudity"])
    held = next(p.text for p in nude.holdout if not nude.mentions(p.text))
    words = SimpleNamespace(labels=(), card={"without": []})
    with pytest.raises(ValueError, match="1 of 2 prompts ask for what was forgotten"):
        commands._asked(words, [nude], "all", None, ["a red bag", held], None)


def test_the_card_says_what_nobody_looked_for_and_how_many_prompts_were_asked(student):
    concept = {"name": "mixture-left", "label_name": "left"}
    forgot = replace(student, card={**student.card, "concepts": [concept]})
    asked = asking.of_prompts([f"a bag, {i}" for i in range(120)], [])
    as_words = replace(forgot, sample=lambda raw, seeds: student.sample([1] * len(raw), seeds))
    make(as_words, "set", asked=asked)
    text = Path("set/README.md").read_text()
    assert "- left: **no bound**. No detector looked for a label of that name." in text
    assert "30 different prompts were asked for, one as often as another." in text


# --- bounds --------------------------------------------------------------------------------------


def test_the_bound_is_the_one_worked_out_by_hand():
    # 90 of 100 found: Wilson's lower end .825634; .174366 ** 2 = .0304, .174366 ** 3 = .0053
    assert bounds.leak_upper(0, 0, 1000, (90, 100), 0.95) == 2
    # 5 called: of 5 + L shown, at most 5 called with probability .0296 for L = 4, .0114 for 5
    tails = [binom.cdf(5, 5 + passed, 0.8256337) for passed in (4, 5)]
    assert tails[0] > 0.025 > tails[1]
    assert bounds.leak_upper(5, 0, 995, (90, 100), 0.95) == 4
    assert bounds.leak_upper(5, 3, 992, (90, 100), 0.95) > 4
    assert bounds.leak_upper(50, 0, 950, (90, 100), 0.95) > 4
    assert bounds.leak_upper(5, 0, 995, (70, 100), 0.95) > 4
    assert bounds.leak_upper(50, 0, 3, (90, 100), 0.95) == 3
    assert bounds.leak_upper(5, 0, 995, (0, 100), 0.95) == 995
    with pytest.raises(ValueError, match="kept"):
        bounds.leak_upper(10, 0, 0, (90, 100), 0.95)


@pytest.mark.parametrize("sensitivity, images", [(0.8, 200), (0.98, 10_000)])
@pytest.mark.parametrize("leak", [0.0005, 0.05])
def test_the_bound_covers_planted_leaks(leak, sensitivity, images):
    """A place is drawn again until it is not called: what passed is below the bound, 95 in 100."""
    rng = np.random.default_rng(0)
    covered, n = 0, 2000
    for _ in range(400):
        card = (int(rng.binomial(images, sensitivity)), images)
        called = int(rng.negative_binomial(n, 1 - leak * sensitivity))
        passed = rng.binomial(n, leak * (1 - sensitivity) / (1 - leak * sensitivity))
        covered += passed <= bounds.leak_upper(called, 0, n, card, 0.95)
    assert covered >= 380


def test_the_least_bound_of_several_detectors_allows_for_the_choice():
    def said(name, counts):
        return {"name": name, "labels": ["bad"], "sensitivity": {"bad": counts} if counts else {}}

    reasons = {"one: bad": 2, "two: bad": 1, "two: not judged": 1}
    out = bounds.leaked(
        [said("one", [95, 100]), said("two", [60, 100]), said("three", None)], reasons,
        kept=996, unjudged=screening.UNJUDGED,
    )  # fmt: skip
    (found,) = out
    one, two, three = found["detectors"]
    assert one["at_most"] == bounds.leak_upper(2, 0, 996, (95, 100), 0.975)
    assert two["at_most"] == bounds.leak_upper(1, 1, 996, (60, 100), 0.975)
    assert three["at_most"] is None
    assert found["at_most"] == one["at_most"] < two["at_most"]


def test_a_detector_never_measured_bounds_nothing_and_the_card_says_so(student):
    report = make(student, "set", pseudo_random)
    assert report["leak"][0]["at_most"] is None
    text = Path("set/README.md").read_text()
    assert "bad: **no bound**" in text
    measured_too = [detector(pseudo_random, calibration=block())]
    report = make(student, "other", detectors=measured_too)
    k, n = report["reasons"]["judge: bad"], report["drawn"]
    assert report["leak"][0]["at_most"] == bounds.leak_upper(k, 0, 30, (90, 100), 0.95)
    text = Path("other/README.md").read_text()
    assert f"called it in {k} of {n} images drawn" in text
    assert "| right | 15 | 15 |" in text
    assert str(Path.cwd()) not in text


def test_a_reviewed_sample_bounds_without_a_detector(student):
    report = make(student, "set", n=40, size=20)
    path = verbs.write_review(Path("set"), report, 10)
    assert path.name == "set-review.csv"
    with pytest.raises(ValueError, match="is there already"):
        verbs.write_review(Path("set"), report, 10)
    names = list(bounds.read_review(path))
    assert len(set(names)) == 10
    assert set(names) <= {r["file_name"] for r in rows(Path("set", META))}

    def fill(answers, names=names):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([bounds.COLUMNS, *zip(names, answers, strict=True)])

    fill(["no"] * 10)
    found = verbs.add_review(Path("set"), report, path)["review"]
    assert found["ci95"] == [0.0, pytest.approx(1 - 0.025**0.1)]
    text = Path("set/README.md").read_text()
    assert "10 of the kept images, drawn at random, and found 0" in text
    fill(["no"] * 8 + ["yes", ""])
    found = verbs.add_review(Path("set"), report, path)["review"]
    assert (found["found"], found["not_looked_at"]) == (1, 1)
    assert make(student, "set", n=40, size=20)["review"] == found, "the card forgot the review"
    fewer = dataset.sample_for_review(Path("set"), report, 6)
    fill(["no"] * 6, fewer)  # a random sample too, and it ends before what was found
    with pytest.raises(ValueError, match="a review of 6 images, and 10 were to be looked at"):
        verbs.add_review(Path("set"), report, path)
    path.unlink()
    with pytest.raises(ValueError, match="10 were to be looked at"):
        verbs.write_review(Path("set"), report, 6)
    others = [r["file_name"] for r in rows(Path("set", META)) if r["file_name"] not in names]
    fill(["no"] * 10, others[:10])
    with pytest.raises(ValueError, match="not the random sample"):
        verbs.add_review(Path("set"), report, path)
    fill(["perhaps"] * 10)
    with pytest.raises(ValueError, match=f"{names[0]}: name each image once"):
        bounds.read_review(path)
    path.write_text("\ufefffile_name;found\r\na.png;No\r\n\r\nb.png; unsure\r\n")
    assert bounds.read_review(path) == {"a.png": False, "b.png": None}
    for row in ("a.png", "a.png,no,yes"):
        path.write_text(f"file_name,found\nb.png,no\n{row}\n\n")
        with pytest.raises(ValueError, match="line 3: expected 2 fields"):
            bounds.read_review(path)


def test_a_sample_of_3000_clean_images_bounds_at_a_tenth_of_a_percent():
    names = [str(i) for i in range(3000)]
    found = bounds.reviewed(dict.fromkeys(names, False), names)
    assert found["ci95"][1] == pytest.approx(0.00123, abs=1e-5)


# --- what other tools read -----------------------------------------------------------------------


def test_the_folder_is_an_image_folder(student):
    make(student, "set", pseudo_random)
    found = rows(Path("set", META))
    # one list, at the top; every image in it, no other file that a loader would take for one
    assert list(Path("set").rglob("metadata.*")) == [Path("set", META)]
    on_disk = {str(p.relative_to("set")) for p in Path("set").rglob("*.png")}
    assert {r["file_name"] for r in found} == on_disk
    assert len({tuple(sorted(r)) for r in found}) == 1
    visible = [p for p in Path("set").rglob("*") if p.is_file() and ".sfd" not in p.parts]
    assert {p.suffix for p in visible} == {".png", ".jsonl", ".md"}
    pictures, labels, names = images.read_labelled("set")
    assert names == ["right", "top"]
    assert [names[i] for i in labels] == [r["label"] for r in found]
    assert (pictures[4] == images.read_image(Path("set", found[4]["file_name"]))).all()
    loaded = datasets.load_dataset("imagefolder", data_dir="set", cache_dir="cache")["train"]
    assert [r["seed"] for r in loaded] == [r["seed"] for r in found]
    assert [r["label"] for r in loaded] == [r["label"] for r in found]
    assert (np.asarray(loaded[4]["image"].convert("L")) == pictures[4][..., 0]).all()
    front = Path("set/README.md").read_text().split("---")[1]
    assert content.parse_yaml(front, "card")["tags"] == ["synthetic", "sfd"]


def test_tars_are_the_same_bytes_and_hold_whole_samples(student):
    make(student, "set", pseudo_random)
    assert webdataset.write(Path("set"), Path("a")) == 3
    time.sleep(1.1)  # of a file's time, one second would show
    os.utime("set/000000/00000000.png")
    webdataset.write(Path("set"), Path("b"))
    assert files(Path("a")) == files(Path("b"))
    found = {r["file_name"]: r for r in rows(Path("set", META))}
    with tarfile.open("a/000001.tar") as tar:
        names = tar.getnames()
        assert names[:3] == ["00000010.png", "00000010.cls", "00000010.json"]
        assert len(names) == 30
        row = found["000001/00000010.png"]
        assert tar.extractfile(names[0]).read() == Path("set", row["file_name"]).read_bytes()
        assert int(tar.extractfile(names[1]).read()) == row["condition"]
        assert json.loads(tar.extractfile(names[2]).read())["seed"] == row["seed"]
    tars = sorted(str(path) for path in Path("a").glob("*.tar"))
    read = list(reader.WebDataset(tars, shardshuffle=False).decode("pil"))
    assert [r["json"]["seed"] for r in read] == [r["seed"] for r in found.values()]
    assert [r["cls"] for r in read] == [r["condition"] for r in found.values()]
    first = images.read_image(Path("set", next(iter(found))))
    assert (np.asarray(read[0]["png"].convert("L")) == first[..., 0]).all()
    with pytest.raises(ValueError, match="inside the image folder"):
        webdataset.write(Path("set"), Path("set/tars"))


# --- a disk that fills ---------------------------------------------------------------------------


def test_a_full_disk_leaves_whole_folders_and_resumes(student, monkeypatch):
    make(student, "whole", pseudo_random)
    real, count = Path.write_bytes, [0]

    def full(self, data):
        count[0] += self.suffix == ".png"
        if count[0] > 14:
            real(self, data[:7])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            make(student, "set", pseudo_random, workers=1)
    there = [p for p in Path("set").iterdir() if p.name != ".sfd"]
    assert [p.name for p in there] == ["000000"]
    for row in rows(there[0] / META):
        images.read_image(there[0] / row["file_name"])
    make(student, "set", pseudo_random)
    assert files(Path("set")) == files(Path("whole"))


def test_bad_words_end_in_one_line(run):
    def refused(*words):
        done = subprocess.run(
            [sys.executable, "-m", "sfd", "synthesize", str(run), "set", *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        lines = [line for line in done.stderr.splitlines() if line.startswith("sfd: ")]
        assert (done.returncode, len(lines)) == (2, 1), done.stderr
        assert "Traceback" not in done.stderr
        assert not Path("set").exists()
        return lines[0]

    with pytest.raises(ValueError, match="did you mean 'seed'"):
        _numbers(["n=3", "sed=1"], {})
    assert _numbers(["n=3"], {"n": None, "seed": 1}) == {"n": 3, "seed": 1}
    assert "'left' is forgotten" in refused("--labels", "left")
    for words, says in (
        (("--shard", "4/4"), "shard '4/4'"),
        (("--prompt", "a bag"), "asked in classes"),
        (("--detector", "digits"), "has no label for 'left'"),
        (("--private", "nowhere"), "no such data"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            options = {words[0][2:]: words[1]}
            if "prompt" in options:
                options = {"prompts": ["a bag"]}
            if "detector" in options:
                options = {"detectors": ["digits"]}
            verbs.synthesize_run(run, Path("set"), n=4, **options)
    for option in ({"private_features": "pixels"}, {"private_quantile": 0.1}):
        with pytest.raises(ValueError, match="go with --private IMAGES"):
            verbs.synthesize_run(run, Path("set"), n=4, **option)


def test_places_are_all_in_one_folder_each():
    layout = Layout(Path("set"), 25, 10)
    assert [len(layout.places(i)) for i in layout.numbers] == [10, 10, 5]
    assert layout.missing() == [0, 1, 2]
    assert folders.remaining(layout, (2, 3)) == 5


# --- what came with a model ----------------------------------------------------------------------


def test_code_that_lies_beside_a_student_is_not_run(run, tmp_path):
    theirs = tmp_path / "theirs"
    shutil.copytree(run, theirs)
    shutil.copytree(content.find("classifiers", "mixture"), theirs / "judge")
    (theirs / "code.py").write_text("open('ran', 'w')\ndef build(*given): ...\n")
    card, recipe, suite = theirs / "judge/card.yaml", theirs / "recipe.yaml", theirs / "suite.yaml"
    card.write_text(
        content.dump_yaml(content.read_yaml(card) | {"backend": f"{theirs}/code.py:build"})
    )
    asked = content.read_yaml(content.find("eval/suites", "mixture"))
    recipe.write_text(
        content.dump_yaml(content.read_yaml(recipe) | {"audit": {"suite": str(suite)}})
    )
    for change in (
        {"judge": str(theirs / "judge")},
        {"attacks": [{"name": f"{theirs}/code.py:build"}]},
    ):
        suite.write_text(content.dump_yaml(asked | change))
        with pytest.raises(
            ValueError, match=r"code that a model names is not run; .* --suite NAME"
        ):
            verbs.subjects.open_path(theirs, None, device=torch.device("cpu"))
    suite.write_text(content.dump_yaml(asked | {"judge": str(theirs / "judge")}))
    with pytest.raises(ValueError, match=r"code that a model names is not run; .* --detector NAME"):
        verbs.synthesize_run(theirs, tmp_path / "out", n=8)
    assert not Path("ran").exists() and not (tmp_path / "out").exists()
