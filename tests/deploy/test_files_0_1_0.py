"""Files of version 0.1.0 serve as they are, and files of a version to come are refused with the version they need."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cskd_data.images import read_image
from cskd_deploy import __version__
from cskd_deploy.accuracy.agreement import match
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.backends.tensorrt.driver import Gpu
from cskd_deploy.backends.tensorrt.manifest import manifest_path, mismatches, read_engine_manifest
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import DeployError
from cskd_deploy.measure.environment import instruction_sets, lacks
from cskd_deploy.model.manifest import MANIFEST_KEY, manifest_from_metadata

SAMPLES = Path(__file__).parent / "files_0_1_0"
EXPECTED = json.loads((SAMPLES / "expected.json").read_text())
ENGINE = SAMPLES / "tiny.engine"
DATA = ("--ann", SAMPLES / "annotations.json", "--images", SAMPLES / "images")
# Least overlap, largest difference of scores, least share of boxes that agree, difference of mAP. Integer kernels round
# otherwise in ONNX Runtime before 1.23, and on processors without VNNI the sums of 8-bit weights, which 0.1.0 wrote for
# `cpu`, can saturate.
EXACT = (0.99, 1e-3, 1.0, 1e-3)
ROUNDED = (0.5, 0.3, 0.5, 0.1)
SATURATED = (0.5, 0.3, 0.35, 0.1)


def tolerance_of(name):
    if "int8_cpu" in name and lacks(("vnni",), instruction_sets()):
        return SATURATED
    return ROUNDED if "int8" in name else EXACT


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    with zipfile.ZipFile(SAMPLES / "models.zip") as archive:
        archive.extractall(folder)
    assert {path.name for path in folder.iterdir()} == set(EXPECTED)
    return folder


@pytest.fixture(params=sorted(EXPECTED))
def name(request) -> str:
    return request.param


def test_a_file_detects_what_it_detected_when_it_was_written(name, models):
    iou, score, share, _ = tolerance_of(name)
    with OnnxRuntimeBackend(models / name) as backend:
        schema = int(name.split("_")[1]) if name.startswith("schema") else 3
        assert (backend.manifest.schema, backend.manifest.versions["cskd-deploy"]) == (schema, "0.1.0")
        for picture, rows in EXPECTED[name]["detections"].items():
            one = Detector(backend).detect(read_image(SAMPLES / "images" / picture))
            expected = np.array(rows)
            before = expected[:, 2:], expected[:, 1], expected[:, 0]
            assert len(rows) == 20
            assert match(before, (one.boxes, one.scores, one.labels), iou=iou, score=score).share >= share, picture


def test_every_command_takes_a_file(name, models, deploy, tmp_path):
    file = models / name
    inspected = json.loads(deploy("inspect", file, "--json").out)
    assert inspected["metadata"]["classes"] == ["circle", "square", "triangle"]
    evaluated = json.loads(deploy("eval", file, *DATA, "--json").out)
    tolerance = tolerance_of(name)[-1]
    assert evaluated["metrics"]["bbox_mAP"] == pytest.approx(EXPECTED[name]["bbox_mAP"], abs=tolerance)
    (measured,) = json.loads(deploy("bench", file, "--duration", 0.05, "--json").out)["results"]
    assert measured["images"] >= 10
    done = deploy("infer", file, SAMPLES / "images", "--json", tmp_path / "detections.json")
    assert done.code == 0, done.err
    images = json.loads((tmp_path / "detections.json").read_text())["images"]
    assert [Path(one["image"]).name for one in images] == ["lying.png", "upright.png"]
    assert all(one["detections"] for one in images)


def test_a_float_file_is_converted_to_a_lower_precision(models, deploy, tmp_path):
    for name in ("schema_1_retinanet.onnx", "schema_2_fcos.onnx", "retinanet.onnx"):
        done = deploy("export", "--onnx", models / name, "--precision", "fp16", "--output", tmp_path / name)
        assert done.code == 0, done.err
        detections = json.loads(deploy("infer", tmp_path / name, SAMPLES / "images", "--json", "-").out)["images"]
        assert all(one["detections"] for one in detections)


def test_the_manifest_of_an_engine_vouches_for_it_where_it_was_built():
    manifest = read_engine_manifest(ENGINE)
    assert manifest is not None
    content, orin = ENGINE.read_bytes(), Gpu("Double of Orin", (8, 7), 14)
    assert mismatches(manifest, content, "10.13.0.35", orin) == []  # schema 1: name and capability vouch
    other = Gpu("Double of Xavier", (7, 2), 14)
    assert (
        "built for Double of Orin (compute capability 8.7), here"
        in mismatches(manifest, content, "10.13.0.35", other)[0]
    )
    assert "sha256 differs" in mismatches(manifest, content + b"\n", "10.13.0.35", orin)[0]
    assert manifest.inputs["image"].opt == (1, 3, 64, 96)
    assert (manifest.onnx, manifest.model.family) == ("tiny.onnx", "retinanet")


def test_a_schema_to_come_is_refused_with_the_version_that_wrote_it(models):
    with OnnxRuntimeBackend(models / "retinanet.onnx") as backend:
        data = backend.manifest.to_dict()
    for versions, need in (
        ({"cskd-deploy": "0.9.0"}, "Install cskd-deploy 0.9.0, which wrote it, or newer"),
        ({}, "Install a newer cskd-deploy"),
    ):
        later = {**data, "schema": 5, "versions": versions, "of later": {}}
        with pytest.raises(DeployError) as error:
            manifest_from_metadata({MANIFEST_KEY: json.dumps(later)}, "later.onnx")
        assert f"later.onnx cannot be read: schema is 5, cskd-deploy {__version__} reads 1, 2, 3, 4. {need}" in str(
            error.value
        )
        assert f"or export the student's checkpoint again with {__version__}" in str(error.value)
    with pytest.raises(DeployError, match=r"schema is 0, .* Export the student's checkpoint again"):
        manifest_from_metadata({MANIFEST_KEY: json.dumps({**data, "schema": 0})}, "earlier.onnx")


def test_an_engines_manifest_of_a_schema_to_come_is_refused_with_the_version_that_wrote_it(tmp_path):
    engine = tmp_path / "tiny.engine"
    data = json.loads(manifest_path(ENGINE).read_text())
    data["model"]["versions"] = {"cskd-deploy": "0.9.0"}
    manifest_path(engine).write_text(json.dumps({**data, "schema": 4}))
    with pytest.raises(DeployError, match=r"schema is 4, .* Install cskd-deploy 0\.9\.0, which wrote it, or newer"):
        read_engine_manifest(engine)
