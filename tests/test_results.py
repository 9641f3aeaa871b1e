"""What the READMEs print is what `eval/results/` holds, and what they link to is there."""

import re
import runpy
from pathlib import Path

import pytest

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
