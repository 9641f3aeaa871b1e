"""What people saw in a packet, read into the audit that planned it."""

from pathlib import Path
from typing import Any

from sfd import content, seal
from sfd.eval import review


def read_review(folder: Path, answers: Path) -> dict[str, Any]:
    """Read a filled CSV into `folder`'s audit.json; its new content.

    Raises ValueError, in one line, on an audit that `sfd validate` refuses, without a packet, on
    another packet's key, and on answers that are missing, unknown or of other images.
    """
    audit = seal.checked(folder)
    key = review.read_key(folder, audit)
    given = review.read_answers(answers, list(key["images"]))
    sha256 = content.sha256(answers.read_bytes())
    return seal.write(seal.file_of(folder), review.seen(audit, key, given, sha256))
