"""From an ONNX file of `cskd-deploy export` to an engine and the manifest beside it. Needs no PyTorch."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cskd_data.files import check_writable, write_atomically
from cskd_deploy.backends.tensorrt.api import MODULE
from cskd_deploy.backends.tensorrt.build import BuildSettings
from cskd_deploy.backends.tensorrt.driver import Driver, find_driver
from cskd_deploy.backends.tensorrt.manifest import EngineManifest, manifest_path, sha256_of, write_engine_manifest
from cskd_deploy.backends.tensorrt.shapes import range_from_list, written
from cskd_deploy.backends.tensorrt.worker import run_apart
from cskd_deploy.errors import BackendMissing, DeployError
from cskd_deploy.model.manifest import Manifest, manifest_from_metadata
from cskd_deploy.model.onnx_file import (
    check_manifest,
    check_metadata,
    check_model_file,
    check_model_output,
    metadata_of,
)

ELSEWHERE = (
    "An engine is built on the machine that will run it: copy the ONNX file there and run "
    "`cskd-deploy export --onnx student.onnx --format trt`"
)
FOR_PROCESSORS = "int8-cpu"  # unsigned activations and biases of 32 bits


@dataclass(frozen=True)
class EngineResult:
    """An engine that was built."""

    path: Path
    size_bytes: int
    manifest: EngineManifest
    seconds: float
    notes: tuple[str, ...]  # what TensorRT warned of

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "path": str(self.path),
            "size_bytes": self.size_bytes,
            "seconds": self.seconds,
            "notes": list(self.notes),
            "engine_manifest": self.manifest.to_dict(),
        }

    def __str__(self) -> str:
        known = self.manifest
        shapes = [f"{name} {one}" for name, one in known.inputs.items()]
        shapes += [f"{name} {written(shape)}" for name, shape in known.outputs.items()]
        lines = [
            f"{self.path}",
            f"  {known.model.family}, {known.precision}, {self.size_bytes / 1e6:.1f} MB, TensorRT {known.tensorrt}, "
            f"{known.gpu or 'no GPU'}, built in {self.seconds:.0f} s",
            f"  {', '.join(shapes)}",
            f"  manifest: {manifest_path(self.path)}",
        ]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def read_model(onnx: Path) -> tuple[bytes, Manifest]:
    """The content of an ONNX file of `cskd-deploy export`, and what it says about itself.

    Raises:
        DeployError: it is missing, damaged, of another kind, or keeps weights in other files.
    """
    check_model_file(onnx)
    content = onnx.read_bytes()
    metadata = metadata_of(content)
    check_metadata(metadata, onnx)
    model = manifest_from_metadata(metadata, onnx)
    check_manifest(model, onnx)
    return content, model


def require_tensorrt(module: str = MODULE) -> Driver:
    """Make sure that an engine can be built here, before long work.

    Raises:
        BackendMissing: there is no driver, no GPU or no TensorRT. Says how to mend it.
    """
    try:
        driver = find_driver()
        run_apart("version", {"module": module})
    except BackendMissing as error:
        raise BackendMissing(f"no engine can be built here: {error}. {ELSEWHERE}") from error
    return driver


def export_engine(
    onnx: Path,
    output: Path,
    settings: BuildSettings,
    timing_cache: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    module: str = MODULE,
) -> EngineResult:
    """Build an engine for GPU 0 in a process of its own, load it there once, and write it with its manifest.

    Args:
        timing_cache: a file to take timings from, where it exists, and to write them to.
        progress: called with (percent, 100).
        module: TensorRT's name; `tensorrt_rtx` builds for `settings.compute_capability` without a GPU.

    Raises:
        BackendMissing: as `require_tensorrt`.
        DeployError: the model cannot be read, TensorRT refuses it or crashes, or `output` cannot be written.
    """
    check_model_output(output)
    if timing_cache is not None:
        check_writable(timing_cache)
    content, model = read_model(onnx)
    if model.precision == FOR_PROCESSORS:
        raise DeployError(
            f"{onnx} is INT8 for processors, which TensorRT does not take: make it with "
            "`cskd-deploy export --precision int8 --target tensorrt`"
        )
    driver = None if settings.compute_capability else require_tensorrt(module)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        built, tried = Path(folder) / "engine", Path(folder) / "timing_cache"
        found = run_apart(
            "build",
            {
                "module": module,
                "onnx": str(onnx),
                "engine": str(built),
                "timing_cache": None if timing_cache is None else str(timing_cache),
                "new_timing_cache": str(tried),
                "settings": dataclasses.asdict(settings),
            },
            lambda done: progress(min(int(done * 100), 99), 100),
        )
        if driver is not None:
            # An engine that cannot be loaded where it was built is not given a name.
            run_apart("load", {"module": module, "engine": str(built), "host_code": settings.version_compatible})
        engine = built.read_bytes()
        timings = tried.read_bytes() if tried.exists() else None
    progress(100, 100)
    manifest = EngineManifest(
        sha256=sha256_of(engine),
        onnx=onnx.name,
        onnx_sha256=sha256_of(content),
        tensorrt=found["tensorrt"],
        cuda="none" if driver is None else driver.cuda_version,
        gpu=None if driver is None else driver.gpus[0],
        precision=model.precision,
        inputs={name: range_from_list(one) for name, one in found["inputs"].items()},
        outputs={name: tuple(shape) for name, shape in found["outputs"].items()},
        version_compatible=settings.version_compatible,
        hardware_compatible=settings.hardware_compatible,
        model=model,
    )
    # The manifest last: an engine without one, or beside an older one, is refused and not mistaken.
    write_atomically(output, lambda file: file.write(engine))
    write_engine_manifest(output, manifest)
    if timing_cache is not None and timings is not None:
        write_atomically(timing_cache, lambda file: file.write(timings))
    return EngineResult(output, len(engine), manifest, time.perf_counter() - begin, tuple(found["notes"]))
