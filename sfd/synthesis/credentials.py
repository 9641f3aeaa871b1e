"""Content Credentials (C2PA): who says that an image is generated, signed into the PNG itself.

What signs is the library c2pa-python, the extra `c2pa`. No time-stamping authority is asked:
nothing here uses the network.
"""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import sfd
from sfd import content, images, seal
from sfd.synthesis import folders

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate

LABEL = "org.sfd.generated"
"""The assertion that repeats the `sfd` text chunk: seed, condition, the student's sha256."""
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
UNTRUSTED = "signingCredential.untrusted"
# the library does not complain about a setting that it does not know
SETTINGS = {"version": 1, "builder": {"thumbnail": {"enabled": False}}}


@dataclass(frozen=True)
class Credentials:
    """How images are signed, and by whom.

    `stamp` takes the bytes of a PNG as `folders.mark` marks it and gives them signed, other bytes
    each time, with the same pixels; several threads may call it at once. `sha256` is that of the
    signing certificate as DER, `subject` its holder.
    """

    stamp: Callable[[bytes], bytes]
    sha256: str
    subject: str


def load(chain: Path, key: Path, *, trial: bool = True) -> Credentials:
    """The credentials of a chain of certificates, the signer's first, and its private key (PEM).

    `trial` signs a tiny image and reads it back. Raises ValueError, in one line, where the library
    or a file is missing, a file holds something else, the key is not the certificate's, or the
    library complains of anything but a root that it does not trust: trust is the reader's business.
    """
    try:
        import c2pa
    except ImportError:
        raise ValueError("--c2pa needs the extra c2pa of sfd: pip install c2pa-python") from None
    from cryptography.hazmat.primitives import serialization

    certificates = _certificates(chain)
    private = seal.private_key(key, "give the one that belongs to the certificate")
    leaf, pem = certificates[0], serialization.Encoding.PEM
    if private.public_key() != leaf.public_key():
        raise ValueError(
            f"{key}: does not belong to the first certificate of {chain}: give that one's key, and"
            " the signer's certificate before its issuers'"
        )
    info = c2pa.C2paSignerInfo(
        _algorithm(private, key),
        b"".join(certificate.public_bytes(pem) for certificate in certificates),
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        None,
    )
    with _refusals(chain):
        context = c2pa.Context.from_dict(SETTINGS, c2pa.Signer.from_info(info))

    def stamp(png: bytes) -> bytes:
        # threads share the context alone, which the library reserves for shared use; a builder and
        # its streams belong to one call
        signed = io.BytesIO()
        with _refusals(chain):
            builder = c2pa.Builder(_manifest(png), context)
            builder.sign("image/png", io.BytesIO(png), signed)
        return signed.getvalue()

    if trial:
        with _refusals(chain):
            _try(stamp)
    der = leaf.public_bytes(serialization.Encoding.DER)
    return Credentials(stamp, content.sha256(der), leaf.subject.rfc4514_string())


def _try(stamp: Callable[[bytes], bytes]) -> None:
    """Sign one pixel and read it back. Raises C2paError on any complaint but an untrusted root."""
    import c2pa

    pixel = images.png_bytes(np.zeros((1, 1, 1), np.uint8), folders.mark(0, None, ""))
    found = json.loads(c2pa.Reader("image/png", io.BytesIO(stamp(pixel))).json())
    wrong = {status["code"] for status in found.get("validation_status", [])} - {UNTRUSTED}
    if wrong or found["validation_state"] not in ("Valid", "Trusted"):
        raise c2pa.C2paError(", ".join(sorted(wrong)) or found["validation_state"])


@contextmanager
def _refusals(chain: Path) -> Iterator[None]:
    """What the library refuses, as a ValueError in one line."""
    import c2pa

    try:
        yield
    except c2pa.C2paError as error:
        raise ValueError(
            f"{chain}: c2pa refuses to sign with it: {' '.join(str(error).split())}; give a"
            " certificate that is in date, issued by another, and for signatures (its extended key"
            " usage: claim signing, document signing or e-mail protection)"
        ) from None


def _manifest(png: bytes) -> dict[str, Any]:
    """What is signed of a marked image: who generated it, that it is generated, and from what."""
    created = {"action": "c2pa.created", "digitalSourceType": folders.SOURCE}
    return {
        "claim_generator_info": [{"name": "sfd", "version": sfd.__version__}],
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
            {"label": LABEL, "data": json.loads(images.png_text(png)["sfd"])},
        ],
    }


def _certificates(chain: Path) -> list["Certificate"]:
    from cryptography import x509

    if not chain.is_file():
        raise ValueError(f"{chain}: no such certificate file")
    try:
        return x509.load_pem_x509_certificates(chain.read_bytes())
    except ValueError:
        raise ValueError(
            f"{chain}: holds no certificates in PEM; give the signer's and then its issuers'"
        ) from None


def _algorithm(private: "PrivateKeyTypes", key: Path) -> str:
    """C2PA's name of what a key signs by. Raises ValueError for a key that C2PA has no use for."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    found = None
    if isinstance(private, ec.EllipticCurvePrivateKey):
        found = CURVES.get(private.curve.name)
    elif isinstance(private, ed25519.Ed25519PrivateKey):
        found = "ed25519"
    elif isinstance(private, rsa.RSAPrivateKey):
        found = "ps256"
    if found is None:
        raise ValueError(f"{key}: C2PA signs with P-256, P-384, P-521, Ed25519 or RSA keys alone")
    return found
