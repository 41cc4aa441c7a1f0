# COCO 2017 as in coco_multiscale.py, but the short side drawn from 480-800 in training (docs/algorithm.md 8.2).
_base_ = ["coco_multiscale.py"]
train_resize = dict(img_scale=[(1333, 480), (1333, 800)])
