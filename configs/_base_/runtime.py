# What stock mmdet tools expect beside model, data and schedule.
checkpoint_config = dict(interval=1)
log_config = dict(interval=10, hooks=[dict(type="TextLoggerHook")])
log_level = "INFO"
load_from = None
resume_from = None
workflow = [("train", 1)]
