# Losses are logged every so many steps: to log.jsonl, to TensorBoard and on the screen.
log_config = dict(interval=10)
