"""Text-to-image runs on small random pipelines: both modes, resume, start, export."""

import json
from pathlib import Path

import numpy as np
import pipelines
import pytest
import test_seal
import test_teachers
import torch
import yaml
from typer.testing import CliRunner

import sfd
from sfd import (
    checkpoints,
    cli,
    configs,
    content,
    export,
    images,
    jobs,
    plan,
    runs,
    sample,
    seal,
    teachers,
    verbs,
)
from sfd import train as training
from sfd.eval.pipelines import Sampling, of_pipeline
from sfd.teachers import lora, stable_diffusion

CPU = torch.device("cpu")
LORA = "train.lora={rank: 2, alpha: 4.0}"
PAIRS = "objective={name: sid, alpha: 1.0, pairs: {pairs: 8, steps: 2, alone: 4}}"
NEGATIVE = "forgetting={rule: negative, share: 0.5}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a pipeline, a prompt list, a concept and a recipe."""
    root = tmp_path_factory.mktemp("text")
    pipelines.write(root / "pipe")
    (root / "all.yaml").write_text(
        "templates: ['a {c} shoe', 'one {c} hat']\nc: [red, blue, green]\n"
    )
    concept = {
        "version": 1, "kind": "prompt", "forget": {"prompts": "all.yaml"},
        "override": {"substitute": {"shoe": "hat"}}, "holdout": ["the shoe is red"],
        "negative": ["footwear"],
        "classifier": "none", "label": "shoe",
    }  # fmt: skip
    (root / "shoe.yaml").write_text(yaml.safe_dump(concept))
    recipe = {
        "version": 1,
        "teacher": {"diffusers": str(root / "pipe"), "options": {"t_init": 625}},
        "concepts": [str(root / "shoe.yaml")],
        "prompts": str(root / "all.yaml"),
        "objective": {"name": "sid", "alpha": 1.0},
        "forgetting": {"rule": "override", "share": 0.25},
        "guidance": {"train": 2.0, "fake": 2.0, "target": 2.0},
        "train": {"images": 12, "batch": 4, "lr_student": 1e-3, "lr_fake": 1e-3,
                  "ema_images": 8, "precision": "fp32", "checkpoint": 4},
    }  # fmt: skip
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return root


def train(place: Path, out: str, *overrides: str, stop_at: int = 0):
    def watch(what, done, total):
        if done == stop_at:
            raise KeyboardInterrupt

    plan = configs.load(str(place / "recipe.yaml"), ["train.tick=4", *overrides])
    job = jobs.prepare("recipe", plan, CPU)
    folder = place / out
    runs.train_job(job, folder, device=CPU, force=False, say=lambda text: None, progress=watch)
    return job, folder


def test_the_retained_prompts_are_those_that_do_not_ask_for_it(place):
    job = jobs.prepare("r", configs.load(str(place / "recipe.yaml")), CPU)
    assert job.retained == ["one red hat", "one blue hat", "one green hat"]
    (concept,) = job.concepts
    assert concept.pairs[0] == ("a red shoe", {"a red hat": 1.0})


@pytest.mark.parametrize("mode", [(), (LORA,), (LORA, "train.checkpointing=true")])
def test_a_resumed_run_equals_an_uninterrupted_one(place, mode):
    name = f"run{len(mode)}"
    _, whole = train(place, f"{name}-whole", *mode)
    with pytest.raises(KeyboardInterrupt):
        train(place, f"{name}-parts", *mode, stop_at=8)
    _, parts = train(place, f"{name}-parts", *mode)
    one, other = (
        checkpoints.read_tensors(folder / "student.safetensors")[0] for folder in (whole, parts)
    )
    assert all(torch.equal(one[k], other[k]) for k in one) and one.keys() == other.keys()
    teacher = teachers.load(diffusers=str(place / "pipe"), device=CPU).denoiser.state_dict()
    assert one.keys() == teacher.keys(), "the released file has the pipeline's own weights"
    moved = {k for k in one if not torch.equal(one[k], teacher[k])}
    assert moved and (not mode or all(".to_" in k for k in moved))


