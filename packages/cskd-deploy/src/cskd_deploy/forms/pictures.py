"""The images of a report: those to calibrate on, and what a step depends on that reads images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cskd_data.errors import DataError
from cskd_deploy.exporter.student import Student, split_files
from cskd_deploy.lower.calibration_cache import sha256_of_images
from cskd_deploy.lower.conversion import CalibrationSettings


def training_images(student: Student, count: int) -> tuple[CalibrationSettings | None, str]:
    """The training images that a student's config names, to calibrate on; where they cannot be had, why."""
    annotations, folder = split_files(student, "train")
    if annotations is None:
        return None, f"the config in {student.path} names no training images to calibrate on"
    found = CalibrationSettings(folder, annotations, count)
    try:
        missing = [path for path in found.paths(student.classes) if not path.is_file()]
    except DataError as error:
        return None, f"the training images that the config names cannot be had ({error})"
    if missing:
        return None, f"the training images that the config names cannot be had (there is no {missing[0]})"
    return found, ""


def content_of(paths: Sequence[Path]) -> dict[str, Any] | None:
    """By what images are known again, wherever they lie; None of no images.

    Raises:
        DataError: one cannot be read.
    """
    return {"count": len(paths), "sha256": sha256_of_images(paths)} if paths else None
