"""Detection with an exported file and without cskd-deploy: `python detect.py student.onnx image.jpg`.

Needs onnxruntime, numpy, and opencv to read the image. What the model expects stands in its metadata. Prints a line of
JSON for each detection, best first: class, score, and x1, y1, x2, y2 in pixels of the image.
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["cskd_manifest"])
before, after = about["preprocessing"], about["postprocessing"]

# Resize: as large as `scale` allows, and no larger than the graph's input; then pad right and bottom.
image = cv2.imread(sys.argv[2])
(height, width), (input_height, input_width), (long, short) = image.shape[:2], before["input_size"], before["scale"]
factor = min(max(long, short) / max(height, width), min(long, short) / min(height, width))
factor = min(factor, input_height / height, input_width / width)
h, w = (int(height * factor + 0.5), int(width * factor + 0.5)) if before["keep_ratio"] else (short, long)
pixels = cv2.resize(image, (w, h))
if about["graph"]["input"] == "uint8":  # the graph normalises
    canvas = np.zeros((1, input_height, input_width, 3), np.uint8)
    canvas[0, :h, :w] = pixels
else:
    canvas = np.full((1, 3, input_height, input_width), before["pad_value"], np.float32)
    ordered = pixels[..., ::-1] if before["channel_order"] == "rgb" else pixels
    canvas[0, :, :h, :w] = ((ordered - np.float64(before["mean"])) / np.float64(before["std"])).transpose(2, 0, 1)

feed = {"image": canvas, "image_shape": np.array([[h, w]], np.float32)}
names = [output.name for output in session.get_outputs()]
values = session.run(names, {value.name: feed[value.name] for value in session.get_inputs()})
outputs = {name: value[0] for name, value in zip(names, values, strict=True)}

# Score threshold, boxes back to the image, and NMS within each class. (Of a graph with NMS this removes nothing more.)
judged = outputs.get(after["threshold_on"], outputs["scores"])
kept = (judged > after["score_threshold"]) & (outputs["scores"] > 0)
boxes, scores, labels = outputs["boxes"][kept], outputs["scores"][kept], outputs["labels"][kept]
if after["clip_boxes"]:
    boxes = boxes.clip(0, [w, h, w, h])
boxes = boxes / np.array([w / width, h / height] * 2, np.float32)
areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
remaining, found = np.argsort(-scores, kind="stable"), 0
while len(remaining) and found < after["max_per_image"]:
    best, remaining = remaining[0], remaining[1:]
    found += 1
    print(json.dumps([about["classes"][labels[best]], float(scores[best]), boxes[best].tolist()]))
    low, high = np.maximum(boxes[best, :2], boxes[remaining, :2]), np.minimum(boxes[best, 2:], boxes[remaining, 2:])
    shared = (high - low).clip(0).prod(axis=1)
    overlapping = shared > after["nms_iou_threshold"] * (areas[best] + areas[remaining] - shared)
    remaining = remaining[~(overlapping & ((labels[remaining] == labels[best]) | after["nms_class_agnostic"]))]
