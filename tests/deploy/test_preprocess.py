"""Preprocessing equals mmdet's test pipeline to the pixel."""

from __future__ import annotations

import copy

import cv2
import numpy as np
import pytest

from cskd_data.images import read_image
from cskd_deploy.detect.preprocess import Placement, exact_placement, padded_size, placement, prepare
from cskd_deploy.errors import DeployError
from cskd_deploy.exporter.mmdet_config import preprocessing_of
from cskd_deploy.model.manifest import GraphForm

from .conftest import prepare_with_mmdet
from .students import student_config


@pytest.mark.parametrize(
    "size", [(128, 128), (480, 640), (333, 500), (97, 311), (40, 50), (719, 1281), (2, 700), (1, 900)]
)
def test_an_image_becomes_the_tensor_that_mmdets_pipeline_makes(tmp_path, size):
    config = student_config(("a",), scale=(160, 120))
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))

    expected, meta = prepare_with_mmdet(config["data"]["test"]["pipeline"], path)
    found = prepare(read_image(path), preprocessing_of(config))

    height, width = expected.shape[2:]
    np.testing.assert_array_equal(found.tensor[:, :, :height, :width], expected.numpy())
    assert not found.tensor[:, :, height:].any()
    assert not found.tensor[:, :, :, width:].any()
    assert found.resized_size == meta["img_shape"][:2]
    np.testing.assert_array_equal(found.scale_factor, meta["scale_factor"])


def test_bgr_and_stretching_pipelines_are_reproduced_too(tmp_path):
    config = student_config(("a",), scale=(160, 96))
    transforms = config["data"]["test"]["pipeline"][1]["transforms"]
    transforms[0]["keep_ratio"] = False
    transforms[2] = {"type": "Normalize", "mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "to_rgb": False}
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8))

    expected, meta = prepare_with_mmdet(config["data"]["test"]["pipeline"], path)
    found = prepare(read_image(path), preprocessing_of(config))

    np.testing.assert_array_equal(found.tensor, expected.numpy())
    np.testing.assert_array_equal(found.scale_factor, meta["scale_factor"])


@pytest.mark.parametrize(
    "value", [{"img": 0, "masks": 0, "seg": 255}, {"img": (0.75, 0.75, 0.75)}, {"img": (0, 0, 0)}, {"masks": 3}, 0]
)
@pytest.mark.parametrize("size", [(150, 90), (90, 150), (900, 1), (1, 900)])
def test_padding_of_a_dynamic_file_is_that_of_mmdets_pipeline(tmp_path, size, value):
    config = student_config(("a",), scale=(160, 120))
    config["data"]["test"]["pipeline"][1]["transforms"][3]["pad_val"] = value
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.random.default_rng(4).integers(0, 256, (*size, 3), dtype=np.uint8))
    expected, _ = prepare_with_mmdet(config["data"]["test"]["pipeline"], path)
    rule = preprocessing_of(config)
    np.testing.assert_array_equal(prepare(read_image(path), rule, GraphForm(dynamic=True)).tensor, expected.numpy())


@pytest.mark.parametrize(
    ("scale", "expected"), [((1333, 800), (800, 1344)), ((320, 240), (256, 320)), ((240, 320), (320, 256))]
)
def test_the_default_input_is_the_test_scale_rounded_up_to_the_divisor(scale, expected):
    assert preprocessing_of(student_config(("a",), scale=scale)).input_size == expected


def test_an_upright_image_is_made_smaller_until_it_fits_a_lying_input():
    rule = preprocessing_of(student_config(("a",), scale=(320, 240)))
    assert rule.input_size == (256, 320)
    assert placement((480, 640), rule) == Placement((240, 320), (256, 320))
    assert placement((640, 480), rule) == Placement((256, 192), (256, 320))


def test_a_square_input_keeps_the_scale_of_both_ways_round():
    rule = preprocessing_of(student_config(("a",), scale=(320, 240)), [(320, 320)])
    assert placement((480, 640), rule).resized_size == (240, 320)
    assert placement((640, 480), rule).resized_size == (320, 240)


def test_of_a_pair_of_canvases_an_image_gets_the_one_on_which_it_is_largest():
    rule, form = (
        preprocessing_of(student_config(("a",), scale=(320, 240)), [(256, 320), (320, 256)]),
        GraphForm(dynamic=True),
    )
    assert rule.canvases == ((256, 320), (320, 256))
    assert placement((480, 640), rule, form) == Placement((240, 320), (256, 320))
    assert placement((640, 480), rule, form) == Placement((320, 240), (320, 256))
    assert placement((500, 500), rule, form) == Placement((240, 240), (256, 320))  # both hold it: the first
    assert placement((640, 500), rule, form) == Placement((307, 240), (320, 256))
    assert placement((1000, 100), rule, form) == Placement((320, 32), (320, 256))


