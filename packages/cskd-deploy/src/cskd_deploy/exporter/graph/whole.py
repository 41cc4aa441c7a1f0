"""The graph that goes into the file: candidates, and what the manifest has before and after them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cskd_deploy.backends.base import CANDIDATE, IMAGE_SHAPE, INPUT, OUTPUTS
from cskd_deploy.exporter.graph.candidates import CandidateGraph, DenseGraph, GFLGraph, ScoreFactorGraph, take
from cskd_deploy.exporter.graph.faster_rcnn import FasterRCNNGraph
from cskd_deploy.exporter.graph.operators import clipped, non_max_suppression, offset_by_group
from cskd_deploy.exporter.mmdet_config import candidates_per_level, family_of, proposals_of
from cskd_deploy.model.manifest import Manifest, Postprocessing, Preprocessing

_AXES = {"float": {2: "height", 3: "width"}, "uint8": {1: "height", 2: "width"}}


class WholeGraph(nn.Module):
    """A student's graph in the form that `manifest.graph` asks for.

    With NMS inside it gives the candidates too, and of a two-stage student the proposals: by them the file is verified,
    before they are taken away.
    """

    def __init__(self, candidates: CandidateGraph, manifest: Manifest) -> None:
        super().__init__()
        form, rule = manifest.graph, manifest.postprocessing
        self.candidates = candidates
        self.normalise = Normalise(manifest.preprocessing) if form.input == "uint8" else None
        self.suppress = Suppress(rule) if form.nms == "graph" else None
        self._manifest = manifest
        needs_shape = self.normalise is not None or (self.suppress is not None and rule.clip_boxes)
        self.inputs = (INPUT, IMAGE_SHAPE) if needs_shape else candidates.inputs
        inside = () if self.suppress is None else candidates.outputs
        self.outputs = candidates.outputs if self.suppress is None else OUTPUTS
        self.outputs += tuple(CANDIDATE + name for name in (*inside, *candidates.checked))

    def forward(self, image: Tensor, image_shape: Tensor | None = None) -> tuple[Tensor, ...]:
        shape = torch.zeros(1, 2) if image_shape is None else image_shape
        if self.normalise is not None:
            image = self.normalise(image, shape)
        # Its `forward`, not a call: so layers are called the same in the files of every form.
        found: tuple[Tensor, ...] = self.candidates.forward(*(image, shape)[: len(self.candidates.inputs)])
        if self.suppress is None:
            return found
        named = dict(zip((*self.candidates.outputs, *self.candidates.checked), found, strict=True))
        thresholded = named[self._manifest.postprocessing.threshold_on]
        return (*self.suppress(*(named[name] for name in OUTPUTS), thresholded, shape), *found)

    def example(self) -> tuple[Tensor, ...]:
        """Empty images and their size to trace with, in the order of `inputs`; two where the batch is dynamic."""
        count = self._manifest.graph.batch or 2
        height, width = self._manifest.preprocessing.input_size
        raw = self.normalise is not None
        image = torch.zeros(count, height, width, 3, dtype=torch.uint8) if raw else torch.zeros(count, 3, height, width)
        shape = torch.tensor([[float(height), float(width)]] * count)
        return (image, shape)[: len(self.inputs)]

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """The names of the axes that are not fixed, as `torch.onnx.export` takes them."""
        form = self._manifest.graph
        batch = {} if form.batch else {0: "batch"}
        axes = {INPUT: {**batch, **(_AXES[form.input] if form.dynamic else {})}}
        if IMAGE_SHAPE in self.inputs:
            axes[IMAGE_SHAPE] = dict(batch)
        for name in self.outputs:
            fixed = self.suppress is not None and not name.startswith(CANDIDATE)
            many = form.dynamic and not fixed and self._manifest.family != "faster_rcnn"
            axes[name] = {**batch, **({1: "candidates"} if many else {})}
        return axes


class Normalise(nn.Module):
    """Reorder, normalise and mask uint8 pixels.

    The padding is set to its value after normalisation, exactly, as mmdet pads; which colour stands there on the canvas
    does not matter. No colour would do in its stead: the mean is no whole number.
    """

    def __init__(self, rule: Preprocessing) -> None:
        super().__init__()
        mean, std = (np.array(values, dtype=np.float32).reshape(1, 3, 1, 1) for values in (rule.mean, rule.std))
        self.register_buffer("mean", torch.from_numpy(mean), persistent=False)
        inverse = (1 / np.float64(std)).astype(np.float32)  # as mmcv
        self.register_buffer("inverse_std", torch.from_numpy(inverse), persistent=False)
        self._reversed = rule.channel_order == "rgb"
        self._pad_value = rule.pad_value

    def forward(self, pixels: Tensor, image_shape: Tensor) -> Tensor:
        """Pixels `(N, H, W, 3)` BGR uint8 and `(N, 2)`, where each image ends, to `(N, 3, H, W)` float32."""
        values = pixels.float().permute(0, 3, 1, 2)  # the cast first: it is all that TensorRT does with uint8
        if self._reversed:
            values = values[:, [2, 1, 0]]
        values = (values - self.get_buffer("mean")) * self.get_buffer("inverse_std")
        rows = torch.arange(values.shape[2]).to(values).reshape(1, 1, -1, 1)
        columns = torch.arange(values.shape[3]).to(values).reshape(1, 1, 1, -1)
        height, width = image_shape.reshape(-1, 2, 1, 1, 1).unbind(1)
        inside = (rows < height) & (columns < width)
        if not self._pad_value:
            return values * inside.to(values)  # ONNX Runtime's Where takes several times as long
        return torch.where(inside, values, torch.full((1,), self._pad_value))


class Suppress(nn.Module):
    """From the candidates of each image to `rule.max_per_image` detections; empty ones of score 0 fill up."""

    def __init__(self, rule: Postprocessing) -> None:
        super().__init__()
        self._rule = rule

    def forward(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, thresholded: Tensor, image_shape: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates `(N, k, 4)` and `(N, k)`, what the threshold applies to `(N, k)`, the images' sizes `(N, 2)`."""
        rule = self._rule
        likely = thresholded > rule.score_threshold
        scores = torch.where(likely, scores, torch.zeros_like(scores))
        if rule.clip_boxes:
            boxes = clipped(boxes, image_shape)
        moved = boxes if rule.nms_class_agnostic else offset_by_group(boxes, labels, likely)
        places, real = non_max_suppression(moved, scores, rule.nms_iou_threshold, rule.max_per_image)
        return take(boxes, places) * real.unsqueeze(-1), scores.gather(1, places) * real, labels.gather(1, places)


_DENSE: dict[str, type[DenseGraph]] = {
    "retinanet": DenseGraph,
    "fsaf": DenseGraph,
    "fcos": ScoreFactorGraph,
    "atss": ScoreFactorGraph,
    "autoassign": ScoreFactorGraph,
    "gfl": GFLGraph,
}


def build_whole(student: nn.Module, config: Mapping[str, Any], manifest: Manifest) -> WholeGraph:
    """The graph that `manifest` describes of a student built from `config`.

    Raises:
        DeployError: the model is of a family that cannot be exported.
    """
    return WholeGraph(build_graph(student, config), manifest).eval()


def build_graph(student: nn.Module, config: Mapping[str, Any]) -> CandidateGraph:
    """The exportable candidates of a student built from `config`.

    Raises:
        DeployError: the model is of a family that cannot be exported.
    """
    family = family_of(config)
    if family == "faster_rcnn":
        return FasterRCNNGraph(student, proposals_of(config)).eval()
    return _DENSE[family](student, candidates_per_level(config)).eval()
