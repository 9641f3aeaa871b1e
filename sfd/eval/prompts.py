"""The audit of a text-to-image generator: held-out prompts, and every combination of factors.

Each factor of a prompt (a garment, a colour) is audited as a class-conditional model's classes
are; what is retained within the concept's own factor is UnlearnCanvas's in-domain retention, and
that of the other factors its cross-domain retention (arXiv 2402.11846).
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfd import content, features, metrics
from sfd.concepts import Concept, PromptConcept, concept_sha256
from sfd.eval import (
    attack_claims,
    claims,
    clip_score,
    common,
    evidence,
    guidance,
    prompt_ladder,
    suites,
)
from sfd.eval import review as reviews
from sfd.eval.grid import (
    Answers,
    Grid,
    Shown,
    ask,
    asked_of_cells,
    build_grid,
    by_cell,
    by_factor,
    by_value,
    cells_of,
    factor_of,
    held_out,
    pick,
    retained_cells,
    rows_of,
    values_of,
    view_of,
)
from sfd.eval.judging import Drawn
from sfd.eval.prompt_teacher import TeacherSide, teacher_side
from sfd.eval.quality import quality
from sfd.eval.subjects import Subject
from sfd.eval.suites import PromptSuite, Reference
from sfd.teachers import Teacher


def audit(
    subject: Subject,
    suite: PromptSuite,
    teacher: Teacher | None,
    folder: Path,
    *,
    device: str = "cpu",
    gold: Subject | None = None,
    gold_named: bool = True,
    controls: Sequence[dict[str, Any]] = (),
    review: int = 0,
    clip: Path | None = None,
    progress: common.Progress | None = None,
) -> dict[str, Any]:
    """Audit `subject` against its original `teacher`, if there is one; `audit.json`'s content.

    `gold` is a generator that never knew the concepts: attacks are compared with it; one
    that draws a concept is refused, or left out for it where nobody `gold_named` it.
    `review` images of each concept are left for people to look at; `clip` is the folder of a CLIP
    model, which says how well images show what their prompts ask for.
    Leaves `audit.json`, `sheets/` and transcripts of attacks in `folder`. Raises ValueError, in one
    line, if judges, reference and concepts do not fit together.
    """
    started = time.perf_counter()
    if review:
        reviews.check(folder, review, suite.n.direct, repeatable=subject.repeatable)
    grid = build_grid(suite, device)
    scorer = clip_score.load(clip, device) if clip else None
    extract = features.load(suite.features, device)
    reference = suites.read_reference(suite.reference)
    common.check_reference(suite, reference, [cell.name for cell in grid.cells])
    forgotten = [c for c in subject.concepts if isinstance(c, PromptConcept)]
    views = [view_of(concept, grid) for concept in forgotten]
    kept = retained_cells(grid, forgotten)
    golds = prompt_ladder.golds_of(
        gold if suite.attacks else None, forgotten, grid, named=gold_named
    )
    n = suite.n
    planned = n.direct * len(forgotten) + n.per_cell * len(grid.cells)
    packs = prompt_ladder.read_packs(suite, grid)
    plan = content.hash_json({"suite": suites.plain(suite), "labels": grid.labels, **packs})
    count = common.counter(progress, planned)

    before = (
        teacher_side(teacher, suite, grid, extract, reference, plan, progress, scorer)
        if teacher
        else None
    )
    sheets = common.Sheets(folder / "sheets", grid.labels)
    prompts, seeds = asked_of_cells(grid, n.per_cell, plan)
    shown = Shown(grid, n.per_cell)
    after = ask(
        subject.generate, prompts, seeds, grid, extract, clip=scorer, keep=shown.keep,
        progress=count,
    )  # fmt: skip
    theirs = before.sheets if before else {}
    for who, pictures in (("teacher", theirs), ("student", shown.pictures())):
        for label, sheet in pictures.items():
            sheets.write(f"{who}-{label:02d}", sheet)

    radius = metrics.nn_radius(reference.features, common.QUANTILE)
    found: dict[str, Any] = {"direct": {}, "validity": {}, "override": {}, "leaks": {}}
    own = common.seeds_from(subject.sha256 + plan, n.direct)
    judged: list[Drawn] = list(after.by_factor)
    packets: list[reviews.Asked] = []
    rates: dict[str, float] = {}
    values = [by_value(grid, answers, kept) for answers in _sides(after, before)]
    original = values[1] if before else None
    for concept, view in zip(forgotten, views, strict=True):
        factor = factor_of(grid, concept)
        texts, with_seeds = held_out(concept, n.direct, own)
        column = view.label - grid.offsets[factor]
        worst = sheets.worst(view, column)
        answers = ask(
            subject.generate,
            texts,
            with_seeds,
            grid,
            extract,
            first={factor: [column]},
            keep=lambda _, pictures, seen, worst=worst, factor=factor: worst(
                pictures, seen[factor]
            ),
            progress=count,
        )
        drawn = answers.by_factor[factor]
        judged.append(drawn)
        packets.append(
            reviews.Asked(
                concept.name,
                concept.label_name,
                texts,
                with_seeds,
                drawn.probabilities[:, column],
                drawn.called == view.label,
                drawn.made,
            )
        )
        baseline = before and pick(
            before.answers.by_factor[factor],
            rows_of(grid, before.answers, cells_of(grid, concept)),
        )
        inside = evidence.inside(drawn, reference, radius)
        rates[concept.name] = float((baseline.second == view.label).mean()) if baseline else 1.0
        each = evidence.over_prompts(texts)
        found["validity"][concept.name] = evidence.validity(
            drawn, inside, radius, common.QUANTILE, each
        )
        found["direct"][concept.name] = _direct(
            concept, view, drawn, baseline, grid, factor, inside, texts
        )
        if view.override:
            found["override"][concept.name] = evidence.override(view, drawn, grid.labels, each)
        others = retained_cells(grid, [concept])  # what else is forgotten must not draw it either
        mine, *theirs = (by_value(grid, answers, others) for answers in _sides(after, before))
        of_factor = [i for i in mine if i in values_of(grid, factor)]
        found["leaks"][concept.name] = evidence.leaks(
            view, mine, theirs[0] if theirs else None, grid.labels, of_factor,
            judge=grid.judges[factor][0], paired=of_factor if subject.paired else (),
        )  # fmt: skip
    found["cross_leak"] = evidence.cross_leak(values[0], grid.labels)
    margin = suite.claims.collateral.margin if suite.claims.collateral else 0.02
    retained = sorted(values[0])
    found["collateral"] = evidence.collateral(
        values[0],
        original,
        by_factor(reference, grid),
        grid.labels,
        retained,
        margin,
        paired=subject.paired,
    )
    found["retention"] = _retention(grid, forgotten, values)
    found["quality"] = _quality(grid, kept, after, before, reference, suite)
    if scorer:
        rows = rows_of(grid, after, kept)
        sides = [np.asarray(each.clip)[rows] for each in _sides(after, before)]
        found["quality"]["clip_score"] = clip_score.compared(
            scorer, [prompts[i] for i in rows], *sides
        )
    found["hygiene"] = common.hygiene(subject, teacher)
    found["sheets"] = sheets.written
    found["attacks"], skipped = prompt_ladder.attacked(
        subject,
        suite,
        grid,
        teacher,
        golds,
        rates,
        features=extract,
        near=evidence.near(reference.features, radius, extract),
        packs=packs,
        plan=plan,
        guidance=before.guidance if before else suite.teacher.guidance[0],
        folder=folder,
        progress=progress,
    )
    if review:
        found["review"] = reviews.packet(
            folder, packets, review, subject.generate, subject.sha256, plan
        )
    stated = claims.decide(suite, found, views, subject.without)
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
        failed=sum(int((~drawn.judged).sum()) for drawn in judged),
        concepts=[
            {"name": c.name, "label": v.label, "label_name": c.label_name,
             "override": {c.instead or "other": 1.0}, "holdout": len(c.holdout),
             "sha256": concept_sha256(c)}
            for c, v in zip(forgotten, views, strict=True)
        ],
        seconds=time.perf_counter() - started,
        device=device,
        controls=controls,
        attack_images=sum(attack_claims.images_of(entry) for entry in found["attacks"]),
        untested=attack_claims.not_tested(suite, skipped) if suite.attacks else ["attacks"],
    )  # fmt: skip


# --- evidence ------------------------------------------------------------------------------------


def _sides(after: Answers, before: TeacherSide | None) -> list[Answers]:
    """The subject's answers, and the teacher's where there is one."""
    return [after, before.answers] if before else [after]


def _direct(
    concept: PromptConcept,
    view: Concept,
    drawn: Drawn,
    theirs: Drawn | None,
    grid: Grid,
    factor: int,
    inside: np.ndarray,
    texts: Sequence[str],
) -> dict[str, Any]:
    """As `evidence.direct`, with intervals over prompts, and the rate of each prompt's group."""
    out = evidence.direct(
        view, drawn, theirs, grid.judges[factor], grid.labels, inside, view.override
    )
    asked, count = evidence.by_prompt(texts)
    hit, lost = drawn.called == view.label, ~drawn.judged
    hits, images, missing = count(hit, lost)
    over_images = out["ci95"]
    over_prompts, raw = evidence.rate_over_prompts(hits, images, missing)
    out |= {**over_prompts, "images_ci95": over_images}
    judge = grid.judges[factor][0]
    out |= evidence.corrected(
        view, out["k"], out["n"], out["failed"], judge, grid.labels, view.override, raw
    )
    worst = np.argsort(-hits / images, kind="stable")[:16]
    out["worst_prompts"] = [
        {"prompt": asked[i], "k": int(hits[i]), "n": int(images[i])} for i in worst if hits[i]
    ]
    group_of = {row.text: row.group or row.text for row in concept.holdout}
    wordings, count = evidence.by_prompt([group_of[text] for text in texts])
    counts = count(hit, lost)
    # where one wording decides more than its fillings do, the rate over others could be this
    over_wordings, _ = evidence.rate_over_prompts(*counts)
    out |= {"wordings": len(wordings), "wordings_ci95": over_wordings["ci95"]}
    out["by_template"] = {
        wording: evidence.rate(*map(int, row))
        for wording, *row in zip(wordings, *counts, strict=True)
    }
    return out


