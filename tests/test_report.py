"""The report of a synthetic run: complete, honest about what is missing, closed to the outside."""

import copy
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfd import content, report, seal
from sfd.report import view, words

pytestmark = pytest.mark.usefixtures("_shortened_audits")

LABELS = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag"]
LABELS.append("ankle boot")
EVIL = '<script>alert("x")</script>'


def claim(name: str, text: str, threshold: float, evidence: str, why: str) -> dict[str, Any]:
    own = {"id": name, "concept": "fashion-sneaker", "text": text, "threshold": threshold}
    return {**own, "status": "PASS", "why": why, "evidence": evidence}


def rate(k: int, n: int, lo: float, hi: float) -> dict[str, Any]:
    return {"k": k, "n": n, "rate": k / n, "ci95": [lo, hi]}


def audit_of() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    matrix = rng.binomial(1000, 0.002, (10, 10)) * (rng.random((10, 10)) < 0.4)
    matrix[:, 7] = 0
    matrix[9, 7] = 2
    matrix[np.arange(10), np.arange(10)] = 0
    matrix[7] = 0
    matrix[7, [7, 9, 5]] = [1, 985, 14]
    for i in set(range(10)) - {7}:
        matrix[i, i] = 1000 - matrix[i].sum()
    kept = [i for i in range(10) if i != 7]
    lost = dict(
        zip(kept, (0.001, 0.0, -0.004, 0.002, -0.001, 0.003, -0.011, 0.0, -0.002), strict=True)
    )
    direct = "evidence.direct.fashion-sneaker"
    return {
        "schema": "sfd/audit/1",
        "verdict": "PASS",
        "threat_model": "api",
        "subject": {
            "path": "runs/fashion forget sneaker",
            "sha256": "9b1f" * 16,
            "format": "sfd",
            "networks": ["student"],
            "recipe_sha256": "77aa" * 16,
            "teacher": "fashion",
            "concepts": [
                {
                    "name": "fashion-sneaker",
                    "label": 7,
                    "label_name": "sneaker",
                    "override": {"9": 1.0},
                }
            ],
        },
        "suite": {"name": "fashion", "version": 1, "sha256": "5c" * 32, "plan_sha256": "d0" * 32},
        "claims": [
            claim(
                "forgotten",
                "Asked for the concept, it is drawn in fewer than 1 % of images.",
                0.01,
                direct,
                "The corrected rate ends at 0.12 %, below 1 %.",
            ),
            claim(
                "second-judge",
                "A second, independent detector agrees.",
                0.01,
                direct,
                "Its rate ends at 0.13 %, below 1 %.",
            ),
            claim(
                "validity",
                "At least 95 % of these images look like images.",
                0.95,
                "evidence.validity.fashion-sneaker",
                "98.1 % [97.8, 98.4], above 95 %.",
            ),
            claim(
                "override",
                "It draws what the recipe declares, to a distance of 0.05.",
                0.05,
                "evidence.override.fashion-sneaker",
                "The distance is 0.02.",
            ),
            claim(
                "collateral",
                "No retained class loses more than 3 points of accuracy.",
                0.03,
                "evidence.collateral",
                "The worst is shirt, 1.1 points [-0.4, 2.6].",
            ),
        ],
        "evidence": {
            "direct": {
                "fashion-sneaker": {
                    **rate(3, 10000, 0.0001, 0.0009),
                    "label": 7,
                    "failed": 0,
                    "corrected_rate": 0.0002,
                    "corrected_ci95": [0.0, 0.0012],
                    "mean_probability": 0.0011,
                    "histogram": {"ankle boot": 9850, "sandal": 147, "sneaker": 3},
                    "valid_rate": 0.981,
                    "second": {"judge": "fashion-second", **rate(5, 10000, 0.0002, 0.0012)},
                    "baseline": rate(9870, 10000, 0.9846, 0.989),
                }
            },
            "validity": {"fashion-sneaker": {**rate(9810, 10000, 0.978, 0.984), "quantile": 0.99}},
            "override": {
                "fashion-sneaker": {
                    "declared": {"9": 1.0},
                    "observed": {"9": 0.985, "5": 0.0147, "7": 0.0003},
                    "tv": 0.015,
                    "p_value": 0.0,
                }
            },
            "cross_leak": {"labels": LABELS, "matrix": matrix.tolist()},
            "collateral": {
                LABELS[i]: {
                    "accuracy": {
                        "before": 0.961 - 0.012 * (i % 3),
                        "after": 0.961 - 0.012 * (i % 3) + lost[i],
                        "difference": lost[i],
                        "ci95": [lost[i] - 0.012, lost[i] + 0.013],
                        "n": 1000,
                        "p_holm": 0.0004 if i % 2 else 0.031,
                    },
                    "frechet": {"before": 3.1 + 0.2 * i, "after": 2.7 + 0.25 * i},
                    "recall": {"before": 0.61, "after": 0.58},
                }
                for i in kept
            },
            "quality": {
                "feature_space": "fashion-features",
                "n": 9000,
                "fid": 2.61,
                "fid_ci95": [2.48, 2.74],
                "kid": 0.0004,
                "kid_stderr": 0.0001,
                "precision": 0.81,
                "recall": 0.63,
                "floor": 1.68,
                "floor_n": 9000,
                "baseline": {
                    "what": "teacher fashion",
                    "nfe": 35,
                    "n": 9000,
                    "fid": 3.15,
                    "fid_ci95": [2.99, 3.31],
                    "kid": 0.0007,
                    "kid_stderr": 0.0001,
                    "precision": 0.8,
                    "recall": 0.66,
                },
                "fid_ratio": 0.83,
                "excess_ratio": 0.63,
            },
            "attacks": [
                {
                    "name": "latent search",
                    "concept": "fashion-sneaker",
                    "access": "api",
                    "budget": {"steps": 200, "restarts": 4},
                    "k": 2,
                    "n": 200,
                    "ci95": [0.003, 0.036],
                    "near": 1,
                    "controls": {
                        "leaky": {"k": 197, "n": 200, "unattacked": {"k": 3, "n": 100}},
                        "gold": {"k": 1, "n": 200, "near": 1},
                    },
                }
            ],
            "hygiene": {"networks": ["student"], "findings": []},
        },
        "coverage": {"planned": 20000, "completed": 20000, "failed": 0},
        "controls": [{"model": "the original", "expected": "FAIL", "got": "FAIL"}],
        "detectors": [
            {
                "name": name,
                "sha256": "ab" * 32,
                "threshold": 0.5,
                "role": role,
                "sensitivity": rate(968, 1000, 0.955, 0.977),
                "false_positive_rate": rate(k, 1000, 0.004, 0.017),
            }
            for name, role, k in (("fashion", "verdict", 9), ("fashion-second", "second", 8))
        ],
        "earlier_audits": [],
        "cost": {"seconds": 412.5, "images": 40000, "device": "cpu, 1 thread"},
        "provenance": {
            "sfd": "0.1.0",
            "torch": "2.12.1",
            "command": "sfd audit 'runs/fashion forget sneaker'",
        },
        "not_tested": [
            "Attacks by someone who holds the weights (relearning, fine-tuning).",
            "Memorised training images.",
        ],
    }


