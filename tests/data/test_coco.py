"""COCO files as tools write them become one normal form, or are refused with the faults and the way out."""

from __future__ import annotations

import gzip
import json

import pytest

from cskd_data import DataError, read
from cskd_data.coco import read_coco

from .factories import note_of


def test_ids_become_integers_from_one_and_the_files_own_are_kept_beside(coco_set):
    file, folder, _ = coco_set
    dataset = read(file, folder)
    # Integer ids keep their order, on which pycocotools' ties depend: image 3 of the file is the first.
    assert [(image["id"], image["file_name"]) for image in dataset.images] == [(2, "a.jpg"), (1, "b.png")]
    assert dataset.image_keys == {1: 3, 2: 7}
    assert dataset.classes == ("cat", "dog")
    assert dataset.category_keys == {1: 12, 2: 5}
    assert [(one["id"], one["image_id"], one["category_id"]) for one in dataset.annotations] == [(1, 2, 1), (2, 2, 2)]
    assert dataset.notes == ()
    assert dataset.annotated


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("utf-16-le"),
        lambda text: text.encode("utf-32"),
        lambda text: gzip.compress(text.encode()),
    ],
)
def test_every_encoding_of_json_is_read(coco_set, encode):
    file, folder, write = coco_set
    write(lambda data: data["categories"][0].update(name="Käse"))
    file.write_bytes(encode(file.read_text()))
    assert read(file, folder).classes == ("Käse", "dog")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: [one.pop("area") for one in d["annotations"]],
        lambda d: [one.pop("iscrowd") for one in d["annotations"]],
        lambda d: [one.pop("id") for one in d["annotations"]],
        lambda d: [one.update(id=0) for one in d["annotations"]],
        lambda d: d["annotations"][0].update(id="one"),
        lambda d: d["annotations"][0].update(bbox=["2.0", "3", "20", "10.0"]),
        lambda d: d["annotations"][0].update(area="200", iscrowd=False),
        lambda d: d["annotations"][0].update(image_id="7", category_id="12"),
        lambda d: d["annotations"][0].update(image_id=7.0, category_id=12.0),
        lambda d: d["images"][0].update(width=64.0, height="48"),
        lambda d: d["images"][0].update(width=0, height=None),
        lambda d: [image.pop("width") for image in d["images"]],
        lambda d: d["categories"].append({"id": 12, "name": "cat"}),
        lambda d: d["annotations"][0].update(bbox=None, segmentation=[[2, 3, 22, 3, 22, 13, 2, 13]]),
        lambda d: d["annotations"][0].update(bbox=[], segmentation=[2, 3, 22, 3, 22, 13, 2, 13]),
    ],
)
def test_what_can_only_mean_one_thing_is_filled_in_without_a_word(coco_set, change):
    file, folder, write = coco_set
    plain = read(file, folder)
    write(change)
    dataset = read(file, folder)
    assert dataset.notes == ()
    assert dataset.images == plain.images
    assert dataset.data["categories"] == plain.data["categories"]
    for one, other in zip(dataset.annotations, plain.annotations, strict=True):
        assert {key: one[key] for key in other} == other
        assert [type(one[key]) for key in other] == [type(other[key]) for key in other]


