"""Content and data: strict, in one line, and never half written."""

import gzip
import inspect
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import ExifTags, Image

from sfd import classifiers, concepts, configs, content, images, plugins
from sfd.eval import suites

LABELS = ("zero", "one", "two", "three")


def refused(call, *args, **kwargs) -> str:
    """The one line of the ValueError that a call raises."""
    with pytest.raises(ValueError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text and text
    return text


def put(name: str, text: str) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return f"./{name}"


# --- strict YAML ---------------------------------------------------------------------------------

CONCEPT = """\
version: 1
kind: class
forget: {label: 3, name: three}
override: {label: 1, name: one}
classifier: digits
"""


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("classifier", "clasifier", ["'clasifier'", "did you mean 'classifier'?"]),
        ("forget: {label", "forget: {lable", ["'forget.lable'", "did you mean 'label'?"]),
        ("version: 1\n", "", ["'version' is missing"]),
        ("version: 1", "version: 2", ["version"]),
        ("label: 3", "label: x", ["forget.label", "integer"]),
        ("label: 3", "label: -3", ["forget.label", "greater than or equal to 0"]),
        ("kind: class", "kind: class\nkind: class", ["'kind' is given twice", "line"]),
        ("name: three}", "name: three, name: three}", ["'name' is given twice"]),
        ("{label: 3, name: three}", "{label: 3, name: three", ["not valid YAML", "line"]),
        ("classifier: digits", "classifier: !!python/name:os.system", ["not valid YAML"]),
    ],
)
def test_wrong_yaml(old, new, parts):
    assert old in CONCEPT
    path = put("c.yaml", CONCEPT.replace(old, new, 1))
    text = refused(concepts.read, path)
    assert "c.yaml" in text
    for part in parts:
        assert part in text


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "", "word", "3"])
def test_not_a_mapping(text):
    assert "expected a mapping" in refused(concepts.read, put("c.yaml", text))


def test_not_text():
    Path("c.yaml").write_bytes(b"\xff\xfe\x00")
    assert "c.yaml" in refused(concepts.read, "./c.yaml")


def test_words_that_look_like_numbers_are_read_as_they_were_written():
    data = {"out": "2e5", "labels": ["3E5", "1.e-2", "b"], "rate": 1e-6, "3e1": None}
    assert content.parse_yaml(content.dump_yaml(data), "here") == data


@pytest.mark.parametrize("value", ["2023-99-99", "9" * 5001, "[" * 5000])
def test_values_that_yaml_cannot_hold_name_their_file(value):
    put("odd.yaml", f"a: {value}")
    assert refused(content.read_yaml, Path("odd.yaml")).startswith("odd.yaml")


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_is_none_finds_no_folder(name):
    assert f"no configs called {name!r}" in refused(content.find, "configs", name)


def test_a_name_may_have_a_dot():
    Path("configs").mkdir()
    put("configs/mine.v2.yaml", "version: 1")
    assert "mine.v2" in content.names("configs")
    assert content.find("configs", "mine.v2") == Path.cwd() / "configs/mine.v2.yaml"
    assert "mine.v3: no such file" in refused(content.find, "configs", "mine.v3")
    assert "smoke.yaml: no such file" in refused(content.find, "configs", "smoke.yaml")


def test_whether_a_folder_can_be_written_is_found_without_a_trace():
    put("file", "")
    Path("here").mkdir()
    content.check_writable(Path("here"))
    content.check_writable(Path("new/deep"))
    assert sorted(p.name for p in Path().rglob("*")) == ["file", "here"]
    assert "file: is a file" in refused(content.check_writable, Path("file"))
    with pytest.raises(OSError):
        content.check_writable(Path("/proc/nothing/here"))


def test_missing_content_names_the_nearest():
    assert "did you mean 'digits-three'?" in refused(concepts.read, "digits-thre")
    assert "no such file" in refused(concepts.read, "./nowhere.yaml")


