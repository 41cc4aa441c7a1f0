"""The first convolution of an INT8 file, computed on blocks of 2 x 2 pixels.

The integer kernels of a processor multiply four neighbouring channels at once, and an image has three: the first
convolution takes as long in INT8 as in FP32. A convolution of stride 2 is one of stride 1 on the blocks of 2 x 2 pixels
(SpaceToDepth: 12 channels, half the height and width), whose kernel has the same weights in another order and zeros
where it is larger. Sums of integers do not depend on their order, so every number stays what it was.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

BLOCK = 2
_FEW = 4  # channels: as many as the kernels multiply at once


def with_blocks(model: Any) -> None:
    """Let the first convolution of a quantised `onnx.ModelProto` read blocks, if it has stride 2 and few channels.

    Args:
        model: changed in place. The heights and widths of its images have to be even.
    """
    import onnx

    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    node = next((one for one in graph.node if one.op_type == "Conv"), None)  # in topological order
    if node is None:
        return
    restore, weights = (makers.get(name) for name in node.input[:2])
    if restore is None or weights is None:
        return  # it stays in float
    quantize = makers.get(restore.input[0])
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return
    if any(readers[one.output[0]] > 1 for one in (quantize, restore, weights)):
        return
    known = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    constant = constants[weights.input[0]]
    kernel = onnx.numpy_helper.to_array(constant)
    if not _fits(known, kernel):
        return
    kernel, pads = _on_blocks(kernel, known["pads"])
    constant.CopyFrom(onnx.numpy_helper.from_array(kernel, constant.name))
    new = {"kernel_shape": kernel.shape[2:], "strides": (1, 1), "pads": pads}
    kept = [one for one in node.attribute if one.name not in new]
    del node.attribute[:]
    node.attribute.extend([*kept, *(onnx.helper.make_attribute(name, value) for name, value in new.items())])
    pixels, blocks = quantize.input[0], f"{quantize.output[0]}_blocks"
    quantize.input[0] = blocks
    place = list(graph.node).index(quantize)
    graph.node.insert(
        place, onnx.helper.make_node("SpaceToDepth", [pixels], [blocks], name=f"{node.name}_blocks", blocksize=BLOCK)
    )


def _fits(known: dict[str, Any], kernel: np.ndarray) -> bool:
    plain = known.get("group", 1) == 1 and known.get("auto_pad", b"NOTSET") == b"NOTSET"
    halves = kernel.ndim == 4 and list(known.get("strides", ())) == [BLOCK, BLOCK]
    dense = all(step == 1 for step in known.get("dilations", (1, 1)))
    return plain and halves and dense and kernel.shape[1] <= _FEW and "pads" in known


def _on_blocks(kernel: np.ndarray, pads: list[int]) -> tuple[np.ndarray, list[int]]:
    """A kernel `(outputs, channels, height, width)` of stride 2, and the pads, as they are on blocks.

    An output at `o` reads the pixels from `2 * o - begin` on, so the blocks from `o - ceil(begin / 2)` on.
    """
    outputs, channels, *sizes = kernel.shape
    begins, ends = [], []
    places = []
    for size, begin, end in zip(sizes, pads[:2], pads[2:], strict=True):
        before = -(-begin // BLOCK)
        last = (size - 1 - begin) // BLOCK
        begins.append(before)
        # As many outputs as before, from half as many inputs.
        ends.append((begin + end - size) // BLOCK + last + 1)
        places.append([tap - begin + before * BLOCK for tap in range(size)])
    new = np.zeros((outputs, BLOCK, BLOCK, channels, *(row[-1] // BLOCK + 1 for row in places)), kernel.dtype)
    for row, down in enumerate(places[0]):
        for column, right in enumerate(places[1]):
            new[:, down % BLOCK, right % BLOCK, :, down // BLOCK, right // BLOCK] = kernel[:, :, row, column]
    return new.reshape(outputs, BLOCK * BLOCK * channels, *new.shape[-2:]), [*begins, *ends]
