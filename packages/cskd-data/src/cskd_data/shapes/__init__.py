"""A generated detection set: figures of six classes over clutter."""

from cskd_data.shapes.files import ShapesSet, generate
from cskd_data.shapes.scene import CLASSES

__all__ = ["CLASSES", "ShapesSet", "generate"]
