"""Where two models differ: their detections image by image."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cskd_data.images import read_image
from cskd_deploy.accuracy.agreement import Agreement, Boxes, match
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.detect.detector import Detector
from cskd_deploy.detect.postprocess import Detections
from cskd_deploy.errors import BackendMissing, DeployError
from cskd_deploy.lower.layers import HALF, WEIGHTED, as_seen, network

IOU = 0.99
ANY_SCORE = 1.0  # detections are paired by their boxes; how far their scores lie apart is what is asked


@dataclass(frozen=True)
class ImageDifference:
    """The detections of two models on one image."""

    image: str
    agreement: Agreement

    @property
    def unmatched(self) -> int:
        """Detections of either model that the other has not."""
        found = self.agreement
        return found.reference + found.other - 2 * found.matched

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {"image": self.image, **asdict(self.agreement), "unmatched": self.unmatched}


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images, and their layers where they were asked for."""

    first: str
    second: str
    images: tuple[ImageDifference, ...]
    layers: tuple[LayerDifference, ...] | None  # always on the processor
    devices: tuple[str, str]

    @property
    def detections(self) -> int:
        """Of the model that has more, over all images."""
        found = [one.agreement for one in self.images]
        return max(sum(one.reference for one in found), sum(one.other for one in found))

    @property
    def share(self) -> float:
        """Matched detections over `detections`; 1 where there is none."""
        matched = sum(one.agreement.matched for one in self.images)
        return matched / self.detections if self.detections else 1.0

    @property
    def largest_score_difference(self) -> float:
        """Among the matched; the score of a detection that only one model has does not count."""
        return max((one.agreement.largest_score_difference for one in self.images), default=0.0)

    def worst(self, count: int) -> list[ImageDifference]:
        """The images with the most unmatched detections, then with the largest difference of scores."""

        def badness(one: ImageDifference) -> tuple[int, float]:
            return one.unmatched, one.agreement.largest_score_difference

        return sorted(self.images, key=badness, reverse=True)[:count]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "first": self.first,
            "second": self.second,
            "devices": list(self.devices),
            "detections": self.detections,
            "share_matched": self.share,
            "largest_score_difference": self.largest_score_difference,
            "images": [one.to_dict() for one in self.images],
            "layers": None if self.layers is None else [asdict(one) for one in self.layers],
        }


def compare_images(
    first: Detector, second: Detector, paths: Sequence[Path], progress: Callable[[int, int], None]
) -> tuple[ImageDifference, ...]:
    """Match the detections of two models on each image: greedily, same label, boxes that overlap by `IOU`."""
    found = []
    for done, path in enumerate(paths, start=1):
        image = read_image(path)
        boxes, other_boxes = (_triple(detector.detect(image)) for detector in (first, second))
        found.append(ImageDifference(path.name, match(boxes, other_boxes, iou=IOU, score=ANY_SCORE)))
        progress(done, len(paths))
    return tuple(found)


def _triple(found: Detections) -> Boxes:
    return found.boxes, found.scores, found.labels


@dataclass(frozen=True)
class LayerDifference:
    """How far a layer's output lies apart in two files, over all images."""

    name: str
    largest: float  # absolute difference
    mean: float  # absolute difference
    cosine: float  # of the two outputs as vectors, the smallest of any image

    def __str__(self) -> str:
        return f"{self.cosine:9.6f} {self.largest:11.3e} {self.mean:11.3e}  {self.name}"


class Output(NamedTuple):
    """An output of a layer in one file."""

    operator: str  # that gives it
    tensor: str  # that the next layer sees: it, or what quantisation makes of it


