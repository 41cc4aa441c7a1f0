"""A real TensorRT on a real GPU: where there is one, an engine of each family, precision and form is held against ONNX
Runtime."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess

import numpy as np
import pytest

from cskd_data.images import list_images
from cskd_deploy.accuracy.agreement import match
from cskd_deploy.backends import BUFFERS
from cskd_deploy.backends.base import Backend
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.backends.tensorrt.backend import TensorRTBackend
from cskd_deploy.backends.tensorrt.export import export_engine
from cskd_deploy.backends.tensorrt.memory import open_buffers
from cskd_deploy.backends.tensorrt.settings import BuildSettings, parse_build_settings
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import BackendMissing, DeployError
from cskd_deploy.exporter.onnx import export
from cskd_deploy.lower.precision import precision_plan
from cskd_deploy.measure.layer_times import time_engine
from cskd_deploy.model.manifest import GraphForm

from .students import FAMILIES, SIZE

no_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="TensorRT is not installed")
pytestmark = [pytest.mark.gpu, pytest.mark.slow, no_tensorrt]

PICTURE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def candidates(backend: Backend, picture: np.ndarray = PICTURE, batch: int = 1) -> dict[str, np.ndarray]:
    detector = Detector(backend)
    return backend.infer(detector.feed(*[detector.prepare(picture)] * batch))


def share(
    found: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    place: int = 0,
    iou: float = 0.95,
    score: float = 0.01,
) -> float:
    """The part of an image's candidates that are the same; TensorRT multiplies in TF32, with ten bits."""
    one, other = (
        (values["boxes"][place], values["scores"][place], values["labels"][place]) for values in (expected, found)
    )
    return match(one, other, iou=iou, score=score).share


def options(*settings: str) -> BuildSettings:
    return parse_build_settings(settings)


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


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8+fp16"])
@pytest.mark.parametrize("family", ["RetinaNet", "FCOS"])
def test_an_engine_of_lower_precision_finds_what_its_onnx_file_finds(
    family, precision, exported, shapes_root, tmp_path
):
    images = list_images(shapes_root / "images")
    target = "tensorrt" if precision == "int8" else None
    plan = precision_plan(precision, target, shapes_root / "images", engine=True)
    model = tmp_path / "low.onnx"
    plan.convert(exported(family).model, model, print, print)
    result = export_engine(model, tmp_path / "low.engine", BuildSettings(), images=images)
    agreement = result.manifest.model.agreement
    assert agreement is not None  # it was compared before it got its name
    assert (agreement.random, agreement.images) == (False, min(len(images), 8))
    assert result.manifest.precision == plan.name
    assert result.size_bytes < 0.7 * exported(family).model.stat().st_size
    with OnnxRuntimeBackend(model) as backend:
        expected = candidates(backend)
    with TensorRTBackend(result.path) as backend:
        assert share(candidates(backend), expected, iou=0.5, score=0.1) > 0.7


