"""What makes an audit.json believable: its schema, its content hash, its verdict, its signature.

The hash finds a changed file, not a forged one: whoever changes the content can hash it again. The
signature says whose word it is.
"""

import base64
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfd import content

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

SCHEMA = "sfd/audit/1"
SIGNATURE = "sfd/signature/1"
HASH = "content_sha256"
VERDICTS = ("FAIL", "INCONCLUSIVE", "PASS")  # worst first
CODES = {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4}
NEW_KEY = "openssl genpkey -algorithm ed25519 -out key.pem"


def content_sha256(audit: Mapping[str, Any]) -> str:
    """Hex digest of all of an audit but its hash: canonical JSON, its keys sorted, no spaces."""
    return content.hash_json({key: value for key, value in audit.items() if key != HASH})


def write(path: Path, audit: Mapping[str, Any]) -> dict[str, Any]:
    """Write an audit with its hash; what was written. One that is there and was signed is kept with
    its signature, under a name of its own. Raises ValueError on NaN: JSON has none."""
    plain = json.loads(json.dumps(audit, allow_nan=False))  # what a reader will see, and hash
    sealed = {key: value for key, value in plain.items() if key != HASH}
    sealed[HASH] = content_sha256(sealed)
    signature = signature_file(path)
    if path.is_file() and signature.is_file():
        kept = path.with_stem(f"{path.stem}-{content.sha256(path)[:8]}")
        path.replace(kept)
        signature.replace(signature_file(kept))
        warnings.warn(f"{path}: was signed; it is kept as {kept.name}", stacklevel=2)
    content.write_json(path, sealed)
    return sealed


def file_of(path: Path) -> Path:
    """An audit.json, or the one in a run folder. Raises ValueError where there is none."""
    file = path / "audit.json" if path.is_dir() else path
    if file.is_file():
        return file
    if file.name == "audit.json" and file.parent.is_dir():
        raise ValueError(f"{file}: no such file; run `sfd audit {file.parent}` first")
    raise ValueError(f"{path}: no such file or folder; name an audit.json, or the folder it is in")


def read(path: Path) -> Any:
    """An audit.json as data.

    Raises ValueError, in one line, unless it is JSON as `write` leaves it: no key twice, no NaN,
    numbers in their shortest form. So no other reader sees another content.
    """
    try:
        return json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=_once,
            parse_float=_as_written(float),
            parse_int=_as_written(int),
            parse_constant=_as_written(float),
        )
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"key {twice!r} is given twice")
    return found


def _as_written(kind: type[int] | type[float]) -> Callable[[str], int | float]:
    def number(text: str) -> int | float:
        value = kind(text)
        # digits beyond the shortest form may change without changing the number
        if repr(value) != text:
            raise ValueError(f"the number {text} is not written as sfd writes it: it was changed")
        return value

    return number


def check(audit: Any, where: str) -> None:
    """Raise ValueError, in one line that names the first thing wrong, unless an audit has the
    published schema, its own hash, and a verdict no better than its worst claim.
    """
    coherent_schema(audit, where)
    if HASH not in audit:
        raise ValueError(f"{where}: has no {HASH}: an earlier version wrote it, audit again")
    same_hash(audit, where)
    if wrong := _schema_error(audit):
        raise ValueError(f"{where}: {wrong}")
    coherent(audit, where)


def checked(path: Path) -> dict[str, Any]:
    """An audit.json, or the one in a folder, that `check` accepts; raises ValueError as it does."""
    file = file_of(path)
    audit = read(file)
    check(audit, str(file))
    return audit


def same_hash(audit: Mapping[str, Any], where: str) -> None:
    """Raise ValueError if an audit's content is not what its hash says."""
    if audit[HASH] != content_sha256(audit):
        raise ValueError(
            f"{where}: was changed after it was written: its content hashes to"
            f" {content_sha256(audit)[:12]}..., it says {str(audit[HASH])[:12]}..."
        )


def _schema_error(audit: Any) -> str:
    """The first departure from the published schema, in words; empty where there is none."""
    import jsonschema
    from jsonschema.exceptions import best_match

    file = content.shipped() / "eval" / "schema" / "audit.schema.json"
    schema = json.loads(file.read_text(encoding="utf-8"))
    error = best_match(jsonschema.Draft202012Validator(schema).iter_errors(audit))
    if error is None:
        return ""
    said = " ".join(error.message.split())
    return f"{error.json_path.removeprefix('$').lstrip('.') or 'the whole'}: {said[:200]}"


