"""Trajectories: resumed equals uninterrupted, parts equal the whole, processes equal one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from sfd import (
    checkpoints,
    configs,
    content,
    jobs,
    runs,
    sample,
    state,
    teachers,
    verbs,
    watch,
)
from sfd.report.charts import charts

CPU = torch.device("cpu")
SHORT = ("train.images=6400", "train.tick=640", "train.checkpoint=1280", "train.watch=0")


def train(folder, *overrides, on=None, recipe="smoke", force=False):
    plan = configs.load(recipe, [*SHORT, *overrides])
    job = jobs.prepare(recipe, plan, CPU)
    runs.train_job(
        job,
        Path(folder),
        device=CPU,
        force=force,
        say=lambda text: None,
        progress=on or (lambda *a: None),
    )
    return weights(folder)


def weights(folder):
    return checkpoints.read_tensors(Path(folder) / "student.safetensors")[0]


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def assert_near(a, b, atol):
    assert a.keys() == b.keys()
    worst = max(float((a[k] - b[k]).abs().max()) for k in a)
    assert worst < atol, worst


def stats(folder):
    return [json.loads(line) for line in (Path(folder) / "stats.jsonl").read_text().splitlines()]


def test_a_run_that_is_there_takes_over_a_new_suite():
    whole = train("a", "train.images=1280")
    assert_same(whole, train("a", "train.images=1280", "audit.n={direct: 3000}"))
    stored = configs.load("a/recipe.yaml")
    assert stored.audit is not None and stored.audit.n == {"direct": 3000}
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        train("a", "train.images=2560", "audit.n={direct: 4000}")
    assert configs.load("a/recipe.yaml") == stored


def test_a_look_at_many_classes_shows_the_forgotten_and_some():
    job = jobs.prepare("smoke", configs.load("smoke"), CPU)
    shown = watch._shown(job.teacher, job.concepts, job.retained)
    assert shown == list(range(len(job.teacher.labels))), "all of a few"
    many = replace(job.teacher, labels=tuple(map(str, range(200))))
    gone, kept = [replace(job.concepts[0], label=n) for n in (50, 7)], [*range(100, 200), None]
    shown = watch._shown(many, gone, kept)
    assert shown[:3] == [50, 7, 100] and shown[-1] is None
    assert len({*shown}) == len(shown) == sample.ROWS


def test_a_look_with_too_few_images_for_a_fid_has_none():
    train("few", "train.watch=4", "train.images=1280")
    curves = [json.loads(line) for line in Path("few/curves.jsonl").read_text().splitlines()]
    assert [row["fid"] for row in curves] == [None] * len(curves) != []
    assert all(row["agreement"] is not None for row in curves)
    drawn = [chart["title"] for chart in charts(stats("few"), curves)]
    assert any("agreement" in title for title in drawn)
    assert not any(title.startswith("Fr\u00e9chet") for title in drawn)


def test_same_seed_same_weights_other_seed_others():
    a, b, c = train("a"), train("b"), train("c", "train.seed=1")
    assert_same(a, b)
    assert any(not torch.equal(a[k], c[k]) for k in a)


MUON = "train.optimizer_student=muon"


@pytest.mark.parametrize(
    ("number", "more"), [(signal.SIGINT, ()), (signal.SIGTERM, ()), (signal.SIGTERM, (MUON,))]
)
def test_resumed_after_a_signal_equals_uninterrupted(number, more):
    whole = train("whole", *more)

    def kill(what, done, total):
        if done == 3200:
            os.kill(os.getpid(), number)

    with pytest.raises(state.Stopped) as stopped:
        train("parts", *more, on=kill)
    assert stopped.value.code == 128 + number
    assert not Path("parts/student.safetensors").exists()
    assert_same(whole, train("parts", *more))
    drop = [{k: v for k, v in line.items() if k != "seconds"} for line in stats("whole")]
    again = [{k: v for k, v in line.items() if k != "seconds"} for line in stats("parts")]
    assert drop == again


def test_resumed_after_kill_9_equals_uninterrupted():
    whole = train("whole")
    command = [sys.executable, "-m", "sfd", "train", "smoke", *SHORT, "out=parts"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not Path("parts/state/state.safetensors").exists():
        pass
    process.kill()
    process.wait()
    assert Path("parts/state/state.safetensors").exists()
    assert_same(whole, train("parts"))


@pytest.mark.parametrize("more", [(), (MUON,)])
def test_accumulated_parts_equal_the_whole_batch(more):
    assert_near(train("whole", *more), train("parts", *more, "train.accumulate=4"), 2e-4)


@pytest.mark.parametrize("more", [(), (MUON,)])
def test_two_processes_follow_one(more):
    one = train("one", *more, "train.images=1280")
    Path("seen.py").write_text(
        "import os, runpy\n"
        "from pathlib import Path\n"
        "try:\n"
        "    runpy.run_module('sfd', run_name='__main__')\n"
        "finally:  # beside a group's threads Python's end aborts, sometimes\n"
        "    threads = [path.read_text() for path in Path('/proc/self/task').glob('*/comm')]\n"
        "    left = not any('gloo' in name for name in threads)\n"
        "    Path(f\"{os.environ['RANK']} of {os.environ['WORLD_SIZE']} left {left}\").touch()\n"
    )
    # by --cpu it starts one process without MPI
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes=2", "--num_machines=1", "--mixed_precision=no"]
    command += ["--dynamo_backend=no", "--main_process_port=0"]
    command += ["seen.py", "train", "smoke", *SHORT, "out=two", "--device", "cpu"]
    # more parts than a process has rows of a batch
    command += [*more, "train.images=1280", "train.accumulate=128"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path("0 of 2 left True").exists() and Path("1 of 2 left True").exists()
    assert_near(one, weights("two"), 2e-4)
    first, second = stats("one"), stats("two")
    assert [line["nimg"] for line in first] == [line["nimg"] for line in second]
    for a, b in zip(first, second, strict=True):
        assert a["loss_fake"] == pytest.approx(b["loss_fake"], rel=1e-3)


def test_not_finite_stops_and_keeps_the_last_state():
    def spoil(what, done, total):
        if done == 3200:
            optimizers[0].param_groups[0]["eps"] = float("nan")

    optimizers = []
    made = torch.optim.Adam.__init__

    def remember(self, *args, **options):
        made(self, *args, **options)
        optimizers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "__init__", remember)
        with pytest.raises(state.Stopped, match="not finite at image") as stopped:
            train("run", on=spoil)
    assert stopped.value.code == 5
    assert "last checkpoint is kept" in str(stopped.value)
    whole = train("whole")
    assert_same(whole, train("run"))  # the checkpoint before it is sound, and resumes


def looped(folder: str, step, on_snapshot) -> state.Run:
    run = state.Run({"net": torch.nn.Linear(1, 1)}, {})
    state.loop(
        run, step=step, total=8, batch=4, folder=Path(folder), identity={}, tick=4, checkpoint=4,
        snapshots=[4], on_snapshot=on_snapshot, device=CPU,
    )  # fmt: skip
    return run


def test_a_sheet_that_is_not_finite_costs_no_run():
    drawn = teachers.to_uint8

    def draw(nimg: int, seconds: float) -> None:
        drawn(torch.full((1, 1, 2, 2), float("nan")))

    with pytest.warns(UserWarning, match="no sheet at image 4: 1 of 1 images"):
        run = looped("run", lambda nimg: {"loss": (1.0, 1.0)}, draw)
    assert run.nimg == 8 and Path("run/state/state.safetensors").exists()


def test_a_signal_that_comes_too_late_for_the_loop_is_sent_again():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with state.signals() as caught:
            signal.raise_signal(signal.SIGTERM)
            assert caught == [signal.SIGTERM] and not heard
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_a_killed_process_left_half_written_is_removed():
    train("run", "train.images=1600")
    torn = Path("run/state/.state.safetensors.99999.tmp")
    torn.write_bytes(b"half")
    Path("run/student.safetensors").unlink()
    train("run", "train.images=1600")
    assert not torn.exists()


def test_a_run_whose_start_was_trained_anew_is_not_taken_for_finished():
    plain = ("concepts=[]", "forgetting={rule: none, share: 0}")
    train("first", *plain)
    train("second", "start=first", "train.images=128")
    assert "start" in Path("second/provenance.json").read_text()
    train("second", "start=first", "train.images=128")  # finished
    train("first", *plain, "train.seed=1", force=True)
    with pytest.raises(ValueError, match="started from another student than first"):
        train("second", "start=first", "train.images=128")


def test_two_stage_starts_from_student_and_fake_and_keeps_the_teacher_as_target(monkeypatch):
    train("runs/first", "concepts=[]", "forgetting={rule: none, share: 0}")
    loaded = {}
    original = runs._load_start

    def spy(job, folder, student, fake):
        original(job, folder, student, fake)
        loaded.update(student=student.state_dict(), fake=fake.state_dict(), job=job)

    monkeypatch.setattr(runs, "_load_start", spy)
    train("second", "start=runs/first", "train.images=128", "train.lr_student=1e-9")
    first = weights("runs/first")
    assert_near(first, {k: v.clone() for k, v in loaded["student"].items()}, 1e-5)
    held, _ = checkpoints.read_tensors(Path("runs/first/state/state.safetensors"))
    assert any(not torch.equal(loaded["student"][k], held[f"fake.{k}"]) for k in loaded["student"])
    assert loaded["job"].teacher.name == "mixture"


def test_sequential_requests_keep_the_earlier_concept():
    Path("concepts").mkdir()
    Path("concepts/top.yaml").write_text(
        "version: 1\nkind: class\nforget: {label: 2, name: top}\n"
        "override: {label: 3, name: bottom}\nclassifier: mixture\n"
    )
    train("runs/one")
    plan = configs.load("smoke", [*SHORT, "start=runs/one", "concepts=[top]"])
    job = jobs.prepare("smoke", plan, CPU)
    assert [c.name for c in job.concepts] == ["mixture-left", "top"]
    assert job.retained == [1, 3]


def test_a_folder_of_another_recipe_is_refused():
    train("run")
    with pytest.raises(ValueError, match="run of another recipe"):
        train("run", "train.lr_student=0.5")


def test_starting_over_removes_what_a_run_left_and_nothing_else():
    train("run")
    Path("run/thesis.txt").write_text("precious")
    before = Path("run/student.safetensors").stat().st_mtime_ns
    loaded = configs.load("smoke", [*SHORT, "train.lr_student=0.5"])
    runs.train_job(jobs.prepare("smoke", loaded, CPU), Path("run"), device=CPU, force=True,
                   say=print, progress=lambda *a: None)  # fmt: skip
    assert Path("run/thesis.txt").read_text() == "precious"
    assert Path("run/student.safetensors").stat().st_mtime_ns > before
    assert "lr_student: 0.5" in Path("run/recipe.yaml").read_text()


def test_somebody_elses_student_is_not_this_recipes():
    train("theirs", "train.lr_student=0.5")
    Path("mine").mkdir()
    shutil.copy("theirs/student.safetensors", "mine")
    with pytest.raises(ValueError, match="run of another recipe"):
        train("mine")
    assert not Path("mine/recipe.yaml").exists()
    train("whole")
    student = Path("whole/student.safetensors")
    student.write_bytes(student.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"student\.safetensors"):
        train("whole")


def test_a_folder_in_which_nothing_was_trained_is_nobodys():
    with pytest.raises(ValueError, match="accumulate: 128 images have no 7 equal parts"):
        train("run", "train.accumulate=7")
    Path("run").mkdir()
    stopped = configs.plain(configs.load("smoke", ["train.images=64"]))
    Path("run/recipe.yaml").write_text(content.dump_yaml(stopped))  # before it began
    train("run")
    assert Path("run/student.safetensors").is_file()


def test_a_recipe_of_the_users_is_not_overwritten_by_a_run_of_it():
    Path("mine").mkdir()
    text = "# as I want it\n" + content.find("configs", "smoke").read_text()
    Path("mine/recipe.yaml").write_text(text)
    for force in (False, True):
        with pytest.raises(ValueError, match="a recipe that no run stored"):
            train("mine", force=force)
    assert Path("mine/recipe.yaml").read_text() == text


def test_force_deletes_nothing_before_what_the_run_needs_is_at_hand():
    train("one", "train.images=128")
    kept = Path("one/student.safetensors").read_bytes()
    with pytest.raises(ValueError, match="one is where this run is to go"):
        train("one", "start=one", force=True)
    Path("bare").mkdir()
    with pytest.raises(ValueError, match="bare is not a finished run folder"):
        train("one", "start=bare", force=True)
    assert Path("one/student.safetensors").read_bytes() == kept
    Path("papers/samples").mkdir(parents=True)
    Path("papers/samples/thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds samples and no run, so --force deletes nothing"):
        train("papers", force=True)
    with pytest.raises(ValueError, match="holds samples and no run, so none is begun there"):
        train("papers")  # what it left would have the next --force delete them
    assert Path("papers/samples/thesis.txt").is_file()


def test_what_was_trained_on_is_what_is_said():
    train("odd", "train.images=130", "train.batch=64")
    card = checkpoints.read_card(checkpoints.read_meta(Path("odd/student.safetensors")), "odd")
    assert card["images"] == stats("odd")[-1]["nimg"] == 192


CONCEPT = (
    "version: 1\nkind: class\nforget: {label: 0, name: left}\n"
    "override: {label: 1, name: right}\nclassifier: mixture\n"
)
RULE = "from sfd import forgetting\n\n\ndef rule(teacher, concepts):\n"


def test_what_a_recipe_names_may_not_change_under_a_finished_run():
    Path("concepts").mkdir()
    Path("concepts/mine.yaml").write_text(CONCEPT)
    Path("mine.py").write_text(RULE + "    return forgetting.override(teacher, concepts)\n")
    asked = ("concepts=[mine]", "forgetting.rule=./mine.py:rule", "train.images=128")
    first = train("run", *asked)
    assert_same(first, train("run", *asked))
    with Path("mine.py").open("a") as file:
        file.write("\n\nHALF = 0.5\n")
    with pytest.raises(ValueError, match="or a file of code that the recipe names was changed"):
        train("run", *asked)
    Path("mine.py").write_text(RULE + "    return forgetting.override(teacher, concepts)\n")
    assert_same(first, train("run", *asked))
    Path("concepts/mine.yaml").write_text(CONCEPT.replace("1, name: right", "2, name: top"))
    with pytest.raises(ValueError, match="trained before a concept, a list of prompts or a file"):
        train("run", *asked)


def test_a_start_by_name_is_of_that_recipe_or_none():
    recipe = configs.load("smoke", [*SHORT, "concepts=[]", "forgetting={rule: none, share: 0}"])
    Path("first.yaml").write_text(content.dump_yaml(configs.plain(recipe)))
    train("runs/first", "train.images=128", recipe="first.yaml")  # a trial of it
    with pytest.raises(ValueError, match="run of another recipe than first.yaml: train that one"):
        train("second", "start=first.yaml")
    meant = train("second", "start=runs/first", "train.images=128")
    shutil.rmtree("runs/first")
    whole = train("third", "start=first.yaml", "train.images=128")  # trained first
    assert any(not torch.equal(meant[k], whole[k]) for k in whole)
    assert_same(whole, train("again", "start=first.yaml", "train.images=128"))
    shutil.rmtree("runs/first")
    Path("concepts").mkdir()
    Path("concepts/mine.yaml").write_text(CONCEPT)
    recipe = configs.load("smoke", [*SHORT, "concepts=[mine]"])
    Path("first.yaml").write_text(content.dump_yaml(configs.plain(recipe)))
    train("runs/first", recipe="first.yaml")
    Path("concepts/mine.yaml").write_text(CONCEPT.replace("1, name: right", "2, name: top"))
    with pytest.raises(ValueError, match=r"trained before a concept.* of first.yaml was changed"):
        train("fourth", "start=first.yaml", "concepts=[]")


@pytest.mark.parametrize("rule", ["override", "pseudo-label"])
def test_resumed_with_trajectories_equals_uninterrupted(rule):
    """The target of pseudo-label changes with the fake score: what is kept of it would not."""
    asked = ("objective={name: sid, pairs: {pairs: 64, steps: 2}}", f"forgetting.rule={rule}",
             "train.images=1280", "train.checkpoint=640", "train.lr_fake=0.01")  # fmt: skip
    whole = train("whole", *asked)

    def kill(what, done, total):
        if done == 640:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("part", *asked, on=kill)
    assert_same(whole, train("part", *asked))


def test_start_from_another_teacher_is_refused():
    train("runs/first", "concepts=[]", "forgetting={rule: none, share: 0}")
    with pytest.raises(ValueError, match="another teacher"):
        train("second", "start=runs/first", "teacher.options={floor: 0.06}")


def test_the_released_file_holds_the_student_alone():
    train("run")
    tensors, meta = checkpoints.read_tensors(Path("run/student.safetensors"))
    card = checkpoints.read_card(meta, "run")
    assert card["role"] == "student"
    assert all(key.startswith("model.") for key in tensors)
    assert card["concepts"][0]["name"] == "mixture-left"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("train.checkpointing=true",), "train.checkpointing: only networks of diffusers can"),
        (("train.lora={rank: 2, alpha: 2}",), "train.lora: Target modules"),
        (("audit={suite: fashion}",), "judge fashion knows ['t-shirt'"),
        (("audit={suite: fashion-text}",), "is not for a model that is asked in classes"),
        (("objective.pairs={alone: 40000}", "train.images=40000"), "student begins after 40000"),
        (("objective.alfa=1",), "unknown key 'alfa'; did you mean 'alpha'?"),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_stage_is_trained(given, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        train("run", *given, recipe="digits-two-stage")
    assert not Path("runs").exists() and not Path("run").exists()


def test_a_run_may_be_started_in_a_thread():
    def body():
        with state.signals() as caught:
            return list(caught)

    with ThreadPoolExecutor() as pool:
        assert pool.submit(body).result() == []


def test_fresh_weights_are_the_seeds_own_and_not_the_teachers():
    still = ("train.images=64", "train.batch=32", "train.lr_student=1e-12", "train.init=random")
    once, again = (train(f, *still, recipe="digits-forget-three") for f in ("once", "again"))
    assert_same(once, again)
    taught = train("taught", *still[:3], recipe="digits-forget-three")
    name = max(once, key=lambda k: once[k].numel())
    assert (once[name] - taught[name]).abs().mean() > 0.01
    with pytest.raises(ValueError, match=r"train.init: random weights go neither with `start`"):
        configs.load("digits-two-stage", ["train.init=random"])


# --- pieces of the user's own that break their contracts -----------------------------------------

OWN = """
import dataclasses

