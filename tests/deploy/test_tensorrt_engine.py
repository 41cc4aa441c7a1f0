"""Engines as models, run by a double that computes with ONNX Runtime: what no manifest vouches for is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cskd_data.images import read_image
from cskd_deploy.backends import backend_for, backend_name
from cskd_deploy.backends.base import IMAGE_SHAPE
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.backends.tensorrt import backend as tensorrt
from cskd_deploy.backends.tensorrt import export as tensorrt_export
from cskd_deploy.backends.tensorrt import memory as buffers
from cskd_deploy.backends.tensorrt import worker
from cskd_deploy.backends.tensorrt.backend import TensorRTBackend
from cskd_deploy.backends.tensorrt.driver import Driver, Gpu
from cskd_deploy.backends.tensorrt.manifest import (
    EngineManifest,
    manifest_path,
    mismatches,
    read_engine_manifest,
    sha256_of,
    write_engine_manifest,
)
from cskd_deploy.backends.tensorrt.settings import BuildSettings
from cskd_deploy.backends.tensorrt.shapes import ProfileShapes, ShapeRange
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import BackendMissing, DeployError
from cskd_deploy.model.manifest import AgreementWithFp32, GraphForm

from .engines import (
    MANIFEST,
    ORIN,
    TENSORRT_OF_CHILD,
    VERSIONS,
    assert_same,
    build,
    picture,
    put_module,
    session,
    write_graph,
    write_small_model,
)
from .gpu_double import BuffersDouble
from .tensorrt_double import make_tensorrt


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    """A small graph of the interface of an exported student."""
    return write_small_model(tmp_path_factory.mktemp("graph") / "student.onnx")


@pytest.fixture
def trt(monkeypatch, tmp_path_factory) -> Any:
    """This process and its child import doubles as `tensorrt`; here there is a driver, and buffers of the same GPU."""
    double = make_tensorrt()
    monkeypatch.setitem(sys.modules, "tensorrt", double)
    put_module(monkeypatch, tmp_path_factory.mktemp("modules"), "tensorrt", TENSORRT_OF_CHILD)
    for module in (tensorrt, tensorrt_export):
        monkeypatch.setattr(module, "find_driver", lambda: ORIN)
    monkeypatch.setattr(tensorrt, "open_buffers", lambda name: BuffersDouble(double.gpu))
    monkeypatch.setattr(tensorrt, "EngineSession", lambda loaded, own, graph: session(loaded, double.gpu, graph))
    return double


@pytest.fixture
def engine(trt, graph, tmp_path) -> Path:
    """An engine of the double, built in this process, with its manifest."""
    path = tmp_path / "student.engine"
    built = build(trt, graph)
    path.write_bytes(built.engine)
    manifest = EngineManifest(
        sha256=sha256_of(built.engine),
        onnx="student.onnx",
        onnx_sha256=sha256_of(graph.read_bytes()),
        tensorrt=VERSIONS[0],
        cuda=ORIN.cuda_version,
        gpu=ORIN.gpus[0],
        precision="fp32",
        profiles=built.profiles,
        outputs=built.outputs,
        version_compatible=False,
        hardware_compatible="none",
        model=MANIFEST,
    )
    write_engine_manifest(path, manifest)
    trt.calls.clear()
    return path


@pytest.mark.parametrize(("shift", "matched"), [(0.0, 1.0), (0.3, 0.0)])
def test_an_engine_of_the_double_is_held_against_its_onnx_file(shift, matched, engine, graph, trt, monkeypatch):
    right = TensorRTBackend.infer

    def shifted(self: TensorRTBackend, feed: Any) -> Any:
        found = right(self, feed)
        return {**found, "scores": found["scores"] - np.float32(shift)}

    monkeypatch.setattr(TensorRTBackend, "infer", shifted)
    arguments = {"onnx": str(graph), "engine": str(engine), "images": []}
    found = AgreementWithFp32(**worker.compare(arguments, lambda done: None)["agreement"])
    assert (found.images, found.random, found.detections, found.matched) == (4, True, 2 * 4 * 5, matched)
    assert found.sha256 == sha256_of(graph.read_bytes())
    assert found.correlation == {}


def test_what_is_not_installed_leaves_an_engine_uncompared(engine, graph, trt, monkeypatch):
    def none(name: str | None) -> Any:
        raise BackendMissing("nothing holds GPU memory here")

    monkeypatch.setattr(tensorrt, "open_buffers", none)
    arguments = {"onnx": str(graph), "engine": str(engine), "images": []}
    assert worker.compare(arguments, lambda done: None) == {"not_compared": "nothing holds GPU memory here"}


@pytest.mark.parametrize("matched", [1.0, 0.5])
def test_an_engine_gets_its_name_only_where_it_agrees(matched, graph, trt, tmp_path, monkeypatch, deploy):
    agreement = dataclasses.asdict(AgreementWithFp32("0", 4, True, 40, matched, 1.0, {}, {}, {}))
    right = tensorrt_export.run_in_worker

    def run(action: str, arguments: Any, *others: Any) -> Any:
        return {"agreement": agreement} if action == "compare" else right(action, arguments, *others)

    monkeypatch.setattr(tensorrt_export, "run_in_worker", run)
    path = tmp_path / "new.engine"
    done = deploy("export", "--onnx", graph, "--format", "trt", "--output", path)
    if matched == 1.0:
        known = read_engine_manifest(path)
        assert done.code == 0
        assert known is not None
        assert dataclasses.asdict(known.model.agreement) == agreement
        return
    assert done.code == 1
    assert (
        "the engine does not find what the file that it is made of finds on 4 random images: 50.0 % of 40" in done.err
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["RetinaNet", "FCOS", "FasterRCNN"])
def test_an_engine_of_the_double_which_runs_onnx_runtime_detects_what_onnx_runtime_detects(
    family, exported, shapes_root, tmp_path, trt, deploy
):
    path = tmp_path / "student.engine"
    assert deploy("export", "--onnx", exported(family).model, "--format", "trt", "--output", path).code == 0
    image = read_image(sorted((shapes_root / "images").iterdir())[0])
    with TensorRTBackend(path) as backend, OnnxRuntimeBackend(exported(family).model) as reference:
        assert backend.manifest == reference.manifest
        assert (backend.device, backend.batch_size) == ("cuda", 1)
        assert backend.size_bytes == path.stat().st_size
        found, expected = Detector(backend).detect(image), Detector(reference).detect(image)
        assert backend.device_milliseconds == {"h2d": 2.0, "compute": 3.0, "d2h": 4.0}
    assert len(expected) > 20
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert not trt.gpu.memory


def test_a_cuda_graph_gives_the_same_candidates(engine, trt):
    feed = {**picture(), IMAGE_SHAPE: np.array([[128, 128]], dtype=np.float32)}
    with TensorRTBackend(engine) as plain:
        expected = plain.infer(feed)
    with TensorRTBackend(engine, cuda_graph=True) as graph:
        for _ in range(2):
            found = graph.infer(feed)
            np.testing.assert_array_equal(found["boxes"], expected["boxes"])
    assert trt.gpu.calls.count("begin capture") == 1


@pytest.mark.parametrize("name", ["a.engine", "a.plan", "a.TRT"])
def test_engines_are_known_by_their_name(name, tmp_path):
    assert backend_name(Path(name)) == "tensorrt"
    assert isinstance(backend_for(tmp_path / name), TensorRTBackend)
    assert backend_name(Path("a.onnx")) == "onnxruntime"
    assert backend_name(Path("a.pth")) == "pytorch"
    with pytest.raises(DeployError, match="there is no backend 'tvm'"):
        backend_for(tmp_path / name, "tvm")


def test_host_code_is_allowed_only_to_a_version_compatible_engine_that_is_vouched_for(engine, graph, trt):
    with TensorRTBackend(engine):
        assert trt.calls.of("deserialize_cuda_engine") == [(False,)]
    known = read_engine_manifest(engine)
    assert known is not None
    built = build(trt, graph, BuildSettings(version_compatible=True))
    engine.write_bytes(built.engine)
    write_engine_manifest(
        engine,
        dataclasses.replace(known, sha256=sha256_of(built.engine), version_compatible=True, tensorrt="10.3.0.26"),
    )
    trt.calls.clear()
    with TensorRTBackend(engine):
        assert trt.calls.of("deserialize_cuda_engine") == [(True,)]


def test_inspect_lists_the_layers_of_an_engine_by_time(engine, trt, graph, deploy):
    built = build(trt, graph, BuildSettings(profiling_verbosity="detailed"))
    engine.write_bytes(built.engine)
    known = read_engine_manifest(engine)
    assert known is not None
    write_engine_manifest(engine, dataclasses.replace(known, sha256=sha256_of(built.engine), trtexec="trtexec --x=y"))
    done = deploy("inspect", engine, "--profile")
    assert done.code == 0, done.err
    listed = done.out[done.out.index("slowest layers, after TensorRT's optimisations") :].splitlines()[1:3]
    assert [line.split() for line in listed] == [
        ["1.500", "ms", "75.0", "%", "TopK", "/TopK"],
        ["0.500", "ms", "25.0", "%", "CaskConvolution", "conv1", "+", "relu"],
    ]
    assert re.search(r"^  shapes.profiles.0.image +\[1, 3, 64, 96\], ", done.out, re.MULTILINE)
    assert re.search(r"^  trtexec +trtexec --x=y$", done.out, re.MULTILINE)
    facts = json.loads(deploy("inspect", engine, "--profile", "--top", 1, "--json").out)
    assert [layer["name"] for layer in facts["layers"]] == ["/TopK"]
    assert "layers" not in json.loads(deploy("inspect", engine, "--json").out)
    refused = deploy("inspect", engine, "--profile", "--threads", 1)
    assert (refused.code, "--threads is of ONNX Runtime" in refused.err) == (2, True)


def test_an_engine_tells_how_long_its_enqueueing_took(engine, trt):
    with TensorRTBackend(engine) as backend:
        assert backend.enqueue_seconds is None
        backend.infer(picture())
        assert backend.enqueue_seconds is not None
        assert backend.enqueue_seconds > 0


def test_an_engine_of_profiles_with_one_batch_each_takes_no_single_batch(trt, tmp_path, engine):
    dynamic = write_graph(tmp_path / "dynamic.onnx", dynamic=True)
    one = ProfileShapes(max={"image": (1, 3, 96, 96)})
    eight = ProfileShapes(**{end: {"image": (8, 3, 64, 96)} for end in ("min", "opt", "max")})
    known = read_engine_manifest(engine)
    assert known is not None
    form = GraphForm(dynamic=True, batch=None)
    for profiles, batch in (((one, eight), None), ((eight,), 8), ((one,), 1)):
        built = build(trt, dynamic, BuildSettings(profiles=profiles))
        engine.write_bytes(built.engine)
        model = dataclasses.replace(known.model, graph=form)
        write_engine_manifest(engine, dataclasses.replace(known, sha256=sha256_of(built.engine), model=model))
        with TensorRTBackend(engine) as backend:
            assert backend.batch_size == batch
            rows = batch or 8
            assert backend.infer(picture((rows, 3, 64, 96)))["boxes"].shape[0] == rows


# What is refused


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(DeployError) as error, TensorRTBackend(path, **options):
        pass
    assert error.value.exit_code == 2
    return str(error.value)


def test_an_engine_without_a_manifest_is_not_even_deserialized(engine, trt):
    manifest_path(engine).unlink()
    message = refused(engine)
    assert "student.engine.json does not exist" in message
    assert "--trust-engine" in message
    assert trt.calls == []


def test_an_engine_that_is_not_what_was_built_is_not_deserialized(engine, trt):
    engine.write_bytes(engine.read_bytes() + b"\0")
    assert "its content is not what was built (sha256 differs)" in refused(engine)
    assert trt.calls == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensorrt": "10.13.0.34"}, "built with TensorRT 10.13.0.34, here is 10.13.0.35"),
        (
            {"gpu": {"name": "NVIDIA H200", "capability": [9, 0], "multiprocessors": 132}},
            "built for NVIDIA H200 (compute capability 9.0, 132 SMs), here",
        ),
        (
            {"gpu": {"name": "Double of Orin", "capability": [8, 7], "multiprocessors": 16}},
            "built for Double of Orin (compute capability 8.7, 16 SMs), here is Double of Orin (compute capability "
            "8.7, 14 SMs)",
        ),
        ({"sha256": "0" * 64}, "sha256 differs"),
    ],
)
def test_an_engine_of_another_tensorrt_or_gpu_is_refused_with_the_command_that_mends_it(engine, trt, change, message):
    path = manifest_path(engine)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    text = refused(engine)
    assert message in text
    assert "cskd-deploy export --onnx student.onnx --format trt" in text
    assert trt.calls == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: "not JSON", "cannot be read as the manifest of an engine"),
        (lambda data: [1], "expected an object"),
        (lambda data: {**data, "schema": 4}, "reads 1, 2, 3. Install a newer cskd-deploy"),
        (lambda data: {**data, "gpu": None}, "'gpu' is None, expected dict"),
        (lambda data: {**data, "gpu": {"name": "Orin", "capability": [8, 7]}}, "'multiprocessors' is missing"),
        (lambda data: {key: value for key, value in data.items() if key != "onnx_sha256"}, "'onnx_sha256' is missing"),
        (lambda data: {**data, "version_compatible": "yes"}, "expected bool"),
        (lambda data: {**data, "gpu": {"name": "Orin", "capability": [8]}}, "not enough values"),
        (lambda data: {**data, "shapes": {"profiles": [{"image": [[1], [0], [1]]}], "outputs": {}}}, "is no range"),
        (lambda data: {**data, "shapes": {"profiles": [], "outputs": {}}}, "'profiles' is empty"),
        (lambda data: {**data, "trtexec": None}, "'trtexec' is None, expected str"),
        (lambda data: {**data, "model": {"family": "retinanet"}}, "'schema' is missing"),
    ],
)
def test_a_malformed_manifest_is_one_message(engine, trt, spoil, message):
    path = manifest_path(engine)
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    assert message in refused(engine)


def test_a_manifest_round_trips_and_says_which_machine_fits(engine):
    known = read_engine_manifest(engine)
    assert known is not None
    assert known.gpu.multiprocessors == 14
    write_engine_manifest(engine, known)
    assert read_engine_manifest(engine) == known
    content = engine.read_bytes()
    here, other = ORIN.gpus[0], Gpu("Another", (8, 7), 14)
    assert mismatches(known, content, known.tensorrt, here) == []

    def fits(tensorrt: str, gpu: Gpu, **changes: Any) -> bool:
        return mismatches(dataclasses.replace(known, **changes), content, tensorrt, gpu) == []

    assert not fits("10.14.0.1", here)
    assert fits("10.14.0.1", here, version_compatible=True)
    assert fits("11.0.0.1", here, version_compatible=True)
    assert not fits("12.0.0.1", here, version_compatible=True)
    assert not fits("10.3.0.1", here, version_compatible=True)
    assert not fits("10.13.0.35", other)
    assert not fits("10.13.0.35", dataclasses.replace(here, multiprocessors=16))  # another Orin, of the same name
    assert fits("10.13.0.35", other, hardware_compatible="sameComputeCapability")
    assert not fits("10.13.0.35", Gpu("Newer", (9, 0), 132), hardware_compatible="sameComputeCapability")
    assert fits("10.13.0.35", Gpu("Newer", (9, 0), 132), hardware_compatible="ampere+")
    assert not fits("10.13.0.35", Gpu("Older", (7, 5), 40), hardware_compatible="ampere+")


def test_a_manifest_of_schema_1_vouches_by_name_and_capability(engine):
    path = manifest_path(engine)
    data = json.loads(path.read_text())
    data["shapes"]["inputs"] = data["shapes"].pop("profiles")[0]
    for hardware, expected in (
        ("none", "none"),
        ("ampere-plus", "ampere+"),
        ("same-capability", "sameComputeCapability"),
    ):
        gpu = {"name": "Double of Orin", "capability": [8, 7]}
        path.write_text(json.dumps({**data, "schema": 1, "gpu": gpu, "hardware_compatible": hardware}))
        known = read_engine_manifest(engine)
        assert known is not None
        assert known.hardware_compatible == expected
    content = engine.read_bytes()
    known = dataclasses.replace(known, hardware_compatible="none")
    for multiprocessors in (8, 14):
        assert mismatches(known, content, known.tensorrt, Gpu("Double of Orin", (8, 7), multiprocessors)) == []
    assert mismatches(known, content, known.tensorrt, Gpu("Double of Orin", (7, 2), 8))
    assert mismatches(known, content, known.tensorrt, Gpu("Double of Xavier", (8, 7), 8))


def test_a_trusted_engine_is_tried_in_another_process_first(engine, graph, trt):
    path = manifest_path(engine)
    path.write_text(json.dumps({**json.loads(path.read_text()), "tensorrt": "10.0.0"}))
    with TensorRTBackend(engine, trust_engine=True) as backend:
        assert backend.manifest.family == "retinanet"
    assert trt.calls.of("deserialize_cuda_engine") == [(True,)]
    path.unlink()
    assert "put its manifest student.engine.json beside it, or the ONNX file student.onnx" in refused(
        engine, trust_engine=True
    )
    engine.with_suffix(".onnx").write_bytes(graph.read_bytes())
    with TensorRTBackend(engine, trust_engine=True) as backend:
        assert backend.manifest.family == "retinanet"
        assert_same(backend.infer(picture()), graph, picture())


def test_a_trusted_engine_that_tensorrt_refuses_or_dies_of_is_a_message(engine, trt, tmp_path, monkeypatch):
    good = engine.read_bytes()
    engine.write_bytes(b"random bytes" * 100)
    assert "TensorRT 10.13.0.35 refuses the engine: Magic tag does not match" in refused(engine, trust_engine=True)
    engine.write_bytes(good)
    put_module(monkeypatch, tmp_path, "tensorrt", "import os\n__version__ = '10.0.0'\nos.abort()\n")
    assert "TensorRT crashed (load): its process was ended by SIGABRT" in refused(engine, trust_engine=True)
    assert trt.calls == []


def test_an_engine_of_another_model_is_refused_after_it_is_loaded(engine, tmp_path, trt):
    other = write_graph(tmp_path / "other.onnx", outputs=2)
    engine.write_bytes(build(trt, other).engine)
    message = refused(engine, trust_engine=True)
    assert "outputs boxes, scores; its manifest says image (1, 3, 64, 96) and boxes, scores, labels" in message


@pytest.mark.parametrize(("content", "message"), [(None, "does not exist"), (b"", "is empty (0 bytes)")])
def test_a_missing_or_empty_engine_is_refused(tmp_path, content, message):
    path = tmp_path / "student.engine"
    if content is not None:
        path.write_bytes(content)
    assert message in refused(path)


def test_without_a_driver_an_engine_is_exit_code_3_with_the_fix(engine, monkeypatch):
    def missing() -> Driver:
        raise BackendMissing("there is no NVIDIA driver. Install NVIDIA's driver")

    monkeypatch.setattr(tensorrt, "find_driver", missing)
    with pytest.raises(BackendMissing, match=r"student\.engine cannot run here: there is no NVIDIA driver"):
        TensorRTBackend(engine).load()


def test_without_buffers_an_engine_is_exit_code_3_with_every_fix(engine, trt, monkeypatch):
    monkeypatch.setattr(tensorrt, "open_buffers", buffers.open_buffers)
    for module in ("cuda.bindings.runtime", "cuda.cudart", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendMissing) as error:
        TensorRTBackend(engine).load()
    for fix in ("pip install cuda-python", "pip install pycuda"):
        assert fix in str(error.value)
    with pytest.raises(BackendMissing, match="pycuda cannot be used"):
        TensorRTBackend(engine, buffers="pycuda").load()
    with pytest.raises(DeployError, match="there are no buffers 'cupy'"):
        TensorRTBackend(engine, buffers="cupy").load()


def test_a_fixed_shape_prints_as_one_and_a_range_as_three():
    assert str(ShapeRange((1, 3), (1, 3), (1, 3))) == "1x3"
    assert str(ShapeRange((1, 3), (2, 3), (4, 3))) == "min 1x3, opt 2x3, max 4x3"
