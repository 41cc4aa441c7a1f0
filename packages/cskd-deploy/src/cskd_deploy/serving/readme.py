"""The README of a served model: what a client does before and after the graph, in words and as a program."""

from __future__ import annotations

from collections.abc import Sequence

from cskd_deploy.backends.base import IMAGE_SHAPE
from cskd_deploy.model.manifest import MANIFEST_KEY, Manifest

_CLIENT = """\
import sys

import cv2
import numpy as np
import tritonclient.http as triton

from cskd_deploy.detect.postprocess import {select}
from cskd_deploy.detect.preprocess import prepare
from cskd_deploy.model.manifest import manifest_from_metadata

client = triton.InferenceServerClient("localhost:8000")
parameters = client.get_model_config("{name}")["parameters"]
manifest = manifest_from_metadata({{"{key}": parameters["{key}"]["string_value"]}}, "{name}")
image = cv2.imread(sys.argv[1])
prepared = prepare(image, manifest.preprocessing, manifest.graph)
feed = {{"image": prepared.tensor, "image_shape": np.array([prepared.resized_size], dtype=np.float32)}}
{fill}inputs = []
for name in {inputs}:
    inputs.append(triton.InferInput(name, feed[name].shape, {types}[name]))
    inputs[-1].set_data_from_numpy(feed[name])
result = client.infer("{name}", inputs)
boxes, scores, labels = (result.as_numpy(name)[0] for name in ("boxes", "scores", "labels"))
{found}
for box, score, label in zip(found.boxes, found.scores, found.labels):
    print(manifest.classes[label], round(float(score), 3), [round(float(side), 1) for side in box])
"""
_FILL = """\
feed = {{name: np.repeat(array, {least}, axis=0) for name, array in feed.items()}}  # one image fills the batch
"""


def readme(name: str, manifest: Manifest, inputs: Sequence[str], sha256: str, max_batch: int, least: int = 1) -> str:
    """The text, in Markdown.

    Args:
        name: of the model.
        inputs: names of the graph's.
        sha256: of the model file.
        max_batch: images at a time; 0: the batch is in the shapes.
        least: images that a request has at least; of a fixed batch its number.
    """
    classes = ", ".join(manifest.classes)
    steps = _before(manifest, inputs, least)
    numbered = "\n".join(f"{place}. {step}" for place, step in enumerate(steps, start=1))
    finished = "\n".join(f"{place}. {step}" for place, step in enumerate(_after(manifest), start=1))
    if max_batch:
        batches = f"{'up' if least == 1 else least} to {max_batch} images of one size"
    else:
        batches = "one image" if least == 1 else f"{least} images"
    return f"""# {name}

{manifest.family}, {manifest.precision}, {batches} at a time, {len(manifest.classes)} classes: {classes}.
Exported from {manifest.checkpoint} (sha256 {manifest.sha256[:12]}) by cskd-deploy; the file's sha256 is {sha256}.
All that follows stands, as JSON, in the parameter `{MANIFEST_KEY}` of the model's configuration too.

## Before the request

{numbered}

## After it

{finished}

## A client

Needs `pip install cskd-deploy 'tritonclient[http]'`; it prints what is found in an image file:

```python
{_client(name, manifest, inputs, least)}```
"""


def _before(manifest: Manifest, inputs: Sequence[str], least: int) -> list[str]:
    rule, graph = manifest.preprocessing, manifest.graph
    width, height = rule.scale
    resize = (
        f"the largest size whose long side is at most {max(rule.scale)} and whose short side is at most "
        f"{min(rule.scale)} pixels, the ratio of its sides kept"
        if rule.keep_ratio
        else f"{width} x {height} pixels (width x height)"
    )
    canvases = rule.canvases if graph.dynamic else (rule.input_size,)
    sizes = " or ".join(f"{high} x {wide}" for high, wide in canvases)
    fits = f"to {sizes} (height x width); an image that does not fit is made smaller until it does"
    pad = f"to multiples of {rule.pad_divisor}" if graph.dynamic and not rule.canvases else fits
    steps = ["Decode the image to 8-bit BGR, as OpenCV does.", f"Resize it (bilinear) to {resize}."]
    if graph.input == "uint8":
        steps.append(f"Pad right and bottom {pad}, with anything. Send `image` as uint8, batch x height x width x 3.")
    else:
        means, deviations = ([f"{value:g}" for value in values] for values in (rule.mean, rule.std))
        steps += [
            f"Put its channels in the order {rule.channel_order.upper()}, subtract {', '.join(means)} and divide by "
            f"{', '.join(deviations)}.",
            f"Pad right and bottom {pad}, with {rule.pad_value:g}.",
            "Send `image` as float32, batch x 3 x height x width.",
        ]
    if least > 1:
        steps.append(f"Send {least} images; where there are fewer, the last one fills up.")
    if IMAGE_SHAPE in inputs:
        steps.append(
            f"Send `{IMAGE_SHAPE}` too: (height, width) of each image after resizing, before padding, float32."
        )
    return steps


def _after(manifest: Manifest) -> list[str]:
    rule = manifest.postprocessing
    back = (
        "Divide the boxes (x1, y1, x2, y2) by the factors of the resizing, in x and in y. `labels` are lines of "
        "labels.txt, from 0."
    )
    if manifest.graph.nms == "graph":
        return ["Leave out detections of score 0: they fill up a fixed number.", back]
    classes = "of all classes together" if rule.nms_class_agnostic else "of each class"
    clip = ["Clip the boxes to the image before padding."] if rule.clip_boxes else []
    return [
        f"Keep candidates whose `{rule.threshold_on}` is above {rule.score_threshold:g}.",
        *clip,
        back,
        f"Remove overlaps {classes} greedily, best `scores` first (NMS, IoU above {rule.nms_iou_threshold:g}).",
        f"Keep the best {rule.max_per_image}.",
    ]


def _client(name: str, manifest: Manifest, inputs: Sequence[str], least: int) -> str:
    threshold = manifest.postprocessing.threshold_on
    image = "UINT8" if manifest.graph.input == "uint8" else "FP32"
    if manifest.graph.nms == "graph":
        select = "placed_detections"
        found = "found = placed_detections(boxes, scores, labels, prepared, manifest.postprocessing)"
    else:
        select = "select_detections"
        found = (
            f'threshold_on = result.as_numpy("{threshold}")[0]\n'
            "found = select_detections(boxes, scores, labels, prepared, manifest.postprocessing, threshold_on)"
        )
    return _CLIENT.format(
        name=name,
        key=MANIFEST_KEY,
        select=select,
        found=found,
        fill=_FILL.format(least=least) if least > 1 else "",
        inputs=repr(tuple(inputs)),
        types=repr({one: image if one == "image" else "FP32" for one in inputs}),
    )