import sfd
import torch
from sfd import forgetting, objectives, teachers

def rule(answer, **hooks):
    return lambda teacher, concepts: sfd.Rule(
        target=lambda x, sigma, batch, fake_x0: answer(x), **hooks)

def late(x):
    raise KeyError("late")

r_rows, r_double = rule(lambda x: x[:1]), rule(lambda x: x.double())
r_word, r_late = rule(lambda x: "no"), rule(late)
r_penalty = rule(lambda x: x, penalty=lambda student, x_g, batch: x_g.mean())
r_mask = rule(lambda x: x, mask=lambda student: {"no.such": torch.ones(1)})
def all_of(student):
    return {name: torch.ones(2, 3, 4) for name, _ in student.named_parameters()}
r_masks = rule(lambda x: x, mask=all_of)
r_number = lambda teacher, concepts: sfd.Rule(target=3)
r_none = lambda teacher, concepts: None
r_nobody = lambda: None

def objective(loss, learns=("student",), weight="student"):
    def phases(*, sigma_init):
        return sfd.Phase("student", learns, loss, weight), objectives.sid(sigma_init=sigma_init)[1]
    return phases

def flat(student, draw):
    z = draw.normal("z")
    return student(2.5 * z, z.new_full((len(z),), 2.5)).flatten(1).sum(1)

