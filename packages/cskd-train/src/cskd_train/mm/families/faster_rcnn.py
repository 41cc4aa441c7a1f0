"""Faster R-CNN: pyramid and proposal network, then RoI features, layers and predictions (docs/algorithm.md 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.core import bbox2roi
from torch import Tensor

from cskd_core.assistant import Assistant, PredictorSpec
from cskd_core.errors import ShapeError
from cskd_core.family import Batch, Observation, PredictionRule, PyramidSpec, SecondStage, TowerSpec
from cskd_core.plan import AssistantPlan, DistillPlan
from cskd_core.regions import Regions
from cskd_core.roi_terms import RoiObservation, RoiSpec
from cskd_core.similarity import at_least_float32
from cskd_core.taps import Recording, Taps, submodule
from cskd_train.errors import TrainError
from cskd_train.mm.families.base import DetectorFamily, strides_of
from cskd_train.mm.families.dense import by_prior


@dataclass(frozen=True)
class _RoiTargets:
    """What mmdet's box head makes of the teacher's RoIs: class (n,) and box weights (n, 4) of each."""

    labels: Tensor
    box_weights: Tensor


class _BoxHead(SecondStage):
    """RoI features, fully connected layers and predictions of one shared box head."""

    def spec(self, student: Any, teacher: Any) -> RoiSpec:
        heads = student.roi_head.bbox_head, teacher.roi_head.bbox_head
        depths = [len(head.shared_fcs) for head in heads]
        if depths[0] != depths[1]:
            raise ShapeError(
                f"the box head has {depths[0]} fully connected layers in the student and {depths[1]} in the teacher: "
                "they are compared one by one. Leave the second stage out with roi=None"
            )
        layers = zip(*(head.shared_fcs for head in heads), strict=True)
        return RoiSpec(
            channels=(heads[0].in_channels, heads[1].in_channels),
            fc=[(layer.out_features, of_teacher.out_features) for layer, of_teacher in layers],
            predictions={
                "cls": (heads[0].fc_cls.out_features, heads[1].fc_cls.out_features),
                "reg": (heads[0].fc_reg.out_features, heads[1].fc_reg.out_features),
            },
        )

    def observe(
        self,
        student: Any,
        teacher: Any,
        recording: Recording,
        observations: tuple[Observation, Observation],
        batch: Batch,
    ) -> RoiObservation:
        """The student's RoIs are those of its own training forward; the teacher's are sampled here.

        Source: docs/algorithm.md 6.1, steps 4 to 8.
        """
        of_student, of_teacher = observations
        _, student_rois = recording.last("rois")
        with torch.no_grad():
            proposal_cfg = student.train_cfg.get("rpn_proposal", student.test_cfg.rpn)  # as in mmdet's own training
            samples = sample(teacher, proposal_cfg, of_teacher, batch)
            rois = bbox2roi([sampled.bboxes for sampled in samples])
            labels, _, _, weights = student.roi_head.bbox_head.get_targets(
                samples, batch.boxes, batch.labels, student.roi_head.train_cfg
            )
            target_features, target_layers, target_predictions = box_head(teacher, of_teacher.pyramid, rois)
            teacher_at_student = roi_features(teacher, of_teacher.pyramid, student_rois)
        features, layers, predictions = box_head(student, of_student.pyramid, rois)
        return RoiObservation(
            at_student=(at_least_float32(recording.last("roi_features")), teacher_at_student),
            at_teacher=(features, target_features),
            fc=list(zip(layers, target_layers, strict=True)),
            predictions={name: (value, target_predictions[name]) for name, value in predictions.items()},
            targets=_RoiTargets(labels, weights),
        )

    def assistant_losses(self, assisted: Mapping[str, Tensor], rois: RoiObservation) -> dict[str, Tensor]:
        """Cross entropy against the teacher's class scores, L1 against its deltas at positive RoIs of their true class.

        Source: docs/algorithm.md 6.3.
        """
        if not assisted:
            return {}
        targets: _RoiTargets = rois.targets
        count = len(targets.labels)
        if not count:  # empty sums, zeros that keep every predictor in the graph
            return {"assistant_roi_cls": assisted["cls"].sum(), "assistant_roi_reg": assisted["reg"].sum()}
        scores, deltas = rois.predictions["cls"][1].sigmoid(), rois.predictions["reg"][1]
        positive = (targets.box_weights > 0).any(1)
        of_class = targets.labels[positive]
        distance = (assisted["reg"] - deltas).abs().reshape(count, -1, 4)[positive]
        if distance.shape[1] == 1:  # one box for all classes
            of_class = torch.zeros_like(of_class)
        chosen = distance[torch.arange(len(of_class), device=of_class.device), of_class]
        return {
            "assistant_roi_cls": F.binary_cross_entropy_with_logits(assisted["cls"], scores),
            "assistant_roi_reg": (chosen * targets.box_weights[positive]).sum() / count,
        }


class FasterRCNNFamily(DetectorFamily):
    """A stock mmdet Faster R-CNN with a shared fully connected box head."""

    detectors = ("FasterRCNN",)
    heads = {  # noqa: RUF012
        "rpn_head": ("RPNHead",),
        "roi_head": ("StandardRoIHead", "DynamicRoIHead"),
        "roi_head.bbox_head": ("Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead"),
    }
    classifier = "roi_head.bbox_head.fc_cls"
    exported = {"FasterRCNN": ("Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead")}  # noqa: RUF012
    prediction_rules = {  # noqa: RUF012
        "cls": PredictionRule("sigmoid", "mean"),
        "reg": PredictionRule("identity", "foreground"),
    }
    tower_adapter = True
    level_reduce = "mean"
    second_stage = _BoxHead()
    has_assistant = True

    def check_pair(self, student: Any, teacher: Any, plan: DistillPlan) -> list[str]:
        if plan.roi and getattr(teacher.roi_head, "bbox_sampler", None) is None:
            raise TrainError(
                "the teacher's config has no model.train_cfg.rcnn: its RoIs are sampled as it was trained, so give its "
                "training config"
            )
        return super().check_pair(student, teacher, plan)

    def pyramid(self, detector: Any) -> PyramidSpec:
        return PyramidSpec(detector.neck.out_channels, strides_of(detector.rpn_head))

    def towers(self, detector: Any) -> dict[str, TowerSpec]:
        return {"rpn": TowerSpec(detector.rpn_head.feat_channels, stages=1)}

    def prediction_channels(self, detector: Any) -> dict[str, int]:
        layers: dict[str, Any] = {name: submodule(detector, f"rpn_head.rpn_{name}") for name in ("cls", "reg")}
        return {name: layer.out_channels for name, layer in layers.items()}

    def taps(self, detector: Any) -> dict[str, str]:
        return {
            "pyramid": "neck",
            "rpn": "rpn_head.rpn_cls@inputs",  # the RPN's feature after its activation, once a level
            "proposals": "rpn_head",
            "targets": "rpn_head.get_targets()",
            "rois": "roi_head.bbox_roi_extractor@inputs",
            "roi_features": "roi_head.bbox_roi_extractor",
        }

    def infer(self, detector: Any, images: Tensor) -> None:
        detector.rpn_head(detector.extract_feat(images))

    def read(self, detector: Any, recording: Recording) -> Observation:
        logits, deltas = recording.last("proposals")
        return Observation(
            pyramid=recording.last("pyramid"),
            towers={"rpn": [[feature for (feature,) in recording.calls("rpn")]]},
            predictions={"cls": logits, "reg": deltas},
            targets=recording.last("targets") if recording.ran("targets") else None,
        )

    def assistant(self, detector: Any) -> Assistant:
        channels = detector.rpn_head.feat_channels
        return Assistant(
            {
                name: PredictorSpec("rpn", channels, outputs, kernel=1)
                for name, outputs in self.prediction_channels(detector).items()
            }
        )

    def assistant_losses(
        self,
        assisted: Mapping[str, Sequence[Tensor]],
        student: Observation,
        teacher: Observation,
        regions: Regions,
        plan: AssistantPlan,
    ) -> dict[str, Tensor]:
        """Cross entropy against the teacher's objectness at sampled anchors, L1 against its deltas at positive ones.

        Source: docs/algorithm.md 6.2.
        """
        _, label_weights, _, box_weights, positive, negative = student.targets
        logits, scores = (by_prior(side["cls"], 1).squeeze(2) for side in (assisted, teacher.predictions))
        entropy = F.binary_cross_entropy_with_logits(logits, scores.sigmoid(), reduction="none")
        deltas, target = (by_prior(side["reg"], 4) for side in (assisted, teacher.predictions))
        sampled = positive + negative
        return {
            "assistant_cls": (entropy * torch.cat(label_weights, 1)).sum() / sampled,
            "assistant_reg": ((deltas - target).abs() * torch.cat(box_weights, 1)).sum() / sampled,
        }


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
