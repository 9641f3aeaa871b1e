"""One-step generators that have forgotten a concept, and an audit that proves it.

`run(recipe)` is the main job, `load(path)` gives a student to sample from, `audit(path)` audits
it, `synthesize(path, out)` draws a screened dataset of it.
The other names are the contracts that your own pieces keep.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfd.api import audit, load, run, synthesize
    from sfd.concepts import Concept
    from sfd.forgetting import Batch, Rule
    from sfd.objectives import Draw, Phase
    from sfd.sample import Student
    from sfd.state import Stopped
    from sfd.teachers import Teacher

__version__ = "0.1.0"

_HOMES = {
    "run": "sfd.api",
    "load": "sfd.api",
    "audit": "sfd.api",
    "synthesize": "sfd.api",
    "Student": "sfd.sample",
    "Teacher": "sfd.teachers",
    "Concept": "sfd.concepts",
    "Batch": "sfd.forgetting",
    "Rule": "sfd.forgetting",
    "Draw": "sfd.objectives",
    "Phase": "sfd.objectives",
    "Stopped": "sfd.state",
}

__all__ = [
    "Batch",
    "Concept",
    "Draw",
    "Phase",
    "Rule",
    "Stopped",
    "Student",
    "Teacher",
    "__version__",
    "audit",
    "load",
    "run",
    "synthesize",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sfd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
