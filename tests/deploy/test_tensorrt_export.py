"""`cskd-deploy export --format trt`: the child process with a double, crashes, the names of files, and `doctor`."""

from __future__ import annotations

import functools
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from cskd_deploy.backends.tensorrt import export as tensorrt_export
from cskd_deploy.backends.tensorrt import worker as tensorrt_process
from cskd_deploy.backends.tensorrt.driver import find_driver
from cskd_deploy.backends.tensorrt.manifest import manifest_path, read_engine_manifest, sha256_of
from cskd_deploy.backends.tensorrt.settings import KEYS
from cskd_deploy.commands import doctor as doctor_command
from cskd_deploy.errors import DeployError

from .engines import MANIFEST, ORIN, TENSORRT_OF_CHILD, put_module, write_graph, write_small_model

INT8 = ("--precision", "int8", "--calibration-images", "pictures")


@pytest.fixture
def orin(monkeypatch) -> None:
    """A driver with one GPU."""
    monkeypatch.setattr(tensorrt_export, "find_driver", lambda: ORIN)


@pytest.fixture
def modules(tmp_path_factory, monkeypatch) -> Any:
    """Puts a module where the child process finds it: `modules("tensorrt", source)`."""
    return functools.partial(put_module, monkeypatch, tmp_path_factory.mktemp("modules"))


@pytest.fixture
def tensorrt_in_child(orin, modules) -> None:
    """The child process imports the double as `tensorrt`."""
    modules("tensorrt", TENSORRT_OF_CHILD)


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    """A small graph of the interface of an exported student."""
    return write_graph(tmp_path_factory.mktemp("graph") / "student.onnx")


@pytest.fixture(scope="module")
def dynamic_graph(tmp_path_factory) -> Path:
    return write_graph(tmp_path_factory.mktemp("graph") / "dynamic.onnx", dynamic=True)


# What is missing