def coherent_schema(audit: Any, where: str) -> None:
    """Raise ValueError unless this is an audit of the version that is read here."""
    schema = audit.get("schema") if isinstance(audit, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{where}: schema is {schema!r}, this version of sfd reads {SCHEMA!r}")


def coherent(audit: Any, where: str) -> None:
    """Raise ValueError unless version, verdict and claims are there and agree."""
    coherent_schema(audit, where)
    verdict, claims = str(audit.get("verdict")), audit.get("claims")
    if not isinstance(claims, list) or not all(isinstance(claim, dict) for claim in claims):
        raise ValueError(f"{where}: 'claims' must be a list of mappings")
    for status in (verdict, *(claim.get("status") for claim in claims)):
        if status not in VERDICTS:
            raise ValueError(f"{where}: {status!r} is no verdict; known: {', '.join(VERDICTS)}")
    for claim in claims or [{"id": "(none was made)", "status": "INCONCLUSIVE"}]:
        if VERDICTS.index(verdict) > VERDICTS.index(claim["status"]):
            worse = f"claim {claim.get('id')!r} is {claim['status']}"
            raise ValueError(f"{where}: the verdict is {verdict} but {worse}")


# --- signatures ----------------------------------------------------------------------------------


def signature_file(path: Path) -> Path:
    """Where an audit's detached signature lies."""
    return path.with_name(path.name + ".sig")


def sign(path: Path, key: Path) -> Path:
    """Sign the bytes of a checked audit.json with an Ed25519 key (PEM); the signature's file.

    Raises ValueError, in one line, on an audit that `check` refuses, or a key that is none.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    checked(path)
    private = private_key(key, f"make one with `{NEW_KEY}`")
    if not isinstance(private, Ed25519PrivateKey):
        raise ValueError(f"{key}: is no Ed25519 key; make one with `{NEW_KEY}`")
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signed = {
        "schema": SIGNATURE,
        "algorithm": "Ed25519",
        "public_key": public.decode(),
        "signature": base64.b64encode(private.sign(path.read_bytes())).decode(),
    }
    content.write_json(signature_file(path), signed)
    return signature_file(path)


def private_key(path: Path, mend: str) -> "PrivateKeyTypes":
    """The key in a PEM file. Raises ValueError, in one line, where there is none (then with the
    `mend`), or an encrypted one.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    pem = _bytes_of(path)
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise ValueError(
            f"{path}: is encrypted, and sfd asks for no passphrase; sign with a copy that is not:"
            f" `openssl pkey -in {path} -out plain.pem`, and remove it afterwards"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"{path}: holds no private key in PEM; {mend}") from None


def signer(path: Path) -> str | None:
    """The fingerprint of the key that signed an audit.json, or None where nobody did.

    It is the SHA-256 of the public key as DER. Raises ValueError, in one line, if the signature is
    not of this file's bytes.
    """
    if not signature_file(path).is_file():
        return None
    public, signature = _read_signature(signature_file(path))
    _verify(path, public, signature)
    return fingerprint(public)


def verify(path: Path, public_key: Path) -> str:
    """The fingerprint of the given key (PEM), by which an audit.json was signed.

    Raises ValueError, in one line, without a signature, or one of another key or of other bytes.
    """
    public = _public(_bytes_of(public_key), str(public_key))
    if not signature_file(path).is_file():
        raise ValueError(f"{signature_file(path)}: no such file, so nobody signed it: `sfd sign`")
    named, signature = _read_signature(signature_file(path))
    _verify(path, named, signature)  # first, so that a changed file is not called another's
    if fingerprint(named) != fingerprint(public):
        raise ValueError(
            f"{path}: was signed by the key {fingerprint(named)[:16]}..., {public_key} is"
            f" {fingerprint(public)[:16]}..."
        )
    return fingerprint(public)


def fingerprint(public: "Ed25519PublicKey") -> str:
    """SHA-256 of a public key as DER."""
    from cryptography.hazmat.primitives import serialization

    der = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return content.sha256(der)


def _verify(path: Path, public: "Ed25519PublicKey", signature: bytes) -> None:
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, path.read_bytes())
    except InvalidSignature:
        raise ValueError(
            f"{path}: is not what {signature_file(path).name} signed: it was changed since, or the"
            " signature is another file's; sign it again if the change is yours"
        ) from None


def _read_signature(path: Path) -> tuple["Ed25519PublicKey", bytes]:
    wrong = ValueError(f"{path}: is no {SIGNATURE}: sign again with `sfd sign`")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise wrong from None
    keys = {"schema", "algorithm", "public_key", "signature"}
    if not isinstance(found, dict) or set(found) != keys or found["schema"] != SIGNATURE:
        raise wrong
    public = _public(str(found["public_key"]).encode(), str(path))
    try:
        return public, base64.b64decode(str(found["signature"]), validate=True)
    except ValueError:
        raise wrong from None


def _public(data: bytes, where: str) -> "Ed25519PublicKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    make = "`openssl pkey -in key.pem -pubout -out pub.pem` makes one"
    try:
        public = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"{where}: holds no public key in PEM; {make}") from None
    if not isinstance(public, Ed25519PublicKey):
        raise ValueError(f"{where}: is no Ed25519 key; {make}")
    return public


def _bytes_of(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path}: no such key file")
    return path.read_bytes()
