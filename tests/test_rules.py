"""Forgetting rules: each formula on tensors, what a student learns by it, every objective."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from sfd import cli, configs, forgetting, jobs, objectives, runs, sample, teachers, verbs
from sfd import train as training
from sfd.classifiers import Card, cards
from sfd.concepts import Concept, PromptConcept
from sfd.concepts.prompts import Prompt
from sfd.forgetting import Batch
from sfd.teachers import Teacher, mixture

CPU = torch.device("cpu")
LABELS = ("a", "b", "c")
MEANS = np.array([[0.5, 0.3], [-0.4, 0.3], [0.1, -0.6]])
BASIS = np.array([[0.15, 0.05], [0.05, -0.15]])
COVARIANCE = BASIS @ BASIS.T + 0.05**2 * np.eye(2)

JUDGE = f"""
import numpy as np
from sfd.classifiers import Network
MEANS = np.array({MEANS.tolist()})
def nearest(card, folder, device):
    (folder / "loaded").open("a").write("x")
    def probabilities(images):
        points = images.reshape(len(images), 1, 2) / 127.5 - 1
        p = np.exp(-((points - MEANS) ** 2).sum(2))
        p = np.concatenate([p, np.full((len(p), 1), 9.0)], 1)
        return (p / p.sum(1, keepdims=True)).astype(np.float32)
    return Network(probabilities)