def _retention(
    grid: Grid,
    forgotten: Sequence[PromptConcept],
    by_value: Sequence[Mapping[int, Drawn]],
) -> dict[str, Any]:
    """UnlearnCanvas's retention per concept: over the other values of its factor (in-domain) and
    over the other factors (cross-domain), after and (with a teacher) before."""
    out: dict[str, Any] = {}
    for concept in forgotten:
        own = set(values_of(grid, factor_of(grid, concept)))
        row: dict[str, Any] = {}
        for name, inside in (("in_domain", True), ("cross_domain", False)):
            labels = [v for v in by_value[0] if (v in own) == inside]
            sides = {}
            for side, values in zip(("after", "before")[: len(by_value)], by_value, strict=True):
                hit = np.concatenate([values[v].shows(v) for v in labels] or [np.zeros(0)])
                lost = sum(int((~values[v].judged).sum()) for v in labels)
                if len(hit):
                    sides[side] = evidence.rate(int(hit.sum()), len(hit), lost)
            row[name] = sides
        out[concept.name] = row
    return out


def _quality(
    grid: Grid,
    kept: Sequence[int],
    after: Answers,
    before: TeacherSide | None,
    reference: Reference,
    suite: PromptSuite,
) -> dict[str, Any]:
    names = [cell.name for cell in grid.cells]
    mine, *theirs = (by_cell(grid, answers, kept) for answers in _sides(after, before))
    baseline = (
        {
            **guidance.described("teacher", suite.teacher.steps, before.guidance, before.tried),
            "diversity": _diversity(theirs[0]),
        }
        if before
        else {}
    )
    out = quality(
        mine, theirs[0] if theirs else None, reference, names, kept,
        feature_space=suite.features, baseline=baseline,
    )  # fmt: skip
    return {**out, "diversity": _diversity(mine)}


def _diversity(cells: Mapping[int, Drawn]) -> float | None:
    """Mean distance in features between two images of one combination, over combinations."""
    means = []
    for drawn in cells.values():
        f = drawn.features[drawn.made].astype(np.float64)
        half = len(f) // 2
        if half:
            means.append(np.linalg.norm(f[:half] - f[half : 2 * half], axis=1).mean())
    return float(np.mean(means)) if means else None
