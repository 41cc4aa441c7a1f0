"""From an ONNX file of `cskd-deploy export` to an engine and the manifest beside it. Needs no PyTorch."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cskd_data.files import check_not_input, write_atomically
from cskd_deploy.accuracy.against_fp32 import check_agreement
from cskd_deploy.backends import ENGINE_SUFFIXES
from cskd_deploy.backends.tensorrt.driver import Driver, find_driver
from cskd_deploy.backends.tensorrt.manifest import EngineManifest, manifest_path, sha256_of, write_engine_manifest
from cskd_deploy.backends.tensorrt.settings import BuildSettings, trtexec_line
from cskd_deploy.backends.tensorrt.shapes import profiles_from_lists, written
from cskd_deploy.backends.tensorrt.worker import run_in_worker
from cskd_deploy.errors import BackendMissing, DeployError
from cskd_deploy.model.manifest import AgreementWithFp32
from cskd_deploy.model.onnx_file import check_model_output, read_model
from cskd_deploy.outputs import check_apart, check_output

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
        manifest = self.manifest
        several = len(manifest.profiles) > 1
        profiles = [
            f"  profile {f'{number} ' if several else ''}of {name}: {one}"
            for number, ranges in enumerate(manifest.profiles)
            for name, one in ranges.items()
            if one.is_range or several
        ]
        shapes = [f"{name} {one}" for name, one in manifest.inputs.items() if not (one.is_range or several)]
        shapes += [f"{name} {written(shape)}" for name, shape in manifest.outputs.items()]
        lines = [
            f"{self.path}",
            f"  {manifest.model.family}, {manifest.precision}, {self.size_bytes / 1e6:.1f} MB, "
            f"TensorRT {manifest.tensorrt}, {manifest.gpu}, built in {self.seconds:.0f} s",
            *profiles,
            f"  {', '.join(shapes)}",
            f"  manifest: {manifest_path(self.path)}",
            f"  the same by trtexec: {manifest.trtexec}",
        ]
        if manifest.model.agreement is not None and manifest.model.agreement.sha256 == manifest.onnx_sha256:
            lines += [f"  {line}" for line in str(manifest.model.agreement).splitlines()]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def require_tensorrt() -> Driver:
    """Make sure that an engine can be built here, before long work.

    Raises:
        BackendMissing: there is no driver, no GPU or no TensorRT. Says how to install it.
    """
    try:
        driver = find_driver()
        run_in_worker("version", {})
    except BackendMissing as error:
        raise BackendMissing(f"no engine can be built here: {error}. {ELSEWHERE}") from error
    return driver


def check_engine_output(
    output: Path,
    settings: BuildSettings,
    inputs: Sequence[Path | None],
    others: Mapping[str, Sequence[Path]] = MappingProxyType({}),
) -> None:
    """Fail before long work when an engine, its manifest or its timing cache could not be written.

    Args:
        inputs: as `check_output`.
        others: what else is written on the way, as `check_apart`.

    Raises:
        DataError, DeployError: as `check_model_output`; also when two outputs are one file.
    """
    timings = [] if settings.timing_cache is None else [settings.timing_cache]
    own = {"output": [output], "manifest": [manifest_path(output)], "timing cache": timings}
    check_apart({**own, **others})
    check_model_output(output, inputs, ENGINE_SUFFIXES)
    check_not_input(manifest_path(output), inputs, "manifest")
    for path in timings:
        check_output(path, inputs, what="timing cache")


def export_engine(
    onnx: Path,
    output: Path,
    settings: BuildSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
    images: Sequence[Path] = (),
) -> EngineResult:
    """Build an engine for GPU 0 in a process of its own, load it there once, and write it with its manifest.

    Args:
        progress: called with (percent, 100).
        images: files to compare the engine with the ONNX file on; random images without. Where ONNX Runtime or what
            holds GPU memory is not installed, a note says that they were not compared.

    Raises:
        BackendMissing: as `require_tensorrt`.
        DeployError: the model cannot be read, TensorRT refuses it or crashes, or `output` cannot be written.
        CheckFailed: the engine does not find what the ONNX file finds.
    """
    check_engine_output(output, settings, [onnx, *images])
    content, model = read_model(onnx)
    if model.precision == FOR_PROCESSORS:
        raise DeployError(
            f"{onnx} is INT8 for processors, which TensorRT does not take: make it with "
            "`cskd-deploy export --precision int8 --target tensorrt`"
        )
    driver = require_tensorrt()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        built, new_timings = Path(folder) / "engine", Path(folder) / "timing_cache"
        result = run_in_worker(
            "build",
            {
                "onnx": str(onnx),
                "engine": str(built),
                "new_timing_cache": str(new_timings),
                "settings": settings.to_dict(),
            },
            lambda done: progress(min(int(done * 100), 99), 100),
        )
        # An engine that cannot be loaded where it was built is not given a name.
        run_in_worker("load", {"engine": str(built), "host_code": settings.version_compatible})
        engine = built.read_bytes()
        timings = new_timings.read_bytes() if new_timings.exists() else None
        profiles = profiles_from_lists(result["profiles"])
        manifest = EngineManifest(
            sha256=sha256_of(engine),
            onnx=onnx.name,
            onnx_sha256=sha256_of(content),
            tensorrt=result["tensorrt"],
            cuda=driver.cuda_version,
            gpu=driver.gpus[0],
            precision=model.precision,
            profiles=profiles,
            outputs={name: tuple(shape) for name, shape in result["outputs"].items()},
            version_compatible=settings.version_compatible,
            hardware_compatible=settings.hardware_compatible,
            model=model,
            trtexec=trtexec_line(onnx, output, settings, profiles, result["dynamic"]),
        )
        notes = tuple(result["notes"])
        write_engine_manifest(built, manifest)
        files = {"onnx": str(onnx), "engine": str(built), "images": [str(path) for path in images]}
        compared = run_in_worker("compare", files)
        if "agreement" in compared:
            agreement = AgreementWithFp32(**compared["agreement"])
            check_agreement(agreement, "the engine", model.precision, "Build it from a file of higher precision")
            manifest = dataclasses.replace(manifest, model=dataclasses.replace(model, agreement=agreement))
        else:
            notes += (f"not compared with {onnx.name}: {compared['not_compared']}",)
    progress(100, 100)
    # The manifest last: an engine without one, or beside an older one, is refused and not mistaken.
    write_atomically(output, lambda file: file.write(engine))
    write_engine_manifest(output, manifest)
    if settings.timing_cache is not None and timings is not None:
        write_atomically(settings.timing_cache, lambda file: file.write(timings))
    return EngineResult(output, len(engine), manifest, time.perf_counter() - begin, notes)
