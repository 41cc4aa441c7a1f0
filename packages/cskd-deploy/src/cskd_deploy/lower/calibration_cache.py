"""The ranges of activations that a calibration has found, in a file that the next export reads.

It is JSON: which FP32 graph, which images and which method the ranges are of, and the ends of the range by tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cskd_data.errors import DataError
from cskd_data.files import sha256_of_file, write_atomically
from cskd_deploy.errors import DeployError

FORMAT = "cskd-calibration"
VERSION = 1
_AGAIN = "name a file that does not exist yet to calibrate again"


@dataclass(frozen=True)
class CalibrationCache:
    """What a calibration has found, and of what."""

    graph_sha256: str  # of the FP32 graph
    method: str  # `int8.Quantizer.method`
    images: int
    images_sha256: str
    ranges: dict[str, tuple[float, float]]

    def check(self, path: Path, graph_sha256: str, method: str, tensors: Collection[str]) -> None:
        """Make sure that the ranges, read from `path`, are those of this graph by this method.

        Args:
            tensors: that need a range.

        Raises:
            DeployError: they are not.
        """
        if self.graph_sha256 != graph_sha256:
            raise DeployError(f"{path} holds the ranges of another model (its FP32 graph differs): {_AGAIN}")
        if self.method != method:
            raise DeployError(f"{path} holds ranges found by another method ({self.method}, not {method}): {_AGAIN}")
        missing = [name for name in tensors if name not in self.ranges]
        if missing:
            raise DeployError(
                f"{path} has no range of {missing[0]}: another version of onnxruntime made it. To calibrate again, "
                "name a file that does not exist yet"
            )

    def check_images(self, path: Path, images: Sequence[Path]) -> None:
        """Make sure that the ranges are of these images.

        Raises:
            DeployError: they are of others.
        """
        if (self.images, self.images_sha256) != (len(images), sha256_of_images(images)):
            raise DeployError(
                f"{path} holds the ranges of {self.images} other images than the {len(images)} given: leave "
                f"--calibration-images out to take them all the same, or {_AGAIN}"
            )


def sha256_of_graph(model: Any) -> str:
    """Of an `onnx.ModelProto`: its nodes and weights, not what its metadata says."""
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


def sha256_of_images(images: Sequence[Path]) -> str:
    """Of the content of image files, in their order.

    Raises:
        DataError: one is missing or cannot be read.
    """
    try:
        return hashlib.sha256("".join(map(sha256_of_file, images)).encode()).hexdigest()
    except OSError as error:
        raise DataError(f"image {error.filename} cannot be read: {error.strerror}") from error


def write_cache(path: Path, cache: CalibrationCache) -> None:
    """Write it, whole or not at all.

    Raises:
        DataError: the folder cannot be written.
    """
    data = {"format": FORMAT, "version": VERSION, **asdict(cache)}
    write_atomically(path, lambda file: file.write(json.dumps(data, indent=1).encode() + b"\n"))


def read_cache(path: Path) -> CalibrationCache:
    """What `write_cache` wrote.

    Raises:
        DeployError: the file is none of it, or of a later version.
    """
    try:
        data = json.loads(path.read_bytes())
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}")
        if data["version"] != VERSION:
            raise ValueError(f"its version is {data['version']!r}, expected {VERSION}")
        return CalibrationCache(
            graph_sha256=_typed(data["graph_sha256"], str),
            method=_typed(data["method"], str),
            images=_typed(data["images"], int),
            images_sha256=_typed(data["images_sha256"], str),
            ranges=_ranges(_typed(data["ranges"], dict)),
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
        raise DeployError(
            f"{path} cannot be read as a calibration cache of `cskd-deploy export`: {reason}. To calibrate again, name "
            "a file that does not exist yet"
        ) from error


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"found {value!r}, expected {kind.__name__}")
    return value


def _ranges(data: dict[str, Any]) -> dict[str, tuple[float, float]]:
    ranges: dict[str, tuple[float, float]] = {}
    for name, ends in data.items():
        low, high = (float(end) for end in ends)
        if not (math.isfinite(low) and math.isfinite(high) and low <= 0 <= high):
            raise ValueError(f"the range of {name} is {ends}")
        ranges[name] = (low, high)
    return ranges