def test_a_run_length_mask_without_a_box_gives_its_box(coco_set):
    file, folder, write = coco_set
    # Column after column, 48 rows each: columns 2 and 3, of each the rows 5 to 9.
    mask = {"size": [48, 64], "counts": [48 * 2 + 5, 5, 43, 5, 48 * 60 + 38]}
    write(lambda data: (data["annotations"][0].pop("bbox"), data["annotations"][0].update(segmentation=mask)))
    assert read(file, folder).annotations[0]["bbox"] == [2.0, 5.0, 2.0, 5.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["annotations"].append(5), "annotations[2] is a int, expected an object"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3]), "annotation 1 has bbox [1, 2, 3] (expected four"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, float("nan"), 4]), "annotation 1 has bbox [1, 2, nan, 4]"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 10**400, 4]), "annotation 1 has bbox [1, 2, 1000"),
        (lambda d: d["annotations"][0].update(bbox=["a", 2, 3, 4]), "annotation 1 has bbox ['a', 2, 3, 4]"),
        (lambda d: d["annotations"][0].pop("bbox"), "annotation 1 has no bbox, nor a segmentation"),
        (lambda d: (d["annotations"][0].pop("bbox"), d["annotations"][0].update(caption="x")), "1 has captions"),
        (lambda d: d["annotations"][0].pop("image_id"), "annotation 1 has no image_id"),
        (lambda d: d["annotations"][0].update(image_id=99), "annotation 1 names image id 99, which is not listed"),
        (lambda d: d["annotations"][0].update(category_id=1), "annotation 1 names category id 1, which is not listed"),
        (lambda d: d["annotations"][0].update(category_id=[1]), "annotation 1 has category_id [1]"),
        (lambda d: d["images"][0].update(id=3), "images have the id 3 twice: a.jpg and b.png"),
        (lambda d: d["images"][0].pop("id"), "images[0] has no id"),
        (lambda d: d["images"][0].update(id=None), "images[0] has id None (expected a number or text)"),
        (lambda d: d["images"][0].update(width=-64), "image 7 has width -64 (expected pixels)"),
        (lambda d: d["images"][0].update(width=10**400), "image 7 has width 1000"),
        (lambda d: d["images"][0].pop("file_name"), "image 7 has no file_name"),
        (lambda d: d["images"][0].update(file_name="gone.jpg"), "image gone.jpg does not exist"),
        (lambda d: d["images"].clear(), "images is an empty list"),
        (lambda d: d["categories"].clear(), "categories is an empty list"),
        (lambda d: d["categories"][0].update(name="dog"), "categories have the name 'dog' 2 times"),
        (lambda d: d["categories"][0].update(id=5), "categories have the id 5 2 times"),
        (lambda d: d["categories"][0].pop("name"), "category 12 has no name"),
        (lambda d: d.pop("images"), "it has no list 'images' (found: 'annotations', 'categories')"),
        (lambda d: d.update(annotations={}), "it has no list 'annotations'"),
    ],
)
def test_what_cannot_be_repaired_is_refused_by_name(coco_set, change, said):
    file, folder, write = coco_set
    write(change)
    with pytest.raises(DataError) as error:
        read(file, folder)
    assert said in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty (0 bytes)"),
        (b'{"images": [],\n "annotations": [}', "line 2, column 18"),
        (b"[1, 2]", "expected an object with images, annotations, categories, found a list"),
        (b'[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]', "holds detections"),
        (b'{"shapes": [], "imagePath": "a.jpg"}', "is LabelMe's"),
        (b"\xff\xd8\xff\xe0", "is not JSON: it is not text"),
        ('{"images": "Käse"}'.encode("latin-1"), "Save it as UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\x1f\x8b\x08\x00", "damaged gzip file"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"images": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
    ],
)
def test_a_file_that_is_not_coco_is_refused_with_what_it_is(coco_set, content, said):
    file, folder, _ = coco_set
    file.write_bytes(content)
    with pytest.raises(DataError) as error:
        read(file, folder)
    assert said in str(error.value)


def test_a_path_without_anything_is_named(tmp_path):
    for reader in (read, read_coco):
        with pytest.raises(DataError, match=r"annotation file .*gone\.json does not exist"):
            reader(tmp_path / "gone.json")


def test_many_faults_are_counted_and_the_first_five_shown(coco_set):
    file, folder, write = coco_set
    more = [{"id": number, "file_name": f"{number}.jpg", "width": 9, "height": 9} for number in range(10, 17)]
    write(lambda data: data["images"].extend(more))
    with pytest.raises(DataError) as error:
        read(file, folder)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{file} cannot be used, 7 faults:"
    assert lines[1:7] == [f"  image {n}.jpg does not exist" for n in range(10, 15)] + ["  ... and 2 more"]
    where = f"Images are looked for in {folder}: give the folder that the file names start from, or go on without them"
    assert lines[7].startswith(where)
    assert all(way in lines[7] for way in ("`cskd-train data clean FILE OUT`", "`--skip-broken`"))


def test_missing_images_may_be_left_out_with_their_boxes(coco_set):
    file, folder, _ = coco_set
    (folder / "a.jpg").unlink()
    dataset = read_coco(file, folder, skip_missing=True)
    assert [image["file_name"] for image in dataset.images] == ["b.png"]
    assert dataset.annotations == []
    assert note_of(dataset, "left out") == "1 of 2 images left out, with their boxes: image a.jpg does not exist"


@pytest.mark.parametrize(
    ("bbox", "area", "fault"),
    [
        ([30.0, 20.0, 0.0, 0.0], 0.0, "has no area"),
        ([30.0, 20.0, 0.0, 9.0], 9.0, "has no area"),
        ([30.0, 20.0, -5.0, 9.0], 45.0, "is inverted"),
        ([64.0, 20.0, 5.0, 9.0], 45.0, "lies outside the image (64 x 48)"),
        ([-5.0, 20.0, 5.0, 9.0], 45.0, "lies outside the image (64 x 48)"),
        ([5.0, 20.0, 5.0, 9.0], 0.0, "comes with an area of 0"),
    ],
)
def test_a_degenerate_box_is_kept_out_with_a_note_that_names_it(coco_set, bbox, area, fault):
    file, folder, write = coco_set
    write(lambda data: data["annotations"][1].update(bbox=bbox, area=area))
    dataset = read(file, folder)
    numbers = ", ".join(f"{number:g}" for number in bbox)
    assert [one["category_id"] for one in dataset.annotations] == [1]
    assert note_of(dataset, "kept out").endswith(f"annotation 2 of a.jpg: its box [{numbers}] {fault}")


