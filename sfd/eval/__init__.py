"""The audit: claims stated before the run, evidence gathered by judges, three verdicts.

`suites` is the only reader of `eval/`; `evidence` turns images into numbers, `claims` numbers into
verdicts; `audit` joins them for classes, `prompts` for prompts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfd import classifiers
from sfd.concepts import AnyConcept, PromptConcept
from sfd.eval import audit as classes
from sfd.eval import common, prompts, suites
from sfd.eval.common import Progress, load_judge
from sfd.eval.grid import build_grid, view_of
from sfd.eval.subjects import Subject
from sfd.eval.suites import AnySuite, PromptSuite, Suite
from sfd.teachers import Teacher


def audit(
    subject: Subject,
    suite: AnySuite,
    teacher: Teacher | None,
    folder: Path,
    *,
    device: str = "cpu",
    gold: Subject | None = None,
    gold_named: bool = True,
    plain: Subject | None = None,
    controls: Sequence[dict[str, Any]] = (),
    review: int = 0,
    clip: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Audit `subject` against its original `teacher`, if there is one; `audit.json`'s content.

    `gold` is a generator that never knew the concepts: attacks are compared with it, and
    one that nobody `gold_named` is left out where it knew; `plain` is one that forgot nothing.
    `review` images of each concept are left for people to look at. `clip` is the folder of a CLIP
    model, by which prompts and images are compared.
    Leaves `audit.json`, `sheets/` and transcripts of attacks in `folder`. Raises ValueError, in one
    line, if the suite's judges and reference, the concepts and the teacher do not fit together.
    """
    _check_kind(suite, teacher.labels if teacher else subject.labels)
    options: Any = {"device": device, "controls": controls, "progress": progress, "review": review}
    if isinstance(suite, PromptSuite):
        options |= {"gold_named": gold_named, "clip": clip}
        return prompts.audit(subject, suite, teacher, folder, gold=gold, **options)
    return classes.audit(subject, suite, teacher, folder, gold=gold, plain=plain, **options)


def check_suite(suite: AnySuite, labels: Sequence[str], concepts: Sequence[AnyConcept]) -> None:
    """Whether a suite can judge a model of these labels (none: asked in prompts) and concepts.

    Nothing is drawn. Raises ValueError, in one line, if it cannot.
    """
    _check_kind(suite, labels)
    reference = suites.read_reference(suite.reference)
    if isinstance(suite, Suite):
        cards = [classifiers.read_card(name) for name in (suite.judge, suite.second)]
        common.check_labels(cards, labels)
        common.check_reference(suite, reference, labels)
        return
    grid = build_grid(suite, "cpu")
    common.check_reference(suite, reference, [cell.name for cell in grid.cells])
    for concept in concepts:
        if isinstance(concept, PromptConcept):
            view_of(concept, grid)


def _check_kind(suite: AnySuite, labels: Sequence[str]) -> None:
    if isinstance(suite, PromptSuite) == bool(labels):
        asked = "classes" if labels else "prompts"
        raise ValueError(f"suite {suite.name} is not for a model that is asked in {asked}")


__all__ = ["AnySuite", "PromptSuite", "Subject", "Suite", "audit", "check_suite", "load_judge"]
