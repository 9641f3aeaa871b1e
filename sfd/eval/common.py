"""What every audit shares: seeds, sheets, the reference's fit, and the form of audit.json."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfd import classifiers, content, features, images, plugins, provenance, seal
from sfd.classifiers import Card, Classifier
from sfd.concepts import Concept, concept_sha256
from sfd.eval import claims, suites
from sfd.eval.judging import Drawn
from sfd.eval.subjects import Subject, weights_of
from sfd.eval.suites import AnySuite
from sfd.teachers import Teacher

QUANTILE = 0.99
PER_SHEET = 16
NOT_COMPARED = (
    "whether it is nearer to a model retrained without the concept than to the original: needs"
    " one-step students of both, `<teacher>-gold` and `<teacher>-plain`"
)
NOT_REVIEWED = "human review"

Progress = Callable[[str, int, int], None]
"""`progress(what, images done, images in all)`."""


def seeds_from(text: str, count: int) -> np.ndarray:
    """Seeds that follow from what is audited by what: nobody reruns until one passes."""
    first = int(content.sha256(text.encode())[:10], 16)
    return np.arange(first, first + count)


def load_judge(name: str, device: str) -> Classifier:
    """A classifier whose card may name a backend of the user's own."""
    return classifiers.load(
        name, device, backend=lambda b: plugins.resolve(classifiers.BACKENDS, b, "classifiers")
    )


def check_labels(cards: Sequence[Card], labels: Sequence[str]) -> None:
    """Raise ValueError unless these judges know a model's labels, in their order."""
    for card in cards:
        if card.labels != list(labels):
            raise ValueError(
                f"judge {card.name} knows {card.labels}, the subject draws {list(labels)}: name a"
                " judge of the same labels, in the same order"
            )


def check_apart(suite: str, first: Classifier, second: Classifier, space: str) -> None:
    """Raise ValueError unless two judges and the features `space` are three networks."""
    cards = (first.card, second.card)
    known = [sha for sha in (*(c.weights_sha256 for c in cards), features.sha256(space)) if sha]
    if len(set(known)) < len(known) or cards[0].name == cards[1].name:
        raise ValueError(
            f"suite {suite}: {cards[0].name}, {cards[1].name} and {space} must be three networks"
            " trained apart"
        )


def check_reference(suite: AnySuite, reference: suites.Reference, labels: Sequence[str]) -> None:
    """Raises ValueError if a reference lacks a label, or is of another extractor."""
    missing = set(labels) - set(reference.names)
    if missing:
        raise ValueError(f"reference {reference.name} has no images of {sorted(missing)}")
    sha = features.sha256(suite.features)
    if reference.extractor != suite.features or reference.extractor_sha256 != sha:
        raise ValueError(
            f"reference {reference.name} was made with {reference.extractor} of other weights than"
            f" suite {suite.name}'s {suite.features}: make it again with `sfd reference`"
        )


def counter(progress: Progress | None, total: int) -> Callable[[int], None]:
    """Adds up images for a progress bar."""
    done = 0

    def count(images: int) -> None:
        nonlocal done
        done += images
        if progress:
            progress("audit", done, total)

    return count


def cached(name: str) -> Path:
    """Where a teacher's side lies: shipped, or else in the user's cache, there yet or not."""
    shipped = content.shipped() / "eval" / "references" / name
    return shipped if shipped.is_file() else content.cache() / name


