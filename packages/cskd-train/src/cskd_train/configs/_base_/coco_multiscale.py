# COCO 2017, short side drawn from 640-800 in training, 800 in testing (docs/algorithm.md 8.1, 8.2).
_base_ = ["pipelines.py"]
dataset_type = "CocoDataset"
data_root = "data/coco/"
train_resize = dict(img_scale=[(1333, 640), (1333, 800)], multiscale_mode="range")
test_scale = (1333, 800)
data = dict(
    samples_per_gpu=2,
    workers_per_gpu=2,
    train=dict(
        type=dataset_type,
        data_root="${data_root}",
        ann_file="annotations/instances_train2017.json",
        img_prefix="train2017/",
        pipeline="${train_pipeline}",
    ),
    val=dict(
        type=dataset_type,
        data_root="${data_root}",
        ann_file="annotations/instances_val2017.json",
        img_prefix="val2017/",
        pipeline="${test_pipeline}",
    ),
    test=dict(
        type=dataset_type,
        data_root="${data_root}",
        ann_file="annotations/instances_val2017.json",
        img_prefix="val2017/",
        pipeline="${test_pipeline}",
    ),
)
