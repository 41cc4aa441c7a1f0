"""The classes that a dataset config names, in every form in which mmdet takes them."""

from __future__ import annotations

import pytest
from mmdet.datasets import CocoDataset, VOCDataset

from cskd_core.plan import TeacherPlan
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import FORMAT, FORMAT_VERSION, save
from cskd_train.files.config import config_to_data
from cskd_train.mm.data_sources import classes_of
from cskd_train.mm.datasets import build
from cskd_train.mm.plain import build_without_pretrained
from cskd_train.mm.teacher import build_teacher

NAMES = ("circle", "five-pointed star", "ring")
COCO = {"type": "CocoDataset", "classes": NAMES}


@pytest.fixture
def file_of_names(tmp_path, monkeypatch):
    """names.txt in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("circle\r\nfive-pointed star\nring\n")
    return "names.txt"


@pytest.mark.parametrize(
    "cfg",
    [
        COCO,
        {**COCO, "classes": list(NAMES)},
        {"type": "RepeatDataset", "times": 2, "dataset": COCO},
        {"type": "ConcatDataset", "datasets": [COCO, COCO]},
        {"type": "RepeatDataset", "dataset": {"type": "ClassBalancedDataset", "dataset": COCO}},
        {"type": "RepeatDataset", "dataset": [COCO, COCO]},
        {"type": "MultiImageMixDataset", "dataset": COCO, "pipeline": []},
        [COCO, {"type": "CocoDataset"}],
    ],
    ids=["tuple", "list", "repeated", "concatenated", "balanced", "list repeated", "mixed", "list of data sets"],
)
def test_names_are_found_inside_wrappers(cfg):
    assert classes_of(cfg) == NAMES


def test_text_is_a_file_of_names_relative_to_the_working_directory(file_of_names):
    assert classes_of({"type": "CocoDataset", "classes": file_of_names}) == NAMES
    assert classes_of({"type": "RepeatDataset", "dataset": {"type": "CocoDataset", "classes": file_of_names}}) == NAMES
    assert classes_of([{"type": "CocoDataset", "classes": file_of_names}]) == NAMES
    # as mmdet reads it
    assert tuple(CocoDataset.get_classes(file_of_names)) == NAMES


def test_a_data_set_that_names_none_has_those_of_its_type():
    assert classes_of({"type": "CocoDataset"}) == CocoDataset.CLASSES
    assert classes_of({"type": "VOCDataset"}) == VOCDataset.CLASSES
    assert classes_of({"type": CocoDataset}) == CocoDataset.CLASSES


@pytest.mark.parametrize(
    "cfg", [None, {}, [], {"type": "CustomDataset"}, {"type": "Unknown"}, {"type": "RepeatDataset"}]
)
def test_a_config_that_says_nothing_has_none(cfg):
    assert classes_of(cfg) == ()


def test_a_word_that_names_no_file_is_the_only_class(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert classes_of({"type": "CocoDataset", "classes": "circle"}) == ("circle",)
    assert classes_of({"type": "CocoDataset", "classes": "tea cup"}) == ("tea cup",)
    (tmp_path / "circle").write_text("star\ncross\n")
    assert classes_of({"type": "CocoDataset", "classes": "circle"}) == ("star", "cross")


@pytest.mark.parametrize("name", ["circle.txt", "lists/circle", "lists\\circle"])
def test_a_missing_file_is_named_with_the_folder_and_the_other_way_to_write_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainError) as error:
        classes_of({"type": "CocoDataset", "classes": name})
    assert str(error.value) == (
        f"the config's data has classes = {name!r}, which names a file of classes: no such file (looked in "
        f"{tmp_path}). Give one with a class a line, or a list: a single class is [{name!r}]"
    )


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_no_class(name):
    with pytest.raises(TrainError, match="which names a file of classes"):
        classes_of({"type": "CocoDataset", "classes": name})


def test_a_data_set_of_one_class_is_read_with_its_name_alone(shapes_root):
    cfg = {
        "type": "CocoDataset", "ann_file": str(shapes_root / "annotations" / "train.json"), "pipeline": [],
        "classes": "star",
    }  # fmt: skip
    assert build(cfg, test_mode=False).CLASSES == ("star",)
    assert build(cfg, test_mode=True).CLASSES == ("star",)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "names.txt is empty"), (b"\xff\xfe", "names.txt.*cannot be read")],
    ids=["empty", "no text"],
)
def test_a_file_without_names_is_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(TrainError, match=message):
        classes_of({"type": "CocoDataset", "classes": "names.txt"})


@pytest.mark.parametrize("classes", [3, [1, 2], {"circle": 0}])
def test_classes_that_are_no_names_are_refused(classes):
    with pytest.raises(TrainError, match="expected a list of names or a file of them"):
        classes_of({"type": "CocoDataset", "classes": classes})


def saved(file, model, data):
    """A checkpoint of cskd-train whose config says alone which classes there are."""
    meta = {"format": FORMAT, "version": FORMAT_VERSION, "config": config_to_data({"model": model, "data": data})}
    save(file, {"state_dict": build_without_pretrained(model).state_dict(), "meta": {**meta, "CLASSES": []}})
    return TeacherPlan(checkpoint=str(file))


def test_a_teachers_file_of_names_is_read_and_not_taken_for_cocos_classes(narrow_model, tmp_path, file_of_names):
    data = {"train": {"type": "RepeatDataset", "dataset": {"type": "CocoDataset", "classes": file_of_names}}}
    plan = saved(tmp_path / "teacher.pth", narrow_model("GFL", classes=3), data)
    assert build_teacher(plan).classes == NAMES


def test_a_teachers_missing_file_of_names_is_an_error(narrow_model, tmp_path):
    data = {"train": {"type": "CocoDataset", "classes": "nowhere.txt"}}
    plan = saved(tmp_path / "teacher.pth", narrow_model("GFL", classes=3), data)
    with pytest.raises(TrainError, match=r"'nowhere\.txt', which names a file of classes: no such file"):
        build_teacher(plan)


def test_a_students_data_set_takes_its_classes_from_a_file_too(shapes_root, tmp_path):
    (tmp_path / "names.txt").write_text("star\ncross\n")
    cfg = {
        "type": "CocoDataset", "ann_file": str(shapes_root / "annotations" / "train.json"), "pipeline": [],
        "classes": str(tmp_path / "names.txt"),
    }  # fmt: skip
    assert build(cfg, test_mode=False).CLASSES == ("star", "cross")
    with pytest.raises(TrainError, match=r"none\.txt', which names a file of classes"):
        build({**cfg, "classes": str(tmp_path / "none.txt")}, test_mode=False)
