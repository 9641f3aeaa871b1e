"""What a subject is compared with: who never knew the concepts, and who forgot nothing."""

from pathlib import Path

import torch

from sfd import configs, content
from sfd.concepts import Concept, PromptConcept
from sfd.eval.subjects import Subject, of_student
from sfd.teachers import Teacher


def gold_of(
    subject: Subject, teacher: Teacher | None, path: Path | None, device: torch.device
) -> Subject | None:
    """What lies at `path` and never knew the concepts, or the finished run `<teacher>-gold`.

    A student's run or, for a pipeline, a pipeline, which is sampled as that one is. None where
    there is none, or the one that nobody named does not fit. Raises ValueError if `path` names one
    that does not. What it knows of prompts shows when it is asked: see `prompt_ladder`.
    """
    gold = _rival(subject, teacher, path, "gold", device)
    if gold is None:
        return None
    if gold.alike and gold.sha256 == subject.sha256:  # nothing in a pipeline says what it knew
        raise ValueError(f"{path}: is what is audited, and so no gold to compare it with")
    asked = [c for c in subject.concepts if isinstance(c, Concept)]
    knew = [c.label_name for c in asked if c.label not in gold.without]
    # who forgot what is asked for in words draws it as little as who never knew it
    knew += [c.label_name for c in gold.concepts if isinstance(c, PromptConcept)]
    if knew and path is None:
        return None
    if knew:
        raise ValueError(f"{path}: was taught {', '.join(knew)}, so it is no gold to compare with")
    return gold


def plain_of(
    subject: Subject, teacher: Teacher | None, path: Path | None, device: torch.device
) -> Subject | None:
    """The student at `path` that forgot nothing, or the finished run `<teacher>-plain`.

    None where there is none, or the one that nobody named does not fit. Raises ValueError if `path`
    names one that does not.
    """
    plain = _rival(subject, teacher, path, "plain", device)
    if plain is None:
        return None
    wrong = None
    if plain.concepts or plain.without:
        wrong = "has forgotten something, or never knew it: it is not plain"
    elif teacher and plain.teacher_sha256 != teacher.sha256:
        wrong = f"was distilled from another teacher than {teacher.name}"
    if wrong and path:
        raise ValueError(f"{path}: {wrong}")
    return None if wrong else plain


def _rival(
    subject: Subject, teacher: Teacher | None, path: Path | None, kind: str, device: torch.device
) -> Subject | None:
    named = path is not None
    if path is None:
        name = f"{teacher.name}-{kind}" if teacher else ""
        if name not in content.names("configs"):
            return None
        path = configs.folder_of(name, configs.load(name))
        if not (path / "student.safetensors").is_file():
            return None
    if (path / "model_index.json").is_file():
        if subject.alike is None:
            raise ValueError(f"{path}: is a pipeline, and only a pipeline is compared with one")
        rival = subject.alike(path)
    else:
        rival = of_student(path, str(device))
    if list(rival.labels) != list(subject.labels):
        if not named:
            return None
        raise ValueError(
            f"{path}: the {kind} student's labels {rival.labels} are not the subject's"
        )
    return rival