def test_no_driver_is_exit_code_3_before_anything_is_exported(deploy, graph, checkpoint, tmp_path, monkeypatch):
    def load(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(tensorrt_export, "find_driver", lambda: find_driver(load))
    for source in (("--onnx", graph), ("--checkpoint", checkpoint)):
        done = deploy("export", *source, "--format", "trt", "--output", tmp_path / "student.engine")
        assert done.code == 3
        assert "libcuda.so.1: cannot open" in done.err
        assert "nvidia-smi" in done.err
        assert "export --onnx" in done.err
        assert done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_no_tensorrt_is_exit_code_3_with_the_command_that_installs_it(deploy, graph, tmp_path, orin):
    done = deploy("export", "--onnx", graph, "--format", "trt", "--output", tmp_path / "student.engine")
    assert done.code == 3
    assert "TensorRT cannot be imported (No module named 'tensorrt')" in done.err
    assert "pip install tensorrt-cu13" in done.err
    assert "://" not in done.err


# The child process


def test_an_engine_and_its_manifest_come_out_of_the_child_process(deploy, graph, tmp_path, tensorrt_in_child):
    engine, cache = tmp_path / "student.engine", tmp_path / "timings.cache"
    settings = (f"timingCacheFile={cache}", "memPoolSize=workspace:256", "versionCompatible")
    options = [word for setting in settings for word in ("--trt", setting)]
    done = deploy("export", "--onnx", graph, "--format", "trt", "--output", engine, *options)
    assert done.code == 0, done.err
    assert "TensorRT 10.13.0.35" in done.out
    assert "Double of Orin (compute capability 8.7, 14 SMs)" in done.out
    assert "note: labels are 64 bits wide" in done.out
    assert "export: TensorRT 100/100 %" in done.err
    known = read_engine_manifest(engine)
    assert known is not None
    assert known.sha256 == sha256_of(engine.read_bytes())
    assert known.onnx_sha256 == sha256_of(graph.read_bytes())
    assert (known.tensorrt, known.cuda, known.gpu) == ("10.13.0.35", "13.2", ORIN.gpus[0])
    assert (known.precision, known.version_compatible, known.hardware_compatible) == ("fp32", True, "none")
    assert known.inputs["image"].opt == (1, 3, 64, 96)
    assert known.model == MANIFEST
    texts = " ".join(f"--{setting}" for setting in sorted(settings))
    line = f"trtexec --onnx={graph} --saveEngine={engine} --stronglyTyped --skipInference {texts}"
    assert known.trtexec == line
    assert f"  the same by trtexec: {line}\n" in done.out
    assert cache.read_bytes() == b"+timings"
    assert {path.name for path in tmp_path.iterdir()} == {engine.name, manifest_path(engine).name, cache.name}

    again = deploy("export", "--onnx", graph, "--format", "trt", "--output", engine, *options, "--json")
    assert json.loads(again.out)["engine_manifest"]["sha256"] == known.sha256
    assert cache.read_bytes() == b"+timings+timings"


@pytest.mark.parametrize(
    ("source", "precision", "name"),
    [
        ("student.onnx", "fp32", "student.engine"),
        ("student.fp16.onnx", "fp16", "student.fp16.engine"),
        ("low.onnx", "fp16", "low.fp16.engine"),
        ("v1.2.int8-tensorrt.onnx", "int8-tensorrt", "v1.2.int8-tensorrt.engine"),
        ("student.int8+fp16.onnx", "int8+fp16", "student.int8+fp16.engine"),
        ("odd.onnx", "../../fp4", "odd.engine"),
    ],
)
def test_the_name_of_an_engine_carries_its_precision_once(source, precision, name, deploy, tmp_path, tensorrt_in_child):
    model = write_graph(tmp_path / source, precision=precision)
    done = deploy("export", "--onnx", model, "--format", "trt")
    assert done.code == 0, done.err
    assert {path.name for path in tmp_path.iterdir()} == {source, name, f"{name}.json"}


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ((), ("student.fp16.onnx", "student.fp16.engine")),
        (("--output", "edge.plan"), ("edge.fp16.onnx", "edge.plan")),
        (("--output", "edge.fp16.engine"), ("edge.fp16.onnx", "edge.fp16.engine")),
    ],
)
def test_the_file_that_is_converted_for_an_engine_is_named_after_it(
    output, names, deploy, tmp_path, tensorrt_in_child, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_small_model(tmp_path / "student.onnx")
    done = deploy("export", "--onnx", "student.onnx", "--precision", "fp16", "--format", "trt", *output)
    assert done.code == 0, done.err
    assert {path.name for path in tmp_path.iterdir()} == {"student.onnx", *names, f"{names[1]}.json"}
    known = read_engine_manifest(tmp_path / names[1])
    assert known is not None
    assert (known.precision, known.onnx) == ("fp16", names[0])


def test_export_prints_the_profile_of_a_dynamic_model(deploy, dynamic_graph, tmp_path, tensorrt_in_child):
    done = deploy("export", "--onnx", dynamic_graph, "--format", "trt", "--output", tmp_path / "dynamic.engine")
    assert done.code == 0, done.err
    assert "profile of image: min 1x3x32x32, opt 1x3x64x96, max 8x3x96x96\n" in done.out
    assert json.loads(manifest_path(tmp_path / "dynamic.engine").read_text())["shapes"]["profiles"] == [
        {"image": [[1, 3, 32, 32], [1, 3, 64, 96], [8, 3, 96, 96]]}
    ]


def test_export_prints_each_of_several_profiles_and_refuses_a_third_that_is_one_of_them(
    deploy, dynamic_graph, tmp_path, tensorrt_in_child
):
    engine = tmp_path / "dynamic.engine"
    shapes = ("maxShapes=image:1x3x96x96", "profile=1", "minShapes=image:2x3x32x32", "optShapes=image:8x3x64x96")
    options = [word for setting in shapes for word in ("--trt", setting)]
    command = ("export", "--onnx", dynamic_graph, "--format", "trt", "--output", engine, *options)
    refused = deploy(*command, "--trt", "profile=2", "--trt", "maxShapes=image:1x3x96x96")
    assert refused.code == 2
    assert "profile 2 is profile 0 again: leave --trt profile=2 out" in refused.err
    assert not list(tmp_path.iterdir())
    done = deploy(*command)
    assert done.code == 0, done.err
    assert "profile 0 of image: min 1x3x32x32, opt 1x3x64x96, max 1x3x96x96\n" in done.out
    assert "profile 1 of image: min 2x3x32x32, opt 8x3x64x96, max 8x3x96x96\n" in done.out
    known = read_engine_manifest(engine)
    assert known is not None
    assert [profile["image"].opt for profile in known.profiles] == [(1, 3, 64, 96), (8, 3, 64, 96)]
    assert "--profile=1 --minShapes=image:2x3x32x32 --optShapes=image:8x3x64x96 --max" in known.trtexec


def test_the_help_lists_every_key_of_a_build_in_lines_of_eighty(deploy):
    lines = deploy("export", "--help").out.split("Keys of --trt")[1].splitlines()
    assert [line.strip().partition("=")[0] for line in lines[1::2]] == list(KEYS)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--trt", "timingCacheFile=e.engine"), "timing cache e.engine would take the place of output e.engine"),
        (("--trt", "timingCacheFile=e.engine.json"), "timing cache e.engine.json would take the place of manifest"),
        (("--trt", "timingCacheFile=e.pth"), "timing cache e.pth has the name of a checkpoint"),
        ((*INT8, "--calibration-cache", "e.engine.json"), "calibration cache e.engine.json would take the place of"),
        ((*INT8, "--calibration-cache", "t", "--trt", "timingCacheFile=t"), "t would take the place of timing cache t"),
        (
            (*INT8, "--trt", "timingCacheFile=e.int8-tensorrt.onnx"),
            "ONNX file e.int8-tensorrt.onnx would take the place",
        ),
    ],
)
def test_outputs_of_an_engine_that_are_one_file_are_refused_before_anything_is_made(
    words, message, deploy, graph, tmp_path, tensorrt_in_child, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    done = deploy("export", "--onnx", graph, "--format", "trt", "--output", "e.engine", *words)
    assert done.code == 2
    assert message in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_checkpoint_becomes_an_engine_and_keeps_its_onnx_file(deploy, checkpoint, tmp_path, tensorrt_in_child):
    done = deploy("export", "--checkpoint", checkpoint, "--format", "trt", "--output", tmp_path / "student.engine")
    assert done.code == 0, done.err
    assert "verified against mmdet" in done.err
    known = read_engine_manifest(tmp_path / "student.engine")
    assert known is not None
    assert known.onnx == "student.onnx"
    assert known.onnx_sha256 == sha256_of((tmp_path / "student.onnx").read_bytes())


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_crash_of_tensorrt_is_a_message_and_leaves_nothing(deploy, graph, tmp_path, orin, modules, name):
    modules(
        "tensorrt",
        f"""
import os, signal, sys
__version__ = "10.0.0"
def __getattr__(name):
    if name == "ILogger":
        print("terminate called", flush=True)
        print("Cuda failure: 700", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.{name})
    raise AttributeError(name)
""",
    )
    engine = tmp_path / "student.engine"
    engine.write_bytes(b"of yesterday")
    done = deploy("export", "--onnx", graph, "--format", "trt", "--output", engine)
    assert done.code == 2
    assert f"TensorRT crashed (build): its process was ended by {name}" in done.err
    assert "Its last output: terminate called | Cuda failure: 700" in done.err
    assert ("did memory run out?" in done.err) == (name == "SIGKILL")
    assert engine.read_bytes() == b"of yesterday"
    assert {path.name for path in tmp_path.iterdir()} == {engine.name}


def test_an_exit_without_a_result_and_an_unknown_error_are_messages(modules):
    modules("tensorrt", "import os\nos._exit(7)\n")
    with pytest.raises(DeployError, match="ended with code 7 and no result"):
        tensorrt_process.run_in_worker("version", {})
    modules("tensorrt", "raise TypeError('pybind11::init(): factory function returned nullptr')")
    with pytest.raises(DeployError, match="TensorRT failed: TypeError: pybind11"):
        tensorrt_process.run_in_worker("version", {})


def test_an_interrupt_ends_the_child(monkeypatch):
    children = []

    def interrupted(child: Any, job: Any, progress: Any) -> Any:
        children.append(child)
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt_process, "_talk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tensorrt_process.run_in_worker("version", {})
    assert children[0].returncode == -signal.SIGKILL


# Bad input


def test_weights_in_other_files_are_not_read(deploy, graph, tmp_path, tensorrt_in_child):
    import onnx
    from onnx import TensorProto

    model = onnx.load(str(graph))
    weight = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1])
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    path = tmp_path / "external.onnx"
    path.write_bytes(model.SerializeToString())
    done = deploy("export", "--onnx", path, "--format", "trt")
    assert done.code == 2
    assert "keeps weights in other files" in done.err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: b"", "is empty"),
        (lambda content: content[:-100], "damaged or cut short"),
        (lambda content: b"this is a text file\n" * 20, "cannot be loaded as an ONNX model"),
        (lambda content: bytes(range(256)) * 40, "cannot be loaded as an ONNX model"),
    ],
)
def test_what_is_no_model_builds_no_engine(deploy, graph, tmp_path, spoil, message, tensorrt_in_child):
    path = tmp_path / "spoilt.onnx"
    path.write_bytes(spoil(graph.read_bytes()))
    done = deploy("export", "--onnx", path, "--format", "trt")
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "spoilt.engine").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--checkpoint FILE"),
        (("--format", "trt"), "--onnx FILE"),
        (("--onnx", "a.onnx"), "give --format trt"),
        (("--onnx", "a.onnx", "--checkpoint", "b.pth", "--format", "trt"), "give what to export"),
        (("--onnx", "a.onnx", "--format", "trt", "--output", "a.onnx"), "is no name of an engine"),
        (("--checkpoint", "b.pth", "--trt", "noTF32"), "--trt noTF32 is for engines: give --format trt with it"),
        (
            ("--onnx", "a.onnx", "--format", "trt", "--trt", "fp16"),
            "--trt fp16: there is no key 'fp16', expected one of memPoolSize=workspace:MIB, timingCacheFile=FILE,",
        ),
    ],
)
def test_what_is_to_be_exported_must_be_clear(deploy, options, message):
    done = deploy("export", *options)
    assert done.code == 2
    assert message in done.err


