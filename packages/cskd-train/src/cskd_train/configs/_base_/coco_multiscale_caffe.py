# COCO 2017 as in coco_multiscale.py, but images as caffe backbones take them: BGR, mean subtracted, not divided
# (docs/algorithm.md 8.4).
_base_ = ["coco_multiscale.py"]
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
