"""Diffusers folders under audit, as stock diffusers samples them: any scheduler, guidance."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfd import checkpoints, content, images, sample
from sfd.attacks import Victim
from sfd.concepts import AnyConcept, Concept
from sfd.eval.subjects import IMAGES_ONLY, Subject, beside, weights_of
from sfd.teachers import NotFinite, Raw, guided, stable_diffusion, to_uint8
from sfd.teachers.ddpm import prediction_of, shape_of
from sfd.teachers.stable_diffusion import folder_sha256

CARD = "sfd.json"
"""What `sfd export diffusers`, and `sfd pretrain`, leave in a folder of theirs."""
WEIGHT_FILES = (".safetensors", ".msgpack", ".onnx", ".onnx_data", ".h5", ".gguf", ".tflite")
"""Endings of files that may hold a network; pickles are found by themselves."""
STEPS, GUIDANCE = 50, 7.5
"""What diffusers takes where nobody says otherwise."""


@dataclass(frozen=True)
class Sampling:
    """How a pipeline is sampled; None is what it does by itself.

    With a folder of pictures as `start`, image to image: seed s begins at picture s (modulo their
    number) with noise to `strength`.
    """

    steps: int | None = None
    guidance: float | None = None
    start: Path | None = None
    strength: float | None = None


AS_IT_IS = Sampling()


def exported(folder: Path) -> bool:
    """Whether a folder is a student that `sfd export diffusers` wrote.

    Not one of `sfd pretrain`, which takes as many steps as anybody's. Raises ValueError where its
    card cannot be read.
    """
    card = folder / CARD
    return card.is_file() and checkpoints.read_json(card).get("schema") != "sfd/pipeline/1"


def asked_in_prompts(folder: Path) -> bool:
    """Whether a folder is a Stable Diffusion pipeline, or else a class-conditional UNet2DModel.

    Raises ValueError where it is neither.
    """
    index = folder / "model_index.json"
    kind = checkpoints.read_json(index).get("_class_name") if index.is_file() else None
    if kind == "StableDiffusionPipeline":
        return True
    if (folder / "unet" / "config.json").is_file():
        kind = checkpoints.read_json(folder / "unet" / "config.json").get("_class_name")
    if kind != "UNet2DModel":
        raise ValueError(
            f"{folder}: holds a {kind}; read are a StableDiffusionPipeline and a class-conditional"
            " UNet2DModel: of another, audit the images (a folder, or sfd.audit(generate=...))"
        )
    return False


def of_pipeline(
    folder: Path,
    concepts: Sequence[AnyConcept],
    *,
    device: str,
    sampling: Sampling = AS_IT_IS,
    batch: int = 50,
    attacked: bool = False,
) -> Subject:
    """A Stable Diffusion pipeline folder as stock diffusers samples it: its own scheduler.

    One step without guidance by default if it was `exported`, else diffusers' own defaults.
    `attacked`: what it takes to attack it is read too, if it takes several steps from noise.
    Raises ValueError if diffusers cannot read the folder, or no step is left of `strength`.
    """
    import diffusers

    ours = exported(folder)
    steps = sampling.steps or (1 if ours else STEPS)
    guidance = sampling.guidance
    if guidance is None:
        guidance = 0.0 if ours else GUIDANCE
    begin = _start(sampling, steps)
    kind = "StableDiffusionImg2ImgPipeline" if begin else "StableDiffusionPipeline"
    try:
        pipe: Any = getattr(diffusers, kind).from_pretrained(
            folder, safety_checker=None, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder}: {' '.join(str(error).split())[:200]}") from None
    # transformers loads a model in the type it was saved in, diffusers in float32
    pipe = pipe.to(device, torch.float32)
    pipe.set_progress_bar_config(disable=True)
    shape = shape_of(pipe.unet.config)
    own = tuple(pipe.vae_scale_factor * n for n in shape[1:])
    if begin and begin.pictures.shape[1:3] != own:
        raise ValueError(f"{begin.folder}: pictures of {list(begin.pictures.shape[1:3])}, the"
                         f" pipeline draws {list(own)}: resize them")  # fmt: skip

    def generate(raw: Raw, seeds: np.ndarray) -> np.ndarray:
        def draw(rows: slice) -> np.ndarray:
            pictures = pipe(
                ["" if prompt is None else prompt for prompt in raw[rows]],
                num_inference_steps=steps,
                guidance_scale=guidance,
                **(
                    begin.options(seeds[rows])
                    if begin
                    else {"latents": sample.initial_noise(seeds[rows], shape, torch.device(device))}
                ),
                generator=_generators(seeds[rows]),
                output_type="np",
            ).images
            made = np.isfinite(pictures).all((1, 2, 3))
            drawn = (255 * pictures[made]).round().astype(np.uint8)
            if not made.all():
                raise NotFinite(drawn, made)
            return drawn

        return sample.in_batches(draw, len(raw), batch)

    checker = checkpoints.read_json(folder / "model_index.json").get("safety_checker") or [None]
    held = attacked and steps > 1 and begin is None
    victim = (
        _victim(folder, pipe.scheduler, steps, guidance, torch.device(device)) if held else None
    )
    return Subject(
        path=str(folder),
        sha256=folder_sha256(folder),
        format=f"diffusers pipeline, {steps} steps, guidance {guidance:g}"
        + (f", {begin}" if begin else ""),
        generate=generate,
        labels=(),
        concepts=concepts,
        nfe=(begin.taken(steps) if begin else steps) * (2 if guidance > 1 else 1),
        networks=[weights_of("unet", pipe.unet)],
        findings=_strays(folder),
        paired=ours and not begin,
        victim=victim,
        alike=partial(
            of_pipeline,
            concepts=(),
            device=device,
            batch=batch,
            attacked=attacked,
            sampling=replace(sampling, steps=steps, guidance=guidance),
        ),
        not_offered=[
            *([] if victim else [IMAGES_ONLY]),
            *(["its safety checker, which was left out"] if checker[0] else []),
        ],
    )


def _victim(
    folder: Path, scheduler: Any, steps: int, guidance: float, device: torch.device
) -> Victim:
    """A pipeline as who holds its files attacks it, drawn from by its own scheduler.

    Raises ValueError if its denoiser cannot be read (`stable_diffusion.load`).
    """
    model = stable_diffusion.load(folder, device=device)
    read: Any = model.denoiser
    language: Any = stable_diffusion.Parts(folder, device)
    k = guidance if guidance > 1 else 1.0  # as diffusers takes it

    def chain(denoiser: nn.Module, z: Tensor, cond: Tensor) -> Tensor:
        own = type(scheduler).from_config(scheduler.config)  # it counts its steps
        own.set_timesteps(steps)
        predict = guided(denoiser, language.encode([None]), k)
        drawn = [int(content.sha256(row.cpu().numpy().tobytes())[:12], 16) for row in z]
        options = _options(own, np.array(drawn))
        x = z * own.init_noise_sigma
        for t in own.timesteps:
            sigma = read.times.sigma_at(float(t))
            at = own.scale_model_input(x, t) * (1 + sigma**2) ** 0.5  # the VE view
            x0 = predict(at, at.new_full((len(at),), sigma), cond)
            said = prediction_of(x0, at, sigma, read.prediction)
            x = own.step(said, t, x, **options).prev_sample
        return x

    return Victim(
        name=folder.name,
        denoiser=model.denoiser,
        shape=model.shape,
        classes=0,
        sigma_init=model.sigma_range[1],
        language=language,
        chain=chain,
    )


def of_unet(
    folder: Path,
    labels: Sequence[str],
    concepts: Sequence[Concept],
    *,
    device: str,
    sampling: Sampling = AS_IT_IS,
    batch: int = 100,
) -> Subject:
    """A class-conditional UNet2DModel folder (`unet/`, `scheduler/`), sampled by its own scheduler.

    Class i is the i-th of `labels`; guidance (none by default) is away from the last row of a
    class embedding that has one row more. Raises ValueError if a part is missing or does not fit.
    """
    import diffusers

    if sampling.start or sampling.strength is not None:
        raise ValueError(f"{folder}: is asked in classes; image to image is for prompts")

    unet_folder = folder / "unet" if (folder / "unet").is_dir() else folder
    chain = folder / "scheduler" / "scheduler_config.json"
    kind = str(checkpoints.read_json(chain).get("_class_name"))
    scheduler_class: Any = getattr(diffusers, kind, None)
    mixin = diffusers.SchedulerMixin  # pyright: ignore[reportPrivateImportUsage]
    if not (isinstance(scheduler_class, type) and issubclass(scheduler_class, mixin)):
        raise ValueError(f"{chain}: diffusers has no scheduler {kind!r}")
    try:
        net: Any = diffusers.UNet2DModel.from_pretrained(  # pyright: ignore[reportPrivateImportUsage]
            unet_folder, local_files_only=True, use_safetensors=True
        )
        scheduler: Any = scheduler_class.from_pretrained(chain.parent, local_files_only=True)  # pyright: ignore
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder}: {' '.join(str(error).split())[:200]}") from None
    rows, steps, k = net.config.num_class_embeds, sampling.steps or STEPS, sampling.guidance or 1.0
    if rows not in (len(labels), len(labels) + 1):
        raise ValueError(f"{unet_folder}: has {rows} classes, the suite's judge {len(labels)}")
    if k != 1 and rows == len(labels):
        raise ValueError(f"{unet_folder}: has no row for no class, so guidance cannot be {k:g}")
    net = net.to(device).eval().requires_grad_(False)
    shape = shape_of(net.config)

    def draw(raw: Raw, seeds: np.ndarray) -> np.ndarray:
        classes = torch.tensor([len(labels) if i is None else i for i in raw], device=device)
        scheduler.set_timesteps(steps)
        x = sample.initial_noise(seeds, shape, torch.device(device)) * scheduler.init_noise_sigma
        options = _options(scheduler, seeds)
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t)
            predicted = net(scaled, t, class_labels=classes).sample
            if k != 1:
                null = net(scaled, t, class_labels=torch.full_like(classes, len(labels))).sample
                predicted = null + k * (predicted - null)
            x = scheduler.step(predicted, t, x, **options).prev_sample
        return to_uint8(x)

    def generate(raw: Raw, seeds: np.ndarray) -> np.ndarray:
        return sample.in_batches(lambda rows: draw(raw[rows], seeds[rows]), len(raw), batch)

    return Subject(
        path=str(folder),
        sha256=folder_sha256(folder),
        format=f"diffusers UNet2DModel, {kind}, {steps} steps, guidance {k:g}",
        generate=generate,
        labels=labels,
        concepts=concepts,
        nfe=steps * (1 if k == 1 else 2),
        networks=[weights_of("unet", net)],
        findings=_strays(folder),
        paired=False,
        not_offered=[IMAGES_ONLY],
    )


STRENGTH = 0.8
"""diffusers' own."""


