# RetinaNet R50 -> R18 on COCO as published (docs/algorithm.md 8.2, 8.3). Corrected: the detector type, which is not
# registered (8.5); the teacher's config is that of its checkpoint, not the model alone.
_base_ = ["../student/retinanet_r18_fpn_ms_1x_coco.py"]
distill = dict(
    teacher=dict(
        config="mmdet::retinanet/retinanet_r50_fpn_2x_coco.py",
        checkpoint="https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r50_fpn_2x_coco/"
        "retinanet_r50_fpn_2x_coco_20200131-fdb43119.pth",
    ),
    pyramid=dict(full=(1, 0.5), roi=(1, 0.5), foreground=(1, 0.5), background=(1, 0.5)),  # (guided MSE, cosine)
    tower=dict(cls=(1, 0.5), reg=(1, 0.5)),
    prediction=(1, 0.5),
    assistant=True,
)
