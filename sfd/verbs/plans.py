"""What a training or an audit would take, before it is paid for."""

from sfd import classifiers, concepts, configs, content, jobs, plan
from sfd.eval import planning, suites


def plan_run(recipe: configs.Recipe, *, cuda: bool = False) -> dict[str, int]:
    """Bytes by role that a recipe's training holds; nothing is loaded. See `plan.memory`."""
    shape = plan.shape_of(recipe.teacher.model_dump())
    numbers = recipe.train
    return plan.memory(
        shape,
        jobs.phases_of(recipe, shape.sigma_init),
        batch=numbers.batch,
        accumulate=numbers.accumulate,
        precision=numbers.precision,
        guidance=recipe.guidance.model_dump(),
        adapters=numbers.lora.model_dump() if numbers.lora else None,
        checkpointing=numbers.checkpointing,
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
        if isinstance(suite, suites.PromptSuite):
            raise ValueError(_NO_PLAN.format(name))
        known = {n: concepts.read(n) for n in content.names("concepts")}
        names = [n for n, file in known.items() if file.classifier == suite.judge]
    else:
        recipe = configs.load(str(path))
        if recipe.audit is None:
            raise ValueError(f"{name}: names no suite to plan; add audit: {{suite: NAME}}")
        suite, names = suites.load(recipe.audit.suite, recipe.audit.n), jobs.lineage(recipe)
    if isinstance(suite, suites.PromptSuite):
        raise ValueError(_NO_PLAN.format(name))
    if not names:
        raise ValueError(f"{name}: no concept here is judged by {suite.judge}; plan a recipe")
    card = classifiers.read_card(suite.judge)
    # one by one: concepts that exclude each other in a run can be planned side by side
    found = [c for n in names for c in concepts.load([n], card.labels)]
    return planning.plan(suite, card, found)


_NO_PLAN = (
    "{}: plans are for suites of classes; over prompts, a rate below x needs at least 3.7/x"
    " held-out prompts without a hit"
)
