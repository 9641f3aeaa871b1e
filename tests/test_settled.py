"""Settled teachers: drawn from their teacher, trained on that, and distilled in its place."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sfd import checkpoints, configs, content, jobs, pretrain, runs, sample, teachers, verbs

CPU = torch.device("cpu")
PLAN = {
    "version": 1,
    "kind": "settled-teacher",
    "name": "settled",
    "teacher": {"name": "digits"},
    "draw": {"images": 25, "guidance": 2.0, "steps": 3, "sigma_min": 0.02},
    "train": {"images": 64, "batch": 32, "lr": 1e-6, "warmup": 0, "ema_images": 16, "sheets": 64},
}
QUIET = {"device": CPU, "force": False, "progress": lambda *a: None}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrain, "PART", 10)


def recipe(**changes) -> configs.SettledRecipe:
    Path("settled.yaml").write_text(content.dump_yaml({**PLAN, **changes}))
    plan = configs.load_teacher("settled.yaml")
    assert isinstance(plan, configs.SettledRecipe)
    return plan


def test_it_learns_what_its_teacher_draws_under_guidance(monkeypatch):
    seen = {}
    original = pretrain.pretrain

    digits = teachers.load(name="digits", device=CPU)
    name = next(k for k in digits.denoiser.state_dict() if k.endswith("weight"))
    monkeypatch.setattr(
        pretrain, "pretrain", lambda denoiser, *a, **k: seen.update(
            start=denoiser.state_dict()[name].clone(), data=a[0], labels=a[1]
        ) or original(denoiser, *a, **k),
    )  # fmt: skip
    file = pretrain.run(recipe(), Path("out"), **QUIET)
    assert torch.equal(seen["start"], digits.denoiser.state_dict()[name]), "from its weights"
    assert seen["labels"].tolist() == [*range(10), *range(10), *range(5)]
    teachers.set_precision(digits.denoiser, "bf16")
    draw = sample.teacher_sampler(digits, solver="dpm", steps=3, sigma_min=0.02, guidance=2.0)
    np.testing.assert_array_equal(seen["data"][10:20], draw(list(range(10)), np.arange(10, 20)))
    settled = teachers.load(file=str(file), device=CPU)
    assert (settled.labels, settled.spec, settled.shape) == (
        digits.labels, digits.spec, digits.shape,
    )  # fmt: skip
    card = checkpoints.read_card(checkpoints.read_meta(file), str(file))
    assert card["provenance"]["teacher_sha256"] == digits.sha256
    assert len(list(Path("out/samples").iterdir())) == 1
    assert pretrain.run(recipe(), Path("out"), **QUIET) == file, "done: nothing is trained again"
    with pytest.raises(ValueError, match="of another recipe"):
        pretrain.run(recipe(train={**PLAN["train"], "seed": 1}), Path("out"), **QUIET)


def test_what_was_drawn_is_not_drawn_again(monkeypatch):
    digits, plan = teachers.load(name="digits", device=CPU), recipe().draw
    whole, _ = pretrain.draw(digits, plan, "fp32", Path("whole"), progress=lambda *a: None)

    def stop(what, done, of):
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain.draw(digits, plan, "fp32", Path("parts"), progress=stop)
    drawn = []
    batched = sample.teacher_sampler
    monkeypatch.setattr(
        sample, "teacher_sampler",
        lambda *a, **k: lambda raw, seeds: drawn.append(len(raw)) or batched(*a, **k)(raw, seeds),
    )  # fmt: skip
    parts, _ = pretrain.draw(digits, plan, "fp32", Path("parts"), progress=lambda *a: None)
    assert drawn == [5] and np.array_equal(parts, whole)
    other = plan.model_copy(update={"guidance": 1.0})
    pretrain.draw(digits, other, "fp32", Path("parts"), progress=lambda *a: None)
    assert drawn == [5, 10, 10, 5], "by what they were drawn with"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"teacher": {"name": "fashion-text"}}, "is asked in words; only teachers of classes"),
        ({"teacher": {"name": "digit"}}, "did you mean 'digits'?"),
        ({"draw": {**PLAN["draw"], "solver": "dmp"}}, "no solver called 'dmp'; did you mean 'dpm'"),
        ({"draw": {**PLAN["draw"], "images": 0}}, "images"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        pretrain.run(recipe(**changes), Path("out"), **QUIET)
    assert not list(Path("out").glob("*.safetensors"))


def test_a_target_is_distilled_and_the_teacher_is_compared_with():
    made = pretrain.run(recipe(train={**PLAN["train"], "lr": 1e-3}), Path("out"), **QUIET)
    file, short = f"target={{file: {made}}}", ["train.images=64", "train.watch=0"]
    plan = configs.load("digits-forget-three", [*short, file])
    job = jobs.prepare("digits-forget-three", plan, CPU)
    x, sigma = torch.randn(1, 1, 16, 16), torch.tensor([1.0])
    row = job.teacher.encode([5])
    assert not torch.equal(job.target.denoiser(x, sigma, row), job.teacher.denoiser(x, sigma, row))
    student, fake = runs._networks(job)
    for net in (student, fake):
        torch.testing.assert_close(net(x, sigma, row), job.target.denoiser(x, sigma, row))
    runs.train_job(job, Path("run"), say=lambda text: None, **QUIET)
    card = sample.load(Path("run")).card
    assert card["teacher"]["name"] == "digits" and card["teacher"]["sha256"] == job.teacher.sha256
    runs.train_job(job, Path("run"), say=lambda text: None, **QUIET)
    other = pretrain.run(recipe(train={**PLAN["train"], "seed": 1}), Path("other"), **QUIET)
    made.write_bytes(other.read_bytes())
    changed = jobs.prepare("digits-forget-three", plan, CPU)
    with pytest.raises(ValueError, match="was trained before a concept"):
        runs.train_job(changed, Path("run"), say=lambda text: None, **QUIET)
    with pytest.raises(ValueError, match="target: fashion is not digits's like: its labels"):
        jobs.prepare("r", configs.load("digits-forget-three", ["target={name: fashion}"]), CPU)
    roles = [verbs.plan_run(configs.load("digits-forget-three", words)) for words in ([], [file])]
    assert roles[1]["teacher"] == 2 * roles[0]["teacher"]
    assert json.loads(Path("run/provenance.json").read_text())["sha256"]["teacher"]
