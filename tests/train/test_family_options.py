"""What the options of single families compute, against slow formulas: assistants, RoI logits, units of FCOS heads."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from cskd_core.similarity import cosine_guided_vector_loss

from . import pairs
from .pairs import BOXES, IMAGES, LABELS, METAS, TERMS, check_gradients, moved, step


@pytest.fixture
def pair(narrow_model):
    """`pair("GFL", preset="cskd-fixed")`, see `pairs.pair`."""
    return partial(pairs.pair, narrow_model)


def assistants_arguments(model):
    """The losses of one step, and what the family was given to compute the assistant's from."""
    family, seen = model.distiller._family, []
    compute = family.assistant_losses
    family.assistant_losses = lambda *arguments: seen.append(arguments) or compute(*arguments)
    terms, _ = step(model)
    (arguments,) = seen
    return terms, arguments


def foreground(levels):
    """(B, H, W) a level: 1 where a box touches a cell, cells being stretched over the unpadded image as published."""
    masks = []
    for _, _, height, width in (level.shape for level in levels):
        mask = torch.zeros(len(BOXES), height, width)
        for image, (boxes, meta) in enumerate(zip(BOXES, METAS, strict=True)):
            rows, columns = meta["img_shape"][:2]
            for x1, y1, x2, y2 in boxes.tolist():
                left, right = int(x1 / columns * width), int(x2 / columns * width)
                top, bottom = int(y1 / rows * height), int(y2 / rows * height)
                mask[image, top : bottom + 1, left : right + 1] = 1
        masks.append(mask)
    return masks


def cross_entropy(logit, target):
    return max(logit, 0) - logit * target + math.log1p(math.exp(-abs(logit)))


def sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


def elements(levels):
    """(level, image, class, row, column) of every element of one (B, C, H, W) map a level."""
    for level, tensor in enumerate(levels):
        yield from ((level, *place) for place in torch.cartesian_prod(*map(torch.arange, tensor.shape)).tolist())


@pytest.mark.parametrize("multiplied", [False, True])
def test_fcos_learns_the_teachers_scores_times_its_centerness_if_told(pair, multiplied):
    published, _ = step(pair("FCOS"))
    model = pair("FCOS", assistant={"scores_times_centerness": multiplied})
    terms, (assisted, student, teacher, _, _) = assistants_arguments(model)
    assert moved("FCOS", published, terms) == ({"assistant_cls"} if multiplied else set())
    masks, expected = foreground(assisted["cls"]), 0.0
    for level, image, channel, row, column in elements(assisted["cls"]):
        target = sigmoid(teacher.predictions["cls"][level][image, channel, row, column].item())
        if multiplied:
            target *= sigmoid(teacher.predictions["centerness"][level][image, 0, row, column].item())
        target *= masks[level][image, row, column].item()
        logit = assisted["cls"][level][image, channel, row, column].item()
        score = sigmoid(logit)
        distance = (1 - score) * target + score * (1 - target)
        balance = 0.25 * target + 0.75 * (1 - target)
        expected += balance * distance**2 * cross_entropy(logit, target)
    positive = sum((level < 4).sum().item() for level in student.targets["labels"])  # 4 is the background
    assert positive > 1
    assert terms["assistant_cls"].item() == pytest.approx(expected / positive, rel=1e-5)


def test_gfl_learns_the_teachers_scores_in_place_of_the_hard_labels_if_told(pair):
    published, _ = step(pair("GFL"))
    model = pair("GFL", assistant={"soft_labels": True})
    terms, (assisted, student, teacher, _, _) = assistants_arguments(model)
    assert moved("GFL", published, terms) == {"assistant_cls"}
    label_weights, sampled = student.targets["label_weights"], student.targets["num_positive"]
    assert {weight.item() for level in label_weights for weight in level.unique()} == {0.0, 1.0}
    masks, expected = foreground(assisted["cls"]), 0.0
    for level, image, channel, row, column in elements(assisted["cls"]):
        target = sigmoid(teacher.predictions["cls"][level][image, channel, row, column].item())
        target *= masks[level][image, row, column].item()
        logit = assisted["cls"][level][image, channel, row, column].item()
        weight = label_weights[level].reshape(masks[level].shape)[image, row, column].item()
        expected += weight * (target - sigmoid(logit)) ** 2 * cross_entropy(logit, target)
    assert sampled > 1
    assert terms["assistant_cls"].item() == pytest.approx(expected / sampled, rel=1e-5)


