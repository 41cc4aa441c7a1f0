"""Each graph, in PyTorch, gives the candidates that mmdet's own code gives, whatever the head's settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cskd_deploy.accuracy.agreement import match
from cskd_deploy.backends.base import OUTPUTS
from cskd_deploy.backends.torch import mmdet_candidates
from cskd_deploy.exporter.graph.candidates import CandidateGraph, best_pairs, best_priors
from cskd_deploy.exporter.graph.operators import non_max_suppression, roi_align
from cskd_deploy.exporter.graph.whole import build_graph
from cskd_deploy.exporter.student import Student, load_student

from .students import SIZE, STRIDES, student_config, write_checkpoint

CLASSES = ("a", "b", "c")
SHAPE = np.array([[100, 120]], dtype=np.float32)  # of the image, on a canvas of 128 x 128
TWO_ANCHORS = {"type": "AnchorGenerator", "scales": [8], "ratios": [0.5, 1.0], "strides": STRIDES}


def student_of(folder: Any, family: str, **head: Any) -> Student:
    """A student with settings of the head (of `bbox_head`, or of the RPN) put over the usual ones."""
    config = student_config(CLASSES, family=family, candidates=100)
    part = "rpn_head" if family == "FasterRCNN" else "bbox_head"
    for key, value in head.items():
        config["model"][part][key] = value
    return load_student(write_checkpoint(folder / "student.pth", CLASSES, config))


def image() -> torch.Tensor:
    return torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(3))


def graph_outputs(student: Student) -> dict[str, np.ndarray]:
    """Of the graph in PyTorch, boxes clipped to the image."""
    graph = build_graph(student.model, student.config)
    with torch.no_grad():
        values = graph(*(image(), torch.from_numpy(SHAPE))[: len(graph.inputs)])
    outputs = {name: value.numpy() for name, value in zip((*graph.outputs, *graph.checked), values, strict=True)}
    if student.manifest([SIZE]).postprocessing.clip_boxes:
        outputs["boxes"] = outputs["boxes"].clip(0, np.tile(SHAPE[:, ::-1], 2))
    return outputs


def rows(outputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    real = outputs["scores"][0] > 0
    boxes, scores, labels = (outputs[name][0][real] for name in OUTPUTS)
    return boxes, scores, labels


def assert_same_candidates(student: Student) -> int:
    expected = rows(mmdet_candidates(student.model, image().numpy(), SHAPE, score_threshold=0.0))
    agreement = match(expected, rows(graph_outputs(student)), score=1e-5)
    assert agreement.share == 1, agreement
    return agreement.reference


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("FCOS", {"norm_on_bbox": False}),
        ("FCOS", {"norm_on_bbox": False, "centerness_on_reg": True}),
        ("FCOS", {"centerness_on_reg": True}),
        ("FCOS", {"bbox_coder": {"type": "DistancePointBBoxCoder", "clip_border": False}}),
        ("GFL", {"reg_max": 7}),
        ("ATSS", {"pred_kernel_size": 1}),
        ("ATSS", {"anchor_generator": TWO_ANCHORS}),
        ("ATSS", {"bbox_coder": {"type": "DeltaXYWHBBoxCoder", "clip_border": False}}),
        ("RetinaNet", {"type": "FreeAnchorRetinaHead"}),
        ("RetinaNet", {"type": "PISARetinaHead"}),
        ("AutoAssign", {}),
        ("FSAF", {}),
        ("FSAF", {"bbox_coder": {"type": "TBLRBBoxCoder", "normalizer": 3.0, "clip_border": False}}),
        ("FasterRCNN", {"num_convs": 2}),
    ],
)
def test_candidates_are_those_of_mmdet_for_other_settings_of_the_head(tmp_path, family, head):
    assert assert_same_candidates(student_of(tmp_path, family, **head)) > 200


@pytest.mark.parametrize("family", ["FCOS", "ATSS"])
def test_class_scores_are_those_without_centerness(family, exported):
    student = load_student(exported(family).checkpoint)
    expected = mmdet_candidates(student.model, image().numpy(), SHAPE, score_threshold=0.0, with_factors=False)
    found = graph_outputs(student)
    assert match(rows(expected), rows({**found, "scores": found["class_scores"]}), score=1e-5).share == 1
    assert (found["scores"] < found["class_scores"]).all()


def test_proposals_are_clipped_to_the_image_before_their_overlaps_are_removed(exported):
    student = load_student(exported("FasterRCNN").checkpoint)
    graph = build_graph(student.model, student.config)
    with torch.no_grad():
        features = student.model.extract_feat(image())
        (found,), (real,) = graph._proposals(features, torch.from_numpy(SHAPE))
        (unclipped,), _ = graph._proposals(features, torch.tensor([SIZE]).float())
    meta = {"img_shape": (*SHAPE[0].tolist(), 3), "scale_factor": np.ones(4, dtype=np.float32)}
    (expected,) = student.model.rpn_head.simple_test_rpn(features, [meta])
    assert found.shape == (300, 4)
    assert real.sum() == len(expected)
    torch.testing.assert_close(found[: len(expected)], expected[:, :4].detach(), atol=1e-4, rtol=0)
    within = unclipped.clamp(min=0).minimum(torch.tensor([120.0, 100.0, 120.0, 100.0]))
    assert (within - found).abs().max() > 10  # clipping later is not the same


def test_pooled_features_are_those_of_the_extractor_on_all_levels_of_every_image(exported):
    student = load_student(exported("FasterRCNN").checkpoint)
    graph = build_graph(student.model, student.config)
    extractor = student.model.roi_head.bbox_roi_extractor
    sides = torch.tensor([10.0, 30.0, 70.0, 115.0]).repeat(10)[:, None] * torch.tensor([1.0, 1.1])
    corners = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * (torch.tensor(SIZE[::-1]) - sides)
    corners[:8] = (torch.tensor(SIZE[::-1]) - sides)[:8]  # at the edge, as clipped ones are
    proposals = torch.cat([torch.cat([corners, corners + sides], 1), torch.zeros(2, 4)])  # two that fill up
    images = torch.cat([image(), image().flip(3), torch.zeros(1, 3, *SIZE)])
    rois = torch.cat([torch.cat([torch.full((42, 1), number), proposals], 1) for number in (0.0, 1.0, 2.0)])
    assert extractor.map_roi_levels(rois, 4).unique().tolist() == [0, 1, 2, 3]
    with torch.no_grad():
        features = student.model.extract_feat(images)
        expected = extractor(features[:4], rois)
        found = graph._pooled(features, proposals.expand(3, -1, -1))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert (found[:40] - found[42:82]).abs().max() > 0.1
    assert not found[40:42].any()


def test_where_nms_leaves_few_proposals_or_none_empty_ones_fill_up(tmp_path):
    config = student_config(CLASSES, family="FasterRCNN", candidates=100)
    config["model"]["test_cfg"]["rpn"]["min_bbox_size"] = 70
    student = load_student(write_checkpoint(tmp_path / "student.pth", CLASSES, config))
    assert 0 < assert_same_candidates(student) < 100 * 3
    graph = build_graph(student.model, student.config)
    with torch.no_grad():  # no proposal is 70 pixels high
        boxes, scores, *_ = graph(image(), torch.tensor([[60.0, 128.0]]))
    assert boxes.shape == (1, 300, 4)
    assert not scores.any()
    empty = mmdet_candidates(student.model, image().numpy(), np.array([[60, 128]], dtype=np.float32))
    assert empty["boxes"].shape == (1, 0, 4)


class Operators(torch.nn.Module):
    """NMS of each image's boxes, and RoIAlign of the kept ones of the first."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: torch.Tensor, boxes: torch.Tensor, scores: torch.Tensor) -> Any:
        kept, real = non_max_suppression(boxes, scores, 0.6, 50)
        return kept, real, roi_align(features, boxes[0, kept[0]] / 8, kept[0] % 2, self.layer)


