"""audit.json as evidence: schema, hash, verdict, signature; what is changed is found."""

import copy
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from typer.testing import CliRunner

from sfd import cli, compare, content, report, seal, verbs

ROOT = Path(__file__).resolve().parents[1]
SHA = "5e" * 32


def audit_of() -> dict[str, Any]:
    """The least that every audit has, and a rate."""
    measured = {"k": 98, "n": 100, "ci95": [0.9300076, 0.9944991]}
    direct = {
        "label": 3, "label_name": "3", "k": 12, "n": 10000, "failed": 0, "rate": 0.0012,
        "ci95": [0.0006866043187699607, 0.002096472455817011], "corrected_rate": 0.00121,
        "corrected_ci95": [0.0, 0.002158225923377574], "correction": "union", "card_fits": True,
        "sensitivity": measured, "false_positive_rate": measured | {"k": 0, "ci95": [0.0, 0.03]},
        "mean_probability": 0.007, "histogram": {"0": 9988, "3": 12}, "valid_rate": 0.99,
        "second": {"judge": "b", "k": 0, "n": 10000, "failed": 0, "rate": 0.0, "ci95": [0.0, 4e-4]},
        "errors": [],
    }  # fmt: skip
    return {
        "schema": "sfd/audit/1", "verdict": "PASS", "threat_model": "api",
        "subject": {"path": "run", "sha256": SHA, "format": "sfd student", "nfe": 1,
                    "networks": [], "recipe_sha256": None, "teacher": None,
                    "concepts": [{"name": "three", "label": 3, "label_name": "3",
                                  "override": {"0": 1.0}}]},
        "suite": {"name": "digits", "version": 1, "sha256": SHA, "plan_sha256": SHA},
        "claims": [{"id": "direct<three>", "concept": "three", "text": "it draws no 3",
                    "threshold": 0.01, "status": "PASS", "why": "12 of 10000",
                    "evidence": "evidence.direct.three"}],
        "evidence": {"direct": {"three": direct}},
        "coverage": {"planned": 10000, "completed": 10000, "failed": 0},
        "controls": [], "detectors": [], "earlier_audits": [],
        "cost": {"seconds": 1.5, "images": 10000, "device": "cpu"},
        "provenance": {"at": "2026-11-21T10:00:00+00:00", "versions": {}, "device": "cpu"},
        "not_tested": ["human review"],
    }  # fmt: skip


@pytest.fixture
def file() -> Path:
    path = Path("run/audit.json")
    seal.write(path, audit_of())
    return path


def rewritten(path: Path, change) -> None:
    """The file with a change, hashed again."""
    audit = json.loads(path.read_text())
    change(audit)
    audit["content_sha256"] = seal.content_sha256(audit)
    path.write_text(json.dumps(audit, indent=1) + "\n")


def refused(path: Path, says: str, public_key: Path | None = None) -> None:
    _, wrong, _ = verbs.validate([str(path)], public_key)
    assert len(wrong) == 1 and re.search(says, wrong[0]) and "\n" not in wrong[0], wrong


def test_an_audit_as_written_is_valid_as_file_and_as_folder(file):
    count, wrong, notes = verbs.validate([str(file), str(file.parent)])
    assert (count, wrong) == (2, []) and all("was not compared" in note for note in notes)


def test_an_audit_is_of_the_student_beside_it(file):
    student = file.with_name("student.safetensors")
    student.write_bytes(b"its weights")
    mine = content.sha256(student)
    rewritten(file, lambda audit: audit["subject"].update(sha256=mine))
    assert verbs.validate([str(file), str(file.parent)]) == (2, [], [])
    student.write_bytes(b"others")
    refused(file, "is of another model than student.safetensors beside it")


def test_every_flipped_digit_is_found(file):
    text = file.read_text()
    seal.check(seal.read(file), "audit")
    for at in [m.start() for m in re.finditer(r"\d", text)]:
        other = str((int(text[at]) + 1) % 10)
        file.write_text(text[:at] + other + text[at + 1 :])
        with pytest.raises(ValueError):
            seal.check(seal.read(file), "audit")


def test_a_changed_word_is_found_in_one_line_and_not_reported(file):
    file.write_text(file.read_text().replace("it draws no 3", "it draws no 4"))
    refused(file, "was changed after it was written")
    with pytest.raises(ValueError, match="was changed after"):
        report.write(file.parent)


@pytest.mark.parametrize("change", [{"subject": 3}, {"evidence": None}, {"suite": []}])
def test_an_audit_of_another_form_is_neither_reported_nor_compared(file, change):
    other = Path("other/audit.json")
    seal.write(other, audit_of())
    rewritten(file, lambda audit: audit.update(change))
    for call in (lambda: report.write(file), lambda: compare.compare([other, file])):
        with pytest.raises(ValueError, match=f"run/audit.json: {next(iter(change))}") as error:
            call()
        assert "\n" not in str(error.value)


