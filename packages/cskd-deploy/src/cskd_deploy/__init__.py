"""Deployment of distilled detectors: export, benchmark, evaluation."""

__version__ = "0.1.0"
