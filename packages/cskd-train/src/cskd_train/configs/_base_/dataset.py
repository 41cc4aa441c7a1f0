# A data set under data_root: annotations/train.json and val.json, images in images/. A config sets data_root, classes
# and image_scale.
_base_ = ["pipelines.py"]
split = dict(type="CocoDataset", data_root="${data_root}", classes="${classes}", img_prefix="images/")
data = dict(
    samples_per_gpu=4,
    workers_per_gpu=1,
    train=dict(**split, ann_file="annotations/train.json", pipeline="${train_pipeline}"),
    val=dict(**split, ann_file="annotations/val.json", pipeline="${test_pipeline}"),
    test=dict(**split, ann_file="annotations/val.json", pipeline="${test_pipeline}"),
)
