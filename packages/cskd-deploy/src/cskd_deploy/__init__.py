"""Deployment of distilled detectors: export, benchmark, evaluation."""

__version__ = "0.2.0"