"""


def build(width: int = 48) -> Teacher:
    """Three classes of one covariance, so that a guided target is a Gaussian as well."""
    bases = np.broadcast_to(BASIS, (3, 1, 2, 2))
    return mixture.build(
        means=MEANS[:, None], bases=bases, labels=LABELS, shape=(1, 1, 2), width=width, device=CPU
    )


@pytest.fixture
def judge(tmp_path) -> str:
    """A classifier with the three labels and one that no teacher has; it marks each loading."""
    (tmp_path / "judge.py").write_text(JUDGE)
    card = Card(version=1, name="points", task="classify", labels=[*LABELS, "none of them"],
                licence="own", backend=f"{tmp_path}/judge.py:nearest")  # fmt: skip
    cards.save(tmp_path / "classifiers" / "points", card)
    return "points"


def concept(label: int, instead: int, classifier: str = "none") -> Concept:
    return Concept(f"no-{LABELS[label]}", label, LABELS[label], {instead: 1.0}, classifier)


def batch_of(student, target, forget) -> Batch:
    ones = torch.ones(len(forget))
    return Batch(student, student, target, torch.tensor(forget), ones, ones)


CLASSES = batch_of([0, 2, 0, 1], [1, 2, 1, 1], [True, False, True, False])
X = torch.randn(4, 1, 1, 2, generator=torch.Generator().manual_seed(0))
SIGMA = torch.tensor([0.3, 1.0, 2.0, 0.5])


# --- prompts without a network -------------------------------------------------------------------


class Echo(nn.Module):
    """A denoiser whose answer is its condition, so that a target shows what was asked."""

    def forward(self, x, sigma, cond):
        return cond + 0 * x


def words(raw):
    """A condition per prompt: which of these words stand in it."""
    known = ("shoe", "hat", "bag", "red", "blue", "green", "lace", "sole", "thing")
    rows = [[float(w in (p or "").replace(",", "").split()) for w in known] for p in raw]
    return torch.tensor(rows).reshape(len(rows), 1, 1, 9)


def prompt_teacher() -> Teacher:
    return Teacher("echo", Echo(), words, Echo, (1, 1, 9), (), {}, "0" * 64,
                   decode=lambda x0: np.zeros((len(x0), 1, 2, 1), np.uint8))  # fmt: skip


SHOE = PromptConcept(
    "shoe", "shoe", "hat", ("a red shoe", "a shoe"), ("a red hat", "a hat"), {"shoe": "hat"},
    ("lace", "sole"), (), (Prompt("the thing"),), "shapes",
)  # fmt: skip
RED = PromptConcept(
    "red", "red", "blue", ("a red shoe", "a red bag"), ("a blue hat", "a blue bag"),
    {"red": "blue"}, ("red",), (), (Prompt("it is red"),), "colours",
)  # fmt: skip
PROMPTS = batch_of(
    ["a red shoe", "a green bag", "a red bag"],
    ["a blue hat", "a green bag", "a blue bag"],
    [True, False, True],
)


def asked(rule, batch=PROMPTS):
    x = torch.zeros(len(batch.student), 1, 1, 9)
    return rule.target(x, torch.ones(len(x)), batch, x).detach()


def shapes_and_colours(tmp_path):
    """Judges that always prefer the forgotten, then 'bag' and 'green'."""
    (tmp_path / "fixed.py").write_text(
        "import numpy as np\nfrom sfd.classifiers import Network\n"
        "def fixed(card, folder, device):\n"
        "    return Network(lambda i: np.tile(np.float32([.6, .1, .3]), (len(i), 1)))\n"
    )
    for name, labels in (("shapes", ["shoe", "hat", "bag"]), ("colours", ["red", "blue", "green"])):
        card = Card(version=1, name=name, task="classify", labels=labels, licence="own",
                    backend=f"{tmp_path}/fixed.py:fixed")  # fmt: skip
        cards.save(tmp_path / "classifiers" / name, card)


# --- formulas ------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_negative_is_the_formula_and_spares_retained_rows(guidance):
    plain = build()
    guided = teachers.guided(plain.denoiser, plain.encode([None]), guidance)
    rule = forgetting.negative(replace(plain, denoiser=guided), [concept(0, 1)], k=2.5)
    found = rule.target(X, SIGMA, CLASSES, X)
    bad = plain.denoiser(X, SIGMA, plain.encode([0] * 4))
    good = plain.denoiser(X, SIGMA, plain.encode([1] * 4))
    kept = guided(X, SIGMA, plain.encode([None, 2, None, 1]))
    forget = CLASSES.is_forget
    assert torch.allclose(found[forget], (bad + 2.5 * (good - bad))[forget], atol=1e-6)
    assert torch.allclose(found[~forget], kept[~forget], atol=1e-6)
    x = X.clone().requires_grad_()
    rule.target(x, SIGMA, CLASSES, x).sum().backward()
    assert x.grad is not None and (x.grad.abs().flatten(1).sum(1) > 0).all()


def test_negative_takes_the_words_of_every_concept_that_a_prompt_asks_for():
    teacher, k = prompt_teacher(), 3.0
    found = asked(forgetting.negative(teacher, [SHOE, RED], k=k))
    away, safe = words(["lace, sole, red", "", "red"]), words(PROMPTS.target)
    wanted = torch.where(PROMPTS.is_forget.reshape(3, 1, 1, 1), away + k * (safe - away), safe)
    assert torch.equal(found, wanted)
    with pytest.raises(ValueError, match="concept shoe has no `negative` prompts"):
        forgetting.negative(teacher, [replace(SHOE, negative=()), RED])


@pytest.mark.parametrize(("to", "label"), [(2, 2), ("c", 2), (None, None)])
def test_anchor_asks_for_one_condition_in_the_forget_rows(to, label):
    teacher = build()
    found = forgetting.anchor(teacher, [concept(0, 1)], to=to).target(X, SIGMA, CLASSES, X)
    wanted = teacher.denoiser(X, SIGMA, teacher.encode([label, 2, label, 1]))
    assert torch.equal(found, wanted)
    prompted = asked(forgetting.anchor(prompt_teacher(), [SHOE], to="a thing" if to else None))
    assert torch.equal(prompted, words(["thing" if to else None, "green bag"] + ["thing"] * bool(to)
                                       + [None] * (not to)))  # fmt: skip


@pytest.mark.parametrize(
    ("teacher", "gone", "to", "says"),
    [
        (build, concept(0, 1), "a", "'a' is not retained"),
        (build, concept(0, 1), 0, "'a' is not retained"),
        (build, concept(0, 1), 3, "has no class 3"),
        (build, concept(0, 1), "bb", "did you mean 'b'"),
        (build, concept(0, 1), True, "has no class True"),
        (prompt_teacher, SHOE, "one Shoe", "asks for what shoe forgets"),
        (prompt_teacher, SHOE, "the thing", "is audited with"),
        (prompt_teacher, SHOE, " ", "is not a prompt"),
        (prompt_teacher, SHOE, 3, "is not a prompt"),
    ],
)
def test_an_anchor_must_be_retained(teacher, gone, to, says):
    with pytest.raises(ValueError, match=says) as error:
        forgetting.anchor(teacher(), [gone], to=to)
    assert "\n" not in str(error.value)


def test_pseudo_label_is_what_the_judge_calls_without_the_forgotten(judge, tmp_path):
    teacher = build()
    rule = forgetting.pseudo_label(teacher, [concept(0, 1, judge)])
    marks = tmp_path / "classifiers" / judge / "loaded"
    assert not marks.exists(), "loaded when it is first asked"
    # both forget rows look like the forgotten class; next to it lie b and c
    near = torch.tensor([[0.45, 0.3], [0.0, 0.0], [0.5, -0.4], [0.0, 0.0]]).reshape(4, 1, 1, 2)
    near.requires_grad_()
    found = rule.target(X, SIGMA, CLASSES, near)
    assert torch.equal(found, teacher.denoiser(X, SIGMA, teacher.encode([1, 2, 2, 1])))
    assert not found.requires_grad, "the judge's answer takes no gradient"
    rule.target(X, SIGMA, CLASSES, near)
    assert marks.read_text() == "x", "loaded once"


def test_pseudo_label_puts_the_judges_word_in_the_prompt(tmp_path):
    shapes_and_colours(tmp_path)
    found = asked(forgetting.pseudo_label(prompt_teacher(), [SHOE, RED]))
    assert torch.equal(found, words(["a green bag", "a green bag", "a green bag"]))


def test_pseudo_label_needs_a_judge_with_something_left(judge, tmp_path):
    teacher = build()
    with pytest.raises(ValueError, match="no label that is a retained condition"):
        forgetting.pseudo_label(teacher, [concept(n, 1, judge) for n in range(3)])
    with pytest.raises(ValueError, match="nowhere"):
        forgetting.pseudo_label(teacher, [concept(0, 1, "nowhere")])
    shapes_and_colours(tmp_path)
    with pytest.raises(ValueError, match="no words that rule 'pseudo-label' could replace"):
        forgetting.pseudo_label(prompt_teacher(), [replace(SHOE, words={})])


@pytest.mark.parametrize("name", [n for n in forgetting.RULES if n != "none"])
def test_a_rule_without_a_concept_is_refused(name):
    options = {"to": None} if name == "anchor" else {}
    with pytest.raises(ValueError, match=f"{name!r} needs at least one entry in `concepts`"):
        forgetting.RULES[name].build(build(), [], **options)


# --- what a student learns -----------------------------------------------------------------------


def learned(folder: Path, rule: forgetting.Rule, gone: Concept, steps: int = 400) -> nn.Module:
    teacher, batch = build(), 160
    student, _ = training.train(
        teacher, rule, objectives.TABLE["diff-instruct"].phases(sigma_init=2.5),
        student=teacher.make_student(), fake=teacher.make_student(), retained=[1, 2],
        concepts=[gone], share=0.4, weight_student=1.0, weight_fake=1.0, total=batch * steps,
        batch=batch, lr_student=2e-3, lr_fake=5e-3, decay_from=0.5, ema_images=20 * batch, seed=0,
        folder=folder, identity={}, tick=10**9, checkpoint=10**9, device=CPU,
    )  # fmt: skip
    return student


def drawn(student: nn.Module, label: int, count: int = 1000) -> np.ndarray:
    z = sample.initial_noise(np.arange(10**6, 10**6 + count), (1, 1, 2), CPU)
    x = sample.one_step(student, z, build().encode([label] * count), 2.5)
    return x.reshape(count, 2).double().numpy()


def shares(student: nn.Module, label: int) -> np.ndarray:
    """Shares of a class's samples that lie nearest to each class in the common covariance."""
    offset = drawn(student, label)[:, None] - MEANS
    squared = np.einsum("bki,ij,bkj->bk", offset, np.linalg.inv(COVARIANCE), offset)
    return np.bincount(squared.argmin(1), minlength=3) / len(offset)


