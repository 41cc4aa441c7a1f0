"""The graph that goes into the file: candidates, and what the manifest has before and after them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cskd_deploy.backends.base import IMAGE_SHAPE, INPUT, OUTPUTS
from cskd_deploy.backends.interface import CANDIDATE
from cskd_deploy.graph.base import CandidateGraph
from cskd_deploy.graph.normalise import Normalise
from cskd_deploy.graph.suppress import Suppress
from cskd_deploy.manifest import Manifest

_AXES = {"float": {2: "height", 3: "width"}, "uint8": {1: "height", 2: "width"}}


class WholeGraph(nn.Module):
    """A student's graph in the form that `manifest.graph` asks for.

    With NMS inside it gives the candidates too: by them the file is verified, before they are taken away.
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
        self.outputs = candidates.outputs
        if self.suppress is not None:
            self.outputs = (*OUTPUTS, *(CANDIDATE + name for name in candidates.outputs))

    def forward(self, image: Tensor, image_shape: Tensor | None = None) -> tuple[Tensor, ...]:
        shape = torch.zeros(1, 2) if image_shape is None else image_shape
        if self.normalise is not None:
            image = self.normalise(image, shape)
        # Its `forward`, not a call: so layers are called the same in the files of every form.
        found: tuple[Tensor, ...] = self.candidates.forward(*(image, shape)[: len(self.candidates.inputs)])
        if self.suppress is None:
            return found
        named = dict(zip(self.candidates.outputs, found, strict=True))
        judged = named[self._manifest.postprocessing.threshold_on]
        return (*self.suppress(*(named[name] for name in OUTPUTS), judged, shape), *found)

    def example(self) -> tuple[Tensor, ...]:
        """Empty images and their size to trace with, in the order of `inputs`; two where the batch is dynamic."""
        count = 2 if self._manifest.batched else 1
        height, width = self._manifest.preprocessing.input_size
        raw = self.normalise is not None
        image = torch.zeros(count, height, width, 3, dtype=torch.uint8) if raw else torch.zeros(count, 3, height, width)
        shape = torch.tensor([[float(height), float(width)]] * count)
        return (image, shape)[: len(self.inputs)]

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """The names of the axes that are not fixed, as `torch.onnx.export` takes them."""
        manifest = self._manifest
        if not manifest.graph.dynamic:
            return {}
        batch = {0: "batch"} if manifest.batched else {}
        axes = {INPUT: {**batch, **_AXES[manifest.graph.input]}}
        if IMAGE_SHAPE in self.inputs:
            axes[IMAGE_SHAPE] = dict(batch)
        for name in self.outputs:
            fixed = self.suppress is not None and not name.startswith(CANDIDATE)
            axes[name] = {} if fixed or manifest.family == "faster_rcnn" else {**batch, 1: "candidates"}
        return axes
