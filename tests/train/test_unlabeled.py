"""`data.unlabeled`: pseudo-labelled images beside the labelled ones, as docs/unlabeled.md says it in an equation."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import process_parts
from process_parts import in_processes

from cskd_data import read
from cskd_data.shapes import generate
from cskd_train.engine.build import build_parts, build_split, check_data, unlabelled_of
from cskd_train.engine.distributed import World
from cskd_train.engine.loader import Batch, Position, TrainLoader, Unlabelled, seed_generators
from cskd_train.engine.signals import Interrupted
from cskd_train.engine.step import TrainStep, summed
from cskd_train.errors import TrainError
from cskd_train.files.config import load_config

from .pairs import BOXES, IMAGES, LABELS, METAS, OWN, check_gradients, model_of, pair, trained
from .runs import differences, last, log, train

LABELLED = {"img": IMAGES, "img_metas": METAS, "gt_bboxes": BOXES, "gt_labels": LABELS}
BESIDE = {
    "img": torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(7)),
    "img_metas": [{"img_shape": (64, 90, 3), "pad_shape": (64, 96, 3), "scale_factor": 1.0}],
    "gt_bboxes": [torch.tensor([[20.0, 8.0, 70.0, 50.0]])],
    "gt_labels": [torch.tensor([2])],
}
EMPTY = {**BESIDE, "gt_bboxes": [torch.zeros(0, 4)], "gt_labels": [torch.zeros(0, dtype=torch.long)]}


# What a step computes


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in trained(model).items()}


def stepped(model, *batch, weight=1.0):
    """The gradients and terms of one step on a batch; the weights stay."""
    model.train()
    step = TrainStep(model, torch.optim.SGD(model.parameters(), lr=0.0), World(), seed=3)
    terms = step([Batch(2, 5, *batch, weight=weight)]).terms
    check_gradients(model)
    return gradients(model), terms


def alone(model, data, number, own=True, distillation=True):
    """The gradients of the student's own losses, or of the distillation terms, or of both, on some images."""
    model.zero_grad()
    seed_generators(3, 2, 5, number)  # mmdet samples anchors and RoIs at random
    losses = model(**data)
    names = OWN[type(model.student).__name__]
    kept = {name: value for name, value in losses.items() if (own if name in names else distillation)}
    total = summed(kept)[0] + 0 * summed(losses)[0]  # a gradient for every parameter
    total.backward()
    return gradients(model), total.item()


def assert_close(found, expected):
    assert set(found) == set(expected)
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in found.items():
        assert torch.allclose(value, expected[name], rtol=1e-4, atol=1e-6 * largest), name


def mixed(*terms):
    """The sum of weight * gradients."""
    return {name: sum(weight * one[name] for weight, one in terms) for name in terms[0][1]}


@pytest.mark.parametrize("weight", [1.0, 0.5, 0.0])
def test_the_gradient_is_that_of_the_equation(narrow_model, family, weight):
    model = pair(narrow_model, family)
    model.train()
    labelled, total = alone(model, LABELLED, 1)
    own, own_total = alone(model, BESIDE, 2, distillation=False)
    terms, terms_total = alone(model, BESIDE, 2, own=False)
    found, values = stepped(model, LABELLED, BESIDE, weight=weight)
    assert_close(found, mixed((2 / 3, labelled), (weight / 3, own), (1 / 3, terms)))
    assert values["loss"] == pytest.approx(2 / 3 * total + weight / 3 * own_total + 1 / 3 * terms_total, rel=1e-5)
    assert values["loss"] == pytest.approx(sum(value for name, value in values.items() if "loss_" in name), rel=1e-5)


@pytest.mark.parametrize("kind", ["RetinaNet", "FCOS", "GFL"])  # Faster R-CNN draws other samples for each part
def test_the_same_images_on_both_sides_at_weight_1_are_one_batch_of_them(narrow_model, kind):
    model = pair(narrow_model, kind)
    once, values = stepped(model, LABELLED)
    twice, both = stepped(model, LABELLED, LABELLED)
    assert_close(twice, once)
    assert both == pytest.approx(values, rel=1e-5)


def test_images_on_which_the_teacher_found_nothing_give_a_gradient_to_every_parameter(narrow_model, family):
    model = pair(narrow_model, family)
    _, values = stepped(model, LABELLED, EMPTY, weight=0.5)
    assert all(math.isfinite(value) for value in values.values())


def test_a_student_alone_weighs_all_its_losses(narrow_model):
    student = pair(narrow_model, "RetinaNet").student.train()

    def of(data, number):
        student.zero_grad()
        seed_generators(3, 2, 5, number)
        summed(student(**data))[0].backward()
        return gradients(student)

    labelled, beside = of(LABELLED, 1), of(BESIDE, 2)
    assert_close(stepped(student, LABELLED, BESIDE, weight=0.25)[0], mixed((2 / 3, labelled), (0.25 / 3, beside)))


