# The 2x schedule; learning rate for 8 GPUs with 2 images each (docs/algorithm.md 8.1, 8.2).
optimizer = dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=0.0001)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(policy="step", warmup="linear", warmup_iters=500, warmup_ratio=1.0 / 3, step=[16, 22])
runner = dict(type="EpochBasedRunner", max_epochs=24)
# A run of another number of images a step takes a learning rate in proportion, e.g. an eighth of it on one GPU (linear
# scaling: Goyal et al. 2017, https://arxiv.org/abs/1706.02677).
auto_scale_lr = dict(enable=True, base_batch_size=16)