o_mean = objective(lambda student, draw: (flat(student, draw).mean(), {}))
o_half = objective(lambda student, draw: (flat(student, draw).half(), {}))
o_still = objective(lambda student, draw: (flat(student, draw).detach(), {}))
o_bare = objective(flat)
o_logs = objective(lambda student, draw: (flat(student, draw), {"a": 1.0}))
o_late = objective(lambda student: late(0))
o_bogus = objective(lambda student, bogus: None)
o_learns = objective(flat, learns=("teacher",))
o_weight = objective(flat, weight="foo")
o_none = lambda *, sigma_init: None
o_one = lambda *, sigma_init: objectives.sid(sigma_init=sigma_init)[0]
o_empty = lambda *, sigma_init: ()
o_twice = lambda *, sigma_init: 2 * (sfd.Phase("a", ("student",), flat, "student"),)
o_stuck = lambda *, sigma_init: (sfd.Phase("a", ("student",), flat, "student", steps=False),)
o_nobody = lambda: ()
def o_value(*, sigma_init):
    int("x")

t_none = lambda *, device: None
def t_late(*, device):
    late(0)
def mixture(device, **given):
    return dataclasses.replace(teachers.load(name="mixture", device=device), **given)
t_bare = lambda *, device: mixture(device, spec={})
def t_other(*, device):
    made = mixture(device)
    options = {**made.spec["options"], "width": 32}
    return mixture(device, spec={**made.spec, "options": options})
