"""Boxes on feature maps: the worked example of docs/algorithm.md, appendix B, and the edges."""

from __future__ import annotations

import math

import pytest
import torch

from cskd_core.errors import ShapeError
from cskd_core.regions import RegionOptions, Regions
from cskd_core.roi_align import roi_align
from cskd_core.similarity import cosine_guided_loss, masked_cosine_guided_loss

SIZE = (4, 5)


@pytest.fixture
def regions():
    boxes = [
        torch.tensor([[10.0, 5.0, 29.9, 20.0], [0.0, 0.0, 50.0, 8.0]]),
        torch.tensor([[11.0, 9.0, 22.0, 27.0]]),
    ]
    return Regions(boxes, [(40, 50, 3), (36, 44, 3)], [SIZE], [10])


def test_foreground_covers_the_cells_from_first_to_last_inclusive(regions):
    expected = torch.zeros(2, *SIZE)
    expected[0, 0:3, 1:3] = 1
    expected[0, 0, :] = 1
    expected[1, 1:4, 1:3] = 1
    assert torch.equal(regions.foreground(0), expected)
    assert regions.foreground(0).sum() == 15
    assert torch.equal(regions.background(0), 1 - expected)


def test_rois_keep_fractions_and_image_order(regions):
    expected = torch.tensor([[0, 1, 0.5, 2.99, 2], [0, 0, 0, 5, 0.8], [1, 1.25, 1, 2.5, 3]])
    torch.testing.assert_close(regions.rois(0), expected)


def test_masked_and_pooled_terms_of_the_worked_example(regions):
    b, c, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (2, 3, 4, 5)), indexing="ij")
    student = torch.sin(0.7 * b + 0.3 * c + 0.11 * y + 0.05 * x + 0.2) + 0.1 * c
    teacher = torch.cos(0.5 * b + 0.21 * c - 0.07 * y + 0.13 * x) + 0.05 * c
    foreground, background = regions.foreground(0), regions.background(0)
    assert masked_cosine_guided_loss(student, teacher, foreground).item() == pytest.approx(0.292718414, abs=5e-10)
    assert masked_cosine_guided_loss(student, teacher, background).item() == pytest.approx(0.119591436, abs=5e-10)
    pooled = [roi_align(feature, regions.rois(0), 7) for feature in (student, teacher)]
    assert cosine_guided_loss(*pooled).item() == pytest.approx(0.038130054, abs=5e-9)


def test_every_box_covers_a_cell_on_the_coarsest_level():
    regions = Regions([torch.tensor([[3.0, 3.0, 4.0, 4.0]])], [(800, 1333)], [(7, 11)], [128])
    assert regions.foreground(0).sum() == 1


def test_boxes_without_any_element_are_none_and_others_of_another_shape_are_refused():
    box = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    for boxes in ([torch.zeros(0), torch.zeros(0)], [torch.zeros(0), box], [box, torch.zeros(0, 5)]):
        regions = Regions(boxes, [(8, 12), (8, 8)], [(2, 3)], [4])
        assert regions.rois(0).shape == (sum(len(one) for one in boxes), 5)
        assert [int(mask.sum() > 0) for mask in regions.foreground(0)] == [len(one) for one in boxes]
    for boxes in (torch.zeros(4), torch.zeros(2, 5)):
        with pytest.raises(ShapeError, match=r"the boxes of image 1 have the shape \(.*\), expected \(N, 4\)"):
            Regions([box, boxes], [(8, 8), (8, 8)], [(2, 2)], [4])


def test_an_image_without_boxes_is_background():
    regions = Regions([torch.zeros(0, 4), torch.tensor([[0.0, 0.0, 8.0, 8.0]])], [(8, 8), (8, 8)], [(2, 2)], [4])
    assert regions.foreground(0)[0].sum() == 0
    assert regions.foreground(0)[1].sum() == 4
    assert regions.rois(0).shape == (1, 5)


def test_a_box_beyond_the_image_is_cut_at_the_map():
    regions = Regions([torch.tensor([[-5.0, -5.0, 100.0, 100.0]])], [(8, 8)], [(2, 3)], [4])
    assert regions.foreground(0).sum() == 6


def test_the_number_of_images_must_agree():
    with pytest.raises(ShapeError, match="1 images with boxes and 2 image shapes"):
        Regions([torch.zeros(0, 4)], [(8, 8), (8, 8)], [(2, 2)], [4])