def test_identical_entries_are_taken_once_and_double_ids_of_different_boxes_are_two_boxes(coco_set):
    file, folder, write = coco_set
    write(lambda data: (data["annotations"].append(data["annotations"][0]), data["images"].append(data["images"][0])))
    dataset = read(file, folder)
    assert (len(dataset.images), len(dataset.annotations)) == (2, 2)
    assert note_of(dataset, "1 annotation listed twice").endswith("annotation 1")
    assert note_of(dataset, "1 image listed twice").endswith("a.jpg")
    write(lambda data: data["annotations"][1].update(id=1))
    assert [one["id"] for one in read(file, folder).annotations] == [1, 2]


def test_corners_are_told_from_sizes_also_where_no_area_speaks(coco_set):
    file, folder, write = coco_set

    def corners(data):
        for one, box in zip(data["annotations"], ([20, 30, 60, 44], [30, 20, 62, 47]), strict=True):
            one.update(bbox=box)
            del one["area"]

    write(corners)
    with pytest.raises(DataError, match=r"are corners \(x1, y1, x2, y2\), such as \[20\.0, 30\.0, 60\.0, 44\.0\]"):
        read(file, folder)
    # Boxes over the edge whose areas are width x height are what they say.
    write(lambda data: [one.update(bbox=[30, 20, 60, 44], area=2640) for one in data["annotations"]])
    assert len(read(file, folder).annotations) == 2


def test_fractions_of_the_image_are_refused(coco_set):
    file, folder, write = coco_set
    write(lambda data: [one.update(bbox=[0.25, 0.5, 0.5, 0.25], area=0.125) for one in data["annotations"]])
    with pytest.raises(DataError, match=r"are fractions of the image, such as \[0\.25, 0\.5, 0\.5, 0\.25\]"):
        read(file, folder)


def test_a_root_category_is_no_class_even_where_a_class_has_its_name(coco_set):
    file, folder, write = coco_set
    root = {"id": 0, "name": "cat", "supercategory": "none"}

    def with_root(data):
        for category in data["categories"]:
            category["supercategory"] = "cat"
        data["categories"].insert(0, root)

    write(with_root)
    dataset = read(file, folder)
    assert dataset.classes == ("cat", "dog")
    assert dataset.category_keys == {1: 12, 2: 5}
    assert note_of(dataset, "root") == "the root of the categories has no boxes and is no class: cat"


def test_selected_classes_are_matched_by_name_in_any_order_and_others_refused_with_both_lists(coco_set):
    file, folder, _ = coco_set
    dataset = read(file, folder)
    swapped = dataset.select(["dog", "cat"])
    assert swapped.classes == ("dog", "cat")
    assert swapped.category_keys == {1: 5, 2: 12}
    assert [one["category_id"] for one in swapped.annotations] == [2, 1]
    assert [one["category_id"] for one in dataset.annotations] == [1, 2]
    one_class = dataset.select(["dog"])
    assert [one["bbox"] for one in one_class.annotations] == [[10.0, 8.0, 40.0, 40.0]]
    assert one_class.unused == {"cat": 12}
    assert note_of(one_class, "not used") == "1 class not used, with 1 box: cat"
    with pytest.raises(DataError) as error:
        dataset.select(["cat", "cow"])
    assert "has no class 'cow'" in str(error.value)
    assert "classes asked for: 'cat', 'cow'" in str(error.value)
    assert "its own classes: 'cat', 'dog'" in str(error.value)


def test_written_again_it_has_the_users_ids_and_reads_as_the_same(coco_set, tmp_path):
    file, folder, write = coco_set
    write(lambda data: data["categories"][0].update(name="Käse"))
    dataset = read(file, folder)
    dataset.to_coco(tmp_path / "again.json")
    written = json.loads((tmp_path / "again.json").read_text())
    assert [image["id"] for image in written["images"]] == [7, 3]
    assert [one["category_id"] for one in written["annotations"]] == [12, 5]
    again = read(tmp_path / "again.json", folder)
    assert again.data == dataset.data
    assert again.image_keys == dataset.image_keys


def test_a_subset_has_the_images_asked_for_and_their_boxes(coco_set):
    file, folder, _ = coco_set
    part = read(file, folder).subset([1])
    assert [image["file_name"] for image in part.images] == ["b.png"]
    assert part.annotations == []
    assert part.image_keys == {1: 3}
