"""Distilled training of mmdet detectors."""

__version__ = "0.2.0"
