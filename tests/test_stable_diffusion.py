"""Stable Diffusion folders as denoisers: diffusers' own schedulers and pipelines are the judge."""

import json
import shutil

import numpy as np
import pipelines
import pytest
import torch

from sfd import classifiers, sample, teachers
from sfd.teachers import stable_diffusion
from sfd.teachers.stable_diffusion import EMBEDDED

CPU = torch.device("cpu")
PROMPTS = ["a red shoe", "", "a/b\\c 👟", "shoe " * 400]


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def folder(request, tmp_path_factory):
    return pipelines.write(tmp_path_factory.mktemp("sd") / "pipe", prediction=request.param)


@pytest.fixture(scope="module")
def teacher(folder):
    return teachers.load(diffusers=str(folder), device=CPU)


@pytest.fixture(scope="module")
def pipeline(folder):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noisy(teacher, n=3):
    return torch.randn(n, *teacher.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("t", [0, 17, 625, 999])
def test_the_denoiser_is_what_the_scheduler_predicts(teacher, pipeline, t):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(1000)
    x_t, cond = noisy(teacher), teacher.encode(PROMPTS[:3])
    with torch.no_grad():
        output = pipeline.unet(x_t, t, encoder_hidden_states=cond).sample
        wanted = scheduler.step(output, t, x_t).pred_original_sample
        a = scheduler.alphas_cumprod[t].sqrt()
        sigma = teacher.denoiser.times.sigmas[t].float()
        found = teacher.denoiser(x_t / a, sigma.expand(3), cond)
    assert torch.allclose(found, wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_are_encoded_as_the_pipeline_does(teacher, pipeline, prompt):
    wanted, null = pipeline.encode_prompt(prompt, "cpu", 1, True)
    assert torch.allclose(teacher.encode([prompt])[0], wanted[0], atol=1e-6)
    assert torch.allclose(teacher.encode([None])[0], null[0], atol=1e-6)


def test_latents_are_decoded_as_the_pipeline_does(teacher, pipeline):
    latents = noisy(teacher)
    with torch.no_grad():
        images = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    wanted = pipeline.image_processor.postprocess(images, output_type="np")
    assert np.abs(teacher.decode(latents).astype(int) - (255 * wanted).round()).max() <= 1


def test_an_embedding_does_not_depend_on_the_batch_it_was_computed_in(folder):
    together = teachers.load(diffusers=str(folder), device=CPU).encode(PROMPTS)
    for row, prompt in zip(together, PROMPTS, strict=True):
        alone = teachers.load(diffusers=str(folder), device=CPU).encode([prompt])[0]
        assert torch.allclose(alone, row, atol=1e-6)


def test_no_more_embeddings_are_kept_than_fit(folder, monkeypatch):
    parts = stable_diffusion.Parts(folder, CPU)
    whole = parts.encode(PROMPTS)
    assert set(parts.known) == {*PROMPTS}
    monkeypatch.setattr(stable_diffusion, "KNOWN", 2)
    few = stable_diffusion.Parts(folder, CPU)
    for _ in range(2):
        for row, prompt in zip(whole, PROMPTS, strict=True):
            assert torch.allclose(few.encode([prompt, PROMPTS[0]])[0], row, atol=1e-6)
            assert len(few.known) <= 2


def test_guidance_is_the_formula(teacher):
    x, sigma, cond = noisy(teacher), torch.full((3,), 1.5), teacher.encode(PROMPTS[:3])
    null = teacher.encode([None])
    with torch.no_grad():
        d, d0 = (teacher.denoiser(x, sigma, c) for c in (cond, null.expand_as(cond)))
        found = teachers.guided(teacher.denoiser, null, 3.0)(x, sigma, cond)
    assert torch.allclose(found, d0 + 3 * (d - d0), atol=1e-5)
    assert teachers.guided(teacher.denoiser, null, 1.0) is teacher.denoiser


def test_guidance_holds_within_its_interval_of_sigma_alone():
    class Plain(torch.nn.Module):
        def forward(self, x, sigma, cond):
            asked.append(cond)
            return x / (1 + sigma[:, None]) + cond

    asked: list[torch.Tensor] = []
    x, sigma, cond = torch.randn(4, 2), torch.tensor([0.3, 3.9, 1.5, 4.0]), torch.randn(4, 2)
    null = torch.randn(1, 2)
    found = teachers.guided(Plain(), null, 3.0, (0.3, 3.9))(x, sigma, cond)
    assert len(asked) == 1 and torch.equal(
        asked[0], torch.cat([cond, null, null])
    )  # where it counts
    k = torch.tensor([1.0, 3.0, 3.0, 1.0])[:, None]
    assert torch.allclose(found, x / (1 + sigma[:, None]) + null + k * (cond - null), atol=1e-6)


def test_guidance_may_be_of_each_class():
    class Plain(torch.nn.Module):
        def forward(self, x, sigma, cond):
            asked.append(len(x))
            return x / (1 + sigma[:, None]) + cond @ weight

    asked: list[int] = []
    weight, x = torch.randn(3, 2), torch.randn(5, 2)
    sigma, null = torch.tensor([1.0, 1.0, 1.0, 1.0, 9.0]), torch.zeros(1, 3)
    cond = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 0, 0]), 3).float()
    cond[3] = 0  # the null label itself
    each = torch.tensor([2.5, 1.0, 0.5])
    found = teachers.guided(Plain(), null, each, (0.0, 8.0))(x, sigma, cond)
    k = torch.tensor([2.5, 1.0, 0.5, 1.0, 1.0])[:, None]
    assert torch.allclose(found, x / (1 + sigma[:, None]) + k * (cond @ weight), atol=1e-6)
    assert asked == [7], "the null is asked where k is not 1"
    plain = Plain()
    assert teachers.guided(plain, null, torch.ones(3)) is plain


