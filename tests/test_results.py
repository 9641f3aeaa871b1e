"""What the READMEs print is what `eval/results/` holds, and what they link to is there."""

import re
import runpy
from pathlib import Path

import pytest

from sfd import verbs

ROOT = Path(__file__).parents[1]
TABLE = runpy.run_path(str(ROOT / "eval/benchmarks/table.py"))


@pytest.mark.parametrize("path", TABLE["PARTS"])
def test_tables_are_generated(path):
    assert (ROOT / path).read_text() == TABLE["page"](path)


@pytest.mark.parametrize("path", TABLE["PARTS"])
def test_links_lead_somewhere(path):
    page = ROOT / path
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#([\w-]+))?\)", page.read_text())
    assert links
    for target, part in links:
        there = page.parent / target
        assert there.is_file(), target
        if part:
            heads = re.findall(r"(?m)^#+ (.*)$", there.read_text())
            assert part in [head.lower().replace(" ", "-") for head in heads], part


def test_the_readmes_files_are_well_formed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```yaml\n# ([\w./-]+)\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    lists = {"mine.yaml": "templates: ['a {c} sneaker']\nc: [red, blue]\n",
             "mine-audit.yaml": "templates: ['the sneaker is {c}']\nc: [red, blue]\n",
             "neighbours.txt": "a blue bag\n"}  # fmt: skip
    for name, text in [*blocks, *((f"concepts/prompts/{n}", text) for n, text in lists.items())]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    names = [name for name, _ in blocks]
    assert {"my-run.yaml", "my-text-run.yaml", "concepts/my-cat.yaml"} < set(names)
    checked, wrong, notes = verbs.validate(names)
    assert (checked, wrong) == (len(names), [])
    assert any("my-cat" in note and "judge" in note for note in notes)  # it is to be trained