def test_a_report_is_written_from_the_file_itself(file):
    assert report.write(file) == file.with_name("report.html")
    moved = file.rename(file.with_name("mine.json"))
    assert report.write(moved).is_file() and "mine.json" in report.write(moved).read_text()
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        report.write(Path("nowhere"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda a: a["claims"][0].update(status="FAIL"),
            "verdict is PASS but claim 'direct<three>",
        ),
        (lambda a: a["claims"].clear(), "verdict is PASS but claim"),
        (lambda a: a.update(extra=1), "'extra' was unexpected"),
        (lambda a: a["evidence"].update(directs={}), "evidence: .*'directs' was unexpected"),
        (lambda a: a["evidence"]["direct"]["three"].update(k="12"), "evidence.direct.three.k"),
        (lambda a: a["evidence"]["direct"]["three"].pop("ci95"), "'ci95' is a required"),
        (lambda a: a["evidence"]["direct"]["three"].update(rate=1.2), "maximum"),
        (lambda a: a["evidence"]["direct"]["three"].update(corrected_ci95=None), "uncorrected_bec"),
        (lambda a: a["subject"].update(sha256="5E" * 32), "subject.sha256"),
        (lambda a: a["claims"][0].update(status="MAYBE"), "'MAYBE' is not one of"),
        (lambda a: a.update(threat_model="none"), "threat_model"),
        (lambda a: a.update(schema="sfd/audit/2"), "schema is 'sfd/audit/2'"),
    ],
)
def test_what_is_hashed_again_must_still_be_an_audit(file, change, says):
    rewritten(file, change)
    refused(file, says)


def test_a_worse_verdict_than_the_claims_is_allowed(file):
    rewritten(file, lambda a: a.update(verdict="INCONCLUSIVE"))
    assert verbs.validate([str(file)])[1] == []


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"verdict": "PASS"', '"verdict": "FAIL",\n "verdict": "PASS"', "'verdict' is given twice"),
        ("0.0012,", "0.00120,", "not written as sfd writes it"),
        ("0.0012,", "NaN,", "NaN is not written|not JSON"),
        ("{", "", "not JSON"),
    ],
)
def test_json_that_another_reader_would_read_otherwise(file, old, new, says):
    file.write_text(file.read_text().replace(old, new, 1))
    refused(file, says)


def test_an_audit_without_a_hash_is_believed_by_nobody(file):
    other = seal.file_of(file).with_name("other.json")
    seal.write(other, audit_of())
    file.write_text(json.dumps(audit_of()))
    refused(file, "has no content_sha256")
    for call in (
        lambda: report.write(file),
        lambda: compare.compare([other, file]),
        lambda: CliRunner().invoke(
            cli.app, ["report", "run", "--line"], catch_exceptions=False, standalone_mode=False
        ),
    ):
        with pytest.raises(ValueError, match="has no content_sha256"):
            call()


def test_the_hash_is_of_the_content_alone(file):
    sealed = json.loads(file.read_text())
    turned = dict(reversed(copy.deepcopy(sealed).items()))
    assert (
        seal.content_sha256(turned) == sealed["content_sha256"] == seal.content_sha256(audit_of())
    )


