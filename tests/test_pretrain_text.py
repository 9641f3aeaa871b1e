"""A text-to-image teacher of one's own captioned images."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode

from sfd import checkpoints, configs, pretrain_text, teachers

CPU = torch.device("cpu")
CAPTIONS = ["a red hat", "a blue hat", "a red shoe", "one Shoe in blue"]
RECIPE = {
    "version": 1,
    "kind": "text-teacher",
    "name": "hats",
    "data": "data.npz",
    "vae": {"channels": [8, 16], "latent": 4, "images": 64, "batch": 16},
    "text": {"vocabulary": 520, "length": 12, "width": 16, "layers": 1, "heads": 2},
    "unet": {"channels": [16, 32], "layers": 1, "heads": 2},
    "train": {"images": 64, "batch": 16, "warmup": 0, "ema_images": 16, "sheets": 64},
}


@pytest.fixture(autouse=True)
def data():
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)
    np.savez("data.npz", images=images, captions=CAPTIONS * 10)


def pretrained(folder: str, **changes) -> Path:
    Path("hats.yaml").write_text(yaml.safe_dump(RECIPE | changes))
    recipe = configs.load_teacher("hats.yaml")
    assert isinstance(recipe, configs.TextTeacherRecipe)
    return pretrain_text.run(
        recipe, Path(folder), device=CPU, force=False, progress=lambda what, done, total: None
    )


def test_a_plain_pipeline_comes_out():
    from diffusers import StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

    out = pretrained("first")
    pipeline = StableDiffusionPipeline.from_pretrained(out, safety_checker=None)
    drawn = pipeline("a red hat", num_inference_steps=2, output_type="np").images  # pyright: ignore
    assert drawn.shape == (1, 16, 16, 3)
    teacher = teachers.load(diffusers=str(out), device=CPU)
    assert teacher.shape == (4, 8, 8) and not teacher.labels
    about = checkpoints.read_json(out / "sfd.json")
    assert about["data_rows"] == 40 and about["exclude"] == []
    assert pretrained("first") == out  # done: nothing is trained again
    with pytest.raises(ValueError, match="another recipe"):
        pretrained("first", train=RECIPE["train"] | {"seed": 1})


def test_a_resumed_teacher_equals_an_uninterrupted_one(monkeypatch):
    whole = pretrained("whole")
    loop = pretrain_text.state.loop

    def cut(run, *, step, **rest):
        def stepped(nimg: int):
            if "nets" in run.modules and nimg == 32 and not Path("cut").exists():
                Path("cut").touch()
                raise OSError(28, "No space left on device")
            return step(nimg)

        return loop(run, step=stepped, **(rest | {"checkpoint": 16}))

    monkeypatch.setattr(pretrain_text.state, "loop", cut)
    with pytest.raises(OSError):
        pretrained("parts")
    parts = pretrained("parts")
    for name in ("unet", "text_encoder", "vae"):
        (file,) = (whole / name).glob("*.safetensors")
        expected, _ = checkpoints.read_tensors(file)
        found, _ = checkpoints.read_tensors(parts / name / file.name)
        assert all(torch.equal(found[key], value) for key, value in expected.items()), name


def test_a_twin_that_never_saw_a_word():
    out = pretrained("twin", exclude=["shoe"])
    about = checkpoints.read_json(out / "sfd.json")
    assert (about["data_rows"], about["exclude"]) == (20, ["shoe"])


@pytest.mark.parametrize("words, says", [
    (["boot"], "'boot' is in no caption"), (["hat", "shoe"], "'shoe' is in every caption"),
    ([], "at least 1"), ([""], "at least 1"),
])  # fmt: skip
def test_words_that_exclude_nothing_or_all(words, says):
    with pytest.raises(ValueError, match=says):
        pretrained("twin", exclude=words)
    assert not list(Path().glob("twin/*.part"))


def test_several_processes_would_write_over_one_another(monkeypatch):
    monkeypatch.setattr(pretrain_text.state, "world", lambda: (1, 2))
    with pytest.raises(ValueError, match="one process, and this launch has 2"):
        pretrained("torn")
    assert not Path("torn").exists()


def test_every_process_learns_the_same_tokenizer():
    words = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in "nrst"]  # many are alike
    Path("words.txt").write_text("\n".join(f"a {word} hat" for word in words))
    code = (
        "import json, sys\n"
        "from sfd import pretrain_text\n"
        "lines = open('words.txt').read().splitlines()\n"
        "made = pretrain_text.train_tokenizer(lines, vocabulary=600, length=16)\n"
        "print(json.dumps(made.get_vocab(), sort_keys=True))\n"
    )
    command = [sys.executable, "-c", code]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    assert first == second and len(json.loads(first)) == 600


def test_scale_is_folded_into_weights_that_are_elsewhere():
    """As on a machine with CUDA, whose tensors are imagined here."""
    from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]

    with FakeTensorMode():
        with torch.device("cuda"):
            vae = AutoencoderKL(
                block_out_channels=(8,), down_block_types=("DownEncoderBlock2D",),
                up_block_types=("UpDecoderBlock2D",), latent_channels=4, norm_num_groups=8,
            )  # fmt: skip
        folded = pretrain_text.fold_scale(vae, torch.randn(10, 4, 4, 4, device="cpu"))
    assert folded.device == CPU and folded.shape == (10, 4, 4, 4)