@pytest.mark.parametrize(("aligned", "ratio"), [(True, 0), (True, 2), (False, 0)])
def test_the_exported_operators_are_mmcvs(tmp_path, aligned, ratio):
    import onnxruntime
    from mmcv.ops import RoIAlign, nms

    layer = RoIAlign((7, 5), 1.0, ratio, "avg", aligned)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 6, 16, 20, generator=generator)
    corners = torch.rand(4, 200, 2, generator=generator) * 100
    boxes = torch.cat([corners, corners + torch.rand(4, 200, 2, generator=generator) * 60], 2)
    boxes[:, ::20] = 0  # empty
    scores = torch.rand(4, 200, generator=generator) - 0.1  # some below 0
    scores[1] = -1  # an image without any
    scores[2, 7:] = 0  # and one with few
    path = tmp_path / "operators.onnx"
    model = Operators(layer)
    names = ["features", "boxes", "scores"]
    axes = {"boxes": {0: "batch"}, "scores": {0: "batch"}}
    example = features, boxes[:2], scores[:2]
    options = {"input_names": names, "dynamic_axes": axes, "opset_version": 17, "dynamo": False}
    torch.onnx.export(model, example, path, **options)
    session = onnxruntime.InferenceSession(str(path))
    feed = {name: value.numpy() for name, value in zip(names, (features, boxes, scores), strict=True)}
    kept, real, pooled = (torch.from_numpy(value) for value in session.run(None, feed))

    counts = []
    for place in range(4):
        likely = (scores[place] > 0).nonzero().squeeze(1)
        expected = likely[nms(boxes[place, likely], scores[place, likely], 0.6)[1]][:50].tolist()
        counts.append(len(expected))
        assert kept[place].tolist() == expected + [0] * (50 - len(expected))
        assert real[place].tolist() == [1] * len(expected) + [0] * (50 - len(expected))
    assert counts[0] == counts[3] == 50
    assert counts[1] == 0 < counts[2] < 8
    rois = torch.cat([(kept[0] % 2).unsqueeze(1), boxes[0, kept[0]] / 8], 1)
    torch.testing.assert_close(pooled, layer(features, rois), atol=1e-5, rtol=0)