def test_own_content_is_found_first():
    put("concepts/digits-three.yaml", CONCEPT)
    assert concepts.read("digits-three").override.name == "one"
    put("concepts/mine.yaml", CONCEPT)
    assert "mine" in content.names("concepts") and "mixture-left" in content.names("concepts")


def test_hash_json_ignores_order():
    assert content.hash_json({"a": 1, "b": [2]}) == content.hash_json({"b": [2], "a": 1})
    assert content.hash_json({"a": 1}) != content.hash_json({"a": 2})
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    Path("f").write_bytes(b"abc")
    assert content.sha256(b"abc") == content.sha256(Path("f")) == known


# --- shipped content -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", content.names("concepts"))
def test_shipped_concepts_load(name):
    file = concepts.read(name)
    if isinstance(file, concepts.PromptConceptFile):
        (found,) = concepts.load_prompts([name])
        assert found.holdout and len(found.forget) == len(found.override)
        return
    instead = concepts._overrides(file)
    labels = {part.label: part.name for part in (file.forget, *instead)}
    names = [labels.get(n, "other") for n in range(max(labels) + 2)]
    (concept,) = concepts.load([name], names)
    assert sum(concept.override.values()) == pytest.approx(1)
    assert concept.label not in concept.override


@pytest.mark.parametrize("name", content.names("configs"))
def test_shipped_recipes_load(name):
    kind = configs.kind_of(content.find("configs", name))
    recipe = configs.load(name) if kind is configs.Recipe else configs.load_teacher(name)
    again = type(recipe).model_validate(configs.plain(recipe))
    assert configs.sha256(again) == configs.sha256(recipe)
    if isinstance(recipe, configs.Recipe):
        for concept in recipe.concepts:
            concepts.read(concept)
        if recipe.audit:
            content.find("eval/suites", recipe.audit.suite)


@pytest.mark.parametrize("name", content.names("classifiers"))
def test_shipped_classifier_cards_load(name):
    card = content.load(content.find("classifiers", name) / "card.yaml", classifiers.Card)
    assert card is not None


@pytest.mark.parametrize("path", sorted((content.shipped() / "eval/suites").glob("*.yaml")))
def test_shipped_suites_load(path):
    assert suites.load(str(path)).name == path.stem


# --- writing -------------------------------------------------------------------------------------


def test_write_atomic_replaces_and_leaves_nothing_behind():
    path = Path("deep/er/file.txt")
    content.write_atomic(path, "old")
    content.write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_write_atomic_leaves_the_old_file_on_failure(monkeypatch, where):
    path = Path("file.txt")
    content.write_atomic(path, "old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    if where == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        content.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in Path().iterdir()] == ["file.txt"]


def test_write_json_refuses_nan():
    content.write_json(Path("a.json"), {"a": 1.5})
    with pytest.raises(ValueError):
        content.write_json(Path("a.json"), {"a": float("nan")})
    assert json.loads(Path("a.json").read_text()) == {"a": 1.5}


# --- concepts ------------------------------------------------------------------------------------


def concept(name: str, forget: tuple[int, str], override: object) -> str:
    if isinstance(override, tuple):
        override = {"label": override[0], "name": override[1]}
    data = {
        "version": 1,
        "kind": "class",
        "forget": {"label": forget[0], "name": forget[1]},
        "override": override,
        "classifier": "digits",
    }
    return put(f"{name}.yaml", yaml.safe_dump(data))


def weighted(*triples: tuple[int, str, float]) -> list[dict[str, object]]:
    return [{"label": a, "name": b, "weight": c} for a, b, c in triples]


def test_concepts_and_their_shares():
    paths = [
        concept("a", (3, "three"), (1, "one")),
        concept("b", (0, "zero"), weighted((1, "one", 1.0), (2, "two", 3.0))),
    ]
    first, second = concepts.load(paths, LABELS)
    assert (first.name, first.label, first.label_name) == ("a", 3, "three")
    assert first.override == {1: 1.0} and second.override == {1: 0.25, 2: 0.75}
    path = concept("u", (0, "zero"), "uniform")
    assert concepts.load([path], LABELS)[0].override == pytest.approx({n: 1 / 3 for n in (1, 2, 3)})
    (found, _) = concepts.load([path, paths[0]], LABELS)
    assert found.override == {1: 0.5, 2: 0.5}
    assert concepts.load([path], LABELS, kept=[0, 2])[0].override == {2: 1.0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([((4, "four"), (1, "one"))], "label 4 is outside the teacher's 0 to 3"),
        ([((3, "three"), (9, "nine"))], "label 9 is outside the teacher's 0 to 3"),
        ([((3, "tree"), (1, "one"))], "calls label 3 'tree', the teacher calls it 'three'"),
        ([((3, "three"), (1, "uno"))], "calls label 1 'uno', the teacher calls it 'one'"),
        ([((3, "three"), (3, "three"))], "overrides label 3 by itself"),
        ([((3, "three"), (1, "one")), ((1, "one"), (0, "zero"))], "which is forgotten too"),
        ([((3, "three"), (1, "one")), ((3, "three"), (2, "two"))], "both forget label 3"),
        ([((3, "three"), weighted((1, "one", 1.0), (1, "one", 2.0)))], "an override twice"),
        ([((3, "three"), weighted((1, "one", 1.0), (3, "three", 2.0)))], "label 3 by itself"),
        ([((n, LABELS[n]), "uniform") for n in range(4)], "nothing is retained"),
    ],
)
def test_wrong_concepts(given, message):
    paths = [concept(f"c{i}", forget, instead) for i, (forget, instead) in enumerate(given)]
    text = refused(concepts.load, paths, LABELS)
    assert message in text and "concept" in text


