"""The networks reproduce the published ones' outputs, under the published names."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from sfd import networks

DATA = Path(__file__).parent / "data"


def fill(module: torch.nn.Module, prefix: str = "") -> None:
    """Weights that follow from the names alone, as the golden files' did."""
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if key.endswith("resample_filter"):
                continue
            seed = zlib.crc32((prefix + key).encode())
            a = np.random.RandomState(seed).standard_normal(tuple(value.shape)).astype(np.float32)
            a *= np.float32(np.prod(value.shape[1:]) ** -0.5 if value.ndim > 1 else 0.1)
            value.copy_(torch.from_numpy(a))


def shapes(module: torch.nn.Module, prefix: str = "") -> dict[str, list[int]]:
    return {prefix + key: list(value.shape) for key, value in module.state_dict().items()}


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "adm"])
def test_edm_golden_output(name):
    config = json.loads((DATA / "golden_configs.json").read_text())[name]
    net = networks.build("edm-unet", **config["init_kwargs"]).eval()
    assert shapes(net, "model.") == config["state_dict"]
    fill(net, "model.")
    golden = {k: torch.from_numpy(v) for k, v in np.load(DATA / f"golden_{name}.npz").items()}
    sigma = golden["sigma"].reshape(-1, 1, 1, 1)
    c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    with torch.no_grad():
        raw = net(
            golden["x"] / (sigma**2 + 0.25).sqrt(), golden["sigma"].log() / 4, golden["labels"]
        )
    torch.testing.assert_close(
        c_skip * golden["x"] + c_out * raw, golden["output"], atol=1e-5, rtol=0
    )


def test_ddpm_golden_output():
    config = json.loads((DATA / "golden_ddpm_config.json").read_text())
    state = config.pop("state_dict")
    net = networks.build("ddpm-unet", **config).eval()
    assert shapes(net) == state
    fill(net)
    golden = {k: torch.from_numpy(v) for k, v in np.load(DATA / "golden_ddpm.npz").items()}
    one_hot = torch.nn.functional.one_hot(golden["labels"].long(), 10).float()
    with torch.no_grad():
        output = net(golden["x"], golden["t"], one_hot)
        null = net(golden["x"], golden["t"], torch.zeros_like(one_hot))
    torch.testing.assert_close(output, golden["output"], atol=1e-5, rtol=0)
    torch.testing.assert_close(null, golden["output_null"], atol=1e-5, rtol=0)


EDM_OPTIONS = {
    "edm-cifar10-32x32-cond-vp (DDPM++, SongUNet)": {
        "model_type": "SongUNet",
        "img_resolution": 32,
        "img_channels": 3,
        "label_dim": 10,
        "augment_dim": 9,
        "model_channels": 128,
        "channel_mult": [2, 2, 2],
        "num_blocks": 4,
        "attn_resolutions": [16],
        "embedding_type": "positional",
        "encoder_type": "standard",
        "resample_filter": [1, 1],
        "dropout": 0.13,
    },
    "edm-imagenet-64x64-cond-adm (ADM, DhariwalUNet)": {
        "model_type": "DhariwalUNet",
        "img_resolution": 64,
        "img_channels": 3,
        "label_dim": 1000,
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "num_blocks": 3,
        "attn_resolutions": [32, 16, 8],
    },
}


def assert_fits(net: torch.nn.Module, prefix: str, published: dict) -> None:
    assert shapes(net, prefix) == published["state_dict"]
    assert sum(p.numel() for p in net.parameters()) == published["parameters"]


@pytest.mark.parametrize("name", list(EDM_OPTIONS))
def test_published_edm_state_dicts_fit(name):
    every = json.loads((DATA / "edm_state_dicts.json").read_text())
    assert set(every) == set(EDM_OPTIONS)
    with torch.device("meta"):
        net = networks.build("edm-unet", **EDM_OPTIONS[name])
    assert_fits(net, "model.", every[name])


def test_published_ddpm_state_dict_fits():
    options = {
        "ch": 128,
        "ch_mult": [1, 2, 2, 2],
        "num_res_blocks": 2,
        "attn_resolutions": [16],
        "image_size": 32,
        "n_classes": 10,
        "in_channels": 3,
        "dropout": 0.1,
    }
    with torch.device("meta"):
        net = networks.build("ddpm-unet", **options)
    assert_fits(net, "", json.loads((DATA / "ddpm_state_dict.json").read_text()))
