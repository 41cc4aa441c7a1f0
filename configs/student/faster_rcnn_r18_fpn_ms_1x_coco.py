# Faster R-CNN ResNet-18, multi-scale, 1x: the student alone, the honest baseline of the distilled recipe.
_base_ = [
    "../_base_/faster_rcnn_r18.py",
    "../_base_/coco_multiscale.py",
    "../_base_/schedule_1x.py",
    "../_base_/runtime.py",
]
optimizer = dict(lr=0.02)
lr_config = dict(warmup_ratio=0.001)
