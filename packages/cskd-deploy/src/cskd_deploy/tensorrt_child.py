"""The process that TensorRT may crash: reads one job from stdin, writes progress and the result to stdout.

Started by `tensorrt_process`. Each message is one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cskd_data.errors import CskdError
from cskd_deploy.errors import BackendMissing
from cskd_deploy.tensorrt_api import import_tensorrt, version_text

Report = Callable[[float], None]


def build(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    """Build an engine; see `tensorrt_export.export_engine`."""
    from cskd_deploy.tensorrt_build import BuildSettings, build_engine
    from cskd_deploy.tensorrt_export import read_model

    trt = import_tensorrt(arguments["module"])
    cache = arguments["timing_cache"]
    known = None if cache is None else Path(cache).read_bytes() if Path(cache).exists() else b""
    chosen: dict[str, Any] = dict(arguments["settings"])
    for key in ("min_shapes", "opt_shapes", "max_shapes"):
        chosen[key] = {name: tuple(shape) for name, shape in chosen[key].items()}
    settings = BuildSettings(**chosen)
    content, model = read_model(Path(arguments["onnx"]))
    built = build_engine(trt, content, model, settings, known, report)
    Path(arguments["engine"]).write_bytes(built.engine)
    if built.timing_cache is not None:
        Path(arguments["new_timing_cache"]).write_bytes(built.timing_cache)
    return {
        "tensorrt": version_text(trt),
        "inputs": {name: one.to_list() for name, one in built.inputs.items()},
        "outputs": built.outputs,
        "notes": built.notes,
    }


def version(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    """Which TensorRT there is."""
    return {"tensorrt": version_text(import_tensorrt(arguments["module"]))}


def load(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    """Load an engine, to see whether TensorRT survives it."""
    from cskd_deploy.engine_session import load_engine

    trt = import_tensorrt(arguments["module"])
    loaded = load_engine(trt, Path(arguments["engine"]).read_bytes(), arguments["host_code"])
    loaded.close()
    return {"shapes": loaded.shapes}


ACTIONS = {"version": version, "build": build, "load": load}


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
        told = -1

        def report(done: float) -> None:
            nonlocal told
            percent = int(done * 100)
            if percent > told:
                told = percent
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
