"""Which graph exports which student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from cskd_deploy.graph.base import CandidateGraph, DenseGraph
from cskd_deploy.graph.faster_rcnn import FasterRCNNGraph
from cskd_deploy.graph.fcos import FCOSGraph
from cskd_deploy.graph.gfl import GFLGraph
from cskd_deploy.graph.whole import WholeGraph
from cskd_deploy.manifest import Manifest
from cskd_deploy.mmdet_model import candidates_per_level, family_of, proposals_of

_DENSE: dict[str, type[DenseGraph]] = {"retinanet": DenseGraph, "fcos": FCOSGraph, "gfl": GFLGraph}


def build_whole(student: nn.Module, config: Mapping[str, Any], manifest: Manifest) -> WholeGraph:
    """The graph that `manifest` describes of a student built from `config`.

    Raises:
        DeployError: the model is of a family that cannot be exported.
    """
    rule, form = manifest.preprocessing, manifest.graph
    return WholeGraph(build_graph(student, config, rule.input_size, form.dynamic), manifest).eval()


def build_graph(
    student: nn.Module, config: Mapping[str, Any], input_size: tuple[int, int], dynamic: bool = False
) -> CandidateGraph:
    """The exportable candidates of a student built from `config`.

    Raises:
        DeployError: the model is of a family that cannot be exported.
    """
    family = family_of(config)
    if family == "faster_rcnn":
        return FasterRCNNGraph(student, input_size, proposals_of(config), dynamic).eval()
    return _DENSE[family](student, input_size, candidates_per_level(config), dynamic).eval()
