"""Which graph exports which student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from cskd_deploy.graph.base import CandidateGraph
from cskd_deploy.graph.retinanet import RetinaNetGraph
from cskd_deploy.mmdet_config import candidates_per_level, family_of

_GRAPHS = {"retinanet": RetinaNetGraph}


def build_graph(student: nn.Module, config: Mapping[str, Any], input_size: tuple[int, int]) -> CandidateGraph:
    """The exportable graph of a student built from `config`.

    Raises:
        DeployError: the model is of a family that cannot be exported.
    """
    return _GRAPHS[family_of(config)](student, input_size, candidates_per_level(config)).eval()
