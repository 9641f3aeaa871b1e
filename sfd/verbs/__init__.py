"""The verbs beside the main job: audits of files, samples, datasets, plans, references,
checks, listings."""

from sfd.verbs.audits import audit_file, audit_function, run_controls
from sfd.verbs.checks import check_job, validate
from sfd.verbs.datasets import add_review, add_usefulness, synthesize_run, write_review
from sfd.verbs.judges import measure_judge, train_judge
from sfd.verbs.listings import citations, listing
from sfd.verbs.plans import plan_audit, plan_run
from sfd.verbs.references import write_reference
from sfd.verbs.reviews import read_review
from sfd.verbs.samples import prompts_of, sample_labels, sample_prompts
from sfd.verbs.subjects import asked_of, folder_for

__all__ = [
    "add_review",
    "add_usefulness",
    "asked_of",
    "audit_file",
    "audit_function",
    "check_job",
    "citations",
    "folder_for",
    "listing",
    "measure_judge",
    "plan_audit",
    "plan_run",
    "prompts_of",
    "read_review",
    "run_controls",
    "sample_labels",
    "sample_prompts",
    "synthesize_run",
    "train_judge",
    "validate",
    "write_reference",
    "write_review",
]