@dataclass(frozen=True)
class _Start:
    """Pictures that image to image starts from: uint8 `[N, H, W, 3]`."""

    folder: Path
    pictures: np.ndarray
    strength: float

    def __str__(self) -> str:
        sha = content.sha256(self.pictures.tobytes())[:12]
        which = f"{self.folder} ({len(self.pictures)} pictures, sha256 {sha})"
        return f"image to image from {which} at strength {self.strength:g}"

    def taken(self, steps: int) -> int:
        """How many of `steps` steps are left to take."""
        return min(int(steps * self.strength), steps)

    def options(self, seeds: np.ndarray) -> dict[str, Any]:
        chosen = self.pictures[seeds % len(self.pictures)]
        return {"image": chosen.astype(np.float32) / 255, "strength": self.strength}


def _start(sampling: Sampling, steps: int) -> _Start | None:
    """Where image to image begins; None from noise. Raises ValueError where nothing can begin."""
    if not sampling.start:
        if sampling.strength is not None:
            raise ValueError("strength: is of image to image; say which pictures it starts from")
        return None
    strength = STRENGTH if sampling.strength is None else sampling.strength
    if not 0 <= strength <= 1:
        raise ValueError(f"strength={strength:g}: give a share of the noise, from 0 to 1")
    found = [images.in_channels(p, 3) for p in images.read_pictures(sampling.start)]
    pictures = [picture for picture in found if picture is not None]
    shapes = sorted({picture.shape for picture in pictures})
    if len(shapes) != 1:
        raise ValueError(f"{sampling.start}: its pictures differ in size: {shapes}")
    start = _Start(sampling.start, np.stack(pictures), strength)
    if not start.taken(steps):
        raise ValueError(
            f"image to image at strength {strength:g} takes none of {steps} steps: raise either"
        )
    return start


def _options(scheduler: Any, seeds: np.ndarray) -> dict[str, Any]:
    """What a step of a scheduler that draws noise takes, nothing for others."""
    noisy = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": _generators(seeds)} if noisy else {}


def _generators(seeds: np.ndarray) -> list[torch.Generator]:
    """One for each image, so that a scheduler that draws noise draws the same in any batch."""
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def _strays(folder: Path) -> list[str]:
    """Pickles anywhere in a folder, and weights that are of none of its parts."""
    folders = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
    pickles = [text for each in folders for text in beside(each / "any")]
    if not (folder / "unet").is_dir():  # then its top is the UNet's own folder
        return pickles
    listed = folder / "model_index.json"
    index = checkpoints.read_json(listed) if listed.is_file() else {"unet": []}
    parts = {folder / name for name, kind in index.items() if isinstance(kind, list)}
    loose = [
        path.relative_to(folder)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in WEIGHT_FILES
        and (
            path.parent not in parts or path.name not in stable_diffusion.loaded_files(path.parent)
        )
    ]
    return [*pickles, *(f"{path}: weights that no part loads by itself" for path in loose)]
