# The FCOS ResNet-101 teacher: as the ResNet-50 one (docs/algorithm.md 8.2, 8.4).
_base_ = ["fcos_r50_caffe_fpn_gn-head_ms_2x_coco.py"]
model = dict(
    backbone=dict(depth=101, init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://detectron/resnet101_caffe")),
)