@pytest.mark.parametrize("override", [[], "all", weighted((1, "one", 0.0))])
def test_overrides_that_are_none(override):
    assert "override" in refused(concepts.read, concept("c", (3, "three"), override))


# --- images --------------------------------------------------------------------------------------

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5), dtype=np.uint8)
CLASSES = np.array([0, 1, 1, 2, 0, 2])


def write_idx(pack: bool, pixels=PIXELS, classes=CLASSES) -> None:
    parts = {
        "t-images-idx3-ubyte": struct.pack(">4I", 2051, *pixels.shape) + pixels.tobytes(),
        "t-labels-idx1-ubyte": struct.pack(">2I", 2049, len(classes))
        + classes.astype(np.uint8).tobytes(),
    }
    Path("d").mkdir(exist_ok=True)
    for name, data in parts.items():
        if pack:
            Path("d", name + ".gz").write_bytes(gzip.compress(data))
        else:
            Path("d", name).write_bytes(data)


@pytest.mark.parametrize("pack", [False, True])
def test_read_idx(pack):
    write_idx(pack)
    pixels, labels, names = images.read_labelled("d:t")
    assert np.array_equal(pixels, PIXELS[..., None]) and pixels.dtype == np.uint8
    assert np.array_equal(labels, CLASSES) and labels.dtype == np.int64
    assert names == ["0", "1", "2"]


@pytest.mark.parametrize("part", ["t-images-idx3-ubyte", "t-labels-idx1-ubyte"])
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("kept", [0, 3, 10, -1])
def test_truncated_idx(part, pack, kept):
    write_idx(pack)
    path = Path("d", part + (".gz" if pack else ""))
    path.write_bytes(path.read_bytes()[:kept])
    assert part in refused(images.read_labelled, "d:t")


def test_corrupted_gzip_idx():
    write_idx(True)
    path = Path("d/t-images-idx3-ubyte.gz")
    data = bytearray(path.read_bytes())
    data[10] ^= 0xFF  # the first byte of the deflate stream
    path.write_bytes(bytes(data))
    assert "t-images" in refused(images.read_labelled, "d:t")


