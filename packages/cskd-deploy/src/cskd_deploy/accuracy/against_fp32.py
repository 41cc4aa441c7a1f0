"""Whether a file of lower precision, or an engine, still finds what its FP32 file finds.

What it is held to are limits for a wrong conversion, not for the last points of mAP: those `cskd-deploy eval` measures.
A student of random weights passes too. Its detections are all alike, so that rounding decides which of them are kept;
its class logits hardly differ from one another, so that their correlation says nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cskd_data.files import sha256_of_file
from cskd_data.images import read_image
from cskd_deploy.accuracy.agreement import Boxes, iou_with, matched_pairs
from cskd_deploy.backends.base import Arrays
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend, import_onnxruntime
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import CheckFailed
from cskd_deploy.lower.layers import as_seen, class_logits
from cskd_deploy.measure.bench import random_images
from cskd_deploy.model.manifest import AgreementWithFp32

MOST_IMAGES = 8
RANDOM_IMAGES = 4
FEWEST_BOXES = 5  # without a partner: fewer are within chance, however many there are


@dataclass(frozen=True)
class Limits:
    """What a precision is held to."""

    iou: float  # from which two detections of a class are the same
    score: float  # how far their scores may lie apart, and from the cut that needs no partner
    matched: float  # least share of detections
    overlap: float  # least mean IoU of the matched
    correlation: float  # least, of class logits with FP32's on a level
    difference: float  # largest root mean square of their differences, as a part of the logits' standard deviation
    unnoticed: float  # root mean square up to which neither matters


# FP16 has 11 bits, and logits around -4 differ by 0.002: trained students have correlations of 0.999999 and match 99 %
# of their detections, those of random weights 98 %. A difference of 0.01 moves a score by 0.0025 at most.
FP16 = Limits(iou=0.9, score=0.05, matched=0.95, overlap=0.98, correlation=0.9999, difference=0.03, unnoticed=0.01)
# INT8: trained students have correlations from 0.995 and match 92 % of their detections, those of random weights from
# 0.98 and 70 % (docs/results/precision.md). Boxes that overlap by half are the same object: NMS keeps one of them.
INT8 = Limits(iou=0.5, score=0.1, matched=0.5, overlap=0.75, correlation=0.99, difference=0.3, unnoticed=0.2)


def limits(precision: str) -> Limits:
    """Those of a manifest's precision. An engine of an FP32 file may compute in TF32, which has FP16's 11 bits."""
    return INT8 if precision.startswith("int8") else FP16


class Pictures:
    """At most `MOST_IMAGES` of some image files, spread evenly over them, or where there are none random images.

    Args:
        paths: image files.
        size: (height, width) of random images.
    """

    def __init__(self, paths: Sequence[Path], size: tuple[int, int]) -> None:
        self.paths = list(paths)
        places = np.linspace(0, len(paths) - 1, min(MOST_IMAGES, len(paths))).round().astype(int)
        self._paths = [paths[place] for place in places]
        self._size = size
        self.random = not paths

    def __len__(self) -> int:
        return RANDOM_IMAGES if self.random else len(self._paths)

    def __str__(self) -> str:
        return f"{len(self)} {'random ' if self.random else ''}images"

    def __iter__(self) -> Iterator[np.ndarray]:
        """BGR uint8 images, one in memory at a time."""
        yield from random_images(self._size, RANDOM_IMAGES) if self.random else map(read_image, self._paths)


def compare_with_fp32(reference: Detector, other: Detector, images: Iterable[np.ndarray]) -> AgreementWithFp32:
    """Compare detections after NMS, and of a file in ONNX Runtime the class logits as well.

    Of a two-stage detector the second stage's are those of the FP32 file's proposals in both.

    Args:
        reference: the FP32 file; of an engine, the ONNX file that it was built from.
        other: what was made of it; it has the same pre- and post-processing.
        images: BGR uint8.
    """
    limit = limits(other.manifest.precision)
    logits = None
    if isinstance(other.backend, OnnxRuntimeBackend):
        logits = _Logits(reference.backend.path, other.backend.path)
    detections, missing, overlapping, count = 0, 0, [], 0
    for image in images:
        count += 1
        found, others = _detect(reference, image), _detect(other, image)
        pairs = matched_pairs(found, others, limit.iou, limit.score)
        for place, boxes in enumerate((found, others)):
            wanted = _above_the_cut(boxes, reference, limit.score)
            detections += int(wanted.sum())
            wanted[pairs[:, place]] = False
            missing += int(wanted.sum())
        overlapping += [float(iou_with(found[0][one], others[0][mate : mate + 1])[0]) for one, mate in pairs]
        if logits is not None:
            logits.add(feed_of(reference, image), feed_of(other, image))
    return AgreementWithFp32(
        sha256=sha256_of_file(reference.backend.path),
        images=count,
        random=isinstance(images, Pictures) and images.random,
        detections=detections,
        matched=round(1 - missing / detections, 6) if detections else 1.0,
        overlap=round(float(np.mean(overlapping)), 6) if overlapping else 1.0,
        correlation={} if logits is None else logits.correlation(),
        difference={} if logits is None else logits.difference(),
        spread={} if logits is None else logits.spread(),
    )


def check_agreement(found: AgreementWithFp32, what: str, precision: str, way_out: str) -> None:
    """Refuse what agrees too little.

    Args:
        what: was compared.
        precision: the manifest's.
        way_out: what to do about it.

    Raises:
        CheckFailed: names the figure and its limit.
    """
    limit = limits(precision)
    fault = next(_faults(found, limit), None)
    if fault is not None:
        images = "random images" if found.random else "images"
        raise CheckFailed(
            f"{what} does not find what the file that it is made of finds on {found.images} {images}: {fault}. "
            f"No file was written. {way_out}"
        )


def _faults(found: AgreementWithFp32, limit: Limits) -> Iterator[str]:
    for layer, levels in found.correlation.items():
        for level, correlation in enumerate(levels):
            difference, spread = found.difference[layer][level], found.spread[layer][level]
            where = f"the logits of {layer} on level {level}"
            if difference <= limit.unnoticed:
                continue
            if not difference <= limit.difference * spread:  # nor if it is not a number
                most = f"at most {limit.difference:g} of their standard deviation {spread:.3g}"
                yield f"{where} differ by {difference:.3g} (root mean square, {most})"
            if correlation is not None and correlation < limit.correlation:
                yield f"{where} correlate by {correlation:.5f} (at least {limit.correlation:g})"
    missing = round((1 - found.matched) * found.detections)
    if found.matched < limit.matched and missing >= FEWEST_BOXES:
        yield (
            f"{100 * found.matched:.1f} % of {found.detections} detections agree (at least {100 * limit.matched:g} %, "
            f"IoU >= {limit.iou:g}, scores within {limit.score:g})"
        )
    if found.overlap < limit.overlap:
        yield f"the detections that agree overlap by {found.overlap:.3f} (mean IoU, at least {limit.overlap:g})"


def feed_of(detector: Detector, image: np.ndarray) -> dict[str, np.ndarray]:
    """An image as a detector takes it: as often as its batch is large, where that is fixed."""
    return detector.feed(*[detector.prepare(image)] * (detector.backend.batch_size or 1))


def _detect(detector: Detector, image: np.ndarray) -> Boxes:
    found = detector.select(detector.backend.infer(feed_of(detector, image)), detector.prepare(image))
    return found.boxes, found.scores, found.labels


def _above_the_cut(boxes: Boxes, detector: Detector, margin: float) -> np.ndarray:
    """Which detections need a partner: of the others, rounding decides whether they are above the threshold at all."""
    rule, scores = detector.manifest.postprocessing, boxes[1]
    full = len(scores) >= rule.max_per_image
    cut = max(rule.score_threshold, float(scores.min()) if full else 0.0)
    wanted: np.ndarray = scores > cut + margin
    return wanted


class _Logits:
    """The class logits of two files, as sums over images: no image's are kept."""

    def __init__(self, reference: Path, other: Path) -> None:
        onnx = importlib.import_module("onnx")
        self._layers = class_logits(onnx.load(str(reference)).graph)
        names = [name for tensors in self._layers.values() for name in tensors]
        self._reference, self._other = _Shown(reference, names, False), _Shown(other, names, True)
        self._sums = {name: np.zeros(6) for name in names}  # n, x, y, xx, yy, xy
        self._differences = dict.fromkeys(names, 0.0)

    def add(self, feed: Arrays, other_feed: Arrays) -> None:
        """Run both on an image."""
        expected, pooled = self._reference(feed)
        found, _ = self._other({**other_feed, **pooled})
        for name, first, second in zip(self._sums, expected, found, strict=True):
            x, y = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
            self._sums[name] += np.array([len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y])
            self._differences[name] += float(((x - y) ** 2).sum())

    def correlation(self) -> dict[str, tuple[float | None, ...]]:
        """By layer, level by level."""
        return {layer: tuple(_pearson(self._sums[name]) for name in names) for layer, names in self._layers.items()}

    def difference(self) -> dict[str, tuple[float, ...]]:
        """By layer, level by level; infinite where a file gave what is no number."""
        return {layer: tuple(self._mean_square(name) for name in names) for layer, names in self._layers.items()}

    def spread(self) -> dict[str, tuple[float, ...]]:
        """Standard deviation of the reference's, by layer, level by level."""
        return {layer: tuple(_deviation(self._sums[name]) for name in names) for layer, names in self._layers.items()}

    def _mean_square(self, name: str) -> float:
        value = np.sqrt(self._differences[name] / max(self._sums[name][0], 1))
        return round(float(value), 6) if np.isfinite(value) else float("inf")


