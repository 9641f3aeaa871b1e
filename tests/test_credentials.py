"""Content Credentials: signed images say what generated them, and a change is found."""

import datetime
import io
import json
import os
import signal
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import c2pa
import numpy as np
import pytest
import test_synthesize
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image
from test_synthesize import files, make, pseudo_random, rows
from typer.testing import CliRunner

import sfd
from sfd import cli, content, images, sample, verbs
from sfd.synthesis import credentials, folders, webdataset
from sfd.synthesis.folders import META

PEM = serialization.Encoding.PEM
NOW = datetime.datetime.now(datetime.UTC)
ROOT = ec.generate_private_key(ec.SECP256R1())
KEYS = {
    "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "es384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "es512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ps256": lambda: rsa.generate_private_key(65537, 2048),
}


def certificate(subject, public, *, last=30, usage=ExtendedKeyUsageOID.EMAIL_PROTECTION):
    """A certificate of the test authority, in date until `last` days from now; PEM."""

    def name(common):
        said = {NameOID.COMMON_NAME: common, NameOID.ORGANIZATION_NAME: "tests"}
        return x509.Name([x509.NameAttribute(*pair) for pair in said.items()])

    root = subject == "root"
    at = x509.AuthorityKeyIdentifier.from_issuer_public_key(ROOT.public_key())
    built = (
        x509.CertificateBuilder(name("root"), name(subject), public, x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(days=60))
        .not_valid_after(NOW + datetime.timedelta(days=last))
        .add_extension(x509.BasicConstraints(ca=root, path_length=None), True)
        .add_extension(
            x509.KeyUsage(not root, False, False, False, False, root, root, False, False), True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
        .add_extension(at, False)
    )
    if not root:
        built = built.add_extension(x509.ExtendedKeyUsage([usage]), True)
    return built.sign(ROOT, hashes.SHA256()).public_bytes(PEM)


def write_key(path, private, form="PKCS8", secret=None):
    lock = serialization.BestAvailableEncryption(secret) if secret else None
    form = getattr(serialization.PrivateFormat, form)
    data = private.private_bytes(PEM, form, lock or serialization.NoEncryption())
    Path(path).write_bytes(data)
    return Path(path)


def pair(name, kind="es256", **options):
    """The files of a chain and of its key, in the current folder."""
    private = KEYS[kind]()
    chain = certificate(name, private.public_key(), **options)
    Path(f"{name}.pem").write_bytes(chain + certificate("root", ROOT.public_key()))
    return Path(f"{name}.pem"), write_key(f"{name}.key", private)


def picture(seed=2**62 - 1, condition: object = 1):
    """A marked PNG of 28 x 28 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (28, 28, 1), np.uint8)
    return images.png_bytes(pixels, folders.mark(seed, condition, "ab" * 32))


def read(png):
    """What the library complains of, and the manifest."""
    said = json.loads(c2pa.Reader("image/png", io.BytesIO(png)).json())
    complaints = {status["code"] for status in said["validation_status"]}
    return complaints, said["manifests"][said["active_manifest"]]


def generated(manifest):
    """The manifest's claims: the action, and the seed with the rest."""
    found = {a["label"]: a["data"] for a in manifest["assertions"]}
    assert set(found) == {"c2pa.actions.v2", credentials.LABEL}
    (action,) = found["c2pa.actions.v2"]["actions"]
    return action, found[credentials.LABEL]


def refused(says, *arguments, **options):
    with pytest.raises(ValueError, match=says) as error:
        credentials.load(*arguments, **options)
    assert "\n" not in str(error.value)


# --- one image -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KEYS)
def test_a_signed_image_says_what_generated_it(kind):
    chain, key = pair("signer", kind)
    found = credentials.load(chain, key)
    leaf = x509.load_pem_x509_certificate(chain.read_bytes())
    assert found.sha256 == leaf.fingerprint(hashes.SHA256()).hex()
    assert found.subject == "O=tests,CN=signer"
    plain = picture(condition='a "red"\nbag')
    signed = found.stamp(plain)
    complaints, manifest = read(signed)
    assert complaints == {credentials.UNTRUSTED}
    assert manifest["signature_info"]["alg"].lower() == kind
    assert "time" not in manifest["signature_info"]
    (by,) = manifest["claim_generator_info"]
    assert (by["name"], by["version"]) == ("sfd", sfd.__version__)
    action, facts = generated(manifest)
    assert action == {"action": "c2pa.created", "digitalSourceType": folders.SOURCE}
    assert facts == {
        "seed": 2**62 - 1, "condition": 'a "red"\nbag', "student_sha256": "ab" * 32
    }  # fmt: skip
    # no thumbnail, which alone is 30 KiB; the picture and its text are as they were
    assert "thumbnail" not in manifest and len(signed) < 8192
    before, after = (Image.open(io.BytesIO(data)) for data in (plain, signed))
    assert (np.asarray(before) == np.asarray(after)).all()
    assert images.png_text(signed) == images.png_text(plain)
    assert json.loads(images.png_text(signed)["sfd"]) == facts


def test_what_is_changed_is_found():
    signed = credentials.load(*pair("signer")).stamp(picture(seed=7))
    # a pixel, the text's seed, the credential's student and its source
    for before, more, says in (
        (b"IDAT", 6, "assertion.dataHash.mismatch"),
        (b'"seed": ', 0, "assertion.dataHash.mismatch"),
        (b"student_sha256", 3, "assertion.hashedURI.mismatch"),
        (b"digitalsourcetype/", 0, "assertion.hashedURI.mismatch"),
    ):
        changed = bytearray(signed)
        changed[signed.index(before) + len(before) + more] ^= 1
        complaints, _ = read(bytes(changed))
        assert complaints == {credentials.UNTRUSTED, says}, before


def test_several_threads_sign_at_once():
    stamp = credentials.load(*pair("signer")).stamp
    with ThreadPoolExecutor(4) as pool:
        signed = list(pool.map(lambda seed: stamp(picture(seed)), range(60)))
    for seed, png in enumerate(signed):
        complaints, manifest = read(png)
        assert complaints == {credentials.UNTRUSTED}
        assert generated(manifest)[1]["seed"] == seed
        assert images.png_text(png) == images.png_text(picture(seed))


# --- who cannot sign -----------------------------------------------------------------------------


def test_files_that_cannot_sign():
    chain, key = pair("signer")
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    leaf, root = x509.load_pem_x509_certificates(chain.read_bytes())
    Path("junk").write_bytes(b"junk")
    Path("turned").write_bytes(root.public_bytes(PEM) + leaf.public_bytes(PEM))
    Path("root").write_bytes(root.public_bytes(PEM))
    small = dsa.generate_private_key(1024)
    Path("dsa").write_bytes(certificate("dsa", small.public_key()))
    curve = ec.generate_private_key(ec.SECP256K1())
    Path("curve").write_bytes(certificate("curve", curve.public_key()))
    sealed = write_key("sealed", private, secret=b"secret")
    for says, *given in (
        ("gone: no such certificate file", Path("gone"), key),
        ("gone: no such key file", chain, Path("gone")),
        ("junk: holds no certificates in PEM; give", Path("junk"), key),
        ("signer.key: holds no certificates in PEM", key, key),
        ("junk: holds no private key in PEM; give the one", chain, Path("junk")),
        ("signer.pem: holds no private key", chain, chain),
        ("sealed: is encrypted.*openssl pkey", chain, sealed),
        ("other.key: does not belong to the first cert.* of signer.pem", chain, pair("other")[1]),
        ("ed.key: does not belong", chain, pair("ed", "ed25519")[1]),
        ("signer.key: does not belong to the first", Path("turned"), key),
        ("P-256, P-384, P-521, Ed25519 or RSA", Path("dsa"), write_key("dsa.key", small)),
        ("P-256, P-384, P-521", Path("curve"), write_key("curve.key", curve)),
        ("old.pem: .* not valid at time of signing; give .* in date", *pair("old", last=-1)),
        ("tls.pem: c2pa refuses", *pair("tls", usage=ExtendedKeyUsageOID.SERVER_AUTH)),
        ("root: c2pa refuses.*self-signed", Path("root"), write_key("root.key", ROOT)),
    ):
        refused(says, *given)


def test_a_key_as_openssl_writes_it():
    chain, key = pair("signer")
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    write_key(key, private, "TraditionalOpenSSL")
    assert b"EC PRIVATE KEY" in key.read_bytes()
    assert read(credentials.load(chain, key).stamp(picture()))[0] == {credentials.UNTRUSTED}


def test_a_certificate_that_ends_on_the_way_is_one_line():
    stamp = credentials.load(*pair("old", last=-1), trial=False).stamp
    with pytest.raises(ValueError, match="old.pem: .* not valid at time of signing") as error:
        stamp(picture())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("state", "codes", "says"),
    [
        ("Invalid", [credentials.UNTRUSTED, "assertion.dataHash.mismatch"], "dataHash"),
        ("Valid", ["signingCredential.revoked"], "revoked"),
        ("Invalid", [], "Invalid"),
        ("Trusted", [], None),
    ],
)
def test_only_an_untrusted_root_is_let_pass(monkeypatch, state, codes, says):
    chain, key = pair("signer")

    class Reader:
        def __init__(self, *words):
            pass

        def json(self):
            said = [{"code": code} for code in codes]
            return json.dumps({"validation_state": state, "validation_status": said})

    monkeypatch.setattr(c2pa, "Reader", Reader)
    if says:
        refused(f"signer.pem: c2pa refuses to sign with it: .*{says}", chain, key)
    else:
        credentials.load(chain, key)