def test_wrong_idx():
    write_idx(False)
    assert "no such file" in refused(images.read_labelled, "d:other")
    write_idx(False, classes=CLASSES[:5])
    assert "6 images but labels" in refused(images.read_labelled, "d:t")
    write_idx(False, pixels=PIXELS[:0], classes=CLASSES[:0])
    assert "0 images" in refused(images.read_labelled, "d:t")
    Path("d/t-images-idx3-ubyte").write_bytes(b"\0" * 40)
    assert "not an idx file of images" in refused(images.read_labelled, "d:t")


def test_read_npz():
    np.savez("a.npz", images=PIXELS, labels=CLASSES.astype(np.int32))
    pixels, labels, _ = images.read_labelled("a.npz")
    assert np.array_equal(pixels[..., 0], PIXELS) and labels.dtype == np.int64


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": PIXELS}, "needs arrays"),
        ({"images": PIXELS / 255, "labels": CLASSES}, "expected uint8"),
        ({"images": PIXELS[0], "labels": CLASSES}, "expected uint8"),
        ({"images": PIXELS, "labels": CLASSES - 1}, "integers from 0"),
        ({"images": PIXELS, "labels": CLASSES / 1}, "integers from 0"),
        ({"images": PIXELS, "labels": CLASSES[:2]}, "6 images but labels"),
        ({"images": PIXELS[:0], "labels": CLASSES[:0]}, "0 images"),
        pytest.param(
            {"images": np.array([{}, {}]), "labels": CLASSES[:2]},
            "a.npz",
        ),
    ],
)
def test_wrong_npz(arrays, message):
    np.savez("a.npz", **arrays)
    assert message in refused(images.read_labelled, "a.npz")


def test_what_is_no_npz_is_said_to_be_none_and_no_pickle():
    Path("a.npz").write_text("garbage")
    for read in (images.read_labelled, images.read_captioned, suites.read_reference):
        said = refused(read, "a.npz")
        assert "a.npz: truncated or not an npz" in said and "pickle" not in said


@pytest.mark.parametrize("kept", [0, 50, -30])
def test_truncated_npz(kept):
    np.savez("a.npz", images=PIXELS, labels=CLASSES)
    path = Path("a.npz")
    path.write_bytes(path.read_bytes()[:kept])
    assert "a.npz" in refused(images.read_labelled, "a.npz")


def test_labels_go_by_name_and_mere_numbers_by_number():
    white, black = (np.full((4, 4, 1), v, np.uint8) for v in (255, 0))
    for name, picture in (("zebra", black), ("apple", white)):
        content.write_atomic(Path(f"zoo/{name}/0.png"), images.png_bytes(picture))
    pixels, labels, names = images.read_as("zoo", ["zebra", "apple", "none"])
    assert names == ["zebra", "apple", "none"]
    assert {names[n]: int(p.max()) for n, p in zip(labels, pixels, strict=True)} == {
        "zebra": 0, "apple": 255
    }  # fmt: skip
    assert images.read_as("zoo", None)[2] == ["apple", "zebra"]
    assert "no label 'zebra'; did you mean 'zebras'" in refused(
        images.read_as, "zoo", ["apple", "zebras"]
    )
    np.savez("a.npz", images=np.stack([white, black]), labels=np.array([1, 0]))
    assert images.read_as("a.npz", ["zebra", "apple"])[1].tolist() == [1, 0]
    assert "2 classes for 1 labels" in refused(images.read_as, "a.npz", ["zebra"])


def test_no_such_data():
    assert "no such data" in refused(images.read_labelled, "nowhere")
    Path("file.txt").write_text("x")
    assert "no such data" in refused(images.read_labelled, "file.txt")


def write_folder() -> None:
    for n in (10, 2, 1):
        for name, value in (("cat", n), ("ant", 100 + n)):
            Path("f", name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 5), value, np.uint8)).save(f"f/{name}/i{n}.png")


def test_read_folder():
    write_folder()
    pixels, labels, names = images.read_labelled("f")
    assert names == ["ant", "cat"] and labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert pixels.shape == (6, 4, 5, 1)
    # i2 before i10: numbers count as numbers
    assert pixels[:, 0, 0, 0].tolist() == [101, 102, 110, 1, 2, 10]