def test_gfls_soft_labels_are_learnt_where_the_assistant_says_what_the_teacher_says(pair):
    model = pair("GFL", assistant={"soft_labels": True})
    _, (assisted, student, teacher, regions, plan) = assistants_arguments(model)
    scores = [level.sigmoid() * mask.unsqueeze(1) for level, mask in zip(
        teacher.predictions["cls"], foreground(assisted["cls"]), strict=True
    )]  # fmt: skip
    logits = [(score.clamp(1e-7, 1 - 1e-7)).logit().requires_grad_() for score in scores]
    loss = model.distiller._family.assistant_losses({**assisted, "cls": logits}, student, teacher, regions, plan)
    assert loss["assistant_cls"].item() == pytest.approx(0, abs=1e-9)
    gradients = torch.autograd.grad(loss["assistant_cls"], logits)
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients)


@pytest.mark.parametrize("detector", ["RetinaNet", "GFL"])
def test_what_the_assistant_says_of_anchors_without_a_weight_does_not_count(pair, detector):
    model = pair(detector)
    terms, (assisted, student, teacher, regions, plan) = assistants_arguments(model)

    def changed(weight):
        """The classification's loss, with other scores at the anchors of this weight."""
        levels = []
        for level, weights in zip(assisted["cls"], student.targets["label_weights"], strict=True):
            of_anchors = weights.unflatten(1, (*level.shape[2:], -1)).permute(0, 3, 1, 2)
            classes = level.shape[1] // of_anchors.shape[1]
            levels.append(level + 3.0 * (of_anchors == weight).repeat_interleave(classes, 1))
        losses = model.distiller._family.assistant_losses({**assisted, "cls": levels}, student, teacher, regions, plan)
        return losses["assistant_cls"].item()

    assert any((weights == 0).any() for weights in student.targets["label_weights"])
    assert changed(0) == pytest.approx(terms["assistant_cls"].item(), rel=1e-6)
    assert changed(1) != pytest.approx(terms["assistant_cls"].item(), rel=0.1)


@pytest.mark.parametrize(("activation", "activate"), [("sigmoid", torch.sigmoid), ("softmax", lambda x: x.softmax(1))])
def test_class_logits_of_rois_are_compared_after_the_activation_that_the_plan_names(pair, activation, activate):
    published, _ = step(pair("FasterRCNN"))
    model, seen = pair("FasterRCNN", roi={"activation": activation}), []
    model.distiller.roi.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    terms, _ = step(model)
    assert moved("FasterRCNN", published, terms) == ({"roi_prediction_cls"} if activation == "softmax" else set())
    student, teacher = seen[0].predictions["cls"]
    assert student.shape == teacher.shape == (len(student), 5)  # four classes and the background
    expected = cosine_guided_vector_loss(activate(student), activate(teacher))
    assert terms["roi_prediction_cls"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("agnostic", [False, True], ids=["by class", "for all classes"])
def test_the_assistant_of_rois_learns_the_teachers_scores_and_its_deltas_of_the_true_class(pair, agnostic):
    head = {"roi_head": {"bbox_head": {"reg_class_agnostic": agnostic}}}
    model, seen = pair("FasterRCNN", head, head), []
    model.distiller.roi.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    terms, _ = step(model)
    (rois,) = seen
    assisted = {name: value.tolist() for name, value in model.distiller.roi.assist(rois).items()}
    teacher = {name: value.tolist() for name, (_, value) in rois.predictions.items()}
    labels, count = rois.targets.labels.tolist(), len(rois.targets.labels)
    positive = [roi for roi, label in enumerate(labels) if label < 4]  # 4 is the background
    assert {labels[roi] for roi in positive} == {0, 1, 3}
    assert len(positive) < count
    entropy = [
        cross_entropy(logit, sigmoid(target))
        for pair_of_roi in zip(assisted["cls"], teacher["cls"], strict=True)
        for logit, target in zip(*pair_of_roi, strict=True)
    ]
    assert terms["assistant_roi_cls"].item() == pytest.approx(sum(entropy) / len(entropy), rel=1e-5)
    distance = 0.0
    for roi in positive:
        first = 0 if agnostic else 4 * labels[roi]
        distance += sum(abs(assisted["reg"][roi][at] - teacher["reg"][roi][at]) for at in range(first, first + 4))
    assert terms["assistant_roi_reg"].item() == pytest.approx(distance / count, rel=1e-5)


def test_the_teachers_sampler_gets_the_proposals_boxes_and_features_of_one_image_at_a_time(pair, monkeypatch):
    model, seen = pair("FasterRCNN"), []
    teacher = model.distiller.teacher.detector
    sampler = teacher.roi_head.bbox_sampler
    draw = sampler.sample

    def sample(assigned, proposals, boxes, labels, feats):
        seen.append((len(proposals), boxes, labels, feats))
        return draw(assigned, proposals, boxes, labels, feats=feats)

    monkeypatch.setattr(sampler, "sample", sample)
    step(model)
    pyramid = model.distiller.teacher.observe(IMAGES).pyramid
    assert len(seen) == 2
    for image, (proposals, boxes, labels, features) in enumerate(seen):
        assert proposals > 10
        assert torch.equal(boxes, BOXES[image])
        assert torch.equal(labels, LABELS[image])
        for found, level in zip(features, pyramid, strict=True):
            torch.testing.assert_close(found, level[image : image + 1])


# FCOS heads of two kinds


@pytest.mark.parametrize(("ours", "theirs"), [(True, False), (False, True), (True, True), (False, False)])
def test_an_fcos_teachers_distances_come_in_the_students_units(pair, ours, theirs):
    model = pair("FCOS", {"bbox_head": {"norm_on_bbox": ours}}, {"bbox_head": {"norm_on_bbox": theirs}})
    teacher = model.distiller.teacher.detector
    with torch.no_grad():
        _, pixels, _ = teacher.bbox_head(teacher.extract_feat(IMAGES))  # in eval mode every FCOS head gives pixels
    found = model.distiller.teacher.observe(IMAGES).predictions["reg"]
    for level, stride in enumerate((8, 16, 32, 64, 128)):
        torch.testing.assert_close(found[level], pixels[level] / stride if ours else pixels[level])


@pytest.mark.parametrize("normed", [True, False])
def test_boxes_of_an_fcos_teacher_of_other_units_are_learnt_in_the_students(pair, normed):
    giou = {"type": "GIoULoss"}
    heads = {"norm_on_bbox": normed, "loss_bbox": giou}, {"norm_on_bbox": not normed}
    model = pair("FCOS", *({"bbox_head": head} for head in heads))
    teacher = model.distiller.teacher.detector
    with torch.no_grad():
        _, pixels, _ = teacher.bbox_head(teacher.extract_feat(IMAGES))
    terms, (assisted, student, _, _, _) = assistants_arguments(model)
    lost = weights = 0.0
    for level, stride in enumerate((8, 16, 32, 64, 128)):
        labels, box_targets = (student.targets[name][level] for name in ("labels", "box_targets"))
        scaled = assisted["reg"][level]  # to which the head's own last step is still to be applied
        maps = scaled.clamp(min=0) if normed else scaled.exp(), pixels[level]
        distances = [x.permute(0, 2, 3, 1).reshape(-1, 4) for x in maps]
        for point in (labels < 4).nonzero()[:, 0].tolist():
            found, expected = (
                distances[0][point].tolist(),
                (distances[1][point] / (stride if normed else 1)).tolist(),
            )
            left, top, right, bottom = box_targets[point].tolist()
            weight = math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))
            lost += weight * (1 - generalised_iou(found, expected))
            weights += weight
    assert weights > 0.1
    assert terms["assistant_reg"].item() == pytest.approx(lost / weights, rel=1e-4)


