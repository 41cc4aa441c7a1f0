"""Preprocessing equals mmdet's test pipeline to the pixel."""

from __future__ import annotations

import copy

import cv2
import numpy as np
import pytest

from cskd_data.images import read_image
from cskd_deploy.detect.preprocess import padded_size, prepare, resized_size
from cskd_deploy.exporter.mmdet_config import preprocessing_of
from cskd_deploy.model.manifest import GraphForm

from .conftest import prepare_with_mmdet
from .students import student_config


@pytest.mark.parametrize("size", [(128, 128), (480, 640), (333, 500), (97, 311), (40, 50), (719, 1281)])
def test_an_image_becomes_the_tensor_that_mmdets_pipeline_makes(tmp_path, size):
    config = student_config(("a",), scale=(160, 120))
    path = tmp_path / "image.jpg"
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
@pytest.mark.parametrize("size", [(150, 90), (90, 150)])
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
    assert resized_size((480, 640), rule) == (240, 320)
    assert resized_size((640, 480), rule) == (256, 192)


def test_a_square_input_keeps_the_scale_of_both_ways_round():
    rule = preprocessing_of(student_config(("a",), scale=(320, 240)), (320, 320))
    assert resized_size((480, 640), rule) == (240, 320)
    assert resized_size((640, 480), rule) == (320, 240)


def test_every_size_fits_the_input():
    rule = preprocessing_of(student_config(("a",), scale=(160, 120)))
    generator = np.random.default_rng(0)
    for height, width in generator.integers(1, 3000, (500, 2)).tolist():
        resized = resized_size((height, width), rule)
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