def conclude(
    subject: Subject,
    suite: AnySuite,
    teacher: Teacher | None,
    folder: Path,
    *,
    plan: str,
    stated: Sequence[claims.Claim],
    found: Mapping[str, Any],
    planned: int,
    failed: int,
    concepts: Sequence[Mapping[str, Any]],
    seconds: float,
    device: str,
    controls: Sequence[dict[str, Any]],
    attack_images: int = 0,
    untested: Sequence[str] = ("attacks",),
) -> dict[str, Any]:
    """Write audit.json; its content. `untested` are the attacks that were not tried.

    What people saw of the same subject by the same plan stays: beside a new packet too.
    """
    seen = review_beside(found.get("review"), _seen(folder, subject, plan))
    left = [*untested, *_not_tested(suite, subject, teacher, controls)]
    result = {
        "schema": seal.SCHEMA,
        "verdict": claims.with_review(claims.overall([c["status"] for c in stated]), seen),
        "threat_model": suite.threat_model,
        "subject": {
            "path": subject.path,
            "sha256": subject.sha256,
            "format": subject.format,
            "nfe": subject.nfe,
            "networks": list(subject.networks),
            "recipe_sha256": subject.recipe_sha256,
            "family_sha256": subject.family_sha256,
            "seed": subject.seed,
            "teacher": {"name": teacher.name, "sha256": teacher.sha256} if teacher else None,
            "concepts": list(concepts),
        },
        "suite": {
            "name": suite.name,
            "version": suite.version,
            "sha256": suites.sha256(suite),
            "plan_sha256": plan,
        },
        "claims": list(stated),
        "evidence": {**found, **({"review": seen} if seen else {})},
        "coverage": {"planned": planned, "completed": planned - failed, "failed": failed},
        "controls": list(controls),
        "detectors": detectors(suite),
        "earlier_audits": _earlier(folder),
        "cost": {"seconds": round(seconds, 1), "images": planned + attack_images, "device": device},
        "provenance": provenance.collect(device),
        "not_tested": [
            text
            for text in left
            if text != NOT_COMPARED or not found.get("relative")
            if text != NOT_REVIEWED or not any("random" in each for each in seen.values())
        ],
    }
    return seal.write(folder / "audit.json", result)


