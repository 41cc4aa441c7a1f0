"""Which layers should stay in float: those whose quantisation costs most, until the rest costs little enough."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cskd_data import Dataset
from cskd_data.files import check_not_input
from cskd_data.formats import annotation_files
from cskd_deploy.accuracy.eval import load_countable, measure
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import CheckFailed
from cskd_deploy.lower.conversion import CalibrationSettings, PrecisionResult, convert_to_int8
from cskd_deploy.lower.int8 import Quantizer


@dataclass(frozen=True)
class Search:
    """How a search ended. Drops are points of mAP, below zero where the quantised model is better."""

    reference: float  # points of mAP in float
    first_drop: float  # with no further layer in float
    ranking: tuple[tuple[str, float], ...]  # layer, drop when it alone is quantised; worst first, () if not needed
    kept: tuple[str, ...]  # in float
    drop: float  # of the model with them

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "reference_mAP_points": self.reference,
            "first_drop_points": self.first_drop,
            "ranking": [{"layer": name, "drop_points": drop} for name, drop in self.ranking],
            "kept_in_float": list(self.kept),
            "drop_points": self.drop,
        }

    def __str__(self) -> str:
        lines = [
            f"search: mAP {self.reference:.2f} in FP32, drop {self.first_drop:+.2f} points"
            + (f", {self.drop:+.2f} with {len(self.kept)} layers in float" if self.ranking else "")
        ]
        lines += [f"  {name:<44} {drop:+.2f} alone" for name, drop in self.ranking if name in self.kept]
        return "\n".join(lines)


@dataclass(frozen=True)
class SearchSettings:
    """What a search measures, and how far mAP may drop."""

    annotations: Path
    images: Path | None  # None: beside the annotations
    max_drop: float  # points


@dataclass(frozen=True)
class SearchResult:
    """The INT8 file that a search ended with."""

    file: PrecisionResult
    search: Search

    @property
    def options(self) -> str:
        """What makes `cskd-deploy export` leave the same layers in float; empty where none is."""
        return " ".join(f"--keep-float {name}" for name in self.search.kept)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {**self.file.to_dict(), "search": self.search.to_dict(), "export_options": self.options}

    def __str__(self) -> str:
        again = f"the same by export: {self.options}" if self.options else "no layer has to stay in float"
        return "\n".join([str(self.file), *(f"  {line}" for line in str(self.search).splitlines()), again])


def search_int8(
    source: Path,
    output: Path,
    target: str,
    calibration: CalibrationSettings,
    keep_float: Collection[str],
    settings: SearchSettings,
    progress: Callable[[str], None],
    warn: Callable[[str], None],
    counted: Callable[[int, int], None] = lambda done, total: None,
) -> SearchResult:
    """Write the INT8 form of an exported FP32 file whose mAP drops by no more than it may.

    Args, raises: as `convert_to_int8`; also DataError or DeployError when mAP cannot be measured, and CheckFailed as
    `search`.
    """
    check_not_input(output, annotation_files(settings.annotations))
    searches: list[Search] = []
    with OnnxRuntimeBackend(source) as backend, tempfile.TemporaryDirectory() as folder:
        detector = Detector(backend)
        dataset = load_countable(settings.annotations, settings.images, detector.manifest.classes)

        def choose(quantizer: Quantizer, kept: list[str]) -> Sequence[str]:
            searches.append(_search(detector, dataset, quantizer, kept, settings.max_drop, Path(folder), progress))
            return searches[0].kept

        file = convert_to_int8(source, output, target, calibration, keep_float, progress, warn, counted, choose)
    return SearchResult(file, searches[0])


def _search(
    detector: Detector,
    dataset: Dataset,
    quantizer: Quantizer,
    kept: Collection[str],
    max_drop: float,
    folder: Path,
    progress: Callable[[str], None],
) -> Search:
    import onnx

    def points(measured: Detector) -> float:
        return 100 * measure(measured, dataset, lambda done, total: None).mean_average_precision

    progress(f"measuring FP32 on {len(dataset.images)} images")
    reference = points(detector)
    file = folder / "tried.onnx"

    def drop_with(keep: Collection[str]) -> float:
        onnx.save(quantizer.quantise(keep), str(file))
        with OnnxRuntimeBackend(file) as backend:
            return reference - points(Detector(backend))

    return search(quantizer.layers, drop_with, reference, max_drop, progress, kept)


def search(
    layers: Sequence[str],
    drop_with: Callable[[Collection[str]], float],
    reference: float,
    max_drop: float,
    progress: Callable[[str], None],
    keep: Collection[str] = (),
) -> Search:
    """Find layers to keep in float so that the drop is within `max_drop`.

    Where it is not without them, every layer is quantised alone, and the layers are put back to float in the order of
    the drops that this causes, one more at a time.

    Args:
        layers: all that can be quantised.
        drop_with: points of mAP that the model loses with these layers in float.
        reference: points of mAP in float, for the report.
        max_drop: points.
        progress: called with a line for each measurement.
        keep: layers that stay in float in any case.

    Raises:
        CheckFailed: the drop is too large even with a single layer quantised.
    """
    free = [name for name in layers if name not in keep]
    progress(f"measuring with {len(free)} layers quantised")
    first = drop = drop_with(keep)
    progress(f"drop {drop:+.2f} points")
    if drop <= max_drop:
        return Search(reference, first, (), tuple(keep), drop)
    drops: dict[str, float] = {}
    begin = time.perf_counter()
    for done, name in enumerate(free, start=1):
        drops[name] = drop_with({*layers} - {name})
        left = (time.perf_counter() - begin) / done * (len(free) - done)
        progress(f"{done}/{len(free)} {name} alone: drop {drops[name]:+.2f} points, {left:.0f} s left")
    ranking = tuple(sorted(drops.items(), key=lambda item: -item[1]))
    kept = [name for name in layers if name in keep]
    for name, _ in ranking[:-1]:
        kept.append(name)
        drop = drop_with(kept)
        progress(f"{name} in float too: drop {drop:+.2f} points")
        if drop <= max_drop:
            return Search(reference, first, ranking, tuple(kept), drop)
    raise CheckFailed(
        f"mAP drops by {drop:.2f} points with {ranking[-1][0]} alone in INT8, more than the {max_drop:g} allowed "
        "(--max-drop). No file was written. Allow more, or take `export --precision fp16`"
    )
