"""Distilled training of mmdet detectors."""

__version__ = "0.1.0"
