# For training without pretrained weights: under SGD, a deep detector that starts from nothing stays behind a shallow
# one for a long time.
optimizer = dict(type="AdamW", lr=0.0005, weight_decay=0.05)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
