"""What a measurement writes down of its machine, and what `doctor` tries before it calls something usable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cskd_deploy.backends.tensorrt import driver
from cskd_deploy.commands import doctor
from cskd_deploy.errors import BackendMissing
from cskd_deploy.measure import cold_start, environment

from .engines import ORIN, write_small_model
from .gpu_double import DriverDouble
from .ort_double import OnnxRuntimeDouble


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def absent() -> Any:
    raise BackendMissing("none")


@pytest.fixture
def jetson(tmp_path, monkeypatch) -> Path:
    """A board with its device tree, a driver's double, and the commands of a Jetson."""
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    (tmp_path / "version").write_text("540.4.0\n")
    monkeypatch.setattr(environment, "_BOARD", tmp_path / "model")
    monkeypatch.setattr(environment, "_DRIVER", tmp_path / "version")
    monkeypatch.setattr(environment, "find_driver", lambda: ORIN)
    (tmp_path / "nvpmodel.conf").write_text(
        "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MODE_30W >\n"
        "< POWER_MODEL ID=22 NAME=MODE_50W >\n< PM_CONFIG DEFAULT=22 >\n"
    )
    node = tmp_path / "devfreq" / "17000000.gpu"
    node.mkdir(parents=True)
    for name, hertz in (("cur_freq", 306000000), ("min_freq", 306000000), ("max_freq", 1300500000)):
        (node / name).write_text(f"{hertz}\n")
    monkeypatch.setattr(environment, "_POWER_MODES", tmp_path / "nvpmodel.conf")
    monkeypatch.setattr(environment, "_POWER_MODE", tmp_path / "status")
    monkeypatch.setattr(environment, "_FREQUENCIES", tmp_path / "devfreq")
    program(tmp_path, "nvpmodel", 'test "$1" = -q && printf "NV Fan Mode:quiet\\nNV Power Mode: MODE_30W\\n2\\n"')
    program(tmp_path, "nvidia-smi", "exit 9")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_a_jetson_its_power_mode_driver_and_cuda_are_written_down(jetson):
    facts = environment.describe(3)
    assert facts["board"] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert facts["power_mode"] == "MODE_30W"
    assert (facts["gpus"], facts["gpu_driver"], facts["cuda"]) == (["Double of Orin"], "540.4.0", "13.2")
    assert facts["gpu_clocks"] == ["306 MHz, 1300 MHz"]
    assert facts["jetson_clocks"] == "off"
    (jetson / "devfreq" / "17000000.gpu" / "min_freq").write_text("1300500000\n")
    assert environment.describe(3)["jetson_clocks"] == "on"


@pytest.mark.parametrize(
    ("status", "mode"),
    [("pmode:0002 fmode:quiet", "MODE_30W"), (None, "MODE_50W"), ("pmode:0007", "mode 7"), ("pmode:0000", "MAXN")],
)
def test_the_power_mode_is_in_files_where_the_command_does_not_answer(status, mode, jetson):
    program(jetson, "nvpmodel", "echo you must be root; exit 1")
    if status is not None:
        (jetson / "status").write_text(status)
    assert environment.describe(3)["power_mode"] == mode
    (jetson / "nvpmodel").unlink()
    assert environment.describe(3)["power_mode"] == mode
    (jetson / "nvpmodel.conf").unlink()
    (jetson / "status").unlink(missing_ok=True)
    assert environment.describe(3)["power_mode"] is None


def test_a_graphics_card_is_asked_by_its_own_command(jetson):
    program(jetson, "nvidia-smi", "echo 1980 MHz, 1980 MHz")
    assert environment.describe(3)["gpu_clocks"] == ["1980 MHz, 1980 MHz"]
    program(jetson, "nvidia-smi", "echo '[N/A], [N/A]'")  # of a Jetson
    assert environment.describe(3)["gpu_clocks"] == ["306 MHz, 1300 MHz"]


def test_doctor_names_a_board_its_power_mode_and_whether_its_clocks_are_held(jetson, monkeypatch):
    (board,) = doctor._board()
    assert (board.name, board.state) == ("board", "ok")
    assert board.detail == "NVIDIA Jetson AGX Orin Developer Kit, power mode MODE_30W, jetson_clocks off"
    assert "sudo jetson_clocks" in board.fix
    (jetson / "devfreq" / "17000000.gpu" / "min_freq").write_text("1300500000\n")
    assert doctor._board()[0].detail.endswith("jetson_clocks on")
    assert doctor._board()[0].fix == ""
    monkeypatch.setattr(environment, "_BOARD", jetson / "none")
    assert doctor._board() == []


