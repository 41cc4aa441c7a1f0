"""Labels, reports and pictures have each detector look at images as its own config says, wherever it says that."""

from __future__ import annotations

import json

import pytest
import torch
from mmcv import Config
from mmdet.datasets.pipelines import Compose
from rich.console import Console

from cskd_train.engine.build import build_split
from cskd_train.files.config import config_to_data, load_config
from cskd_train.mm.datasets import with_images_of
from cskd_train.mm.normalization import Normalization, normalized
from cskd_train.project import shown
from cskd_train.project.distill import _Way
from cskd_train.project.state import State
from cskd_train.report import side_by_side
from cskd_train.report.detected import Asked, _detections
from cskd_train.report.runs import Detector

from .test_distill import write_project
from .test_distill_teacher import teach
from .test_normalization import CAFFE, TORCHVISION, step_of

PIXELS = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), to_rgb=False)
PREPROCESSOR = {"type": "DetDataPreprocessor", "mean": CAFFE.mean, "std": CAFFE.std, "bgr_to_rgb": False}


@pytest.fixture
def weights(trained, tmp_path):
    """Weights alone, of the tiny detector."""
    contents = torch.load(trained / "best.pth", weights_only=True)
    torch.save({"state_dict": contents["state_dict"]}, tmp_path / "plain.pth")
    return tmp_path / "plain.pth"


def write_config(file, tiny_config, **changes):
    """The tiny detector's config with other values of some keys; None leaves one out."""
    data = {**config_to_data(load_config(tiny_config)), **changes}
    file.write_text("".join(f"{key} = {value!r}\n" for key, value in data.items() if value is not None))
    return file


def of_mmdet_3(file, tiny_config):
    """Normalised in the model; the classes are said by the checkpoint or nowhere."""
    model = {**config_to_data(load_config(tiny_config).model), "data_preprocessor": PREPROCESSOR}
    file.write_text(f"model = {model!r}\n")
    return file


def of_mmdet_2(file, tiny_config, classes=None):
    """The same in the pipelines."""
    data = config_to_data(load_config(tiny_config).data)
    for split in ("train", "val", "test"):
        data[split]["pipeline"] = normalized(data[split]["pipeline"], CAFFE)
        data[split]["classes"] = classes or data[split]["classes"]
    return write_config(file, tiny_config, data=data, test_pipeline=None, train_pipeline=None, normalize=None)


def detections(weights, config, shapes_root, tmp_path, cfg):
    detector = Detector("teacher", "teacher", None, weights, str(config), 1)
    asked = Asked("val", 6, {}, torch.device("cpu"), tmp_path / "cache", lambda *_: None)
    return _detections(detector, cfg, range(6), asked)


@pytest.mark.parametrize("root", ["shapes_root", "upright_root"])
def test_a_report_normalises_images_for_a_teacher_of_mmdet_3_as_its_model_does(
    root, weights, trained, tiny_config, tmp_path, request
):
    folder = request.getfixturevalue(root)
    cfg = load_config(tiny_config, {"data_root": str(folder)})
    contents = torch.load(trained / "best.pth", weights_only=True)
    torch.save({"state_dict": contents["state_dict"], "meta": {"CLASSES": cfg.classes}}, weights)
    found = [
        detections(weights, config, folder, tmp_path, cfg)
        for config in (
            of_mmdet_3(tmp_path / "three.py", tiny_config),
            of_mmdet_2(tmp_path / "two.py", tiny_config),
            tiny_config,
        )
    ]
    assert found[0] == found[1] != found[2]


def test_a_report_takes_the_classes_of_a_plain_checkpoint_from_its_config(weights, tiny_config, shapes_root, tmp_path):
    """The same boxes, each under the class that the config has at its place."""
    cfg = load_config(tiny_config, {"data_root": str(shapes_root)})
    backwards = of_mmdet_2(tmp_path / "backwards.py", tiny_config, cfg.classes[::-1])
    straight = of_mmdet_2(tmp_path / "straight.py", tiny_config)
    names = {category: name for name, category in zip(cfg.classes, build_split(cfg, "val").cat_ids, strict=True)}
    found = [
        [(names[one["category_id"]], one["bbox"]) for one in detections(weights, file, shapes_root, tmp_path, cfg)]
        for file in (straight, backwards)
    ]
    other = dict(zip(cfg.classes, cfg.classes[::-1], strict=True))
    assert sorted((other[name], box) for name, box in found[0]) == sorted(found[1])


def test_a_teacher_of_mmdet_3_labels_pictures_normalised_as_its_model_does(
    trained, weights, tiny_config, shapes_root, tmp_path
):
    contents = torch.load(trained / "best.pth", weights_only=True)
    torch.save({"state_dict": contents["state_dict"], "meta": {"CLASSES": load_config(tiny_config).classes}}, weights)
    made = []
    for write in (of_mmdet_3, of_mmdet_2):
        project = write_project(tmp_path / write.__name__, shapes_root)
        teach(project, weights, write(tmp_path / f"{write.__name__}.py", tiny_config), shapes_root / "images")
        way = _Way(project, None, True, None, "cpu", Console(quiet=True))
        way.teacher.prepare(way.state, 2)
        made.append(json.loads((project / "data" / "unlabeled.json").read_text())["annotations"])
    assert made[0] == made[1] != []


