"""Detection without cskd-deploy: `python detect.py student.onnx image.jpg`.

The model is a file of `cskd-deploy export --nms graph`. Needs onnxruntime, numpy, and opencv to read the image. What
the model expects stands in its metadata. Prints a line of JSON for each detection, best first: class, score, and
x1, y1, x2, y2 in pixels of the image.
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["cskd_manifest"])
if (about["graph"]["input"], about["graph"]["nms"]) != ("uint8", "graph"):
    sys.exit("export the model with `--input uint8 --nms graph`: this example leaves both to the graph")
image, rule = cv2.imread(sys.argv[2]), about["preprocessing"]
(height, width), (long, short), divisor = image.shape[:2], rule["scale"], rule["pad_divisor"]
# As large as `scale` allows, in the upper left corner of the canvas. A graph that takes every size wants the next
# multiples of the divisor; else the image is no larger than the canvas, of several that on which it is largest.
factor = min(max(long, short) / max(height, width), min(long, short) / min(height, width))
canvases = rule["canvases"] or [rule["input_size"]]
if about["graph"]["dynamic"] and not rule["canvases"]:
    canvases = [[-(-int(side * factor + 0.5) // divisor) * divisor for side in (height, width)]]
rows, columns = max(canvases, key=lambda one: min(factor, one[0] / height, one[1] / width))
if int(height * factor + 0.5) > rows or int(width * factor + 0.5) > columns:
    factor = min(rows / height, columns / width)
h, w = (int(height * factor + 0.5), int(width * factor + 0.5)) if rule["keep_ratio"] else (short, long)
canvas = np.zeros((1, rows, columns, 3), np.uint8)
canvas[0, :h, :w] = cv2.resize(image, (w, h))
feed = {"image": canvas, "image_shape": np.array([[h, w]], np.float32)}
for box, score, label in zip(*(values[0] for values in session.run(["boxes", "scores", "labels"], feed)), strict=True):
    if score > 0:  # empty detections fill up a fixed number
        box = box / np.array([w / width, h / height] * 2, np.float32)
        print(json.dumps([about["classes"][label], float(score), box.tolist()]))