def test_activation_checkpointing_changes_nothing(place):
    plain, again = (
        checkpoints.read_tensors(place / f"run{n}-whole" / "student.safetensors")[0] for n in (1, 2)
    )
    assert all(torch.allclose(plain[k], again[k], atol=1e-6) for k in plain)


def test_adapters_share_one_base_and_begin_as_the_teacher(place):
    teacher = teachers.load(diffusers=str(place / "pipe"), device=CPU)
    student, fake = (
        lora.adapted(teacher.denoiser, rank=2, alpha=4.0, seed=seed) for seed in (0, 1)
    )
    base = {id(p) for p in teacher.denoiser.parameters()}
    for net in (student, fake):
        own = [p for p in net.parameters() if p.requires_grad]
        assert own and not base & {id(p) for p in own}
        assert base <= {id(p) for p in net.parameters()}
    assert sum(p.numel() for p in own) < 0.2 * sum(p.numel() for p in teacher.denoiser.parameters())
    x, sigma = torch.randn(2, *teacher.shape), torch.tensor([0.5, 3.0])
    cond = teacher.encode(["a red shoe", "b"])
    with torch.no_grad():
        for p in student.parameters():
            if id(p) not in base:
                p.copy_(0.1 * torch.randn_like(p))
        before = teacher.denoiser(x, sigma, cond)
        assert torch.equal(fake(x, sigma, cond), before)
        adapted = student(x, sigma, cond)
        assert not torch.allclose(adapted, before)
        plain = lora.merged(student)
        assert torch.allclose(plain(x, sigma, cond), adapted, atol=1e-5)
        assert plain.state_dict().keys() == teacher.denoiser.state_dict().keys()
        assert torch.equal(teacher.denoiser(x, sigma, cond), before), "merging spares the base"


def test_a_state_of_adapters_holds_no_base(place):
    _, folder = train(place, "run1-whole", LORA)
    held, _ = checkpoints.read_tensors(folder / "state" / "state.safetensors")
    assert held and not [k for k in held if not k.startswith("optimizer:") and ".lora_" not in k]


@pytest.mark.parametrize("mode", [(), (LORA,)])
def test_a_second_stage_starts_from_the_first(place, mode):
    plain = ("concepts=[]", "forgetting={rule: none, share: 0.0}", *mode)
    name = f"two{len(mode)}"
    train(place, f"{name}-first", *plain)
    first = place / f"{name}-first"
    job, folder = train(place, name, f"start={first}", "train.lr_student=1e-12", *mode)
    one, other = (checkpoints.read_tensors(f / "student.safetensors")[0] for f in (first, folder))
    assert all(torch.allclose(one[k], other[k], atol=1e-5) for k in one)
    assert job.recipe.start and checkpoints.read_json(folder / "provenance.json")


def test_a_second_stage_has_the_adapters_of_the_first(place):
    plain = ("concepts=[]", "forgetting={rule: none, share: 0.0}")
    train(place, "alpha-first", *plain, LORA)
    start = f"start={place / 'alpha-first'}"
    for other in ((), (LORA.replace("alpha: ", "alpha: 1"),)):
        with pytest.raises(ValueError, match=r"alpha-first was trained with train\.lora \{'rank'"):
            train(place, f"alpha-second{len(other)}", start, *other)


