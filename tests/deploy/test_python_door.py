"""The functions of `cskd_deploy` itself: what they give is what the commands print."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import cskd_deploy
from cskd_data.images import list_images, read_image
from cskd_deploy import DeployError

from .conftest import ABSENT

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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nms": "graph", "batch": None}, "batch must be 1"),
        ({"nms": "inside"}, "nms is 'inside'"),
        ({"graph_input": "int8"}, "input is 'int8'"),
        ({"batch": 0}, "batch must be positive"),
        ({"input_sizes": (96, 160)}, r"input_sizes is \(96, 160\), expected pairs"),
        ({"input_sizes": [(96, 160), (96, 160)]}, "twice with two sizes"),
        ({"input_sizes": [(96, 160), (160, 96), (128, 128)]}, "twice with two sizes"),
    ],
)
def test_a_form_that_no_graph_has_is_refused(options, message, checkpoint, tmp_path):
    with pytest.raises(DeployError, match=message):
        cskd_deploy.export(checkpoint, tmp_path / "student.onnx", **options)
    assert not list(tmp_path.iterdir())