def test_wrong_folders():
    Path("f").mkdir()
    assert "no class folders" in refused(images.read_labelled, "f")
    write_folder()
    Path("f/bee").mkdir()
    assert "no images in it" in refused(images.read_labelled, "f")
    Image.fromarray(np.zeros((3, 3), np.uint8)).save("f/bee/1.png")
    assert "different shapes" in refused(images.read_labelled, "f")
    for kept in (0, 20, 45):
        Path("f/bee/1.png").write_bytes(Path("f/cat/i1.png").read_bytes()[:kept])
        assert "1.png" in refused(images.read_labelled, "f")


def test_png_round_trip():
    for pixels in (PIXELS[0][..., None], np.stack([PIXELS[0]] * 3, 2)):
        Path("x.png").write_bytes(images.png_bytes(pixels))
        assert np.array_equal(images.read_image(Path("x.png")), pixels)


def test_what_a_reader_would_lose_is_refused():
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(grey).save("deep.png")
    clear = np.full((4, 4, 4), 255, np.uint8)
    clear[0, 0, 3] = 0
    Image.fromarray(clear).save("clear.png")
    for name in ("deep.png", "clear.png"):
        assert "not plain 8 bits a channel" in refused(images.read_image, Path(name))
    clear[0, 0, 3] = 255
    Image.fromarray(clear).save("solid.png")
    assert images.read_image(Path("solid.png")).shape == (4, 4, 3), "alpha that says nothing"
    Image.fromarray(clear[..., :2].copy(), "LA").save("la.png")
    assert images.read_image(Path("la.png")).shape == (4, 4, 1)


def test_images_of_other_kinds_are_not_left_out_in_silence():
    Path("mine/cat").mkdir(parents=True)
    for name in ("a.png", "b.tif"):
        Image.fromarray(PIXELS[0]).save(Path("mine/cat", name))
    assert "1 images are of kinds that are not read, first mine/cat/b.tif" in refused(
        lambda p: images.list_conditions(p, ["label"]), Path("mine"))  # fmt: skip


def test_pictures_are_read_the_way_up_that_they_say():
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # turn it a quarter clockwise
    Image.fromarray(pixels).save("turned.png", exif=exif)
    seen = images.read_image(Path("turned.png"))
    assert seen.shape == (8, 4, 3) == images.shape_of(Path("turned.png"))
    assert (seen[:, -1] == 255).all() and not seen[:, 0].any()


def test_sheet():
    sheet = images.sheet(PIXELS[..., None], columns=4, scale=2)
    assert sheet.shape == (2 * 9, 2 * 23, 1)
    assert np.array_equal(sheet[10:18:2, 0:10:2, 0], PIXELS[4])


# --- plugins -------------------------------------------------------------------------------------


def test_rows_and_own_rows():
    assert plugins.resolve({"sid": 3}, "sid", "objectives") == 3
    path = put("mine.py", "def rule():\n    return 7\nVALUE = 3\n")
    assert plugins.resolve({}, f"{path}:rule", "rules")() == 7


