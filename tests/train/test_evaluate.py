"""COCO metrics of detections, and `cskd-train test`."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import cskd_data
from cskd_data import read
from cskd_data.error_kinds import error_kinds
from cskd_data.results import COCO_METRICS
from cskd_train.engine.build import build_split
from cskd_train.engine.evaluate import build_trained, detect, evaluate, evaluate_checkpoint
from cskd_train.errors import TrainError
from cskd_train.files import checkpoints
from cskd_train.files.checkpoints import load_checkpoint
from cskd_train.files.config import load_config


@pytest.fixture(scope="module")
def cfg(tiny_config, shapes_root):
    return load_config(tiny_config, {"data_root": str(shapes_root)})


@pytest.fixture(scope="module")
def val_set(cfg):
    return build_split(cfg, "val")


@pytest.fixture(scope="module")
def val_file(shapes_root):
    return shapes_root / "annotations" / "val.json"


def perfect(annotations):
    """Every annotated box as a detection."""
    return [
        {**{key: one[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9}
        for one in json.loads(annotations.read_text())["annotations"]
    ]


def score(dataset, detections):
    return cskd_data.evaluate(dataset.normal, detections, split="val")


def test_perfect_detections_score_one(val_set, val_file):
    result = score(val_set, perfect(val_file))
    assert result.mean_average_precision == pytest.approx(1.0)
    assert all(ap == pytest.approx(1.0) for ap in result.per_class.values() if ap is not None)


def test_no_detections_score_zero(val_set):
    result = score(val_set, [])
    assert result.metrics["bbox_mAP"] == 0
    assert result.detections == 0


def test_the_lines_are_those_of_pycocotools(val_set, val_file):
    detections = perfect(val_file)[::2]
    with contextlib.redirect_stdout(printed := io.StringIO()):
        truth = COCO(str(val_file))
        protocol = COCOeval(truth, truth.loadRes([dict(one) for one in detections]), "bbox")
        protocol.evaluate()
        protocol.accumulate()
        protocol.summarize()
    result = score(val_set, detections)
    assert str(result).splitlines() == printed.getvalue().splitlines()[-12:]
    assert [result.metrics[name] for name in COCO_METRICS] == protocol.stats.tolist()
    assert json.loads(json.dumps(result.to_dict()))["metrics"] == result.metrics


def test_the_ap_of_a_class_keeps_its_name_when_the_config_orders_classes_otherwise(cfg, val_file):
    names = {one["id"]: one["name"] for one in json.loads(val_file.read_text())["categories"]}
    circles = [one for one in perfect(val_file) if names[one["category_id"]] == "circle"]
    order = ("cross", "circle", "star", "ring", "square", "triangle")
    settings = cfg.copy()
    settings.data.val.classes = order
    result = score(build_split(settings, "val"), circles)
    assert list(result.per_class) == list(order)
    assert result.per_class["circle"] == pytest.approx(1.0)
    assert all(not ap for name, ap in result.per_class.items() if name != "circle")


def test_a_class_without_boxes_has_no_ap(cfg, val_file, tmp_path):
    annotations = json.loads(val_file.read_text())
    stars = {one["id"] for one in annotations["categories"] if one["name"] == "star"}
    annotations["annotations"] = [one for one in annotations["annotations"] if one["category_id"] not in stars]
    (starless := tmp_path / "val.json").write_text(json.dumps(annotations))
    settings = cfg.copy()
    settings.data.val.ann_file = str(starless)
    result = score(build_split(settings, "val"), perfect(starless))
    assert result.per_class["star"] is None
    assert result.metrics["bbox_mAP"] == pytest.approx(1.0)
    assert " star          -" in result.per_class_table()


def test_evaluation_puts_the_model_back_and_leaves_its_random_state(cfg, trained, val_set):
    model = build_trained(cfg, checkpoints.load_checkpoint(trained / "best.pth"), "cpu").train()
    before, seen = torch.get_rng_state(), []
    result = evaluate(model, cfg, "val", lambda done, total: seen.append((done, total)), val_set)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert seen == [(done, 6) for done in range(1, 7)]
    assert result.images == 6


def test_a_checkpoint_scores_again_what_it_scored_in_training(trained):
    found = checkpoints.load_checkpoint(trained / "best.pth")
    assert evaluate_checkpoint(found).metrics == found.metrics


def test_the_test_command_prints_the_table_and_writes_the_detections(command_line, trained, val_file, tmp_path):
    out_file = tmp_path / "detections.json"
    code, out, err = command_line("test", trained / "best.pth", "--out", out_file)
    assert code == 0, err
    expected = checkpoints.load_checkpoint(trained / "best.pth").metrics["bbox_mAP_50"]
    assert f" Average Precision  (AP) @[ IoU=0.50      | area=   all | maxDets=100 ] = {expected:.3f}" in out
    assert " triangle" in out
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(val_file))
        protocol = COCOeval(truth, truth.loadRes(str(out_file)), "bbox")
        protocol.evaluate()
        protocol.accumulate()
        protocol.summarize()
    assert protocol.stats[1] == pytest.approx(expected, rel=1e-12)


def test_the_test_command_speaks_json(command_line, trained):
    code, out, _ = command_line("test", trained / "best.pth", "--json", "--split", "test")
    found = checkpoints.load_checkpoint(trained / "best.pth")
    data = json.loads(out)
    assert code == 0
    assert data["sha256"] == found.sha256
    assert data["metrics"] == found.metrics  # the tiny config's test split is its val split
    assert data["split"] == "test"
    assert "errors" not in data


def test_the_test_command_says_what_each_kind_of_error_costs(command_line, trained, val_file, tmp_path):
    detections = tmp_path / "detections.json"
    code, out, err = command_line("test", trained / "best.pth", "--errors", "--json", "--out", detections)
    assert code == 0, err
    data = json.loads(out)
    expected = error_kinds(read(val_file), detections)
    assert data["errors"] == expected.to_dict()
    assert data["errors"]["ap"] == pytest.approx(100 * data["metrics"]["bbox_mAP_50"], abs=1e-6)
    code, out, err = command_line("test", trained / "best.pth", "--errors")
    assert code == 0, err
    assert f" missed          {expected.dap['missed']:5.1f}  {expected.counts['missed']:6d}\n" in out


def test_a_plain_checkpoint_is_evaluated_by_a_config(command_line, trained, tiny_config, shapes_root, tmp_path):
    found = checkpoints.load_checkpoint(trained / "best.pth")
    torch.save({"state_dict": found.state_dict, "meta": {"epoch": 2}}, plain := tmp_path / "plain.pth")
    assert command_line("test", plain)[0] == 2
    code, out, err = command_line("test", plain, "--config", tiny_config, "--json", "--set", f"data_root={shapes_root}")
    assert code == 0, err
    assert json.loads(out)["metrics"] == found.metrics


class Otherwise(torch.nn.Module):
    """A detector whose result of an image is given in another form."""

    def __init__(self, detector, form):
        super().__init__()
        self.detector, self.form = detector, form

    def forward(self, **arguments):
        return [self.form(boxes) for boxes in self.detector(**arguments)]


def test_boxes_count_where_a_detector_finds_masks_beside_them(cfg, trained, val_set):
    model = build_trained(cfg, load_checkpoint(trained / "best.pth"), "cpu")
    found = detect(model, val_set)
    assert found
    assert detect(Otherwise(model, lambda boxes: (boxes, [[] for _ in boxes])), val_set) == found
    with pytest.raises(TrainError, match="the model gives a dict for each image in the place of boxes of classes"):
        detect(Otherwise(model, lambda boxes: {"ins_results": (boxes, [])}), val_set)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "data.val.ann_file=/nowhere/val.json"], "/nowhere/val.json"),
        (["--set", "data.test=None", "--split", "test"], "the config has no data.test (it has: train, val)"),
        (["--set", "model.bbox_head.num_classes=5"], "another architecture"),
        (["--set", "data.val.classes=['circle','star']"], "val.json are circle, star, expected those of the model"),
        (["--set", "data.vall=1"], "did you mean val"),
        (["--out", "/nowhere/out.json"], "the folder /nowhere does not exist"),
        (["--config", "nothing.py"], "nothing.py: no such file"),
    ],
)
def test_bad_input_of_the_test_command_is_one_message(command_line, trained, options, message):
    code, out, err = command_line("test", trained / "best.pth", *options)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert out == ""


def test_a_file_that_is_no_checkpoint_ends_the_test_command(command_line, tmp_path):
    (path := tmp_path / "notes.pth").write_text("hello")
    code, _, err = command_line("test", path)
    assert code == 2
    assert "is not a PyTorch checkpoint" in err