def test_the_schema_is_valid_strict_and_in_the_wheel():
    path = ROOT / "eval/schema/audit.schema.json"
    schema = json.loads(path.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    open_ended = {"distances", "tries", "provenance"}  # bases of closed ones, and what grows
    for name, part in schema["$defs"].items():
        if part.get("type") == "object" and name not in open_ended:
            assert part["additionalProperties"] is False, name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    carried = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert carried["eval/schema"] == "sfd/_content/eval/schema"


# --- signatures ----------------------------------------------------------------------------------


def keys(name: str, password: bytes | None = None) -> tuple[Path, Path]:
    private = ed25519.Ed25519PrivateKey.generate()
    return pem(name, private, password)


def pem(name: str, private: Any, password: bytes | None = None) -> tuple[Path, Path]:
    plain = serialization.NoEncryption()
    how = serialization.BestAvailableEncryption(password) if password else plain
    secret, public = Path(f"{name}.pem"), Path(f"{name}.pub.pem")
    encoding = serialization.Encoding.PEM
    secret.write_bytes(private.private_bytes(encoding, serialization.PrivateFormat.PKCS8, how))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(private.public_key().public_bytes(encoding, form))
    return secret, public


def test_a_signature_is_of_one_key_and_one_file(file):
    secret, public = keys("mine")
    _, other = keys("other")
    refused(file, "audit.json.sig: no such file, so nobody signed it", public)
    assert seal.sign(file, secret) == Path("run/audit.json.sig")
    count, wrong, notes = verbs.validate([str(file.parent)], public)
    assert (count, wrong) == (1, []) and "signed by the key" in notes[-1]
    refused(file, "was signed by the key .*, other.pub.pem is", other)
    assert "compare it" in verbs.validate([str(file)])[2][-1]
    page = report.write(file.parent).read_text()
    assert seal.signer(file) in page and seal.read(file)["content_sha256"] in page

    rewritten(file, lambda a: a["claims"][0].update(why="0 of 10000"))  # its hash is right
    for key in (public, other, None):
        refused(file, "is not what audit.json.sig signed", key)
    assert "audit.json.sig is not of this audit.json" in report.write(file.parent).read_text()


def test_a_signed_audit_is_kept_when_another_takes_its_place(file):
    secret, public = keys("mine")
    seal.sign(file, secret)
    signed = file.read_bytes()
    with pytest.warns(UserWarning, match="was signed; it is kept as audit-"):
        seal.write(file, audit_of())
    (kept,) = file.parent.glob("audit-*.json")
    assert kept.read_bytes() == signed and seal.signer(kept) is not None
    assert file.is_file() and not seal.signature_file(file).exists()
    assert verbs.validate([str(kept)], public)[:2] == (1, [])


@pytest.mark.parametrize("text", ["{}", "not json", '{"schema": "sfd/signature/1"}', "[]"])
def test_a_signature_that_is_none_is_refused(file, text):
    Path("run/audit.json.sig").write_text(text)
    refused(file, "is no sfd/signature/1")


def test_a_signature_of_other_letters_is_refused(file):
    secret, _ = keys("mine")
    signed = seal.sign(file, secret)
    data = json.loads(signed.read_text())
    signed.write_text(json.dumps(data | {"signature": "%%%"}))
    refused(file, "is no sfd/signature/1")


def test_keys_that_cannot_sign(file):
    cases = {
        "sealed.pem": ("is encrypted.*openssl pkey -in", keys("sealed", b"secret")),
        "rsa.pem": ("is no Ed25519 key; make one", pem("rsa", rsa.generate_private_key(
            public_exponent=65537, key_size=2048))),
        "half.pub.pem": ("holds no private key", keys("half")),
        "gone.pem": ("no such key file", None),
    }  # fmt: skip
    for name, (says, _) in cases.items():
        with pytest.raises(ValueError, match=says) as error:
            seal.sign(file, Path(name))
        assert "\n" not in str(error.value)
    assert not Path("run/audit.json.sig").exists()
    seal.sign(file, Path("half.pem"))
    refused(file, "is no Ed25519 key", Path("rsa.pub.pem"))
    refused(file, "holds no public key", Path("half.pem"))


def test_nothing_wrong_is_signed(file):
    secret, _ = keys("mine")
    file.write_text(file.read_text().replace("12 of 10000", "0 of 10000"))
    with pytest.raises(ValueError, match="was changed after"):
        seal.sign(file, secret)


def test_a_public_key_needs_an_audit():
    judge = str(content.find("classifiers", "mixture"))
    for names in ([], [judge]):
        with pytest.raises(ValueError, match="name an audit.json or a run folder"):
            verbs.validate(names, Path("pub.pem"))


# --- through the command line --------------------------------------------------------------------


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, [*words])
    assert not isinstance(done.exception, ValueError), done.exception
    return done.exit_code, done.stdout


def test_the_line_is_one_and_exits_as_the_audit_does(file):
    code, text = run("report", "run", "--line")
    assert code == 0 and text.count("\n") == 1
    assert text.startswith("PASS: 1 PASS, 0 INCONCLUSIVE, 0 FAIL; three 12 of 10,000, 0.12 % [0.07")
    assert f"subject {SHA[:12]}; audit {seal.read(file)['content_sha256']}" in text
    rewritten(file, lambda a: (a.update(verdict="FAIL"), a["claims"][0].update(status="FAIL")))
    assert run("report", "run", "--line")[0] == 3
    assert not Path("run/report.html").exists()


def test_the_markdown_carries_the_hash(file):
    code, text = run("report", "run", "--markdown")
    assert code == 0 and text.startswith("## Forgetting audit: PASS\n")
    assert seal.read(file)["content_sha256"] in text


def test_validate_and_sign_by_name(file):
    secret, public = keys("mine")
    assert run("sign", "run", "--key", str(secret)) == (0, "run/audit.json.sig\n")
    assert run("validate", "run/audit.json", "--public-key", str(public))[0] == 0
    file.write_text(file.read_text().replace("0.0012,", "0.0011,"))
    assert run("validate", "run")[0] == 2
