# FCOS R50 -> R18 on COCO as published (docs/algorithm.md 8.2, 8.3). Corrected: student and teacher each take images
# normalised for their backbone (8.4).
# The teacher is to be trained first: nobody publishes its weights.
_base_ = ["../student/fcos_r18_fpn_ms_1x_coco.py"]
distill = dict(
    teacher=dict(
        config="configs/teacher/fcos_r50_caffe_fpn_gn-head_ms_2x_coco.py",
        checkpoint="work_dirs/fcos_r50_caffe_fpn_gn-head_ms_2x_coco/best.pth",
    ),
    pyramid=dict(full=(1, 0.5), roi=(1, 0.5), foreground=(1, 0.5), background=(1, 0.5)),  # (guided MSE, cosine)
    tower=dict(cls=(1, 0.5), reg=(1, 0.5)),
    prediction=(1, 0.5),
    assistant=True,
)