def test_plugin_errors():
    path = put("mine.py", "def rule():\n    return 7\nVALUE = 3\n")
    for name, message in (
        ("sidd", "did you mean 'sid'?"),
        ("./none.py:rule", "no such file"),
        (f"{path}:rle", "did you mean 'rule'?"),
        (f"{path}:VALUE", "no function 'VALUE'"),
        (put("broken.py", "def rule(:\n") + ":rule", "cannot be imported"),
        (put("needy.py", "import no_such_package\n") + ":rule", "cannot be imported"),
        (put("undefined.py", "x = y\n") + ":rule", "cannot be imported"),
    ):
        assert message in refused(plugins.resolve, {"sid": 3}, name, "objectives")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("x = {}['a']", "KeyError: 'a'"),
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("import sys; sys.exit(7)", "SystemExit: 7"),
    ],
)
def test_a_file_that_raises_when_it_is_imported(body, says):
    said = refused(plugins.resolve, {}, put("mine.py", body) + ":rule", "rules")
    assert said == f"mine.py: cannot be imported: {says}"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{}['a']", "KeyError: 'a'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("int('x')", "invalid literal for int() with base 10: 'x'"),
        ("assert False", "AssertionError"),
        ("raise OSError('no\\nfarm')", "OSError: no farm"),
        ("import sys; sys.exit(7)", "SystemExit: 7"),
    ],
)
def test_a_function_that_raises_is_named(body, says):
    found = plugins.resolve({}, put("mine.py", f"def rule(*, k=1):\n    {body}\n") + ":rule", "r")
    assert list(inspect.signature(found).parameters) == ["k"]
    assert refused(found) == f"./mine.py:rule: {says}"


def test_signals_pass_through_somebodys_function():
    for body in ("raise KeyboardInterrupt", "import sfd.cli; sfd.cli._interrupted(15, None)"):
        found = plugins.resolve({}, put("mine.py", f"def rule():\n    {body}\n") + ":rule", "rules")
        with pytest.raises(BaseException) as caught:
            found()
        assert not isinstance(caught.value, Exception)
    assert isinstance(caught.value, SystemExit) and caught.value.code == 143


def test_a_plugin_edited_is_read_again():
    assert plugins.resolve({}, put("mine.py", "def f():\n    return 1\n") + ":f", "rules")() == 1
    assert plugins.resolve({}, put("mine.py", "def f():\n    return 2\n") + ":f", "rules")() == 2


# --- recipes -------------------------------------------------------------------------------------


def test_overrides():
    plain = configs.load("smoke")
    recipe = configs.load(
        "smoke",
        ["train.batch=32", "train.lr_student=1e-4", "objective.alpha=0.5", "concepts=[]",
         "audit.n.direct=7", "out=x=y"],
    )  # fmt: skip
    assert recipe.train.batch == 32 and plain.train.batch != 32
    assert recipe.train.lr_student == 1e-4
    assert recipe.objective.options()["alpha"] == 0.5
    assert recipe.concepts == [] and recipe.audit.n == {"direct": 7} and recipe.out == "x=y"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.batch", "expected key=value"),
        ("=3", "expected key=value"),
        ("train.bacth=3", "did you mean 'batch'?"),
        ("trian.batch=3", "did you mean 'train'?"),
        ("train.batch=0", "train.batch"),
        ("train.batch=many", "train.batch"),
        ("train.batch.size=3", "'batch' has no keys below it"),
        ("train.batch=[1", "not valid YAML"),
        ("version=2", "version"),
        ("teacher.file=x", "exactly one of"),
        ("forgetting.share=1", "forgetting.share"),
    ],
)
def test_wrong_overrides(text, message):
    assert message in refused(configs.load, "smoke", [text])


def test_the_recipes_hash_is_of_what_shapes_the_weights():
    digest = configs.sha256(configs.load("smoke"))
    for text in ("out=elsewhere", "train.tick=77", "train.checkpoint=77", "audit=null"):
        assert configs.sha256(configs.load("smoke", [text])) == digest, text
    for text in ("train.seed=9", "concepts=[]", "objective.alpha=0.7", "train.batch=64"):
        assert configs.sha256(configs.load("smoke", [text])) != digest, text


def test_a_recipe_of_the_other_verb():
    assert "`sfd pretrain`" in refused(configs.load, "digits-teacher")
    assert "`sfd run`" in refused(configs.load_teacher, "smoke")


def test_a_picture_that_is_too_large_is_not_readable():
    head = struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54)
    form = struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, *[0] * 6)
    Path("bomb.bmp").write_bytes(head + form)
    assert images.shape_of(Path("bomb.bmp")) is None
    with pytest.raises(ValueError, match=r"bomb.bmp: not a readable image"):
        images.read_image(Path("bomb.bmp"))
