"""From a checkpoint to a verified ONNX file."""

from cskd_deploy.exporter.mmdet_config import EXPORTABLE

__all__ = ["EXPORTABLE"]
