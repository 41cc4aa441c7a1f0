# GFL ResNet-50, multi-scale, 2x: the student alone, the honest baseline of the distilled recipe.
_base_ = [
    "../_base_/gfl_r50.py",
    "../_base_/coco_multiscale_480.py",
    "../_base_/schedule_2x.py",
    "../_base_/runtime.py",
]
