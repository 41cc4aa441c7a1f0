"""What a config says once reaches every place: in CSKD's own configs, in mmdet's, and in a user's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cskd_train.errors import TrainError
from cskd_train.files.config import config_from_data, config_to_data, load_config
from cskd_train.files.settings import check_settings

ROOT = Path(__file__).parents[2] / "configs"
CAFFE = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "to_rgb": False}


@pytest.fixture
def write(tmp_path):
    def write(text, name="child.py"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def refused(path, overrides=None):
    with pytest.raises(TrainError) as error:
        load_config(path, overrides)
    return str(error.value)


def steps(cfg, split):
    """Type -> step of a pipeline, those inside of MultiScaleFlipAug too."""
    pipeline = cfg.data[split].pipeline
    return {step.type: step for step in [*pipeline, *(one for step in pipeline for one in step.get("transforms", []))]}


def scales(cfg):
    return [steps(cfg, "train")["Resize"].img_scale] + [
        steps(cfg, split)["MultiScaleFlipAug"].img_scale for split in ("val", "test")
    ]


def normalizations(cfg):
    found = [steps(cfg, split)["Normalize"] for split in ("train", "val", "test")]
    return [{key: value for key, value in step.items() if key != "type"} for step in found]


def classes(cfg):
    head = cfg.model.get("bbox_head") or cfg.model.roi_head.bbox_head
    return [tuple(cfg.data[split].get("classes", ())) for split in ("train", "val", "test")], head.num_classes


def child(write, base, **values):
    lines = [f"{key} = {value!r}\n" for key, value in values.items()]
    return write(f"_base_ = [{str(base)!r}]\n" + "".join(lines))


OWN = [ROOT / "bccd/retinanet_r18_bccd.py", ROOT / "cards/faster_rcnn_r18_cards.py", ROOT / "demo/gfl_r50_shapes.py"]
STOCK = "mmdet::faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py"
PASCAL = "mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py"


@pytest.fixture(params=["child", "--set"])
def load(request, write):
    """Load a base with values set in a child, or by `--set`."""

    def load(base, **values):
        if request.param == "--set":
            return load_config(base, values)
        return load_config(child(write, base, **values))

    return load


@pytest.mark.parametrize("base", OWN, ids=lambda path: path.stem)
def test_each_value_reaches_every_place_in_our_own_configs(load, base):
    cfg = load(base, classes=("a", "b"), image_scale=(96, 64), img_norm_cfg=CAFFE, data_root="elsewhere")
    assert scales(cfg) == [(96, 64)] * 3
    assert normalizations(cfg) == [CAFFE] * 3
    assert classes(cfg) == ([("a", "b")] * 3, 2)
    assert [cfg.data[split].data_root for split in ("train", "val", "test")] == ["elsewhere"] * 3
    assert check_settings(cfg) == []


def test_each_value_reaches_every_place_in_a_config_of_mmdet(load):
    cfg = load(STOCK, classes=("a", "b", "c"), img_norm_cfg=CAFFE, data_root="elsewhere")
    assert normalizations(cfg) == [CAFFE] * 3
    assert classes(cfg) == ([("a", "b", "c")] * 3, 3)
    assert cfg.data.train.ann_file == "elsewhere/annotations/instances_train2017.json"
    assert cfg.data.test.img_prefix == "elsewhere/val2017/"
    check_settings(cfg)


def test_data_sets_inside_of_wrappers_are_reached(load):
    cfg = load(PASCAL, classes=("a", "b"), data_root="new/")
    inner = cfg.data.train.dataset
    assert inner.ann_file[0] == "new/VOC2007/ImageSets/Main/trainval.txt"
    assert (tuple(inner.classes), cfg.model.bbox_head.num_classes) == (("a", "b"), 2)


def test_a_coco_recipe_takes_classes_that_it_never_named(load):
    cfg = load(ROOT / "student/gfl_r18_fpn_ms_1x_coco.py", classes=["cat", "dog"])
    assert classes(cfg) == ([("cat", "dog")] * 3, 2)


PYTHON = """
classes = ("a", "b", "c")
image_scale = (64, 32)
train = dict(type="CocoDataset", classes=classes, ann_file="x.json", pipeline=[
    dict(type="Resize", img_scale=[image_scale, (image_scale[0] * 2, image_scale[1] * 2)])])