def generalised_iou(one, other):
    """Of two boxes given by their distances (left, top, right, bottom) from one point inside of both."""

    def area(left, top, right, bottom):
        return (left + right) * (top + bottom)

    overlap = area(*map(min, one, other))
    union = area(*one) + area(*other) - overlap
    enclosing = area(*map(max, one, other))
    return overlap / union - (enclosing - union) / enclosing


# A second stage without any RoI


@pytest.mark.parametrize(
    "empty", [("student",), ("teacher",), ("student", "teacher")], ids=["student", "teacher", "both"]
)
@pytest.mark.parametrize("agnostic", [False, True], ids=["by class", "for all classes"])
def test_a_detector_that_samples_no_roi_leaves_all_terms_finite_and_every_parameter_in_the_graph(pair, empty, agnostic):
    head = {"roi_head": {"bbox_head": {"reg_class_agnostic": agnostic}}}
    model = pair("FasterRCNN", head, head)
    detectors = {"student": model.student, "teacher": model.distiller.teacher.detector}
    for role in empty:  # without proposals and without true boxes, which are sampled too
        detectors[role].rpn_head.get_bboxes = lambda *_, **__: [torch.zeros(0, 5), torch.zeros(0, 5)]
    boxes, labels = [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.long)] * 2
    losses = model(img=IMAGES, img_metas=METAS, gt_bboxes=boxes, gt_labels=labels)
    terms = {
        name.removeprefix("loss_"): value
        for name, value in losses.items()
        if name.removeprefix("loss_") in TERMS["FasterRCNN"]
    }
    assert set(terms) == TERMS["FasterRCNN"]
    assert all(torch.isfinite(value) for value in terms.values()), terms
    at_student, at_teacher = {"roi_features_student"}, {name for name in terms if name.startswith("roi_")}
    zero = (at_student if "student" in empty else set()) | (at_teacher - at_student if "teacher" in empty else set())
    assert {name for name in at_teacher if terms[name] == 0} - {"assistant_roi_reg"} == zero - {"assistant_roi_reg"}
    sum(terms.values()).backward()
    check_gradients(model)
