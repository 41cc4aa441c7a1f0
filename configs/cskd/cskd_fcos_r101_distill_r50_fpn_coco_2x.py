# FCOS R101 -> R50 on COCO as published (docs/algorithm.md 8.2, 8.3).
# The teacher is to be trained first: nobody publishes its weights.
_base_ = ["../student/fcos_r50_fpn_ms_2x_coco.py"]
distill = dict(
    teacher=dict(
        config="configs/teacher/fcos_r101_caffe_fpn_gn-head_ms_2x_coco.py",
        checkpoint="work_dirs/fcos_r101_caffe_fpn_gn-head_ms_2x_coco/best.pth",
    ),
    pyramid=dict(full=(1, 0.5), roi=(1, 0.5), foreground=(1, 0.5), background=(1, 0.5)),  # (guided MSE, cosine)
    tower=dict(cls=(1, 0.5), reg=(1, 0.5)),
    prediction=(1, 0.5),
    assistant=True,
)
