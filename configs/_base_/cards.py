# Photographs of playing cards, 85 % of them upright (384 x 512 pixels), at 320 x 240, for a processor. CSKD_CARDS names
# the folder that holds annotations/ and images/
import os

data_root = os.environ.get("CSKD_CARDS", "data/cards")
classes = ("nine", "ten", "jack", "queen", "king", "ace")
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
image_scale = (320, 240)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", img_scale=image_scale, keep_ratio=True),
    dict(type="RandomFlip", flip_ratio=0.5),
    dict(type="Normalize", **img_norm_cfg),
    dict(type="Pad", size_divisor=32),
    dict(type="DefaultFormatBundle"),
    dict(type="Collect", keys=["img", "gt_bboxes", "gt_labels"]),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="MultiScaleFlipAug",
        img_scale=image_scale,
        flip=False,
        transforms=[
            dict(type="Resize", keep_ratio=True),
            dict(type="RandomFlip"),
            dict(type="Normalize", **img_norm_cfg),
            dict(type="Pad", size_divisor=32),
            dict(type="ImageToTensor", keys=["img"]),
            dict(type="Collect", keys=["img"]),
        ],
    ),
]
split = dict(type="CocoDataset", data_root=data_root, classes=classes, img_prefix="images/")
data = dict(
    samples_per_gpu=4,
    workers_per_gpu=1,
    train=dict(**split, ann_file="annotations/train.json", pipeline=train_pipeline),
    val=dict(**split, ann_file="annotations/val.json", pipeline=test_pipeline),
    test=dict(**split, ann_file="annotations/val.json", pipeline=test_pipeline),
)
evaluation = dict(interval=1, metric="bbox")
