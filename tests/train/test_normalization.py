"""One batch under two normalisations, against mmdet's own pipelines."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets.pipelines import Compose

from cskd_train.errors import TrainError
from cskd_train.files.config import load_config
from cskd_train.mm.normalization import Normalization, renormalize

CAFFE = Normalization((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), to_rgb=False)
TORCHVISION = Normalization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), to_rgb=True)
OTHER = Normalization((90.0, 120.5, 140.0), (32.0, 64.0, 127.5), to_rgb=False)  # which has no mean of those
SIZES = [(48, 64), (80, 50)]


def step_of(normalization):
    return {
        "type": "Normalize",
        "mean": list(normalization.mean),
        "std": list(normalization.std),
        "to_rgb": normalization.to_rgb,
    }


@pytest.fixture(scope="module")
def image_files(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index, size in enumerate(SIZES):
        cv2.imwrite(str(folder / f"{index}.png"), generator.integers(0, 256, (*size, 3), dtype=np.uint8))
    return sorted(folder.iterdir())


def batch_of(files, normalization):
    """(B, 3, 96, 96) as mmdet's pipeline and collation give it, and the shapes before padding."""
    pipeline = Compose(
        [
            {"type": "LoadImageFromFile"},
            {"type": "Resize", "img_scale": (96, 72), "keep_ratio": True},
            step_of(normalization),
            {"type": "Pad", "size_divisor": 32},
        ]
    )
    loaded = [pipeline({"img_info": {"filename": str(file)}, "img_prefix": None}) for file in files]
    batch = torch.zeros(len(files), 3, 96, 96)
    for place, result in enumerate(loaded):
        image = torch.from_numpy(np.ascontiguousarray(result["img"].transpose(2, 0, 1)))
        batch[place, :, : image.shape[1], : image.shape[2]] = image
    return batch, [result["img_shape"] for result in loaded]


PAIRS = [(CAFFE, TORCHVISION), (TORCHVISION, CAFFE), (OTHER, TORCHVISION), (CAFFE, OTHER)]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_the_batch_is_the_one_that_the_other_pipeline_gives(image_files, source, target):
    batch, shapes = batch_of(image_files, source)
    expected, _ = batch_of(image_files, target)
    found = renormalize(batch, source, target, shapes)
    # In units of the pixel values 0..255.
    assert ((found - expected).abs().amax((0, 2, 3)) * torch.tensor(target.std)).max() < 1e-4
    assert (batch - expected).abs().max() > 1


def test_a_step_that_does_not_name_the_order_of_channels_is_in_rgb_as_mmdets():
    step = {"type": "Normalize", "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}
    found = Normalization.of_config({"data": {"train": {"pipeline": [step]}}})
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    results = [Compose([one])({"img": image, "img_fields": ["img"]})["img"] for one in (step, step_of(found))]
    np.testing.assert_array_equal(*results)


def test_padding_stays_zero(image_files):
    batch, shapes = batch_of(image_files, CAFFE)
    assert [shape[:2] for shape in shapes] == [(72, 96), (96, 60)]
    found = renormalize(batch, CAFFE, TORCHVISION, shapes)
    assert found[0, :, 72:].eq(0).all()
    assert found[1, :, :, 60:].eq(0).all()
    assert found[0, :, :72].ne(0).all()
    assert found[1, :, :, :60].ne(0).all()


def test_equal_normalisations_give_the_very_tensor(image_files):
    batch, shapes = batch_of(image_files, CAFFE)
    same = Normalization.of_config({"train_pipeline": [step_of(CAFFE)]})
    assert renormalize(batch, CAFFE, same, shapes) is batch


def test_there_and_back_is_the_same_in_float64():
    images = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    there = renormalize(images, CAFFE, TORCHVISION, [(8, 8)])
    assert there.dtype == torch.float64
    torch.testing.assert_close(renormalize(there, TORCHVISION, CAFFE, [(8, 8)]), images, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("mmdet::fcos/fcos_r50_caffe_fpn_gn-head_1x_coco.py", ((102.9801, 115.9465, 122.7717), (1, 1, 1), False)),
        ("mmdet::retinanet/retinanet_r50_fpn_1x_coco.py", (TORCHVISION.mean, TORCHVISION.std, True)),
        ("mmdet::yolox/yolox_tiny_8x8_300e_coco.py", ((0, 0, 0), (1, 1, 1), False)),
    ],
)
def test_the_normalisation_of_a_stock_config_is_found(file, expected):
    assert Normalization.of_config(load_config(file)) == Normalization(*expected)


def test_a_config_of_a_model_alone_has_none():
    assert Normalization.of_config(load_config("mmdet::_base_/models/retinanet_r50_fpn.py")) is None


INSIDE = {
    "repeated": {"data": {"train": {"type": "RepeatDataset", "dataset": {"pipeline": [step_of(CAFFE)]}}}},
    "joined": {"data": {"train": [{"type": "CocoDataset", "pipeline": [step_of(CAFFE)]}]}},
    "mixed": {
        "data": {
            "train": {
                "type": "MultiImageMixDataset",
                "dataset": {"pipeline": [{"type": "LoadImageFromFile"}]},
                "pipeline": [{"type": "Mosaic"}, step_of(CAFFE)],
            }
        }
    },
    "for testing": {
        "data": {"test": {"pipeline": [{"type": "MultiScaleFlipAug", "transforms": [step_of(CAFFE)]}]}},
    },
    "beside the data": {"train_pipeline": [step_of(CAFFE)]},
    "training before testing": {
        "data": {"test": {"pipeline": [step_of(TORCHVISION)]}, "train": {"pipeline": [step_of(CAFFE)]}}
    },
}


@pytest.mark.parametrize("place", INSIDE)
def test_the_step_is_found_inside_wrappers(place):
    assert Normalization.of_config(INSIDE[place]) == CAFFE


@pytest.mark.parametrize(
    ("preprocessor", "to_rgb"), [({}, False), ({"pad_size_divisor": 32}, False), ({"bgr_to_rgb": True}, True)]
)
def test_a_config_of_mmdet_3_that_does_not_normalise_gives_pixels(preprocessor, to_rgb):
    config = {"train_pipeline": [{"type": "PackDetInputs"}], "model": {"data_preprocessor": preprocessor}}
    assert Normalization.of_config(config) == Normalization((0, 0, 0), (1, 1, 1), to_rgb)


def test_a_step_without_three_numbers_is_refused():
    with pytest.raises(TrainError, match=r"normalisation has mean = 114: expected three numbers"):
        Normalization.of_config({"train_pipeline": [{"type": "Normalize", "mean": 114, "std": [1, 1, 1]}]})
