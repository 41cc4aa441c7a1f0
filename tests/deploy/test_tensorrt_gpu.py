"""A real TensorRT on a real GPU: where there is one, an engine of each family is held against ONNX Runtime."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from cskd_deploy.accuracy.agreement import match
from cskd_deploy.backends import BUFFERS
from cskd_deploy.backends.base import Backend
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.backends.tensorrt.backend import TensorRTBackend
from cskd_deploy.backends.tensorrt.export import export_engine
from cskd_deploy.backends.tensorrt.memory import open_buffers
from cskd_deploy.backends.tensorrt.settings import BuildSettings
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import BackendMissing

from .students import FAMILIES, SIZE

no_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="TensorRT is not installed")
pytestmark = [pytest.mark.gpu, pytest.mark.slow, no_tensorrt]

PICTURE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def candidates(backend: Backend) -> dict[str, np.ndarray]:
    detector = Detector(backend)
    return detector.infer(detector.prepare(PICTURE))


def share(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The part of the candidates that are the same; TensorRT multiplies in TF32, with ten bits."""
    one, other = ((values["boxes"][0], values["scores"][0], values["labels"][0]) for values in (expected, found))
    return match(one, other, iou=0.95, score=0.01).share


@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine_gives_the_candidates_of_its_onnx_file(family, exported, tmp_path):
    model = exported(family).model
    engine = export_engine(model, tmp_path / "student.engine", BuildSettings()).path
    with OnnxRuntimeBackend(model) as backend:
        expected = candidates(backend)
    with TensorRTBackend(engine) as backend:
        assert share(candidates(backend), expected) > 0.98
        assert all(time > 0 for time in backend.device_milliseconds.values())


def test_every_package_and_a_cuda_graph_give_the_same(model_file, tmp_path):
    cache = tmp_path / "timings"
    settings = BuildSettings(timing_cache=cache, version_compatible=True, hardware_compatible="ampere+")
    engine = export_engine(model_file, tmp_path / "student.engine", settings).path
    assert cache.stat().st_size > 0
    with TensorRTBackend(engine) as backend:
        expected = candidates(backend)
    for name in BUFFERS:
        try:
            open_buffers(name).close()
        except BackendMissing:
            continue
        for cuda_graph in (False, True):
            with TensorRTBackend(engine, buffers=name, cuda_graph=cuda_graph) as backend:
                for _ in range(3):
                    assert share(candidates(backend), expected) == 1.0
