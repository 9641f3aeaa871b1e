"""An audit as text: for a reader of contracts, for a model card, for a line of a build's log."""

from sfd import seal
from sfd.report.numbers import count, ends, md, measured, percent, plain
from sfd.report.parts import Json, concepts_of, part
from sfd.report.words import sentences


def sentence(audit: Json) -> str:
    """What the audit found, for a reader of contracts: a sentence per concept, then the verdict.

    Raises ValueError, in one line, on another schema or a verdict better than its worst claim.
    """
    seal.coherent(audit, "audit")
    return " ".join(sentences(audit))


def markdown(audit: Json) -> str:
    """A model card's section on the audit, level 2, with every claim and what was not tested.

    Raises ValueError as `sentence` does.
    """
    lines = [md(sentence(audit)), ""]
    lines += ["| Claim | Result | Why |", "|---|---|---|"] if audit["claims"] else []
    for claim in audit["claims"]:
        text, why = md(claim.get("text") or claim.get("id")), md(claim.get("why"))
        lines.append(f"| {text} | **{claim['status']}** | {why} |")
    lines += ["", "Not tested:", ""] if audit.get("not_tested") else []
    lines += [f"- {md(item)}" for item in audit.get("not_tested") or []]
    suite, subject = audit.get("suite") or {}, audit.get("subject") or {}
    lines += ["", f"Suite {md(suite.get('name'))}, version {md(suite.get('version'))}."]
    lines += [f"Sha256 of the subject: {md(subject.get('sha256'))}."]
    lines += [f"Content hash of audit.json: {md(audit.get(seal.HASH))}."]
    return "\n".join([f"## Forgetting audit: {audit['verdict']}", "", *lines, ""])


def line(audit: Json) -> str:
    """The audit in one line: verdict, claims, each concept's rate, suite, subject and hash.

    Raises ValueError as `sentence` does.
    """
    seal.coherent(audit, "audit")
    statuses = [claim["status"] for claim in audit["claims"]]
    tally = ", ".join(f"{statuses.count(status)} {status}" for status in reversed(seal.VERDICTS))
    parts = [f"{audit['verdict']}: {tally}"]
    for concept in concepts_of(audit):
        raw, upper = measured(concept["direct"]), ends(concept["direct"].get("corrected_ci95"))
        said = f"{concept['name']} {count(raw['k'])} of {count(raw['n'])}"
        said += f", {percent(raw['rate'], raw['ci95'])}"
        said += f", corrected up to {percent(upper[1])}" if upper else ""
        seen = measured((part(audit, "review").get(concept["name"]) or {}).get("random"))
        parts.append(
            said + (f", people {count(seen['k'])} of {count(seen['n'])}" if seen["n"] else "")
        )
    suite, subject = audit.get("suite") or {}, audit.get("subject") or {}
    parts += [f"suite {plain(suite.get('name'))} {plain(suite.get('version'))}"]
    parts += [f"subject {plain(subject.get('sha256'))[:12]}"]
    parts += [f"audit {plain(audit.get(seal.HASH))}"]
    return " ".join("; ".join(parts).split())
