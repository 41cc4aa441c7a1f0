"""Rows of YOLO with many numbers: polygons are read; tracks and poses that nothing declares are refused as such."""

from __future__ import annotations

import pytest

from cskd_data import DataError, read

from .factories import boxes_of, note_of, write, write_photo

BOX = [24, 12, 16, 24, "cat"]  # of 64 x 48 pixels
TRACK = "reads as a tracker's row, class x y width height score track, and not as a polygon: take the track out"
POSE = "reads as a box with keypoints, and not as a polygon: give a data.yaml with their `kpt_shape`"


def yolo(root, *rows, yaml=None):
    """A set of one image for each text of rows."""
    for number, text in enumerate(rows):
        write_photo(root / "images" / f"{number}.jpg", number)
        write(root / "labels" / f"{number}.txt", text)
    write(root / ("classes.txt" if yaml is None else "data.yaml"), "cat\n" if yaml is None else f"names: [cat]\n{yaml}")
    return root


@pytest.mark.parametrize(
    "row",
    [
        "0 0.5 0.5 0.25 0.5 0.9 1",
        "0 0.5 0.5 0.25 0.5 0.9 0",
        "0 0.5 0.5 0.25 0.5 0.9 7",
        "0 0.5 0.5 0.25 0.5 1 12.0",
        "0 0.5 0.5 0.25 0.5 0.9 -1",
    ],
)
def test_rows_of_a_tracker_are_refused_as_such(tmp_path, row):
    with pytest.raises(DataError, match=f"2 faults:\n  .*0.txt, line 1: '{row[:10]}.*{TRACK}"):
        read(yolo(tmp_path, row, row))


@pytest.mark.parametrize(
    "row",
    [
        "0 0.5 0.5 0.2 0.2 0.4 0.4 2 0.6 0.6 0",
        "0 0.5 0.5 0.2 0.2 0.4 0.4 1 0.6 0.6 0",
        "0 0.5 0.5 0.2 0.2 0.4 0.4 1 0.6 0.6 0 0.1 0.1 0",
        "0 0.5 0.5 0.2 0.2 0.4 0.4 1 0.6 0.6 0 0.1 0.1 1",
        "0 0.5 0.5 0.2 0.2 0.45 0.5 0.55 0.5",
        "0 0.7 0.6 0.3 0.3 0.6 0.5 0.8 0.7 0 0",
        "0 0.5 0.5 0.1 0.8 0.5 0.2 0.5 0.5 0.52 0.8",
    ],
)
def test_rows_of_keypoints_without_kpt_shape_are_refused_as_such(tmp_path, row):
    with pytest.raises(DataError) as error:
        read(yolo(tmp_path / "set", row))
    assert POSE in str(error.value)
    declared = read(yolo(tmp_path / "declared", row, yaml="train: images\nkpt_shape: [2, 3]\n"))
    assert len(declared.annotations) == 1


def test_the_rows_of_many_poses_are_refused_although_some_look_like_polygons(tmp_path):
    rows = [
        "0 0.5 0.5 0.9 0.9 0.3 0.3 0.7 0.8",
        "0 0.5 0.5 0.2 0.2 0.45 0.5 0.55 0.5",
        "0 0.4 0.4 0.5 0.6 0.5 0.5 0.3 0.3",
    ]
    with pytest.raises(DataError, match=r"1 fault:\n  .*labels/1\.txt, line 1: "):
        read(yolo(tmp_path, *rows))


@pytest.mark.parametrize(
    "rows",
    [
        ["0 .25 .25 .5 .25 .5 .75 .25 .75"],  # reaches out of what its first points would be as a box
        ["0 0.4 0.4 0.6 0.4 0.6 0.6 0.4 0.6"],  # a turned box in the middle
        ["0 0.4 0.4 0.5 0.42 0.45 0.5"],
        ["0 0.5 0.5 0.2 0.2 0.9 1", "0 .25 .25 .5 .25 .5 .75 .25 .75"],  # a triangle that touches the edge
        ["0 0.6 0.6 0.35 0.6 0.5 0.7", "0 .25 .25 .5 .25 .5 .75 .25 .75"],
        ["0 0.6 0.6 0.35 0.6 0.5 0.7", "0 0.1 0.1 0.3 0.1 0.2 0.3"],
        ["0 0 0 1 0 1 1 0 1"],
        ["0 0.9 0 1 0 1 0.1 0.95 0.1 0.9 0.05"],
    ],
)
def test_polygons_are_read_as_the_box_around_them(tmp_path, rows):
    dataset = read(yolo(tmp_path, *rows))
    count = "1 row" if len(rows) == 1 else "2 rows"
    assert note_of(dataset, "of points").startswith(f"{count} of points read as the box around them")
    for name, (box,) in boxes_of(dataset).items():
        points = [float(word) for word in rows[int(name[0])].split()[1:]]
        x, y = min(points[0::2]) * 64, min(points[1::2]) * 48
        assert box[:4] == pytest.approx([x, y, max(points[0::2]) * 64 - x, max(points[1::2]) * 48 - y], abs=1e-3)


def test_outlines_in_the_middle_of_small_images_are_polygons(tmp_path):
    """Each lies within what its first two points would be as a box."""
    outline = "0 0.5 0.4 0.55 0.42 0.6 0.5 0.55 0.58 0.5 0.6 0.45 0.58 0.4 0.5 0.45 0.42"
    dataset = read(yolo(tmp_path, outline, outline))
    assert boxes_of(dataset)["0.jpg"] == [[25.6, 19.2, 12.8, 9.6, "cat"]]


def test_one_odd_shape_among_many_does_not_make_a_set_of_four_corners_one_of_poses(tmp_path):
    corners = "0 0.5 0.6 0.6 0.6 0.6 0.65 0.5 0.65"
    odd = "0 0.6 0.6 0.35 0.6 0.5 0.65 0.6 0.62"
    assert len(read(yolo(tmp_path, *[corners] * 10, odd)).annotations) == 11
