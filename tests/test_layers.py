"""Policy: imports point downwards, heavy packages are imported late, dependencies exist."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sfd"

LAYERS = [
    # 0: mathematics, bytes and the machine
    {
        "schedules",
        "solvers",
        "optimizers",
        "noise",
        "objectives",
        "metrics",
        "networks",
        "images",
        "content",
        "devices",
    },
    # 1: readers and formats
    {"concepts", "configs", "classifiers", "checkpoints", "features", "provenance", "seal"},
    # 2: adapters
    {"teachers", "forgetting", "baselines", "plugins"},
    # 3: verbs
    {
        "sample",
        "state",
        "train",
        "pretrain",
        "pretrain_text",
        "synthesis",
        "attacks",
        "eval",
        "calibrate",
        "fit",
        "export",
        "plan",
        "verbs",
        "jobs",
        "runs",
        "rivals",
        "watch",
        "report",
    },
    # 4: surfaces
    {"compare", "cli", "api"},
]

SIDEWAYS = {
    # 0
    ("objectives", "schedules"): "a phase draws its own noise levels",
    ("objectives", "solvers"): "a phase follows the target's trajectories",
    ("images", "content"): "the nearest name of a class",
    ("objectives", "content"): "options are checked as a recipe's keys are",
    ("schedules", "content"): "options are checked as a recipe's keys are",
    ("solvers", "schedules"): "the levels that a solver visits",
    # 1
    ("classifiers", "checkpoints"): "a judge's weights are a tensor file",
    ("checkpoints", "concepts"): "a student's card says what was forgotten",
    ("checkpoints", "configs"): "and names its teacher as a recipe does",
    ("features", "classifiers"): "a feature extractor is a classifier's last layer",
    # 2
    ("forgetting", "teachers"): "a rule sees the teacher's contract",
    ("forgetting", "plugins"): "a rule asks a judge of the user's own",
    ("teachers", "plugins"): "a user's own teacher",
    # 3
    ("train", "state"): "the loop",
    ("pretrain", "state"): "the loop",
    ("pretrain", "sample"): "sheets during training",
    ("pretrain_text", "state"): "the loop",
    ("pretrain_text", "sample"): "sheets during training",
    ("pretrain_text", "pretrain"): "the order of the data",
    ("eval", "sample"): "an audit samples",
    ("eval", "attacks"): "an audit attacks",
    ("plan", "train"): "a plan runs one step's losses without contents",
    ("synthesis", "sample"): "a dataset is drawn by a student",
    ("synthesis", "eval"): "who screens is loaded and asked as an audit's judge",
    ("synthesis", "fit"): "usefulness trains classifiers",
    ("fit", "calibrate"): "what is trained is measured",
    ("verbs", "sample"): "sfd sample",
    ("verbs", "synthesis"): "sfd synthesize",
    ("verbs", "plan"): "sfd plan",
    ("verbs", "calibrate"): "sfd calibrate",
    ("verbs", "fit"): "sfd classifier",
    ("export", "sample"): "what is exported is a student",
    ("export", "report"): "a model card carries the audit",
    ("synthesis", "report"): "a card escapes names as a report does",
    ("jobs", "eval"): "a job names a suite",
    ("runs", "jobs"): "a run is of a job",
    ("runs", "train"): "a run is the verbs in their order",
    ("runs", "state"): "a run is the verbs in their order",
    ("runs", "eval"): "a run is the verbs in their order",
    ("watch", "eval"): "a look is a small audit",
    ("watch", "sample"): "a look samples",
    ("rivals", "eval"): "a rival is a subject",
    ("runs", "rivals"): "an audit's rivals",
    ("runs", "watch"): "a run is looked at",
    ("verbs", "jobs"): "a verb reads what a job wrote",
    ("verbs", "runs"): "a verb audits",
    ("verbs", "eval"): "a verb audits",
    ("verbs", "attacks"): "a verb lists the table",
    ("verbs", "train"): "validation measures one step",
    # 4
    ("cli", "compare"): "sfd compare",
}

FORBIDDEN = {
    "objectives": {"forgetting"},
    "forgetting": {"objectives"},
    "train": {"eval", "attacks", "report", "classifiers", "features"},
}

HEAVY = {
    "diffusers",
    "transformers",
    "timm",
    "nudenet",
    "onnxruntime",
    "cv2",
    "accelerate",
    "matplotlib",
    "jinja2",
    "jsonschema",
    "cryptography",
    "c2pa",
}

# modules that only a function imports, so that what they import is imported where it is needed
LAZY = {
    "classifiers/timm_models.py",
    "classifiers/nudenet_detector.py",
    "classifiers/clip_model.py",
    "classifiers/onnx_session.py",
}

IMPORT_NAMES = {"pyyaml": "yaml", "pillow": "PIL"}


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if "_content" not in p.parts)


def part(path: Path) -> str:
    """The module or folder directly under sfd/ that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST, path: Path) -> list[tuple[str, int]]:
    """Every absolute dotted name that a tree imports anywhere, with its line."""
    found = []
    here = ["sfd", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found += [(f"{stem}.{alias.name}", node.lineno) for alias in node.names]
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith(("import_module", "__import__"))
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            found.append((str(node.args[0].value), node.lineno))
    return found


def siblings(tree: ast.AST, path: Path) -> list[tuple[str, int]]:
    """Parts of sfd that a file imports, itself left out."""
    names = [(n.split("."), line) for n, line in imported(tree, path)]
    own = part(path)
    return [(n[1], line) for n, line in names if n[0] == "sfd" and len(n) > 1 and n[1] != own]


def layer(name: str) -> int:
    level = next((i for i, names in enumerate(LAYERS) if name in names), None)
    assert level is not None, f"sfd/{name} has no layer: give it one here and in the design"
    return level


def complaints(path: Path, text: str) -> list[str]:
    """What a file's imports break."""
    own, out = part(path), []
    if own in ("__init__", "__main__"):
        return out
    for other, line in siblings(ast.parse(text), path):
        where = f"{path.relative_to(ROOT)}:{line} imports sfd.{other}"
        if other in FORBIDDEN.get(own, ()):
            out.append(f"{where}, which it must not know")
        elif layer(other) > layer(own):
            out.append(f"{where}, which is above it")
        elif layer(other) == layer(own) and (own, other) not in SIDEWAYS:
            out.append(f"{where}, which is beside it and not listed")
        if other == "cli":
            out.append(f"{where}: nobody imports it")
    return out


def graph() -> dict[str, set[str]]:
    edges: dict[str, set[str]] = {}
    for path in modules():
        found = siblings(ast.parse(path.read_text()), path)
        edges.setdefault(part(path), set()).update(name for name, _ in found)
    return edges


def test_every_module_has_one_layer():
    for path in modules():
        if part(path) not in ("__init__", "__main__"):
            layer(part(path))
    assert sum(map(len, LAYERS)) == len(set().union(*LAYERS))


def test_imports_point_downwards():
    broken = [c for path in modules() for c in complaints(path, path.read_text())]
    assert not broken, "\n".join(broken)


def test_listed_sideways_imports_are_still_needed():
    edges = graph()
    stale = [pair for pair in SIDEWAYS if pair[1] not in edges.get(pair[0], ())]
    assert not stale, f"no longer imported: {stale}"


def test_no_import_cycle():
    edges, done = graph(), set[str]()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for other in sorted(edges.get(name, ())):
                visit(other, (*trail, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("schedules.py", "from sfd import metrics"),
        ("objectives.py", "from sfd.forgetting import Batch"),
        ("forgetting.py", "def f():\n    import sfd.objectives"),
        ("train.py", "from sfd import classifiers"),
        ("eval/audit.py", "from sfd import report"),
        ("eval/audit.py", "from .. import train"),
        ("report/page.py", "import sfd.cli as c"),
        ("content.py", "import importlib\nimportlib.import_module('sfd.concepts')"),
    ],
)
def test_a_wrong_import_is_seen(file, text):
    assert complaints(PACKAGE / file, text)


def test_nobody_imports_cli():
    users = {name for name, others in graph().items() if "cli" in others}
    assert users <= {"__main__"}


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["report", "compare"])
def test_what_reads_json_imports_no_torch(name):
    assert run_python(f"import sys, sfd.{name}; print('torch' in sys.modules)") == "False"


