"""Cards, weights, training and calibration of classifiers; and every classifier that is shipped."""

import json
from functools import partial
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
import torch
import yaml

from sfd import (
    calibrate,
    checkpoints,
    classifiers,
    configs,
    content,
    features,
    fit,
    plugins,
    verbs,
)
from sfd.classifiers import Card, Classifier, Network, measured, timm_models

NAMES = ["dark", "left", "right"]
TINY = {"stem_type": "deep", "stem_width": 8, "channels": [8, 8, 8, 16], "layers": [1, 1, 1, 1]}
STORED = Path(__file__).parent / "data" / "digits-classifiers.json"
LEAST_ACCURACY = {
    "digits": 0.986,
    "digits-second": 0.986,
    "digits-features": 0.985,
    "fashion-text-garment": 0.91,  # tinted, which darkens them
    "fashion-text-garment-second": 0.91,
    "fashion-text-features": 0.86,  # of 80 pairs
    "fashion-text-colour": 0.999,
    "fashion-text-colour-second": 0.999,
}


def data(n: int, seed: int = 0, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """n images of 12 x 12 of each of three classes: all dark, bright on the left or the right."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(3 * n) % 3)
    images = rng.integers(0, 90, (3 * n, 12, 12, channels))
    images[labels == 1, :, :6] += 120
    images[labels == 2, :, 6:] += 120
    return images.astype(np.uint8), labels


def train(**changes):
    keywords = dict(
        name="tiny",
        arch="resnet18",
        kwargs=TINY,
        size=32,
        epochs=4,
        batch=16,
        data="stripes",
        licence="CC0-1.0",
        heldout=data(20, 1),
        heldout_data="other stripes",
    )
    images, labels = changes.pop("images", data(32)[0]), changes.pop("labels", data(32)[1])
    names = changes.pop("names", NAMES)
    return fit.train_classifier(images, labels, names, **(keywords | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained():
    return train(epochs=20, lr=1e-2)


@pytest.fixture()
def folder(trained, tmp_path):
    state, card = trained
    classifiers.save(tmp_path / "tiny", card, state)
    return tmp_path / "tiny"


def edit(folder: Path, change) -> None:
    card = yaml.safe_load((folder / "card.yaml").read_text())
    change(card)
    (folder / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False))


# --- a card and its weights ----------------------------------------------------------------------


def test_a_trained_classifier_is_right_and_says_how_often(trained):
    card = trained[1]
    assert card.calibration.accuracy.n == 60 and card.calibration.accuracy.k >= 57
    assert card.calibration.images == {name: 20 for name in NAMES}
    assert card.calibration.data == "other stripes" and card.calibration.how == "held out"
    assert card.training.images == 96 and card.training.versions["torch"]


def test_card_and_weights_survive_the_round_trip(trained, folder):
    loaded = classifiers.load(str(folder))
    assert loaded.card.model_copy(update={"weights_sha256": None}) == trained[1]
    assert loaded.card.weights_sha256 == content.sha256(folder / "weights.safetensors")
    # the card was measured with the weights as they are stored
    block = calibrate.calibrate(loaded, *data(20, 1), NAMES, data="other stripes")
    assert block == loaded.card.calibration


def test_weights_are_stored_in_half_precision(folder):
    size = (folder / "weights.safetensors").stat().st_size
    state, _ = checkpoints.read_tensors(folder / "weights.safetensors")
    floats = [v for v in state.values() if v.is_floating_point()]
    assert {v.dtype for v in floats} == {torch.float16}
    assert size < 2 * sum(v.numel() for v in floats) + 20_000


def test_other_weights_are_refused(folder):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="sha256 is .* the card says"):
        classifiers.load(str(folder))
    path.unlink()
    with pytest.raises(ValueError, match="no such weights"):
        classifiers.load(str(folder))


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_truncated_weights_are_refused_even_if_the_card_agrees(folder, keep):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    edit(folder, lambda card: card.update(weights_sha256=content.sha256(path)))
    with pytest.raises(ValueError, match="truncated or not a safetensors"):
        classifiers.load(str(folder))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["architecture"]["kwargs"].update(channels=[8, 8, 8, 24]), "has shape"),
        (lambda c: c["architecture"].update(arch="vit_tiny_patch16_224", kwargs={}), "is missing"),
        (lambda c: c["architecture"].update(arch="resnet81"), "did you mean"),
        (lambda c: c["architecture"]["kwargs"].update(colour=3), "timm refuses .*colour"),
        (lambda c: c.update(tresh=0.5), "unknown key 'tresh'; did you mean 'threshold'"),
        (lambda c: c["input"].update(sice=9), "unknown key 'input.sice'; did you mean 'size'"),
        (lambda c: c["input"].update(mean=[0, 0, 0]), "mean and std need 1"),
        (lambda c: c.update(backend="tim"), "did you mean 'timm'"),
        (lambda c: c.update(input=None), "backend timm needs"),
        (lambda c: c.update(labels=["dark", "left", "left"]), "twice"),
        (lambda c: c["calibration"]["confusion"].update(dark=[0, 20, 0]), "do not follow"),
        (lambda c: c["calibration"]["confusion"].update(dark=[21, 0, 0]), "counts up to 20"),
        (lambda c: c["calibration"]["sensitivity"]["dark"].update(n=9), "do not follow"),
    ],
)
def test_a_wrong_card_is_refused_in_one_line(folder, change, says):
    edit(folder, change)
    with pytest.raises(ValueError, match=says) as error:
        classifiers.load(str(folder))
    assert "\n" not in str(error.value)


def test_a_folder_without_a_card_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"no card.yaml in it"):
        classifiers.load(str(tmp_path))


def test_a_backend_of_ones_own_drops_in(folder, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "from sfd.classifiers import Network\n"
        "def fn(card, folder, device):\n"
        "    return Network(lambda x: np.full((len(x), len(card.labels)), 0.25, np.float32))\n"
    )
    monkeypatch.chdir(tmp_path)
    edit(folder, lambda card: card.update(backend="./mine.py:fn"))
    loaded = classifiers.load(
        str(folder),
        backend=lambda name: plugins.resolve(classifiers.BACKENDS, name, "classifiers"),
    )
    assert (loaded.probabilities(data(2)[0]) == 0.25).all()
    with pytest.raises(ValueError, match="no features"):
        loaded.features(data(2)[0])


# --- what it returns -----------------------------------------------------------------------------


def test_an_image_gets_the_same_answer_in_any_batch(folder):
    loaded, images = classifiers.load(str(folder)), data(11, 3)[0]
    whole = loaded.probabilities(images)
    assert whole.dtype == np.float32 and whole.shape == (33, 3)
    np.testing.assert_allclose(whole.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(whole, loaded.probabilities(images))
    np.testing.assert_allclose(whole, loaded.probabilities(images, batch=7), atol=1e-5)
    np.testing.assert_allclose(whole[::-1], loaded.probabilities(images[::-1]), atol=1e-5)
    assert loaded.features(images, batch=7).shape == (33, 16)


def test_size_and_channels_are_converted():
    grey = classifiers.Input(size=8, channels=1, mean=[0.5], std=[0.25])
    colour = classifiers.Input(size=8, channels=3, mean=[0.0] * 3, std=[1.0] * 3)
    red = np.zeros((2, 16, 20, 3), np.uint8)
    red[..., 0] = 255
    x = timm_models.prepare(red, grey)
    assert x.shape == (2, 1, 8, 8)
    torch.testing.assert_close(x, torch.full_like(x, (0.299 - 0.5) / 0.25))
    y = timm_models.prepare(np.full((1, 8, 8, 1), 51, np.uint8), colour)
    torch.testing.assert_close(y, torch.full((1, 3, 8, 8), 0.2))


def test_what_is_not_uint8_images_is_refused(folder):
    loaded = classifiers.load(str(folder))
    for bad in (np.zeros((2, 8, 8, 1), np.float32), np.zeros((2, 8, 8), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8 images"):
            loaded.probabilities(bad)
    with pytest.raises(ValueError, match="no images"):
        loaded.probabilities(np.zeros((0, 8, 8, 1), np.uint8))


def test_a_detector_that_returns_nonsense_is_refused():
    card = fake(np.eye(3)).card
    images = np.zeros((4, 2, 2, 1), np.uint8)
    for wrong in (np.zeros((4, 2)), np.zeros((3, 3)), np.full((4, 3), np.nan)):
        with pytest.raises(ValueError, match="returned"):
            Classifier(card, Network(lambda x, y=wrong: y)).probabilities(images)


def test_the_network_that_judges_never_measures_quality(folder):
    with pytest.raises(ValueError, match="judges, so it may not measure quality"):
        features.load(str(folder))
    edit(folder, lambda card: card.update(task="features"))
    assert features.load(str(folder))(data(2)[0]).shape == (6, 16)
    with pytest.raises(ValueError, match="judges nothing"):
        classifiers.load(str(folder)).probabilities(data(2)[0])


def test_pixels_are_features():
    out = features.load("pixels")(np.full((3, 2, 2, 1), 51, np.uint8))
    assert out.shape == (3, 4) and out.dtype == np.float32
    np.testing.assert_allclose(out, 0.2)


def test_inception_without_its_package_or_file_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="pip install torch-fidelity|no such file"):
        features.load(f"inception:{tmp_path / 'none.pt'}")


# --- calibration ---------------------------------------------------------------------------------


def fake(table: np.ndarray, threshold: float | None = None) -> Classifier:
    """A classifier that gives an image whose first pixel is i the probabilities `table[i]`."""
    card = Card(
        version=1,
        name="fake",
        task="classify",
        labels=NAMES,
        backend="none",
        threshold=threshold,
        licence="CC0-1.0",
    )
    return Classifier(card, Network(lambda x: table[x[:, 0, 0, 0]].astype(np.float32)))


def marked(marks: list[int]) -> np.ndarray:
    return np.array(marks, np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2)


def test_counts_by_hand():
    # ten images of each class: of 'dark' 8 are called dark and 2 left, 'left' is always right,
    # of 'right' 7 are called right, 2 left and 1 dark
    marks = [0] * 8 + [1] * 2 + [1] * 10 + [2] * 7 + [1] * 2 + [0]
    labels = np.repeat([0, 1, 2], 10)
    block = calibrate.calibrate(fake(np.eye(3)), marked(marks), labels, NAMES, data="by hand")
    assert block.confusion == {"dark": [8, 2, 0], "left": [0, 10, 0], "right": [1, 2, 7]}
    assert {n: (c.k, c.n) for n, c in block.sensitivity.items()} == {
        "dark": (8, 10),
        "left": (10, 10),
        "right": (7, 10),
    }
    assert {n: (c.k, c.n) for n, c in block.false_positive.items()} == {
        "dark": (1, 20),
        "left": (4, 20),
        "right": (0, 20),
    }
    assert (block.accuracy.k, block.accuracy.n) == (25, 30)
    assert block.sensitivity["left"].ci95 == (0.691503, 1.0)  # Clopper-Pearson: 0.025 ** (1 / 10)
    assert block.false_positive["left"].ci95 == (0.080658, 0.416017)  # Wilson

    card = fake(np.eye(3)).card.model_copy(update={"calibration": block})
    called = card.confused("right", "left")
    assert (called.k, called.n) == (2, 10)
    with pytest.raises(ValueError, match="no label 'lef'; did you mean 'left'"):
        card.confused("right", "lef")
    with pytest.raises(ValueError, match="never measured on images of 'none'"):
        card.confused("none", "left")


def test_a_threshold_may_call_several_labels_or_none():
    table = np.array([[0.9, 0.6, 0.1], [0.2, 0.6, 0.4], [0.3, 0.3, 0.3]])
    labels = np.repeat([0, 1, 2], 10)
    names = ["dark", "left", "none"]
    images = marked([0] * 10 + [1] * 10 + [2] * 9 + [1])
    block = calibrate.calibrate(fake(table, 0.5), images, labels, names, data="by hand")
    assert block.confusion == {"dark": [10, 10, 0], "left": [0, 10, 0], "none": [0, 1, 0]}
    assert (block.false_positive["left"].k, block.false_positive["left"].n) == (11, 20)
    assert (block.false_positive["right"].k, block.false_positive["right"].n) == (0, 30)
    assert "right" not in block.sensitivity
    assert (block.accuracy.k, block.accuracy.n) == (20, 20)


def test_calibration_goes_by_name_and_bare_numbers_by_position():
    labels = np.repeat([0, 1], 10)
    images = marked([2] * 10 + [0] * 10)
    by_name = calibrate.calibrate(fake(np.eye(3)), images, labels, ["right", "dark"], data="d")
    assert by_name.accuracy.k == 20
    by_number = calibrate.calibrate(fake(np.eye(3)), images, labels, ["0", "1"], data="d")
    assert by_number.confusion == {"dark": [0, 0, 10], "left": [10, 0, 0]}


def test_a_label_may_be_called_none():
    block = measured(["cat", "none"], {"cat": 50, "none": 60}, {"cat": [48, 2], "none": [1, 59]},
                     data="d", how="held out")  # fmt: skip
    assert (block.accuracy.k, block.accuracy.n) == (107, 110)
    other = measured(["cat", "dog"], {"cat": 50, "none": 60}, {"cat": [48, 2], "none": [1, 0]},
                     data="d", how="held out")  # fmt: skip
    assert (other.accuracy.k, other.accuracy.n) == (48, 50)


def test_copies_share_a_fold():
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 1), dtype=np.uint8)
    twice, labels = np.concatenate([images, images]), np.tile(np.arange(60) % 3, 2)
    fold = fit._folds(twice, labels, 5, 0)
    assert (fold[:60] == fold[60:]).all()
    for label in range(3):
        assert np.bincount(fold[labels == label]).tolist() == [8] * 5


def test_the_mean_of_many_pixels():
    """A float32 sum over this many stands still."""
    images = np.full((40, 1024, 1024, 3), 130, np.uint8)
    images[0, 0, 0] = 0
    assert fit._input(images, 32).mean == [round(130 / 255, 4)] * 3


@pytest.mark.parametrize(
    ("labels", "names", "says"),
    [
        ([0] * 10 + [1] * 9, NAMES, "9 images of 'left'; give 10"),
        ([0] * 20, NAMES, "every image is of 'dark'"),
        ([0] * 10 + [1] * 10, ["dark", "lefd"], "no label 'lefd'; did you mean 'left'"),
        ([0] * 10 + [3] * 10, NAMES, "there are 3 names"),
        ([], NAMES, "0 images"),
    ],
)
def test_data_that_cannot_calibrate(labels, names, says):
    with pytest.raises(ValueError, match=says):
        calibrate.calibrate(
            fake(np.eye(3)), marked([0] * len(labels)), np.array(labels, int), names, data="d"
        )


# --- training ------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_and_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    moves = dict(epochs=1, shift=1.0, rotate=5.0, scale=0.1, flip=True)
    a, b, c = train(**moves), train(**moves), train(**moves, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a[0][k], b[0][k]) for k in a[0])
    assert not all(torch.equal(a[0][k], c[0][k]) for k in a[0])
    assert a[1].calibration == b[1].calibration


def test_cross_fitting_measures_every_image_once_and_reports_progress():
    seen = []
    card = train(
        heldout=None,
        folds=2,
        epochs=1,
        precision="bf16",
        progress=lambda what, done, total: seen.append((what, done, total)),
    )[1]
    assert card.calibration.how == "cross-fitted in 2 folds"
    assert card.calibration.images == {name: 32 for name in NAMES}
    assert card.calibration.data == "stripes"
    assert seen[0] == ("fold 1 of 2", 1, 3) and seen[-1] == ("train", 6, 6)


def test_motion_is_identity_at_zero_and_shifts_by_whole_pixels():
    to = classifiers.Input(size=8, channels=1, mean=[0.5], std=[0.5])
    x = torch.randn(4, 1, 8, 8)
    assert fit._moved(x, to, (0, 0), 0, 0, False) is x
    torch.manual_seed(0)
    flipped = fit._moved(x, to, (0, 0), 0, 0, True)
    for before, after in zip(x, flipped, strict=True):
        same = torch.allclose(before, after, atol=1e-5)
        assert same or torch.allclose(before.flip(-1), after, atol=1e-5)
    # what comes in from outside is black, which is -1 here
    far = fit._moved(x, to, (100, 100), 0, 0, False)
    torch.testing.assert_close(far[1:], torch.full_like(far[1:], -1.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(images=np.zeros((0, 8, 8, 1), np.uint8), labels=np.zeros(0, int)), "0 images"),
        (dict(names=["dark"], labels=np.zeros(96, int)), "two or more classes"),
        (dict(labels=np.zeros(96, int)), "two or more classes"),
        (dict(names=[*NAMES, "up"]), "class 'up' has 0 images"),
        (dict(names=NAMES[:2]), "there are 2 names"),
        (dict(heldout=None), "a card needs a measurement"),
        (dict(folds=5), "not both"),
        (dict(heldout=(data(20, 1)[0], np.zeros(60, int))), "other stripes: every image is of one"),
        (dict(heldout=None, folds=40), "has 32 images; give 40"),
        (dict(epochs=0), "epochs"),
        (dict(arch="resnet81"), "did you mean"),
        (dict(arch="vit_tiny_patch16_224", kwargs={}), "does not take 32 x 32 images"),
        (dict(images=np.zeros((96, 8, 8, 1), np.uint8)), "all of one colour"),
        (dict(images=np.full((96, 8, 8, 1), 131, np.uint8)), "all of one colour"),
        (dict(lr=1e6), "not finite in half precision|diverged"),
    ],
)
def test_training_refuses_in_one_line(changes, says):
    with pytest.raises(ValueError, match=says) as error:
        train(**({"epochs": 1} | changes))
    assert "\n" not in str(error.value)


# --- what is shipped -----------------------------------------------------------------------------

SHIPPED = sorted(
    p.parent.name for p in (content.shipped() / "classifiers").glob("*/weights.safetensors")
)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_classifier(name):
    folder = content.shipped() / "classifiers" / name
    loaded = classifiers.load(str(folder))
    card = loaded.card
    assert card.name == name and card.training and card.calibration
    assert (folder / "weights.safetensors").stat().st_size <= 2_500_000
    configs.load_judge(str(folder / "train.yaml"))
    assert sum(card.calibration.images.values()) == card.calibration.accuracy.n
    accuracy = card.calibration.accuracy.k / card.calibration.accuracy.n
    assert accuracy >= LEAST_ACCURACY.get(name, 0.93)
    assert (card.task == "features") == name.endswith("-features")
    blank = np.zeros((2, 20, 20, 1), np.uint8)
    assert loaded.features(blank).shape[1] == (64 if card.task == "features" else ANY)
    for text in (folder / "card.yaml", folder / "train.yaml"):
        assert not any(part in text.read_text() for part in ("/work", "/tmp", "/root", "/home"))


def test_the_two_judges_of_a_data_set_are_different_networks():
    for name in ("digits", "fashion"):
        one, two = classifiers.read_card(name), classifiers.read_card(f"{name}-second")
        assert one.architecture and two.architecture and one.training and two.training
        assert one.labels == two.labels
        assert one.architecture.arch != two.architecture.arch
        assert one.training.seed != two.training.seed


@pytest.mark.parametrize("name", [n for n in SHIPPED if n.startswith("digits")])
def test_shipped_digits_classifiers_answer_as_they_did(name):
    """`tests/data/digits-classifiers.json` holds three real digits and what each network said."""
    stored = json.loads(STORED.read_text())
    images = np.array(stored["images"], np.uint8)[..., None]
    loaded = classifiers.load(name)
    run = loaded.features if loaded.card.task == "features" else loaded.probabilities
    np.testing.assert_allclose(run(images), stored["answers"][name], atol=1e-3)


def test_the_command_trains_what_a_recipe_says(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from sfd import cli

    rng = np.random.default_rng(0)
    y = np.arange(80) % 2
    pictures = (rng.integers(0, 80, (80, 8, 8)) + 120 * y[:, None, None]).astype(np.uint8)
    np.savez("data.npz", images=pictures, labels=y)
    np.savez("held.npz", images=pictures[60:], labels=y[60:])
    Path("judge.yaml").write_text(
        "labels: [dark, bright]\nrows: 60\nepochs: 1\nsize: 32\nlicence: own\n"
        "arch: resnet18\nkwargs: {channels: [4, 8, 8, 8], layers: [1, 1, 1, 1]}\n"
    )
    words = "classifier data.npz out seed=3 --recipe judge.yaml --heldout"
    seen = CliRunner().invoke(cli.app, [*words.split(), "data.npz"])
    assert "60 of its 80 images are among those to learn from" in str(seen.exception)
    got = CliRunner().invoke(cli.app, [*words.split(), "held.npz"])
    assert got.exit_code == 0, got.output
    again = CliRunner().invoke(cli.app, [*words.split(), "held.npz"])
    assert "out: holds a classifier" in str(again.exception)
    got = CliRunner().invoke(cli.app, [*words.split(), "held.npz", "--force"])
    assert got.exit_code == 0, got.output
    card = classifiers.read_card("./out")
    assert card.labels == ["dark", "bright"] and card.name == "out" and card.licence == "own"
    assert card.training and (card.training.images, card.training.seed) == (60, 3)
    again = configs.load_judge("out/train.yaml")
    assert again == configs.load_judge("judge.yaml", ["seed=3"])
    Path("file").write_text("")
    with pytest.raises(OSError):
        verbs.train_judge("data.npz", Path("file/x"), device=torch.device("cpu"),
                          progress=lambda *_: pytest.fail("trained for nothing"))  # fmt: skip
    with pytest.raises(ValueError, match="did you mean 'epochs'"):
        configs.load_judge("judge.yaml", ["epoch=2"])
    with pytest.raises(ValueError, match="class 'c' has 0 images"):
        verbs.train_judge("data.npz", tmp_path / "x", overrides=["labels=[a, b, c]"],
                          device=torch.device("cpu"))  # fmt: skip


def test_what_it_learned_from_is_not_held_out(folder):
    for name, (pictures, labels) in {"taught.npz": data(32), "other.npz": data(10, 7)}.items():
        np.savez(name, images=pictures, labels=labels)
    edit(folder, lambda card: card["training"].update(data="taught.npz"))
    device = torch.device("cpu")
    measured = partial(verbs.measure_judge, str(folder), out=Path("out"), device=device)
    with pytest.raises(ValueError, match="96 of its 96 images are among those it learned from"):
        measured("taught.npz")
    assert measured("other.npz")[1].calibration.accuracy.n == 30
    Path("taught.npz").write_text("something else")
    assert measured("other.npz", force=True)[1].calibration.accuracy.n == 30
