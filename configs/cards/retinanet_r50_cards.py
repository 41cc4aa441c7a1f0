# The teacher: RetinaNet R50 on photographs of cards, from scratch and of half width, for a processor.
_base_ = ["../_base_/retinanet_r50_half.py", "../_base_/cards.py", "../_base_/adamw.py", "../_base_/runtime.py"]
model = dict(bbox_head=dict(num_classes=6))
lr_config = dict(policy="step", warmup="linear", warmup_iters=50, warmup_ratio=0.1, step=[36, 44])
runner = dict(type="EpochBasedRunner", max_epochs=48)