def test_without_the_library_it_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    refused("needs the extra c2pa.*pip install c2pa-python", Path("chain.pem"), Path("key.pem"))


# --- a dataset -----------------------------------------------------------------------------------


run = test_synthesize.run


def pixels(folder):
    found = Path(folder).rglob("*.png")
    return {str(p.relative_to(folder)): images.read_image(p).tobytes() for p in found}


def test_every_image_of_a_dataset_is_signed_kept_or_refused(run):
    student = sample.load(run)
    signer = credentials.load(*pair("signer"))
    report = make(student, "set", pseudo_random, keep_refused=True, credentials=signer)
    make(student, "plain", pseudo_random, keep_refused=True)
    for name in ("set", "set-quarantine"):
        listed = rows(Path(name, META))
        assert len(listed) > 5
        for row in listed:
            complaints, manifest = read(Path(name, row["file_name"]).read_bytes())
            assert complaints == {credentials.UNTRUSTED}
            assert generated(manifest)[1] == {
                key: row[key] for key in ("seed", "condition", "student_sha256")
            }
        other = name.replace("set", "plain")
        assert pixels(name) == pixels(other)
        plain = rows(Path(other, META))
        assert not {row["plan_sha256"] for row in listed} & {row["plan_sha256"] for row in plain}
        for row in (*listed, *plain):
            del row["plan_sha256"]
        assert listed == plain
    assert (report["signer"], report["plan"]["c2pa"]) == (signer.subject, signer.sha256)
    text, without = (Path(name, "README.md").read_text() for name in ("set", "plain"))
    assert f"signed by `O=tests,CN=signer` (the certificate's sha256: `{signer.sha256}`" in text
    assert "same pixels and other bytes" in text and "so can a credential" in text
    assert "carries no C2PA signature" in without and "carries no C2PA" not in text
    # a tar holds the signed bytes as they are
    webdataset.write(Path("set"), Path("tars"))
    with tarfile.open("tars/000000.tar") as tar:
        packed = tar.extractfile("00000003.png")
        assert packed and packed.read() == Path("set/000000/00000003.png").read_bytes()


