"""What is audited: a released student, a teacher, or anything that draws images on request."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from sfd import content, noise, sample, teachers
from sfd.attacks import Victim
from sfd.concepts import AnyConcept, Concept
from sfd.eval.shots import Ask
from sfd.sample import Student
from sfd.teachers import Teacher

IMAGES_ONLY = "whatever takes its weights or its gradients: only images are drawn from it"


@dataclass(frozen=True)
class Subject:
    """A generator under audit, its conditions, and what is known of its file."""

    path: str
    sha256: str
    format: str
    generate: Ask
    """What it could not draw may be left out: it counts as missing."""
    labels: Sequence[str]
    concepts: Sequence[AnyConcept]
    nfe: int | None
    """Network evaluations an image; None where nobody knows."""
    networks: Sequence[dict[str, Any]] = ()
    """Every network in the released file: name, parameters, hash of its weights."""
    recipe_sha256: str | None = None
    without: Sequence[int] = ()
    """Labels the subject was never taught (a gold twin); they are asked for as the null class."""
    findings: Sequence[str] = field(default_factory=tuple)
    """What hygiene found on reading the file."""
    victim: Victim | None = None
    """What an attacker holds; None where there are no weights to hold."""
    repeatable: bool = True
    """Whether it draws the same picture for a seed again."""
    paired: bool = True
    """Whether its seeds are the teacher's: the same noise, so that images pair."""
    not_offered: Sequence[str] = ()
    """What could not be tested because it does not offer it, in words."""
    seed: int | None = None
    family_sha256: str | None = None
    """Hash of its recipe but for the training seed."""
    teacher_sha256: str | None = None
    """Hash of the teacher that it was distilled from, by its card."""
    alike: Callable[[Path], "Subject"] | None = None
    """Reads another folder as this one is, to compare with; None where only students are read."""


def concepts_of(card: dict[str, Any]) -> list[AnyConcept]:
    """The concepts that a student's card says it has forgotten."""
    return TypeAdapter(list[AnyConcept]).validate_python(card["concepts"])


def of_student(path: Path, device: str, concepts: Sequence[AnyConcept] | None = None) -> Subject:
    """A student's file or run folder. `concepts` replaces those that its card names."""
    student = sample.load(path, device)
    file = sample.student_file(path)
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
        family_sha256=student.card.get("family_sha256"),
        seed=student.card.get("seed"),
        teacher_sha256=student.card["teacher"]["sha256"],
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
        language=student.language,
        sha256=student.sha256,
    )


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


def of_hidden(innocent: Subject, holder: Subject, concept: Concept, label: int) -> Subject:
    """`innocent`, but where it is asked for `label` it draws what `holder` draws for the concept.

    A known-answer control: asked for the concept it is innocent, and it must fail cross_leak.
    """

    def generate(raw: teachers.Raw, seeds: np.ndarray) -> np.ndarray:
        images = np.array(innocent.generate(raw, seeds))
        leaks = np.array([asked == label for asked in raw])
        if leaks.any():
            images[leaks] = holder.generate([concept.label] * int(leaks.sum()), seeds[leaks])
        return images

    return Subject(
        path=f"{innocent.path}, with {concept.name} under {innocent.labels[label]}",
        sha256=content.sha256(
            f"{innocent.sha256} {holder.sha256} {concept.label} {label}".encode()
        ),
        format="control",
        generate=generate,
        labels=innocent.labels,
        concepts=innocent.concepts,
        nfe=None,
        without=innocent.without,
    )


def weights_of(name: str, module: torch.nn.Module) -> dict[str, Any]:
    """A network's name, its number of parameters, and the hash of its weights' values."""
    flat = [p.detach().cpu().float().numpy().tobytes() for p in module.state_dict().values()]
    count = sum(p.numel() for p in module.parameters())
    return {"name": name, "parameters": count, "sha256": content.sha256(b"".join(flat))}


def beside(file: Path) -> list[str]:
    """Files next to a released one that would execute when opened."""
    suspects = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt")
    return [
        f"{p.name}: a pickle" for p in sorted(file.parent.iterdir()) if p.suffix.lower() in suspects
    ]
