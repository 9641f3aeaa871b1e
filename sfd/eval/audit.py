"""The audit of one subject by one suite: from images to `audit.json`'s content."""

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfd import (
    checkpoints,
    classifiers,
    content,
    features,
    images,
    metrics,
    plugins,
    provenance,
    sample,
)
from sfd.classifiers import Classifier
from sfd.concepts import Concept
from sfd.eval import claims, evidence, ladder, suites
from sfd.eval.evidence import Drawn
from sfd.eval.subjects import Subject, weights_of
from sfd.eval.suites import Suite
from sfd.sample import Generate
from sfd.teachers import Teacher

SCHEMA = "sfd/audit/1"
QUANTILE = 0.99
PER_SHEET = 16

Progress = Callable[[str, int, int], None]
"""`progress(what, images done, images in all)`."""


def seeds_from(text: str, count: int) -> np.ndarray:
    """Seeds that follow from what is audited by what: nobody reruns until one passes."""
    first = int(content.sha256(text.encode())[:10], 16)
    return np.arange(first, first + count)


def audit(
    subject: Subject,
    suite: Suite,
    teacher: Teacher,
    folder: Path,
    *,
    device: str = "cpu",
    gold: Subject | None = None,
    controls: Sequence[dict[str, Any]] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Audit `subject` against its original `teacher`; the content of `audit.json`.

    `gold` is a one-step generator that never knew the concepts: attacks are compared with it.
    Leaves `audit.json`, `sheets/` and the transcripts of attacks in `folder`. Raises ValueError, in
    one line, if the suite's judges, reference and the teacher's labels do not fit together.
    """
    started = time.perf_counter()
    judges = (load_judge(suite.judge, device), load_judge(suite.second, device))
    extract = features.load(suite.features, device)
    reference = suites.read_reference(suite.reference)
    labels = list(subject.labels)
    _check(suite, judges, reference, labels, teacher)
    forgotten = [c.label for c in subject.concepts]
    gone = sorted({*forgotten, *subject.without})
    retained = [i for i in range(len(labels)) if i not in gone]
    planned = suite.n.direct * len(subject.concepts) + suite.n.per_class * len(retained)
    plan = content.hash_json({"suite": suites.plain(suite), "labels": labels})
    count = _counter(progress, planned)

    before, before_sheets = _teacher_side(
        teacher, suite, judges, extract, reference.extractor_sha256, progress
    )
    shared = seeds_from(plan, suite.n.per_class)
    own = seeds_from(subject.sha256 + plan, suite.n.direct)
    sheets = _Sheets(folder / "sheets", labels)
    grid: dict[int, Drawn] = {}
    for label in retained:
        grid[label] = evidence.draw(
            subject.generate,
            label,
            shared,
            judges=judges,
            extract=extract,
            keep=sheets.first("student", label),
            progress=count,
        )
    asked: dict[str, Drawn] = {}
    for concept in subject.concepts:
        asked[concept.name] = evidence.draw(
            subject.generate,
            concept.label,
            own,
            judges=judges,
            extract=extract,
            keep=sheets.worst(concept),
            progress=count,
        )
    for label, sheet in before_sheets.items():
        sheets.write(f"teacher-{label:02d}", sheet)

    radius = metrics.nn_radius(reference.features, QUANTILE)
    margin = suite.claims.collateral.margin if suite.claims.collateral else 0.01
    found: dict[str, Any] = {"direct": {}, "validity": {}, "override": {}, "leaks": {}}
    for concept in subject.concepts:
        drawn = asked[concept.name]
        valid = evidence.validity(drawn, reference, radius, QUANTILE)
        found["validity"][concept.name] = valid
        inside = metrics.within_radius(drawn.features, reference.features, radius)
        found["direct"][concept.name] = evidence.direct(
            concept, drawn, before.get(concept.label), judges, labels, inside, concept.override
        )
        found["override"][concept.name] = evidence.override(concept, drawn, labels)
        found["leaks"][concept.name] = evidence.leaks(concept, grid, before, labels, retained)
    everything = grid | {c.label: asked[c.name] for c in subject.concepts}
    found["cross_leak"] = evidence.cross_leak(everything, labels)
    found["collateral"] = evidence.collateral(grid, before, reference, labels, retained, margin)
    baseline = {"what": f"teacher {teacher.name}, Heun", "nfe": 2 * suite.teacher_steps - 1}
    found["quality"] = evidence.quality(
        grid, before, reference, labels, retained, feature_space=suite.features, baseline=baseline
    )
    found["hygiene"] = _hygiene(subject, teacher)
    found["attacks"], skipped = ladder.attacked(
        subject,
        suite,
        teacher,
        gold,
        {i: float((drawn.second == i).mean()) for i, drawn in before.items()},
        judges=judges,
        features=extract,
        seed_of=lambda name: int(seeds_from(f"{subject.sha256} {plan} {name} attacks", 1)[0]),
        folder=folder,
        progress=progress,
    )

    stated = claims.decide(suite, found, subject.concepts, subject.without)
    stated += ladder.claims(suite, found["attacks"], skipped, ladder.missing_gold(teacher))
    failed = sum(int((~drawn.judged).sum()) for drawn in everything.values())
    result = {
        "schema": SCHEMA,
        "verdict": claims.overall([claim["status"] for claim in stated]),
        "threat_model": suite.threat_model,
        "subject": {
            "path": subject.path,
            "sha256": subject.sha256,
            "format": subject.format,
            "nfe": subject.nfe,
            "networks": list(subject.networks),
            "recipe_sha256": subject.recipe_sha256,
            "teacher": {"name": teacher.name, "sha256": teacher.sha256},
            "concepts": [
                {
                    "name": c.name,
                    "label": c.label,
                    "label_name": c.label_name,
                    "override": {labels[i]: p for i, p in c.override.items()},
                }
                for c in subject.concepts
            ],
        },
        "suite": {
            "name": suite.name,
            "version": suite.version,
            "sha256": suites.sha256(suite),
            "plan_sha256": plan,
        },
        "claims": stated,
        "evidence": found,
        "coverage": {"planned": planned, "completed": planned - failed, "failed": failed},
        "controls": list(controls),
        "detectors": [
            _detector(j, role) for j, role in zip(judges, ("judge", "second"), strict=True)
        ],
        "earlier_audits": _earlier(folder, subject.sha256),
        "cost": {
            "seconds": round(time.perf_counter() - started, 1),
            "images": planned + sum(ladder.images_of(entry) for entry in found["attacks"]),
            "device": device,
        },
        "provenance": provenance.collect(device),
        "not_tested": [*ladder.not_tested(suite, skipped), *_not_tested(suite, subject, controls)],
    }
    content.write_json(folder / "audit.json", result)
    return result


def load_judge(name: str, device: str) -> Classifier:
    """A classifier whose card may name a backend of the user's own."""
    return classifiers.load(
        name, device, backend=lambda b: plugins.resolve(classifiers.BACKENDS, b, "classifiers")
    )


def _check(
    suite: Suite,
    judges: tuple[Classifier, Classifier],
    reference: suites.Reference,
    labels: list[str],
    teacher: Teacher,
) -> None:
    if labels != list(teacher.labels):
        raise ValueError(f"the subject's labels {labels} are not the teacher's {teacher.labels}")
    for classifier in judges:
        if classifier.card.labels != labels:
            raise ValueError(
                f"judge {classifier.card.name} knows {classifier.card.labels}, the teacher draws"
                f" {labels}: name a judge of the same labels, in the same order"
            )
    if suite.judge == suite.second or suite.features in (suite.judge, suite.second):
        raise ValueError(
            f"suite {suite.name}: judge, second and features must be three networks trained apart"
        )
    missing = set(labels) - set(reference.names)
    if missing:
        raise ValueError(f"reference {reference.name} has no images of {sorted(missing)}")
    if reference.extractor != suite.features or reference.extractor_sha256 != _extractor_sha(suite):
        raise ValueError(
            f"reference {reference.name} was made with {reference.extractor} of other weights than"
            f" suite {suite.name}'s {suite.features}: make it again with `sfd reference`"
        )


def _extractor_sha(suite: Suite) -> str | None:
    return features.sha256(suite.features)


def _counter(progress: Progress | None, total: int) -> Callable[[int], None]:
    done = 0

    def count(images: int) -> None:
        nonlocal done
        done += images
        if progress:
            progress("audit", done, total)

    return count


# --- the teacher's side --------------------------------------------------------------------------


def _teacher_side(
    teacher: Teacher,
    suite: Suite,
    judges: tuple[Classifier, Classifier],
    extract: features.Extractor,
    extractor_sha256: str | None,
    progress: Progress | None,
) -> tuple[dict[int, Drawn], dict[int, np.ndarray]]:
    """Every label of the teacher, drawn and judged, and a sheet of each; cached by all it rests on.

    A label the teacher was never taught is drawn all the same (its null condition).
    """
    labels = range(len(teacher.labels))
    plan = content.hash_json({"suite": suites.plain(suite), "labels": list(teacher.labels)})
    key = {
        "teacher": teacher.sha256,
        "judges": [j.card.weights_sha256 for j in judges],
        "extractor": [suite.features, extractor_sha256],
        "steps": suite.teacher_steps,
        "n": suite.n.per_class,
        "first_seed": int(seeds_from(plan, 1)[0]),
    }
    name = f"teacher-{teacher.name}-{content.hash_json(key)[:16]}.npz"
    cached = next((p for p in (_shipped_cache(name), _user_cache(name)) if p.is_file()), None)
    if cached is not None:
        return _read_side(cached)
    generate: Generate = sample.teacher_sampler(teacher, steps=suite.teacher_steps)
    count = _counter(
        (lambda what, n, of: progress(f"teacher {teacher.name}", n, of)) if progress else None,
        len(labels) * suite.n.per_class,
    )
    side: dict[int, Drawn] = {}
    sheets: dict[int, np.ndarray] = {}
    for label in labels:
        kept: list[np.ndarray] = []
        side[label] = evidence.draw(
            generate,
            label,
            seeds_from(plan, suite.n.per_class),
            judges=judges,
            extract=extract,
            keep=lambda images, _, kept=kept: kept.append(images[:PER_SHEET]),
            progress=count,
        )
        sheets[label] = np.concatenate(kept)[:PER_SHEET]
    _write_side(_user_cache(name), side, sheets)
    return side, sheets


def _shipped_cache(name: str) -> Path:
    return content.shipped() / "eval" / "references" / name


def _user_cache(name: str) -> Path:
    return content.cache() / name


def _write_side(path: Path, side: dict[int, Drawn], sheets: dict[int, np.ndarray]) -> None:
    labels = list(side)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        probabilities=np.stack([side[i].probabilities for i in labels]).astype(np.float16),
        called=np.stack([side[i].called for i in labels]).astype(np.int16),
        second=np.stack([side[i].second for i in labels]).astype(np.int16),
        features=np.stack([side[i].features for i in labels]).astype(np.float16),
        sheets=np.stack([sheets[i] for i in labels]),
    )
    content.write_atomic(path, buffer.getvalue())


