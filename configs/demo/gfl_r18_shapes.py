# The student alone: GFL R18 on shapes, from scratch and of half width, for a processor.
_base_ = ["../_base_/gfl_r18_half.py", "../_base_/shapes.py", "../_base_/adamw.py", "../_base_/runtime.py"]
model = dict(
    bbox_head=dict(num_classes=6, anchor_generator=dict(octave_base_scale=4)),  # figures start at 16 pixels
)
lr_config = dict(policy="step", warmup="linear", warmup_iters=50, warmup_ratio=0.1, step=[6, 7])
runner = dict(type="EpochBasedRunner", max_epochs=8)
