"""Class-conditional `UNet2DModel` folders of diffusers, seen as a denoiser."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfd import checkpoints, content
from sfd.schedules import named_betas
from sfd.teachers.contract import Teacher, one_hot
from sfd.teachers.ddpm import DiscreteTimes, predicted_x0, shape_of

_WEIGHTS = "diffusion_pytorch_model.safetensors"


class Mixed(nn.Embedding):
    """An embedding that is asked with the weight of each of its rows, `[B, K]`."""

    def forward(self, weights: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return weights @ self.weight


class DiffusersDenoiser(nn.Module):
    """A `UNet2DModel` (under `model`) with a class embedding, at a DDPM's discrete times.

    `config` is the network's, `prediction` "epsilon" or "v_prediction", `betas` name and options of
    the chain. Row K of the class embedding is the null condition where there are K + 1 rows.
    """

    def __init__(
        self, *, config: dict[str, Any], prediction: str, betas: dict[str, Any], classes: int
    ):
        super().__init__()
        from diffusers import UNet2DModel  # pyright: ignore[reportPrivateImportUsage]

        self.model: Any = UNet2DModel.from_config(config)
        # linear in the label, as every class-conditional denoiser here
        self.model.class_embedding = Mixed.from_pretrained(
            self.model.class_embedding.weight, freeze=False
        )
        self.times = DiscreteTimes(named_betas(**betas))
        self.prediction, self.classes = prediction, classes
        self.precision: torch.dtype | None = None

    def forward(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        known = self.model.class_embedding.num_embeddings
        rows = torch.cat([cond, 1 - cond.sum(1, keepdim=True)], 1)[:, :known]

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            with torch.autocast(x.device.type, self.precision, enabled=self.precision is not None):
                return self.model(x_t, t, class_labels=rows).sample

        return predicted_x0(predict, x, sigma, self.times(sigma), self.prediction)


def load(folder: Path, *, labels: list[str] | None = None, device: torch.device) -> Teacher:
    """A teacher from a diffusers folder (see `read_spec`), whose classes are called `labels`. Its
    hash is of the weights and of how they are read.

    Raises ValueError where `read_spec` does, and if the weights do not fit.
    """
    spec = read_spec(folder, labels)
    weights = _network(folder) / _WEIGHTS
    denoiser = DiffusersDenoiser(**{k: v for k, v in spec.items() if k != "kind"})
    tensors, _ = checkpoints.read_tensors(weights)
    checkpoints.load_strictly(denoiser.model, tensors, str(weights))
    denoiser = denoiser.to(device).eval().requires_grad_(False)
    sigmas = denoiser.times.get_buffer("sigmas")
    classes, rows = spec["classes"], spec["config"]["num_class_embeds"]
    return Teacher(
        name=folder.name,
        denoiser=denoiser,
        encode=partial(one_hot, classes=classes, device=device),
        make_student=partial(copy.deepcopy, denoiser),
        shape=shape_of(spec["config"]),
        labels=tuple(labels or (str(label) for label in range(classes))),
        spec=spec,
        sha256=content.hash_json({"weights": content.sha256(weights), "spec": spec}),
        sigma_range=(float(sigmas[0]), float(sigmas[-1])),
        knows_null=rows > classes,
    )


def _network(folder: Path) -> Path:
    return folder / "unet" if (folder / "unet").is_dir() else folder


def read_spec(folder: Path, labels: list[str] | None = None) -> dict[str, Any]:
    """Plain data that rebuilds the denoiser of a diffusers folder: `unet/` and `scheduler/`, or the
    UNet's files alone, whose chain is DDPM's linear one then.

    Raises ValueError if a part is missing, the network has no class embedding or an unusual one, or
    the scheduler's prediction type or betas are unknown.
    """
    unet = _network(folder)
    config = checkpoints.read_json(unet / "config.json")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    chain = checkpoints.read_json(scheduler) if scheduler.exists() else {}
    prediction = chain.get("prediction_type", "epsilon")
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(f"{unet}: holds a {config.get('_class_name')}, not a UNet2DModel")
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"{scheduler}: prediction type {prediction!r}; known: epsilon, v_prediction"
        )
    for key in ("trained_betas", "rescale_betas_zero_snr"):
        if chain.get(key):
            raise ValueError(
                f"{scheduler}: {key} is set; only a chain named by beta_schedule is read"
            )
    size, channels, out = (config.get(k) for k in ("sample_size", "in_channels", "out_channels"))
    if not size or not channels:
        raise ValueError(f"{unet}: its config names no sample_size, so nobody knows what it draws")
    if out != channels:
        raise ValueError(f"{unet}: gives {out} channels for {channels}: a"
                         " learned variance is not read")  # fmt: skip
    rows = config.get("num_class_embeds")
    if not rows or config.get("class_embed_type") is not None:
        raise ValueError(f"{unet}: has no plain class embedding (num_class_embeds)")
    if labels is not None and len(labels) not in (rows, rows - 1):
        raise ValueError(f"{unet}: has {rows} classes, options.labels names {len(labels)}")
    return {
        "kind": "diffusers-unet",
        "config": {k: v for k, v in config.items() if not k.startswith("_")},
        "prediction": prediction,
        "betas": {
            "name": chain.get("beta_schedule", "linear"),
            "start": chain.get("beta_start", 1e-4),
            "end": chain.get("beta_end", 0.02),
            "steps": chain.get("num_train_timesteps", 1000),
        },
        "classes": len(labels or range(rows)),
    }
