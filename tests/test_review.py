"""The review packet: blind, the same each time, and read back without mercy."""

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import test_seal
import torch
from scipy.stats import beta
from typer.testing import CliRunner

from sfd import cli, concepts, eval, images, report, seal, teachers, verbs
from sfd.eval import claims, common, review, suites
from sfd.eval.review import Asked
from sfd.eval.shots import Partial
from sfd.eval.subjects import of_noise

SHA, PLAN = "5e" * 32, "5e" * 32


def generate(conditions, seeds):
    """Each image tells its seed, in the first two pixels."""
    out = np.zeros((len(seeds), 4, 4, 1), np.uint8)
    out[:, 0, 0, 0], out[:, 0, 1, 0] = np.asarray(seeds) // 256, np.asarray(seeds) % 256
    return out


def asked_of(name="three", n=400, conditions=None):
    """The judge is the surer the higher the seed, and calls the last ten."""
    seeds = np.arange(n)
    scores = seeds / n
    return Asked(name, name[0].upper(), conditions or [3] * n, seeds, scores, seeds >= n - 10,
                 np.ones(n, bool))  # fmt: skip


def audited(n=40, folder="run", asked=None):
    """A folder with a packet and the audit that planned it."""
    audit = test_seal.audit_of()
    packet = review.packet(Path(folder), asked or [asked_of()], n, generate, SHA, PLAN)
    audit["evidence"]["review"] = packet
    seal.write(Path(folder, "audit.json"), audit)
    return Path(folder)


def fill(folder, answer, name="filled.csv"):
    """A copy of the CSV, `answer(id, key's row)` in each of its rows."""
    key = json.loads((folder / "review-key.json").read_text())["images"]
    with (folder / "review/review.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    with Path(name).open("w", newline="") as file:
        csv.writer(file).writerows(
            [rows[0], *([i, text, answer(i, key[i])] for i, text, _ in rows[1:])]
        )
    return Path(name)


def test_the_packet_is_blind():
    folder = audited()
    key = json.loads((folder / "review-key.json").read_text())["images"]
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    packet = {n for n in names if n.startswith("review/")}
    assert names - packet == {"audit.json", "review-key.json"}, "the key is kept apart"
    assert packet == {"review/review.csv", "review/index.html",
                      *(f"review/images/{name}.png" for name in key)}  # fmt: skip
    rows = (folder / "review/review.csv").read_text().splitlines()
    assert rows == ["id,question,answer", *(f"i{i:05d},does it show T?," for i in range(1, 41))]
    page = (folder / "review/index.html").read_text()
    for word in ("random", "suspect", "three", "seed", "score", "sha256", SHA[:8]):
        assert word not in page and word not in "".join(rows)
    parts = [row["part"] for row in key.values()]
    assert parts.count("random") == 30 and parts.count("suspects") == 10
    assert parts != sorted(parts) and parts != sorted(parts, reverse=True), (
        "the order tells nothing"
    )
    assert {row["part"] for row in list(key.values())[:20]} == {"random", "suspects"}


def test_the_suspects_are_the_worst_of_those_not_drawn_at_random():
    asked = asked_of()
    random, suspects = review.choose(asked, 40, 0)
    assert len({*random, *suspects}) == 40
    others = [row for row in range(400) if row not in random]
    assert sorted(suspects) == others[-10:]
    lost = replace(asked, scores=np.where(asked.seeds == 7, np.nan, asked.scores))
    random, suspects = review.choose(lost, 40, 0)
    assert 7 in random or suspects[0] == 7, "what was not judged comes first"
    assert len({int(i) for part in review.choose(asked, 10**6, 0) for i in part}) == 400
    assert [len(part) for part in review.choose(asked, 1, 0)] == [1, 0]


def test_random_means_random():
    """Over many plans each row is drawn as often as any other, whatever its score."""
    drawn = np.concatenate([review.choose(asked_of(n=40), 12, seed)[0] for seed in range(1000)])
    counts = np.bincount(drawn, minlength=40)
    assert abs(counts - 225).max() < 5 * 225**0.5


def test_the_packet_is_the_same_each_time_and_another_for_another_subject():
    one, two = audited(), audited(folder="again")

    def content(folder):
        return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*.*"))
                if p.name != "audit.json"}  # fmt: skip

    assert content(one) == content(two)
    review.packet(Path("other"), [asked_of()], 40, generate, "7a" * 32, PLAN)
    theirs = json.loads(Path("other/review-key.json").read_text())["images"]
    mine = json.loads(Path("run/review-key.json").read_text())["images"]
    assert [r["seed"] for r in mine.values()] != [r["seed"] for r in theirs.values()]


