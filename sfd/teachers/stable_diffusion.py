"""Stable Diffusion pipeline folders (SD 1.x and 2.x), seen as a denoiser of latents.

Latents are in the VAE's scaled units, noised in the VE view; the adapter scales them for the
network by 1/sqrt(1 + sigma^2) and turns its epsilon- or v-prediction into x0.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sfd import checkpoints, content
from sfd.schedules import named_betas
from sfd.teachers.contract import Raw, Teacher, to_uint8
from sfd.teachers.ddpm import DiscreteTimes, predicted_x0, shape_of

PARTS = ("unet", "text_encoder", "tokenizer", "vae", "scheduler")
EMBEDDED = Path(__file__).parent / "weights"
WEIGHTS = "diffusion_pytorch_model.safetensors"
_STEMS = ("diffusion_pytorch_model", "model")
"""What the file of a part's weights is called (diffusers', transformers'), or its shards begin
with."""
_SHARD = re.compile(rf"({'|'.join(_STEMS)})-\d+-of-\d+\.safetensors")


class StableDiffusionDenoiser(nn.Module):
    """A `UNet2DConditionModel` (under `model`) at a chain's discrete times.

    `cond [B, L, D]` are the text encoder's last hidden states. `config` is the network's,
    `prediction` "epsilon" or "v_prediction", `betas` name and options of the chain, or its values.
    """

    def __init__(
        self, *, config: dict[str, Any], prediction: str, betas: dict[str, Any] | list[float]
    ):
        super().__init__()
        from diffusers import UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]

        self.model: Any = UNet2DConditionModel.from_config(config)
        if not torch.cuda.is_available():
            unfuse_if_small(self.model)
        self.times = DiscreteTimes(betas_of(betas))
        self.prediction = prediction
        self.precision: torch.dtype | None = None

    def forward(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            with torch.autocast(x.device.type, self.precision, enabled=self.precision is not None):
                return self.model(x_t, t, encoder_hidden_states=cond, return_dict=False)[0]

        return predicted_x0(predict, x, sigma, self.times(sigma), self.prediction)


def unfuse_if_small(unet: Any) -> None:
    """Attention without a fused kernel, whose backward takes 40 % of a small network's step on a
    CPU; the matrix that it spares is a gigabyte an image at Stable Diffusion's size."""
    from diffusers.models.attention_processor import AttnProcessor

    if shape_of(unet.config)[1] <= 16:
        unet.set_attn_processor(AttnProcessor())


def betas_of(betas: dict[str, Any] | list[float]) -> Tensor:
    """A chain's betas from a spec, float64 `[T]`."""
    if isinstance(betas, list):
        return torch.tensor(betas, dtype=torch.float64)
    return named_betas(**betas)


def embedded(name: str | None) -> Path | None:
    """The folder of the pipeline that the package carries under a name, if it is one."""
    folder = EMBEDDED / (name or "")
    return folder if name and (folder / "model_index.json").is_file() else None


def folder_of(ref: Mapping[str, Any]) -> Path:
    """The pipeline folder that a student's card names as its teacher.

    Raises ValueError if it is gone, or another lies there: the student would be decoded by that.
    """
    embedded = EMBEDDED / str(ref.get("name", ""))
    folder = embedded if ref.get("name") else Path(ref.get("diffusers") or "").expanduser()
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"{folder}: the teacher's pipeline folder is gone; its text encoder and VAE are needed"
        )
    if "sha256" in ref and folder_sha256(folder) != ref["sha256"]:
        raise ValueError(f"{folder}: is another pipeline than the student was distilled from")
    return folder


PIXELS = 2**21
"""Through an autoencoder at once: eight images of Stable Diffusion's, 6 GiB."""
KNOWN = 4096
"""Prompts whose embeddings are kept: a gigabyte of Stable Diffusion 1.5's."""