def test_from_the_command_line_and_once_more_after_the_last_day(run, monkeypatch):
    chain, key = pair("signer")
    words = ["synthesize", str(run), "set", "n=12", "--c2pa", str(chain), str(key)]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    assert {frozenset(read(p.read_bytes())[0]) for p in Path("set").rglob("*.png")} == {
        frozenset({credentials.UNTRUSTED})
    }
    # nothing is left to sign: what a review adds needs no certificate that is in date
    monkeypatch.setattr(c2pa, "Builder", lambda *a: pytest.fail("signs"))
    again = sfd.synthesize(run, "set", n=12, c2pa=(str(chain), str(key)))
    assert again and again["kept"] == 12


def test_what_cannot_sign_draws_nothing(run, monkeypatch):
    monkeypatch.setattr(sample, "load", lambda *a: pytest.fail("loads a student"))
    with pytest.raises(ValueError, match="not valid at time of signing"):
        sfd.synthesize(run, "set", n=12, c2pa=tuple(map(str, pair("old", last=-1))))
    assert not Path("set").exists()


def test_killed_it_goes_on_with_the_same_certificate_alone(run):
    mine, other = (tuple(map(str, pair(name))) for name in ("mine", "other"))

    def attempt(c2pa):
        return verbs.synthesize_run(run, Path("set"), n=30, batch=5, size=10, workers=1, c2pa=c2pa)

    child = os.fork()
    if not child:
        written, count = Path.write_bytes, [0]

        def die(self, data):
            count[0] += 1
            if count[0] == 15:
                os.kill(os.getpid(), signal.SIGKILL)
            return written(self, data)

        Path.write_bytes = die
        attempt(mine)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    first = files(Path("set/000000"))
    assert len(first) == 11 and not Path("set/000001").exists()
    for given, says in ((other, "begun with c2pa [0-9a-f]{57}"), (None, "with c2pa .*, not None")):
        with pytest.raises(ValueError, match=says) as error:
            attempt(given)
        assert "\n" not in str(error.value)
    report = attempt(mine)[1]
    assert report and report["kept"] == 30
    # what was there is not signed anew
    assert files(Path("set/000000")).items() >= {k: first[k] for k in first if k != META}.items()
    for path in Path("set").rglob("*.png"):
        assert read(path.read_bytes())[1]["signature_info"]["common_name"] == "mine"


def test_a_dataset_of_before_there_was_signing_stays_unsigned(run):
    student = sample.load(run)
    make(student, "set")
    plan = Path("set/.sfd/plan.json")
    content.write_json(plan, {k: v for k, v in json.loads(plan.read_text()).items() if k != "c2pa"})
    make(student, "set")
    with pytest.raises(ValueError, match="begun with c2pa None, not"):
        make(student, "set", credentials=credentials.load(*pair("signer")))
