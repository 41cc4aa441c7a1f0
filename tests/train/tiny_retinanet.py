# A RetinaNet small enough to train within a test, on the `shapes_root` fixture: --set data_root=ROOT.
_base_ = ["../../configs/_base_/retinanet_r18.py", "tiny_shapes.py"]
model = dict(
    backbone=dict(base_channels=16, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
    bbox_head=dict(num_classes=6, in_channels=32, feat_channels=32, stacked_convs=2),
    test_cfg=dict(score_thr=0.001),
)
