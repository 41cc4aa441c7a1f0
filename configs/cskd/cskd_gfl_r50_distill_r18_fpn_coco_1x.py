# GFL R50 -> R18 on COCO as published (docs/algorithm.md 8.2, 8.3). Corrected: the teacher's config is the one that its
# checkpoint was trained with; the published file names the 1x config, which has the same model.
_base_ = ["../student/gfl_r18_fpn_ms_1x_coco.py"]
distill = dict(
    teacher=dict(
        config="mmdet::gfl/gfl_r50_fpn_mstrain_2x_coco.py",
        checkpoint="https://download.openmmlab.com/mmdetection/v2.0/gfl/gfl_r50_fpn_mstrain_2x_coco/"
        "gfl_r50_fpn_mstrain_2x_coco_20200629_213802-37bb1edc.pth",
    ),
    pyramid=dict(full=(1, 0.5), roi=(1, 0.5), foreground=(1, 0.5), background=(1, 0.5)),  # (guided MSE, cosine)
    tower=dict(cls=(1, 0.5), reg=(1, 0.5)),
    prediction=(1, 0.5),
    assistant=True,
)
