"""The functions of `cskd_deploy` itself: what they give is what the commands print."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest

import cskd_deploy
from cskd_data import CskdError
from cskd_data.images import list_images, read_image
from cskd_deploy import DeployError

from .conftest import ABSENT

pytestmark = pytest.mark.filterwarnings("ignore:.*boxes over the edge of the image")
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def photo(shapes_root):
    return list_images(shapes_root / "images")[1]


# What is imported


def in_a_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_package_alone_imports_nothing_but_python():
    code = "import sys, json, cskd_deploy; print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    heavy = {"numpy", "cv2", "click", "rich", "onnxruntime", "cskd_data", *ABSENT}
    assert not heavy.intersection(in_a_process(code))


def test_all_that_it_offers_is_there_without_torch_and_nothing_else():
    code = f"""
import sys, json
sys.modules.update(dict.fromkeys({ABSENT}))
import cskd_deploy
for name in cskd_deploy.__all__:
    getattr(cskd_deploy, name)
print(json.dumps([name for name in cskd_deploy.__all__ if name not in dir(cskd_deploy)]))
"""
    assert in_a_process(code) == []
    assert sorted(cskd_deploy.__all__) == cskd_deploy.__all__
    with pytest.raises(AttributeError, match="module 'cskd_deploy' has no attribute 'laod'"):
        _ = cskd_deploy.laod


def test_every_module_can_be_the_first_that_is_imported():
    code = """
import importlib, json, pkgutil, sys, cskd_deploy
names = [one.name for one in pkgutil.walk_packages(cskd_deploy.__path__, "cskd_deploy.") if "__main__" not in one.name]
for name in names:
    for loaded in [one for one in sys.modules if one.startswith("cskd_deploy.")]:
        if not loaded.endswith(".operators"):  # torch takes operators of a name once in a process
            del sys.modules[loaded]
    importlib.import_module(name)
