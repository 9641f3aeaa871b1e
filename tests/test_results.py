"""What the README prints is what `eval/results/` holds."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_readme_table_is_generated():
    made = runpy.run_path(str(ROOT / "eval/benchmarks/table.py"))
    assert (ROOT / "README.md").read_text() == made["readme_with_table"]()