def test_int8_for_processors_is_refused_with_the_target_that_tensorrt_takes(deploy, tmp_path, tensorrt_in_child):
    model = write_graph(tmp_path / "cpu.onnx", precision="int8-cpu")
    done = deploy("export", "--onnx", model, "--format", "trt")
    assert done.code == 2
    assert "--precision int8 --target tensorrt" in done.err


# doctor


def findings(deploy: Any) -> dict[str, Any]:
    return {finding["name"]: finding for finding in json.loads(deploy("doctor", "--json").out)}


def test_doctor_says_what_an_engine_needs_and_the_fix(deploy):
    found = findings(deploy)
    assert found["nvidia"]["state"] == found["tensorrt"]["state"] == "absent"
    assert "libcuda.so.1" in found["nvidia"]["detail"]
    assert "nvidia-smi" in found["nvidia"]["fix"]
    assert "pip install tensorrt-cu13" in found["tensorrt"]["fix"]
    assert "://" not in found["tensorrt"]["fix"]


def test_doctor_asks_tensorrt_in_another_process_and_only_with_a_driver(deploy, modules, monkeypatch):
    monkeypatch.setattr(doctor_command.importlib.util, "find_spec", lambda name: object())
    marker = "import os\nos.abort()\n"
    modules("tensorrt", marker)
    assert "no GPU that it could run on" in findings(deploy)["tensorrt"]["detail"]
    monkeypatch.setattr(doctor_command, "find_driver", lambda: ORIN)
    crashed = findings(deploy)["tensorrt"]
    assert crashed["state"] == "fault"
    assert "TensorRT crashed (version): its process was ended by SIGABRT" in crashed["detail"]
    modules("tensorrt", TENSORRT_OF_CHILD)
    found = findings(deploy)
    assert (found["tensorrt"]["state"], found["tensorrt"]["detail"]) == ("ok", "10.13.0.35")
    assert found["nvidia"]["detail"] == "driver of CUDA 13.2; Double of Orin (compute capability 8.7, 14 SMs)"


def test_doctor_names_the_package_of_gpu_memory_or_the_fix(deploy, monkeypatch):
    real = doctor_command.version_of
    versions = {"torch": "2.13.0+cu130", "cuda-bindings": None, "pycuda": None}
    monkeypatch.setattr(doctor_command, "version_of", lambda name: versions.get(name, real(name)))
    absent = findings(deploy)["gpu memory"]
    assert absent["state"] == "absent"
    assert "pip install cuda-python" in absent["fix"]
    versions["pycuda"] = "2025.1"
    assert findings(deploy)["gpu memory"]["detail"] == "TensorRT engines: pycuda 2025.1"
