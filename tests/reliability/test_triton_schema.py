"""Triton's own reader takes the configurations, and the schema that other tests go by is still its schema.

`tritonclient` wants another protobuf than onnx does, so it gets an environment of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cskd_deploy.serving.triton import write_repository
from tests.deploy.engines import write_graph
from tests.deploy.test_triton import FIXED, SEVERAL, write_engine
from tests.deploy.triton_text import SCHEMA, read_config

from .interpreters import run

pytestmark = [pytest.mark.reliability, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).parent / "triton_schema.py"


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "environment"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=300)
    binary = folder / "bin" / "python"
    run(binary, "-m", "pip", "install", "--quiet", "tritonclient[grpc]")
    return binary


def test_the_stored_schema_is_that_of_tritons_client(python):
    assert json.loads(run(python, SCRIPT)) == SCHEMA


def test_tritons_client_reads_every_configuration_as_these_tests_do(python, tmp_path):
    models = tmp_path / "models"
    written = [
        write_repository(write_graph(tmp_path / "fixed.onnx"), models),
        write_repository(write_graph(tmp_path / "any.onnx", dynamic=True), models, device="cuda", instances=2),
        write_repository(write_graph(tmp_path / "one.onnx", dynamic=True), models, device="cpu", max_batch=1),
        write_repository(write_engine(tmp_path / "engine.plan", FIXED, 1), models),
        write_repository(write_engine(tmp_path / "profile.plan", SEVERAL), models),
    ]
    configs = json.loads(run(python, SCRIPT, *(one.folder / "config.pbtxt" for one in written)))
    for config, one in zip(configs, written, strict=True):
        expected = read_config(one.config)
        expected["parameters"] = {key: {"string_value": text} for key, text in expected["parameters"].items()}
        # What protobuf leaves out: its defaults.
        if not expected["max_batch_size"]:
            del expected["max_batch_size"]
        expected["instance_group"] = [
            {name: value for name, value in group.items() if value != "KIND_AUTO"}
            for group in expected["instance_group"]
        ]
        for tensor in (*expected["input"], *expected["output"]):
            tensor["dims"] = [str(size) for size in tensor["dims"]]  # JSON of protobuf has 64 bits as text
        assert config == expected