@pytest.mark.parametrize("kind", ["FCOS", "FasterRCNN"])  # counts averaged over processes, and random samples
def test_processes_with_the_same_images_step_as_one(narrow_model, kind):
    models = model_of(narrow_model, kind, 18), model_of(narrow_model, kind, 50)
    (one,) = in_processes(1, process_parts.in_parts, models, (LABELLED, BESIDE), 0.5)
    for found in in_processes(2, process_parts.in_parts, models, (LABELLED, BESIDE), 0.5):
        assert_close(found["gradients"], one["gradients"])
        assert found["terms"] == pytest.approx(one["terms"], rel=1e-5)


# Which images a batch holds


@pytest.fixture(scope="module")
def pseudo(tmp_path_factory):
    """Nine pictures with boxes that have scores, three of them without any: the COCO file."""
    root = tmp_path_factory.mktemp("pseudo")
    generate(root, images=9, val_images=1, size=(112, 80), seed=21)
    data = json.loads((root / "annotations" / "train.json").read_text())
    bare = sorted(one["id"] for one in data["images"])[:3]
    data["annotations"] = [{**one, "score": 0.5} for one in data["annotations"] if one["image_id"] not in bare]
    (file := root / "annotations" / "pseudo.json").write_text(json.dumps(data))
    return file


@pytest.fixture(scope="module")
def settings(pseudo):
    """`data.unlabeled` for the small runs."""
    return {"data.unlabeled": {"ann_file": str(pseudo), "img_prefix": str(pseudo.parents[1] / "images"), "weight": 0.5}}


@pytest.fixture
def cfg(small_runs, settings):
    return load_config(small_runs.config(distilled=True), settings)


@pytest.fixture
def datasets(cfg):
    return build_split(cfg, "train"), build_split(cfg, "unlabeled")


def epochs(datasets, size, images, workers=0, world=None, begin=None, count=3):
    """Labelled and unlabelled file names of every batch of some epochs, and all pixels."""
    loader = TrainLoader(datasets[0], size, workers, 3, world, unlabelled=Unlabelled(datasets[1], images, 0.5))
    names, pixels = [], []
    for number in range(count):
        position = begin if begin and not number else Position(number + (begin.epoch if begin else 0))
        for (batch,), _ in loader.steps(position):
            left = len(batch.data["img_metas"])
            assert (left, len(batch.image_names)) == (size - images, size)
            names.append((batch.image_names[:left], batch.image_names[left:]))
            pixels += [batch.data["img"], batch.unlabelled["img"]]
    loader.close()
    return names, pixels


