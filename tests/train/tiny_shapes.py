# Data and schedule of the tiny configs, on the `shapes_root` fixture: --set data_root=ROOT.
data_root = "shapes"
classes = ("circle", "ring", "square", "triangle", "star", "cross")
normalize = dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", img_scale=(128, 128), keep_ratio=True),
    dict(type="RandomFlip", flip_ratio=0.5),
    normalize,
    dict(type="Pad", size_divisor=32),
    dict(type="DefaultFormatBundle"),
    dict(type="Collect", keys=["img", "gt_bboxes", "gt_labels"]),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="MultiScaleFlipAug",
        img_scale=(128, 128),
        flip=False,
        transforms=[
            dict(type="Resize", keep_ratio=True),
            normalize,
            dict(type="Pad", size_divisor=32),
            dict(type="ImageToTensor", keys=["img"]),
            dict(type="Collect", keys=["img"], meta_keys=("filename", "ori_shape", "img_shape", "scale_factor")),
        ],
    ),
]
split = dict(type="CocoDataset", data_root=data_root, classes=classes, img_prefix="images/")
data = dict(
    samples_per_gpu=4,
    workers_per_gpu=0,
    train=dict(**split, ann_file="annotations/train.json", pipeline=train_pipeline),
    val=dict(**split, ann_file="annotations/val.json", pipeline=test_pipeline),
    test=dict(**split, ann_file="annotations/val.json", pipeline=test_pipeline),
)
optimizer = dict(type="AdamW", lr=0.001, weight_decay=0.05)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(policy="step", warmup="linear", warmup_iters=2, warmup_ratio=0.1, step=[2])
runner = dict(type="EpochBasedRunner", max_epochs=2)
log_config = dict(interval=1)
