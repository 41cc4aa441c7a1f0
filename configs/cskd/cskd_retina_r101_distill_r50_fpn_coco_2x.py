# RetinaNet R101 -> R50 on COCO as published (docs/algorithm.md 8.2, 8.3).
_base_ = ["../student/retinanet_r50_fpn_ms_2x_coco.py"]
distill = dict(
    teacher=dict(
        config="mmdet::retinanet/retinanet_r101_fpn_2x_coco.py",
        checkpoint="https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/"
        "retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth",
    ),
    pyramid=dict(full=(1, 2), roi=(1, 2), foreground=(1, 2), background=(1, 2)),  # (guided MSE, cosine)
    tower=dict(cls=(5, 2), reg=(5, 2)),
    prediction=(1, 2),
    assistant=True,
)
