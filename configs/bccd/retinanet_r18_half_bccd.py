# The student alone: RetinaNet R18 on BCCD, from scratch and of half width, for a processor.
_base_ = ["../_base_/retinanet_r18_half.py", "../_base_/bccd.py", "../_base_/adamw.py", "../_base_/runtime.py"]
model = dict(bbox_head=dict(num_classes=3))
lr_config = dict(policy="step", warmup="linear", warmup_iters=50, warmup_ratio=0.1, step=[27, 33])
runner = dict(type="EpochBasedRunner", max_epochs=36)
