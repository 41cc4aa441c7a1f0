"""The file beside an engine that says what the engine is: `student.engine.json`.

An engine is code for one GPU and one version of TensorRT, and says neither. So it is loaded only when this file vouches
for it: the same bytes, the same TensorRT, the same GPU. That guards against mistakes and damage. It is no signature:
who can write the engine can write the file beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cskd_data.files import write_atomically
from cskd_deploy.backends.tensorrt.driver import Gpu
from cskd_deploy.backends.tensorrt.shapes import Profile, Shape, profiles_from_lists
from cskd_deploy.errors import DeployError
from cskd_deploy.model.manifest import MANIFEST_KEY, Manifest, checked_schema, manifest_from_metadata
from cskd_deploy.model.onnx_file import check_manifest

# 2 added `gpu.multiprocessors`, and has trtexec's names of hardware compatibility; 3 added `trtexec`, and has
# `shapes.profiles` in place of `shapes.inputs`
SCHEMA = 3
SCHEMAS = (1, 2, 3)  # that are read
_HARDWARE_OF_SCHEMA_1 = {"ampere-plus": "ampere+", "same-capability": "sameComputeCapability"}
MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class EngineManifest:
    """What an engine is, and where it runs."""

    sha256: str  # of the engine
    onnx: str  # name of the file that it was built from
    onnx_sha256: str
    tensorrt: str  # version that built it
    cuda: str  # version of the driver then
    gpu: Gpu  # that it was built on
    precision: str
    profiles: tuple[Profile, ...]  # one of an engine of fixed shapes too
    outputs: dict[str, Shape]
    version_compatible: bool
    hardware_compatible: str  # a key of settings.HARDWARE
    model: Manifest
    trtexec: str = ""  # the command line that builds the same; of an earlier schema it is not known

    @property
    def inputs(self) -> Profile:
        """The ranges of the first profile, by input."""
        return self.profiles[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in the file."""
        return {
            "schema": SCHEMA,
            "sha256": self.sha256,
            "onnx": self.onnx,
            "onnx_sha256": self.onnx_sha256,
            "tensorrt": self.tensorrt,
            "cuda": self.cuda,
            "gpu": {
                "name": self.gpu.name,
                "capability": list(self.gpu.capability),
                "multiprocessors": self.gpu.multiprocessors,
            },
            "precision": self.precision,
            "shapes": {
                "profiles": [{name: one.to_list() for name, one in profile.items()} for profile in self.profiles],
                "outputs": {name: list(shape) for name, shape in self.outputs.items()},
            },
            "version_compatible": self.version_compatible,
            "hardware_compatible": self.hardware_compatible,
            "trtexec": self.trtexec,
            "model": self.model.to_dict(),
        }


def manifest_path(engine: Path) -> Path:
    """Where the manifest of an engine lies."""
    return engine.with_name(engine.name + ".json")


def sha256_of(content: bytes) -> str:
    """As 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def write_engine_manifest(engine: Path, manifest: EngineManifest) -> None:
    """Write it beside the engine.

    Raises:
        DeployError: the folder cannot be written.
    """
    content = json.dumps(manifest.to_dict(), indent=2).encode() + b"\n"
    write_atomically(manifest_path(engine), lambda file: file.write(content))


def read_engine_manifest(engine: Path) -> EngineManifest | None:
    """The manifest beside an engine; None where there is none.

    Raises:
        DeployError: it cannot be read, is malformed, or a newer version wrote it.
    """
    path = manifest_path(engine)
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    try:
        if len(content) > MOST_BYTES:
            raise ValueError(f"it is longer than {MOST_BYTES} bytes")
        data = json.loads(content)
        if not isinstance(data, dict):
            raise TypeError("expected an object")
        manifest = _manifest(data, path)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
        raise DeployError(f"{path} cannot be read as the manifest of an engine: {reason}") from error
    check_manifest(manifest.model, path)
    return manifest


def mismatches(manifest: EngineManifest, content: bytes, tensorrt: str, gpu: Gpu) -> list[str]:
    """Why an engine may not be loaded here; nothing when its manifest vouches for it.

    Args:
        content: the engine.
        tensorrt: the installed version.
        gpu: the GPU at hand.
    """
    reasons = []
    if sha256_of(content) != manifest.sha256:
        reasons.append("its content is not what was built (sha256 differs)")
    if not _version_fits(manifest, tensorrt):
        reasons.append(f"it was built with TensorRT {manifest.tensorrt}, here is {tensorrt}")
    if not _gpu_fits(manifest, gpu):
        reasons.append(f"it was built for {manifest.gpu}, here is {gpu}")
    return reasons


def _version_fits(manifest: EngineManifest, tensorrt: str) -> bool:
    if manifest.tensorrt == tensorrt:
        return True
    # A version-compatible engine runs with a later TensorRT, of its own major version or the next one.
    built, here = _numbers(manifest.tensorrt), _numbers(tensorrt)
    return manifest.version_compatible and built <= here and here[0] - built[0] <= 1


def _numbers(version: str) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in version.split(".")]


def _gpu_fits(manifest: EngineManifest, gpu: Gpu) -> bool:
    if manifest.hardware_compatible == "ampere+":
        return gpu.capability >= (8, 0)
    if manifest.hardware_compatible == "sameComputeCapability":
        return gpu.capability == manifest.gpu.capability
    if manifest.gpu.multiprocessors is None:
        return (gpu.name, gpu.capability) == (manifest.gpu.name, manifest.gpu.capability)
    return gpu == manifest.gpu


def _manifest(data: Mapping[str, Any], path: Path) -> EngineManifest:
    model = data.get("model")
    schema = checked_schema(data, SCHEMAS, model.get("versions") if isinstance(model, dict) else None)
    texts = {key: _typed(data, key, str) for key in ("sha256", "onnx", "onnx_sha256", "tensorrt", "cuda", "precision")}
    shapes = _typed(data, "shapes", dict)
    hardware = _typed(data, "hardware_compatible", str)
    return EngineManifest(
        **texts,
        gpu=_gpu(_typed(data, "gpu", dict), schema),
        profiles=_profiles(shapes, schema),
        outputs={str(name): tuple(int(size) for size in one) for name, one in shapes["outputs"].items()},
        version_compatible=_typed(data, "version_compatible", bool),
        hardware_compatible=_HARDWARE_OF_SCHEMA_1.get(hardware, hardware) if schema == 1 else hardware,
        model=manifest_from_metadata({MANIFEST_KEY: json.dumps(_typed(data, "model", dict))}, path),
        trtexec="" if schema < 3 else _typed(data, "trtexec", str),
    )


def _profiles(shapes: Mapping[str, Any], schema: int) -> tuple[Profile, ...]:
    profiles = profiles_from_lists([shapes["inputs"]] if schema < 3 else _typed(shapes, "profiles", list))
    if not profiles:
        raise ValueError("'profiles' is empty")
    return profiles


def _gpu(data: Mapping[str, Any], schema: int) -> Gpu:
    major, minor = data["capability"]
    multiprocessors = None if schema == 1 else _typed(data, "multiprocessors", int)
    return Gpu(_typed(data, "name", str), (int(major), int(minor)), multiprocessors)


def _typed(data: Mapping[str, Any], key: str, kind: type) -> Any:
    if not isinstance(data[key], kind):
        raise TypeError(f"{key!r} is {data[key]!r}, expected {kind.__name__}")
    return data[key]