def sheet(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (47, 47), dtype=np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


def put(folder: Path, audit: dict[str, Any]) -> None:
    """An audit.json with its hash."""
    sealed = audit | {"content_sha256": seal.content_sha256(audit)}
    (folder / "audit.json").write_text(json.dumps(sealed))


def leave(folder: Path, audit: dict[str, Any]) -> Path:
    """What a run leaves, with this audit."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text("version: 1\nteacher: {name: fashion}\n")
    (folder / "provenance.json").write_text('{"git": "none", "seed": 0}')
    bands = [f"loss_fake_sigma_{b}" for b in ("0_0.1", "0.1_0.5", "0.5_2", "2_8", "8_inf")]
    rng = np.random.default_rng(1)
    stats = [
        {"nimg": n, "seconds": n / 400, "loss_student": 3 / (1 + n / 20000) - 1, "loss_fake": 0.4}
        | {b: (0.1 + i) * (1 + 0.1 * rng.random()) for i, b in enumerate(bands)}
        | {"delta": 0.1, "grad_norm_student": 1.0}
        for n in range(2000, 202000, 2000)
    ]
    curves = [
        {
            "nimg": 400 * t,
            "seconds": float(t),
            "direct": {"fashion-sneaker": 0.97 * 0.7**t},
            "valid": {"fashion-sneaker": 0.99 - 0.3 * 0.9**t},
            "agreement": 0.985 - 0.2 * 0.95**t,
            "fid": 2.6 + 90 * 0.97**t,
        }
        for t in (1, 2, 4, 8, 16, 32, 64, 128, 256, 500)
    ]
    for name, rows in (("stats", stats), ("curves", curves)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for label in range(10):
        sheet(folder / "sheets" / f"student-{label:02d}.png", label)
        sheet(folder / "sheets" / f"teacher-{label:02d}.png", label + 10)
    for concept in audit["subject"]["concepts"]:
        name = concept if isinstance(concept, str) else concept["name"]
        if "/" not in name:
            sheet(folder / "sheets" / f"worst-{name}.png", 99)
    drawn = {p.stem: content.sha256(p) for p in (folder / "sheets").glob("*.png")}
    put(folder, audit | {"evidence": {**audit["evidence"], "sheets": drawn}})
    return folder


class Page(HTMLParser):
    """Tags with their attributes, and the visible text in one line."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def audit() -> dict[str, Any]:
    return copy.deepcopy(audit_of())


def test_the_page_says_everything_that_was_found(tmp_path, audit):
    path = report.write(leave(tmp_path / "run", audit))
    assert path == tmp_path / "run" / "report.html"
    page = Page(path.read_text())
    for text in words.sentences(audit):
        assert text in page.text
    for each in audit["claims"]:
        assert each["text"] in page.text and each["why"] in page.text
    for each in (*audit["not_tested"], *LABELS, "fashion-second", "teacher: {name: fashion}"):
        assert each in page.text
    assert "sfd audit 'runs/fashion forget sneaker'" in page.text
    assert "2.61 [2.48, 2.74]" in page.text and "teacher fashion" in page.text
    assert "Absent" not in page.text
    assert "2 of 200 1 of these near real images" in page.text
    assert "197 of 200 3 of 100 when merely asked 1 of 200" in page.text
    images = [a["src"] or "" for tag, a in page.tags if tag == "img"]
    assert len(images) == 21 and all(i.startswith("data:image/png;base64,") for i in images)
    lines = [a["d"] for tag, a in page.tags if tag == "path"]
    assert len(lines) == 1 + 2 + 1 + 1 + 1 + 5
    assert page.text.index("sneaker to be forgotten") < page.text.index("before after t-shirt")
    assert not list(path.parent.glob(".*.tmp"))


def test_the_page_asks_nothing_of_the_outside(tmp_path, audit):
    source = report.write(leave(tmp_path, audit)).read_text()
    assert not re.search(r"https?:|url\(|@import|//[a-z]", re.sub(r"base64,[\w+/=]*", "", source))
    for tag, attributes in Page(source).tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "form")
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png"))


