"""A student as others read it: a diffusers pipeline folder that needs no code of ours."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sfd import checkpoints, content, report, sample, seal
from sfd.sample import Student
from sfd.teachers import stable_diffusion


def diffusers(run: Path, out: Path) -> Path:
    """Write a text-to-image student as a pipeline folder; the folder.

    Stock diffusers samples it in one step, `pipe(prompt, num_inference_steps=1, guidance_scale=0,
    latents=z)`, z standard normal: the scheduler is an Euler one whose chain ends at the student's
    time, so its only step is the student's. Text encoder, tokenizer and VAE are the teacher's. The
    model card carries the run's audit. Raises ValueError where the student is not of prompts, the
    teacher's folder is gone, `out` holds something else, or the audit is another student's or was
    changed.
    """
    from diffusers import EulerDiscreteScheduler  # pyright: ignore[reportPrivateImportUsage]

    student = sample.load(run)
    if student.labels:
        raise ValueError(f"{run}: is asked in classes; only a text-to-image student is a pipeline")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty; name a new folder")
    audit = run / "audit.json" if run.is_dir() else run.parent / "audit.json"
    found = seal.checked(audit) if audit.is_file() else None
    if found and found["subject"]["sha256"] != student.sha256:
        raise ValueError(
            f"{audit}: is of another model than {run}: `sfd audit {run}` judges this one, or move"
            " the file away"
        )
    teacher = stable_diffusion.folder_of(student.card["teacher"])
    t_init = start_time(student)
    spec = student.card["spec"]
    chain = stable_diffusion.betas_of(spec["betas"])
    scheduler = EulerDiscreteScheduler(
        num_train_timesteps=t_init + 1,
        trained_betas=chain[: t_init + 1].tolist(),
        prediction_type=spec["prediction"],
        timestep_spacing="trailing",
        final_sigmas_type="zero",
        steps_offset=1,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        part = Path(folder, out.name)
        part.mkdir()
        _write(part, student, teacher, scheduler, audit, found)
        if out.exists():
            out.rmdir()
        part.rename(out)
    return out


def _write(
    part: Path,
    student: Student,
    teacher: Path,
    scheduler: Any,
    audit: Path,
    found: Mapping[str, Any] | None,
) -> None:
    """The folder's files. Of the teacher's parts what is read: no pickle, no other variant."""
    # transformers loads a model in the type it was saved in, diffusers in float32: both must fit
    student.language.text.save_pretrained(part / "text_encoder", safe_serialization=True)
    for name in ("tokenizer", "vae"):
        (part / name).mkdir()
        weights = stable_diffusion.loaded_files(teacher / name)
        for path in (teacher / name).iterdir():
            if path.name in weights or path.suffix in (".json", ".txt", ".model"):
                shutil.copyfile(path, part / name / path.name)
    denoiser: Any = student.denoiser
    denoiser.model.save_pretrained(part / "unet", safe_serialization=True)
    scheduler.save_pretrained(part / "scheduler")
    index = checkpoints.read_json(teacher / "model_index.json")
    kept = {k: v for k, v in index.items() if k.startswith("_") or (part / k).is_dir()}
    optional = ("safety_checker", "feature_extractor", "image_encoder")
    kept |= {k: [None, None] for k in optional} | {"requires_safety_checker": False}
    kept |= {"scheduler": ["diffusers", "EulerDiscreteScheduler"]}
    content.write_json(part / "model_index.json", kept)
    content.write_json(part / "sfd.json", student.card)
    for file in (audit, seal.signature_file(audit)):
        if file.is_file():
            shutil.copyfile(file, part / file.name)  # bytes: that is what was signed
    content.write_atomic(part / "README.md", model_card(student.card, found))


def start_time(student: Student) -> int:
    """The chain's time at which the student makes its one step.

    Raises ValueError if its `sigma_init` lies between two times.
    """
    denoiser: Any = student.denoiser
    sigma = student.card["sigma_init"]
    t = float(denoiser.times(torch.tensor([sigma], dtype=torch.float64)))
    if abs(t - round(t)) > 1e-3:
        raise ValueError(f"sigma_init {sigma:.4g} is no time of the chain: train with a t_init")
    return round(t)


def model_card(card: Mapping[str, Any], audit: Mapping[str, Any] | None) -> str:
    """The README.md of an exported folder: how to sample it, what it forgot, what was found."""
    forgot = ", ".join(c["name"] for c in card["concepts"]) or "nothing"
    lines = [
        "---",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "tags: [one-step, unlearning]",
        "---",
        f"# {card['name']}",
        "",
        f"A one-step text-to-image generator that has forgotten: {forgot}.",
        "Made by score forgetting distillation (arXiv 2409.11219). It keeps the licence of its"
        " teacher's weights.",
        "",
        "```python",
        "from diffusers import StableDiffusionPipeline",
        'pipe = StableDiffusionPipeline.from_pretrained("THIS FOLDER")',
        'pipe("a prompt", num_inference_steps=1, guidance_scale=0)',
        "```",
        "",
    ]
    if audit is None:
        return "\n".join([*lines, "This model has not been audited.", ""])
    return "\n".join([*lines, report.markdown(audit)])


__all__ = ["diffusers", "model_card", "start_time"]