def test_a_module_that_is_not_there_cannot_be_adapted(place):
    with pytest.raises(ValueError, match=r"train\.lora: "):
        train(place, "bad", "train.lora={rank: 2, alpha: 1.0, targets: [nowhere]}")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_stock_diffusers_samples_the_export_in_one_step(place, prediction):
    from diffusers import StableDiffusionPipeline

    pipe = pipelines.write(place / prediction, prediction=prediction)
    for stray in ("text_encoder/pytorch_model.bin", "vae/model.fp16.safetensors"):
        (pipe / stray).write_text("")
    _, folder = train(place, f"run-{prediction}", f"teacher.diffusers={pipe}", "train.images=4")
    left = place / f"exported-{prediction}.part/mine.txt"
    left.parent.mkdir()
    left.write_text("")
    out = export.diffusers(folder, place / f"exported-{prediction}")
    pipe = StableDiffusionPipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    student = sample.load(folder)
    prompts, seeds = ["a red shoe", "one blue hat, please"], np.array([5, 6])
    z = sample.initial_noise(seeds, tuple(student.card["shape"]), CPU)
    encode, _ = teachers.interface(student.card, CPU)
    ours = sample.one_step(student.denoiser, z, encode(prompts), student.card["sigma_init"])
    theirs = pipe(prompts, num_inference_steps=1, guidance_scale=0, latents=z,
                  output_type="latent").images  # fmt: skip
    assert torch.allclose(ours, theirs, atol=1e-4)
    pictures = pipe(prompts, num_inference_steps=1, guidance_scale=0, latents=z,
                    output_type="np").images  # fmt: skip
    assert np.abs((255 * pictures).round() - student.sample(prompts, seeds)).max() <= 1
    subject = of_pipeline(out, [], device="cpu")
    assert np.abs(subject.generate(prompts, seeds) - student.sample(prompts, seeds)).max() <= 1
    assert subject.nfe == 1 and not subject.findings and left.is_file()
    several = of_pipeline(out, [], device="cpu", sampling=Sampling(2, 3.0))
    assert several.nfe == 4 and several.generate(prompts, seeds).shape == (2, 16, 16, 3)
    assert "has not been audited" in (out / "README.md").read_text()
    with pytest.raises(ValueError, match="not empty"):
        export.diffusers(folder, out)
    audit = test_seal.audit_of()
    seal.write(folder / "audit.json", audit)
    with pytest.raises(ValueError, match="is of another model than"):
        export.diffusers(folder, place / f"audited-{prediction}")
    audit["subject"]["sha256"] = student.sha256
    sealed = seal.write(folder / "audit.json", audit)
    content.write_json(folder / "audit.json", sealed | {"verdict": "INCONCLUSIVE"})
    with pytest.raises(ValueError, match="was changed after it was written"):
        export.diffusers(folder, place / f"audited-{prediction}")
    seal.write(folder / "audit.json", audit)
    seal.sign(folder / "audit.json", test_seal.keys("key")[0])
    carried = export.diffusers(folder, place / f"audited-{prediction}")
    assert seal.signer(carried / "audit.json") == seal.signer(folder / "audit.json") is not None
    assert "## Forgetting audit: PASS" in (carried / "README.md").read_text()


def test_a_text_encoder_in_half_precision_is_exported_and_audited(place):
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    pipe = pipelines.write(place / "half")
    text = CLIPTextModel.from_pretrained(pipe / "text_encoder")
    text.half().save_pretrained(pipe / "text_encoder")  # pyright: ignore[reportArgumentType]
    _, folder = train(place, "run-half", f"teacher.diffusers={pipe}", "train.images=4")
    prompts, seeds = ["a red shoe"], np.array([5])
    student = sample.load(folder)
    z = sample.initial_noise(seeds, tuple(student.card["shape"]), CPU)
    stock = StableDiffusionPipeline.from_pretrained(export.diffusers(folder, place / "whole"))
    drawn = stock(prompts, num_inference_steps=1, guidance_scale=0, latents=z, output_type="np")
    assert np.abs((255 * drawn.images).round() - student.sample(prompts, seeds)).max() <= 1
    multi = of_pipeline(pipe, [], device="cpu", sampling=Sampling(2, 3.0))
    assert multi.generate(prompts, seeds).shape == (1, 16, 16, 3)


def test_the_python_face_takes_prompts(place):
    _, folder = train(place, "run0-whole")
    student = sfd.load(str(folder))
    assert student.sample(["a hat 👒 / or two", None], np.array([0, 1])).shape == (2, 16, 16, 3)
    with pytest.raises(ValueError, match="not a prompt"):
        student.sample([3], np.array([0]))


