"""Cutting a set: every image once, each class in each part, equal pictures together, the same for the same seed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from cskd_data import DataError, read
from cskd_data.split import split

from .factories import write, write_photo

CLASSES = ("cat", "dog", "bird", "newt")


@pytest.fixture
def many(tmp_path):
    """120 images with 1 to 6 boxes of four classes, the last of them in six images only; a tenth without boxes."""
    rng = np.random.default_rng(3)
    source = write_photo(tmp_path / "images" / "000.jpg", height=32, width=32)
    images, annotations = [], []
    for number in range(120):
        path = tmp_path / "images" / f"{number:03d}.jpg"
        if number:
            write(path, source.read_bytes() + bytes(number))
        images.append({"id": number + 1, "file_name": path.name, "width": 32, "height": 32})
        for _ in range(rng.integers(1, 7) if number % 10 else 0):
            label = int(rng.choice(3, p=[0.7, 0.2, 0.1]))
            annotations.append({"image_id": number + 1, "category_id": label + 1, "bbox": [1, 2, 10, 20]})
    annotations += [{"image_id": number, "category_id": 4, "bbox": [1, 2, 5, 5]} for number in range(3, 63, 10)]
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    file = write(tmp_path / "all.json", json.dumps(data))
    return file, data


def names(part):
    return sorted(image["file_name"] for image in part.images)


def boxes(part):
    return np.bincount([one["category_id"] for one in part.annotations], minlength=5)[1:]


@pytest.mark.parametrize("seed", range(5))
def test_every_image_is_in_one_part_and_each_class_has_its_share_in_each(many, seed):
    dataset = read(many[0])
    parts = split(dataset, 0.2, 0.1, seed).parts
    assert [len(part.images) for part in parts.values()] == [84, 24, 12]
    assert sorted(name for part in parts.values() for name in names(part)) == names(dataset)
    for part, share in zip(parts.values(), (0.7, 0.2, 0.1), strict=True):
        assert part.classes == CLASSES
        np.testing.assert_allclose(boxes(part), share * boxes(dataset), atol=2)
        kept = {image["id"] for image in part.images}
        assert part.annotations == [one for one in dataset.annotations if one["image_id"] in kept]


def test_the_same_seed_gives_the_same_parts_in_any_order_of_the_images_and_another_gives_others(many):
    file, data = many
    first = {name: names(part) for name, part in split(read(file), seed=7).parts.items()}
    data["images"].reverse()
    for image in data["images"]:
        image["id"] = f"photo {image['id']}"
    for one in data["annotations"]:
        one["image_id"] = f"photo {one['image_id']}"
    file.write_text(json.dumps(data))
    assert {name: names(part) for name, part in split(read(file), seed=7).parts.items()} == first
    assert names(split(read(file), seed=8).parts["val"]) != first["val"]


def test_equal_pictures_are_never_on_both_sides(many):
    file, data = many
    folder = file.parent / "images"
    twins = [(f"{number:03d}.jpg", f"{number + 60:03d}.jpg") for number in range(0, 60, 3)]
    for one, other in twins:
        shutil.copy(folder / one, folder / other)
    data["images"].append({"id": 999, "file_name": "001.jpg", "width": 32, "height": 32})
    file.write_text(json.dumps(data))
    for seed in range(4):
        result = split(read(file), 0.3, 0.2, seed)
        place = {name: part for part, dataset in result.parts.items() for name in names(dataset)}
        assert all(place[one] == place[other] for one, other in twins)
        assert sum(names(part).count("001.jpg") for part in result.parts.values()) == 2
        assert str(result.notes[0]).startswith("21 images the same as another: in one part: ")


def test_a_class_with_too_few_boxes_for_every_part_is_noted(many):
    file, data = many
    data["annotations"] = [one for one in data["annotations"] if one["category_id"] != 4 or one["image_id"] == 3]
    file.write_text(json.dumps(data))
    assert "warning: no box in val of 1 class: newt" in str(split(read(file)))


@pytest.mark.parametrize(
    ("val", "test", "said"),
    [
        (0, 0, "val 0 and test 0: give shares of the images, above 0 and together below 1"),
        (0.6, 0.4, "together below 1"),
        (1.5, 0, "together below 1"),
        (float("nan"), 0, "together below 1"),
    ],
)
def test_shares_without_sense_are_refused(many, val, test, said):
    with pytest.raises(DataError, match=said):
        split(read(many[0]), val, test)


def test_fewer_different_pictures_than_parts_are_refused_and_as_many_are_one_each(many):
    dataset = read(many[0])
    with pytest.raises(DataError, match="has 2 different images, too few for train and val and test"):
        split(dataset.subset([1, 2]), 0.2, 0.1)
    assert [len(part.images) for part in split(dataset.subset([1, 2, 3]), 0.2, 0.1).parts.values()] == [1, 1, 1]


@pytest.mark.parametrize(
    ("images", "val", "test"), [(7, 0.5, 0.4), (7, 0.5, 0.49), (3, 0.6, 0.35), (3, 0.98, 0), (5, 0.1, 0.88)]
)
def test_no_part_is_left_without_an_image_by_rounding(many, images, val, test):
    dataset = read(many[0])
    parts = split(dataset.subset(range(1, images + 1)), val, test).parts
    counts = {name: len(part.images) for name, part in parts.items()}
    assert (sum(counts.values()), min(counts.values())) == (images, 1)
    assert counts["train"] == 1


@pytest.mark.parametrize("shares", [(0.1, 0), (0.1, 0.1), (0.3, 0.1)])
def test_no_part_is_left_without_an_image_by_pictures_that_stay_together(many, shares):
    folder = many[0].parent / "images"
    for number in range(1, 11, 2):
        shutil.copy(folder / f"{number:03d}.jpg", folder / f"{number + 1:03d}.jpg")
    dataset = read(many[0])
    for seed in range(8):
        parts = split(dataset.subset(range(2, 8)), *shares, seed).parts  # three pictures, each of them twice
        counts = [len(part.images) for part in parts.values()]
        assert counts == ([2, 2, 2] if shares[1] else [4, 2])


def test_a_missing_image_is_one_message(many):
    dataset = read(many[0])
    (many[0].parent / "images" / "005.jpg").unlink()
    with pytest.raises(DataError, match=r"005\.jpg cannot be read \(No such file or directory\)"):
        split(dataset)
