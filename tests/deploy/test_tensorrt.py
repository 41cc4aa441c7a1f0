"""Building engines: the driver, the sequence of TensorRT's calls against a double of 10 and of 11, the shapes."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest

from cskd_deploy.backends.tensorrt.api import import_tensorrt
from cskd_deploy.backends.tensorrt.driver import Driver, Gpu, find_driver
from cskd_deploy.backends.tensorrt.monitor import Phases
from cskd_deploy.backends.tensorrt.settings import KEYS, BuildSettings, parse_build_settings, settings_from_dict
from cskd_deploy.backends.tensorrt.shapes import ShapeRange, input_ranges
from cskd_deploy.errors import BackendMissing, DeployError
from cskd_deploy.model.manifest import GraphForm

from .engines import MANIFEST, VERSIONS, build, write_graph
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
    assert built.inputs == {"image": ShapeRange(fixed, fixed, fixed)}
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
    assert shares == [0.5, 0.625, 0.75, 0.875, 1.0, 1.0, 1.0, 1.0]


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
    built = build(trt, dynamic_graph, BuildSettings(max_shapes={"image": (4, 3, 256, 320)}))
    three = ((1, 3, 32, 32), (1, 3, 64, 96), (4, 3, 256, 320))
    assert trt.calls[4:] == [
        ("set_shape", "image", *three),
        ("add_optimization_profile",),
        ("build_serialized_network",),
    ]
    assert built.inputs == {"image": ShapeRange(*three)}
    assert built.outputs == {"boxes": (-1, 5, 4), "scores": (-1, 5), "labels": (-1, 5)}


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


# Settings


def test_settings_are_read_as_trtexec_writes_them():
    texts = (
        "memPoolSize=workspace:512",
        "timingCacheFile=timings=a.cache",
        "versionCompatible",
        "hardwareCompatibilityLevel=ampere+",
        "builderOptimizationLevel=4",
        "noTF32",
        "minShapes=image:1x3x320x416,image_shape:1x2",
        "optShapes=image:2x3x320x416",
        "maxShapes=image:4x3x416x416",
    )
    assert {text.partition("=")[0] for text in texts} == set(KEYS)
    settings = parse_build_settings(texts)
    assert settings == BuildSettings(
        workspace_mib=512,
        timing_cache=Path("timings=a.cache"),
        version_compatible=True,
        hardware_compatible="ampere+",
        optimization_level=4,
        tf32=False,
        min_shapes={"image": (1, 3, 320, 416), "image_shape": (1, 2)},
        opt_shapes={"image": (2, 3, 320, 416)},
        max_shapes={"image": (4, 3, 416, 416)},
    )
    assert settings_from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert parse_build_settings(()) == BuildSettings()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("memPoolSize=512", "memPoolSize=workspace:MIB"),
        ("memPoolSize=workspace:0", "memPoolSize=workspace:MIB"),
        ("memPoolSize", "memPoolSize=workspace:MIB"),
        ("timingCacheFile=", "timingCacheFile=FILE"),
        ("versionCompatible=yes", "versionCompatible"),
        ("hardwareCompatibilityLevel=turing+", r"hardwareCompatibilityLevel=none\|ampere\+\|sameComputeCapability"),
        ("builderOptimizationLevel=6", "builderOptimizationLevel=0..5"),
        ("builderOptimizationLevel=high", "builderOptimizationLevel=0..5"),
        ("noTF32=1", "noTF32"),
        ("minShapes=1x3", "minShapes=NAME:SHAPE,..."),
        ("optShapes=image=1x3", "optShapes=NAME:SHAPE,..."),
        ("maxShapes=image:1x-3", "maxShapes=NAME:SHAPE,..."),
        ("maxShapes=image:1x3,", "maxShapes=NAME:SHAPE,..."),
        ("workspace=512", "there is no key 'workspace', expected one of memPoolSize=workspace:MIB, .*noTF32, .*"),
    ],
)
def test_an_unknown_key_or_value_is_refused_with_what_there_is(text, expected):
    with pytest.raises(DeployError, match=f"--trt {re.escape(text)}: (expected )?{expected}$"):
        parse_build_settings((text,))


def test_a_setting_that_is_given_twice_is_refused():
    with pytest.raises(DeployError, match="--trt noTF32 is given twice"):
        parse_build_settings(("noTF32", "noTF32"))


# Shapes


def test_dynamic_inputs_go_from_the_padding_to_a_square_of_the_longer_edge():
    rule = dataclasses.replace(MANIFEST.preprocessing, scale=(150, 90), pad_divisor=32)
    model = dataclasses.replace(MANIFEST, preprocessing=rule)
    inputs = {"image": (-1, 3, -1, -1), "image_shape": (-1, 2)}
    three = ({}, {"image": (2, 3, 96, 160)}, {"image": (8, 3, 160, 160)})
    found = input_ranges(inputs, model, *three)
    assert found["image"] == ShapeRange((1, 3, 32, 32), (2, 3, 96, 160), (8, 3, 160, 160))
    assert found["image_shape"] == ShapeRange((1, 2), (2, 2), (8, 2))
    assert found["image"].holds((3, 3, 128, 64))
    assert not found["image"].holds((9, 3, 128, 64))
    assert not found["image"].holds((3, 128, 64))
    pixels = dataclasses.replace(model, graph=GraphForm(input="uint8", dynamic=True))
    found = input_ranges({"image": (-1, -1, -1, 3)}, pixels, {}, {}, {})
    assert found["image"] == ShapeRange((1, 32, 32, 3), (1, 96, 160, 3), (1, 160, 160, 3))
    upright = dataclasses.replace(model, preprocessing=dataclasses.replace(rule, scale=(90, 150)))
    assert input_ranges(inputs, upright, {}, {}, {})["image"] == ShapeRange(
        (1, 3, 32, 32), (1, 3, 160, 96), (1, 3, 160, 160)
    )
    with pytest.raises(DeployError, match=r"input image: .* is no range"):
        input_ranges(inputs, model, {"image": (4, 3, 96, 160)}, {}, {})
    with pytest.raises(DeployError, match="--trt maxShapes names 'picture'; the inputs are image, image_shape"):
        input_ranges(inputs, model, {}, {}, {"picture": (1, 3, 96, 160)})
    with pytest.raises(DeployError, match=r"gives image as 1x1x96x160, the graph has \?x3x\?x\?: only what is \?"):
        input_ranges(inputs, model, {"image": (1, 1, 96, 160)}, {}, {})
    with pytest.raises(DeployError, match="export it without --input-size, or with --batch any"):
        input_ranges({"image": (1, 3, 96, 160)}, model, {"image": (2, 3, 96, 160)}, {}, {})
