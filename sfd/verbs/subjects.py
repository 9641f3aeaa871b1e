"""What a path, or a function, under audit is: a student, a pipeline, an ONNX file, images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sfd import checkpoints, classifiers, concepts, configs, images, sample, teachers
from sfd.concepts import AnyConcept, PromptConcept
from sfd.eval import grid, outsiders, pipelines, suites
from sfd.eval.pipelines import AS_IT_IS, Sampling
from sfd.eval.subjects import Subject, concepts_of, of_student
from sfd.teachers import Teacher

Opened = tuple[Subject, suites.AnySuite, Teacher | None]

_TABLES = ("metadata.jsonl", "metadata.csv")


def kind_of(path: Path) -> str:
    """'pipeline', 'onnx', 'images' or 'student'. Raises ValueError on a folder that is none."""
    if (path / "model_index.json").is_file() or (path / "unet" / "config.json").is_file():
        return "pipeline"
    if path.suffix == ".onnx":
        return "onnx"
    if not path.is_dir() or any(
        (path / n).exists() for n in ("student.safetensors", "recipe.yaml")
    ):
        return "student"
    inside = (images.list_images(p) for p in path.iterdir() if p.is_dir())
    if any((path / name).is_file() for name in _TABLES) or any(inside):
        return "images"
    raise ValueError(
        f"{path}: has neither student.safetensors, nor model_index.json, nor images in class"
        f" folders or named in {' or '.join(_TABLES)}"
    )


def folder_for(path: Path) -> Path:
    """Where an audit of `path` is left: in a run folder, an export or an old audit's, or beside."""
    names = ("student.safetensors", "audit.json")
    ours = any((path / name).is_file() for name in names) or pipelines.exported(path)
    full = path.resolve()
    return path if ours else full.with_name(f"{full.stem if full.is_file() else full.name}-audit")


def open_path(
    path: Path,
    suite: str | None,
    *,
    names: Sequence[str] = (),
    original: str | None = None,
    sampling: Sampling = AS_IT_IS,
    device: torch.device,
) -> Opened:
    """The subject at a path, with the suite and the original teacher that go with it.

    A student, and a pipeline that `sfd export` wrote, name their concepts and their teacher; of
    anything else the concepts are `names`, and the teacher is `original` or none. Raises ValueError
    in one line.
    """
    kind = kind_of(path)
    if kind != "pipeline" and sampling != AS_IT_IS:
        raise ValueError(f"{path}: steps, guidance, start and strength are for a pipeline folder")
    if kind == "student" or pipelines.exported(path):
        return _of_ours(path, suite, kind, names, original, sampling, device)
    chosen, known, labels, teacher = _asked(str(path), suite, names, original, device)
    if kind == "pipeline":
        prompts = pipelines.asked_in_prompts(path)
        if prompts == bool(labels):
            raise ValueError(f"suite {chosen.name} is not for a model that is asked in"
                             f" {'prompts' if prompts else 'classes'}")  # fmt: skip
        options: Any = {"device": str(device), "sampling": sampling}
        if prompts:
            options["attacked"] = bool(chosen.attacks)
            return pipelines.of_pipeline(path, known, **options), chosen, teacher
        classes = [c for c in known if isinstance(c, concepts.Concept)]
        return pipelines.of_unet(path, labels, classes, **options), chosen, teacher
    shape = _shape_of(teacher)
    if kind == "onnx":
        if not labels:
            raise ValueError(f"{path}: an ONNX generator is asked in classes, suite {chosen.name}"
                             " asks in prompts")  # fmt: skip
        return outsiders.of_onnx(path, labels, known, shape=shape), chosen, teacher
    asked = requests(chosen, known)
    found = outsiders.of_images(path, labels, known, prompts=asked, shape=shape)
    return found, chosen, teacher


def open_function(
    function: outsiders.Function,
    suite: str | None,
    *,
    labels: Sequence[str] | None = None,
    names: Sequence[str] = (),
    original: str | None = None,
    device: torch.device,
) -> Opened:
    """A function of conditions and seeds as a subject; `labels` must be the suite's judge's."""
    chosen, known, own, teacher = _asked("generate", suite, names, original, device)
    if labels is not None and list(labels) != list(own):
        raise ValueError(f"generate: its labels {list(labels)} are not the suite's {list(own)}")
    found = outsiders.of_callable(function, own, known, shape=_shape_of(teacher), name="generate")
    return found, chosen, teacher


