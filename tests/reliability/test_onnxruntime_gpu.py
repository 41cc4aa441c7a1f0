"""onnxruntime-gpu where there is no GPU: every command goes on with the processor, and one line says why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cskd_deploy.backends.tensorrt.driver import find_driver
from cskd_deploy.errors import BackendMissing

from .interpreters import REPOSITORY, edge_environment, run

pytestmark = [pytest.mark.reliability, pytest.mark.timeout(1800)]

SAMPLES = REPOSITORY / "tests" / "deploy" / "files_0_1_0"
PICTURES = SAMPLES / "images"
DEPLOY = "import sys; from cskd_deploy.cli import main; main(sys.argv[1:])"
WHY = "ONNX files run on the CPU: ONNX Runtime makes no session on CUDA (there is no NVIDIA driver"
WAY_OUT = "`pip install 'onnxruntime-gpu[cuda,cudnn]'`"


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    try:
        find_driver()
    except BackendMissing:
        return edge_environment(tmp_path_factory.mktemp("gpu"), Path(sys.executable), "ort-gpu")
    pytest.skip("there is an NVIDIA driver: onnxruntime-gpu may find a GPU")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    from tests.deploy.engines import write_small_model

    return write_small_model(tmp_path_factory.mktemp("model") / "student.onnx")


def deploy(python: Path, *arguments: object) -> tuple[int, str, str]:
    command = [str(python), "-c", DEPLOY, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={"PATH": "/usr/bin:/bin"})
    return done.returncode, done.stdout, done.stderr


def in_json(python: Path, *arguments: object) -> tuple[Any, list[str]]:
    """What a command printed as JSON, and the lines beside it."""
    code, out, err = deploy(python, *arguments)
    assert code == 0, err
    return json.loads(out), err.splitlines()


def test_this_is_onnxruntime_gpu(python):
    code = "import onnxruntime, json; print(json.dumps(onnxruntime.get_available_providers()))"
    assert "CUDAExecutionProvider" in json.loads(run(python, "-c", code))
    code, out, _ = deploy(python, "doctor")
    assert code == 0
    lines = out.splitlines()
    (place,) = [place for place, line in enumerate(lines) if "no session on CUDA" in line]
    assert lines[place].startswith("fault   ort cuda ")
    assert WAY_OUT in lines[place + 1]


def test_infer_goes_on_with_one_line(python, model):
    found, lines = in_json(python, "infer", model, PICTURES, "--json", "-")
    assert found["device"] == "cpu"
    (line,) = [line for line in lines if "CPU" in line or "CUDA" in line]
    assert line.startswith(f"note: {WHY}")
    assert line.endswith(WAY_OUT)


def test_bench_and_eval_go_on_with_one_line_in_their_records(python, model):
    measured, _ = in_json(python, "bench", model, "--duration", 0.1, "--no-cold", "--json")
    assert [one["device"] for one in measured["results"]] == ["cpu"]
    data = ("--ann", SAMPLES / "annotations.json", "--images", PICTURES)
    evaluated, _ = in_json(python, "eval", model, *data, "--json")
    for notes in (measured["notes"], evaluated["notes"]):
        (line,) = [note for note in notes if "CPU" in note or "CUDA" in note]
        assert line.startswith(WHY)
        assert line.endswith(WAY_OUT)


@pytest.mark.parametrize("command", [("infer", PICTURES), ("bench",)], ids=["infer", "bench"])
def test_cuda_that_was_asked_for_is_refused(command, python, model):
    name, *more = command
    code, out, err = deploy(python, name, model, *more, "--device", "cuda")
    assert (code, out) == (3, "")
    assert WAY_OUT in err
    assert "Traceback" not in err