def compare_layers(
    first: Path,
    second: Path,
    paths: Sequence[Path],
    threads: int | None,
    progress: Callable[[int, int], None],
    allow_external_data: bool = False,
) -> tuple[LayerDifference, ...]:
    """The difference of each layer output that both files have, in the order of the graph.

    Of a quantised output the values after quantisation are taken, as the next layer sees them: an activation that was
    merged into its layer happens there. Layers after a choice among candidates are left out (the second stage of Faster
    R-CNN): another rounding chooses in another order, and their rows are not of the same candidates.

    Raises:
        BackendMissing: the onnx package is not installed.
        DeployError: the files share no layer output.
    """
    models = [_read(path, allow_external_data) for path in (first, second)]
    outputs = [_outputs(model.graph) for model in models]
    names = _common_names(*outputs)
    if not names:
        raise DeployError(
            f"{first} and {second} have no layer output of the same name: were they made from the same export?"
        )
    sums = {name: [0.0, 0.0, 0, 1.0] for name in names}  # largest, sum, count, smallest cosine
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        detectors, tensors = [], []
        for place, model in enumerate(models):
            path = Path(folder) / f"{place}.onnx"
            tensors.append([outputs[place][name].tensor for name in names])
            path.write_bytes(_with_outputs(model, tensors[place]))
            detectors.append(Detector(stack.enter_context(OnnxRuntimeBackend(path, threads))))
        for done, path in enumerate(paths, start=1):
            image = read_image(path)
            values = [_run(detector, image, wanted) for detector, wanted in zip(detectors, tensors, strict=True)]
            for name, one, other in zip(names, *values, strict=True):
                _add(sums[name], one, other, name)
            progress(done, len(paths))
    return tuple(
        LayerDifference(name, largest, total / max(count, 1), cosine)
        for name, (largest, total, count, cosine) in sums.items()
    )


def _read(path: Path, allow_external_data: bool) -> Any:
    try:
        onnx = importlib.import_module("onnx")
    except ImportError as error:
        raise BackendMissing(f"--layers needs onnx, which cannot be imported ({error}): `pip install onnx`") from error
    return onnx.load(str(path), load_external_data=allow_external_data)


def _common_names(first: dict[str, Output], second: dict[str, Output]) -> list[str]:
    """Outputs of a layer with weights in either graph that are tensors of both, in the order of the first.

    Quantisation may merge an activation into its layer, which then has the activation's name.
    """
    return [
        name
        for name, one in first.items()
        if name in second and (one.operator in WEIGHTED or second[name].operator in WEIGHTED)
    ]


def _outputs(graph: Any) -> dict[str, Output]:
    """The outputs of the network before proposals are pooled, by the name that they have in the FP32 file."""
    seen = as_seen(graph)
    pooled: set[str] = set()
    found = {}
    for node in network(graph):
        if node.op_type == "RoiAlign" or pooled.intersection(node.input):
            pooled.update(node.output)
        else:
            for name in node.output:
                plain = name.removesuffix(HALF)
                found[plain] = Output(node.op_type, seen[plain])
    return found


def _with_outputs(model: Any, names: Sequence[str]) -> bytes:
    """The model with further outputs; their types and shapes are the runtime's to find."""
    onnx = importlib.import_module("onnx")
    present = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    content: bytes = model.SerializeToString()
    return content


def _run(detector: Detector, image: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
    backend = detector.backend
    assert isinstance(backend, OnnxRuntimeBackend)
    feed = detector.feed(detector.prepare(image))
    inputs = {value.name for value in backend.session.get_inputs()}
    found: list[np.ndarray] = backend.session.run(list(names), {name: feed[name] for name in inputs})
    return found


def _add(sums: list[Any], one: np.ndarray, other: np.ndarray, name: str) -> None:
    if one.shape != other.shape:
        raise DeployError(
            f"layer output {name} is {one.shape} in the first file and {other.shape} in the second: compare files of "
            "one input size"
        )
    one, other = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    apart = np.abs(one - other)
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    cosine = float(one @ other) / length if length else float(not apart.any())
    sums[0] = max(sums[0], float(apart.max(initial=0.0)))
    sums[1] += float(apart.sum())
    sums[2] += apart.size
    sums[3] = min(sums[3], cosine)
