"""Safe synthetic datasets of a run: who screens, what is asked for, and what is added after."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfd import (
    classifiers,
    concepts,
    configs,
    content,
    features,
    images,
    sample,
    teachers,
)
from sfd.concepts import AnyConcept, PromptConcept
from sfd.eval import suites
from sfd.eval.subjects import concepts_of
from sfd.sample import Student
from sfd.synthesis import asked as asking
from sfd.synthesis import bounds, credentials, dataset, screening, synthesize
from sfd.synthesis.asked import Asked
from sfd.synthesis.dataset import Progress, Report
from sfd.synthesis.folders import META
from sfd.synthesis.usefulness import Labelled, first_of_each, matched, measure
from sfd.verbs.samples import prompts_of

INSTEAD = "say --detector NAME, and --private-features NAME with --private"


def synthesize_run(
    run: Path,
    out: Path,
    *,
    n: int,
    labels: str | Sequence[str] = "all",
    balance: str | Mapping[str, int] | None = None,
    prompts: Sequence[str] = (),
    prompt_list: str | None = None,
    detectors: Sequence[str] = (),
    private: str | None = None,
    private_features: str | None = None,
    private_quantile: float | None = None,
    c2pa: tuple[str, str] | None = None,
    usefulness: tuple[str, str] | None = None,
    shard: str = "0/1",
    batch: int | None = None,
    device: str = "cpu",
    **options: Any,
) -> tuple[Student, Report | None]:
    """The dataset of a run folder or a student's file; see `synthesis.synthesize`.

    `detectors` are `NAME` or `NAME=LABEL,...` (default: the suite's judges, else the concepts').
    `private` are images that none may come too near to, in `private_features` (default: the
    suite's); `private_quantile` (.05) is the share of them nearer to each other than is allowed.
    `c2pa` are the files of a certificate chain and its key, which sign every image.
    `usefulness` are real labelled images to learn from and to test on: see `add_usefulness`.
    Raises ValueError in one line on anything that does not fit the student.
    """
    out = out.expanduser()
    if private is None and (private_features or private_quantile is not None):
        raise ValueError("--private-features and --private-quantile go with --private IMAGES")
    signer = None
    if c2pa:
        # a finished dataset signs nothing: it may be reviewed after the certificate's last day
        trial = not (out / META).is_file()
        signer = credentials.load(*(Path(name).expanduser() for name in c2pa), trial=trial)
    student = sample.load(run, device, batch)
    gone = concepts_of(student.card)
    needed = not detectors or (private is not None and not private_features)
    suite = _suite(run) if needed else None
    if not detectors:
        detectors = _judges(suite, gone)
        classifiers.refuse_code(detectors, str(run), INSTEAD)
    found = screening.detectors_of(detectors, gone, device)
    near = about = None
    if private is not None:
        name = private_features or (suite.features if suite else None)
        if name is None:
            raise ValueError("--private needs --private-features NAME: this run names no suite")
        pictures = _pictures(private)
        quantile = 0.05 if private_quantile is None else private_quantile
        near = screening.private_set(pictures, features.load(name, device), quantile)
        about = {
            "images": len(near.reference),
            "sha256": content.sha256(b"".join(picture.tobytes() for picture in pictures)),
            "features": name,
            "quantile": quantile,
            # to so many digits, machines agree on it
            "radius": float(f"{near.radius:.4g}"),
        }
    asked = _asked(student, gone, labels, balance, prompts, prompt_list)
    if usefulness:  # found before the drawing, not after
        names = list(dict.fromkeys(f["label"] for f in asked.fields if "label" in f))
        _real_images(student, names, *usefulness)
    report = synthesize(
        student, out, asked, found, n=n, private=near, about_private=about,
        batch=batch or sample.rows_at_once(student.card["shape"]),
        credentials=signer, shard=parse_shard(shard), device=device, **options,
    )  # fmt: skip
    if report and usefulness:
        progress = options.get("progress")
        report = add_usefulness(out, report, student, *usefulness, device=device, progress=progress)
    return student, report


def parse_shard(text: str) -> tuple[int, int]:
    """`0/4` as (0, 4). Raises ValueError unless it is one of that many."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal()) or int(number) >= int(of):
        raise ValueError(f"shard {text!r}: give NUMBER/OF, counted from 0, such as 0/4")
    return int(number), int(of)


def _suite(run: Path) -> suites.AnySuite | None:
    """The suite of the recipe that lies beside a student, if there is one."""
    stored = (run if run.is_dir() else run.parent) / "recipe.yaml"
    recipe = configs.load(str(stored)) if stored.is_file() else None
    if recipe is None or recipe.audit is None:
        return None
    named = recipe.audit
    return suites.load_named_by_model(named.suite, named.n, str(stored), INSTEAD)


def _judges(suite: suites.AnySuite | None, gone: Sequence[AnyConcept]) -> list[str]:
    """Both judges of the suite that know a concept; for the rest, the classifiers they name."""
    names = suites.judges_of(suite) if suite else []
    known = {name: classifiers.read_card(name).labels for name in names}
    wanted = {concept.label_name for concept in gone}
    chosen = [name for name, has in known.items() if wanted & set(has)]
    seen = {label for name in chosen for label in known[name]}
    return list(dict.fromkeys([*chosen, *(c.classifier for c in gone if c.label_name not in seen)]))


def _asked(
    student: Student,
    gone: Sequence[AnyConcept],
    labels: str | Sequence[str],
    balance: str | Mapping[str, int] | None,
    prompts: Sequence[str],
    prompt_list: str | None,
) -> Asked:
    if student.labels:
        if prompts or prompt_list:
            raise ValueError("this student is asked in classes: use --labels")
        forgotten = {c.label: "is forgotten" for c in gone if isinstance(c, concepts.Concept)}
        never = {label: "was never taught" for label in student.card["without"]}
        parts = asking.parse_balance(balance)
        return asking.of_labels(student.labels, {**never, **forgotten}, labels, parts)
    if labels != "all" or balance:
        raise ValueError("this student is asked in words: use --prompts")
    words = prompts_of(prompts, prompt_list)
    texts = [c for c in gone if isinstance(c, PromptConcept)]
    held = {p.text for c in texts for p in c.holdout}
    refused = [p for p in words if p in held or any(c.mentions(p) for c in texts)]
    return asking.of_prompts(words, refused)


def _pictures(source: str) -> list[np.ndarray]:
    """All images below a folder, or labelled data of another form without its labels."""
    path = Path(source).expanduser()
    if path.is_dir():  # what was left out would not be protected
        return images.read_below(path)
    return list(images.read_labelled(source)[0])


# --- what is added after -------------------------------------------------------------------------


def write_review(out: Path, report: Report, count: int) -> Path:
    """A table of `count` random kept images beside the dataset, for people to fill.

    Raises ValueError where it is there already: it may hold answers.
    """
    path = out.with_name(f"{out.name}-review.csv")
    if path.exists():
        raise ValueError(f"{path}: is there already: hand it in with --reviewed, or move it away")
    names = dataset.sample_for_review(out, report, count)
    dataset.promise_review(out, count)
    content.write_atomic(path, bounds.review_csv(names))
    return path


def add_review(out: Path, report: Report, path: Path) -> Report:
    """Read a filled table of reviewed images into the report and the card."""
    answers = bounds.read_review(path)
    dataset.check_promised(out, len(answers))
    sampled = dataset.sample_for_review(out, report, len(answers))
    return dataset.add(out, report, "review", bounds.reviewed(answers, sampled))


def add_usefulness(
    out: Path,
    report: Report,
    student: Student,
    train: str,
    test: str,
    *,
    device: str,
    steps: int = 18,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Measure what a classifier learns from the dataset, beside real images and the teacher's.

    `train` and `test` are labelled real images; as many of each kind are learned from. The teacher
    draws by `steps` of its own sampler. Raises ValueError for a dataset of prompts.
    """
    labels = list(report["by"])
    real, held = _real_images(student, labels, train, test)
    least = int(np.bincount(real[1]).min())
    each = min(least, *(row["kept"] for row in report["by"].values()))

    def of_teacher() -> Labelled:
        teacher = teachers.of_card(student.card["teacher"], torch.device(device))
        generate = sample.teacher_sampler(teacher, steps=steps)
        numbers = np.repeat(np.arange(len(labels)), each)
        asked = [student.labels.index(labels[i]) for i in numbers]
        return generate(asked, np.arange(len(asked))), numbers

    found = measure(
        {
            "synthetic images": lambda: dataset.labelled(out, labels, each),
            "real images": lambda: first_of_each(real, len(labels), each),
            "the teacher's images": functools.cache(of_teacher),
        },
        held,
        labels,
        seed=seed,
        device=device,
        progress=progress,
    )
    return dataset.add(out, report, "usefulness", {**found, "teacher_steps": steps})


def _real_images(
    student: Student, labels: Sequence[str], train: str, test: str
) -> tuple[Labelled, Labelled]:
    """Both sets of real images, numbered as `labels`. Raises ValueError where a label has none."""
    if not student.labels:
        raise ValueError("--usefulness is for a dataset of labels, this one is of prompts")
    real, held = (
        matched(data, images.read_labelled(data), labels, student.labels) for data in (train, test)
    )
    return real, held