def _read_side(path: Path) -> tuple[dict[int, Drawn], dict[int, np.ndarray]]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {k: file[k] for k in file.files}
    side = {
        i: Drawn(
            arrays["probabilities"][i].astype(np.float32),
            arrays["called"][i].astype(int),
            arrays["second"][i].astype(int),
            arrays["features"][i].astype(np.float32),
        )
        for i in range(len(arrays["called"]))
    }
    return side, dict(enumerate(arrays["sheets"]))


# --- the rest ------------------------------------------------------------------------------------


class _Sheets:
    """Writes contact sheets: the first images of each class, and those a judge suspects most."""

    def __init__(self, folder: Path, labels: Sequence[str]):
        self.folder = folder
        self.labels = labels

    def write(self, name: str, pictures: np.ndarray) -> None:
        grid = images.sheet(pictures, columns=8, scale=max(1, 56 // pictures.shape[1]))
        content.write_atomic(self.folder / f"{name}.png", images.png_bytes(grid))

    def first(self, who: str, label: int) -> Callable[[np.ndarray, np.ndarray], None]:
        done = False

        def keep(pictures: np.ndarray, _: np.ndarray) -> None:
            nonlocal done
            if not done:
                self.write(f"{who}-{label:02d}", pictures[:PER_SHEET])
                done = True

        return keep

    def worst(self, concept: Concept) -> Callable[[np.ndarray, np.ndarray], None]:
        """The first images, and the sixteen of all that the judge finds most like the concept."""
        first = self.first("student", concept.label)
        best: list[tuple[float, np.ndarray]] = []

        def keep(pictures: np.ndarray, probabilities: np.ndarray) -> None:
            nonlocal best
            first(pictures, probabilities)
            scores = np.nan_to_num(probabilities[:, concept.label], nan=2.0)
            order = np.argsort(-scores)[:PER_SHEET]
            best = sorted(
                [*best, *((float(scores[i]), pictures[i]) for i in order)],
                key=lambda pair: -pair[0],
            )[:PER_SHEET]
            self.write(f"worst-{concept.name}", np.stack([picture for _, picture in best]))

        return keep


def _hygiene(subject: Subject, teacher: Teacher) -> dict[str, Any]:
    findings = list(subject.findings)
    original = weights_of("teacher", teacher.denoiser)["sha256"]
    for network in subject.networks:
        if network["sha256"] == original:
            findings.append(f"{network['name']} is the un-forgotten teacher")
    return {"networks": list(subject.networks), "findings": findings}


def _detector(classifier: Classifier, role: str) -> dict[str, Any]:
    card = classifier.card
    block = card.calibration.model_dump(mode="json") if card.calibration else {}
    return {
        "name": card.name,
        "role": role,
        "sha256": card.weights_sha256,
        "threshold": card.threshold,
        "sensitivity": block.get("sensitivity", {}),
        "false_positive_rate": block.get("false_positive", {}),
    }


def _earlier(folder: Path, sha256: str) -> list[dict[str, Any]]:
    """Audits of the same subject that this one replaces."""
    path = folder / "audit.json"
    if not path.exists():
        return []
    try:
        old = checkpoints.read_json(path)
    except ValueError:
        return [{"path": str(path), "verdict": "unreadable"}]
    listed = list(old.get("earlier_audits", []))
    if old.get("subject", {}).get("sha256") == sha256:
        listed.append(
            {
                "suite": old["suite"]["name"],
                "plan_sha256": old["suite"]["plan_sha256"],
                "verdict": old["verdict"],
                "at": old.get("provenance", {}).get("at"),
            }
        )
    return listed


def _not_tested(suite: Suite, subject: Subject, controls: Sequence[dict[str, Any]]) -> list[str]:
    left = [
        "memorisation of training images",
        "whether it is nearer to a model retrained without the concept (three-sample kernel test)",
        "human review",
    ]
    if not controls:
        left.append("known-answer controls (`sfd audit --controls`)")
    if suite.threat_model == "api":
        left.append("an attacker who holds the weights (threat model: api)")
    if not subject.networks:
        left.append("what is inside the released file")
    return left