print(json.dumps(names))
"""
    assert len(in_a_process(code)) > 50


# The examples in the documents


def examples():
    readme = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    docstring = re.search(r"(?:^    .*\n|^\n)+", cskd_deploy.__doc__ or "", flags=re.MULTILINE)
    return {
        "README": [block for block in readme if "import cskd_deploy" in block],
        "docstring": [] if docstring is None else [textwrap.dedent(docstring[0])],
    }


@pytest.mark.parametrize("where", ["README", "docstring"])
def test_the_example_in_the_documents_prints_what_infer_finds(
    where, deploy, model_file, photo, tmp_path, monkeypatch, capsys
):
    (code,) = examples()[where]
    shutil.copy(model_file, tmp_path / "student.onnx")
    shutil.copy(photo, tmp_path / "photo.jpg")
    done = deploy("infer", tmp_path / "student.onnx", tmp_path / "photo.jpg", "--json", "-", "--score-thr", 0.05)
    (image,) = json.loads(done.out)["images"]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(README), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(image["detections"]) > 1
    for line, found in zip(lines, image["detections"], strict=True):
        name, score, box = line.split(maxsplit=2)
        assert (name, float(score)) == (found["class"], pytest.approx(found["score"], abs=1e-4))
        assert [float(value) for value in box.strip("[]").split()] == pytest.approx(found["box"], abs=0.01)


# load


@pytest.mark.parametrize("kind", [str, Path])
def test_a_loaded_model_detects_what_infer_finds(kind, deploy, exported, photo):
    model = exported("FCOS").model
    done = deploy("infer", model, photo, "--json", "-", "--score-thr", 0.05)
    (image,) = json.loads(done.out)["images"]
    detector = cskd_deploy.load(kind(model), threads=1)
    detections = detector.detect(read_image(photo))
    assert isinstance(detector, cskd_deploy.Detector)
    assert isinstance(detections, cskd_deploy.Detections)
    assert len(detections) == len(image["detections"]) > 1
    np.testing.assert_allclose(detections.boxes, [found["box"] for found in image["detections"]], atol=1e-2)
    assert [detector.classes[label] for label in detections.labels] == [one["class"] for one in image["detections"]]
    detector.close()


def test_a_checkpoint_is_loaded_too(exported, photo):
    with cskd_deploy.load(str(exported("FCOS").checkpoint), threads=1) as detector:
        ours = detector.detect(read_image(photo))
    with cskd_deploy.load(exported("FCOS").model) as detector:
        np.testing.assert_allclose(ours.scores, detector.detect(read_image(photo)).scores, atol=1e-4)


def test_a_closed_detector_says_so_and_is_closed_once(model_file, photo, monkeypatch):
    detector = cskd_deploy.load(model_file)
    calls = []
    monkeypatch.setattr(detector.backend, "close", lambda: calls.append("closed"))
    with pytest.raises(KeyError), detector:
        raise KeyError("in the block")
    assert calls == ["closed"]
    detector.close()
    assert calls == ["closed"]
    with pytest.raises(DeployError, match="has been closed: load it again"):
        detector.detect(read_image(photo))


def test_options_reach_the_runtime(model_file):
    with cskd_deploy.load(model_file, threads=1) as detector:
        assert detector.backend.session.get_session_options().intra_op_num_threads == 1  # type: ignore[attr-defined]
    with pytest.raises(DeployError, match=r"tensorrt does not run .*student\.onnx"):
        cskd_deploy.load(model_file, backend="tensorrt")
    with pytest.raises(DeployError, match="does not exist"):
        cskd_deploy.load("nowhere.onnx")


@pytest.mark.parametrize(
    ("image", "given"),
    [
        (None, "None, which cv2.imread gives for a file that it cannot read"),
        ("photo.jpg", "<class 'str'>"),
        (np.zeros((8, 9), np.uint8), r"uint8 \(8, 9\)"),
        (np.zeros((8, 9, 4), np.uint8), r"uint8 \(8, 9, 4\)"),
        (np.zeros((3, 8, 9), np.uint8), r"uint8 \(3, 8, 9\)"),
        (np.zeros((8, 9, 3), np.float32), r"float32 \(8, 9, 3\)"),
        (np.zeros((0, 9, 3), np.uint8), r"uint8 \(0, 9, 3\)"),
    ],
)
def test_what_is_no_image_is_refused_with_what_it_is(image, given, model_file):
    with (
        cskd_deploy.load(model_file) as detector,
        pytest.raises(DeployError, match=f"in BGR order, was given .*{given}"),
    ):
        detector.detect(image)


# export


def test_an_export_is_the_file_of_the_command_beside_the_checkpoint(deploy, exported, tmp_path):
    checkpoint = tmp_path / "best.pth"
    shutil.copy(exported("FCOS").checkpoint, checkpoint)
    lines: list[str] = []
    result = cskd_deploy.export(
        str(checkpoint), input_sizes=[(96, 160), (160, 96)], graph_input="float", batch=None, progress=lines.append
    )
    assert isinstance(result, cskd_deploy.ExportResult)
    assert result.path == tmp_path / "best.onnx"
    assert result.manifest.preprocessing.canvases == ((96, 160), (160, 96))
    assert (result.manifest.graph.input, result.manifest.graph.batch) == ("float", None)
    assert any("verifying" in line for line in lines)
    words = ("--input-size", 96, 160, "--input-size", 160, 96, "--input", "float", "--batch", "any")
    assert deploy("export", "--checkpoint", checkpoint, *words, "-o", tmp_path / "command.onnx").code == 0
    assert (tmp_path / "command.onnx").read_bytes() == result.path.read_bytes()


@pytest.mark.parametrize(("precision", "target"), [("fp16", None), ("int8", "tensorrt")])
def test_lower_precision_is_the_file_of_the_command(precision, target, deploy, exported, shapes_root, tmp_path):
    checkpoint = tmp_path / "best.pth"
    shutil.copy(exported("RetinaNet").checkpoint, checkpoint)
    images, listed = shapes_root / "images", shapes_root / "annotations" / "train.json"
    with contextlib.nullcontext() if precision == "fp16" else pytest.warns(UserWarning, match="few") as warned:
        result = cskd_deploy.export(
            str(checkpoint),
            precision=precision,
            target=target,
            calibration_images=str(images),
            calibration_ann=str(listed),
            calibration_count=3,
            keep_float="bbox_head",
        )
    assert {one.filename for one in warned or ()} <= {__file__}
    assert isinstance(result, cskd_deploy.PrecisionResult)
    name = precision if target is None else f"{precision}-{target}"
    assert (result.path, result.manifest.precision) == (tmp_path / f"best.{name}.onnx", name)
    assert "bbox_head.retina_cls" in result.kept
    assert result.agreement.images == 3
    assert not result.agreement.random
    words = ("--precision", precision, *(() if target is None else ("--target", target)), "--keep-float", "bbox_head")
    pictures = ("--calibration-images", images, "--calibration-ann", listed, "--calibration-count", 3)
    made = deploy("export", "--checkpoint", checkpoint, *words, *pictures, "-o", tmp_path / "command.onnx", "--json")
    assert made.code == 0
    assert (tmp_path / "command.onnx").read_bytes() == result.path.read_bytes()
    assert {**json.loads(made.out), "path": str(result.path)} == json.loads(json.dumps(result.to_dict()))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["best.pth", f"best.{name}.onnx", "command.onnx"])


def test_proposals_of_an_export_are_those_of_the_command(exported, tmp_path):
    result = cskd_deploy.export(exported("FasterRCNN").checkpoint, tmp_path / "student.onnx", proposals=7)
    assert result.manifest.graph.proposals == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision is 'int4', expected one of fp32, fp16, int8"),
        ({"precision": "int8", "target": "gpu"}, "target is 'gpu', expected one of cpu, tensorrt"),
        ({"precision": "int8"}, "needs images to calibrate on: give calibration_images"),
        ({"precision": "fp16", "calibration_count": 9}, "which images: give calibration_images"),
        ({"precision": "int8", "calibration_images": "x", "calibration_count": 0}, "calibration_count is 0"),
        ({"precision": "fp16", "target": "cpu"}, "target is for precision int8"),
        ({"keep_float": ["neck"]}, "keep_float is for precision fp16 or int8"),
        ({"calibration_images": "x"}, "calibration_images is for precision fp16 or int8: give"),
        ({"nms": "inside"}, "nms is 'inside'"),
        ({"graph_input": "int8"}, "input is 'int8'"),
        ({"batch": 0}, "batch is 0, expected a whole number from 1 on"),
        ({"batch": "any"}, "batch is 'any', expected a whole number from 1 on"),
        ({"batch": 2.5}, "batch is 2.5, expected a whole number from 1 on"),
        ({"proposals": -3}, "proposals is -3, expected a whole number from 1 on"),
        ({"device": "gpu"}, "device is 'gpu', expected one of cpu, cuda"),
        ({"precision": "int8", "calibration_images": "x", "calibration_count": 1.5}, "calibration_count is 1.5"),
        ({"input_sizes": [(96.5, 160)]}, "height is 96.5, expected a whole number"),
        ({"input_sizes": (96, 160)}, r"input_sizes is \(96, 160\), expected pairs"),
        ({"input_sizes": [(96, 160), (96, 160)]}, "twice with two sizes"),
        ({"input_sizes": [(96, 160), (160, 96), (128, 128)]}, "twice with two sizes"),
    ],
)
def test_what_no_file_can_be_is_refused(options, message, checkpoint, tmp_path):
    with pytest.raises(DeployError, match=message):
        cskd_deploy.export(checkpoint, tmp_path / "student.onnx", **options)
    assert not list(tmp_path.iterdir())


# evaluate


def test_an_evaluation_is_what_eval_prints(
    deploy, model_file, exported, found_annotations, shapes_root, tmp_path, capsys
):
    images, reference = shapes_root / "images", exported("FCOS").model
    words = ("--ann", found_annotations, "--images", images, "--reference", reference, "--limit", 4, "--max-drop", 100)
    printed = json.loads(deploy("eval", model_file, *words, "--json").out)
    found = str(tmp_path / "found.json")
    result = cskd_deploy.evaluate(
        str(model_file), str(found_annotations), str(images), str(reference), limit=4, output=found
    )
    assert isinstance(result, cskd_deploy.EvaluationResult)
    assert result.drop == printed["drop_points"] != 0
    assert result.metrics.images == 4
    facts = result.to_dict()
    timed = ("seconds", "reference_metrics", "max_drop")
    assert {name: facts.get(name) for name in printed if name not in timed} == {
        name: value for name, value in printed.items() if name not in timed
    }
    assert any("not the same work" in note for note in result.notes)
    assert f"{100 * result.metrics.mean_average_precision:.2f}" in str(result)
    assert len(json.loads(Path(found).read_text())) == result.metrics.detections
    assert capsys.readouterr() == ("", "")


def test_progress_is_shown_where_it_is_asked_for(model_file, found_annotations, shapes_root, capsys):
    cskd_deploy.evaluate(model_file, found_annotations, shapes_root / "images", limit=2, show_progress=True)
    assert "eval 2/2 images" in capsys.readouterr().err
    cskd_deploy.benchmark(model_file, duration=0, iterations=1, warmup=0, cold=False, show_progress=True)
    assert "bench 1/1 s measured" in capsys.readouterr().err


def test_what_is_odd_about_a_data_set_is_a_warning_of_the_line_that_asked(model_file, found_annotations, shapes_root):
    with pytest.warns(UserWarning, match="boxes over the edge of the image") as caught:
        cskd_deploy.evaluate(model_file, found_annotations, shapes_root / "images")
    assert {warning.filename for warning in caught} == {__file__}


def test_an_evaluation_that_cannot_be_done_is_an_error_of_this_package(model_file, found_annotations, shapes_root):
    for options, message in (
        ({"ann": "nowhere.json"}, "nowhere.json"),
        ({"reference": "nowhere.onnx"}, "nowhere.onnx does not exist"),
        ({"backend": "pytorch"}, "pytorch does not run"),
        ({"limit": -1}, "limit is -1, expected a whole number from 1 on"),
        ({"limit": 0}, "limit is 0, expected a whole number from 1 on"),
        ({"batch": 0}, "batch is 0, expected a whole number from 1 on"),
        ({"threads": 0}, "threads is 0, expected a whole number from 1 on"),
        ({"threads": 1.5}, "threads is 1.5, expected a whole number from 1 on"),
    ):
        arguments = {"ann": found_annotations, "images": shapes_root / "images", **options}
        with pytest.raises(CskdError, match=message):
            cskd_deploy.evaluate(model_file, **arguments)


# benchmark


def test_a_benchmark_times_what_it_is_given_as_it_is_told(model_file, exported, shapes_root):
    before = cv2.getNumThreads()
    report = cskd_deploy.benchmark(
        [str(model_file), exported("FCOS").model],
        str(shapes_root / "images"),
        reference=str(exported("FCOS").checkpoint),
        duration=0,
        iterations=3,
        warmup=0,
        cold=False,
        force=True,
        device="cpu",
        threads=1,
        ort=["spinning=off"],
    )
    assert isinstance(report, cskd_deploy.BenchReport)
    assert [(Path(one.path).name, one.backend, one.device) for one in report.results] == [
        ("student.onnx", "onnxruntime", "cpu"),
        ("student.onnx", "onnxruntime", "cpu"),
        ("best.pth", "pytorch", "cpu"),
    ]
    assert all(one.count >= 3 and one.cold is None for one in report.results)
    facts = report.to_dict()
    assert (facts["environment"]["threads"], facts["environment"]["onnxruntime_settings"]) == (
        1,
        "graph=all arena=on spinning=off",
    )
    assert str(shapes_root / "images") in facts["images"]
    assert facts["results"][1]["speedup"]["total"] > 0
    assert any("not the same work" in note for note in facts["notes"])
    assert cv2.getNumThreads() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "do different work"),
        ({"backends": ["tensorrt"]}, "runs in onnxruntime, not in tensorrt"),
        ({"force": True, "batches": (1, 4)}, "takes batches of 1 only, asked for 4"),
        ({"ort": ["speed=high"]}, "'speed=high' is no setting"),
        ({"images": "nowhere"}, "nowhere does not exist"),
        ({"batches": 0}, "batches is 0, expected a whole number from 1 on"),
        ({"batches": (1, "two")}, "batches is 'two', expected a whole number"),
        ({"streams": [2.5]}, "streams is 2.5, expected a whole number"),
        ({"threads": 0}, "threads is 0, expected a whole number from 1 on"),
        ({"iterations": 0}, "iterations is 0, expected a whole number from 1 on"),
        ({"duration": float("nan")}, "duration is nan, expected a number from 0 on"),
        ({"duration": float("inf")}, "duration is inf, expected a number from 0 on"),
        ({"warmup": -1}, "warmup is -1, expected a number from 0 on"),
        ({"backends": "tensorrt"}, "runs in onnxruntime, not in tensorrt"),
    ],
)
def test_a_benchmark_that_cannot_be_done_is_refused(options, message, model_file, exported):
    models = [model_file, exported("FCOS").model]
    options = {"force": "backends" not in options and bool(options), "cold": False, "duration": 60, **options}
    with pytest.raises(CskdError, match=message):
        cskd_deploy.benchmark(models, **options)


def test_a_number_or_a_word_alone_is_a_list_of_it(model_file):
    report = cskd_deploy.benchmark(
        model_file,
        batches=np.int64(1),
        streams=2,
        backends="onnxruntime",
        ort="arena=off",
        duration=0,
        iterations=1,
        warmup=0,
        cold=False,
        threads=1,
    )
    assert [(one.backend, one.batch, one.streams) for one in report.results] == [
        ("onnxruntime", 1, 1),
        ("onnxruntime", 1, 2),
    ]
    assert report.to_dict()["environment"]["onnxruntime_settings"] == "graph=all arena=off spinning=on"
    with pytest.raises(DeployError, match="there is no model to time"):
        cskd_deploy.benchmark([])
