"""`cskd-deploy doctor`."""

from __future__ import annotations

import importlib
import importlib.util
import json
import platform
from dataclasses import asdict, dataclass

import click

from cskd_deploy.backends import BUFFERS, openvino
from cskd_deploy.backends import onnxruntime_cuda as cuda
from cskd_deploy.backends.onnxruntime import INSTALL as INSTALL_RUNTIME
from cskd_deploy.backends.tensorrt import api as tensorrt_api
from cskd_deploy.backends.tensorrt.driver import FIX, find_driver
from cskd_deploy.backends.tensorrt.memory import INSTALL as INSTALL_BUFFERS
from cskd_deploy.backends.tensorrt.worker import run_in_worker
from cskd_deploy.errors import BackendMissing, DeployError
from cskd_deploy.exporter.student import INSTALL
from cskd_deploy.measure import environment
from cskd_deploy.measure.environment import instruction_sets, processor_name, usable_cores, version_of


@dataclass(frozen=True)
class Finding:
    """One thing looked at. Only a fault is wrong; what is absent may not be needed."""

    name: str
    state: str  # "ok", "absent" or "fault"
    detail: str
    fix: str = ""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def command(as_json: bool) -> None:
    """Say which backends and tools are installed, what each is for, and how to mend what is missing.

    What a GPU is used for is tried: ONNX Runtime computes a convolution on it, TensorRT is started.

    Exit code 3 when none of ONNX Runtime, OpenVINO and TensorRT can run a model.

    \b
    Example:
      cskd-deploy doctor
    """
    driver = _driver()
    runtime, other, tensorrt, buffers = _onnxruntime(), _openvino(), _tensorrt(driver), _buffers()
    findings = [
        Finding("python", "ok", platform.python_version()),
        Finding("processor", "ok", _processor()),
        *_board(),
        runtime,
        _onnxruntime_cuda(runtime, driver),
        other,
        _package("torch", "export, --reference", INSTALL),
        _package("cskd_train", "export, --reference", INSTALL, "cskd-train"),
        _package("onnx", "export, search, compare --layers", "pip install 'onnx>=1.16'"),
        _package("onnxslim", "export", "pip install 'onnxslim>=0.1.50'"),
        _package("matplotlib", "bench --plot", "pip install matplotlib"),
        driver,
        tensorrt,
        buffers,
    ]
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(f"{finding.state:<7} {finding.name:<12} {finding.detail}")
            if finding.fix:
                click.echo(f"{'':<20} fix: {finding.fix}")
    if "ok" not in (runtime.state, other.state) and not tensorrt.state == buffers.state == "ok":
        raise SystemExit(3)


def _processor() -> str:
    sets = instruction_sets()
    return f"{processor_name()}, {usable_cores()} cores usable" + (f"; {', '.join(sets)}" if sets else "")


def _board() -> list[Finding]:
    """A board that has a device tree: a Jetson's power mode and clocks decide how fast it is."""
    model = environment.board()
    if model is None:
        return []
    mode, clocks = environment.power_mode(), environment.jetson_clocks()
    told = [model, *([f"power mode {mode}"] if mode else []), *([f"jetson_clocks {clocks}"] if clocks else [])]
    hold = "before a measurement: `sudo jetson_clocks` holds the clocks" if clocks == "off" else ""
    return [Finding("board", "ok", ", ".join(told), hold)]


def _onnxruntime() -> Finding:
    cpu, gpu = version_of("onnxruntime"), version_of("onnxruntime-gpu")
    if cpu and gpu:
        return Finding(
            "onnxruntime",
            "fault",
            f"onnxruntime {cpu} and onnxruntime-gpu {gpu} are both installed and overwrite each other's files",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install one of them",
        )
    try:
        runtime = importlib.import_module("onnxruntime")
        providers = ", ".join(runtime.get_available_providers())
    except ImportError as error:
        state = "fault" if cpu or gpu else "absent"
        return Finding("onnxruntime", state, f"runs exported models: {error}", INSTALL_RUNTIME)
    return Finding("onnxruntime", "ok", f"{cpu or gpu or runtime.__version__}, providers: {providers}")


def _onnxruntime_cuda(installed: Finding, driver: Finding) -> Finding:
    name = "ort cuda"
    if installed.state != "ok":
        return Finding(name, "absent", "needed for: --device cuda of ONNX files", cuda.INSTALL)
    runtime = importlib.import_module("onnxruntime")
    if cuda.PROVIDER not in runtime.get_available_providers():
        # Only where there is a GPU is there something to install.
        fix = cuda.INSTALL if driver.state == "ok" else ""
        return Finding(name, "absent", "needed for: --device cuda of ONNX files", fix)
    fault = cuda.fault(runtime)
    if fault is not None:
        return Finding(name, "fault", fault.removesuffix(f". {cuda.INSTALL}"), cuda.INSTALL)
    return Finding(name, "ok", "has computed a convolution on the GPU")


def _openvino() -> Finding:
    """The devices that OpenVINO finds."""
    version = version_of("openvino")
    if version is None:
        return Finding("openvino", "absent", "needed for: --backend openvino", openvino.INSTALL)
    try:
        there = openvino.devices(openvino.core_of(openvino.import_openvino()))
    except Exception as error:  # a broken installation may fail with anything
        return Finding("openvino", "fault", f"{version} cannot be used: {error}", openvino.INSTALL)
    return Finding("openvino", "ok" if "cpu" in there else "fault", f"{version}, devices: {', '.join(there) or 'none'}")


def _package(module: str, purpose: str, fix: str, distribution: str | None = None) -> Finding:
    name = distribution or module
    version = version_of(name)
    if version is None:
        return Finding(name, "absent", f"needed for: {purpose}", fix)
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken installation may fail with anything
        return Finding(name, "fault", f"{version} cannot be imported: {error}", fix)
    return Finding(name, "ok", version)


def _driver() -> Finding:
    try:
        driver = find_driver()
    except BackendMissing as error:
        return Finding("nvidia", "absent", f"needed for: TensorRT engines: {str(error).removesuffix(f'. {FIX}')}", FIX)
    return Finding("nvidia", "ok", f"driver of CUDA {driver.cuda_version}; {', '.join(map(str, driver.gpus))}")


def _tensorrt(driver: Finding) -> Finding:
    # Not imported here, and without a driver not at all: that may end the process.
    if importlib.util.find_spec(tensorrt_api.MODULE) is None:
        return Finding("tensorrt", "absent", "needed for: TensorRT engines", tensorrt_api.INSTALL)
    if driver.state != "ok":
        return Finding("tensorrt", "fault", "installed, but there is no GPU that it could run on", FIX)
    try:
        version = run_in_worker("version", {})["tensorrt"]
    except DeployError as error:
        return Finding("tensorrt", "fault", str(error), tensorrt_api.INSTALL)
    return Finding("tensorrt", "ok", version)


def _buffers() -> Finding:
    """The packages that hold GPU memory for TensorRT, by their installed versions."""
    versions = {name: version_of("cuda-bindings" if name == "cuda-python" else name) for name in BUFFERS}
    there = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    if there:
        return Finding("gpu memory", "ok", f"TensorRT engines: {there}")
    return Finding(
        "gpu memory", "absent", "needed for: TensorRT engines", f"one of {'; '.join(INSTALL_BUFFERS.values())}"
    )
