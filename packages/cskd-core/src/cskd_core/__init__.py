"""Cosine-similarity-guided knowledge distillation (CSKD) for object detectors, in plain PyTorch."""