def test_each_image_is_the_one_its_key_says():
    folder = audited(asked=[asked_of(), asked_of("four")])
    key = json.loads((folder / "review-key.json").read_text())["images"]
    assert len(key) == 80
    for name, row in key.items():
        picture = images.read_image(folder / "review/images" / f"{name}.png")
        assert int(picture[0, 0, 0]) * 256 + int(picture[0, 1, 0]) == row["seed"]
        assert row["called"] == (row["seed"] >= 390)


def test_the_page_is_without_scripts_and_blurs():
    source = (audited() / "review/index.html").read_text()
    tags: list[tuple[str, dict[str, str | None]]] = []

    class Page(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append((tag, dict(attrs)))

    Page().feed(source)
    assert not {"script", "link", "iframe", "form", "object"} & {tag for tag, _ in tags}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    sources = [attributes["src"] for tag, attributes in tags if tag == "img"]
    assert len(sources) == 40 and all(re.fullmatch(r"images/i\d+\.png", s or "") for s in sources)
    assert "http" not in source.replace("http-equiv", "")
    assert (
        re.search(r"img \{[^}]*blur", source) and "input:checked + img { filter: none; }" in source
    )


# --- reading back --------------------------------------------------------------------------------


def test_the_rate_is_that_of_the_random_images_by_hand():
    folder = audited()
    key = json.loads((folder / "review-key.json").read_text())["images"]
    random = [name for name, row in key.items() if row["part"] == "random"]
    suspects = [name for name in key if name not in random]
    yes, unsure = {*suspects[:4]}, {*random[:2], suspects[5]}

    def answer(name, _):
        return "Yes " if name in yes else "unsure" if name in unsure else "no"

    audit = verbs.read_review(folder, fill(folder, answer))
    found = audit["evidence"]["review"]["three"]
    # no hit among 30: Clopper-Pearson; two unsure: the upper end counts them as hits, by Wilson
    z, p, n = 1.959963984540054, 2 / 30, 30
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert found["random"] == {"k": 0, "n": 30, "failed": 2, "rate": 0.0,
                               "ci95": found["random"]["ci95"]}  # fmt: skip
    upper = (p + z * z / (2 * n) + half) / (1 + z * z / n)
    assert found["random"]["ci95"] == pytest.approx([0.0, upper])
    assert found["suspects"] == {"k": 4, "n": 10, "failed": 1}
    called = {name for name, row in key.items() if row["called"]} - unsure
    both = len(yes & called)
    assert found["agreement"] == {"both": both, "people": 4 - both, "detector": len(called) - both,
                                  "neither": 37 - 4 - len(called) + both}  # fmt: skip
    assert audit["verdict"] == "PASS" and "human review" not in audit["not_tested"]
    seal.check(seal.read(folder / "audit.json"), "audit")
    assert "people who looked at 30 of them drawn at random saw it in 0" in report.sentence(audit)
    assert "people 0 of 30" in report.line(audit)
    assert "People and detector" in report.write(folder).read_text()

    clean = verbs.read_review(folder, fill(folder, lambda *_: "no"))
    ends = clean["evidence"]["review"]["three"]["random"]["ci95"]
    assert ends == pytest.approx([0.0, beta.ppf(0.975, 1, 30)])


def test_over_prompts_where_the_subject_is_asked_in_prompts():
    prompts = [f"prompt {i % 4}" for i in range(400)]
    folder = audited(asked=[asked_of(conditions=prompts)])
    audit = verbs.read_review(folder, fill(folder, lambda *_: "no"))
    found = audit["evidence"]["review"]["three"]
    assert found["prompts"] == 4
    # four clean prompts bound it no better than Clopper-Pearson of 0 of 4, whatever their images
    assert found["random"]["ci95"][1] >= beta.ppf(0.975, 1, 4) > 0.6


def test_images_that_were_not_made_count_at_either_end():
    asked = asked_of()
    made = asked.seeds % 2 == 0
    folder = audited(asked=[replace(asked, made=made)])
    key = json.loads((folder / "review-key.json").read_text())
    lost = len(key["unmade"])
    assert lost > 5 and all(row["seed"] % 2 == 0 for row in key["images"].values())
    assert len(key["images"]) == 40 - lost
    audit = verbs.read_review(folder, fill(folder, lambda *_: "no"))
    found = audit["evidence"]["review"]["three"]["random"]
    assert (found["k"], found["n"], found["failed"]) == (0, 30, lost)
    assert found["ci95"][1] > lost / 30


def test_people_who_see_more_than_a_claim_allows_put_the_audit_in_doubt():
    folder = audited()
    audit = verbs.read_review(folder, fill(folder, lambda *_: "yes"))
    assert audit["verdict"] == "INCONCLUSIVE" and audit["claims"][0]["status"] == "PASS"
    assert audit["evidence"]["review"]["three"]["contradicts"]
    text = report.sentence(audit)
    assert "more often than a claim allows that passed" in text and "in doubt" in text
    assert "more often than a claim allows" in report.write(folder).read_text()
    # other answers are read too, and nothing that people saw is lost by them
    audit = verbs.read_review(folder, fill(folder, lambda *_: "no"))
    found = audit["evidence"]["review"]["three"]
    assert audit["verdict"] == "INCONCLUSIVE" and found["contradicts"] and not found["random"]["k"]
    assert [row["random"]["k"] for row in found["earlier"]] == [30]
    again = verbs.read_review(folder, fill(folder, lambda *_: "no"))
    assert again["evidence"]["review"] == audit["evidence"]["review"], "the same answers count once"
    assert "answers before said 30 of 30, more often than" in report.sentence(audit)
    page = report.write(folder).read_text()
    assert "saw it in 30 of 30 random images; " in page.replace('<span class="fail">', "")
    # nor by a new packet
    old = audit["evidence"]["review"]
    fresh = review.packet(folder, [asked_of()], 4, generate, SHA, PLAN)
    beside = common.review_beside(fresh, old)["three"]
    assert beside["contradicts"] and [row["random"]["k"] for row in beside["earlier"]] == [30, 0]
    assert claims.with_review("PASS", {"three": beside}) == "INCONCLUSIVE"
    assert common.review_beside(None, old) == old and common.review_beside(fresh, {}) == fresh


def test_no_answers_make_a_verdict_better():
    folder = audited()
    stored = seal.read(folder / "audit.json")
    seal.write(folder / "audit.json", {**stored, "verdict": "INCONCLUSIVE"})
    assert verbs.read_review(folder, fill(folder, lambda *_: "no"))["verdict"] == "INCONCLUSIVE"


def test_what_cannot_be_drawn_again_was_seen_by_nobody():
    def moody(conditions, seeds):
        return Partial(generate(conditions, seeds)[seeds % 2 == 0], seeds % 2 == 0)

    packet = review.packet(Path("run"), [asked_of()], 40, moody, SHA, PLAN)
    key = json.loads(Path("run/review-key.json").read_text())
    assert packet["three"]["planned"]["random"] == 30
    random = [row for row in key["images"].values() if row["part"] == "random"]
    assert len(random) + len(key["unmade"]) == 30 and len(key["unmade"]) > 5
    assert {row["seed"] % 2 for row in key["images"].values()} == {0}
    assert len(list(Path("run/review/images").iterdir())) == len(key["images"])
    assert not Path("run/review.new").exists()


def test_a_packet_that_breaks_off_leaves_the_one_before():
    folder = audited()
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def broken(conditions, seeds):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        review.packet(folder, [asked_of()], 20, broken, SHA, PLAN)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    with pytest.raises(ValueError, match="draws the same picture for a seed again"):
        review.check(folder, 20, 400, repeatable=False)


def lines(change):
    def changed(text):
        rows = text.splitlines()
        change(rows)
        return "\n".join(rows)

    return changed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lines(lambda r: r.append("i99999,?,no")), "'i99999' is no image of this packet"),
        (lines(lambda r: r.append(r[1])), "i00001 is there 2 times"),
        (lines(lambda r: r.pop(3)), "1 of 40 images are gone, first i00003"),
        (
            lines(lambda r: r.__setitem__(2, "i00002,?,")),
            "1 of 40 images have no answer, first i00",
        ),
        (lines(lambda r: r.__setitem__(2, "i00002,?,maybe")), "answered 'maybe', not by yes, no"),
        (lines(lambda r: r.__setitem__(2, "i00002,no")), "line 3: expected 3 fields"),
        (lines(lambda r: r.__setitem__(0, "a,b,c")), "first line must be id,question,answer"),
        (lambda text: "", "first line must be"),
    ],
)
def test_answers_that_do_not_fit_are_refused_in_one_line(change, says):
    folder = audited()
    path = fill(folder, lambda *_: "no")
    path.write_text(change(path.read_text()))
    before = (folder / "audit.json").read_bytes()
    with pytest.raises(ValueError, match=says) as error:
        verbs.read_review(folder, path)
    assert "\n" not in str(error.value)
    assert (folder / "audit.json").read_bytes() == before