def requests(suite: suites.AnySuite, known: Sequence[AnyConcept]) -> dict[str, int]:
    """How many images a suite asks for under each label or prompt, for these concepts."""
    if isinstance(suite, suites.PromptSuite):
        return grid.requests(suite, [c for c in known if isinstance(c, PromptConcept)])
    forgotten = {c.label for c in known if isinstance(c, concepts.Concept)}
    return {
        label: suite.n.direct if i in forgotten else suite.n.per_class
        for i, label in enumerate(classifiers.read_card(suite.judge).labels)
    }


def asked_of(suite: str, names: Sequence[str]) -> dict[str, int]:
    """`requests` of a suite and of concepts by their names: what to draw for `sfd audit FOLDER`."""
    chosen = suites.load(suite)
    return requests(chosen, _concepts(suite, names, _labels_of(chosen)))


def _of_ours(
    path: Path,
    suite: str | None,
    kind: str,
    names: Sequence[str],
    original: str | None,
    sampling: Sampling,
    device: torch.device,
) -> Opened:
    """A student or an exported pipeline: its card says what it forgot, and who taught it."""
    if kind == "pipeline":
        file = path / pipelines.CARD
        card = checkpoints.check_card(checkpoints.read_json(file), str(file))
    else:
        file = sample.student_file(path)
        card = checkpoints.read_card(checkpoints.read_meta(file), str(file))
    known = _concepts(str(path), names, card["labels"]) if names else concepts_of(card)
    if suite is None:
        stored = path / "recipe.yaml"
        recipe = configs.load(str(stored)) if stored.is_file() else None
        if recipe is None or recipe.audit is None:
            raise ValueError(f"{path}: names no suite; say --suite NAME")
        chosen = suites.load_named_by_model(
            recipe.audit.suite, recipe.audit.n, str(stored), "say --suite NAME"
        )
    else:
        chosen = suites.load(suite)
    if kind == "pipeline":
        subject = pipelines.of_pipeline(
            path, known, device=str(device), sampling=sampling, attacked=bool(chosen.attacks)
        )
    else:
        subject = of_student(path, str(device), known)
    ref, expected = card["teacher"], card["teacher"]["sha256"]
    named = original in (None, ref.get("factory"))
    teacher = (
        teachers.of_card(ref, device, trusted=original)
        if named
        else _teacher(original or "", card["labels"], device)
    )
    if teacher.sha256 != expected:
        raise ValueError(
            f"{path}: was distilled from a teacher {expected[:12]}..., the one here is"
            f" {teacher.sha256[:12]}...: put the original back, nothing can stand in for it"
        )
    return subject, chosen, teacher


def _asked(
    what: str, suite: str | None, names: Sequence[str], original: str | None, device: torch.device
) -> tuple[suites.AnySuite, list[AnyConcept], list[str], Teacher | None]:
    """Suite, concepts, labels (none: prompts) and teacher of a model that says nothing itself."""
    if suite is None:
        raise ValueError(f"{what}: names no suite; say --suite NAME")
    chosen = suites.load(suite)
    labels = _labels_of(chosen)
    known = _concepts(what, names, labels)
    return chosen, known, labels, _teacher(original, labels, device) if original else None


def _labels_of(suite: suites.AnySuite) -> list[str]:
    return (
        [] if isinstance(suite, suites.PromptSuite) else classifiers.read_card(suite.judge).labels
    )


def _concepts(what: str, names: Sequence[str], labels: Sequence[str]) -> list[AnyConcept]:
    if not names:
        raise ValueError(f"{what}: does not say what it has forgotten; say --concepts NAME,NAME")
    return list(concepts.load(names, labels) if labels else concepts.load_prompts(names))


def _teacher(text: str, labels: Sequence[str], device: torch.device) -> Teacher:
    """The teacher that a name, a file, a diffusers folder or a factory (`./mine.py:build`) is."""
    path = Path(text).expanduser()
    if text in teachers.embedded():
        return teachers.load(name=text, device=device)
    if ".py:" in text:
        return teachers.load(factory=text, device=device)
    if path.is_dir():
        classes = labels and not pipelines.asked_in_prompts(path)
        return teachers.load(diffusers=text, options={"labels": list(labels)} if classes else {},
                             device=device)  # fmt: skip
    if path.suffix:
        return teachers.load(file=text, device=device)
    return teachers.load(name=text, device=device)


def _shape_of(teacher: Teacher | None) -> outsiders.Shape | None:
    """(H, W, C) of the images that a teacher draws."""
    if teacher is None:
        return None
    x0 = torch.zeros(1, *teacher.shape, device=teacher.encode([None]).device)
    height, width, channels = teacher.decode(x0)[0].shape
    return height, width, channels
