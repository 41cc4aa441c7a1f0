# How an image comes in: resized, flipped in training, normalised, padded. What a config sets reaches both pipelines:
# image_scale (or test_scale and train_resize, where training draws from several scales), and img_norm_cfg.
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
normalize = dict(
    type="Normalize", mean="${img_norm_cfg.mean}", std="${img_norm_cfg.std}", to_rgb="${img_norm_cfg.to_rgb}"
)
train_resize = dict(type="Resize", img_scale="${image_scale}", keep_ratio=True)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    "${train_resize}",
    dict(type="RandomFlip", flip_ratio=0.5),
    "${normalize}",
    dict(type="Pad", size_divisor=32),
    dict(type="DefaultFormatBundle"),
    dict(type="Collect", keys=["img", "gt_bboxes", "gt_labels"]),
]
test_scale = "${image_scale}"
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="MultiScaleFlipAug",
        img_scale="${test_scale}",
        flip=False,
        transforms=[
            dict(type="Resize", keep_ratio=True),
            dict(type="RandomFlip"),
            "${normalize}",
            dict(type="Pad", size_divisor=32),
            dict(type="ImageToTensor", keys=["img"]),
            dict(type="Collect", keys=["img"]),
        ],
    ),
]
evaluation = dict(interval=1, metric="bbox")
