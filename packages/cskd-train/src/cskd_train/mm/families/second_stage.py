"""What mmdet's second stage makes of a batch: sampled RoIs, their features, the box head's layers and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cskd_core.family import Batch, Observation
from cskd_core.taps import Taps


def sample(teacher: Any, proposal_cfg: Any, observation: Observation, batch: Batch) -> list[Any]:
    """The teacher's proposals, assigned and sampled by its own rules: one mmdet sampling result an image.

    How many proposals there are is the student's setting, as published.
    """
    proposals = teacher.rpn_head.get_bboxes(
        observation.predictions["cls"], observation.predictions["reg"], img_metas=batch.details, cfg=proposal_cfg
    )
    assert batch.labels is not None
    head = teacher.roi_head
    samples = []
    for image, (found, boxes, labels) in enumerate(zip(proposals, batch.boxes, batch.labels, strict=True)):
        assigned = head.bbox_assigner.assign(found, boxes, None, labels)
        features = [level[image][None] for level in observation.pyramid]
        samples.append(head.bbox_sampler.sample(assigned, found, boxes, labels, feats=features))
    return samples


def roi_features(detector: Any, pyramid: Sequence[Tensor], rois: Tensor) -> Tensor:
    extractor = detector.roi_head.bbox_roi_extractor
    features: Tensor = extractor(pyramid[: extractor.num_inputs], rois)
    return features


def box_head(detector: Any, pyramid: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """RoI features (n, C, h, w), outputs (n, d) of the fully connected layers after their activation, predictions."""
    head = detector.roi_head.bbox_head
    features = roi_features(detector, pyramid, rois)
    count = len(head.shared_fcs)
    followers = [f"shared_fcs.{layer}@inputs" for layer in range(1, count)] + ["fc_cls@inputs"]
    with Taps(head, {str(layer): path for layer, path in enumerate(followers)}).recording() as recording:
        logits, deltas = head(features)
    layers = [recording.last(str(layer))[0] for layer in range(count)]
    return features, layers, {"cls": logits, "reg": deltas}