class Choice(torch.nn.Module):
    """The choice of one level alone."""

    def forward(self, logits: torch.Tensor) -> Any:
        return best_pairs(logits, 4, 50)


def sorted_pairs(logits: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs in mmdet's order of priors, the best first: logits, priors and labels."""
    pairs = logits.transpose(0, 2, 3, 1).reshape(len(logits), -1)
    order = np.argsort(-pairs, axis=1, kind="stable")
    return np.take_along_axis(pairs, order, 1), order // num_classes, order % num_classes


def distinct_logits(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    values = torch.randperm(int(np.prod(shape)), generator=torch.Generator().manual_seed(seed))
    return values.reshape(shape).float() / 100 - 5


@pytest.mark.parametrize("shape", [(1, 12, 7, 11), (2, 12, 5, 9), (3, 12, 2, 1)])
def test_the_exported_choice_of_pairs_is_that_of_sorting_all_at_any_size_and_batch(tmp_path, shape):
    import onnxruntime

    path = tmp_path / "choice.onnx"
    axes = {"logits": {0: "batch", 2: "height", 3: "width"}}
    example, options = distinct_logits((2, 12, 6, 4), 0), {"opset_version": 17, "dynamo": False}
    torch.onnx.export(Choice(), (example,), path, input_names=["logits"], dynamic_axes=axes, **options)
    session = onnxruntime.InferenceSession(str(path))
    logits = distinct_logits(shape, 1)
    count = min(50, logits[0].numel())
    found = session.run(None, {"logits": logits.numpy()})
    for one, eager, expected in zip(found, Choice()(logits), sorted_pairs(logits.numpy(), 4), strict=True):
        np.testing.assert_array_equal(one, expected[:, :count])
        np.testing.assert_array_equal(eager.numpy(), expected[:, :count])


def test_of_equal_scores_of_priors_the_first_is_taken_as_in_mmdet(tmp_path):
    import onnxruntime

    class Priors(torch.nn.Module):
        def forward(self, scores: torch.Tensor) -> Any:
            return best_priors(scores, 30)

    scores = torch.randint(0, 4, (1, 3, 5, 7), generator=torch.Generator().manual_seed(2)).float()
    path = tmp_path / "priors.onnx"
    torch.onnx.export(Priors(), (scores,), path, input_names=["scores"], opset_version=17, dynamo=False)
    best, places = onnxruntime.InferenceSession(str(path)).run(None, {"scores": scores.numpy()})
    expected, priors, _ = sorted_pairs(scores.numpy(), 1)
    np.testing.assert_array_equal(best, expected[:, :30])
    np.testing.assert_array_equal(places, priors[:, :30])


@pytest.mark.parametrize(
    "settings",
    [
        {"type": "AnchorGenerator", "strides": [(8, 4), (16, 32)], "ratios": [0.5, 2.0], "scales": [4, 6, 9]},
        {"type": "AnchorGenerator", "strides": [8, 16], "ratios": [1.0], "scales": [8], "center_offset": 0.5},
        {"type": "MlvlPointGenerator", "strides": [(8, 4), (16, 32)], "offset": 0.25},
    ],
)
def test_the_priors_of_chosen_places_are_those_of_mmdets_grid(settings):
    from mmdet.core import build_prior_generator

    generator = build_prior_generator(settings)
    graph = CandidateGraph(torch.nn.Identity(), generator)
    for level, expected in enumerate(generator.grid_priors([(3, 7), (5, 2)], device="cpu")):
        places = torch.randint(len(expected), (2, 40), generator=torch.Generator().manual_seed(level))
        assert torch.equal(graph.priors(level, places, (7, 2)[level]), expected[places])
