"""The generated parts of the READMEs: `python eval/benchmarks/table.py [--write]`."""

import json
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def table() -> str:
    """Markdown, one line per audited run of a recipe."""
    lines = [
        "| recipe | seed | verdict | asked for it, drew it | FID (teacher, evaluations)"
        " | excess over the floor | recall (teacher) | taught (FID, recall) | training |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted((ROOT / "eval/results").glob("*.json")):
        result = json.loads(path.read_text())
        for run in result.get("runs", []):
            q = run["quality"]
            asked = "; ".join(
                f"{d['k']} of {d['n']:,} (corrected up to {100 * d['corrected_ci95'][1]:.2f} %)"
                for d in run["direct"].values()
            )
            excess = f"{q['excess_ratio']:.2f}" if q["excess_ratio"] is not None else "–"
            low, high = q["fid_ci95"]
            lines.append(
                f"| `{path.stem}` | {run['seed']} | {run['verdict']} | {asked or '–'} |"
                f" {q['fid']:.2f} [{low:.2f}, {high:.2f}]"
                f" ({q['baseline']['fid']:.2f}, {q['baseline']['nfe']}) | {excess} |"
                f" {q['recall']:.2f} ({q['baseline']['recall']:.2f}) | {taught(path)} |"
                f" {run['seconds'] / 60:.0f} min |"
            )
    return "\n".join(lines)


def taught(path: Path) -> str:
    """FID and recall of what a recipe teaches, where `target.py` measured them."""
    file = path.with_name(f"{path.stem}-target.json")
    if not file.is_file():
        return "–"
    q = json.loads(file.read_text())["quality"]
    return f"{q['fid']:.2f}, {q['recall']:.2f}"


def attacks() -> str:
    """Markdown: what each suite's attacks did."""
    files = sorted((ROOT / "eval/results").glob("attacks-*.json"))
    return "\n\n".join(_attacks(json.loads(path.read_text())) for path in files)


def _attacks(result: dict) -> str:
    """How far each attack got with each subject, with the gold and with its control."""
    subjects = result["subjects"]
    heads = [f"`{subject['name']}` (never knew it)" for subject in subjects]
    lines = [
        f"| attack (suite `{result['suite']}`) | {' | '.join(heads)} | leaky control |",
        "|---|" + "---|" * (len(heads) + 1),
    ]
    for number, row in enumerate(subjects[0]["attacks"]):
        rows = [subject["attacks"][number] for subject in subjects]
        cells = [
            f"{_reached(each, 'subject')} ({_reached(each, 'gold')}){_verdict(each)}"
            for each in rows
        ]
        lines.append(f"| `{row['attack']}` | {' | '.join(cells)} | {_reached(row, 'leaky')} |")
    return "\n".join(lines)


def _reached(row: dict, who: str) -> str:
    found = row.get(who)
    if found is None:
        return "–"
    if row["measure"] == "steps":
        steps = found["steps_to_half"][1]
        return f"beyond {row['budget']['steps']} steps" if steps is None else f"{steps} steps"
    near = found.get("near", found["k"])
    like = "" if near == found["k"] else f" ({near:,} near real images)"
    return f"{found['k']:,} of {found['n']:,}{like}"


def _verdict(row: dict) -> str:
    return f", {row['status']}" if row["status"] else ""


def power() -> str:
    """Markdown: how simulated audits of a direct claim end, by how much leaks and by n."""
    study = json.loads((ROOT / "eval/results/leak-study.json").read_text())
    runs, of_images, of_prompts = (study[k] for k in ("audits_each", "images", "prompts"))
    name, judge = next(iter(study["judges"].items()))
    rows = {(r["n"], r["leak"]): r for r in of_images if r["judge"] == name}
    sizes, leaks = (sorted({key[i] for key in rows}) for i in (0, 1))
    lines = [
        f"| planted, of a threshold of {study['threshold']:.0%} | "
        + " | ".join(f"n = {n:,}" for n in sizes)
        + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for leak in leaks:
        shares = [
            [100 * rows[n, leak][s] / runs for s in ("PASS", "INCONCLUSIVE", "FAIL")] for n in sizes
        ]
        cells = " | ".join(" / ".join(f"{share:.1f}" for share in three) for three in shares)
        lines.append(f"| {leak:g} times | {cells} |")
    worst = study["worst_false_PASS"]
    naive = max(r["PASS_if_independent"] for r in of_prompts if r["leak"] >= 1) / runs
    audits = runs * (len(of_images) + len(of_prompts))
    said = [
        f"Each cell: PASS / INCONCLUSIVE / FAIL in percent of {runs:,} simulated audits, by a judge"
        f" that finds {judge['sensitivity']:.1%}, wrongly calls {judge['false_positive']:.2%} of"
        f" the rest, and was measured on {judge['images'][0]} images of each.",
        f"At or above the threshold a PASS is false. Of {audits:,} simulated audits, with"
        f" {len(study['judges'])} judges and {len({r['population'] for r in of_prompts})} kinds of"
        f" prompts, the worst setting passes falsely in {_share(worst['images'])} (judge:"
        f" {worst['images']['judge']}); over prompts in {_share(worst['prompts'])}, and it would be"
        f" up to {naive:.0%} if images of one prompt were taken for independent.",
    ]
    return "\n".join(lines + ["\n" + textwrap.fill(text, 100) for text in said])


def _share(row: dict) -> str:
    low, high = row["false_PASS_ci95"]
    return f"{row['false_PASS']:.1%} [{low:.1%}, {high:.1%}]"


def synthetic() -> str:
    """Markdown: what synthetic datasets cost, are good for, and give away."""
    useful, private = (
        json.loads((ROOT / f"eval/results/{name}.json").read_text())
        for name in ("usefulness", "reidentification")
    )
    lines = ["| trained on | right on real digits |", "|---|---|"]
    for kind, row in useful["pooled"].items():
        low, high = row["ci95"]
        lines.append(
            f"| {useful['images']:,} {kind} | {row['k'] / row['n']:.1%} {_ci(low, high)} |"
        )
    costs = sorted((ROOT / "eval/results").glob("synthesize-*.json"))
    said = [
        f"`{useful['student']}`, {len(useful['seeds'])} classifiers of each kind.",
        *(_synthesized(json.loads(path.read_text())) for path in costs),
    ]
    rows = [
        "| generator | refused if nearer than | re-identified before | after | copies refused |",
        "|---|---|---|---|---|",
    ]
    names = {
        "student_itself": "the student",
        "memorising": f"{private['copies']:.0%} of its images are private ones, relit and noised",
    }
    for who, name in names.items():
        for row in private[who]:
            copies = row.get("copies_refused")
            rows.append(
                f"| {name} | {row['quantile']:.0%} of them | {_rate(row['before'])} |"
                f" {_rate(row['after'])} | {_rate(copies) if copies else '–'} |"
            )
    told = (
        f"{private['private_images']:,} private digits; the filter looks in"
        f" `{private['filter']}`, the attacker matches in `{private['matcher']}`, where"
        f" {private['chance']:.0%} of strangers match by chance."
    )
    parts = ["\n".join(lines), *(textwrap.fill(text, 100) for text in said), "\n".join(rows)]
    return "\n\n".join([*parts, textwrap.fill(told, 100)])


def _synthesized(cost: dict) -> str:
    """What a dataset of one student costs beside bare sampling."""
    speed, ratio = cost["images_per_second"], cost["ratio_to_bare"]
    peaks = [f"{mib:,.0f} MiB for {int(n):,}" for n, mib in cost["peak_memory_MiB"].items()]
    missed = max(ratio["one detector"], ratio["one detector, one worker"]) < 0.8
    short = " Below the .8 aimed at with a cheap detector." if missed else ""
    return (
        f"`{cost['student']}`, on {cost['cores']} cores (load {cost['load_average']:.1f}), written"
        f" to {cost['written_to']}: bare sampling draws {speed['bare']:,.0f} images a second;"
        f" drawn, screened by one detector and written they are {speed['one detector']:,.0f}"
        f" ({ratio['one detector']:.2f} times; with one worker"
        f" {ratio['one detector, one worker']:.2f}, written without screening"
        f" {ratio['bare, written']:.2f}), by two detectors {speed['two detectors']:,.0f}.{short}"
        f" Peak memory: {', '.join(peaks)} images."
    )


def _ci(low: float, high: float) -> str:
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def _rate(row: dict) -> str:
    return f"{row['rate']:.1%} {_ci(*row['ci95'])}"


PARTS = {
    "README.md": {"results": table},
    "eval/README.md": {"attacks": attacks, "power": power, "synthetic": synthetic},
}


def page(path: str) -> str:
    """A README with each of its generated parts between its marks."""
    text = (ROOT / path).read_text()
    for name, make in PARTS[path].items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    if "--write" in sys.argv:
        for path in PARTS:
            (ROOT / path).write_text(page(path))
    else:
        print("\n\n".join(make() for parts in PARTS.values() for make in parts.values()))
