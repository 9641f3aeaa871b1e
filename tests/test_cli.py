"""The command line in a subprocess: the whole job, and one clear line for each bad input."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import sfd as package
from sfd import checkpoints, cli, configs, content, devices, jobs, runs, seal, verbs

QUICK = ("train.images=6400", "train.checkpoint=3200", "train.watch=50")


def sfd(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "sfd", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, **environment},
    )


def refused(done, code, *says):
    """One line on stderr that says what is wrong, and no traceback."""
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("sfd: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for text in says:
        assert text in lines[0], lines[0]


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, sfd.cli\n"
        "sys.argv = ['sfd', '--help']\n"
        "try: sfd.cli.main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'timm', 'diffusers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout


def test_the_whole_job_and_again():
    done = sfd("run", "smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = Path("runs/smoke")
    names = {p.name for p in folder.iterdir()}
    assert names >= {
        "student.safetensors",
        "recipe.yaml",
        "provenance.json",
        "stats.jsonl",
        "curves.jsonl",
        "samples.png",
        "audit.json",
        "report.html",
        "state",
        "sheets",
    }
    audit = json.loads((folder / "audit.json").read_text())
    assert audit["schema"] == "sfd/audit/1"
    assert audit["verdict"] == "PASS"
    assert audit["coverage"]["failed"] == 0
    direct = audit["evidence"]["direct"]["mixture-left"]
    assert direct["n"] == 2000
    assert direct["corrected_ci95"][1] < 0.01
    assert direct["baseline"]["rate"] > 0.9
    curves = [json.loads(t) for t in (folder / "curves.jsonl").read_text().splitlines()]
    assert curves[-1]["direct"]["mixture-left"] == 0
    assert "Asked for" in done.stdout

    before = (folder / "audit.json").stat().st_mtime_ns
    again = sfd("run", "smoke")
    assert again.returncode == 0
    assert "finished already" in again.stdout
    assert (folder / "audit.json").stat().st_mtime_ns == before

    drawn = sfd("sample", folder, "images", "--n", 3, "--labels", "right,top", "--seed", 5)
    again = sfd("sample", folder, "images", "--n", 3)
    assert again.returncode == 2 and "images: is not empty" in again.stderr
    assert drawn.returncode == 0, drawn.stderr
    assert sorted(p.name for p in Path("images/top").iterdir()) == [
        "00000005.png",
        "00000006.png",
        "00000007.png",
    ]
    again = sfd("train", "smoke", "--json")
    assert json.loads(again.stdout) == {"folder": str(folder), "audit": None}, again.stderr
    audited = sfd("audit", folder / "student.safetensors", "--suite", "mixture", "--json")
    assert audited.returncode == 0, audited.stderr
    assert json.loads(audited.stdout)["verdict"] == "PASS"
    Path("another").mkdir()
    Path("another/student.safetensors").write_bytes(b"of another run")
    wrong = sfd("audit", folder, "--suite", "mixture", "--out", "another")
    assert wrong.returncode == 2 and "another: holds the run of another student" in wrong.stderr
    much = sfd("audit", folder, "--suite", "mixture", "--review", 99999)
    assert much.returncode == 2 and "a review of 99999 of 2000 images" in much.stderr
    assert sfd("report", folder).returncode == 0


def test_known_answers_of_the_mixture():
    done = sfd("audit", "--controls", "smoke", "--json")
    rows = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert {row["model"]: row["got"] for row in rows} == {"original": "FAIL", "noise": "FAIL"}


def test_dry_run_prints_and_touches_nothing():
    done = sfd("run", "smoke", "train.batch=64", "--dry-run", "--json")
    assert done.returncode == 0
    resolved = json.loads(done.stdout)
    assert resolved["train"]["batch"] == 64
    assert resolved["all_concepts"]["mixture-left"]["override"] == {"right": 1.0}
    assert list(Path.cwd().iterdir()) == []


def test_listing_validate_and_citations():
    listed = json.loads(sfd("ls", "--json").stdout)
    assert {"digits", "fashion", "mixture"} <= set(listed["teachers"])
    assert "digits-forget-three" in listed["recipes"]
    done = sfd("validate")
    assert done.returncode == 0, done.stderr
    assert "0 wrong" in done.stdout
    assert "2409.11219" in sfd("cite", "smoke").stdout


def test_unknown_words():
    refused(sfd("run", "smokee"), 2, "did you mean 'smoke'")
    refused(sfd("run", "smoke", "train.batc=3"), 2, "train.batc", "did you mean 'batch'")
    refused(sfd("run", "smoke", "train.batch=many"), 2, "train.batch")
    refused(sfd("run", "smoke", "objective.alfa=1"), 2, "alfa", "did you mean 'alpha'")
    refused(sfd("run", "smoke", "objective={name: sidd}"), 2, "did you mean 'sid'")
    refused(sfd("run", "smoke", "forgetting.rule=overide"), 2, "did you mean 'override'")
    refused(sfd("run", "smoke", "teacher={name: digitz}"), 2, "did you mean 'digits'")
    refused(sfd("run", "smoke", "audit.n={direct: 5}"), 2, "never lower")
    refused(sfd("pretrain", "smoke"), 2, "sfd run")
    assert sfd("rnu", "smoke").returncode == 2


def refused_here(*words):
    """What a command refuses with, in this process: quick."""
    done = CliRunner().invoke(cli.app, words)
    assert isinstance(done.exception, ValueError), (done.exception, done.output)
    assert "\n" not in str(done.exception)
    return str(done.exception)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["objective.alpha=foo"], "objective (sid): alpha: is foo, should be a valid number"),
        (["objective.alpha=[1,2]"], "alpha: is [1, 2], should be a valid number"),
        (["objective.alpha=2024-01-01"], "alpha: is 2024-01-01, should be a valid number"),
        (["objective.alpha=2024-13-45"], "not valid YAML"),
        (["objective.alpha=.nan"], "alpha: is nan, should be a finite number"),
        (["guidance.target=.inf"], "guidance.target: is inf, should be a finite number"),
        (["guidance.labels={lefft: 2}"], "mixture has no class 'lefft'; did you mean 'left'?"),
        (["guidance.labels={3: 2}"], "guidance.labels: mixture has no class '3'"),
        (["guidance.labels={left: x}"], "guidance.labels.left: is x, should be a valid number"),
        (["guidance.interval=[0, 8]"], "no guidance to limit while target is 1"),
        (["objective.fake_loss=foo"], "fake_loss: is foo, should be 'edm' or 'eps'"),
        (["objective.through_networks=foo"], "through_networks: is foo, should be a valid boolean"),
        (["objective.reuse=foo"], "reuse: is foo, should be a valid boolean"),
        (["objective={name: diff-instruct, normalise: x}"], "normalise: is x, should be a valid"),
        (["objective.fake_updates=1.5"], "fake_updates: is 1.5, should be a valid integer"),
        (["concepts=digits-three"], "concepts: is digits-three, and not a list: write [digits-"),
        (["objective=sid"], "is sid, and not a mapping of name: write {name: sid}"),
        (["train=3"], "train: is 3, and not a mapping of images, batch,"),
        (["objective.pairs={weight: x}"], "pairs: weight: is x, should be a valid number"),
        (["objective.sigma_student={name: karas}"], "did you mean 'karras'?"),
        (["objective.sigma_student={mean: 1}"], "no noise levels called None"),
        (
            ["objective.sigma_student={name: log-normal, mean: x}"],
            "'log-normal': mean: is x, should",
        ),
        (["objective.sigma_student={name: log-normal, meen: 1}"], "did you mean 'mean'?"),
        (["objective.sigma_student={name: log-uniform, sigma_min: 0}"], "greater than 0"),
        (["objective.sigma_student={name: karras, sigma_min: 9, sigma_max: 1}"], "lower it"),
        (["objective.sigma_range=x"], "unknown key 'sigma_range'"),
        (["objective.sigma_init=0"], "unknown key 'sigma_init'"),
        (["forgetting.weight_student=0"], "the student would learn nothing from what forgets"),
        (["forgetting.rule=negative", "forgetting.options.k=x"], "k: is x, should be a valid"),
        (
            ["forgetting.rule=anchor", "forgetting.options.to=yes"],
            "forgetting.options (anchor): to",
        ),
        (["teacher.options.width=x"], "teacher mixture: width: is x, should be a valid integer"),
        (["train.batch=1000000000000"], "train.batch: is 1000000000000, should be less than"),
        (
            ["train.seed=99999999999999999999"],
            "train.seed: is 99999999999999999999, should be less",
        ),
        (["out=x", "--out", "y"], "out: x and y are both given"),
    ],
)
def test_values_that_a_recipe_cannot_have(words, says):
    assert says in refused_here("train", "smoke", *words)
    assert list(Path.cwd().iterdir()) == []


def test_options_that_the_code_fills_are_not_offered():
    for name in ("sid", "diff-instruct", "regression"):
        said = refused_here("train", "smoke", f"objective={{name: {name}, zzzz: 1}}")
        assert "known: " in said and "sigma_init" not in said and "sigma_range" not in said


def test_a_number_that_yaml_1_1_reads_as_a_word_is_a_number():
    words = ("objective.alpha=1e-3", "train.lr_student=2E5", "train.ema_images=1.e+2")
    done = CliRunner().invoke(cli.app, ["train", "smoke", *words, "--dry-run"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("word", [
    "train.images=true", "train.images='100'", "train.tick=100.0", "objective.alpha=true",
    "objective.alpha='1.5'", "objective.fake_updates=2.0", "objective.reuse='yes'",
])  # fmt: skip
def test_a_value_of_another_type_is_not_read_as_a_number(word):
    assert word.partition("=")[0].split(".")[1] in refused_here("train", "smoke", word)


@pytest.mark.parametrize("name", ["tpu", "meta", "mps", "cuda:x", "cuda:99", ""])
def test_devices_that_there_are_not(name):
    for act in (
        lambda: devices.device_of(name),
        lambda: package.load("nowhere", device=name),
    ):
        with pytest.raises(ValueError, match="device"):
            act()
    assert "device" in refused_here("plan", "smoke", "--device", name)


def test_only_an_audit_that_asked_the_same_is_returned_as_the_runs_own(monkeypatch):
    words = ("train.images=640", "train.watch=0")
    done = package.run("smoke", *words)
    file = done.folder / "audit.json"
    whole, said = file.read_bytes(), []
    monkeypatch.setattr(runs, "audit_subject", lambda *a, **k: "judged again")

    def again():
        job = jobs.prepare("smoke", configs.load("smoke", words), devices.device_of("cpu"))
        return runs.run_job(job, done.folder, device=devices.device_of("cpu"), force=False,
                            say=said.append, progress=lambda *a: None)  # fmt: skip

    assert again() == done.audit and "finished already" in said[-1]
    for key, change in (
        ("subject", lambda s: s["concepts"].pop()),  # as sfd audit --concepts leaves it
        ("subject", lambda s: s.update(teacher=None)),
        ("detectors", lambda d: d[0].update(threshold=0.7)),  # sfd calibrate since
        ("evidence", lambda e: e["quality"].update(reference_sha256="0" * 64)),
        ("suite", lambda s: s.update(sha256="0" * 64)),
    ):
        other = copy.deepcopy(done.audit)
        change(other[key])
        seal.write(file, other)
        assert again() == "judged again", key
    for text in (whole.replace(b'"verdict": "FAIL"', b'"verdict": "PASS"', 1), b"{}", b"{"):
        assert text != whole
        file.write_bytes(text)
        assert again() == "judged again" and "audit.json: " in said[-1], text


def test_recipes_that_start_from_each_other():
    text = (
        "version: 1\nteacher: {name: mixture}\nstart: ./START.yaml\nobjective: {name: sid}\n"
        "train: {images: 256, lr_student: 0.001, lr_fake: 0.002, ema_images: 0}\n"
    )
    for name, start in (("own", "own"), ("a", "b"), ("b", "a")):
        Path(f"{name}.yaml").write_text(text.replace("START", start))
    assert "./own.yaml -> ./own.yaml: starts from itself" in refused_here("train", "own.yaml")
    assert "./b.yaml -> ./a.yaml -> ./b.yaml" in refused_here("train", "a.yaml")


def test_a_file_that_cannot_be_read_hides_no_other():
    Path("deep.yaml").write_text("x: " + "[" * 3000 + "]" * 3000)
    Path("deeper.yaml").write_text("[" * 200_000)
    Path("deepest.yaml").write_text("- " * 100_000)
    Path("bad.yaml").write_text("version: 2\nteacher: {}\n")
    deep = ["deep.yaml", "deeper.yaml", "deepest.yaml"]
    checked, wrong, _ = verbs.validate([*deep, "bad.yaml"])
    assert checked == 4 and len(wrong) == 4 and "bad.yaml" in wrong.pop()
    for name, said in zip(deep, wrong, strict=True):
        assert f"{name}: is nested too deep" in said


def test_a_concept_whose_classifier_there_is_not_is_well_formed_and_says_so():
    text = content.find("concepts", "fashion-bag").read_text()
    Path("mine.yaml").write_text(text.replace("classifier: fashion", "classifier: fashoin"))
    checked, wrong, notes = verbs.validate(["mine.yaml"])
    assert (checked, wrong) == (1, []) and len(notes) == 1
    assert "mine.yaml: its classifier: no classifiers called 'fashoin'; did you mean" in notes[0]


def test_what_is_validated_may_be_a_name_or_a_folder():
    for name, count in (("smoke", 1), ("mixture", 3)):  # a recipe; a suite and a judge
        assert verbs.validate([name])[:2] == (count, [])
    folder = content.find("eval/suites", "mixture").parent
    assert verbs.validate([str(folder)])[:2] == (len(list(folder.glob("*.yaml"))), [])
    checked, (wrong,), _ = verbs.validate(["smok"])
    assert checked == 1 and wrong == "smok: no such file"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train.sigma={name: foo}"], "no noise levels called 'foo'"),
        (["train.sigma={name: karras, t_max: 2}"], "t_max=2: the schedule ends at 1"),
        (["train.sigma={name: log-normal, std: x}"], "std: is x, should be a valid number"),
        (["exclude=[0,1,2,3,4,5,6,7,8,9]"], "exclude: leaves no label"),
        (["out=x", "--out", "y"], "out: x and y are both given"),
    ],
)
def test_values_that_a_teachers_recipe_cannot_have(words, says):
    assert says in refused_here("pretrain", "digits-teacher", "--dry-run", *words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--controls", "smoke", "runs/smoke"], "a subject and --controls exclude each other"),
        (["--controls", "smoke", "--plan", "smoke"], "--controls and --plan exclude each other"),
        (["--controls", "smoke", "--suite", "digits"], "--suite goes with a subject, not with --c"),
        (["--plan", "smoke", "--asks", "mixture"], "--plan and --asks exclude each other"),
        (["--plan", "digits", "--concepts", "digits-three"], "--concepts goes with a subject"),
        (["--asks", "mixture", "--concepts", "mixture-left", "--out", "x"], "--out goes with a su"),
        (["--controls", "smoke", "--guidance", "0"], "--guidance goes with a subject, not with"),
    ],
)
def test_ways_of_auditing_exclude_each_other(words, says):
    assert says in refused_here("audit", *words)


def test_numbers_said_twice():
    assert "n: 20 and 10 are both given" in refused_here(
        "synthesize", "r", "o", "n=10", "--n", "20"
    )
    said = refused_here("synthesize", "r", "o", "seed=1", "--seed", "0")
    assert "seed: 0 and 1 are both given" in said
    assert "no such file or folder" in refused_here("synthesize", "r", "o", "n=10", "--n", "10")
    huge = CliRunner().invoke(cli.app, ["sample", "r", "o", "--seed", "99999999999999999999"])
    assert huge.exit_code == 2


def test_concepts_that_cannot_be():
    Path("concepts").mkdir()
    for name, forget, override, says in (
        ("outside", "{label: 9, name: left}", "{label: 1, name: right}", "outside the teacher's"),
        ("itself", "{label: 0, name: left}", "{label: 0, name: left}", "by itself"),
        ("misnamed", "{label: 0, name: right}", "{label: 1, name: right}", "the teacher calls it"),
    ):
        Path(f"concepts/{name}.yaml").write_text(
            f"version: 1\nkind: class\nforget: {forget}\noverride: {override}\n"
            "classifier: mixture\n"
        )
        refused(sfd("run", "smoke", f"concepts=[{name}]"), 2, says)


def test_weights_that_are_missing_truncated_or_of_another_shape(tmp_path):
    refused(sfd("run", "smoke", "teacher={file: gone.safetensors}"), 2, "no such weights file")
    good = content.shipped() / "sfd/teachers/weights/digits.safetensors"
    Path("cut.safetensors").write_bytes(good.read_bytes()[:100_000])
    refused(sfd("run", "smoke", "teacher={file: cut.safetensors}"), 2, "truncated")
    tensors, meta = checkpoints.read_tensors(good)
    key = next(k for k in tensors if tensors[k].ndim == 4)
    other = {**tensors, key: tensors[key][:1]}
    checkpoints.write_tensors(Path("shape.safetensors"), other, meta)
    refused(sfd("run", "smoke", "teacher={file: shape.safetensors}"), 2, key, "has shape")
    refused(sfd("audit", "cut.safetensors", "--suite", "mixture"), 2, "truncated")
    card = json.loads(meta["sfd"])
    for labels, says in ((["..", "a"], "its label '..' is no name"), (["a", "a"], "called 'a'")):
        said = {"sfd": json.dumps(card | {"labels": labels})}
        checkpoints.write_tensors(Path("named.safetensors"), tensors, said)
        refused(sfd("run", "smoke", "teacher={file: named.safetensors}"), 2, says)


def test_data_that_cannot_train():
    Path("empty").mkdir()
    recipe = "digits-teacher"
    refused(sfd("pretrain", recipe, "data=empty"), 2, "no class folders")
    Path("empty/one").mkdir()
    refused(sfd("pretrain", recipe, "data=empty"), 2, "no images in it")
    refused(sfd("pretrain", recipe, "data=nowhere"), 2, "no such data")
    small = np.zeros((20, 4, 4, 1), np.uint8)
    np.savez("few.npz", images=small, labels=np.arange(20) % 4)
    np.savez("fewer.npz", images=small[:12], labels=np.arange(12) % 4)
    done = sfd("reference", "fewer.npz", "out.npz", "--features", "pixels")
    refused(done, 2, "too few images")
    own = ("reference", "few.npz", "out.npz", "--features", "pixels", "--floor", "few.npz")
    refused(sfd(*own), 2, "few.npz: 20 of its 20 images are among those of few.npz")
    refused(sfd("pretrain", recipe, "data=few.npz"), 2, "4 x 4")


def test_the_plan_of_an_audit():
    done = sfd("audit", "--plan", "digits-forget-three", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["at"][0]["n"] == 378
    refused(sfd("audit", "--plan", "digit"), 2, "did you mean", "digits")


def test_folders_that_cannot_be_used():
    Path("file").write_text("")
    refused(sfd("train", "smoke", "out=file", *QUICK), 2, "file")
    refused(sfd("train", "smoke", "out=/proc/nothing/here", *QUICK), 2, "/proc/nothing")
    refused(sfd("report", "."), 2, "audit.json")
    refused(sfd("audit", "."), 2, "student.safetensors")


def test_a_full_disk_stops_in_one_line_and_resumes(tmp_path):
    code = (
        "import os, sys, errno\n"
        "real, count = os.fsync, [0]\n"
        "def full(fd):\n"
        "    count[0] += 1\n"
        "    if count[0] == 3: raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "    real(fd)\n"
        "os.fsync = full\n"
        "import sfd.cli\n"
        "sys.argv = ['sfd', 'train', 'smoke', *sys.argv[1:]]\n"
        "sfd.cli.main()\n"
    )
    words = [*QUICK, "train.watch=0", "out=run"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    refused(done, 5, "No space left on device", "resumes")
    assert not list(Path("run").rglob("*.tmp"))
    again = sfd("train", "smoke", *words)
    assert again.returncode == 0, again.stderr


def test_one_step_of_the_shipped_digits_teacher():
    done = sfd("train", "digits-forget-three", "train.images=128", "train.watch=0", "out=run")
    assert done.returncode == 0, done.stderr
    drawn = sfd("sample", "run", "images", "--n", 2)
    assert drawn.returncode == 0, drawn.stderr


@pytest.mark.parametrize("name", ["digits-forget-two", "digits-two-stage", "digits-sequential"])
def test_other_recipes_resolve(name):
    done = sfd("run", name, "--dry-run")
    assert done.returncode == 0, done.stderr


def test_a_folder_without_a_name_is_no_default():
    for words in (["--out", ""], ["out="]):
        assert "out: is empty" in refused_here("train", "smoke", "--dry-run", *words)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 745. GiB"),
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
    ],
)
def test_too_little_memory_is_one_line(monkeypatch, capsys, error):
    def fail():
        raise error

    monkeypatch.setattr(cli.typer.main, "get_command", lambda app: fail)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 5 and said.count("\n") == 1
    assert said.startswith("sfd: not enough memory: ") and "ask for less at once" in said
