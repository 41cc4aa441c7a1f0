# FCOS R101 -> R18 on COCO as published (docs/algorithm.md 8.2, 8.3). Corrected: student and teacher each take images
# normalised for their backbone (8.4). The published file cannot be built (8.5): its weights are read as pairs, like
# those of every other recipe, (2, 2) for the pyramid terms and (2, 5) for both towers; it leaves the prediction's to
# the default, which reads as (1, 2) for each map (8.3). No result was published for it.
# The teacher is to be trained first: nobody publishes its weights.
_base_ = ["../student/fcos_r18_fpn_ms_1x_coco.py"]
distill = dict(
    teacher=dict(
        config="configs/teacher/fcos_r101_caffe_fpn_gn-head_ms_2x_coco.py",
        checkpoint="work_dirs/fcos_r101_caffe_fpn_gn-head_ms_2x_coco/best.pth",
    ),
    pyramid=dict(full=(2, 2), roi=(2, 2), foreground=(2, 2), background=(2, 2)),  # (guided MSE, cosine)
    tower=dict(cls=(2, 5), reg=(2, 5)),
    prediction=(1, 2),
    assistant=True,
)
