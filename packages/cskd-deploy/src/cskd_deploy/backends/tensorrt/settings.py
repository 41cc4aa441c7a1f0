"""What may be chosen of a build: the keys of `export --trt`, in the spelling of trtexec's options."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cskd_deploy.backends.tensorrt.shapes import Shape, parse_shapes
from cskd_deploy.errors import DeployError

# trtexec's names of the levels, and TensorRT's.
HARDWARE = {"none": "NONE", "ampere+": "AMPERE_PLUS", "sameComputeCapability": "SAME_COMPUTE_CAPABILITY"}
_WORKSPACE = re.compile(r"workspace:([1-9]\d*)")


@dataclass(frozen=True)
class BuildSettings:
    """The defaults are TensorRT's own. Shapes are by input name; `shapes.input_ranges` chooses those not given."""

    workspace_mib: int | None = None  # None leaves TensorRT all of the GPU's memory
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: str = "none"  # a key of HARDWARE
    optimization_level: int | None = None  # 0 to 5
    tf32: bool = True
    min_shapes: Mapping[str, Shape] = field(default_factory=dict)
    opt_shapes: Mapping[str, Shape] = field(default_factory=dict)
    max_shapes: Mapping[str, Shape] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {**asdict(self), "timing_cache": None if self.timing_cache is None else str(self.timing_cache)}


def settings_from_dict(data: Mapping[str, Any]) -> BuildSettings:
    """The settings that `to_dict` gave."""
    shapes = {
        key: {name: tuple(shape) for name, shape in data[key].items()}
        for key in ("min_shapes", "opt_shapes", "max_shapes")
    }
    cache = data["timing_cache"]
    return BuildSettings(**{**data, **shapes, "timing_cache": None if cache is None else Path(cache)})


@dataclass(frozen=True)
class Key:
    """A key of `--trt`: what it sets, and how its value reads."""

    setting: str
    value: str  # as the help shows it; "" where the key stands alone
    help: str
    read: Callable[[str], Any]  # ValueError: not such a value


def _on(text: str) -> bool:
    return True


def _off(text: str) -> bool:
    return False


def _workspace(text: str) -> int:
    match = _WORKSPACE.fullmatch(text)
    if match is None:
        raise ValueError
    return int(match[1])


def _file(text: str) -> Path:
    if not text:
        raise ValueError
    return Path(text)


def _hardware(text: str) -> str:
    if text not in HARDWARE:
        raise ValueError
    return text


def _level(text: str) -> int:
    if int(text) not in range(6):
        raise ValueError
    return int(text)


_SHAPES = "NAME:SHAPE,..."
KEYS = {
    "memPoolSize": Key("workspace_mib", "workspace:MIB", "GPU memory that a layer may take [all]", _workspace),
    "timingCacheFile": Key(
        "timing_cache", "FILE", "timings of layers, read and added to: the next build is faster", _file
    ),
    "versionCompatible": Key("version_compatible", "", "runs with later versions of TensorRT too; slower", _on),
    "hardwareCompatibilityLevel": Key(
        "hardware_compatible", "|".join(HARDWARE), "runs on other GPUs too; slower", _hardware
    ),
    "builderOptimizationLevel": Key(
        "optimization_level", "0..5", "a higher one searches longer for faster kernels [3]", _level
    ),
    "noTF32": Key("tf32", "", "FP32 with all its digits on Ampere and newer; slower", _off),
    "minShapes": Key("min_shapes", _SHAPES, "of dynamic inputs, as in image:1x320x320x3", parse_shapes),
    "optShapes": Key("opt_shapes", _SHAPES, "shapes to be fastest at", parse_shapes),
    "maxShapes": Key("max_shapes", _SHAPES, "of dynamic inputs", parse_shapes),
}


def parse_build_settings(texts: Sequence[str]) -> BuildSettings:
    """Settings from texts like `memPoolSize=workspace:512` and `versionCompatible`.

    Raises:
        DeployError: a key is unknown or given twice, or its value is none of its own. Lists what there is.
    """
    chosen: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        key = KEYS.get(name)
        if key is None:
            raise DeployError(f"--trt {text}: there is no key {name!r}, expected one of {', '.join(map(usage, KEYS))}")
        if key.setting in chosen:
            raise DeployError(f"--trt {name} is given twice")
        try:
            if bool(equals) != bool(key.value):
                raise ValueError
            chosen[key.setting] = key.read(value)
        except ValueError as error:
            raise DeployError(f"--trt {text}: expected {usage(name)}") from error
    return BuildSettings(**chosen)


def usage(name: str) -> str:
    """How a key is written: `memPoolSize=workspace:MIB`, `noTF32`."""
    value = KEYS[name].value
    return f"{name}={value}" if value else name