def test_help_imports_nothing_heavy():
    heavy = sorted(HEAVY | {"torch"})
    code = f"import sys, sfd, sfd.cli; print([n for n in {heavy} if n in sys.modules])"
    assert run_python(code) == "[]"


def top_level(tree: ast.Module) -> ast.Module:
    """The statements that run at import: functions' bodies and TYPE_CHECKING blocks dropped."""

    class Strip(ast.NodeTransformer):
        def drop(self, node: ast.AST) -> None:
            return None

        visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = drop

        def visit_If(self, node: ast.If) -> ast.AST | None:
            checking = "TYPE_CHECKING" in ast.unparse(node.test)
            return None if checking else self.generic_visit(node)

    return Strip().visit(tree)


def test_heavy_packages_are_imported_where_they_are_needed():
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules()
        for name, line in imported(top_level(ast.parse(path.read_text())), path)
        if name.split(".")[0] in HEAVY and str(path.relative_to(PACKAGE)) not in LAZY
    ]
    assert not found, "\n".join(found)


def test_backends_are_imported_when_a_card_names_them():
    code = (
        "import sys, sfd.classifiers, sfd.features, sfd.eval.audit;"
        f"print([n for n in {sorted(HEAVY)} if n in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_public_names():
    import sfd

    assert len(sfd.__all__) <= 15
    for name in sfd.__all__:
        assert getattr(sfd, name) is not None


def dependencies() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [re.split(r"[^\w.-]", text)[0].lower() for text in project["dependencies"]]


def test_every_dependency_is_used_by_name():
    names = {IMPORT_NAMES.get(n, n) for n in dependencies()}
    used = {
        name.split(".")[0]
        for path in modules()
        for name, _ in imported(ast.parse(path.read_text()), path)
    }
    third = used - set(sys.stdlib_module_names) - {"sfd"}
    # the extras `inception` and `c2pa`; what typer and nudenet bring
    allowed = names | {"torch_fidelity", "c2pa", "click", "cv2", "onnxruntime"}
    assert third <= allowed, f"imported but not declared: {sorted(third - allowed)}"


@pytest.mark.parametrize("name", dependencies())
def test_every_declared_dependency_imports(name):
    importlib.import_module(IMPORT_NAMES.get(name, name))
