"""What is installed, who serves mmcv's operators, which devices there are, and what is wrong with it.

Nothing here needs torch, mmdet or mmcv to be importable: what does not import is a fault that is reported.
"""

from __future__ import annotations

import contextlib
import importlib
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from cskd_data.cores import usable_cores

# Distributions shown, in this order. The runtimes belong to cskd-deploy and are never needed to train.
DISTRIBUTIONS = (
    "cskd-core", "cskd-data", "cskd-train", "cskd-deploy", "torch", "torchvision", "mmcv-full", "mmcv", "mmdet",
    "numpy", "opencv-python-headless", "pycocotools", "tensorboard", "onnx", "onnxruntime", "onnxruntime-gpu",
    "tensorrt",
)  # fmt: skip

# Modules that training imports besides mmdet and mmcv, with the distribution that gives each.
NEEDED_MODULES = {
    "numpy": "numpy",
    "torch": "torch",
    "cv2": "opencv-python-headless",
    "pycocotools.mask": "pycocotools",
    "tensorboard": "tensorboard",
}

# Pairs that install the same files: the one installed last wins, and removing either breaks the other.
OVERWRITE_EACH_OTHER = (("mmcv", "mmcv-full"), ("onnxruntime", "onnxruntime-gpu"))

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Fault:
    """Something wrong, how to mend it, and whether training is impossible until then."""

    problem: str
    fix: str
    blocks_training: bool


@dataclass(frozen=True)
class Environment:
    """What `inspect` found: versions by distribution (None: not installed), operators, devices and faults."""

    python: str
    packages: dict[str, str | None]
    operators: dict[str, str]
    devices: tuple[str, ...]
    faults: tuple[Fault, ...]

    @property
    def can_train(self) -> bool:
        return not any(fault.blocks_training for fault in self.faults)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "can_train": self.can_train}


def inspect() -> Environment:
    """Look at this interpreter's environment. Imports torch, mmcv and mmdet where they import."""
    faults = [*_module_faults(), *_version_faults(), *_overwriting_faults()]
    operators: dict[str, str] = {}
    devices = [f"cpu: {usable_cores()} cores"]
    if not any(fault.blocks_training for fault in faults):
        operators, mm_faults = _operators()
        gpus, gpu_faults = _gpus()
        faults += [*mm_faults, *gpu_faults]
        devices += gpus
    return Environment(
        python=platform.python_version(),
        packages={name: installed(name) for name in DISTRIBUTIONS},
        operators=operators,
        devices=tuple(devices),
        faults=tuple(faults),
    )


def installed(distribution: str) -> str | None:
    """The version of an installed distribution, None where there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _module_faults() -> Iterator[Fault]:
    for module, distribution in NEEDED_MODULES.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # a compiled extension that does not fit raises anything
            there = installed(distribution)
            problem = (
                f"{distribution} is not installed"
                if there is None
                else f"{distribution} {there} does not import: {error}"
            )
            fix = f"pip install {'' if there is None else '--force-reinstall '}'{_wanted(distribution)}'"
            yield Fault(problem, fix, blocks_training=True)


def _version_faults() -> Iterator[Fault]:
    for requirement in _requirements():
        version = installed(requirement.name)
        if version is not None and not requirement.specifier.contains(version, prereleases=True):
            yield Fault(
                f"{requirement.name} {version} is installed, CSKD is tested with {requirement.specifier}",
                f"pip install '{requirement.name}{requirement.specifier}'",
                blocks_training=False,
            )


def _overwriting_faults() -> Iterator[Fault]:
    for first, second in OVERWRITE_EACH_OTHER:
        if installed(first) and installed(second):
            yield Fault(
                f"{first} and {second} are both installed and overwrite each other",
                f"pip uninstall -y {first} {second}, then install the one you want",
                blocks_training=False,
            )


def _operators() -> tuple[dict[str, str], list[Fault]]:
    """Who serves each operator, and what keeps mmdet, mmcv, torchvision or the compiled operators from serving."""
    try:
        importlib.import_module("cskd_train.mm")
        importlib.import_module("mmdet.apis")
        ops = importlib.import_module("cskd_train.mm.ops")
        operators: dict[str, str] = ops.status()
    except Exception as error:  # of another line, half installed, built for another Python: reported whatever it is
        wanted = " ".join(f"'{_wanted(name)}'" for name in ("mmcv-full", "mmdet"))
        problem = f"mmdet and mmcv do not import: {type(error).__name__}: {error}"
        return {}, [Fault(problem, f"pip install {wanted}", blocks_training=True)]
    faults = []
    if ops.native_extension().error:
        faults.append(
            Fault(
                f"mmcv-full's compiled operators do not load ({ops.native_extension().error}); CSKD's serve instead",
                "rebuild them against this torch: MMCV_WITH_OPS=1 pip install --no-build-isolation --force-reinstall "
                f"--no-deps '{_wanted('mmcv-full')}'",
                blocks_training=False,
            )
        )
    if installed("torchvision") and not ops.torchvision_loads():
        faults.append(
            Fault(
                f"torchvision {installed('torchvision')} does not load with torch {installed('torch')}; "
                "plain torch serves instead",
                "install the torchvision built for this torch, or pip uninstall -y torchvision",
                blocks_training=False,
            )
        )
    return operators, faults


def _gpus() -> tuple[list[str], list[Fault]]:
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return [f"cuda:{n}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for n, gpu in enumerate(properties)], []
    if not NVIDIA_DRIVER.exists():
        return [], []
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
    return [], [
        Fault(
            f"there is an NVIDIA driver, but torch {torch.__version__} ({build}) finds no GPU",
            "install a CUDA build of torch that this driver supports (nvidia-smi shows the newest CUDA it takes)",
            blocks_training=False,
        )
    ]


def _requirements() -> list[Requirement]:
    """What cskd-core, cskd-data and cskd-train ask for, extras and each other left out."""
    stated = []
    for name in ("cskd-core", "cskd-data", "cskd-train"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # run from its sources
            stated += [Requirement(text) for text in metadata.requires(name) or ()]
    asked = [
        requirement
        for requirement in stated
        if not requirement.name.startswith("cskd-")
        and (not requirement.marker or requirement.marker.evaluate({"extra": ""}))
    ]
    # One for each distribution, with what all of them ask of it.
    together = {one.name: Requirement(one.name) for one in asked}
    for one in asked:
        together[one.name].specifier &= one.specifier
    return list(together.values())


def _wanted(distribution: str) -> str:
    """`name==version` as CSKD asks for it."""
    for requirement in _requirements():
        if requirement.name == distribution:
            return f"{requirement.name}{requirement.specifier}"
    return distribution
