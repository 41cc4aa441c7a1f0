# The FCOS ResNet-50 teacher, whose weights nobody publishes, trained as the authors of CSKD trained theirs: 4 images a
# GPU, no gradient clipping (docs/algorithm.md 8.2, 8.4). The learning rate is taken as that of 16 images a step.
_base_ = [
    "../_base_/fcos_r50.py",
    "../_base_/coco_multiscale_caffe.py",
    "../_base_/schedule_2x.py",
    "../_base_/runtime.py",
]
model = dict(backbone=dict(frozen_stages=1))
data = dict(samples_per_gpu=4)
optimizer = dict(paramwise_cfg=dict(bias_lr_mult=2.0, bias_decay_mult=0.0))
optimizer_config = dict(grad_clip=None)
