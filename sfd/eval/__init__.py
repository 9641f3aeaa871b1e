"""The audit: claims stated before the run, evidence gathered by judges, three verdicts.

`suites` is the only reader of `eval/`; `evidence` turns images into numbers, `claims` numbers into
verdicts, `audit` joins them.
"""

from sfd.eval.audit import audit
from sfd.eval.common import load_judge
from sfd.eval.subjects import Subject
from sfd.eval.suites import Suite

__all__ = ["Subject", "Suite", "audit", "load_judge"]