def _deviation(sums: np.ndarray) -> float:
    count, x, xx = sums[0], sums[1], sums[3]
    return round(float(np.sqrt(max(xx / count - (x / count) ** 2, 0.0))), 6)


def _pearson(sums: np.ndarray) -> float | None:
    count, x, y, xx, yy, xy = sums
    spread = (xx - x * x / count) * (yy - y * y / count)
    # What is left of a constant's squares is rounding.
    if not np.isfinite(spread) or min(xx - x * x / count, yy - y * y / count) <= 1e-10 * max(xx, yy):
        return None
    return round(float((xy - x * y / count) / np.sqrt(spread)), 6)


class _Shown:
    """A file in ONNX Runtime that gives further tensors.

    Args:
        names: of the tensors in the FP32 file; they are given as the nodes after them see them.
        given: where proposals are pooled, by level, is an input; otherwise it is given too.
    """

    def __init__(self, path: Path, names: Sequence[str], given: bool) -> None:
        onnx = importlib.import_module("onnx")
        model = onnx.load(str(path))
        graph, seen = model.graph, as_seen(model.graph)
        self._names = [seen[name] for name in names]
        self._pooled: dict[str, str] = {}  # what is shown by the name of the input that takes it
        for node in graph.node:
            if node.op_type == "RoiAlign":  # one at most
                self._pooled = {"given_boxes": node.input[1], "given_levels": node.input[2]}
                if given:
                    node.input[1:3] = list(self._pooled)
        if given and self._pooled:
            kinds = (onnx.TensorProto.FLOAT, ("proposals", 4)), (onnx.TensorProto.INT64, ("proposals",))
            for name, (kind, shape) in zip(self._pooled, kinds, strict=True):
                graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
            self._pooled = {}
        there = {value.name for value in graph.output}
        shown = dict.fromkeys([*self._names, *self._pooled.values()])
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in shown if name not in there)
        runtime = import_onnxruntime()
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        providers = ["CPUExecutionProvider"]
        self._session: Any = runtime.InferenceSession(model.SerializeToString(), options, providers)
        self._inputs = [value.name for value in self._session.get_inputs()]

    def __call__(self, feed: Arrays) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        """The tensors, and where proposals were pooled, to feed the other file."""
        outputs = [*self._names, *self._pooled.values()]
        if not outputs:  # of which ONNX Runtime would make all
            return [], {}
        values = self._session.run(outputs, {name: feed[name] for name in self._inputs})
        return values[: len(self._names)], dict(zip(self._pooled, values[len(self._names) :], strict=True))
