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
(height, width), (input_height, input_width), (long, short) = image.shape[:2], rule["input_size"], rule["scale"]
# As large as `scale` allows and no larger than the graph's input, in its upper left corner.
factor = min(max(long, short) / max(height, width), min(long, short) / min(height, width))
factor = min(factor, input_height / height, input_width / width)
h, w = (int(height * factor + 0.5), int(width * factor + 0.5)) if rule["keep_ratio"] else (short, long)
canvas = np.zeros((1, input_height, input_width, 3), np.uint8)
canvas[0, :h, :w] = cv2.resize(image, (w, h))
feed = {"image": canvas, "image_shape": np.array([[h, w]], np.float32)}
for box, score, label in zip(*(values[0] for values in session.run(["boxes", "scores", "labels"], feed)), strict=True):
    if score > 0:  # empty detections fill up a fixed number
        box = box / np.array([w / width, h / height] * 2, np.float32)
        print(json.dumps([about["classes"][label], float(score), box.tolist()]))
