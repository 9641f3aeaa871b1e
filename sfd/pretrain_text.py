"""Train a small Stable Diffusion pipeline from captioned images (arXiv 2112.10752).

An autoencoder first; then the text encoder and the UNet together on its latents. The result is a
plain diffusers folder.
"""

import copy
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfd import (
    checkpoints,
    configs,
    content,
    images,
    noise,
    provenance,
    sample,
    state,
    teachers,
)
from sfd.concepts.prompts import has_word
from sfd.configs import TextTeacherRecipe
from sfd.pretrain import data_order
from sfd.schedules import named_betas
from sfd.teachers import from_uint8, stable_diffusion

BETAS: dict[str, Any] = {"name": "scaled_linear", "start": 0.00085, "end": 0.012, "steps": 1000}
"""Stable Diffusion's chain."""

Progress = Callable[[str, int, int], None]


def train_tokenizer(corpus: Iterable[str], *, vocabulary: int, length: int):
    """A CLIPTokenizer learned from a corpus: byte-level BPE, so any prompt has tokens.

    `vocabulary` is the number of entries at most, at least 514 (two marks, every byte, every byte
    at the end of a word); `length` is the limit of a prompt in tokens, marks included.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    marks = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends = [letter + "</w>" for letter in alphabet]
    blank = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = blank.normalizer, blank.pre_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    learner.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocabulary - len(marks),
            initial_alphabet=alphabet,
            # numbered by the trainer they would be so in the order of a hash, another in each
            # process, and merges that are as frequent follow their numbers
            special_tokens=ends,  # pyright: ignore[reportArgumentType]
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    merges: Any = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    pieces = [*marks, *alphabet, *ends, *(a + b for a, b in merges)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def train_vae(
    vae: nn.Module,
    data: np.ndarray,
    *,
    folder: Path,
    identity: Mapping[str, Any],
    total: int,
    batch: int,
    lr: float,
    kl: float,
    seed: int,
    on_tick: Callable[[dict[str, float]], None] | None = None,
    device: torch.device,
) -> None:
    """Train an AutoencoderKL in place: absolute and squared error, and `kl` times the divergence.

    `data` uint8 `[N, H, W, 3]`; `total` is counted in images. Resumes from `folder`.
    """
    model: Any = vae.to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    run = state.Run({"vae": model}, {"vae": optimizer})
    state.restore(run, folder / "state", identity)

    def step(nimg: int) -> state.Stats:
        numbers = np.arange(nimg, nimg + batch)
        x = from_uint8(data[data_order(len(data), numbers, seed)]).to(device)
        posterior = model.encode(x).latent_dist
        eps = noise.normal((seed, "vae", "noise"), numbers, tuple(posterior.mean.shape[1:]))
        z = posterior.mean + posterior.std * torch.from_numpy(eps).to(device)
        error = model.decode(z).sample - x
        loss = error.abs().mean() + error.square().mean() + kl * posterior.kl().mean()
        optimizer.param_groups[0]["lr"] = lr * state.learning_rate(
            nimg, total, warmup=20 * batch, decay_from=0.5
        )
        norm = _descend(optimizer, model.parameters(), loss)
        mse = float(error.detach().square().mean())
        return {"loss": (float(loss.detach()), 1), "mse": (mse, 1), "grad_norm": (norm, 1)}

    state.loop(
        run,
        step=step,
        total=total,
        batch=batch,
        folder=folder,
        identity=identity,
        tick=5_000,
        checkpoint=20_000,
        on_tick=on_tick,
        device=device,
    )
    model.eval().requires_grad_(False)


@torch.no_grad()
def fold_scale(vae: Any, latents: Tensor) -> Tensor:
    """Make a VAE's latents zero-mean and unit-variance per channel; returns them so.

    The scale goes exactly into the two 1x1 convolutions at the latents, so that the pipeline's
    `scaling_factor` is 1.
    """
    quant, post = vae.quant_conv, vae.post_quant_conv
    device = quant.weight.device  # the latents may be elsewhere
    mean, std = (found((0, 2, 3)).to(device) for found in (latents.mean, latents.std))
    channels = len(mean)
    # the first half of quant_conv's rows are means, the second log-variances
    quant.weight[:channels] /= std.reshape(-1, 1, 1, 1)
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= std.reshape(1, -1, 1, 1)
    vae.register_to_config(scaling_factor=1.0)
    mean, std = (each.reshape(1, -1, 1, 1).to(latents) for each in (mean, std))
    return (latents - mean) / std


def train_denoiser(
    unet: nn.Module,
    text: nn.Module,
    latents: Tensor,
    tokens: Tensor,
    *,
    empty: Tensor,
    folder: Path,
    identity: Mapping[str, Any],
    total: int,
    batch: int,
    lr: float,
    warmup: int,
    decay_from: float,
    ema_images: float,
    caption_dropout: float,
    precision: torch.dtype | None,
    seed: int,
    snapshots: Sequence[int] = (),
    on_snapshot: Callable[[nn.Module, int, float], None] | None = None,
    on_tick: Callable[[dict[str, float]], None] | None = None,
    device: torch.device,
) -> nn.Module:
    """The EMA of `ModuleDict(unet, text)` trained to predict v at uniform times (2202.00512).

    `latents [N, C, h, w]`, `tokens [N, L]`, `empty [L]` those of the empty prompt, which a share
    `caption_dropout` of the images is shown with. Counts are in images. Resumes from `folder`.
    """
    nets = nn.ModuleDict({"unet": unet, "text": text}).to(device).train()
    average = state.frozen_copy(nets)
    optimizer = torch.optim.Adam(nets.parameters(), lr=lr)
    run = state.Run({"nets": nets, "ema": average}, {"nets": optimizer})
    state.restore(run, folder / "state", identity)
    alphas_bar = torch.cumprod(1 - named_betas(**BETAS), 0).float().to(device)

    def step(nimg: int) -> state.Stats:
        numbers = np.arange(nimg, nimg + batch)
        index = data_order(len(latents), numbers, seed)
        u = {k: noise.uniform((seed, "text", k), numbers) for k in ("t", "drop")}
        x0 = latents[index].to(device)
        eps = torch.from_numpy(
            noise.normal((seed, "text", "noise"), numbers, tuple(x0.shape[1:]))
        ).to(device)
        dropped = torch.from_numpy(u["drop"] < caption_dropout)[:, None]
        shown = torch.where(dropped, empty, tokens[index]).to(device)
        t = torch.from_numpy((u["t"] * len(alphas_bar)).astype(np.int64)).to(device)
        a = alphas_bar[t].sqrt().reshape(-1, 1, 1, 1)
        s = (1 - alphas_bar[t]).sqrt().reshape(-1, 1, 1, 1)
        with torch.autocast(device.type, precision, enabled=precision is not None):
            hidden = nets["text"](shown)[0]
            v = nets["unet"](a * x0 + s * eps, t, encoder_hidden_states=hidden).sample
        loss = F.mse_loss(v.float(), a * eps - s * x0)
        optimizer.param_groups[0]["lr"] = lr * state.learning_rate(
            nimg, total, warmup=warmup, decay_from=decay_from
        )
        norm = _descend(optimizer, nets.parameters(), loss)
        state.update_ema(average, nets, images=batch, seen=nimg + batch, half_life=ema_images)
        return {"loss": (float(loss.detach()), 1), "grad_norm": (norm, 1)}

    state.loop(
        run,
        step=step,
        total=total,
        batch=batch,
        folder=folder,
        identity=identity,
        tick=5_000,
        checkpoint=50_000,
        snapshots=snapshots,
        on_snapshot=(lambda n, s: on_snapshot(average, n, s)) if on_snapshot else None,
        on_tick=on_tick,
        device=device,
    )
    return average


def run(
    recipe: TextTeacherRecipe,
    folder: Path,
    *,
    device: torch.device,
    force: bool,
    progress: Progress,
) -> Path:
    """Train a recipe's pipeline into `folder`; the pipeline's folder. Resumes; done if it is there.

    Raises ValueError on data that do not fit the recipe, and under several processes, which would
    each train the whole and write over one another.
    """
    if state.world()[1] > 1:
        raise ValueError(f"{recipe.name}: a pipeline is trained by one process, and this launch has"
                         f" {state.world()[1]}: run sfd pretrain without a launcher")  # fmt: skip
    out, sha = folder / recipe.name, configs.sha256(recipe)
    state.claim(folder, "vae", "preview", recipe.name, force=force)
    if (out / "sfd.json").is_file():
        if checkpoints.read_json(out / "sfd.json")["recipe_sha256"] != sha:
            raise ValueError(f"{out}: is of another recipe; give out=FOLDER, or --force")
        return out
    data, captions = _without(*images.read_captioned(recipe.data), recipe.exclude or [])
    data = np.repeat(data, 3, axis=3) if data.shape[3] == 1 else data
    factor = 2 ** (len(recipe.vae.channels) - 1)
    if data.shape[1] != data.shape[2] or data.shape[1] % factor:
        raise ValueError(
            f"{recipe.data}: images of {data.shape[1]} x {data.shape[2]}; the autoencoder takes"
            f" squares whose side {factor} divides"
        )
    torch.manual_seed(recipe.train.seed)
    tokenizer = train_tokenizer(
        captions, vocabulary=recipe.text.vocabulary, length=recipe.text.length
    )
    vae, text, unet = _networks(recipe, side=data.shape[1] // factor, tokenizer=tokenizer)
    identity = {"recipe": sha}
    train_vae(
        vae,
        data,
        folder=folder / "vae",
        identity=identity,
        total=recipe.vae.images,
        batch=recipe.vae.batch,
        lr=recipe.vae.lr,
        kl=recipe.vae.kl,
        seed=recipe.train.seed,
        on_tick=lambda line: progress("autoencoder", int(line["nimg"]), recipe.vae.images),
        device=device,
    )
    latents = fold_scale(vae, _encode(vae, data, recipe.vae.batch, device))
    tokens = torch.tensor(tokenizer(captions, padding="max_length", truncation=True).input_ids)
    empty = torch.tensor(tokenizer([""], padding="max_length").input_ids)[0]
    if device.type == "cpu":
        stable_diffusion.unfuse_if_small(unet)
    numbers = recipe.train

    def sheet(average: Any, nimg: int, seconds: float) -> None:
        _save(folder / "preview", recipe, vae, average, tokenizer, {})
        teacher = teachers.load(diffusers=str(folder / "preview"), device=device)
        generate = sample.teacher_sampler(teacher, steps=13, guidance=2.0, batch=numbers.batch)
        shown = captions[:64]
        grid = images.sheet(generate(shown, np.arange(len(shown))), 8, 2)
        content.write_atomic(folder / f"samples/{nimg:09d}.png", images.png_bytes(grid))

    steps = range(numbers.sheets, numbers.images + 1, numbers.sheets)
    average = train_denoiser(
        unet,
        text,
        latents,
        tokens,
        empty=empty,
        folder=folder,
        identity=identity,
        total=numbers.images,
        batch=numbers.batch,
        lr=numbers.lr,
        warmup=numbers.warmup,
        decay_from=numbers.decay_from,
        ema_images=numbers.ema_images,
        caption_dropout=numbers.caption_dropout,
        precision=teachers.PRECISIONS[numbers.precision],
        seed=numbers.seed,
        snapshots=[*steps, numbers.images],
        on_snapshot=sheet,
        on_tick=lambda line: progress("pretrain", int(line["nimg"]), numbers.images),
        device=device,
    )
    about = {
        "schema": "sfd/pipeline/1",
        **provenance.collect(str(device)),
        "recipe_sha256": sha,
        "data": Path(recipe.data).name,
        "data_rows": len(data),
        "exclude": recipe.exclude or [],
        "images": numbers.images,
    }
    _save(out, recipe, vae, average, tokenizer, about)
    shutil.rmtree(folder / "preview", ignore_errors=True)
    return out


def _without(
    data: np.ndarray, captions: list[str], words: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """The images whose caption has none of these words. Raises ValueError if a word is in none, or
    in all that are left."""
    for word in words:
        kept = [i for i, caption in enumerate(captions) if not has_word(caption, word)]
        if not kept or len(kept) == len(captions):
            raise ValueError(f"exclude: {word!r} is in {'no' if kept else 'every'} caption")
        data, captions = data[kept], [captions[i] for i in kept]
    return data, captions


def _networks(recipe: TextTeacherRecipe, *, side: int, tokenizer: Any) -> tuple[Any, Any, Any]:
    """(AutoencoderKL, CLIPTextModel, UNet2DConditionModel), untrained."""
    from diffusers import AutoencoderKL, UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]
    from transformers import CLIPTextConfig, CLIPTextModel

    levels = len(recipe.vae.channels)
    layout: dict[str, Any] = {
        "block_out_channels": tuple(recipe.vae.channels),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    vae = AutoencoderKL(
        **layout,
        latent_channels=recipe.vae.latent,
        norm_num_groups=8,
        sample_size=side * 2 ** (levels - 1),
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.text.width,
            intermediate_size=4 * recipe.text.width,
            num_hidden_layers=recipe.text.layers,
            num_attention_heads=recipe.text.heads,
            max_position_embeddings=recipe.text.length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    plain = len(recipe.unet.channels) - 1
    unet = UNet2DConditionModel(
        sample_size=side,
        in_channels=recipe.vae.latent,
        out_channels=recipe.vae.latent,
        block_out_channels=tuple(recipe.unet.channels),
        layers_per_block=recipe.unet.layers,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * plain,
        cross_attention_dim=recipe.text.width,
        attention_head_dim=recipe.unet.heads,
        norm_num_groups=16,
    )
    return vae, text, unet


@torch.no_grad()
def _encode(vae: Any, data: np.ndarray, batch: int, device: torch.device) -> Tensor:
    """The latents of images, on the CPU."""
    parts = [
        vae.encode(from_uint8(data[i : i + batch]).to(device)).latent_dist.mean.cpu()
        for i in range(0, len(data), batch)
    ]
    return torch.cat(parts)


def _save(
    out: Path,
    recipe: TextTeacherRecipe,
    vae: Any,
    nets: Any,
    tokenizer: Any,
    about: Mapping[str, Any],
) -> None:
    """Write the pipeline, its convolutional networks in half precision, whole or not at all."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

    scheduler = DDIMScheduler(
        num_train_timesteps=BETAS["steps"],
        beta_start=BETAS["start"],
        beta_end=BETAS["end"],
        beta_schedule=BETAS["name"],
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )
    unet = copy.deepcopy(nets["unet"]).half()
    # transformers loads a model in the type it was saved in, diffusers in float32: both must fit
    text = copy.deepcopy(nets["text"]).float()
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    pipeline.save_pretrained(part)
    if about:
        content.write_json(part / "sfd.json", dict(about))
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)


def _descend(optimizer: torch.optim.Optimizer, parameters: Iterable[Any], loss: Tensor) -> float:
    """One step on `loss`, gradient clipped to norm 1; the norm before (no step if not finite)."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(list(parameters), 1.0)
    if torch.isfinite(norm):
        optimizer.step()
    return float(norm)
