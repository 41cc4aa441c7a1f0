"""Which precision a file is wanted in, and the way to it: under `cskd-deploy export` and `cskd_deploy.export`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cskd_deploy.arguments import several, whole
from cskd_deploy.errors import DeployError
from cskd_deploy.lower.conversion import (
    FP32,
    INT8_FP16,
    PRECISIONS,
    TARGETS,
    CalibrationSettings,
    PrecisionResult,
    convert_to_fp16,
    convert_to_int8,
    precision_name,
)
from cskd_deploy.model.onnx_file import check_model_output
from cskd_deploy.progress import Begin, silent

_CALIBRATED = ("int8", INT8_FP16)

ToFp32 = Callable[[Path], object]


@dataclass(frozen=True)
class PrecisionPlan:
    """What is wanted, checked for consistency (`precision_plan`)."""

    precision: str = FP32
    target: str = "cpu"
    keep_float: tuple[str, ...] = ()
    calibration: CalibrationSettings | None = None  # pictures to calibrate on, and to compare with FP32 on

    @property
    def is_plain(self) -> bool:
        """Whether the FP32 file is all that is wanted."""
        return self.precision == FP32

    @property
    def name(self) -> str:
        """What the file's manifest calls it: `fp32`, `fp16`, `int8-cpu`, `int8-tensorrt`, `int8+fp16`."""
        return precision_name(self.precision, self.target)

    @property
    def suffix(self) -> str:
        """The end of the default file name: `.onnx`, `.fp16.onnx`, `.int8-cpu.onnx`."""
        return ".onnx" if self.is_plain else f".{self.name}.onnx"

    def convert(
        self,
        source: Path,
        output: Path,
        progress: Callable[[str], None],
        warn: Callable[[str], None],
        counted: Begin = silent,
    ) -> PrecisionResult:
        """Write the FP32 file `source` in the lower precision.

        Args, raises: as `convert_to_fp16` and `convert_to_int8`; `counted` counts the calibration images.
        """
        if self.precision not in _CALIBRATED:
            return convert_to_fp16(source, output, self.keep_float, progress, self.calibration)
        assert self.calibration is not None
        with counted("export: calibration", "images") as count:
            return convert_to_int8(
                source,
                output,
                self.target,
                self.calibration,
                self.keep_float,
                progress,
                warn,
                counted=count,
                half=self.precision == INT8_FP16,
            )

    def convert_from(
        self,
        to_fp32: ToFp32,
        output: Path,
        progress: Callable[[str], None],
        warn: Callable[[str], None],
        counted: Begin = silent,
        inputs: Iterable[Path | None] = (),
    ) -> PrecisionResult:
        """Write the lower precision of an FP32 file that `to_fp32` writes; it is not kept. Otherwise as `convert`.

        Args:
            inputs: what `to_fp32` reads.
        """
        own = () if self.calibration is None else self.calibration.files
        check_model_output(output, [*inputs, *own])  # before the work of the FP32 file
        with tempfile.TemporaryDirectory() as folder:
            exported = Path(folder) / "student.onnx"
            to_fp32(exported)
            return self.convert(exported, output, progress, warn, counted)


def precision_plan(
    precision: str = FP32,
    target: str | None = None,
    calibration_images: Path | None = None,
    calibration_ann: Path | None = None,
    calibration_count: int | None = None,
    calibration_cache: Path | None = None,
    keep_float: Sequence[str] = (),
    *,
    engine: bool | None = None,
    spelled: Callable[[str], str] = str,
) -> PrecisionPlan:
    """The plan that these options of an export make.

    Args:
        engine: whether an engine is built of the file; None where none can be asked for.
        spelled: how the user writes the name of an option: messages name it so.

    Raises:
        DeployError: an option has no such value or no meaning beside the others, or one that is needed is missing.
    """
    for name, value, known in (("precision", precision, PRECISIONS), ("target", target, (None, *TARGETS))):
        if value not in known:
            choices = ", ".join(one for one in known if one)
            raise DeployError(f"{spelled(name)} is {value!r}, expected one of {choices}")
    if calibration_count is not None:
        calibration_count = whole(calibration_count, spelled("calibration_count"))
    keep_float = several(keep_float)
    lower = f"{spelled('precision')} fp16 or int8"

    def refuse(wanted: str, **given: object) -> None:
        for name, value in given.items():
            if value is not None and value != ():
                raise DeployError(f"{spelled(name)} is for {wanted}: give that too, or leave it out")

    pictures = {
        "calibration_images": calibration_images,
        "calibration_ann": calibration_ann,
        "calibration_count": calibration_count,
    }
    calibrated = precision in _CALIBRATED
    if not calibrated:
        refuse(f"{spelled('precision')} int8", target=target, calibration_cache=calibration_cache)
    if precision == INT8_FP16 and target == "cpu":
        raise DeployError(
            f"{spelled('target')} cpu has no {INT8_FP16}: processors compute FP16 in FP32, with conversions around it. "
            f"Give {spelled('precision')} int8, or leave {spelled('target')} out for TensorRT"
        )
    if precision == FP32:
        refuse(lower, keep_float=keep_float)
        if not engine:
            refuse(lower if engine is None else f"{lower}, or {spelled('format')} trt", **pictures)
    if engine and target == "cpu":
        raise DeployError(
            f"{spelled('target')} cpu has int32 biases, which TensorRT refuses: leave it out with "
            f"{spelled('format')} trt"
        )
    calibration = None
    if calibrated or any(value is not None for value in pictures.values()):
        chosen = calibration_ann is not None or calibration_count is not None
        if calibration_images is None and calibration_ann is None and (chosen or calibration_cache is None):
            needs = f"{spelled('precision')} {precision} needs images to calibrate on"
            why = needs if calibrated and not chosen else "which images"
            raise DeployError(f"{why}: give {spelled('calibration_images')} or {spelled('calibration_ann')}")
        calibration = CalibrationSettings(
            calibration_images, calibration_ann, calibration_count or CalibrationSettings.count, calibration_cache
        )
    for_tensorrt = engine or precision == INT8_FP16
    return PrecisionPlan(precision, target or ("tensorrt" if for_tensorrt else "cpu"), keep_float, calibration)