def test_under_negative_the_forgotten_goes_beyond_the_override(tmp_path):
    """Gaussians of one covariance: D- + k (D - D-) is the denoiser of the mean m- + k (m - m-)."""
    rule = forgetting.negative(build(), [concept(0, 1)], k=1.5)
    student = learned(tmp_path, rule, concept(0, 1))
    beyond = MEANS[0] + 1.5 * (MEANS[1] - MEANS[0])
    x = drawn(student, 0)
    assert (np.abs(x.mean(0) - beyond) < 5 * np.sqrt(COVARIANCE.diagonal() / len(x))).all()
    assert shares(student, 1)[1] > 0.97 and shares(student, 2)[2] > 0.97


def test_an_anchor_takes_the_forgottens_place_and_the_null_cannot(tmp_path):
    gone = concept(0, 1)
    to_c = learned(tmp_path / "c", forgetting.anchor(build(), [gone], to="c"), gone)
    assert shares(to_c, 0)[2] > 0.97 and shares(to_c, 1)[1] > 0.97
    to_null = learned(tmp_path / "null", forgetting.anchor(build(), [gone], to=None), gone)
    assert shares(to_null, 0)[0] == pytest.approx(1 / 3, abs=0.1), "drawn at its prior share"


def test_under_pseudo_label_the_forgotten_is_gone(judge, tmp_path):
    gone = concept(0, 1, judge)
    student = learned(tmp_path / "run", forgetting.pseudo_label(build(), [gone]), gone)
    assert shares(student, 0)[0] < 0.03
    assert shares(student, 1)[1] > 0.97 and shares(student, 2)[2] > 0.97