def test_a_dynamic_engine_takes_every_size_and_batch_of_its_profile(exported, tmp_path):
    model = tmp_path / "any.onnx"
    export(exported("RetinaNet").checkpoint, model, form=GraphForm(input="uint8", batch=None))
    engine = export_engine(model, tmp_path / "any.engine", options("maxShapes=image:4x128x128x3")).path
    with OnnxRuntimeBackend(model) as plain, TensorRTBackend(engine) as backend:
        assert backend.batch_size is None
        for size, batch in ((SIZE, 1), ((64, 128), 4), ((128, 96), 2), (SIZE, 4)):
            picture = np.ascontiguousarray(PICTURE[: size[0], : size[1]])
            found, expected = (candidates(one, picture, batch) for one in (backend, plain))
            assert found["boxes"].shape == expected["boxes"].shape
            assert min(share(found, expected, place) for place in range(batch)) > 0.98
        with pytest.raises(DeployError, match="the engine takes min 1x32x32x3"):
            candidates(backend, PICTURE, 5)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_two_profiles_are_entered_by_the_batch(cuda_graph, exported, tmp_path):
    model = tmp_path / "any.onnx"
    height, width = SIZE
    form = GraphForm(input="uint8", batch=None)
    export(exported("RetinaNet").checkpoint, model, input_sizes=[SIZE], form=form)
    one, eight = (f"image:{batch}x{height}x{width}x3" for batch in (1, 8))
    both = [f"{end}Shapes={one}" for end in ("min", "opt", "max")]
    both += ["profile=1", *(f"{end}Shapes={eight}" for end in ("min", "opt", "max"))]
    engine = export_engine(model, tmp_path / "both.engine", options(*both)).path
    with OnnxRuntimeBackend(model) as plain, TensorRTBackend(engine, cuda_graph=cuda_graph) as backend:
        for batch in (1, 8, 8, 1):
            found, expected = (candidates(each, PICTURE, batch) for each in (backend, plain))
            assert min(share(found, expected, place) for place in range(batch)) > 0.98
        with pytest.raises(DeployError, match="the engine takes 1x128x128x3 or 8x128x128x3"):
            candidates(backend, PICTURE, 4)


@pytest.mark.parametrize("batch", [1, 2])
def test_nms_inside_an_engine_keeps_what_onnx_runtime_keeps(batch, exported, tmp_path):
    model = tmp_path / "nms.onnx"
    form = GraphForm(input="uint8", nms="graph", batch=batch)
    export(exported("RetinaNet").checkpoint, model, input_sizes=[SIZE], form=form)
    engine = export_engine(model, tmp_path / "nms.engine", BuildSettings()).path
    with OnnxRuntimeBackend(model) as plain, TensorRTBackend(engine) as backend:
        detectors = [Detector(each) for each in (plain, backend)]
        outputs = [candidates(each, PICTURE, batch) for each in (plain, backend)]
        for place in range(batch):
            expected, found = (
                detector.select(values, detector.prepare(PICTURE), place)
                for detector, values in zip(detectors, outputs, strict=True)
            )
            one, other = ((each.boxes, each.scores, each.labels) for each in (expected, found))
            assert len(expected) > 10
            assert match(one, other, iou=0.9, score=0.02).share > 0.95


def test_layers_are_named_and_timed_and_enqueueing_is_shorter_than_the_run(model_file, tmp_path):
    settings = options("profilingVerbosity=detailed", "builderOptimizationLevel=1", "noTF32")
    engine = export_engine(model_file, tmp_path / "student.engine", settings).path
    layers = time_engine(engine)
    assert len(layers) > 20
    assert all(layer.milliseconds >= 0 for layer in layers)
    assert sum(layer.share for layer in layers) == pytest.approx(1)
    assert all(layer.operator for layer in layers)  # the inspector knows each of them
    with TensorRTBackend(engine) as backend:
        for _ in range(3):
            candidates(backend)
        assert backend.enqueue_seconds is not None
        assert 0 < backend.enqueue_seconds < 1


@pytest.mark.skipif(shutil.which("trtexec") is None, reason="trtexec is not in PATH")
def test_trtexec_builds_the_engine_of_the_line_that_the_manifest_has(exported, tmp_path):
    model = tmp_path / "any.onnx"
    export(exported("RetinaNet").checkpoint, model, form=GraphForm(input="uint8", batch=None))
    both = ("maxShapes=image:1x128x128x3", "profile=1", "optShapes=image:4x128x128x3", "maxShapes=image:4x128x128x3")
    result = export_engine(model, tmp_path / "any.engine", options(*both, "builderOptimizationLevel=1"))
    (tmp_path / "any.engine").unlink()
    subprocess.run(shlex.split(result.manifest.trtexec), check=True, timeout=600)
    with OnnxRuntimeBackend(model) as plain, TensorRTBackend(result.path, trust_engine=True) as backend:
        for batch in (1, 4):
            found, expected = (candidates(each, PICTURE, batch) for each in (backend, plain))
            assert min(share(found, expected, place) for place in range(batch)) > 0.98
