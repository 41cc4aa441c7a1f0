# Faster R-CNN ResNet-50, multi-scale, 2x: the student alone, the honest baseline of the distilled recipe.
_base_ = [
    "../_base_/faster_rcnn_r50.py",
    "../_base_/coco_multiscale.py",
    "../_base_/schedule_2x.py",
    "../_base_/runtime.py",
]
optimizer = dict(lr=0.02)
lr_config = dict(warmup_ratio=0.001)
