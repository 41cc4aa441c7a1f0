"""The inputs and outputs that a graph of a manifest has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cskd_deploy.backends.base import IMAGE_SHAPE, INPUT, OUTPUTS
from cskd_deploy.manifest import Manifest

Shape = tuple[int | None, ...]  # None where a dimension is dynamic
# Before the names of the candidates, which a graph with NMS gives beside its detections until it has been verified.
CANDIDATE = "candidate_"


def input_shapes(manifest: Manifest) -> dict[str, Shape]:
    """The shape of each input. Not every graph has `image_shape`."""
    batch = None if manifest.batched else 1
    size: Shape = (None, None) if manifest.graph.dynamic else manifest.preprocessing.input_size
    image = (batch, *size, 3) if manifest.graph.input == "uint8" else (batch, 3, *size)
    return {INPUT: image, IMAGE_SHAPE: (batch, 2)}


def needed_outputs(manifest: Manifest) -> list[str]:
    """The outputs that post-processing needs."""
    if manifest.graph.nms == "graph":
        return list(OUTPUTS)
    return list(dict.fromkeys([*OUTPUTS, manifest.postprocessing.threshold_on]))


def is_input_of(manifest: Manifest, inputs: Mapping[str, Sequence[object]]) -> bool:
    """Whether a graph with `inputs`, by name, as a runtime describes their shapes, is one of the manifest."""
    expected = input_shapes(manifest)
    found = {
        name: tuple(size if isinstance(size, int) and size >= 0 else None for size in shape)
        for name, shape in inputs.items()
    }
    return INPUT in found and all(expected.get(name) == shape for name, shape in found.items())
