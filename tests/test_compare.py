"""Audits side by side: like with like or not at all, the spread of seeds, one picture."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import test_seal
from test_cli import refused
from test_cli import sfd as run

from sfd import compare, configs, metrics, seal

pytestmark = pytest.mark.usefixtures("_shortened_audits")

FAMILY = "f" * 64


def rate(k, n):
    return {"k": k, "n": n, "failed": 0, "rate": k / n,
            "ci95": list(metrics.rate_interval(k, n))}  # fmt: skip


def audit_of(seed=0, k=12, fid=0.5, ratio=1.05):
    """An audit as `sfd audit` leaves it, shortened."""
    direct = rate(k, 10_000) | {"label": 3, "label_name": "3", "corrected_rate": k / 9900,
                                "corrected_ci95": [0.0, 2 * k / 9900]}  # fmt: skip
    quality = {
        "feature_space": "space", "reference_sha256": "b" * 64, "n": 900, "m": 900, "fid": fid,
        "fid_ci95": [fid - 0.1, fid + 0.1], "kid": 0.001 * seed, "kid_stderr": 0.001,
        "fid_ratio": ratio, "fid_ratio_ci95": [ratio - 0.1, ratio + 0.1], "excess_ratio": None,
        "floor": 0.2, "precision": 0.9, "recall": 0.8,
    }  # fmt: skip
    tried = rate(2, 200) | {"name": "latent-search", "concept": "three", "measure": "rate",
                            "controls": {"gold": rate(1, 200)}}  # fmt: skip
    judge = {"name": "judge", "role": "judge", "sha256": "c" * 64, "threshold": None,
             "sensitivity": {"3": {"k": 99, "n": 100}}, "false_positive_rate": {}}  # fmt: skip
    collateral = {
        name: {"accuracy": {"difference": d, "ci95": [d - 0.01, d + 0.01]}}
        for name, d in (("1", -0.001), ("7", -0.002 * (seed + 1)))
    }
    return {
        "schema": "sfd/audit/1",
        "verdict": "INCONCLUSIVE",
        "threat_model": "api",
        "subject": {
            "sha256": f"{seed}" * 64, "format": "sfd student", "recipe_sha256": "1" * 64,
            "family_sha256": FAMILY, "seed": seed, "teacher": {"name": "digits", "sha256": "2"},
            "concepts": [{"name": "three", "label": 3}],
        },
        "suite": {"name": "digits", "version": 1, "sha256": "d" * 64, "plan_sha256": "e" * 64},
        "claims": [
            {"id": "direct<three>", "threshold": 0.01, "status": "PASS"},
            {"id": "quality", "threshold": 1.1, "status": "INCONCLUSIVE"},
            {"id": "collateral", "threshold": 0.01, "status": "PASS"},
            {"id": "hygiene", "threshold": None, "status": "PASS"},
        ],
        "evidence": {"direct": {"three": direct}, "quality": quality, "collateral": collateral,
                     "attacks": [tried]},
        "detectors": [judge],
        "not_tested": ["human review"],
    }  # fmt: skip


def put(audit, name):
    Path(name).mkdir()
    sealed = {"content_sha256": seal.content_sha256(audit), **audit}
    Path(name, "audit.json").write_text(json.dumps(sealed))
    return Path(name)


SEEDS = [(0, 12, 0.42, 0.9), (1, 12, 0.56, 1.2), (2, 10, 0.51, 1.09)]


def test_a_table_and_the_spread_between_seeds():
    folders = [put(audit_of(*numbers), f"run{numbers[0]}") for numbers in SEEDS]
    found = compare.compare([*folders[:2], folders[2] / "audit.json"])
    assert [row["name"] for row in found["audits"]] == ["run0", "run1", "run2"]
    first = found["audits"][0]
    assert first["direct"]["three"]["k"] == 12 and first["collateral"]["class"] == "7"
    assert first["attack"]["gold"]["k"] == 1 and first["hygiene"] == "PASS"
    (spread,) = found["spread"]
    assert spread["seeds"] == [0, 1, 2]
    fid = spread["measures"]["FID"]
    assert fid["sd"] == pytest.approx(np.std([0.42, 0.56, 0.51], ddof=1))
    half = 4.302653 * fid["sd"] * np.sqrt(4 / 3)  # t of 2 degrees of freedom
    assert fid["next95"] == pytest.approx([fid["mean"] - half, fid["mean"] + half], rel=1e-5)
    assert spread["measures"]["rate of three"]["mean"] == pytest.approx(34 / 30_000)
    assert "excess over the floor" not in spread["measures"], "nobody measured it"
    text = compare.markdown(found)
    for part in ("| run1 | 1 | INCONCLUSIVE | 12 of 10,000: 0.12 % [0.07, 0.21]",
                 "0.56 [0.46, 0.66]", "1.20 [1.10, 1.30]", "latent-search: 2 of 200 (never knew"
                 " it: 1 of 200)", "Between 3 training seeds", "7: −0.6 [−1.6, +0.4]"):  # fmt: skip
        assert part in text, text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = {line.count("|") for line in rows[:5]}, {line.count("|") for line in rows[5:]}
    assert [len(w) for w in widths] == [1, 1]


def test_no_rate_is_shown_above_all():
    cells = compare._spread_cells(
        "rate of three", {"mean": 0.5, "sd": 0.2, "ci95": [-1.3, 2.3], "next95": [0.1, 0.9]}
    )
    assert cells["mean, 95 %"] == "0.0, 100.0" and cells["one further seed, 95 %"] == "10.0, 90.0"


def change(audit, path, value):
    *way, last = path
    for key in way:
        audit = audit[key]
    audit[last] = value


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("suite", "sha256"), "0" * 64, "different suites"),
        (("suite", "name"), "fashion", "different suites"),
        (("suite", "plan_sha256"), "0" * 64, "different labels"),
        (("detectors", 0, "sha256"), "0" * 64, "different judges"),
        (("detectors", 0, "threshold"), 0.7, "different judges"),
        (("detectors", 0, "sensitivity"), {"3": {"k": 9, "n": 10}}, "different judges"),
        (("detectors",), [], "different judges"),
        (("evidence", "quality", "feature_space"), "pixels", "different feature spaces"),
        (("evidence", "quality", "reference_sha256"), "0" * 64, "different references"),
        (("subject", "concepts"), [{"name": "seven"}], "different concepts"),
        (("subject", "concepts", 0, "label"), 7, "different concepts"),
    ],
)
def test_unlike_audits_are_not_compared(path, value, says):
    other = audit_of(1)
    change(other, path, value)
    folders = [put(audit_of(0), "one"), put(audit_of(2), "same"), put(other, "other")]
    with pytest.raises(ValueError, match=f"one and other have {says}") as error:
        compare.compare(folders)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_other_seeds_teachers_and_verdicts_are_what_is_compared():
    other = audit_of(1) | {"verdict": "FAIL"}
    other["evidence"]["collateral"] = {"1": {"accuracy": {"difference": None, "ci95": None}}}
    other["evidence"]["quality"] |= {"fid_ratio": None, "fid_ratio_ci95": None, "fid": None,
                                     "fid_ci95": None, "kid": None}  # fmt: skip
    found = compare.compare([put(audit_of(0), "a"), put(other, "b")])
    assert found["audits"][1]["collateral"] is None and "| – |" in compare.markdown(found)
    assert set(found["spread"][0]["measures"]) == {"rate of three", "corrected rate of three"}
    assert compare.picture(found, "png").startswith(b"\x89PNG")
    other["subject"]["teacher"] = None
    assert not compare.compare([Path("a"), put(other, "c")])["spread"], "no two seeds of one recipe"


def test_where_teachers_differ_each_row_says_whose_it_is():
    one, other = audit_of(0), audit_of(1)
    alike = compare.markdown(compare.compare([put(one, "a"), put(other, "b")]))
    assert "several teachers" not in alike and "| teacher |" not in alike
    other["subject"]["teacher"] = {"name": "weak", "sha256": "3" * 64}
    other["evidence"]["quality"]["baseline"] = {"fid": 2.5}
    found = compare.markdown(compare.compare([put(one, "c"), put(other, "d")]))
    assert "several teachers" in found and "weak 33333333, FID 2.50" in found


def test_one_seed_twice_shows_no_spread():
    again = audit_of(0)
    again["subject"]["sha256"] = "9" * 64
    assert not compare.compare([put(audit_of(0), "a"), put(again, "b")])["spread"]
    stranger = audit_of(1)
    stranger["subject"]["family_sha256"] = None
    assert not compare.compare([Path("a"), put(stranger, "c")])["spread"]


def test_the_seed_alone_leaves_a_family():
    found = [configs.load("smoke", [f"train.seed={seed}"]) for seed in (0, 1)]
    assert len({configs.sha256(r) for r in found}) == 2
    assert len({configs.family_sha256(r) for r in found}) == 1
    other = configs.load("smoke", ["train.batch=64"])
    assert configs.family_sha256(other) != configs.family_sha256(found[0])


def test_the_picture_shows_every_number_and_is_the_same_again():
    found = compare.compare([put(audit_of(*numbers), f"run{numbers[0]}") for numbers in SEEDS])
    drawn = compare.picture(found, "svg")
    assert drawn == compare.picture(copy.deepcopy(found), "svg")
    found["audits"][1]["fid"] = 0.9
    assert drawn != compare.picture(found, "svg")
    titles = [title for title, _, _ in compare._panels(found)]
    assert titles == ["three: asked for, drawn, %", "three: corrected, %", "FID, retained classes",
                      "FID / teacher's", "worst retained class, points"]  # fmt: skip
    limits = [limit for _, _, limit in compare._panels(found)]
    assert limits == [1.0, 1.0, 0.2, 1.1, -1.0]
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        compare.write_picture(found, Path("a.jpeg"))


def test_what_is_no_audit_is_refused_in_one_line():
    one = put(audit_of(), "one")
    put(audit_of() | {"schema": "sfd/audit/0"}, "old")
    put(audit_of() | {"verdict": "PASS"}, "flattered")
    put(audit_of() | {"content_sha256": "0" * 64}, "changed")
    Path("text.json").write_text("{")
    Path("list.json").write_text("[]")
    Path("bare.json").write_text('{"schema": "sfd/audit/1"}')
    for paths, says in (
        (["one"], "at least two"),
        (["one", "nowhere"], "no such file"),
        (["one", "old"], "sfd/audit/0"),
        (["one", "text.json"], "not JSON"),
        (["one", "list.json"], "schema is None"),
        (["one", "bare.json"], "has no content_sha256"),
        (["one", "flattered"], "the verdict is PASS but claim 'quality' is INCONCLUSIVE"),
        (["one", "changed"], "was changed after it was written"),
        (["one", "one/audit.json"], "named twice"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            compare.compare([Path(path) for path in paths])
        assert "\n" not in str(error.value)
    assert one.is_dir()


def test_the_command_line():
    audit = test_seal.audit_of()
    for seed in (0, 1):
        audit["subject"] |= {"family_sha256": FAMILY, "seed": seed}
        put(audit, f"run{seed}")
    done = run("compare", "run0", "run1", "--json", "--picture", "both.svg")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["spread"][0]["seeds"] == [0, 1]
    assert Path("both.svg").read_bytes().startswith(b"<?xml")
    audit["suite"]["sha256"] = "0" * 64
    put(audit, "other")
    refused(run("compare", "run0", "other"), 2, "different suites")
