"""What a training or an audit would take, before it is paid for."""

from sfd import classifiers, concepts, configs, content, forgetting, jobs, plan
from sfd.eval import planning, suites


def plan_run(recipe: configs.Recipe, *, cuda: bool = False) -> dict[str, int]:
    """Bytes by role that a recipe's training holds; nothing is loaded. See `plan.memory`.

    A rule of one's own is planned as one whose target asks the teacher once.
    """
    shape = plan.shape_of(recipe.teacher.model_dump())
    numbers, guidance = recipe.train, recipe.guidance
    rule = forgetting.RULES.get(recipe.forgetting.rule)
    ks = [guidance.target, *(guidance.labels or {}).values()]
    return plan.memory(
        shape,
        jobs.phases_of(recipe, shape.sigma_init, shape.sigma_range),
        batch=numbers.batch,
        accumulate=numbers.accumulate,
        precision=numbers.precision,
        guidance={
            "train": guidance.train,
            "fake": guidance.fake,
            "target": next((k for k in ks if k != 1), 1.0),
        },
        adapters=numbers.lora.model_dump() if numbers.lora else None,
        checkpointing=numbers.checkpointing,
        optimizer_student=numbers.optimizer_student,
        twice=recipe.forgetting.share if rule and rule.twice else 0.0,
        fused=cuda,
    )


def plan_audit(name: str) -> list[planning.Row]:
    """How many samples each rate claim of a suite, or of a recipe's audit, takes; nothing is drawn.

    A suite is planned for every concept that its judge is named for. Raises ValueError where there
    is none, or where a name is both a suite's and a recipe's.
    """
    kinds = [kind for kind in ("configs", "eval/suites") if name in content.names(kind)]
    if len(kinds) > 1:
        raise ValueError(f"{name}: both a recipe and a suite are called that; give a file's path")
    kind = kinds[0] if kinds else "eval/suites"
    path = content.find(kind, name)
    if "claims" in content.read_yaml(path):
        suite = suites.load(str(path))
        known = {n: concepts.read(n) for n in content.names("concepts")}
        names = [n for n, file in known.items() if file.classifier in _judges(suite)]
    else:
        recipe = configs.load(str(path))
        if recipe.audit is None:
            raise ValueError(f"{name}: names no suite to plan; add audit: {{suite: NAME}}")
        suite, names = suites.load(recipe.audit.suite, recipe.audit.n), jobs.lineage(recipe)
    judges = _judges(suite)
    if not names:
        raise ValueError(
            f"{name}: no concept here is judged by {' or '.join(judges)}; plan a recipe"
        )
    cards = [classifiers.read_card(judge) for judge in judges]
    # one by one: concepts that exclude each other in a run can be planned side by side
    if isinstance(suite, suites.PromptSuite):
        asked = [c for n in names for c in concepts.load_prompts([n])]
        return planning.plan_prompts(suite, cards, asked)
    found = [c for n in names for c in concepts.load([n], cards[0].labels)]
    return planning.plan(suite, cards[0], found)


def _judges(suite: suites.AnySuite) -> list[str]:
    if isinstance(suite, suites.PromptSuite):
        return [pair.judge for pair in suite.factors.values()]
    return [suite.judge]
