"""Building engines: the driver, the sequence of TensorRT's calls against a double of 10 and of 11, the progress."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from cskd_deploy.backends.tensorrt.api import import_tensorrt
from cskd_deploy.backends.tensorrt.build import Phases, make_monitor
from cskd_deploy.backends.tensorrt.driver import Driver, Gpu, find_driver
from cskd_deploy.backends.tensorrt.settings import BuildSettings
from cskd_deploy.backends.tensorrt.shapes import ProfileShapes, ShapeRange
from cskd_deploy.errors import BackendMissing, DeployError

from .engines import VERSIONS, build, write_graph
from .gpu_double import DriverDouble
from .tensorrt_double import HEADER, make_tensorrt


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    """A small graph of the interface of an exported student."""
    return write_graph(tmp_path_factory.mktemp("graph") / "student.onnx")


@pytest.fixture(scope="module")
def dynamic_graph(tmp_path_factory) -> Path:
    return write_graph(tmp_path_factory.mktemp("graph") / "dynamic.onnx", dynamic=True)


# The driver


def test_the_driver_gives_its_cuda_version_and_its_gpus():
    driver = find_driver(lambda name: DriverDouble(count=2, name="Orin", capability=(8, 7), multiprocessors=16))
    assert driver == Driver((13, 2), (Gpu("Orin", (8, 7), 16), Gpu("Orin", (8, 7), 16)))
    assert driver.cuda_version == "13.2"
    assert str(driver.gpus[0]) == "Orin (compute capability 8.7, 16 SMs)"


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (DriverDouble(failing={"cuInit": 100}), r"does not start: CUDA_ERROR_NO_DEVICE \(100\)"),
        (DriverDouble(failing={"cuInit": 999, "cuGetErrorName": 1}), r"does not start: an unknown error \(999\)"),
        (DriverDouble(failing={"cuDeviceGetCount": 100}), "does not list its GPUs"),
        (DriverDouble(count=0), "has no GPU to offer"),
    ],
)
def test_a_driver_that_does_not_work_is_a_missing_backend_with_the_fix(driver, message):
    with pytest.raises(BackendMissing, match=message) as error:
        find_driver(lambda name: driver)
    assert "nvidia-smi" in str(error.value)
    assert error.value.exit_code == 3


def test_a_tensorrt_before_10_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", make_tensorrt("8.6.1"))
    with pytest.raises(BackendMissing, match=r"8\.6\.1 is too old, expected 10 or newer"):
        import_tensorrt()


# The sequence of calls


@pytest.mark.parametrize("version", VERSIONS)
def test_a_fixed_model_is_built_strongly_typed_and_with_nothing_that_was_not_asked_for(version, graph):
    trt = make_tensorrt(version)
    built = build(trt, graph)
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert trt.calls == [
        ("init_libnvinfer_plugins", ""),
        ("Builder",),
        ("create_network", strongly_typed),
        ("parse",),
        ("build_serialized_network",),
    ]
    assert built.engine.startswith(HEADER)
    fixed = (1, 3, 64, 96)
    assert built.profiles == ({"image": ShapeRange(fixed, fixed, fixed)},)
    assert built.outputs == {"boxes": (1, 5, 4), "scores": (1, 5), "labels": (1, 5)}
    assert built.timing_cache is None
    assert built.notes == ("labels are 64 bits wide",)


def test_a_module_without_the_flag_is_always_strongly_typed(graph):
    trt = make_tensorrt(VERSIONS[1])
    trt.NetworkDefinitionCreationFlag = object()
    build(trt, graph)
    assert trt.calls.of("create_network") == [(0,)]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_option_reaches_the_builder(version, graph):
    trt = make_tensorrt(version)
    settings = BuildSettings(
        workspace_mib=512, version_compatible=True, hardware_compatible="ampere+", optimization_level=5, tf32=False
    )
    shares: list[float] = []
    built = build(trt, graph, settings, timing_cache=b"known", progress=shares.append)
    assert trt.calls[4:] == [
        ("set_memory_pool_limit", "WORKSPACE", 512 * 1024 * 1024),
        ("set_flag", "VERSION_COMPATIBLE"),
        ("clear_flag", "TF32"),
        ("create_timing_cache", b"known"),
        ("set_timing_cache", b"known", False),
        ("build_serialized_network",),
        ("builder_optimization_level", 5),
    ]
    assert built.timing_cache == b"known+timings"
    assert shares == [0.0, 0.5, 0.5, 0.625, 0.75, 0.875, 1.0, 1.0, 1.0, 1.0]


def test_hardware_compatibility_is_the_level_of_the_module_or_a_message(graph):
    settings = BuildSettings(hardware_compatible="sameComputeCapability")
    with pytest.raises(DeployError, match=r"TensorRT 10\.13\.0\.35 has no .*=sameComputeCapability"):
        build(make_tensorrt(VERSIONS[0]), graph, settings)
    trt = make_tensorrt(VERSIONS[1])
    levels = []
    original = trt.Builder.build_serialized_network
    trt.Builder.build_serialized_network = lambda self, network, config: (
        levels.append(config.hardware_compatibility_level.name) or original(self, network, config)
    )
    build(trt, graph, settings)
    assert levels == ["SAME_COMPUTE_CAPABILITY"]


def test_a_timing_cache_that_does_not_fit_is_replaced_by_an_empty_one(graph):
    trt = make_tensorrt(refuse_cache=True)
    built = build(trt, graph, timing_cache=b"of another GPU")
    assert trt.calls.of("set_timing_cache") == [(b"of another GPU", False), (b"", False)]
    assert built.timing_cache == b"+timings"
    assert "timing cache is of another GPU" in built.notes[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_dynamic_model_gets_one_profile_around_its_input_size(version, dynamic_graph):
    trt = make_tensorrt(version)
    built = build(trt, dynamic_graph, BuildSettings(profiles=(ProfileShapes(max={"image": (4, 3, 256, 320)}),)))
    three = ((1, 3, 32, 32), (1, 3, 64, 96), (4, 3, 256, 320))
    assert trt.calls[4:] == [
        ("set_shape", "image", *three),
        ("add_optimization_profile",),
        ("build_serialized_network",),
    ]
    assert built.profiles == ({"image": ShapeRange(*three)},)
    assert built.outputs == {"boxes": (-1, 5, 4), "scores": (-1, 5), "labels": (-1, 5)}


@pytest.mark.parametrize("version", VERSIONS)
def test_nms_among_more_boxes_than_tensorrt_looks_at_is_refused_before_the_build(version, graph):
    trt = make_tensorrt(version, nms_boxes=(300, 5001))
    with pytest.raises(DeployError, match=r"\(/Select_2\) chooses among 5001 boxes, .*: export with --nms outside"):
        build(trt, graph)
    assert "build_serialized_network" not in trt.calls.names()
    assert build(make_tensorrt(version, nms_boxes=(300, 5000)), graph).notes == ("labels are 64 bits wide",)


def test_nms_among_a_number_of_boxes_that_depends_on_the_image_is_a_note(graph):
    notes = build(make_tensorrt(nms_boxes=(-1,)), graph).notes
    assert "(/Select_1) chooses among depends on the image's size; of more than 5000" in notes[0]


def test_what_the_parser_refuses_is_named_by_node(graph):
    with pytest.raises(DeployError, match=r"node 7 /roi/Align \(RoiAlign\): no importer for it"):
        build(make_tensorrt(refuse_parse=True), graph)


def test_a_build_without_a_result_says_what_tensorrt_logged_and_what_limited_it(graph):
    with pytest.raises(DeployError, match="could not find any implementation for node /conv") as error:
        build(make_tensorrt(refuse_build=True), graph, BuildSettings(workspace_mib=1))
    assert "limited to 1 MiB: try without --trt memPoolSize" in str(error.value)
    assert "not of interest" not in str(error.value)


def test_progress_never_falls_and_ends_at_one():
    phases, seen = Phases(), []
    phases.start("all", None, 4)
    for name in ("first", "second"):  # two phases in one step
        phases.start(name, "all", 2)
        phases.step(name, 0)
        seen.append(phases.done)
        phases.finish(name)
        seen.append(phases.done)
    phases.step("all", 3)
    phases.finish("all")
    assert seen == [0.125, 0.25, 0.25, 0.25]
    assert phases.done == 1.0


def test_phases_that_come_otherwise_than_documented_neither_fail_nor_count():
    phases = Phases()
    phases.step("never started", 3)
    phases.finish("never started")
    assert phases.done == 0
    phases.start("all", None, 4)
    phases.start("part", "all", 2)
    phases.step("part", 0)
    assert phases.done == 0.125
    phases.start("child", "never started", 2)
    phases.finish("child")
    assert phases.done == 0.125
    phases.finish("all")
    phases.finish("all")
    phases.step("part", 1)  # its parent has finished
    phases.finish("part")
    assert phases.done == 1.0


def test_no_exception_passes_through_the_monitor_and_only_a_closed_pipe_ends_the_build():
    def failing(error: Exception) -> Any:
        def progress(done: float) -> None:
            raise error

        return make_monitor(make_tensorrt(), progress)

    for error, goes_on in ((KeyError("phase"), True), (BrokenPipeError(), False)):
        monitor = failing(error)
        monitor.phase_start("all", None, 2)
        assert monitor.step_complete("all", 0) is goes_on
        monitor.phase_finish("all")
    monitor = make_monitor(make_tensorrt(), lambda done: None)
    monitor.phase_start("all", None, "two")  # of a type that is not documented
    assert monitor.step_complete(["all"], 0) is True