def test_the_picture_of_a_project_shows_a_teacher_on_its_own_images(trained, shapes_root, tmp_path, monkeypatch):
    """The teacher is the first column, and the project's config, a student's, says which images are drawn."""
    contents = torch.load(trained / "best.pth", weights_only=True)
    test = contents["meta"]["config"]["data"]["test"]
    test["pipeline"] = normalized(test["pipeline"], CAFFE)
    torch.save(contents, tmp_path / "teacher.pth")
    seen = []
    monkeypatch.setattr(side_by_side, "detect", lambda _, dataset: seen.append(normalization_of(dataset)) or [])
    students = load_config(trained / "config.json").data.test
    best = {"teacher": tmp_path / "teacher.pth", "student": trained / "best.pth"}
    state, console = State.read(tmp_path / "distill.json"), Console(quiet=True)
    shown.picture(tmp_path, state, best, config_to_data(students), [], console)
    assert seen == [CAFFE, TORCHVISION]


def normalization_of(dataset):
    (step,) = (one for one in dataset.pipeline.transforms[1].transforms.transforms if type(one).__name__ == "Normalize")
    mean, std = (tuple(round(float(one), 3) for one in values) for values in (step.mean, step.std))
    return Normalization(mean, std, step.to_rgb)


LOAD, RESIZE, PAD = {"type": "LoadImageFromFile"}, {"type": "Resize", "keep_ratio": True}, {"type": "Pad"}
WHOLE = {"type": "Collect", "keys": ["img"]}


def nested(*transforms, after=()):
    return [
        LOAD,
        {"type": "MultiScaleFlipAug", "img_scale": (96, 64), "flip": False, "transforms": [*transforms]},
        *after,
    ]


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        ([LOAD, step_of(TORCHVISION), PAD], [LOAD, step_of(CAFFE), PAD]),
        (nested(RESIZE, step_of(TORCHVISION), PAD), nested(RESIZE, step_of(CAFFE), PAD)),
        (nested(RESIZE, {**PAD, "pad_val": 114}, WHOLE), nested(RESIZE, step_of(CAFFE), PAD, WHOLE)),
        (nested(RESIZE, PAD, after=[WHOLE]), nested(RESIZE, step_of(CAFFE), PAD, after=[WHOLE])),
        ([LOAD, RESIZE, WHOLE], [LOAD, RESIZE, step_of(CAFFE), WHOLE]),
    ],
)
def test_a_pipeline_is_normalised_once_and_before_it_pads(pipeline, expected):
    before = repr(pipeline)
    found = normalized(pipeline, CAFFE)
    assert repr(found) == repr(normalized(expected, CAFFE)) == repr(normalized(found, CAFFE))
    assert Normalization.of_config({"test_pipeline": found}) == CAFFE
    assert [str(found).count(word) for word in ("Normalize", "pad_val")] == [1, 0]
    assert repr(pipeline) == before


def test_pixels_for_a_detector_without_normalisation_are_padded_with_zeros(shapes_root):
    pipeline = normalized([LOAD, step_of(CAFFE), {"type": "Pad", "size": (160, 192)}], PIXELS)
    file = next((shapes_root / "images").iterdir())
    found = Compose(pipeline)({"img_info": {"filename": str(file)}, "img_prefix": None})["img"]
    height, width = Compose([LOAD])({"img_info": {"filename": str(file)}, "img_prefix": None})["img"].shape[:2]
    assert (found[:height, :width].max() > 50, found[height:].max(), found[:, width:].max()) == (True, 0, 0)


@pytest.mark.parametrize(
    "own",
    [
        {"data": {"train": {"pipeline": [step_of(CAFFE)]}}},
        {"train_pipeline": [step_of(CAFFE)]},
        {"model": {"data_preprocessor": PREPROCESSOR}},
        {"model": {"data_preprocessor": PREPROCESSOR}, "data": {"val": {"pipeline": [LOAD, PAD]}}},
    ],
)
def test_a_config_without_a_pipeline_for_evaluation_still_says_how_images_are_normalised(own):
    cfg = Config({"data": {"val": {"type": "CocoDataset", "pipeline": [LOAD, step_of(TORCHVISION), PAD]}}})
    changed = with_images_of(own, cfg, "val")
    assert list(changed.data.val.pipeline) == [LOAD, step_of(CAFFE), PAD]
    assert cfg.data.val.pipeline[1] == step_of(TORCHVISION)


def test_a_config_that_says_nothing_of_images_changes_nothing():
    cfg = Config({"data": {"val": {"type": "CocoDataset", "pipeline": [LOAD, step_of(TORCHVISION), PAD]}}})
    assert with_images_of({"model": {"type": "RetinaNet"}}, cfg, "val") is cfg
