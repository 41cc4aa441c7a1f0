"""No output of `cskd-train` takes the place of an input, and one that cannot be written is found before the work."""

from __future__ import annotations

import json
import shutil

import pytest

import cskd_train
from cskd_data import DataError
from cskd_train.engine import evaluate, pseudo_label
from cskd_train.errors import TrainError
from cskd_train.report import side_by_side


@pytest.fixture
def place(trained, shapes_root, tmp_path):
    """A folder with data and a run on it; whatever is read there has to stay."""
    shutil.copytree(shapes_root, tmp_path / "data")
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("tf_logs"))
    (tmp_path / "val.json").hardlink_to(tmp_path / "data" / "annotations" / "val.json")
    (tmp_path / "here").mkdir()
    return tmp_path


@pytest.fixture
def unworked(monkeypatch):
    """Detecting is too much."""

    def worked(*_, **__):
        raise AssertionError("an image was detected on")

    for module, name in ((evaluate, "detect"), (pseudo_label, "detect_each"), (side_by_side, "detect")):
        monkeypatch.setattr(module, name, worked)


def state(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def image_of(place, split):
    name = json.loads((place / "data" / "annotations" / f"{split}.json").read_text())["images"][0]["file_name"]
    return f"data/images/{name}"


INPUTS = ("data/annotations/val.json", "val.json", "an image", "run/best.pth")
UNUSABLE = ("here", "run/best.pth/found.json")


def refusal(place, output, call):
    """Whether a call with this output is refused as an input, by its name, and with nothing changed."""
    before = state(place)
    out = place / (image_of(place, "val") if output == "an image" else output)
    with pytest.raises((DataError, TrainError)) as error:
        call(out)
    return "would replace" in str(error.value), str(out) in str(error.value), state(place) == before


@pytest.mark.parametrize("output", [*INPUTS, *UNUSABLE, "nowhere/found.json"])
def test_detections_of_an_evaluation(place, unworked, output):
    settings = {"data_root": str(place / "data")}

    def detect(out):
        cskd_train.evaluate(place / "run/best.pth", settings=settings, device="cpu", out=out)

    assert refusal(place, output, detect) == (output in INPUTS, True, True)


def test_a_config_that_is_evaluated_by_is_an_input(place, unworked, tiny_config):
    config = shutil.copy(tiny_config, place / "mine.py")
    config.write_text(
        config.read_text()
        .replace("../..", str(tiny_config.parents[2]))
        .replace('"tiny_shapes.py"', repr(str(tiny_config.with_name("tiny_shapes.py"))))
    )
    settings = {"data_root": str(place / "data")}
    with pytest.raises(DataError, match=r"mine\.py would replace"):
        cskd_train.evaluate(place / "run/best.pth", config=config, settings=settings, device="cpu", out=config)


def test_the_command_test_refuses_as_the_function_does(place, unworked, command_line):
    before = state(place)
    out = place / "data" / "annotations" / "val.json"
    code, _, err = command_line("test", place / "run/best.pth", "--set", f"data_root={place / 'data'}", "--out", out)
    assert (code, "Traceback" in err) == (2, False)
    assert f"output {out} would replace {out}, which is read: give another name" in err.replace("\n", " ")
    assert state(place) == before


@pytest.mark.parametrize("output", [*INPUTS, *UNUSABLE])
def test_pseudo_labels(place, unworked, output):
    shutil.copytree(place / "data" / "images", place / "pictures")

    def label(out):
        root = {"data_root": str(place / "data")}
        pseudo_label.pseudo_label(
            place / "run/best.pth", place / "pictures", out, overrides=root, device="cpu", overwrite=True
        )

    assert refusal(place, output, label) == (output in INPUTS, True, True)


@pytest.mark.parametrize("output", [*INPUTS, *UNUSABLE])
def test_a_picture_of_detections(place, unworked, output):
    settings = {"data_root": str(place / "data")}

    def draw(out):
        side_by_side.draw_side_by_side([place / "run/best.pth"], out, overrides=settings)

    assert refusal(place, output, draw) == (output in INPUTS, True, True)


@pytest.mark.parametrize(
    "output", ["run/best.pth", "run/log.jsonl", "run/result.json", "here", "data/annotations/val.json"]
)
def test_a_report(place, shapes_root, output):
    config = json.loads((place / "run" / "config.json").read_text().replace(str(shapes_root), str(place / "data")))
    (place / "run" / "config.json").write_text(json.dumps(config))
    before = state(place)
    with pytest.raises(DataError, match=r"is a folder" if output == "here" else r"would replace"):
        cskd_train.write_report(place / "run", output=place / output, device="cpu")
    assert state(place) == before


def test_a_run_does_not_replace_the_weights_that_it_begins_from(place, train_tiny):
    before = state(place)
    for option in ("--init", "--teacher-checkpoint"):
        code, _, err = train_tiny(place / "run", "--overwrite", option, place / "run" / "best.pth")
        assert code == 2
        assert f"the run would replace {place / 'run' / 'best.pth'}, which it begins from" in err.replace("\n", " ")
        assert "Choose another --work-dir" in err.replace("\n", " ")
    assert state(place) == before


def test_the_parts_of_a_cut_are_known_to_be_writable_before_pictures_are_compared(place, command_line, monkeypatch):
    (place / "data" / "annotations" / "train_val.json").mkdir()
    monkeypatch.setattr("cskd_train.commands.data.split.cut", lambda *_, **__: (_ for _ in ()).throw(AssertionError))
    code, _, err = command_line("data", "split", place / "data" / "annotations" / "train.json", "--overwrite")
    assert code == 2
    assert "train_val.json is a folder" in err.replace("\n", " ")