t_decode = lambda *, device: mixture(device, decode=lambda x0: x0.numpy())
def t_shifted(*, device):
    made = mixture(device)
    return mixture(device, encode=lambda raw: made.encode(raw).roll(1, 1))
def t_nothing(*, device):
    made = mixture(device)
    return mixture(device, encode=lambda raw: made.encode([int(label) for label in raw]))
def t_one(*, device):
    only = mixture(device).make_student()
    return mixture(device, make_student=lambda: only)
t_words = lambda *, device: mixture(device, labels=(), encode=lambda raw: torch.zeros(len(raw), 4))
"""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("r_rows", "the rule's target is torch.float32 [1, 1, 4, 4], the contract wants"),
        ("r_double", "the rule's target is torch.float64"),
        ("r_word", "the rule's target is str"),
        ("r_penalty", "the rule's penalty is torch.float32 []"),
        ("r_late", "own.py:r_late: KeyError: 'late'"),
        ("r_number", "own.py:r_number: a rule's target is a function, not int"),
        ("r_mask", "the rule's mask: the student learns no parameter 'no.such'"),
        ("r_masks", "weight is [2, 3, 4], the parameter ["),
        ("r_none", "own.py:r_none: returned NoneType, not sfd.Rule"),
        ("r_nobody", "own.py:r_nobody): too many positional arguments"),
        ("o_mean", "is torch.float32 [], the contract wants"),
        ("o_half", "is torch.float16"),
        ("o_still", "phase student: its loss has no gradient"),
        ("o_bare", "its loss returned Tensor, not the losses [B]"),
        ("o_logs", "its loss returned tuple, not the losses [B]"),
        ("o_late", "own.py:o_late: KeyError: 'late'"),
        ("o_bogus", "own.py:o_bogus: phase student: its loss asks for 'bogus'; known: draw, fake"),
        ("o_learns", "own.py:o_learns: phase student: learns=('teacher',)"),
        ("o_weight", "own.py:o_weight: phase student: weight='foo': give student or fake"),
        ("o_none", "own.py:o_none: returned NoneType, not a tuple of sfd.Phase"),
        ("o_one", "own.py:o_one: returned Phase, not a tuple of sfd.Phase"),
        ("o_empty", "own.py:o_empty: returned no sfd.Phase"),
        ("o_stuck", "own.py:o_stuck: phase a: steps=False, and no later one of its networks"),
        ("o_twice", "own.py:o_twice: two phases are called 'a'"),
        ("o_nobody", "unexpected keyword argument 'sigma_init'"),
        ("o_value", "own.py:o_value: invalid literal for int()"),
        ("t_none", "own.py:t_none: returned NoneType, not sfd.Teacher"),
        ("t_late", "own.py:t_late: KeyError: 'late'"),
        ("t_bare", "own.py:t_bare: spec is empty"),
        ("t_other", "own.py:t_other: spec builds another network than make_student"),
        ("t_decode", "own.py:t_decode: decode: students of classes are read back without it"),
        ("t_shifted", "own.py:t_shifted: encode: students of classes are read back with one-hot"),
        ("t_nothing", "own.py:t_nothing: TypeError"),
        ("t_one", "own.py:t_one: make_student gives a network that shares weights"),
        ("t_words", "own.py:t_words: a teacher asked in prompts is a folder of diffusers"),
    ],
)
def test_own_pieces_that_break_their_contract_are_named(name, says):
    Path("own.py").write_text(OWN)
    key = {
        "r": f"forgetting.rule=./own.py:{name}",
        "o": f"objective={{name: './own.py:{name}'}}",
        "t": f"teacher={{factory: './own.py:{name}'}}",
    }[name[0]]
    with pytest.raises(ValueError) as caught:
        train("run", key)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    recipe = configs.plain(configs.load("smoke", [*SHORT, key]))
    Path("own.yaml").write_text(yaml.safe_dump(recipe))
    _, (line,), _ = verbs.validate(["own.yaml"])
    # the check of a contract is on a small batch
    assert line.startswith("own.yaml: ") and says.split(", the contract")[0] in line


@pytest.mark.parametrize("more", [(), (MUON,)])
def test_a_masked_weight_does_not_move_and_the_rest_does(more):
    Path("own.py").write_text(
        OWN
        + """
