"""From a data set to an exported, measured student, through the command lines alone."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "train" / "tiny_retinanet.py"


@pytest.fixture
def call(capsys):
    """Run a command line in this process; gives its exit code and output."""

    def run(program, *arguments):
        from cskd_deploy.cli import main as deploy
        from cskd_train.cli import main as train

        with pytest.raises(SystemExit) as stopped:
            {"cskd-train": train, "cskd-deploy": deploy}[program]([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run


def recipe(folder, teacher):
    """A recipe as a user writes one: the student's config and a `distill` block."""
    file = folder / "distilled.py"
    file.write_text(f"_base_ = [{str(TINY)!r}]\ndistill = dict(teacher=dict(checkpoint={str(teacher)!r}))\n")
    return file


@pytest.mark.slow
def test_teacher_to_distilled_student_to_onnx_to_latency_and_map(call, shapes_root, tmp_path):
    settings = ("--set", f"data_root={shapes_root}")
    teacher, student, model = tmp_path / "teacher", tmp_path / "student", tmp_path / "student.onnx"
    code, _, error = call("cskd-train", "run", TINY, "--work-dir", teacher, "--seed", 1, *settings)
    assert code == 0, error
    distilled = recipe(tmp_path, teacher / "best.pth")
    code, out, error = call("cskd-train", "run", distilled, "--work-dir", student, *settings)
    assert code == 0, error
    checkpoint = student / "best.pth"
    assert str(checkpoint) in out
    code, out, error = call("cskd-deploy", "export", "--checkpoint", checkpoint, "--output", model)
    assert code == 0, error
    assert str(model) in out
    images, annotations = shapes_root / "images", shapes_root / "annotations" / "val.json"

    bench = ("bench", model, "--reference", checkpoint, "--duration", 0.1, "--json")
    code, out, error = call("cskd-deploy", *bench)
    assert code == 0, error
    results = json.loads(out)["results"]
    assert len(results) == 2
    assert all(result["milliseconds"]["total"]["p50"] > 0 for result in results)

    evaluate = ("eval", model, "--ann", annotations, "--images", images, "--reference", checkpoint)
    code, out, error = call("cskd-deploy", *evaluate, "--max-drop", 0.1, "--json")
    assert code == 0, error
    evaluation = json.loads(out)
    code, out, error = call("cskd-train", "test", checkpoint, "--json")
    assert code == 0, error
    tested = json.loads(out)
    assert evaluation["reference_metrics"]["metrics"] == pytest.approx(tested["metrics"])
    assert abs(evaluation["drop_points"]) <= 0.1
    assert evaluation["detections"] > 100

    code, _, error = call("cskd-train", "show", checkpoint, "--out", tmp_path / "picture.png")
    assert code == 0, error
    assert cv2.imread(str(tmp_path / "picture.png")) is not None


@pytest.mark.slow
def test_real_photographs_give_the_same_map_in_onnx_as_in_pytorch(call, bccd_root, tmp_path):
    classes = "('RBC','WBC','Platelets')"
    settings = [f"data_root={bccd_root}", "model.bbox_head.num_classes=3", "runner.max_epochs=1"]
    settings += [f"data.{split}.classes={classes}" for split in ("train", "val", "test")]
    options = [part for setting in settings for part in ("--set", setting)]
    code, _, error = call("cskd-train", "run", TINY, "--work-dir", tmp_path / "student", *options)
    assert code == 0, error
    assert "annotation 887 of BloodImage_00338.jpg" in error
    checkpoint, model = tmp_path / "student" / "best.pth", tmp_path / "student.onnx"
    # The photographs are 640 x 480: at 128 x 96 the file sees exactly what mmdet sees, without further padding.
    export = ("export", "--checkpoint", checkpoint, "--output", model, "--input-size", 96, 128)
    code, _, error = call("cskd-deploy", *export)
    assert code == 0, error
    annotations = bccd_root / "annotations" / "val.json"
    evaluate = ("eval", model, "--ann", annotations, "--images", bccd_root / "images", "--reference", checkpoint)
    code, out, error = call("cskd-deploy", *evaluate, "--max-drop", 0.1, "--json")
    assert code == 0, error
    evaluation = json.loads(out)
    assert evaluation["images"] == 87
    assert evaluation["reference_metrics"]["metrics"]["bbox_mAP"] > 0.001
    assert abs(evaluation["drop_points"]) <= 0.1
