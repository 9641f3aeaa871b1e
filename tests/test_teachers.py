"""Adapters against the libraries and identities that they stand for."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from sfd import (
    checkpoints,
    configs,
    forgetting,
    images,
    jobs,
    networks,
    pretrain,
    sample,
    schedules,
    teachers,
)
from sfd.concepts import Concept
from sfd.teachers.ddpm import DDPMDenoiser, DiscreteTimes, predicted_x0
from sfd.teachers.edm import EDMDenoiser

CPU = torch.device("cpu")


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# --- x0 from eps and v, against diffusers' schedulers --------------------------------------------

CHAINS = {
    "linear": schedules.linear_betas(),
    "scaled_linear": torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2,
}


@pytest.mark.parametrize("which", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("chain", list(CHAINS))
def test_x0_equals_diffusers(which, kind, chain):
    import diffusers

    start, end = (1e-4, 0.02) if chain == "linear" else (0.00085, 0.012)
    scheduler = getattr(diffusers, which)(
        num_train_timesteps=1000,
        beta_schedule=chain,
        beta_start=start,
        beta_end=end,
        prediction_type=kind,
        clip_sample=False,
    )
    scheduler.set_timesteps(1000)
    sigmas, generator = schedules.vp_sigmas(CHAINS[chain]), torch.Generator().manual_seed(0)
    for t in (1, 38, 500, 980):
        x_t = torch.randn(2, 3, 4, 4, generator=generator)
        output = torch.randn(2, 3, 4, 4, generator=generator)
        theirs = scheduler.step(output, t, x_t, generator=generator).pred_original_sample
        sigma = sigmas[t].float().expand(2)
        seen = {}

        def predict(x, times, output=output, seen=seen):
            seen.update(x=x, t=times)
            return output

        x = x_t * (1 + sigma.reshape(-1, 1, 1, 1) ** 2).sqrt()  # the VE view
        times = DiscreteTimes(CHAINS[chain])
        mine = predicted_x0(predict, x, sigma, times(sigma), kind)
        torch.testing.assert_close(seen["x"], x_t, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(seen["t"], torch.full((2,), float(t)), rtol=0, atol=1e-2)
        scale = float(sigma[0]) + 1
        torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=2e-4 * scale)


def test_ddpm_denoiser_asks_its_network_at_the_right_time():
    options = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "image_size": 8, "n_classes": 3}
    torch.manual_seed(0)
    denoiser = DDPMDenoiser(options=options).eval()
    sigmas = schedules.vp_sigmas(schedules.linear_betas())
    t = torch.tensor([38, 440])
    sigma, x, cond = sigmas[t].float(), torch.randn(2, 3, 8, 8), torch.eye(3)[:2]
    a = (1 + sigma**2).rsqrt().reshape(-1, 1, 1, 1)
    with torch.no_grad():
        expected = x - sigma.reshape(-1, 1, 1, 1) * denoiser.model(a * x, t.float(), cond)
        torch.testing.assert_close(denoiser(x, sigma, cond), expected, rtol=1e-3, atol=1e-3)


# --- EDM preconditioning -------------------------------------------------------------------------


class Stub(nn.Module):
    """F(y, c_noise, labels) = 2 y + c_noise, and a record of what it was shown."""

    def forward(self, y, c_noise, labels):
        self.seen = (y, c_noise, labels)
        return 2 * y + c_noise.reshape(-1, 1, 1, 1)


def edm(patch: int, sigma_data: float = 0.5) -> EDMDenoiser:
    options = {"shape": (1, 2, 2), "label_dim": 2, "width": 4}
    denoiser = EDMDenoiser(network="mlp", options=options, patch=patch, sigma_data=sigma_data)
    denoiser.model = Stub()
    return denoiser


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("d", [0.5, 1.3])
def test_edm_preconditioning(patch, d):
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma, cond = torch.tensor([0.01, 0.5, 40.0]), torch.eye(2)[[0, 1, 0]]
    denoiser = edm(patch, d)
    actual = denoiser(x.float(), sigma, cond)
    s = sigma.double().reshape(-1, 1, 1, 1)
    c_skip, c_out = d**2 / (s**2 + d**2), s * d / (s**2 + d**2).sqrt()
    c_in, c_noise = 1 / (s**2 + d**2).sqrt(), s.log() / 4
    expected = c_skip * x + c_out * (2 * c_in * x + c_noise)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    y, noise, labels = denoiser.model.seen
    assert y.shape == (3, 2 * patch**2, 8 // patch, 8 // patch)
    torch.testing.assert_close(noise, c_noise.flatten().float())
    assert torch.equal(labels, cond)
    # each block of pixels is one position's channels: norm by block is kept, noise stays white
    blocks = (c_in * x).reshape(3, 2, 8 // patch, patch, 8 // patch, patch)
    torch.testing.assert_close(
        y.double().square().sum(1), blocks.square().sum((1, 3, 5)), rtol=1e-4, atol=1e-5
    )


def test_edm_is_float32_outside_under_autocast():
    teacher = teachers.load(name="mixture", device=CPU)
    student = teacher.make_student()
    x, sigma, cond = torch.randn(2, 1, 4, 4), torch.tensor([0.1, 3.0]), teacher.encode([0, None])
    full = student(x, sigma, cond)
    teachers.set_precision(student, "bf16")
    half = student(x, sigma, cond)
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.05)
    teachers.set_precision(student, "fp32")
    assert torch.equal(student(x, sigma, cond), full)


# --- diffusers folders ---------------------------------------------------------------------------

CHAIN = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


def unet(rows: int | None = 4):
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        num_class_embeds=rows,
    ).eval()


def folder(root, rows: int | None = 4, **scheduler):
    net = unet(rows)
    net.save_pretrained(root / "unet")
    (root / "scheduler").mkdir()
    chain = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, **CHAIN, **scheduler}
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps(chain))
    return net


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_diffusers_folder_equals_the_unet_run_directly(tmp_path, prediction):
    net = folder(tmp_path, prediction_type=prediction)
    teacher = teachers.load(
        diffusers=str(tmp_path), options={"labels": ["a", "b", "c"]}, device=CPU
    )
    teachers.check(teacher, "diffusers")
    assert teacher.shape == (3, 8, 8) and teacher.labels == ("a", "b", "c")
    sigmas = schedules.vp_sigmas(schedules.linear_betas())
    assert teacher.sigma_range == pytest.approx((sigmas[0].item(), sigmas[-1].item()))
    t = torch.tensor([20, 300, 800])
    x, sigma = torch.randn(3, 3, 8, 8), sigmas[t].float()
    s = sigma.reshape(-1, 1, 1, 1)
    a = (1 + s**2).rsqrt()
    for raw, rows in (([0, 1, 2], [0, 1, 2]), ([None, 2, None], [3, 2, 3])):
        with torch.no_grad():
            output = net(a * x, t, class_labels=torch.tensor(rows)).sample
            actual = teacher.denoiser(x, sigma, teacher.encode(raw))
        expected = x - s * output if prediction == "epsilon" else a**2 * x - a * s * output
        torch.testing.assert_close(actual, expected, rtol=2e-3, atol=2e-3)


def test_diffusers_folder_without_null_row(tmp_path):
    folder(tmp_path)
    teacher = teachers.load(diffusers=str(tmp_path), device=CPU)
    assert teacher.labels == ("0", "1", "2", "3") and not teacher.knows_null
    teachers.check(teacher, "diffusers")
    asked = ("guidance.train=2", "guidance.target=2", "guidance.labels={1: 2}")
    for override in asked:
        recipe = configs.load(
            "smoke", [f"teacher={{diffusers: {tmp_path}}}", "concepts=[]", override]
        )
        with pytest.raises(ValueError, match="knows no null condition, so guidance cannot be 2"):
            jobs.prepare("x", recipe, CPU)
    with pytest.raises(ValueError, match="knows no null condition, so guidance cannot be 1.5"):
        sample.teacher_sampler(teacher, guidance=1.5)
    with pytest.raises(ValueError, match="knows no null condition: name a class"):
        forgetting.anchor(teacher, [Concept("a", 0, "0", {1: 1.0}, "none")], to=None)


def test_threads_do_not_draw_each_others_labels(tmp_path):
    folder(tmp_path)
    teacher = teachers.load(diffusers=str(tmp_path), device=CPU)
    z, sigma = torch.randn(4, *teacher.shape), torch.full((4,), 2.5)
    conditions = [teacher.encode([label] * 4) for label in (0, 1)]
    with torch.no_grad():
        alone = [teacher.denoiser(2.5 * z, sigma, cond) for cond in conditions]
    assert not torch.allclose(*alone, atol=1e-3)

    both = Barrier(2)
    teacher.denoiser.times.register_forward_pre_hook(lambda *_: (both.wait(60), None)[1])

    def drawn(which: int) -> bool:
        with torch.no_grad():
            made = teacher.denoiser(2.5 * z, sigma, conditions[which])
        return torch.allclose(made, alone[which], atol=1e-4)

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(drawn, [0, 1] * 4))


def test_diffusers_unets_own_folder(tmp_path):
    folder(tmp_path)
    inner = teachers.load(diffusers=str(tmp_path / "unet"), device=CPU)
    outer = teachers.load(diffusers=str(tmp_path), device=CPU)
    x, sigma, cond = torch.randn(1, 3, 8, 8), torch.tensor([0.7]), outer.encode([2])
    assert torch.equal(inner.denoiser(x, sigma, cond), outer.denoiser(x, sigma, cond))


def test_a_diffusers_teachers_hash_is_of_its_chain_too(tmp_path):
    for name, chain in (("a", {}), ("b", {}), ("c", {"prediction_type": "v_prediction"})):
        folder(tmp_path / name, **chain)
    a, b, c = (teachers.load(diffusers=str(tmp_path / n), device=CPU).sha256 for n in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sample_size": None}, "names no sample_size"),
        ({"out_channels": 6}, "gives 6 channels for 3: a learned variance is not read"),
    ],
)
def test_unets_that_are_not_read(tmp_path, change, says):
    folder(tmp_path)
    path = tmp_path / "unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert says in load_error(tmp_path)


def test_diffusers_student_is_rebuilt_from_its_spec(tmp_path):
    folder(tmp_path)
    teacher = teachers.load(diffusers=str(tmp_path), device=CPU)
    spec = json.loads(json.dumps(teacher.spec))
    again = teachers.build_denoiser(spec).eval()
    again.load_state_dict(teacher.make_student().state_dict())
    x, sigma, cond = torch.randn(2, 3, 8, 8), torch.tensor([0.2, 5.0]), teacher.encode([0, 3])
    assert torch.equal(again(x, sigma, cond), teacher.denoiser(x, sigma, cond))


def test_diffusers_gradient_reaches_a_continuous_label(tmp_path):
    folder(tmp_path)
    teacher = teachers.load(diffusers=str(tmp_path), device=CPU)
    cond = teacher.encode([0]).requires_grad_()
    teacher.denoiser(torch.randn(1, 3, 8, 8), torch.tensor([1.0]), cond).sum().backward()
    assert cond.grad is not None and cond.grad.abs().sum() > 0


def load_error(path, **options) -> str:
    with pytest.raises(ValueError) as caught:
        teachers.load(diffusers=str(path), options=options, device=CPU)
    return one_line(caught)


def test_diffusers_folder_errors(tmp_path):
    assert "not a diffusers folder" in load_error(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "not a diffusers folder" in load_error(tmp_path / "empty")
    good = tmp_path / "good"
    folder(good)
    assert "names 7" in load_error(good, labels=list("abcdefg"))
    assert "unknown key 'lables'; did you mean 'labels'" in load_error(good, lables=["a"])
    weights = good / "unet" / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    assert "truncated" in load_error(good)
    weights.unlink()
    assert "no such weights file" in load_error(good)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"prediction_type": "sample"}, "prediction type 'sample'; known: epsilon, v_prediction"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "no betas called 'squaredcos_cap_v2'"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is set"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas is set"),
    ],
)
def test_diffusers_unknown_schedulers(tmp_path, scheduler, message):
    folder(tmp_path, **scheduler)
    assert message in load_error(tmp_path)


def test_diffusers_unfit_networks(tmp_path):
    folder(tmp_path / "none", rows=None)
    assert "no plain class embedding" in load_error(tmp_path / "none")
    folder(tmp_path / "other")
    config = tmp_path / "other" / "unet" / "config.json"
    data = json.loads(config.read_text())
    config.write_text(json.dumps({**data, "_class_name": "UNet2DConditionModel"}))
    assert "holds a UNet2DConditionModel" in load_error(tmp_path / "other")
    config.write_text(json.dumps({**data, "block_out_channels": [8, 8]}))
    assert "has shape" in load_error(tmp_path / "other")


# --- a user's own teacher ------------------------------------------------------------------------

MINE = """
import torch
from torch import nn
from sfd import Teacher
from sfd.teachers import one_hot

