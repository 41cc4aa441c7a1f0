"""The edge packages install with every supported Python, with NumPy 1 and 2, and detect the same to the last bit.

`CSKD_PYTHONS=/usr/bin/python3.12:/opt/python3.13/bin/python make reliability` takes these interpreters.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.deploy.students import student_config, write_checkpoint

from .interpreters import MINORS, REPOSITORY, edge_environment, interpreter, run

pytestmark = [pytest.mark.reliability, pytest.mark.timeout(1800)]

ARITHMETIC = REPOSITORY / "tests" / "deploy" / "arithmetic.py"
SAMPLES = REPOSITORY / "tests" / "deploy" / "files_0_1_0"
PICTURES = SAMPLES / "images"  # one is lying, one upright
DATA = ("--ann", SAMPLES / "annotations.json", "--images", PICTURES)
CLASSES = ("circle", "square", "triangle")
DEPLOY = "import sys; from cskd_deploy.cli import main; main(sys.argv[1:])"
NUMPY_1_WHEELS = (10, 11, 12)  # minor versions of Python that NumPy 1.26 has wheels for
ENVIRONMENTS = [(minor, "numpy>=2") for minor in MINORS] + [(minor, "numpy<2") for minor in NUMPY_1_WHEELS]


class Edge(NamedTuple):
    """An environment with the edge packages alone."""

    python: Path
    versions: dict[str, str]

    def deploy(self, *arguments: object) -> str:
        return run(self.python, "-c", DEPLOY, *arguments)


def here(*arguments: object) -> str:
    """What this interpreter prints with the packages that this process has."""
    return run(Path(sys.executable), *arguments, path=os.environ.get("PYTHONPATH", ""))


def python_of(minor: int) -> Path:
    python = interpreter(minor)
    if python is None:
        pytest.skip(f"no Python 3.{minor}: CSKD_PYTHONS, the path and pyenv have none")
    return python


@pytest.fixture(scope="module", params=ENVIRONMENTS, ids=lambda one: f"python3.{one[0]}-{one[1]}")
def edge(request, tmp_path_factory) -> Edge:
    minor, numpy = request.param
    python = python_of(minor)
    folder = tmp_path_factory.mktemp(f"edge3{minor}")
    binary = edge_environment(folder, python, "ort", numpy)
    listed = json.loads(run(binary, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"))
    versions = {entry["name"].lower(): entry["version"] for entry in listed}
    assert versions["numpy"].startswith("1.") == (numpy == "numpy<2")
    assert not versions.keys() & {"torch", "mmdet", "mmcv", "mmcv-full", "onnx", "cskd-train", "cskd-core"}
    return Edge(binary, versions)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Files of a student, exported by this environment."""
    folder = tmp_path_factory.mktemp("models")
    checkpoint = write_checkpoint(folder / "best.pth", CLASSES, student_config(CLASSES, (128, 96), width=8))
    files = {name: folder / f"{name}.onnx" for name in ("fixed", "float", "whole", "fp16", "int8")}
    export = ("-c", DEPLOY, "export", "--output")
    here(*export, files["fixed"], "--checkpoint", checkpoint)
    here(*export, files["float"], "--checkpoint", checkpoint, "--input", "float")
    here(*export, files["whole"], "--checkpoint", checkpoint, "--nms", "graph")
    here(*export, files["fp16"], "--onnx", files["fixed"], "--precision", "fp16")
    here(*export, files["int8"], "--onnx", files["fixed"], "--precision", "int8", "--calibration-images", PICTURES)
    return files


@pytest.fixture(scope="module")
def expected(models) -> dict[str, Any]:
    """What this environment detects and scores."""
    return {
        name: (
            json.loads(here("-c", DEPLOY, "infer", file, PICTURES, "--json", "-", "--score-thr", 0.05))["images"],
            json.loads(here("-c", DEPLOY, "eval", file, *DATA, "--json"))["metrics"],
        )
        for name, file in models.items()
    }


def test_every_file_is_detected_with_and_scored_as_here(edge, models, expected):
    for name, file in models.items():
        detections, metrics = expected[name]
        images = json.loads(edge.deploy("infer", file, PICTURES, "--json", "-", "--score-thr", 0.05))["images"]
        assert sum(len(one["detections"]) for one in images) > 20
        assert images == detections, name
        evaluated = json.loads(edge.deploy("eval", file, *DATA, "--json"))["metrics"]
        assert evaluated == pytest.approx(metrics, abs=1e-9), name


def test_the_other_commands_run(edge, models):
    assert f"onnxruntime  {edge.versions['onnxruntime']}" in edge.deploy("doctor")
    for file in models.values():
        inspected = json.loads(edge.deploy("inspect", file, "--json"))
        assert inspected["metadata"]["classes"] == list(CLASSES)
        (measured,) = json.loads(edge.deploy("bench", file, "--duration", 0.1, "--json"))["results"]
        assert measured["images"] >= 10


def test_pre_and_postprocessing_give_the_bits_that_they_give_here(edge):
    other, own = (json.loads(text) for text in (run(edge.python, ARITHMETIC), here(ARITHMETIC)))
    assert other["numpy"] == edge.versions["numpy"]
    # Scenes are drawn by OpenCV, whose lines and blurs are not those of its next major version.
    bits = [key for key in own["digests"] if other["opencv"] == own["opencv"] or not key.startswith("scene")]
    assert len(bits) > 50
    assert {key: other["digests"][key] for key in bits} == {key: own["digests"][key] for key in bits}


@pytest.mark.parametrize("minor", MINORS)
def test_all_sources_compile(minor, tmp_path):
    folders = [path for path in sorted((REPOSITORY / "packages").glob("*/*")) if path.name in ("src", "examples")]
    assert len(folders) >= 6
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    command = [python_of(minor), "-W", "error", "-m", "compileall", "-q", "-f", *folders]
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.rglob("*.pyc"))) > 150