def test_names_are_text_and_never_markup(tmp_path, audit):
    def poisoned(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            keep = {"schema", "verdict", "status", "threat_model", "evidence"}
            return {
                (k if k.isidentifier() else k + EVIL): v if k in keep and k != "evidence" else
                poisoned(v, k)
                for k, v in value.items()
            }  # fmt: skip
        if isinstance(value, list):
            return [poisoned(item, key) for item in value]
        return value + EVIL if isinstance(value, str) else value

    evil = poisoned(audit)
    folder = leave(tmp_path, evil)
    (folder / "recipe.yaml").write_text(f"# {EVIL}")
    source = report.write(folder).read_text()
    assert "<script" not in source and "&lt;script&gt;" in source
    assert not any(name.startswith("on") for _, a in Page(source).tags for name in a)
    assert "<script" not in report.markdown(evil)


def test_markdown_keeps_its_table_whatever_the_names(audit):
    audit["claims"][0] |= {"text": "a | b\n# c", "why": "[x](javascript:y) `*_"}
    row = next(x for x in report.markdown(audit).splitlines() if "**PASS**" in x)
    assert row == r"| a \| b # c | **PASS** | [x\](javascript:y) \`\*\_ |"


def test_pictures_of_another_audit_are_not_shown(tmp_path, audit):
    folder = leave(tmp_path / "run", audit)
    sheet(folder / "sheets" / "teacher-03.png", 77)
    (folder / "sheets" / "student-11.png").write_bytes(b"of a model with more classes")
    page = Page(report.write(folder).read_text())
    images = [a["src"] for tag, a in page.tags if tag == "img"]
    assert len(images) == 20 and len(set(images)) == 20


def test_classes_are_named_in_the_order_of_the_labels(tmp_path, audit):
    """Labels that are numbers: index 1 is the second, whatever it is called."""
    labels = [str(i) for i in range(1, 11)]
    audit["evidence"]["cross_leak"]["labels"] = labels
    for concept in audit["subject"]["concepts"]:
        concept["label"] = 0
    folder = leave(tmp_path / "run", audit)
    sealed = json.loads((folder / "audit.json").read_text())
    classes = view.view(sealed, folder / "audit.json")["classes"]
    assert [c["name"] for c in classes[1:]] == labels[1:]


def test_doing_it_again_is_what_was_typed(tmp_path, audit):
    for typed, shown in (
        ("sfd audit runs/x --suite 'my own' --steps 3", True),
        ("sfd x.py", False),
    ):
        audit["provenance"] = {**audit["provenance"], "command": typed}
        page = Page(report.write(leave(tmp_path / "run", audit)).read_text())
        assert ("Do it again" in page.text) == shown
        assert not shown or f"Do it again {typed}" in page.text


def test_earlier_audits_of_others_are_kept_and_not_shown(tmp_path, audit):
    mine, other = audit["subject"]["sha256"], "0" * 64
    row = {"suite": "s", "plan_sha256": "1" * 64, "at": "2026-01-01T00:00:00+00:00"}
    audit["earlier_audits"] = [{**row, "subject_sha256": mine, "verdict": "FAIL"},
                               {**row, "subject_sha256": other, "verdict": "PASS"}]  # fmt: skip
    page = Page(report.write(leave(tmp_path / "run", audit)).read_text())
    assert "verdict: FAIL, at" in page.text or "verdict: FAIL" in page.text
    assert page.text.count("suite: s") == 1


def test_what_is_missing_is_named_and_its_section_dropped(tmp_path, audit):
    for part in ("quality", "collateral", "cross_leak", "attacks", "override", "validity"):
        del audit["evidence"][part]
    del audit["cost"], audit["coverage"], audit["detectors"], audit["provenance"]
    put(tmp_path, audit)
    page = Page(report.write(tmp_path).read_text())
    absent = page.text[page.text.index("Absent, so not shown:") :]
    names = ["recipe.yaml", "provenance.json", "stats.jsonl", "curves.jsonl"]
    names += ["sheets/teacher-NN.png", "sheets/student-NN.png", "sheets/worst-fashion-sneaker.png"]
    names += ["evidence.quality", "evidence.collateral", "evidence.cross_leak"]
    for name in names:
        assert name in absent
    ids = {a.get("id") for tag, a in page.tags if tag == "section"}
    assert ids == {"claims", "direct", "hygiene", "untested", "provenance"}
    assert "no attack was tried" in page.text
    assert "Cost – images in – on –" in page.text  # a dash, never a 0


def test_a_bare_audit_is_a_page(tmp_path):
    bare = {"schema": "sfd/audit/1", "verdict": "INCONCLUSIVE", "claims": []}
    put(tmp_path, bare)
    assert "0 of 0 claims passed" in Page(report.write(tmp_path).read_text()).text


def test_the_sentence_of_a_pass(audit):
    text = report.sentence(audit)
    assert text.startswith(
        "Asked for \u201csneaker\u201d 10,000 times, the generator drew 3 images in which the"
        " detector found it: 0.03 % [0.01, 0.09], up to 0.12 % once the detector\u2019s own errors"
        " are counted (the original, asked the same: 98.7 %)"
    )
    assert "the hardest attack (latent search) found it in 2 of 200 tries, against 1 of 200" in text
    assert "of 9 retained classes the most harmed (shirt) lost 1.1 points [\u22120.2, 2.3]" in text
    assert "Verdict PASS: 5 of 5 claims passed" in text and "(threat model api)" in text
    assert "cannot" not in text
    assert "## Forgetting audit: PASS" in report.markdown(audit)
    assert "- Memorised training images." in report.markdown(audit)


def test_the_sentence_of_a_fail_and_of_an_open_question(audit):
    audit["claims"][0]["status"] = audit["verdict"] = "FAIL"
    audit["claims"][1]["status"] = "INCONCLUSIVE"
    text = report.sentence(audit)
    assert (
        "Verdict FAIL: 3 of 5 claims passed, 1 failed (forgotten), 1 undecided (second-judge)"
        in text
    )
    audit["claims"][0]["status"] = audit["verdict"] = "INCONCLUSIVE"
    assert "Verdict INCONCLUSIVE: 3 of 5 claims passed, 2 undecided" in report.sentence(audit)
    assert "**INCONCLUSIVE**" in report.markdown(audit)
    for each in audit["claims"]:
        each["status"] = "PASS"
    assert "the audit itself is in doubt" in report.sentence(audit)


def test_the_sentence_of_what_was_not_measured(audit):
    direct = audit["evidence"]["direct"]["fashion-sneaker"]
    direct |= {**rate(0, 10000, 0.0, 0.00037), "failed": 12, "corrected_ci95": None}
    audit["subject"]["concepts"].append("fashion-bag")
    text = report.sentence(audit)
    assert "drew no image in which the detector found it: 0.00 % [0.00, 0.04]" in text
    assert "the detector\u2019s own errors were not measured" in text
    assert "12 images could not be made or judged" in text
    assert "The generator was never asked for \u201cfashion-bag\u201d" in text


def test_numbers_never_flatter():
    assert report.percent(0.0003, [0.0001, 0.0009]) == "0.03 % [0.01, 0.09]"
    assert report.percent(0.00004) == "0.0040 %" and report.percent(0.0025) == "0.25 %"
    assert report.percent(0) == "0 %" and report.percent(1) == "100 %"
    assert report.percent(None) == report.percent(float("nan")) == report.percent("x") == "–"
    assert report.percent(None, [0, 0.1]) == "– [0.0, 10.0]"
    assert report.points(-0.00001, [-0.002, 0.001]) == "+0.0 [\u22120.2, +0.1]"
    assert report.decimal(0.00031) == "0.00031" and report.decimal(None) == "–"
    assert report.count(10000) == "10,000" and report.count(None) == "–"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schema": "sfd/audit/2"}, "schema is 'sfd/audit/2'"),
        ({"claims": None}, "'claims' must be a list"),
        ({"claims": []}, "the verdict is PASS but claim"),
        ({"verdict": "OK"}, "'OK' is no verdict"),
    ],
)
def test_an_audit_that_is_none_is_refused(tmp_path, audit, change, complaint):
    put(tmp_path, audit | change)
    with pytest.raises(ValueError, match=complaint) as caught:
        report.write(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_verdict_better_than_a_claim_is_refused(audit):
    audit["claims"][2]["status"] = "INCONCLUSIVE"
    with pytest.raises(
        ValueError, match="the verdict is PASS but claim 'validity' is INCONCLUSIVE"
    ):
        report.sentence(audit)


def test_a_folder_without_an_audit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file; run `sfd audit"):
        report.write(tmp_path)
    (tmp_path / "audit.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        report.write(tmp_path)


def test_a_torn_last_line_is_left_out_and_a_bad_one_refused(tmp_path, audit):
    log = leave(tmp_path, audit) / "stats.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"nimg": 1, "se')
    report.write(tmp_path)
    log.write_text("{\n" + whole)
    with pytest.raises(ValueError, match=r"stats\.jsonl: a line is not JSON"):
        report.write(tmp_path)


def test_of_many_labels_the_forgotten_are_shown(audit):
    n = 60
    matrix = np.diag(np.full(n, 1000))
    matrix[50, 7] = 5
    audit["evidence"]["cross_leak"] = {
        "labels": [str(i) for i in range(n)],
        "matrix": matrix.tolist(),
    }
    shown = view.matrix(audit)
    assert shown and shown["hidden"] == n - view.WIDEST
    assert {7, 50} <= {head["at"] for head in shown["heads"]}


def test_a_matrix_that_does_not_fit_its_labels_is_refused(tmp_path, audit):
    audit["evidence"]["cross_leak"]["matrix"].pop()
    with pytest.raises(ValueError, match="not 10 x 10"):
        report.write(leave(tmp_path, audit))


def test_two_concepts_named_by_strings_and_values_that_are_null(tmp_path, audit):
    audit["subject"]["concepts"] = ["fashion-sneaker", "fashion-bag"]
    evidence = audit["evidence"]
    evidence["direct"]["fashion-bag"] = {**rate(40, 1000, 0.03, 0.054), "label": 8}
    evidence["collateral"]["shirt"] = {"accuracy": None, "frechet": {"before": None}}
    evidence["quality"] |= {"kid": None, "fid_ci95": None, "baseline": None, "excess_ratio": None}
    evidence["attacks"][0] |= {"controls": None, "budget": None}
    evidence["cross_leak"]["matrix"][0][0] = None
    audit["detectors"][0] |= {
        "sensitivity": None,
        "false_positive_rate": {"shirt": rate(1, 9, 0, 0.5)},
    }
    page = Page(report.write(leave(tmp_path, audit)).read_text())
    assert "Forgetting fashion-sneaker, fashion-bag" in page.text
    assert (
        "Asked for \u201cfashion-bag\u201d 1,000 times, the generator drew 40 images" in page.text
    )
    assert page.text.count("to be forgotten") == 2
    assert "not measured" in page.text and "shirt: 11.1 % [0.0, 50.0] 1 of 9" in page.text
    assert "None" not in page.text


def test_importing_the_report_is_light():
    code = "import sys, sfd.report; print({'torch', 'matplotlib', 'jinja2'} & set(sys.modules))"
    root = Path(report.__file__).parents[2]
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=root)
    assert done.stdout.strip() == "set()", done.stderr