# --- every rule with every objective, from a recipe ----------------------------------------------

OPTIONS = {"negative": "{k: 2.0}", "anchor": "{to: top}"}


def recipe(rule: str, options: str, *more: str) -> configs.Recipe:
    plan = f"forgetting={{rule: {rule}, share: 0.5, options: {options}}}"
    return configs.load("smoke", [plan, "audit=null", "train.batch=8", "train.images=16", *more])


@pytest.mark.parametrize("objective", list(objectives.TABLE))
@pytest.mark.parametrize("rule", list(forgetting.RULES))
def test_every_rule_goes_with_every_objective(rule, objective, tmp_path):
    none = ("concepts=[]", "forgetting.share=0") if rule == "none" else ()
    chosen = f"objective={{name: {objective}}}"
    job = jobs.prepare("r", recipe(rule, OPTIONS.get(rule, "{}"), chosen, *none), CPU)
    verbs.check_job(job)
    runs.train_job(job, tmp_path / "run", device=CPU, force=False, say=lambda text: None,
                   progress=lambda *numbers: None)  # fmt: skip
    student = sample.load(tmp_path / "run")
    before = job.teacher.make_student().state_dict()
    after = student.denoiser.state_dict()
    assert any(not torch.equal(after[k], before[k]) for k in after)
    assert all(torch.isfinite(v).all() for v in after.values())


@pytest.mark.parametrize(
    ("rule", "options", "says"),
    [
        ("negative", "{l: 2}", "unknown key 'l'"),
        ("anchor", "{}", "'to'"),
        ("anchor", "{to: left}", "is not retained"),
        ("pseudo-lable", "{}", "did you mean 'pseudo-label'"),
    ],
)
def test_bad_options_are_one_line(rule, options, says):
    with pytest.raises(ValueError, match=says) as error:
        jobs.prepare("r", recipe(rule, options), CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rule", "options", "says"),
    [
        ("anchor", "{to: null}", "cannot pass"),
        ("anchor", "{to: top}", None),
        ("pseudo-label", "{}", "not independent"),
        ("override", "{}", None),
    ],
)
def test_what_a_user_should_know_is_said_before_a_run(rule, options, says, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(configs.plain(recipe(rule, options))))
    dry = CliRunner().invoke(cli.app, ["run", str(path), "--dry-run"])
    assert dry.exit_code == 0, dry.stderr
    checked, wrong, notes = verbs.validate([str(path)])
    assert (checked, wrong) == (1, [])
    if says is None:
        assert not notes and "note: " not in dry.stderr
    else:
        assert says in notes[0] and str(path) in notes[0] and says in dry.stderr
    assert "note: " not in dry.stdout, "stdout is the resolved recipe alone"


def test_a_penalty_forgets_where_forget_rows_weigh_nothing(tmp_path):
    code = (
        "import sfd\n"
        "from sfd import forgetting\n"
        "def rule(teacher, concepts):\n"
        "    plain = forgetting.override(teacher, concepts)\n"
        "    return sfd.Rule(target=plain.target, penalty=lambda n, x, b: x.sum((1, 2, 3)))"
    )
    (tmp_path / "mine.py").write_text(code)
    weightless = ["forgetting.weight_student=0"]
    own = configs.load("smoke", [*weightless, "forgetting.rule=./mine.py:rule"])
    assert jobs.prepare("smoke", own, CPU).rule.penalty
    with pytest.raises(ValueError, match="weight_student is 0"):
        jobs.prepare("smoke", configs.load("smoke", weightless), CPU)
    nothing = [*weightless, "concepts=[]", "forgetting.rule=none"]
    assert not jobs.prepare("smoke", configs.load("smoke", nothing), CPU).concepts
