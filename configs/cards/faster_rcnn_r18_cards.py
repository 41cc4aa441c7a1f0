# The student alone: Faster R-CNN R18 on photographs of cards, from scratch and of half width, for a processor.
_base_ = ["../_base_/faster_rcnn_r18.py", "../_base_/cards.py", "../_base_/adamw.py", "../_base_/runtime.py"]
model = dict(
    backbone=dict(base_channels=32, init_cfg=None, norm_eval=False),  # from scratch: BatchNorm learns
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=6),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=250), rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(nms_pre=250, max_per_img=250)),
)
lr_config = dict(policy="step", warmup="linear", warmup_iters=50, warmup_ratio=0.1, step=[16, 19])
runner = dict(type="EpochBasedRunner", max_epochs=20)