def test_an_epoch_is_one_pass_over_the_labelled_images_and_the_others_come_equally_often(datasets):
    names, _ = epochs(datasets, 4, 2)
    labelled = Counter(name for left, _ in names for name in left)
    beside = Counter(name for _, right in names for name in right)
    assert len(names) == 3 * 7  # 14 labelled images, two in each batch
    assert set(labelled.values()) == {3}
    assert len(beside) == 9  # also those without a box
    for begin in range(0, 20, 5):  # a pass over nine, filled up to whole batches of two; it may span two epochs
        assert {name for _, right in names[begin : begin + 5] for name in right} == set(beside)
    assert names[:7] != names[7:14]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_processes_and_where_a_run_begins_change_nothing(datasets, workers):
    names, pixels = epochs(datasets, 3, 1)
    again, same = epochs(datasets, 3, 1, workers)
    assert again == names
    assert all(torch.equal(one, other) for one, other in zip(pixels, same, strict=True))
    if workers:
        return
    halves = [epochs(datasets, 3, 1, world=World(rank, 2), count=1)[0] for rank in (0, 1)]
    assert [halves[number % 2][number // 2] for number in range(7)] == names[:7]
    late, _ = epochs(datasets, 3, 1, begin=Position(1, 3, 3, 10), count=2)
    assert late == names[10:]


def test_an_image_is_augmented_anew_in_every_pass(datasets):
    names, pixels = epochs(datasets, 2, 1, count=6)
    flips = {}
    for (_, (name,)), image in zip(names, pixels[1::2], strict=True):
        flips.setdefault(name, set()).add(float(image[0, 0, 40, 5:8].sum()))
    assert max(map(len, flips.values())) == 2


@pytest.mark.parametrize(
    ("share", "batch", "images"), [(0.5, 4, 2), (0.5, 3, 2), (0.25, 4, 1), (0.1, 4, 1), (0.9, 4, 3)]
)
def test_the_share_is_rounded_and_leaves_one_of_each_kind(cfg, share, batch, images):
    cfg.data.unlabeled.share = share
    assert unlabelled_of(cfg, None, batch).images == images


# A run


def test_a_run_stopped_within_an_epoch_resumes_to_the_last_bit(small_runs, settings, tmp_path):
    family = "FasterRCNN"
    settings = {**settings, "ema": {"decay": 0.9, "warmup": 3}, "runner.max_epochs": 1, "data.workers_per_gpu": 1}
    outcome, text = train(small_runs.options(tmp_path / "whole", family, True, settings=settings))
    assert "data.unlabeled: 9 images, 1 in each batch; the student's own losses on them count 0.5" in text
    assert outcome.images == {"train": 14, "unlabeled": 9, "val": 3}
    assert outcome.iterations == 14
    options = small_runs.options(tmp_path / "parts", family, True, settings=settings)
    stopped, _ = train(options, stop_after=5)
    assert isinstance(stopped, Interrupted), stopped
    going_on = small_runs.options(tmp_path / "parts", family, True, settings=settings, resume=True)
    assert train(going_on)[0].iterations == 14
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    assert differences(last(tmp_path / "parts"), last(tmp_path / "whole")) == []


def test_two_processes_are_two_accumulated_batches(small_runs, settings, pseudo):
    config = small_runs.config(distilled=True)
    plain = {
        "optimizer": {"type": "SGD", "lr": 0.01},
        "optimizer_config": None,
        "lr_config": None,
        "custom_hooks": None,
    }
    (one,) = in_processes(1, process_parts.training, config, {**settings, **plain, "accumulate": 2}, 2)
    for found in in_processes(2, process_parts.training, config, {**settings, **plain}, 2):
        assert found["terms"][0] == pytest.approx(one["terms"][0], rel=1e-5)
        assert_close(found["gradients"], one["gradients"])
    assert len(found["sent"]) == len(one["sent"]) or not one["sent"]


# What is refused, and what is said


def begun(cfg):
    check_data(cfg)
    build_parts(cfg, 0, World(), "unused", lambda line: None)


def refused(cfg):
    with pytest.raises(TrainError) as error:
        begun(cfg)
    return str(error.value)


def test_before_the_file_is_there_the_command_that_makes_it_is_named(cfg):
    cfg.data.unlabeled.update(ann_file="/data/un labeled.json", images="/data/photographs")
    teacher = cfg.distill.teacher.checkpoint
    assert refused(cfg).endswith(f"cskd-train pseudo-label {teacher} /data/photographs '/data/un labeled.json'")


def test_what_does_not_go_together_is_refused(cfg, pseudo, tmp_path):
    cfg.data.samples_per_gpu = 1
    assert "a batch of one image has no room for both kinds" in refused(cfg)
    cfg.data.samples_per_gpu = 2
    cfg.data.unlabeled.classes = ("circle", "cat")
    assert "are circle, cat, expected those of the model" in refused(cfg)
    del cfg.data.unlabeled["classes"]
    train_set = cfg.data.train
    cfg.data.train = {"type": "MultiImageMixDataset", "dataset": train_set, "pipeline": []}
    assert "does not go with a MultiImageMixDataset" in refused(cfg)


def test_a_run_does_not_validate_on_pseudo_labels(small_runs, pseudo, tmp_path):
    images = str(pseudo.parents[1] / "images")
    settings = {"data.val.ann_file": str(pseudo), "data.val.img_prefix": images}
    outcome, _ = train(small_runs.options(tmp_path / "work", settings=settings))
    assert f"{pseudo} is pseudo-labelled" in str(outcome)
    assert not (tmp_path / "work").exists()


def test_pseudo_labels_may_be_trained_on_as_any_others(small_runs, pseudo):
    images = str(pseudo.parents[1] / "images")
    cfg = load_config(small_runs.config(), {"data.train.ann_file": str(pseudo), "data.train.img_prefix": images})
    assert read(pseudo).pseudo_labels is not None
    assert not [line for line in check_data(cfg) if "pseudo" in line]
    assert len(build_split(cfg, "train")) == 6  # as ever without the images that have no box


def test_pictures_that_are_in_val_too_are_named(cfg, small_runs, tmp_path):
    val = small_runs.data / "annotations" / "val.json"
    cfg.data.unlabeled.update(ann_file=str(val), img_prefix=str(small_runs.data / "images"))
    lines = [line for line in check_data(cfg) if "both in" in line]
    assert len(lines) == 1
    assert lines[0].startswith("3 pictures both in unlabeled and in val, so that its scores flatter the model")