def test_samples_are_images_and_repeat(teacher):
    generate = sample.teacher_sampler(teacher, steps=3, guidance=2.0)
    seeds = np.array([3, 4])
    images = generate(["a red shoe", "a hat"], seeds)
    assert images.shape == (2, 16, 16, 3) and images.dtype == np.uint8
    assert np.abs(images[1:].astype(int) - generate(["a hat"], seeds[1:])).max() <= 1


def test_the_students_start_is_a_time_of_the_chain(folder):
    sigmas = teachers.load(diffusers=str(folder), device=CPU).denoiser.times.sigmas
    teacher = teachers.load(diffusers=str(folder), options={"t_init": 625}, device=CPU)
    assert teacher.sigma_init == pytest.approx(float(sigmas[625]))
    with pytest.raises(ValueError, match="outside the chain's 0 to 999"):
        teachers.load(diffusers=str(folder), options={"t_init": 1000}, device=CPU)
    with pytest.raises(ValueError, match="t_int"):
        teachers.load(diffusers=str(folder), options={"t_int": 625}, device=CPU)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: shutil.rmtree(f / "text_encoder"), "no text_encoder"),
        (lambda f: (f / "model_index.json").unlink(), "not a|no plain class|holds a"),
        (lambda f: (f / "unet/config.json").write_text("{"), "not JSON"),
        (
            lambda f: edit(f / "scheduler/scheduler_config.json", prediction_type="sample"),
            "known: epsilon, v_prediction",
        ),
        (
            lambda f: edit(f / "scheduler/scheduler_config.json", beta_schedule="squared"),
            "no betas called",
        ),
        (lambda f: edit(f / "unet/config.json", in_channels=9), "inpainting"),
        (lambda f: edit(f / "unet/config.json", cross_attention_dim=24), "has shape"),
        (
            lambda f: (f / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 100),
            "truncated",
        ),
        (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").unlink(), "cannot be read"),
        (lambda f: (f / "text_encoder/model.safetensors").write_bytes(b"\1" * 50), "cannot be"),
    ],
)
def test_a_broken_folder_is_refused_in_one_line(folder, tmp_path, spoil, says):
    copy = shutil.copytree(folder, tmp_path / "pipe")
    spoil(copy)
    with pytest.raises(ValueError, match=says) as error:
        teachers.load(diffusers=str(copy), device=CPU)
    assert "\n" not in str(error.value)


def test_a_label_is_not_a_prompt(teacher):
    with pytest.raises(ValueError, match="not a prompt"):
        teacher.encode([3])


def test_the_embedded_teacher_is_a_plain_pipeline_that_draws_what_it_is_asked():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(EMBEDDED / "fashion-text")
    pipe.set_progress_bar_config(disable=True)
    asked = [(c, g) for c in ("red", "white", "blue") for g in ("sneaker", "trouser", "bag")]
    prompts = [f"a photo of a {colour} {garment}" for colour, garment in asked]
    z = sample.initial_noise(np.arange(len(asked)), (4, 8, 8), CPU)
    pictures = pipe(prompts, num_inference_steps=25, guidance_scale=3.0, latents=z,
                    output_type="np").images  # fmt: skip
    images = (255 * pictures).round().astype(np.uint8)
    for factor, words in enumerate(zip(*asked, strict=True)):
        judge = classifiers.load(("fashion-text-colour", "fashion-text-garment")[factor])
        called = judge.probabilities(images).argmax(1)
        right = [judge.card.labels[i] == word for i, word in zip(called, words, strict=True)]
        assert sum(right) >= len(asked) - 1


def test_a_student_is_not_decoded_by_another_pipeline_than_its_teacher():
    known = stable_diffusion.folder_sha256(stable_diffusion.EMBEDDED / "fashion-text")
    ref = {"name": "fashion-text", "sha256": known}
    assert stable_diffusion.folder_of(ref).name == "fashion-text"
    with pytest.raises(ValueError, match="is another pipeline than the student was distilled from"):
        stable_diffusion.folder_of({**ref, "sha256": "0" * 64})


def test_large_images_are_drawn_and_decoded_a_few_at_a_time():
    assert [sample.rows_at_once(s) for s in ((1, 28, 28), (3, 32, 32), (4, 64, 64))] == [
        250,
        85,
        16,
    ]
    assert sample.rows_at_once((4, 1024, 1024)) == 1
    latents, pictures = (torch.zeros(20, 4, side, side, device="meta") for side in (64, 512))
    for parts in (stable_diffusion._split(latents, 8), stable_diffusion._split(pictures, 1)):
        assert [len(part) for part in parts] == [8, 8, 4]
    small = stable_diffusion._split(torch.zeros(100, 4, 8, 8), 4)
    assert [len(part) for part in small] == [64, 36]