def test_a_machine_without_any_of_it_says_none(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_BOARD", tmp_path / "model")
    monkeypatch.setattr(environment, "find_driver", absent)
    monkeypatch.setattr(environment, "_answer", lambda command: pytest.fail(f"asks {command[0]}"))
    facts = environment.describe(3)
    assert [facts[name] for name in ("board", "power_mode", "jetson_clocks", "gpus", "gpu_driver", "cuda")] == [
        None,
        None,
        None,
        [],
        None,
        None,
    ]


@pytest.mark.parametrize("name", ["tensorrt-cu12", "tensorrt-cu13", "tensorrt"])
def test_tensorrt_is_written_down_by_whatever_name_it_was_installed(name, monkeypatch):
    monkeypatch.setattr(environment, "version_of", lambda one: "10.9" if one == name else None)
    assert environment.versions() == {"python": environment.platform.python_version(), name: "10.9"}


# GPU memory, by the driver's double


def test_memory_in_use_is_asked_for_in_the_context_that_the_runtimes_share():
    library = DriverDouble()
    assert driver.memory_in_use(lambda name: library) == 2 << 32
    assert library.context == "released"


@pytest.mark.parametrize("failing", ["cuInit", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuMemGetInfo_v2"])
def test_memory_in_use_is_not_known_where_the_driver_fails_and_its_context_is_given_back(failing):
    library = DriverDouble(failing={failing: 100})
    assert driver.memory_in_use(lambda name: library) is None
    assert getattr(library, "context", "released") == "released"


def test_memory_in_use_is_not_known_without_a_driver():
    def load(name: str) -> Any:
        raise OSError(name)

    assert driver.memory_in_use(load) is None


@pytest.mark.parametrize(("device", "expected"), [("cuda", 900), ("cpu", None)])
def test_the_gpu_memory_of_a_cold_start_is_what_came_to_that_in_use_with_doubles(
    device, expected, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "onnxruntime", OnnxRuntimeDouble())
    in_use = iter([100, 1000])
    monkeypatch.setattr(cold_start, "memory_in_use", lambda: next(in_use))

    def run(command: list[str], **_: Any) -> Any:
        start = cold_start.run_cold(json.loads(command[-1]))
        return subprocess.CompletedProcess(command, 0, json.dumps(vars(start)), "")

    monkeypatch.setattr(cold_start.subprocess, "run", run)
    model = write_small_model(tmp_path / "student.onnx")
    start = cold_start.measure_cold(model, "onnxruntime", {"device": device})
    assert start.gpu_bytes == expected
    assert start.to_dict()["gpu_memory_bytes"] == expected


# doctor


def findings(done: Any) -> dict[str, dict[str, str]]:
    return {one["name"]: one for one in json.loads(done.out)}


@pytest.mark.parametrize(
    ("runtime", "other", "tensorrt", "buffers", "code"),
    [
        ("ok", "absent", "absent", "absent", 0),
        ("absent", "ok", "absent", "absent", 0),
        ("absent", "absent", "ok", "ok", 0),
        ("fault", "fault", "ok", "ok", 0),
        ("absent", "absent", "ok", "absent", 3),  # an engine needs both
        ("absent", "absent", "fault", "ok", 3),
        ("fault", "fault", "absent", "absent", 3),
    ],
)
def test_doctor_is_exit_code_3_only_where_no_runtime_can_run_a_model(
    runtime, other, tensorrt, buffers, code, deploy, monkeypatch
):
    states = {"_onnxruntime": runtime, "_openvino": other, "_tensorrt": tensorrt, "_buffers": buffers}
    for name, state in states.items():
        finding = doctor.Finding(name.strip("_"), state, "")
        monkeypatch.setattr(doctor, name, lambda *_, finding=finding: finding)
    monkeypatch.setattr(doctor, "_package", lambda name, *_: doctor.Finding(name, "absent", ""))
    done = deploy("doctor", "--json")
    assert done.code == code
    assert findings(done)["tensorrt"]["state"] == tensorrt


def test_doctor_computes_on_cuda_instead_of_believing_the_list_of_providers_with_a_double(deploy, monkeypatch):
    monkeypatch.setattr(doctor, "_package", lambda name, *_: doctor.Finding(name, "absent", ""))
    for working, state in ((True, "ok"), (False, "fault")):
        runtime = OnnxRuntimeDouble(working=working)
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        done = deploy("doctor", "--json")
        assert done.code == 0
        assert "CUDAExecutionProvider" in findings(done)["onnxruntime"]["detail"]
        found = findings(done)["ort cuda"]
        assert found["state"] == state
        assert ("onnxruntime-gpu[cuda,cudnn]" in found["fix"]) != working
        assert runtime.calls.count("session") == 1


@pytest.mark.parametrize("there", [True, False])
def test_doctor_advises_onnxruntime_gpu_only_where_there_is_a_gpu(there, deploy, monkeypatch):
    monkeypatch.setattr(doctor, "_package", lambda name, *_: doctor.Finding(name, "absent", ""))
    monkeypatch.setattr(doctor, "find_driver", lambda: ORIN if there else absent())
    runtime = SimpleNamespace(__version__="1.27", get_available_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(doctor, "_tensorrt", lambda driver: doctor.Finding("tensorrt", "absent", ""))
    found = findings(deploy("doctor", "--json"))["ort cuda"]
    assert found["state"] == "absent"
    assert ("onnxruntime-gpu" in found["fix"]) == there