def test_sampled_prompts_are_no_file_names(place, tmp_path):
    _, folder = train(place, "run0-whole")
    student = sample.load(folder)
    asked = verbs.prompts_of(["a/b \\ 👟", "word " * 400], str(place / "all.yaml"))
    assert verbs.sample_prompts(student, asked, tmp_path / "out", n=2, seed=3) == 2 * len(asked)
    images_, captions = images.read_captioned(str(tmp_path / "out"))
    assert captions[::2] == asked and images_.shape == (2 * len(asked), 16, 16, 3)
    with pytest.raises(ValueError, match="--prompt TEXT or --prompts FILE"):
        verbs.prompts_of([], None)
    words = ["sample", str(folder), str(tmp_path / "none"), "--labels", "red"]
    assert "is asked in words" in str(CliRunner().invoke(cli.app, words).exception)


def test_a_gone_teacher_folder_is_named(place, tmp_path):
    _, folder = train(place, "run0-whole")
    tensors, meta = checkpoints.read_tensors(folder / "student.safetensors")
    card = json.loads(meta["sfd"])
    card["teacher"]["diffusers"] = str(tmp_path / "nowhere")
    checkpoints.write_tensors(tmp_path / "s.safetensors", tensors, {"sfd": json.dumps(card)})
    with pytest.raises(ValueError, match="pipeline folder is gone"):
        sample.load(tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("concepts=[digits-three]", "forgets a class"),
        ("prompts=null", "needs a list of prompts"),
        ("prompts=nowhere.txt", "cannot be read"),
        ("train.checkpointing=1.5", "checkpointing"),
        ("train.lora={rank: 0, alpha: 1}", "rank"),
    ],
)
def test_bad_recipes_are_refused_in_one_line(place, change, says):
    with pytest.raises(ValueError, match=says) as error:
        jobs.prepare("r", configs.load(str(place / "recipe.yaml"), [change]), CPU)
    assert "\n" not in str(error.value)


def test_a_prompt_concept_is_not_for_classes():
    with pytest.raises(ValueError, match="is one of prompts"):
        jobs.prepare("r", configs.load("smoke", ["concepts=[fashion-text-sneaker]"]), CPU)
    with pytest.raises(ValueError, match="asked in classes"):
        jobs.prepare("r", configs.load("smoke", ["prompts=prompts/fashion-text.yaml"]), CPU)


@pytest.mark.parametrize(
    "mode",
    [
        (),
        (LORA,),
        (LORA, "train.checkpointing=true"),
        ("guidance.target=1.0",),
        (PAIRS,),
        (NEGATIVE,),
        (NEGATIVE, "guidance.target=1.0"),
    ],
)
def test_a_plan_is_what_a_step_holds(place, tmp_path, mode):
    """Measured on real tensors: the most bytes alive at once in three steps of a real run."""
    recipe = configs.load(str(place / "recipe.yaml"), [*mode, "train.images=12", "train.batch=4"])
    planned = verbs.plan_run(recipe)
    job = jobs.prepare("r", recipe, CPU)
    student, fake = runs._networks(job)
    nets = {id(p): p for net in (job.teacher.denoiser, student, fake) for p in net.parameters()}
    weights = sum(4 * p.numel() for p in nets.values())
    learned = sum(4 * p.numel() for p in student.parameters() if p.requires_grad)
    # the text encoder is left out of the plan: it has been asked all
    prompts = [q for c in job.concepts for q in (*c.forget, *c.override, *c.negative)]
    job.teacher.encode([None, *job.retained, *prompts])
    with plan.Peak() as peak:
        training.train(
            job.teacher, job.rule, job.phases, student=student, fake=fake, retained=job.retained,
            concepts=job.concepts, share=recipe.forgetting.share, weight_student=1.0,
            weight_fake=1.0, total=12,
            batch=4, lr_student=1e-4, lr_fake=1e-4, ema_images=8, seed=0, folder=tmp_path,
            identity={}, tick=100, checkpoint=100, device=CPU, guidance_fake=2.0,
            guidance_train=2.0,
        )  # fmt: skip
    # the average is a copy that train makes: it is counted in the peak, and a role in the plan
    measured = weights + peak.most
    assert planned["total"] == pytest.approx(measured, rel=0.03)
    own = {role: planned[role] for role in ("teacher", "student", "fake", "ema", "gradients")}
    assert own["ema"] == own["gradients"] == learned and planned["optimizers"] == 4 * learned
    assert own["teacher"] + own["student"] + own["fake"] == pytest.approx(weights, rel=0.02)
    assert planned["total"] == sum(v for k, v in planned.items() if k != "total")


