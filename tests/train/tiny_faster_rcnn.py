# A Faster R-CNN as small, with samplers that leave most of what they choose from out, at random.
_base_ = ["../../configs/_base_/faster_rcnn_r18.py", "tiny_shapes.py"]
model = dict(
    backbone=dict(base_channels=8, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=6),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=24)),
        rpn_proposal=dict(nms_pre=80, max_per_img=40),
        rcnn=dict(sampler=dict(num=12)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=40, max_per_img=20), rcnn=dict(score_thr=0.01, nms=dict(iou_threshold=0.6))),
)
