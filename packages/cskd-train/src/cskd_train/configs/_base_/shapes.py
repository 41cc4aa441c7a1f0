# The set that `cskd-train data shapes` draws.
_base_ = ["dataset.py"]
data_root = "data/shapes"
classes = ("circle", "ring", "square", "triangle", "star", "cross")
image_scale = (128, 128)
