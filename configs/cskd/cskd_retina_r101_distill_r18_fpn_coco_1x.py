# RetinaNet R101 -> R18 on COCO as published (docs/algorithm.md 8.2, 8.3). Corrected: the detector type, which is not
# registered, and 12 epochs, as its name says; the published file stops after 11, without the second decay (8.5).
_base_ = ["../student/retinanet_r18_fpn_ms_1x_coco.py"]
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
