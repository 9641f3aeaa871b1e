"""What an audit found, in sentences."""

from sfd.report.numbers import count, ends, finite, measured, percent, plain, say
from sfd.report.parts import Json, collateral_of, concepts_of, part
from sfd.seal import VERDICTS

SAID = {"FAIL": "failed", "INCONCLUSIVE": "undecided"}
THREATS = {
    "api": "an attacker who sends conditions and sees the images",
    "open-weights": "an attacker who holds the weights",
}


def sentences(audit: Json) -> list[str]:
    """A sentence per concept, then one on the verdict."""
    clauses = [
        [*_asked(c), *_looked(audit, c["name"]), *_attacked(audit, c["name"])]
        for c in concepts_of(audit)
    ] or [[]]
    clauses[-1] += [] if part(audit, "attacks") else ["no attack was tried"]
    clauses[-1] += _harmed(audit)
    found = ["; ".join(clause) + "." for clause in clauses]
    ids = {s: [str(c.get("id")) for c in audit["claims"] if c["status"] == s] for s in VERDICTS}
    text = f"{len(ids['PASS'])} of {len(audit['claims'])} claims passed"
    for status in SAID:
        if ids[status]:
            text += f", {len(ids[status])} {SAID[status]} ({', '.join(ids[status])})"
    if audit["claims"] and audit["verdict"] != next(status for status in VERDICTS if ids[status]):
        text += (
            ", but the audit itself is in doubt (its controls, its coverage, or what people saw)"
        )
    model = str(audit.get("threat_model"))
    text += f"; tested against {THREATS.get(model, 'an attacker')} (threat model {model})"
    closing = f"Verdict {audit['verdict']}: {text}; it says nothing beyond that."
    return [*(s[:1].upper() + s[1:] for s in found), closing]


def _asked(concept: Json) -> list[str]:
    name, direct = f"\u201c{concept['label_name']}\u201d", concept["direct"]
    raw, upper = measured(direct), ends(direct.get("corrected_ci95"))
    if raw["k"] is None or not raw["n"]:
        return [f"the generator was never asked for {name}, so nothing is known of it"]
    images = {0: "no image", 1: "1 image"}.get(raw["k"], f"{count(raw['k'])} images")
    text = f"asked for {name} {count(raw['n'])} times, the generator drew {images} in which the"
    text += f" detector found it: {percent(raw['rate'], raw['ci95'])}, "
    if upper:
        text += f"up to {percent(upper[1])} once the detector\u2019s own errors are counted"
    else:
        text += "and the detector\u2019s own errors were not measured"
    before, failed = measured(direct.get("baseline"))["rate"], finite(direct.get("failed"))
    text += "" if before is None else f" (the original, asked the same: {percent(before)})"
    return [text, f"{count(failed)} images could not be made or judged"][: 2 if failed else 1]


def _looked(audit: Json, name: str) -> list[str]:
    review = part(audit, "review").get(name) or {}
    found = measured(review.get("random"))
    texts = []
    if found["n"]:
        text = f"people who looked at {count(found['n'])} of them drawn at random saw it in"
        texts.append(f"{text} {count(found['k'])}: {percent(found['rate'], found['ci95'])}")
    said = [measured(each.get("random")) for each in review.get("earlier") or []]
    texts += [f"answers before said {count(one['k'])} of {count(one['n'])}" for one in said]
    if review.get("contradicts"):
        texts[-1] += ", more often than a claim allows that passed"
    return texts


def _attacked(audit: Json, name: str) -> list[str]:
    tried = [a for a in part(audit, "attacks") if a.get("concept") == name]
    tried = [a for a in tried if a.get("measure") != "steps"]  # who trains finds it in the end
    rates = [(measured(a), a) for a in tried if measured(a)["rate"] is not None]
    if not rates:
        return []
    found, attack = max(rates, key=lambda pair: pair[0]["rate"])
    text = f"the hardest attack ({plain(attack.get('name'))}) found it in {count(found['k'])} of"
    gold = measured((attack.get("controls") or {}).get("gold"))
    never = f", against {count(gold['k'])} of {count(gold['n'])} in a model that never knew it"
    return [f"{text} {count(found['n'])} tries" + (never if gold["n"] else "")]


def _harmed(audit: Json) -> list[str]:
    rows = {row["name"]: row.get("accuracy") or {} for row in collateral_of(audit)}
    rows = {name: a for name, a in rows.items() if finite(a.get("difference")) is not None}
    if not rows:
        return []
    name = min(rows, key=lambda name: rows[name]["difference"])
    span = ends(rows[name].get("ci95"))
    mirrored = span and (-span[1], -span[0])
    loss = say(-rows[name]["difference"], mirrored, 100, 1, " points", "-")
    return [f"of {len(rows)} retained classes the most harmed ({name}) lost {loss}"]