def but_half(student):
    weight = student.get_parameter("model.net.2.weight")
    return {"model.net.2.weight": (torch.arange(weight.numel()) % 3 > 0).view_as(weight).float()}
def r_masked(teacher, concepts):
    plain = forgetting.override(teacher, concepts)
    return dataclasses.replace(plain, mask=but_half)
"""
    )
    trained = train("run", *more, "forgetting.rule=./own.py:r_masked")
    start = teachers.load(name="mixture", device=CPU).make_student().state_dict()
    moved = {name: trained[name] != start[name] for name in start}
    masked = moved.pop("model.net.2.weight")
    assert not masked.flatten()[::3].any() and masked.any()
    assert all(values.any() for values in moved.values())


def test_the_average_forgets_its_start_and_keeps_its_half_life():
    def moved(seen: int, half_life: float) -> float:
        average, module = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(average.weight).requires_grad_(False)
        torch.nn.init.ones_(module.weight).requires_grad_(False)
        state.update_ema(average, module, images=100, seen=seen, half_life=half_life)
        return float(average.weight)

    assert moved(10_000, 100) == pytest.approx(0.5)
    assert moved(10_000, 0) == 1.0
    # at most a quarter of what was seen
    assert moved(400, 1e9) == pytest.approx(0.5)
    assert moved(10_000, 1e9) == pytest.approx(1 - 0.5 ** (100 / 2_500))