class Parts:
    """A pipeline's way in and out: prompts to embeddings, latents to images.

    Both networks stay on the CPU between calls, but for those that gradients flow through, and so
    do the embeddings of `KNOWN` prompts, which are not computed again.
    """

    def __init__(self, folder: Path, device: torch.device):
        from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]
        from transformers import CLIPTextModel, CLIPTokenizer

        for part in ("text_encoder", "tokenizer", "vae"):
            if not (folder / part).is_dir():
                raise ValueError(f"{folder}: has no {part}: not a whole Stable Diffusion pipeline")
        self.device = device
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        self.text: Any = _pretrained(CLIPTextModel, folder / "text_encoder")
        self.vae: Any = _pretrained(AutoencoderKL, folder / "vae")
        self.known: dict[str, Tensor] = {}
        self._turn = RLock()  # the tokenizer and the text encoder hold what they are asked

    @torch.no_grad()
    def encode(self, raw: Raw) -> Tensor:
        """Prompts to `[B, L, D]` float32 on the device; None is the empty prompt.

        A prompt beyond the tokenizer's limit is cut there, as diffusers does.
        """
        prompts = ["" if prompt is None else prompt for prompt in raw]
        wrong = next((p for p in prompts if not isinstance(p, str)), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r} is not a prompt: this model is asked in words")
        with self._turn:
            new = sorted(set(prompts) - self.known.keys())
            if new:
                self.text.to(self.device)
                for start in range(0, len(new), 64):
                    part = new[start : start + 64]
                    tokens = self.tokens(part)
                    found = self.text(tokens)[0].float().cpu()
                    self.known.update(zip(part, found, strict=True))
                self.text.to("cpu")
            out = torch.stack([self.known[prompt] for prompt in prompts])
            if len(self.known) > KNOWN:
                self.known.clear()
        return out.to(self.device)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> np.ndarray:
        """Latents `[B, C, h, w]` to uint8 `[B, H, W, 3]`."""
        scale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        images = torch.cat([self.pixels(part) for part in _split(x0, scale)])
        self.vae.to("cpu")
        return to_uint8(images)

    def pixels(self, x0: Tensor) -> Tensor:
        """Latents `[B, C, h, w]` to images `[B, 3, H, W]` in about [-1, 1]; gradients flow."""
        config = self.vae.config
        latents = x0.float() / config.scaling_factor + (config.get("shift_factor") or 0.0)
        return self.vae.to(x0.device).decode(latents).sample

    @torch.no_grad()
    def latents(self, pictures: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in [-1, 1] to latents `[B, C, h, w]`: the encoder's mean."""
        config = self.vae.config
        vae = self.vae.to(pictures.device)
        parts = [vae.encode(part).latent_dist.mode() for part in _split(pictures, 1)]
        found = torch.cat(parts)
        return (found - (config.get("shift_factor") or 0.0)) * config.scaling_factor

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to int64 `[B, L]` on the device, cut at the tokenizer's limit."""
        with self._turn:
            read = self.tokenizer(
                list(prompts),
                padding="max_length",
                max_length=self.tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
        return read.input_ids.to(self.device)

    def text_of(self, tokens: Tensor) -> str:
        """What to type for tokens `[K]`."""
        plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return self.tokenizer.decode(tokens.tolist(), **plain).strip()

    def states(self, tokens: Tensor, embedded: Tensor | None = None) -> Tensor:
        """The text encoder's last hidden states `[B, L, D]` of tokens `[B, L]`; gradients flow.

        `embedded [B, L, E]` takes the place of the tokens' rows of `embeddings`.
        """
        with self._turn:
            text = self.text.to(self.device)
            if embedded is None:
                return text(tokens)[0].float()
            hook = text.get_input_embeddings().register_forward_hook(lambda *_: embedded)
            try:
                return text(tokens)[0].float()
            finally:
                hook.remove()

    @property
    def embeddings(self) -> Tensor:
        """The text encoder's table of tokens `[V, E]`."""
        return self.text.to(self.device).get_input_embeddings().weight

    @cached_property
    def vocabulary(self) -> Tensor:
        """int64 `[U]`: tokens that are typed as one word each, and read as themselves."""
        numbers = torch.arange(len(self.embeddings))
        typed = [self.text_of(number[None]) for number in numbers]
        read = self.tokens(typed).cpu()
        end = self.tokens([""])[0, 1].cpu()
        special = torch.isin(numbers, torch.tensor(self.tokenizer.all_special_ids))
        alone = (read[:, 1] == numbers) & (read[:, 2] == end) & ~special
        written = torch.tensor([text.isprintable() and text != "" for text in typed])
        return numbers[alone & written].to(self.device)


def _split(x: Tensor, scale: int) -> tuple[Tensor, ...]:
    """The rows of `x [B, C, h, w]`, of images `scale` times as large, that an autoencoder takes at
    once: no more than `PIXELS`."""
    return x.split(max(1, min(64, PIXELS // (scale**2 * x.shape[2] * x.shape[3]))))


def load(
    folder: Path, *, t_init: int | None = None, name: str | None = None, device: torch.device
) -> Teacher:
    """A teacher from a pipeline folder.

    `t_init` is the chain's time whose sigma a one-step student starts from (the published SFD: 625;
    the time nearest to sigma 2.5 where it is not given). Raises ValueError if a part is missing,
    weights and configuration do not fit, or the scheduler predicts neither epsilon nor v.
    """
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder}: no model_index.json: not a diffusers pipeline folder")
    spec = read_spec(folder)
    interface = Parts(folder, device)
    denoiser = StableDiffusionDenoiser(**{k: v for k, v in spec.items() if k != "kind"})
    tensors, _ = checkpoints.read_tensors(folder / "unet" / WEIGHTS)
    checkpoints.load_strictly(denoiser.model, tensors, str(folder / "unet" / WEIGHTS))
    width = denoiser.model.config.cross_attention_dim
    hidden = interface.text.config.hidden_size
    if width != hidden:
        raise ValueError(f"{folder}: the UNet takes embeddings of {width}, the text model {hidden}")
    denoiser = denoiser.to(device).eval().requires_grad_(False)
    sigmas = denoiser.times.get_buffer("sigmas")
    if t_init is None:
        t_init = int((sigmas.log() - np.log(2.5)).abs().argmin())
    if not 0 <= t_init < len(sigmas):
        raise ValueError(f"t_init={t_init} is outside the chain's 0 to {len(sigmas) - 1}")
    return Teacher(
        name=name or folder.name,
        denoiser=denoiser,
        encode=interface.encode,
        decode=interface.decode,
        make_student=partial(copy.deepcopy, denoiser),
        shape=shape_of(denoiser.model.config),
        labels=(),
        spec=spec,
        sha256=folder_sha256(folder),
        sigma_range=(float(sigmas[0]), float(sigmas[-1])),
        sigma_init=float(sigmas[t_init]),
    )


def read_spec(folder: Path) -> dict[str, Any]:
    """Plain data that rebuilds the folder's denoiser. Raises ValueError on an unknown kind."""
    config = checkpoints.read_json(folder / "unet" / "config.json")
    if config.get("_class_name") != "UNet2DConditionModel":
        raise ValueError(
            f"{folder / 'unet'}: holds a {config.get('_class_name')}, not a UNet2DConditionModel"
        )
    if config.get("in_channels") != config.get("out_channels"):
        raise ValueError(
            f"{folder / 'unet'}: takes {config.get('in_channels')} channels and gives"
            f" {config.get('out_channels')} (inpainting?): not a text-to-image network"
        )
    path = folder / "scheduler" / "scheduler_config.json"
    chain = checkpoints.read_json(path)
    prediction = chain.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(f"{path}: prediction type {prediction!r}; known: epsilon, v_prediction")
    if chain.get("rescale_betas_zero_snr"):
        raise ValueError(f"{path}: rescale_betas_zero_snr is set: sigma would be infinite")
    return {
        "kind": "stable-diffusion",
        "config": {k: v for k, v in config.items() if not k.startswith("_")},
        "prediction": prediction,
        "betas": chain.get("trained_betas") or {
            "name": chain.get("beta_schedule", "linear"),
            "start": chain.get("beta_start", 1e-4),
            "end": chain.get("beta_end", 0.02),
            "steps": chain.get("num_train_timesteps", 1000),
        },
    }  # fmt: skip


def folder_sha256(folder: Path) -> str:
    """One hash over the weights and configurations of a pipeline folder."""
    files = sorted(
        p
        for part in PARTS
        for p in (folder / part).glob("*")
        if p.suffix in (".safetensors", ".json", ".txt")
    )
    return content.hash_json({str(p.relative_to(folder)): content.sha256(p) for p in files})


def loaded_files(part: Path) -> set[str]:
    """The files that a part's weights are read from unless another variant is asked for: shards,
    or one."""
    shards = {path.name for path in part.iterdir() if _SHARD.fullmatch(path.name)}
    return shards or {f"{stem}.safetensors" for stem in _STEMS}


def _pretrained(cls: Any, folder: Path) -> nn.Module:
    """A frozen float32 model from its folder; nothing may be missing in the file."""
    try:
        model, info = cls.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: cannot be read: {said}") from None
    missing = sorted(_keys(info, "missing_keys") | _keys(info, "mismatched_keys"))
    if missing:
        raise ValueError(f"{folder}: weight {missing[0]!r} is missing or of another shape")
    return model.float().eval().requires_grad_(False)


def _keys(info: Mapping[str, Any], name: str) -> set[str]:
    found = info.get(name) or ()
    return {str(key) for key in found}
