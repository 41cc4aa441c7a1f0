# Faster R-CNN R101 -> R50 on COCO as published (docs/algorithm.md 6, 8.2, 8.3).
_base_ = ["../student/faster_rcnn_r50_fpn_ms_2x_coco.py"]
distill = dict(
    teacher=dict(
        config="mmdet::faster_rcnn/faster_rcnn_r101_fpn_2x_coco.py",
        checkpoint="https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r101_fpn_2x_coco/"
        "faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth",
    ),
    pyramid=dict(full=(1, 0.5), roi=(1, 0.5), foreground=(1, 0.5), background=(1, 0.5)),  # (guided MSE, cosine)
    tower=dict(rpn=(1, 0.5)),
    prediction=(1, 0.5),
    roi=dict(features_student=(1, 0.5), features_teacher=(1, 0.5), fc=(1, 1), prediction=(1, 1)),
    assistant=True,
)
