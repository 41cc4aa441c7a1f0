"""What a model costs before it is warm: time to its first detections, and the memory of a process that runs it.

Both are measured in a process of their own: in a warm one the runtime is there already, and the memory of one model
cannot be told from that of another.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cskd_deploy.backends.onnxruntime_settings import OrtSettings
from cskd_deploy.backends.tensorrt.driver import memory_in_use
from cskd_deploy.errors import DeployError
from cskd_deploy.model.manifest import manifest_from_metadata

MOST_SECONDS = 300


@dataclass(frozen=True)
class ColdStart:
    """Of a process that ran one image, and nothing before it."""

    load_ms: float  # the runtime's import and the model
    first_ms: float  # the first image, pre- and post-processing included
    peak_bytes: int  # of the host: resident memory of the whole process at its highest
    gpu_bytes: int | None = None  # more of the GPU's in use after the first image than before the process; None: no GPU

    def to_dict(self) -> dict[str, float | None]:
        """Plain data, ready for JSON."""
        return {
            "load_ms": self.load_ms,
            "first_inference_ms": self.first_ms,
            "time_to_first_ms": self.load_ms + self.first_ms,
            "peak_host_memory_bytes": self.peak_bytes,
            "gpu_memory_bytes": self.gpu_bytes,
        }


def measure_cold(path: Path, name: str, options: Mapping[str, Any]) -> ColdStart:
    """Start a process that runs a model once.

    Args:
        name: of the backend.
        options: the arguments of `backends.backend_for`.

    Raises:
        DeployError: the process failed; the message is its last line.
    """
    ort = options.get("ort")
    like = options.get("like")
    request = {
        **options,
        "ort": None if ort is None else asdict(ort),
        "like": None if like is None else like.to_metadata(),
        "path": str(path),
        "name": name,
    }
    used = memory_in_use() if options.get("device") == "cuda" else None
    command = [sys.executable, "-m", "cskd_deploy.measure.cold_start", json.dumps(request)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS)
        start = ColdStart(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired as error:
        raise DeployError(f"the cold start of {path} took more than {MOST_SECONDS} s") from error
    except (IndexError, ValueError, TypeError) as error:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise DeployError(f"the cold start of {path} failed: {reason}") from error
    if used is None or start.gpu_bytes is None:
        return replace(start, gpu_bytes=None)
    return replace(start, gpu_bytes=max(start.gpu_bytes - used, 0))


def run_cold(request: Mapping[str, Any]) -> ColdStart:
    """Load a model and run it once, in this process; its `gpu_bytes` are all that is in use on the GPU then."""
    from cskd_deploy.backends import backend_for
    from cskd_deploy.detect.detector import Detector
    from cskd_deploy.measure.bench import random_images

    options = dict(request)
    path, name, ort = Path(options.pop("path")), options.pop("name"), options.pop("ort", None)
    like = options.pop("like", None)
    options["like"] = None if like is None else manifest_from_metadata(like, path)
    begin = time.perf_counter()
    with backend_for(path, name, ort=None if ort is None else OrtSettings(**ort), **options) as backend:
        loaded = time.perf_counter()
        detector = Detector(backend)
        (image,) = random_images(backend.manifest.preprocessing.input_size, count=1)
        first = time.perf_counter()
        detector.detect(image)
        end = time.perf_counter()
        used = memory_in_use() if backend.device == "cuda" else None
    return ColdStart(1e3 * (loaded - begin), 1e3 * (end - first), _peak_bytes(), used)


def _peak_bytes() -> int:
    # Not `getrusage`: its peak is that of the process which started this one, where that was higher.
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    print(json.dumps(asdict(run_cold(json.loads(sys.argv[1])))))