model = dict(type="RetinaNet", bbox_head=dict(type="RetinaHead", num_classes=len(classes)))
data = dict(train=train)
optimizer = dict(type="SGD", lr=0.01)
runner = dict(type="EpochBasedRunner", max_epochs=1)
"""


def test_what_a_base_computes_from_a_value_follows(write, load):
    cfg = load(write(PYTHON, "base.py"), image_scale=(10, 20), classes=("d",))
    assert cfg.data.train.pipeline[0].img_scale == [(10, 20), (20, 40)]
    assert (list(cfg.data.train.classes), cfg.model.bbox_head.num_classes) == (["d"], 1)
    assert check_settings(cfg) == []


@pytest.mark.parametrize(
    ("text", "expected"), [("names.txt", ("cup", "tea spoon", "plate", "jug")), ("traffic light", ("traffic light",))]
)
def test_classes_as_text_are_the_names_that_it_means(write, load, monkeypatch, tmp_path, text, expected):
    monkeypatch.chdir(tmp_path)
    write("cup\ntea spoon\nplate\njug\n", "names.txt")
    cfg = load(write(PYTHON, "base.py"), classes=text)
    assert (tuple(cfg.data.train.classes), cfg.model.bbox_head.num_classes) == (expected, len(expected))
    (tmp_path / "names.txt").unlink()
    if text == "names.txt":
        with pytest.raises(TrainError, match=r"a file of classes: no such file"):
            load(write(PYTHON, "base.py"), classes=text)


def test_a_file_of_classes_by_set_reaches_every_head_of_our_own_configs(write, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write("a\nb\n", "names.txt")
    assert classes(load_config(OWN[1], {"classes": "names.txt"})) == ([("a", "b")] * 3, 2)


def test_a_part_of_a_value_may_be_set(write):
    path = write("_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']\nimg_norm_cfg = dict(to_rgb=False)\n")
    expected = [{"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "to_rgb": False}] * 3
    assert normalizations(load_config(path)) == expected
    assert normalizations(load_config(STOCK, {"img_norm_cfg.to_rgb": False})) == expected


def test_set_goes_before_the_file_and_the_last_file_before_those_below(write):
    child(write, OWN[0], image_scale=(32, 32))
    top = write("_base_ = 'child.py'\nimage_scale = (48, 32)\n", "top.py")
    assert scales(load_config(top)) == [(48, 32)] * 3
    assert scales(load_config(top, {"image_scale": (16, 8)})) == [(16, 8)] * 3


def test_a_line_in_error_keeps_its_number(write):
    base = "data_root = (\n    'a'\n    'b'\n); c = 1\ny = data_root['x']\n"
    write(base.replace("['x']", "+ 'x'") + PYTHON, "base.py")
    assert load_config(child(write, "base.py", data_root="new")).y == "newx"
    write("data_root = dict(\n    x='a'\n); c = 1\ny = data_root['x']\n" + PYTHON, "base.py")
    assert "line 4: TypeError" in refused(write("_base_ = 'base.py'\n"), {"data_root": "new"})


def test_a_steps_scale_is_still_set_by_its_place():
    cfg = load_config(OWN[0], {"data.train.pipeline.2.img_scale": (50, 40)})
    assert scales(cfg) == [(50, 40), (256, 192), (256, 192)]


# what cannot be honoured


def test_a_scale_that_nothing_takes_is_refused_with_the_settings_to_write(write, load):
    with pytest.raises(TrainError) as error:
        load(STOCK, image_scale=(64, 64))
    assert "image_scale" in str(error.value)
    assert "data.train.pipeline.2.img_scale = (1333, 800)" in str(error.value)
    with pytest.raises(TrainError) as error:
        load(ROOT / "student/gfl_r18_fpn_ms_1x_coco.py", image_scale=(64, 64))
    assert "train_resize.img_scale = [(1333, 480), (1333, 800)], test_scale = (1333, 800): set that" in str(error.value)


def test_an_assignment_that_cannot_be_followed_is_refused(write):
    write(PYTHON.replace("image_scale = (64, 32)", "for image_scale in [(64, 32)]:\n    pass"), "base.py")
    assert "base.py, line 3, sets it otherwise" in refused(child(write, "base.py", image_scale=(1, 2)))


def test_a_data_set_with_other_classes_of_its_own_is_refused(write):
    path = write(PYTHON.replace("classes=classes", "classes=('x',)"), "base.py")
    assert "('a', 'b', 'c'), but other classes stand in data.train.classes: set these to the same" in refused(path)


def test_classes_of_a_config_that_a_program_has_written_out_are_refused(write):
    data = config_to_data(load_config(OWN[0]))
    path = write(json.dumps(data), "config.json")
    assert scales(load_config(path)) == [[256, 192]] * 3
    assert "set data.train.pipeline.2.img_scale" in refused(path, {"image_scale": (1, 2)})
    assert "nothing reads it; set data.train.pipeline" in refused(path, {"img_norm_cfg": CAFFE})
    assert load_config(path, {"data_root": "new"}).data.val.data_root == "new"
    with pytest.raises(TrainError, match="has been read already"):
        config_from_data(data, {"classes": ("a",)})


# num_classes


def test_a_number_of_classes_beside_the_classes_is_the_users(write):
    text = f"_base_ = [{str(OWN[0])!r}]\nclasses = ('a', 'b')\nmodel = dict(bbox_head=dict(num_classes=5))\n"
    path = write(text)
    assert load_config(path).model.bbox_head.num_classes == 5
    assert load_config(path, {"classes": ("a",)}).model.bbox_head.num_classes == 1
    grandchild = write("_base_ = 'child.py'\nclasses = ('a', 'b', 'c', 'd')\n", "grandchild.py")
    assert load_config(grandchild).model.bbox_head.num_classes == 4
    above = write("_base_ = 'grandchild.py'\nmodel = dict(bbox_head=dict(num_classes=6))\n", "above.py")
    assert load_config(above).model.bbox_head.num_classes == 6


def test_a_number_of_classes_by_set_is_the_users(write):
    chosen = {"classes": ("a", "b"), "model.roi_head.bbox_head.num_classes": 7}
    assert load_config(OWN[1], chosen).model.roi_head.bbox_head.num_classes == 7


def test_a_run_refuses_both_numbers(write, command_line, shapes_root):
    tiny = Path(__file__).with_name("tiny_retinanet.py")
    code, _, err = command_line(
        "run", tiny, "--dry-run", "--set", f"data_root={shapes_root}", "--set", "model.bbox_head.num_classes=9"
    )
    assert code == 2
    assert "bbox_head has 9 classes, the data has 6" in err


# names of bases


def test_a_base_is_found_by_the_name_of_its_package(write, tmp_path, monkeypatch):
    path = write(
        '_base_ = ["cskd::_base_/fcos_r18.py", "cskd::_base_/dataset.py", "cskd::_base_/adamw.py"]\n'
        "data_root, image_scale = 'x', (96, 64)\nclasses = ('a',)\n"
    )
    monkeypatch.chdir(tmp_path)
    cfg = load_config("child.py")
    assert (cfg.model.type, scales(cfg)[0], classes(cfg)[1]) == ("FCOS", (96, 64), 1)
    assert load_config(path).model == cfg.model


def test_an_unknown_name_of_a_base_offers_near_ones(write):
    assert "cskd-train ships no such file; near ones: cskd::_base_/fcos_r18.py" in refused(
        write("_base_ = 'cskd::_base_/fcos_r8.py'\n")
    )


def test_what_a_shipped_config_of_mmdet_sets_stays_as_mmdet_reads_it(write, monkeypatch):
    write(PYTHON, "base.py")
    path = child(write, "base.py", image_scale=(10, 20))
    assert load_config(path).data.train.pipeline[0].img_scale == [(10, 20), (20, 40)]
    monkeypatch.setattr("cskd_train.files.once.shipped_by", lambda file: "mmdet::")
    assert load_config(path).data.train.pipeline[0].img_scale == [(64, 32), (128, 64)]