def judged(
    folder: Path,
    subject: Subject,
    suite: AnySuite,
    teacher: Teacher,
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """The audit in a folder, if it has asked all that another would ask now, and by the same."""
    if not (folder / "audit.json").is_file():
        return None
    try:
        done = seal.checked(folder)
    except ValueError as error:
        say(f"{error}: judging again")
        return None
    was, quality = done["subject"], done["evidence"].get("quality", {})
    told = [was["sha256"], (was["teacher"] or {}).get("sha256"), done["suite"]["sha256"]]
    told += [quality.get("reference_sha256"), done["detectors"]]
    told += [each.get("sha256") for each in was["concepts"]]
    asked = [subject.sha256, teacher.sha256, suites.sha256(suite)]
    asked += [suites.read_reference(suite.reference).sha256, detectors(suite)]
    asked += [concept_sha256(each) for each in subject.concepts]
    return done if told == asked else None


def whole(drawn: Drawn, who: str) -> Drawn:
    """What an original drew. Raises ValueError where there is an image that it could not draw."""
    missing = int((~drawn.made).sum())
    if missing:
        said = "; ".join(drawn.errors)
        raise ValueError(
            f"{who}: {missing} of {len(drawn.made)} images could not be drawn ({said}): nothing can"
            " be compared with it; mend it, or audit without an original"
        )
    return drawn


class Sheets:
    """Writes contact sheets: the first images of each label, and those a judge suspects most."""

    def __init__(self, folder: Path, labels: Sequence[str]):
        self.folder = folder
        self.labels = labels
        self.written: dict[str, str] = {}
        """The sha256 of each: what an earlier audit left beside them is not of this one."""

    def write(self, name: str, pictures: np.ndarray) -> None:
        grid = images.sheet(pictures, columns=8, scale=max(1, 56 // pictures.shape[1]))
        png = images.png_bytes(grid)
        content.write_atomic(self.folder / f"{name}.png", png)
        self.written[name] = content.sha256(png)

    def first(self, who: str, label: int) -> Callable[[np.ndarray, np.ndarray], None]:
        done = False

        def keep(pictures: np.ndarray, _: np.ndarray) -> None:
            nonlocal done
            if not done:
                self.write(f"{who}-{label:02d}", pictures[:PER_SHEET])
                done = True

        return keep

    def worst(
        self, concept: Concept, column: int | None = None
    ) -> Callable[[np.ndarray, np.ndarray], None]:
        """The first images, and the sixteen of all that the judge finds most like the concept.

        `column` is the concept's among the judge's labels, its label if it is not given.
        """
        column = concept.label if column is None else column
        first = self.first("student", concept.label)
        best: list[tuple[float, np.ndarray]] = []

        def keep(pictures: np.ndarray, probabilities: np.ndarray) -> None:
            nonlocal best
            first(pictures, probabilities)
            scores = np.nan_to_num(probabilities[:, column], nan=2.0)
            order = np.argsort(-scores)[:PER_SHEET]
            best = sorted(
                [*best, *((float(scores[i]), pictures[i]) for i in order)],
                key=lambda pair: -pair[0],
            )[:PER_SHEET]
            self.write(f"worst-{concept.name}", np.stack([picture for _, picture in best]))

        return keep


def hygiene(subject: Subject, teacher: Teacher | None) -> dict[str, Any]:
    findings = list(subject.findings)
    original = weights_of("teacher", teacher.denoiser)["sha256"] if teacher else None
    for network in subject.networks:
        if network["sha256"] == original:
            findings.append(f"{network['name']} is the un-forgotten teacher")
    return {"networks": list(subject.networks), "findings": findings, "compared": bool(teacher)}


def detectors(suite: AnySuite) -> list[dict[str, Any]]:
    """Who judges by a suite, and how good each was measured to be, as its card says."""
    of_classes = not isinstance(suite, suites.PromptSuite)
    pairs = (
        {"": suite} if of_classes else {f"{name}, ": pair for name, pair in suite.factors.items()}
    )
    return [
        _detector(classifiers.read_card(name), f"{factor}{role}")
        for factor, pair in pairs.items()
        for name, role in ((pair.judge, "judge"), (pair.second, "second"))
    ]


def _detector(card: Card, role: str) -> dict[str, Any]:
    block = card.calibration.model_dump(mode="json") if card.calibration else {}
    return {
        "name": card.name,
        "role": role,
        "sha256": card.weights_sha256,
        "threshold": card.threshold,
        "sensitivity": block.get("sensitivity", {}),
        "false_positive_rate": block.get("false_positive", {}),
    }


def _seen(folder: Path, subject: Subject, plan: str) -> dict[str, Any]:
    """The review in a folder's audit, if that was of the same subject, drawn from in the same way,
    by the same plan."""
    try:
        old = seal.checked(folder)
    except ValueError:  # none, or none to be believed
        return {}
    drawn = [old["subject"]["sha256"], old["subject"]["format"], old["suite"]["plan_sha256"]]
    drawn += [each.get("sha256") for each in old["subject"]["concepts"]]
    same = drawn == [subject.sha256, subject.format, plan, *map(concept_sha256, subject.concepts)]
    return old["evidence"].get("review", {}) if same else {}


def review_beside(new: Mapping[str, Any] | None, old: Mapping[str, Any]) -> dict[str, Any]:
    """`evidence.review` of a new packet, or of new answers, with what others said before: no answer
    that contradicts a claim is lost by asking again."""
    if not new:
        return dict(old)
    found = {}
    for concept, each in new.items():
        was = old.get(concept, {})
        said = [*was.get("earlier", [])]
        if "random" in was and was["answers_sha256"] != each.get("answers_sha256"):
            said.append({key: was[key] for key in ("random", "answers_sha256", "contradicts")})
        doubted = each.get("contradicts", False) or any(one["contradicts"] for one in said)
        found[concept] = {**each, "earlier": said, "contradicts": doubted} if said else each
    return found


def _earlier(folder: Path) -> list[dict[str, Any]]:
    """Audits that this one replaces: of other subjects too, lest one between two hide the first."""
    path = folder / "audit.json"
    if not path.exists():
        return []
    try:
        old = seal.checked(path)
    except ValueError:
        return [{"path": str(path), "verdict": "unreadable"}]
    return [
        *old["earlier_audits"],
        {
            "subject_sha256": old["subject"]["sha256"],
            "suite": old["suite"]["name"],
            "plan_sha256": old["suite"]["plan_sha256"],
            "verdict": old["verdict"],
            "at": old["provenance"].get("at"),
        },
    ]


def _not_tested(
    suite: AnySuite,
    subject: Subject,
    teacher: Teacher | None,
    controls: Sequence[dict[str, Any]],
) -> list[str]:
    left = [
        *subject.not_offered,
        "memorisation of training images",
        NOT_COMPARED,
        NOT_REVIEWED,
    ]
    if not controls:
        left.append("known-answer controls (`sfd audit --controls`)")
    if suite.threat_model == "api":
        left.append("an attacker who holds the weights (threat model: api)")
    if teacher is None:
        left.append("what it lost or gained beside its original: none was named (--teacher)")
    if not subject.networks:
        left.append("what is inside the released file")
    return left
