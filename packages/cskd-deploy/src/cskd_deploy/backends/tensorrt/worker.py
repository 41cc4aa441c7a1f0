"""TensorRT in a process of its own, so that its crash is a message and not the end of ours."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from cskd_data.errors import CskdError
from cskd_deploy.backends.tensorrt.api import import_tensorrt
from cskd_deploy.errors import BackendMissing, DeployError

MOST_LINES = 5


def run_in_worker(
    action: str, arguments: Mapping[str, Any], progress: Callable[[float], None] = lambda done: None
) -> dict[str, Any]:
    """Let a worker do something.

    Args:
        action: a key of `ACTIONS`.
        arguments: plain data.
        progress: called with the done part of the work, from 0 to 1.

    Returns:
        Plain data.

    Raises:
        DeployError: what the child reported, or that it crashed, by which signal, and the last lines of its output.
        BackendMissing: as the child reported.
    """
    command = [sys.executable, "-m", "cskd_deploy.backends.tensorrt.worker"]
    with tempfile.TemporaryFile() as errors:
        # In a session of its own: an interrupt reaches this process alone, which then ends the child.
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        try:
            result = _talk(child, {"action": action, "arguments": dict(arguments)}, progress)
            code = child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
        if result is None:
            raise DeployError(_crash(action, code, errors))
    if "error" in result:
        kind = BackendMissing if result["missing"] else DeployError
        raise kind(result["error"])
    return result


def _talk(child: subprocess.Popen[bytes], job: Any, progress: Callable[[float], None]) -> dict[str, Any] | None:
    """Hand the job over and read what comes back, line by line; None when it ends without a result."""
    assert child.stdin is not None
    assert child.stdout is not None
    result = None
    try:
        child.stdin.write(json.dumps(job).encode())
        child.stdin.close()
    except BrokenPipeError:  # it has crashed already
        return None
    for line in child.stdout:
        if not line.endswith(b"\n"):  # it was ended while it wrote
            break
        message = json.loads(line)
        if "progress" in message:
            progress(message["progress"])
        else:
            result = message
    child.stdout.close()
    return result


def _crash(action: str, code: int, errors: IO[bytes]) -> str:
    if code < 0:
        names = {one.value: one.name for one in signal.Signals}
        ended = f"was ended by {names.get(-code, f'signal {-code}')}"
        if -code == signal.SIGKILL:
            ended += " (did memory run out?)"
    else:
        ended = f"ended with code {code} and no result"
    errors.seek(0)
    lines = [line.strip() for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    last = " | ".join(lines[-MOST_LINES:])
    return f"TensorRT crashed ({action}): its process {ended}" + (f". Its last output: {last}" if last else "")


Report = Callable[[float], None]


def build(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    """Build an engine; see `export.export_engine`."""
    from cskd_deploy.backends.tensorrt.build import build_engine
    from cskd_deploy.backends.tensorrt.export import read_model
    from cskd_deploy.backends.tensorrt.settings import settings_from_dict

    trt = import_tensorrt()
    settings = settings_from_dict(arguments["settings"])
    timings = None
    if settings.timing_cache is not None:
        timings = settings.timing_cache.read_bytes() if settings.timing_cache.exists() else b""
    content, model = read_model(Path(arguments["onnx"]))
    built = build_engine(trt, content, model, settings, timings, report)
    Path(arguments["engine"]).write_bytes(built.engine)
    if built.timing_cache is not None:
        Path(arguments["new_timing_cache"]).write_bytes(built.timing_cache)
    return {
        "tensorrt": trt.__version__,
        "profiles": [{name: one.to_list() for name, one in profile.items()} for profile in built.profiles],
        "dynamic": built.dynamic,
        "outputs": built.outputs,
        "notes": built.notes,
    }


def version(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    """Which TensorRT there is."""
    return {"tensorrt": import_tensorrt().__version__}


def load(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    """Load an engine, to see whether TensorRT survives it."""
    from cskd_deploy.backends.tensorrt.session import load_engine

    trt = import_tensorrt()
    loaded = load_engine(trt, Path(arguments["engine"]).read_bytes(), arguments["host_code"])
    loaded.close()
    return {"shapes": loaded.shapes}


def compare(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    """Run an engine, beside its manifest, on images and hold it against the ONNX file in ONNX Runtime."""
    from cskd_deploy.accuracy.against_fp32 import Pictures, compare_with_fp32
    from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
    from cskd_deploy.backends.tensorrt.backend import TensorRTBackend
    from cskd_deploy.detect.detector import Detector

    engine = TensorRTBackend(Path(arguments["engine"]))
    try:
        with OnnxRuntimeBackend(Path(arguments["onnx"])) as reference, engine:
            size = reference.manifest.preprocessing.input_size
            pictures = Pictures([Path(path) for path in arguments["images"]], size)
            found = compare_with_fp32(Detector(reference), Detector(engine), pictures)
    except BackendMissing as error:
        return {"not_compared": str(error)}
    return {"agreement": dataclasses.asdict(found)}


ACTIONS = {"version": version, "build": build, "load": load, "compare": compare}


def main() -> None:
    """Do the job on stdin."""
    # TensorRT and its libraries may print: stdout becomes stderr, and the messages go through a descriptor of our own.
    with os.fdopen(os.dup(1), "w") as messages:
        os.dup2(2, 1)

        lock = threading.Lock()  # TensorRT may report progress from threads of its own

        def send(message: dict[str, Any]) -> None:
            with lock:
                messages.write(json.dumps(message) + "\n")
                messages.flush()

        job = json.load(sys.stdin)
        reported = -1

        def report(done: float) -> None:
            nonlocal reported
            percent = int(done * 100)
            if percent > reported:
                reported = percent
                send({"progress": done})

        try:
            result = ACTIONS[job["action"]](job["arguments"], report)
        except (CskdError, OSError) as error:
            result = {"error": str(error), "missing": isinstance(error, BackendMissing)}
        except Exception as error:  # TensorRT's own: a TypeError, a RuntimeError
            result = {"error": f"TensorRT failed: {type(error).__name__}: {error}", "missing": False}
        send(result)


if __name__ == "__main__":
    main()
