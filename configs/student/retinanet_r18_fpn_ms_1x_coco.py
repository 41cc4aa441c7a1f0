# RetinaNet ResNet-18, multi-scale, 1x: the student alone, the honest baseline of the distilled recipes.
_base_ = [
    "../_base_/retinanet_r18.py",
    "../_base_/coco_multiscale.py",
    "../_base_/schedule_1x.py",
    "../_base_/runtime.py",
]
