"""What is audited: a released student, a teacher, or anything that draws images on request."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfd import content, noise, sample, teachers
from sfd.attacks import Victim
from sfd.concepts import AnyConcept, Concept, PromptConcept
from sfd.concepts.prompts import Prompt
from sfd.sample import Generate, Student
from sfd.teachers import Teacher
from sfd.teachers.stable_diffusion import folder_sha256


@dataclass(frozen=True)
class Subject:
    """A generator under audit, its conditions, and what is known of its file."""

    path: str
    sha256: str
    format: str
    generate: Generate
    labels: Sequence[str]
    concepts: Sequence[AnyConcept]
    nfe: int
    networks: Sequence[dict[str, Any]] = ()
    """Every network in the released file: name, parameters, hash of its weights."""
    recipe_sha256: str | None = None
    without: Sequence[int] = ()
    """Labels the subject was never taught (a gold twin); they are asked for as the null class."""
    findings: Sequence[str] = field(default_factory=tuple)
    """What hygiene found on reading the file."""
    victim: Victim | None = None
    """What an attacker holds; None where it is no one-step generator of ours."""


def concepts_of(card: dict[str, Any]) -> list[AnyConcept]:
    """The concepts that a student's card says it has forgotten."""
    return [_of_prompts(c) if "holdout" in c else _of_class(c) for c in card["concepts"]]


def _of_class(stored: dict[str, Any]) -> Concept:
    return Concept(**{**stored, "override": {int(k): v for k, v in stored["override"].items()}})


def _of_prompts(stored: dict[str, Any]) -> PromptConcept:
    lists = ("forget", "override", "negative", "retain")
    holdout = tuple(Prompt(**row) for row in stored["holdout"])
    return PromptConcept(**{**stored, **{k: tuple(stored[k]) for k in lists}, "holdout": holdout})


def of_student(path: Path, device: str, concepts: Sequence[AnyConcept] | None = None) -> Subject:
    """A student's file or run folder. `concepts` replaces those that its card names."""
    student = sample.load(path, device)
    file = path / "student.safetensors" if path.is_dir() else path
    return Subject(
        path=str(path),
        sha256=student.sha256,
        format="sfd student",
        generate=student.sample,
        labels=student.labels,
        concepts=concepts_of(student.card) if concepts is None else concepts,
        nfe=1,
        networks=[weights_of("student", student.denoiser)],
        recipe_sha256=student.card.get("recipe_sha256"),
        without=student.card["without"],
        findings=beside(file),
        victim=victim_of(student),
    )


def victim_of(student: Student) -> Victim:
    """A student as its attacker holds it."""
    card = student.card
    return Victim(
        name=card["name"],
        denoiser=student.denoiser,
        shape=tuple(card["shape"]),
        classes=len(card["labels"]),
        sigma_init=card["sigma_init"],
        without=tuple(card["without"]),
    )


def of_pipeline(
    folder: Path,
    concepts: Sequence[AnyConcept],
    *,
    device: str,
    steps: int = 1,
    guidance: float = 0.0,
    batch: int = 50,
) -> Subject:
    """A Stable Diffusion pipeline folder as stock diffusers samples it: its own scheduler.

    Raises ValueError if diffusers cannot read the folder.
    """
    from diffusers import StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

    try:
        pipe: Any = StableDiffusionPipeline.from_pretrained(
            folder, safety_checker=None, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder}: {' '.join(str(error).split())[:200]}") from None
    pipe = pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    side = pipe.unet.config.sample_size
    shape = (pipe.unet.config.in_channels, side, side)

    def generate(raw: teachers.Raw, seeds: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(raw), batch):
            rows = slice(start, start + batch)
            pictures = pipe(
                ["" if prompt is None else prompt for prompt in raw[rows]],
                num_inference_steps=steps,
                guidance_scale=guidance,
                latents=sample.initial_noise(seeds[rows], shape, torch.device(device)),
                output_type="np",
            ).images
            parts.append((255 * pictures).round().astype(np.uint8))
        return np.concatenate(parts)

    return Subject(
        path=str(folder),
        sha256=folder_sha256(folder),
        format=f"diffusers pipeline, {steps} steps, guidance {guidance:g}",
        generate=generate,
        labels=(),
        concepts=concepts,
        nfe=steps * (2 if guidance > 1 else 1),
        networks=[weights_of("unet", pipe.unet)],
        findings=[text for part in sorted(folder.iterdir()) if part.is_dir()
                  for text in beside(part / "any")],
    )  # fmt: skip


def of_teacher(teacher: Teacher, concepts: Sequence[AnyConcept], steps: int) -> Subject:
    """A teacher by its own multi-step sampler."""
    return Subject(
        path=f"teacher {teacher.name}",
        sha256=teacher.sha256,
        format="teacher",
        generate=sample.teacher_sampler(teacher, steps=steps),
        labels=teacher.labels,
        concepts=concepts,
        nfe=2 * steps - 1,
        networks=[weights_of("teacher", teacher.denoiser)],
        without=teacher.without,
    )


def of_noise(
    labels: Sequence[str], concepts: Sequence[AnyConcept], shape: Sequence[int]
) -> Subject:
    """A generator of uniform noise: a known-answer control, it must fail validity."""
    c, h, w = shape

    def generate(raw: teachers.Raw, seeds: np.ndarray) -> np.ndarray:
        parts = [noise.uniform(("noise", i), np.asarray(seeds)) for i in range(c * h * w)]
        return (np.stack(parts, 1) * 255).astype(np.uint8).reshape(-1, h, w, c)

    return Subject("noise", content.sha256(b"noise"), "control", generate, labels, concepts, 0)


def weights_of(name: str, module: torch.nn.Module) -> dict[str, Any]:
    """A network's name, its number of parameters, and the hash of its weights' values."""
    flat = [p.detach().cpu().float().numpy().tobytes() for p in module.state_dict().values()]
    count = sum(p.numel() for p in module.parameters())
    return {"name": name, "parameters": count, "sha256": content.sha256(b"".join(flat))}


def beside(file: Path) -> list[str]:
    """Files next to a released one that would execute when opened."""
    suspects = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt")
    return [f"{p.name}: a pickle" for p in sorted(file.parent.iterdir()) if p.suffix in suspects]
