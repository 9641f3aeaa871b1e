"""The audit of one subject by one suite: from images to `audit.json`'s content."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfd import (
    content,
    features,
    metrics,
)
from sfd.classifiers import Classifier
from sfd.concepts import Concept, concept_sha256
from sfd.eval import (
    attack_claims,
    claims,
    class_teacher,
    common,
    evidence,
    guidance,
    judging,
    ladder,
    suites,
)
from sfd.eval import review as reviews
from sfd.eval.judging import Drawn
from sfd.eval.quality import quality
from sfd.eval.relative import relative
from sfd.eval.subjects import Subject
from sfd.eval.suites import Suite
from sfd.teachers import Teacher


def audit(
    subject: Subject,
    suite: Suite,
    teacher: Teacher | None,
    folder: Path,
    *,
    device: str = "cpu",
    gold: Subject | None = None,
    plain: Subject | None = None,
    controls: Sequence[dict[str, Any]] = (),
    review: int = 0,
    progress: common.Progress | None = None,
) -> dict[str, Any]:
    """Audit `subject` against its original `teacher`, if there is one; `audit.json`'s content.

    `gold` is a generator that never knew the concepts: attacks are compared with it.
    `plain` is one that forgot nothing: with both, the audit says which the subject is nearer to.
    `review` images of each concept are left for people to look at.
    Leaves `audit.json`, `sheets/` and the transcripts of attacks in `folder`. Raises ValueError, in
    one line, if the suite's judges, reference and the labels do not fit together.
    """
    started = time.perf_counter()
    if review:
        reviews.check(folder, review, suite.n.direct, repeatable=subject.repeatable)
    judges = (common.load_judge(suite.judge, device), common.load_judge(suite.second, device))
    extract = features.load(suite.features, device)
    reference = suites.read_reference(suite.reference)
    labels = list(subject.labels)
    _check(suite, judges, reference, labels, teacher)
    if teacher and subject.teacher_sha256 == teacher.sha256:
        _check_taught(subject, teacher)
    concepts = [c for c in subject.concepts if isinstance(c, Concept)]
    forgotten = [c.label for c in concepts]
    untaught = teacher.without if teacher else subject.without  # not by what the subject says
    gone = sorted({*forgotten, *untaught})
    retained = [i for i in range(len(labels)) if i not in gone]
    planned = suite.n.direct * len(concepts) + suite.n.per_class * len(retained)
    data = ladder.read_data(suite.attack_images, teacher) if teacher and suite.attacks else None
    alike = suites.plan_sha256(suite, labels)
    # an attacker's own images are part of the plan, but not of what the teacher is asked
    own_images = [content.sha256(part.tobytes()) for part in data or ()]
    plan = content.hash_json([alike, *own_images]) if data else alike
    count = common.counter(progress, planned)

    side = (
        class_teacher.teacher_side(teacher, suite, judges, extract, reference, progress)
        if teacher
        else None
    )
    before = side.drawn if side else {}
    shared = common.seeds_from(alike, suite.n.per_class)
    own = common.seeds_from(subject.sha256 + plan, suite.n.direct)
    sheets = common.Sheets(folder / "sheets", labels)
    grid: dict[int, Drawn] = {}
    for label in retained:
        grid[label] = judging.draw(
            subject.generate,
            label,
            shared,
            judges=judges,
            extract=extract,
            keep=sheets.first("student", label),
            progress=count,
        )
    asked: dict[str, Drawn] = {}
    for concept in concepts:
        asked[concept.name] = judging.draw(
            subject.generate,
            concept.label,
            own,
            judges=judges,
            extract=extract,
            first=[concept.label, *forgotten],
            keep=sheets.worst(concept),
            progress=count,
        )
    for label, sheet in (side.sheets if side else {}).items():
        sheets.write(f"teacher-{label:02d}", sheet)

    everything = grid | {c.label: asked[c.name] for c in concepts}
    radius = metrics.nn_radius(reference.features, common.QUANTILE)
    margin = suite.claims.collateral.margin if suite.claims.collateral else 0.01
    found: dict[str, Any] = {"direct": {}, "validity": {}, "override": {}, "leaks": {}}
    for concept in concepts:
        drawn = asked[concept.name]
        inside = evidence.inside(drawn, reference, radius)
        valid = evidence.validity(drawn, inside, radius, common.QUANTILE)
        found["validity"][concept.name] = valid
        found["direct"][concept.name] = evidence.direct(
            concept, drawn, before.get(concept.label), judges, labels, inside, concept.override
        )  # fmt: skip
        found["override"][concept.name] = evidence.override(concept, drawn, labels)
        others = [label for label in everything if label != concept.label]
        found["leaks"][concept.name] = evidence.leaks(
            concept, everything, before, labels, others,
            judge=judges[0], paired=retained if subject.paired else (),
        )  # fmt: skip
    found["cross_leak"] = evidence.cross_leak(everything, labels)
    found["collateral"] = evidence.collateral(
        grid, before, reference, labels, retained, margin, paired=subject.paired
    )
    found["quality"] = quality(
        grid,
        before,
        reference,
        labels,
        retained,
        feature_space=suite.features,
        baseline=(
            guidance.described(
                f"teacher {teacher.name}", suite.teacher.steps, side.guidance, side.tried
            )
            if teacher and side
            else {}
        ),
    )
    found["hygiene"] = common.hygiene(subject, teacher)
    found["sheets"] = sheets.written
    compared = relative(gold, plain, grid, asked, concepts, plan=plan, extract=extract)
    found |= {"relative": compared} if compared else {}
    found["attacks"], skipped = ladder.attacked(
        subject,
        suite,
        teacher,
        gold,
        {i: float((drawn.second == i).mean()) for i, drawn in before.items()},
        guidance=side.guidance if side else 1.0,
        data=data,
        judges=judges,
        features=extract,
        near=evidence.near(reference.features, radius, extract),
        plan=plan,
        folder=folder,
        progress=progress,
    )

    if review:
        packets = [
            reviews.Asked(
                c.name,
                c.label_name,
                [c.label] * suite.n.direct,
                own,
                asked[c.name].probabilities[:, c.label],
                asked[c.name].called == c.label,
                asked[c.name].made,
            )
            for c in concepts
        ]
        found["review"] = reviews.packet(
            folder, packets, review, subject.generate, subject.sha256, plan
        )

    stated = claims.decide(suite, found, concepts, subject.without)
    stated += attack_claims.claims(
        suite, found["attacks"], skipped, attack_claims.missing_gold(teacher and teacher.name)
    )
    return common.conclude(
        subject,
        suite,
        teacher,
        folder,
        plan=plan,
        stated=stated,
        found=found,
        planned=planned,
        failed=sum(int((~drawn.judged).sum()) for drawn in everything.values()),
        concepts=[
            {
                "name": c.name,
                "label": c.label,
                "label_name": c.label_name,
                "override": {labels[i]: p for i, p in c.override.items()},
                "sha256": concept_sha256(c),
            }
            for c in concepts
        ],
        seconds=time.perf_counter() - started,
        device=device,
        controls=controls,
        attack_images=sum(attack_claims.images_of(entry) for entry in found["attacks"]),
        untested=attack_claims.not_tested(suite, skipped),
    )


def _check(
    suite: Suite,
    judges: tuple[Classifier, Classifier],
    reference: suites.Reference,
    labels: list[str],
    teacher: Teacher | None,
) -> None:
    if teacher and labels != list(teacher.labels):
        raise ValueError(f"the subject's labels {labels} are not the teacher's {teacher.labels}")
    common.check_labels([judge.card for judge in judges], labels)
    common.check_apart(suite.name, *judges, suite.features)
    common.check_reference(suite, reference, labels)


def _check_taught(subject: Subject, teacher: Teacher) -> None:
    """Raises ValueError on a student whose card says other labels were never taught than its
    teacher's does: under these it would not be asked what it can draw."""
    if odd := sorted({*subject.without} ^ {*teacher.without}):
        names = ", ".join(subject.labels[i] for i in odd)
        raise ValueError(f"{subject.path}: its card and its teacher's disagree on whether they were"
                         f" taught {names}: it could not be asked what it draws")  # fmt: skip
