"""What there is to name, and whom to cite."""

from sfd import attacks, configs, content, forgetting, objectives, teachers


def listing() -> dict[str, list[str]]:
    """Names of everything that a recipe can name."""
    recipes = content.names("configs")
    kinds = {n: configs.kind_of(content.find("configs", n)) for n in recipes}
    return {
        "recipes": [n for n in recipes if kinds[n] is configs.Recipe],
        "teacher recipes": [n for n in recipes if kinds[n] is not configs.Recipe],
        "concepts": content.names("concepts"),
        "classifiers": content.names("classifiers"),
        "suites": content.names("eval/suites"),
        "teachers": teachers.embedded(),
        "objectives": sorted(objectives.TABLE),
        "rules": sorted(forgetting.RULES),
        "attacks": sorted(attacks.TABLE),
    }


def citations(name: str) -> list[str]:
    """Whom to cite: for a recipe's pieces, or for every row of every table."""
    if name:
        recipe = configs.load(name)
        rule = forgetting.RULES.get(recipe.forgetting.rule)
        objective = objectives.TABLE.get(recipe.objective.name)
        rows = [rule, objective]
    else:
        rows = [*forgetting.RULES.values(), *objectives.TABLE.values()]
    lines = [row.citation for row in rows if row is not None]
    return list(dict.fromkeys([*lines, "Karras et al., EDM, arXiv 2206.00364"]))
