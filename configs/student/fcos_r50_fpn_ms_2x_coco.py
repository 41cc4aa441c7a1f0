# FCOS ResNet-50, multi-scale, 2x: the student alone, the honest baseline of the distilled recipe.
# Backbone and image normalisation are caffe's, as published (docs/algorithm.md 8.4).
_base_ = [
    "../_base_/fcos_r50.py",
    "../_base_/coco_multiscale_caffe.py",
    "../_base_/schedule_2x.py",
    "../_base_/runtime.py",
]
optimizer = dict(paramwise_cfg=dict(bias_lr_mult=2.0, bias_decay_mult=0.0))
