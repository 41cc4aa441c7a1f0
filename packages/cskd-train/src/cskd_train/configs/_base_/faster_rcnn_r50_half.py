# Faster R-CNN with a ResNet-50 backbone, all of half width, from scratch: for a processor.
_base_ = ["faster_rcnn_r50.py"]
model = dict(
    backbone=dict(base_channels=32, init_cfg=None, norm_eval=False),  # from scratch: BatchNorm learns
    neck=dict(in_channels=[128, 256, 512, 1024], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(bbox_roi_extractor=dict(out_channels=64), bbox_head=dict(in_channels=64, fc_out_channels=256)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=250), rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(nms_pre=250, max_per_img=250)),
)