def test_every_level_has_a_stride():
    with pytest.raises(ShapeError, match="2 feature maps and 1 strides"):
        Regions([torch.zeros(0, 4)], [(8, 8)], [(2, 2), (1, 1)], [4])


def test_exact_coordinates_divide_by_the_stride_and_leave_padding_alone():
    # A 24 x 20 image on a 32 x 32 canvas; a box over its right lower quarter.
    box, shape, size = torch.tensor([[10.0, 12.0, 20.0, 24.0]]), (24, 20), (4, 4)
    published = Regions([box], [shape], [size], [8])
    exact = Regions([box], [shape], [size], [8], RegionOptions(coord_base="stride"))
    assert published.rois(0).tolist() == [[0, 2, 2, 4, 4]]
    assert exact.rois(0).tolist() == [[0, 1.25, 1.5, 2.5, 3]]


def test_an_exclusive_end_leaves_out_the_cell_that_a_box_only_touches():
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [16.0, 16.0, 17.0, 24.5]])
    inclusive = Regions([boxes], [(32, 32)], [(4, 4)], [8])
    exclusive = Regions([boxes], [(32, 32)], [(4, 4)], [8], RegionOptions(inclusive_end=False))
    assert inclusive.foreground(0)[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 2], [3, 2]]
    assert exclusive.foreground(0)[0].nonzero().tolist() == [[0, 0], [2, 2], [3, 2]]


def test_a_box_without_area_still_covers_a_cell_with_an_exclusive_end():
    regions = Regions([torch.tensor([[8.0, 8.0, 8.0, 8.0]])], [(16, 16)], [(2, 2)], [8], RegionOptions("stride", False))
    assert regions.foreground(0)[0].tolist() == [[0, 0], [0, 1]]


def slow_masks(boxes, shapes, size, stride, options):
    """(B, H, W), cell by cell."""
    height, width = size
    masks = torch.zeros(len(boxes), height, width)
    for image, (image_boxes, (image_height, image_width)) in enumerate(zip(boxes, shapes, strict=True)):
        for x1, y1, x2, y2 in image_boxes.tolist():
            if options.coord_base == "stride":
                x1, y1, x2, y2 = (side / stride for side in (x1, y1, x2, y2))
            else:
                x1, x2, y1, y2 = (
                    x1 / image_width * width,
                    x2 / image_width * width,
                    *(side / image_height * height for side in (y1, y2)),
                )
            ends = [int(end) if options.inclusive_end else max(math.ceil(end) - 1, int(start))
                    for start, end in ((x1, x2), (y1, y2))]  # fmt: skip
            for y in range(height):
                for x in range(width):
                    if int(x1) <= x <= ends[0] and int(y1) <= y <= ends[1]:
                        masks[image, y, x] = 1
    return masks


@pytest.mark.parametrize("counts", [(5, 0, 2), (0, 0, 0), (1, 7, 3)])
@pytest.mark.parametrize("options", [RegionOptions(), RegionOptions("stride", False)], ids=["published", "exact"])
def test_boxes_of_all_images_on_all_levels_equal_those_of_one_image_on_one_level(counts, options):
    generator = torch.Generator().manual_seed(3)
    shapes, sizes, strides = [(90, 60), (72, 64), (96, 40)], [(12, 8), (6, 4), (3, 2)], [8, 16, 32]
    boxes = []
    for count, (height, width) in zip(counts, shapes, strict=True):
        corners = torch.rand(count, 4, generator=generator, dtype=torch.float64) * torch.tensor([width, height] * 2)
        boxes.append(
            torch.cat([torch.minimum(corners[:, :2], corners[:, 2:]), corners[:, :2].maximum(corners[:, 2:])], 1)
        )
    regions = Regions(boxes, shapes, sizes, strides, options)
    for level, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        expected = slow_masks(boxes, shapes, size, stride, options)
        assert torch.equal(regions.foreground(level), expected)
        assert torch.equal(regions.background(level), 1 - expected)
        assert regions.covered[level] == expected.sum()
        rows = [
            rois
            for image, (one, shape) in enumerate(zip(boxes, shapes, strict=True))
            for rois in torch.cat([
                torch.full((len(one), 1), image, dtype=torch.float64),
                Regions([one], [shape], [size], [stride], options).rois(0)[:, 1:],
            ], 1)
        ]  # fmt: skip
        assert torch.equal(regions.rois(level), torch.stack(rows) if rows else torch.zeros(0, 5, dtype=torch.float64))