def test_a_pipeline_of_oblong_latents_is_planned_and_loaded(place, tmp_path):
    pipe = pipelines.write(tmp_path / "oblong")
    config = checkpoints.read_json(pipe / "unet" / "config.json")
    content.write_json(pipe / "unet" / "config.json", config | {"sample_size": [8, 16]})
    asked, file = (f"teacher.diffusers={pipe}", "train.images=4"), str(place / "recipe.yaml")
    oblong, square = (verbs.plan_run(configs.load(file, words)) for words in (asked, ()))
    assert oblong["activations"] > 1.5 * square["activations"]
    train(place, "oblong", *asked)
    student = sample.load(place / "oblong")
    assert student.sample(["a red hat"], np.array([0])).shape == (1, 16, 32, 3)


@pytest.mark.parametrize(
    ("name", "size", "pairs"),
    [("digits-pairs", 16 * 16, 4000), ("fashion-text-forget-sneaker", 8 * 8 * 4, 6000)],
)
def test_a_plan_counts_what_is_kept_of_each_pair(name, size, pairs):
    assert verbs.plan_run(configs.load(name))["kept"] == 4 * size * pairs


def test_a_class_conditional_folder_of_diffusers_is_planned(tmp_path):
    net = test_teachers.folder(tmp_path, rows=4)
    asked = [f"teacher={{diffusers: {tmp_path}}}", "concepts=[]", "train.batch=4"]
    planned = verbs.plan_run(configs.load("smoke", asked))
    weights = sum(4 * p.numel() for p in net.parameters())
    assert planned["student"] == planned["ema"] == pytest.approx(weights, rel=0.01)


def test_a_plan_of_classes_and_of_what_cannot_be_planned():
    small, large = (
        verbs.plan_run(configs.load("digits-forget-three", [f"train.batch={b}"])) for b in (8, 16)
    )
    grown = large["activations"] / small["activations"]
    assert 1.5 < grown <= 2, "but for the weights' bf16 copies, twice the rows keep twice as much"
    assert large["student"] == small["student"] == pytest.approx(4 * 1.03e6, rel=0.05)
    muon = ("train.batch=8", "train.optimizer_student=muon")
    one_moment = verbs.plan_run(configs.load("digits-forget-three", muon))["optimizers"]
    assert small["optimizers"] == pytest.approx(4 * small["student"], rel=0.01)
    assert one_moment == pytest.approx(3 * small["student"], rel=0.05)
    with pytest.raises(ValueError, match="cannot be planned"):
        verbs.plan_run(configs.load("smoke"))


def test_shipped_recipes_fit_the_shipped_pipeline():
    files = [
        str(path)
        for path in (content.find("configs", name) for name in content.names("configs"))
        if stable_diffusion.embedded(content.read_yaml(path).get("teacher", {}).get("name"))
    ]
    assert verbs.validate(files) == (len(files), [], []) and len(files) > 3


def test_a_recipe_of_ones_own_is_checked_against_its_pipeline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = content.read_yaml(content.find("configs", "fashion-text-forget-sneaker"))
    recipe["objective"]["zzzz"] = 1
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "own.yaml").write_text(yaml.safe_dump(recipe))
    (line,) = verbs.validate([])[1]
    assert "own.yaml" in line and "zzzz" in line
