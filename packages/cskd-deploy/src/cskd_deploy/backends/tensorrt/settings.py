"""What may be chosen of a build: the keys of `export --trt`, in the spelling of trtexec's options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cskd_deploy.backends.tensorrt.shapes import Profile, ProfileShapes, Shape, parse_shapes, written
from cskd_deploy.errors import DeployError

# trtexec's names of the levels, and TensorRT's.
HARDWARE = {"none": "NONE", "ampere+": "AMPERE_PLUS", "sameComputeCapability": "SAME_COMPUTE_CAPABILITY"}
VERBOSITY = ("layer_names_only", "detailed", "none")  # the first one is TensorRT's own
_SHAPES_OF = {"minShapes": "min", "optShapes": "opt", "maxShapes": "max"}
_WORKSPACE = re.compile(r"workspace:([1-9]\d*)")


@dataclass(frozen=True)
class BuildSettings:
    """The defaults are TensorRT's own. `shapes.input_ranges` chooses the shapes that are not given."""

    workspace_mib: int | None = None  # None leaves TensorRT all of the GPU's memory
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: str = "none"  # a key of HARDWARE
    optimization_level: int | None = None  # 0 to 5
    tf32: bool = True
    profiling_verbosity: str = VERBOSITY[0]  # what the engine tells of its layers
    profiles: tuple[ProfileShapes, ...] = (ProfileShapes(),)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {**asdict(self), "timing_cache": None if self.timing_cache is None else str(self.timing_cache)}


def settings_from_dict(data: Mapping[str, Any]) -> BuildSettings:
    """The settings that `to_dict` gave."""

    def shapes(of: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
        return {name: tuple(shape) for name, shape in of.items()}

    profiles = tuple(ProfileShapes(**{end: shapes(of) for end, of in one.items()}) for one in data["profiles"])
    cache = data["timing_cache"]
    return BuildSettings(**{**data, "profiles": profiles, "timing_cache": None if cache is None else Path(cache)})


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


def _verbosity(text: str) -> str:
    if text not in VERBOSITY:
        raise ValueError
    return text


def _number(text: str) -> int:
    if not text.isdecimal():
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
    "profilingVerbosity": Key(
        "profiling_verbosity", "|".join(VERBOSITY), "what `inspect --profile` can name", _verbosity
    ),
    "profile": Key("profile", "N", "the shapes after it are of profile N, from 0 on", _number),
    "minShapes": Key("min", _SHAPES, "of dynamic inputs, as in image:1x320x320x3", parse_shapes),
    "optShapes": Key("opt", _SHAPES, "shapes to be fastest at", parse_shapes),
    "maxShapes": Key("max", _SHAPES, "of dynamic inputs", parse_shapes),
}


def parse_build_settings(texts: Sequence[str]) -> BuildSettings:
    """Settings from texts like `memPoolSize=workspace:512` and `versionCompatible`.

    Shapes are of the profile that was named last before them, and of profile 0 where none was.

    Raises:
        DeployError: a key is unknown or given twice, its value is none of its own, or a profile's number is left out.
            Lists what there is.
    """
    chosen: dict[str, Any] = {}
    profiles: dict[int, dict[str, Mapping[str, Shape]]] = {0: {}}
    profile = 0
    named: set[int] = set()
    for text in texts:
        name, equals, value = text.partition("=")
        key = KEYS.get(name)
        if key is None:
            raise DeployError(f"--trt {text}: there is no key {name!r}, expected one of {', '.join(map(usage, KEYS))}")
        try:
            if bool(equals) != bool(key.value):
                raise ValueError
            read = key.read(value)
        except ValueError as error:
            raise DeployError(f"--trt {text}: expected {usage(name)}") from error
        if name == "profile":
            if read in named:
                raise DeployError(f"--trt {text} is given twice: put all shapes of profile {read} after the first")
            named.add(read)
            profile = read
            profiles.setdefault(profile, {})
            continue
        there = profiles[profile] if name in _SHAPES_OF else chosen
        if key.setting in there:
            raise DeployError(f"--trt {name} is given twice" + (f" for profile {profile}" if named else ""))
        there[key.setting] = read
    if missing := [number for number in range(max(profiles)) if number not in profiles]:
        raise DeployError(
            f"--trt profile={max(profiles)}: there is no profile {missing[0]}, they are counted from 0 on"
        )
    return BuildSettings(**chosen, profiles=tuple(ProfileShapes(**profiles[number]) for number in sorted(profiles)))


def texts_of(settings: BuildSettings, profiles: Sequence[Profile], dynamic: Sequence[str]) -> list[str]:
    """The texts that `parse_build_settings` makes the same build of, and trtexec with `--` before each.

    Args:
        profiles: that were built.
        dynamic: names of the inputs with a dynamic dimension: of these alone trtexec takes shapes.
    """
    texts = []
    if settings.workspace_mib is not None:
        texts.append(f"memPoolSize=workspace:{settings.workspace_mib}")
    if settings.timing_cache is not None:
        texts.append(f"timingCacheFile={settings.timing_cache}")
    if settings.version_compatible:
        texts.append("versionCompatible")
    if settings.hardware_compatible != "none":
        texts.append(f"hardwareCompatibilityLevel={settings.hardware_compatible}")
    if settings.optimization_level is not None:
        texts.append(f"builderOptimizationLevel={settings.optimization_level}")
    if not settings.tf32:
        texts.append("noTF32")
    if settings.profiling_verbosity != VERBOSITY[0]:
        texts.append(f"profilingVerbosity={settings.profiling_verbosity}")
    for number, profile in enumerate(profiles if dynamic else ()):
        if len(profiles) > 1:
            texts.append(f"profile={number}")
        for name, end in _SHAPES_OF.items():
            shapes = (f"{one}:{written(getattr(profile[one], end))}" for one in dynamic)
            texts.append(f"{name}={','.join(shapes)}")
    return texts


def trtexec_line(
    onnx: Path, engine: Path, settings: BuildSettings, profiles: Sequence[Profile], dynamic: Sequence[str]
) -> str:
    """The command line with which trtexec builds the same engine; profiles and dynamic inputs as `texts_of`."""
    options = [f"--onnx={onnx}", f"--saveEngine={engine}", "--stronglyTyped", "--skipInference"]
    return shlex.join(["trtexec", *options, *(f"--{text}" for text in texts_of(settings, profiles, dynamic))])


def usage(name: str) -> str:
    """How a key is written: `memPoolSize=workspace:MIB`, `noTF32`."""
    value = KEYS[name].value
    return f"{name}={value}" if value else name