def test_without_a_canvas_an_image_is_padded_to_the_next_multiples_of_the_divisor():
    rule = preprocessing_of(student_config(("a",), scale=(1333, 800)))
    for size, resized, canvas in (
        ((480, 640), (800, 1067), (800, 1088)),
        ((640, 480), (1067, 800), (1088, 800)),
        ((427, 640), (800, 1199), (800, 1216)),
        ((300, 1000), (400, 1333), (416, 1344)),
    ):
        assert (
            placement(size, rule, GraphForm(dynamic=True)) == Placement(resized, canvas) == exact_placement(size, rule)
        )


def test_two_canvases_are_no_choice_for_a_pipeline_that_stretches():
    config = student_config(("a",), scale=(160, 96))
    config["data"]["test"]["pipeline"][1]["transforms"][0]["keep_ratio"] = False
    with pytest.raises(DeployError, match=r"stretches every image to 96 x 160 .*: give one --input-size"):
        preprocessing_of(config, [(96, 160), (160, 96)])


def test_every_size_fits_the_input():
    rule = preprocessing_of(student_config(("a",), scale=(160, 120)))
    generator = np.random.default_rng(0)
    for height, width in generator.integers(1, 3000, (500, 2)).tolist():
        resized = placement((height, width), rule).resized_size
        assert 1 <= resized[0] <= rule.input_size[0]
        assert 1 <= resized[1] <= rule.input_size[1]
    assert padded_size((33, 64), 32) == (64, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda steps: steps[0].update(interpolation="bicubic"), "interpolation='bicubic'"),
        (lambda steps: steps.insert(3, {"type": "PhotoMetricDistortion"}), "'PhotoMetricDistortion'"),
        (lambda steps: steps.pop(2), "Resize, Pad"),
        (lambda steps: steps[3].update(size_divisor=None, size=(64, 64)), "size=(64, 64)"),
        (lambda steps: steps[3].update(pad_val={"img": 0.5}), "Pad has pad_val=0.5"),
        (lambda steps: steps[3].update(pad_val=114), "Pad has pad_val=114"),
        (lambda steps: steps[3].update(pad_val={"img": (1, 2, 3)}), "Pad has pad_val=(1, 2, 3)"),
        (lambda steps: steps[3].update(pad_val={"img": (1, 1)}), "Pad has pad_val=(1, 1)"),
        (lambda steps: steps[3].update(pad_val={"img": "mean"}), "Pad has pad_val='mean'"),
    ],
)
def test_a_step_that_is_not_reproduced_is_refused_by_name(change, message):
    config = copy.deepcopy(student_config(("a",)))
    change(config["data"]["test"]["pipeline"][1]["transforms"])
    with pytest.raises(Exception, match="pipeline") as error:
        preprocessing_of(config)
    assert message in str(error.value)


NORMALISE = {"type": "Normalize", "mean": [100.0] * 3, "std": [2.0] * 3, "to_rgb": True}


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        (lambda pipeline: pipeline.insert(1, NORMALISE), "LoadImageFromFile, Normalize, MultiScaleFlipAug"),
        (
            lambda pipeline: pipeline.insert(1, {"type": "Resize", "img_scale": (64, 64), "keep_ratio": True}),
            "LoadImageFromFile, Resize, MultiScaleFlipAug",
        ),
        (
            lambda pipeline: pipeline.insert(1, {"type": "RandomFlip", "flip_ratio": 1.0}),
            "LoadImageFromFile, RandomFlip, MultiScaleFlipAug",
        ),
        (
            lambda pipeline: pipeline.append({"type": "Pad", "size_divisor": 64}),
            "LoadImageFromFile, MultiScaleFlipAug, Pad",
        ),
        (
            lambda pipeline: pipeline.append(pipeline[1]),
            "LoadImageFromFile, MultiScaleFlipAug, MultiScaleFlipAug",
        ),
        (lambda pipeline: pipeline.insert(0, pipeline[0]), "LoadImageFromFile, LoadImageFromFile, MultiScaleFlipAug"),
        (lambda pipeline: pipeline.pop(0), "MultiScaleFlipAug"),
        (lambda pipeline: pipeline.pop(1), "LoadImageFromFile"),
    ],
)
def test_a_step_beside_loading_and_multi_scale_flip_aug_is_refused_with_the_steps_that_are_there(change, steps):
    config = student_config(("a",), scale=(160, 96))
    change(config["data"]["test"]["pipeline"])
    with pytest.raises(DeployError) as error:
        preprocessing_of(config)
    assert f"has the steps {steps}, expected LoadImageFromFile and MultiScaleFlipAug, once each" in str(error.value)


@pytest.mark.parametrize("place", [0, 1])
def test_loading_or_a_second_augmentation_inside_multi_scale_flip_aug_is_refused(place):
    config = student_config(("a",), scale=(160, 96))
    pipeline = config["data"]["test"]["pipeline"]
    pipeline[1]["transforms"].insert(0, copy.deepcopy(pipeline[place]))
    with pytest.raises(DeployError, match=f"the step {pipeline[place]['type']} inside MultiScaleFlipAug"):
        preprocessing_of(config)
