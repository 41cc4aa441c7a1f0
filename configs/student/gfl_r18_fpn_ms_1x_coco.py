# GFL ResNet-18, multi-scale, 1x: the student alone, the honest baseline of the distilled recipe.
_base_ = [
    "../_base_/gfl_r18.py",
    "../_base_/coco_multiscale_480.py",
    "../_base_/schedule_1x.py",
    "../_base_/runtime.py",
]