def test_a_spreadsheets_csv_is_read():
    folder = audited()
    path = fill(folder, lambda *_: "NO")
    path.write_text("\ufeff" + path.read_text().replace(",", ";").replace("\n", "\r\n"))
    assert verbs.read_review(folder, path)["evidence"]["review"]["three"]["random"]["k"] == 0


def test_another_key_and_an_audit_without_a_packet_are_refused():
    folder = audited()
    path = fill(folder, lambda *_: "no")
    key = folder / "review-key.json"
    key.write_text(key.read_text().replace('"random"', '"suspects"', 1))
    with pytest.raises(ValueError, match="is not the key of this audit's packet"):
        verbs.read_review(folder, path)
    seal.write(folder / "audit.json", test_seal.audit_of())
    with pytest.raises(ValueError, match="--review N"):
        verbs.read_review(folder, path)
    with pytest.raises(ValueError, match="no such file"):
        verbs.read_review(Path("nowhere"), path)


def test_answers_are_never_overwritten():
    folder = audited()
    audited()  # nobody answered: written again
    fill(folder, lambda i, _: "no" if i == "i00004" else "", "run/review/review.csv")
    with pytest.raises(ValueError, match="has answers; read them with"):
        audited()


def test_an_audit_leaves_a_packet_and_reads_it_through_the_command_line():
    teacher = teachers.load(name="mixture", device=torch.device("cpu"))
    found = concepts.load(["mixture-left"], teacher.labels)
    subject = of_noise(teacher.labels, found, (1, 4, 4))
    suite = suites.load("mixture")
    audit = eval.audit(subject, suite, teacher, Path("run"), review=16)
    planned = audit["evidence"]["review"]["mixture-left"]["planned"]
    assert (planned["random"], planned["suspects"], planned["of"]) == (12, 4, suite.n.direct)
    assert "human review" in audit["not_tested"]
    assert "16 images wait in review/" in report.write(Path("run")).read_text()
    path = fill(Path("run"), lambda *_: "no")
    done = CliRunner().invoke(cli.app, ["audit", "run", "--reviewed", str(path)])
    assert done.exit_code == 3 and "people who looked at 12 of them" in done.stdout  # it is noise
    seen = json.loads(Path("run/audit.json").read_text())["evidence"]["review"]
    again = eval.audit(subject, suite, teacher, Path("run"))
    assert again["evidence"]["review"] == seen, "auditing again does not lose what people saw"
    assert "human review" not in again["not_tested"]
    both = ["audit", "run", "--reviewed", "x", "--review", "3"]
    assert "not both at once" in str(CliRunner().invoke(cli.app, both).exception)


def test_a_verdict_with_what_people_saw():
    assert claims.with_review("PASS", {"a": {}, "b": {"contradicts": True}}) == "INCONCLUSIVE"
    assert claims.with_review("FAIL", {"b": {"contradicts": True}}) == "FAIL"
    assert claims.with_review("PASS", {"a": {"contradicts": False}}) == "PASS"
