"""What a result rests on: versions, commit, device, time."""

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sfd import content

PACKAGES = (
    "sfd",
    "torch",
    "torchvision",
    "timm",
    "diffusers",
    "transformers",
    "accelerate",
    "numpy",
    "scipy",
    "safetensors",
)


def collect(device: str, **more: Any) -> dict[str, Any]:
    """Package versions, git commit (of a checkout), device, Python, and the time in UTC."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: v for name in PACKAGES if (v := _version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "git_commit": _commit(),
        "command": shlex.join(["sfd", *sys.argv[1:]]),
        **more,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    root = content.shipped()
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