class Half(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
    def forward(self, x, sigma, cond):
        BODY

def build(*, device, scale=0.5):
    return Teacher(
        name="mine", denoiser=Half(scale).to(device),
        encode=lambda raw: one_hot(raw, 3, device), make_student=lambda: Half(scale).to(device),
        shape=(1, 4, 4), labels=("a", "b", "c"), spec={}, sha256="0",
    )

def wrong(*, device):
    return Half(0.5)
"""


def mine(root, body: str, name: str = "build", options=None):
    (root / "mine.py").write_text(MINE.replace("BODY", body))
    return teachers.load(factory=f"./mine.py:{name}", options=options or {}, device=CPU)


def test_own_teacher_by_factory(tmp_path):
    teacher = mine(tmp_path, "return self.scale * x", options={"scale": 0.25})
    assert teacher.name == "mine"
    x = torch.ones(1, 1, 4, 4)
    torch.testing.assert_close(teacher.denoiser(x, torch.ones(1), teacher.encode([0])), 0.25 * x)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return (self.scale * x).double()", "gives torch.float64"),
        ("return self.scale * x[:, :, :2]", "the contract wants float32 [2, 1, 4, 4]"),
        ("return self.scale * x / 0.0", "not finite"),
        ("return self.scale * x + torch.rand(())", "not deterministic"),
        ("return (self.scale * x).detach()", "no gradient flows"),
        ("return self.scale * x.detach()", "no gradient flows"),
    ],
)
def test_own_teachers_contract_violations_are_named(tmp_path, body, message):
    with pytest.raises(ValueError) as caught:
        mine(tmp_path, body)
    assert message in one_line(caught)


def test_own_teachers_other_errors(tmp_path):
    body = "return self.scale * x"
    for name, options, message in (
        ("wrong", {}, "returned Half, not sfd.Teacher"),
        ("biuld", {}, "did you mean 'build'?"),
        ("build", {"scales": 1}, "unknown key 'scales'; did you mean 'scale'"),
    ):
        with pytest.raises(ValueError) as caught:
            mine(tmp_path, body, name, options)
        assert message in one_line(caught)


# --- names, files, conditions --------------------------------------------------------------------


def test_loading_errors(tmp_path):
    for source, message in (
        ({"name": "mixtrue"}, "did you mean 'mixture'?"),
        ({"name": "mixture", "options": {"widht": 3}}, "unknown key 'widht'; did you mean"),
        ({"file": str(tmp_path / "none.safetensors")}, "no such weights file"),
        ({"file": "x", "options": {"a": 1}}, "takes no options"),
    ):
        with pytest.raises(ValueError) as caught:
            teachers.load(**source, device=CPU)
        assert message in one_line(caught)
    with pytest.raises(ValueError, match="no denoiser called 'edn'"):
        teachers.build_denoiser({"kind": "edn"})


def test_a_model_file_runs_no_code_that_came_with_it(tmp_path):
    code, ran = tmp_path / "mine.py", tmp_path / "ran"
    code.write_text(f"open({str(ran)!r}, 'w').close()\ndef build(): pass\n")
    teacher = teachers.load(name="mixture", device=CPU)
    student = teacher.make_student()
    card = {
        "schema": "sfd/model/1", "role": "teacher", "name": "mine", "labels": list(teacher.labels),
        "shape": list(teacher.shape), "sigma_range": [0.002, 80.0], "sigma_init": 2.5,
        "without": [], "spec": {"kind": f"{code}:build"},
    }  # fmt: skip
    file = tmp_path / "mine.safetensors"
    for kind, says in ((f"{code}:build", "no denoiser called"), ("edm", "denoiser of kind edm")):
        card["spec"] = {"kind": kind}
        checkpoints.write_model(file, student, card, half=False)
        with pytest.raises(ValueError, match=says):
            teachers.load(file=str(file), device=CPU)
    ref = {"factory": f"{code}:build", "options": {}, "sha256": "0"}
    with pytest.raises(ValueError, match="takes --teacher"):
        teachers.of_card(ref, CPU)
    with pytest.raises(ValueError, match="takes --teacher"):
        teachers.of_card(ref, CPU, trusted="./other.py:build")
    assert not ran.exists()
    with pytest.raises(ValueError, match="build"):
        teachers.of_card(ref, CPU, trusted=f"{code}:build")  # ran, and returned no teacher
    assert ran.exists()


@pytest.mark.parametrize("name", teachers.embedded())
def test_embedded_teachers_keep_the_contract(name):
    teacher = teachers.load(name=name, device=CPU)
    teachers.check(teacher, name)
    assert not any(p.requires_grad for p in teacher.denoiser.parameters())


def test_one_hot():
    rows = teachers.one_hot([0, None, 2, 1], 3, CPU, null=(1,))
    assert rows.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert teachers.one_hot([], 3, CPU).shape == (0, 3)
    for label in (3, -1):
        with pytest.raises(ValueError, match=f"label {label} is outside"):
            teachers.one_hot([label], 3, CPU)


@pytest.mark.parametrize("label", ["right", 1.5, [1], np.float32(1)])
def test_a_condition_that_is_no_class_number_is_refused(label):
    with pytest.raises(ValueError, match="give a class's number, 0 to 2") as error:
        teachers.one_hot([label], 3, CPU)
    one_line(error)


# --- model files ---------------------------------------------------------------------------------

CONCEPT = {"name": "a", "label": 0, "label_name": "a", "override": {"1": 1.0}, "classifier": "j"}


def student_file(path, change=lambda card: None, spoil=lambda tensors: None):
    """A student of two labels, with a change of its card and of its weights."""
    options = {"shape": [1, 2, 2], "label_dim": 2, "width": 4}
    spec = {"kind": "edm", "network": "mlp", "options": options}
    card = {
        "schema": "sfd/model/1", "role": "student", "name": "s", "spec": spec, "shape": [1, 2, 2],
        "labels": ["a", "b"], "without": [], "sigma_range": [0.002, 80.0], "sigma_init": 2.5,
        "concepts": [CONCEPT], "teacher": {"name": "mixture", "options": {}, "sha256": "0" * 64},
    }  # fmt: skip
    tensors = teachers.build_denoiser(spec).state_dict()
    changed = change(card)
    spoil(tensors)
    text = changed if isinstance(changed, str) else json.dumps(card)
    checkpoints.write_tensors(path, tensors, {"sfd": text})
    return path


def test_seeds_are_whole_numbers(tmp_path):
    student = sample.load(student_file(tmp_path / "s.safetensors"))
    assert student.sample([1, None], [3, 4]).shape == (2, 2, 2, 1)
    assert student.sample([], []).shape[0] == 0
    for seeds in ([0.5], ["a"], [2**70]):
        with pytest.raises(ValueError, match="seeds must be whole numbers"):
            student.sample([1], seeds)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    def spoil(tensors):
        tensors["model.net.2.bias"][1] = value

    with pytest.raises(ValueError, match="'model.net.2.bias' holds values that are not") as error:
        sample.load(student_file(tmp_path / "s.safetensors", spoil=spoil))
    assert "s.safetensors" in one_line(error)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda card: "{", "the card in its metadata is not JSON"),
        (lambda card: "[1]", "schema is None"),
        (lambda card: card.update(schema="sfd/model/9"), "schema is 'sfd/model/9'"),
        (lambda card: card.pop("labels") and None, "key 'labels' is missing"),
        (lambda card: card.pop("spec") and None, "key 'spec' is missing"),
        (lambda card: card.pop("concepts") and None, "key 'concepts' is missing"),
        (lambda card: card.pop("teacher") and None, "key 'teacher' is missing"),
        (lambda card: card["teacher"].pop("sha256") and None, "'teacher.sha256' is missing"),
        (lambda card: card["teacher"].pop("name") and None, "exactly one of name"),
        (lambda card: card.update(sigma_init="x"), "sigma_init: is x, should be a valid number"),
        (lambda card: card.update(sigma_init=0), "sigma_init: is 0, should be greater than 0"),
        (lambda card: card.update(without=[2]), "names label 2 among 2 labels"),
        (lambda card: card.update(labels=["a", "b", "c"]), "not one of shape [1, 2, 2] and 3"),
        (lambda card: card.update(shape=[1, 3, 2]), "not one of shape [1, 3, 2] and 2 labels"),
        (lambda card: card["spec"].update(kind="x"), "spec builds no network"),
        (lambda card: card["spec"].update(options=3), "spec builds no network"),
        (lambda card: card.update(concepts=[{}]), "concepts.0"),
        (lambda card: card.update(concepts=[CONCEPT | {"label": 5}]), "names label 5 among 2"),
    ],
)
def test_cards_of_the_wrong_form_are_refused_in_one_line(tmp_path, change, says):
    with pytest.raises(ValueError) as error:
        sample.load(student_file(tmp_path / "s.safetensors", change))
    assert says in one_line(error) and "s.safetensors" in str(error.value)


def test_uint8_round_trip():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x0 = teachers.from_uint8(images)
    assert x0.shape == (1, 1, 16, 16) and x0.min() == -1 and x0.max() == 1
    assert np.array_equal(teachers.to_uint8(x0), images)
    assert teachers.to_uint8(torch.full((1, 1, 1, 1), 9.0)).item() == 255
    assert teachers.to_uint8(torch.full((1, 1, 1, 1), -9.0)).item() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_image_that_is_not_finite_is_no_picture(value):
    x0 = torch.zeros(3, 1, 2, 2)
    x0[1, 0, 1, 0] = value
    with pytest.raises(teachers.NotFinite, match="1 of 3 images hold values") as error:
        teachers.to_uint8(x0)
    one_line(error)
    assert error.value.made.tolist() == [True, False, True]
    assert error.value.images.tolist() == teachers.to_uint8(x0[[0, 2]]).tolist()
    with pytest.raises(teachers.NotFinite) as error:
        teachers.to_uint8(x0[1:2])
    assert error.value.images.shape == (0, 2, 2, 1)


def test_a_student_that_overflows_says_which_images_are_lost(tmp_path):
    student = sample.load(student_file(tmp_path / "s.safetensors"), batch=2)
    raw, seeds = [0, 1, 0, 1, 0], np.arange(5)
    whole = student.sample(raw, seeds)
    lost = student.sample([0], np.array([3]))  # the fourth, whose batch has another

    def overflow(module, given, x0):
        z = sample.initial_noise(np.array([3]), (1, 2, 2), CPU)
        return x0.masked_fill((given[0] == 2.5 * z).flatten(1).all(1)[:, None, None, None], np.nan)

    student.denoiser.register_forward_hook(overflow)
    with pytest.raises(teachers.NotFinite, match="1 of 5 images") as error:
        student.sample(raw, seeds)
    assert lost.shape == (1, 2, 2, 1)
    assert error.value.made.tolist() == [True, True, True, False, True]
    assert np.array_equal(error.value.images, whole[error.value.made])


def test_networks_by_name():
    with pytest.raises(ValueError, match="no network called 'unet'"):
        networks.build("unet")


# --- sfd pretrain --------------------------------------------------------------------------------


def tiny(classes: int, seen: int) -> dict[str, Any]:
    """A recipe of a teacher of `classes` labels, of which the data have the first `seen`."""
    pictures = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1)).astype(np.uint8)
    np.savez("data.npz", images=pictures, labels=np.arange(40) % seen)
    unet = {"img_resolution": 4, "img_channels": 1, "label_dim": classes, "model_channels": 8,
            "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}  # fmt: skip
    return {
        "version": 1, "kind": "teacher", "name": "tiny", "data": "data.npz",
        "labels": [str(label) for label in range(classes)],
        "network": {"name": "edm-unet", "options": unet},
        "train": {"images": 16, "batch": 8, "ema_images": 8, "precision": "fp32"},
    }  # fmt: skip


def taught(folder: str, recipe: dict[str, Any]) -> Path:
    checked = configs.TeacherRecipe.model_validate(recipe)
    return pretrain.run(
        checked, Path(folder), device=CPU, force=False, progress=lambda what, done, total: None
    )


def test_a_sheet_is_drawn_in_batches_however_many_classes(monkeypatch):
    asked, heun = [], pretrain.solvers.heun

    def counted(denoise, z, **options):
        asked.append(len(z))
        return heun(denoise, z, **options)

    monkeypatch.setattr(pretrain.solvers, "heun", counted)
    taught("out", tiny(40, 40))
    assert asked == [8] * sample.ROWS, "no more at once than are trained on"
    sheet = images.read_image(Path("out/samples/000000016.png"))
    assert sheet.shape[0] == 12 * (sample.ROWS * 5 - 1)


def test_two_processes_teach_one_teacher_that_one_of_them_writes():
    recipe = tiny(4, 4)
    Path("tiny.yaml").write_text(yaml.safe_dump(recipe))
    one, _ = checkpoints.read_tensors(taught("one", recipe))
    code = (
        "from sfd import checkpoints, cli, state\n"
        "write = checkpoints.write_model\n"
        "def noted(*args, **options):\n"
        "    write(*args, **options)\n"
        "    open(f'wrote-{state.world()[0]}', 'w').close()\n"
        "checkpoints.write_model = noted\n"
        "cli.app(['pretrain', 'tiny.yaml', 'out=two', '--device', 'cpu'])\n"
    )
    Path("noted.py").write_text(code)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [sys.executable, *launch, "noted.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path.name for path in Path().glob("wrote-*")] == ["wrote-0"]
    two, _ = checkpoints.read_tensors(Path("two/tiny.safetensors"))
    assert all(torch.allclose(two[key], one[key], atol=1e-3) for key in one)


def test_a_class_without_images_cannot_be_taught():
    with pytest.raises(
        ValueError, match="labels: no image of '4' in the data: exclude it"
    ) as error:
        taught("out", tiny(6, 4))
    one_line(error)
    meta = checkpoints.read_meta(taught("out", tiny(6, 4) | {"exclude": [4, 5]}))
    assert checkpoints.read_card(meta, "it")["without"] == [4, 5]


def test_a_network_that_does_not_look_at_its_label_is_not_taught():
    blind = tiny(4, 4)
    del blind["network"]["options"]["label_dim"]
    with pytest.raises(ValueError, match=r"does not look at its label.*\(label_dim\)") as error:
        taught("out", blind)
    one_line(error)
    assert not Path("out/state").exists()
    alone = tiny(1, 1)
    del alone["network"]["options"]["label_dim"]
    assert taught("one", alone).is_file()


def test_a_teacher_never_shown_an_image_without_its_label_is_not_guided():
    recipe = tiny(4, 4)
    recipe["train"]["label_dropout"] = 0.0
    teacher = teachers.load(file=str(taught("out", recipe)), device=CPU)
    with pytest.raises(ValueError, match="knows no null condition, so guidance cannot be 3"):
        sample.teacher_sampler(teacher, guidance=3.0)
    assert teachers.load(file=str(taught("shown", tiny(4, 4))), device=CPU).knows_null
    with pytest.raises(ValueError, match="never shown either"):
        configs.TeacherRecipe.model_validate(recipe | {"exclude": [1]})


def test_the_order_of_an_epoch_is_a_permutation_kept_for_the_epoch(monkeypatch):
    drawn = []
    uniform = pretrain.noise.uniform
    monkeypatch.setattr(
        pretrain.noise, "uniform", lambda *key: drawn.append(key[0]) or uniform(*key)
    )
    parts = [pretrain.data_order(10, np.arange(i, i + 4), 77) for i in range(0, 20, 4)]
    order = np.concatenate(parts)
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert not np.array_equal(order[:10], order[10:]) and len(drawn) == 2
