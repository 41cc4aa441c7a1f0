"""COCO data sets given as a folder: one file a split, as COCO, Roboflow, CVAT and others lay them out."""

from __future__ import annotations

import json

import pytest

from cskd_data import DataError, read
from cskd_data.formats import format_of, reader_of, splits_of

from .factories import boxes_of, write, write_photo

TREE = [
    {"id": 0, "name": "pets", "supercategory": "none"},
    {"id": 1, "name": "cat", "supercategory": "pets"},
    {"id": 2, "name": "dog", "supercategory": "pets"},
]
"""As Roboflow writes categories: the first is the project."""


def content(split, folder="", images=4):
    """A COCO file's text: images `SPLIT_0.png` ... with one box each, the first one's box of another class."""
    return json.dumps(
        {
            "images": [
                {"id": number, "file_name": f"{folder}{split}_{number}.png", "width": 64, "height": 48}
                for number in range(images)
            ],
            "annotations": [
                {"id": n, "image_id": n, "category_id": 2 - (n == 0), "bbox": [4, 4, 10 + n, 20], "iscrowd": 0}
                for n in range(images)
            ],
            "categories": TREE,
        }
    )


def lay_out(root, splits, file, folder):
    """Write a set: `file` and `folder` are the ways of a split's file and of its images."""
    for seed, split in enumerate(splits):
        write(root / file.format(split), content(split))
        for number in range(4):
            write_photo(root / folder.format(split) / f"{split}_{number}.png", seed=10 * seed + number)
    return root


LAYOUTS = {  # name -> the splits, the file and the image folder of each
    "coco": (("train", "val"), "annotations/instances_{}2017.json", "{}2017"),
    "coco in images": (("train", "val"), "annotations/instances_{}2017.json", "images/{}2017"),
    "roboflow": (("train", "valid", "test"), "{}/_annotations.coco.json", "{}"),
    "annotations and folders": (("train", "val"), "annotations/{}.json", "images/{}"),
    "one image folder": (("train", "val", "test"), "{}.json", "images"),
    "files named at their end": (("train", "val"), "pets_train_{}.json", "images"),
}


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path):
    splits, file, folder = LAYOUTS[request.param]
    names = {"val" if split == "valid" else split: split for split in splits}
    return lay_out(tmp_path / "pets", splits, file, folder), names


def test_endings_in_capitals_are_found(tmp_path):
    root = lay_out(tmp_path, ("train", "val"), "annotations/{}.JSON", "images")
    assert splits_of(root) == ["train", "val"]
    assert len(read(root).images) == 8


def test_each_split_is_found_with_its_images(layout, call, tmp_path):
    root, names = layout
    assert (format_of(root), splits_of(root)) == ("coco", list(names))
    code, _, err = call("train", "data", "convert", root, tmp_path / "out")
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(f"{name}.json" for name in names)
    for name, split in names.items():
        dataset = read(tmp_path / "out" / f"{name}.json")
        assert dataset.check().errors == ()
        assert boxes_of(dataset) == {f"{split}_{n}.png": [[4, 4, 10 + n, 20, "dog" if n else "cat"]] for n in range(4)}
        code, _, err = call("train", "data", "convert", root, tmp_path / f"{name}.json", "--split", name)
        assert code == 0, err
        assert read(tmp_path / f"{name}.json").data == dataset.data


def test_the_whole_is_all_splits_together_and_says_so(layout, call):
    root, names = layout
    dataset = read(root)
    assert list(boxes_of(dataset)) == [f"{split}_{n}.png" for split in names.values() for n in range(4)]
    code, out, err = call("train", "data", "check", root, "--decode")
    assert code == 0, err
    assert f"warning: {len(names)} splits read as one" in out
    assert f": {', '.join(names)}" in out


def test_a_project_takes_the_splits(layout, call, tmp_path):
    root, names = layout
    code, out, err = call("train", "new", tmp_path / "project", "--data", root, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["splits"] == dict.fromkeys(names, 4)
    assert told["choices"][0]["why"] == f"the splits {', '.join(names)} of {root}"
    assert told["classes"] == ["cat", "dog"]


def test_one_folder_of_a_split_is_that_split(tmp_path):
    root = lay_out(tmp_path, *LAYOUTS["roboflow"])
    assert list(boxes_of(read(root / "valid"))) == [f"valid_{n}.png" for n in range(4)]
    assert splits_of(root / "valid") == []


def test_files_of_other_kinds_beside_the_splits_are_left_aside(tmp_path):
    root = lay_out(tmp_path, *LAYOUTS["coco"])
    for name in ("captions_train2017", "person_keypoints_train2017", "image_info_test-dev2017"):
        write(root / "annotations" / f"{name}.json", "{}")
    write(root / "dataset-metadata.json", "{}")
    assert splits_of(root) == ["train", "val"]
    assert len(read(root).images) == 8


@pytest.mark.parametrize("name", ["instances_default", "result", "instances_val2017"])
def test_one_file_is_the_whole_set_whatever_its_name(name, tmp_path):
    root = lay_out(tmp_path, ["default"], f"annotations/{name}.json", "images/default")
    if name == "instances_val2017":
        (root / "images" / "default").rename(root / "images" / "val2017")
    if name == "result":
        (root / "images" / "default").rename(root / "default")
        write(root / "annotations" / "result.json", content("default", "default/"))
    assert splits_of(root) == []
    dataset = read(root)
    assert not any("read as one" in str(note) for note in dataset.notes)
    assert dataset.check().errors == ()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("annotations/train.json", "annotations/train_old.json"), "2 JSON files for train: give one of train.json"),
        (("val.json", "test.json"), "holds 2 JSON files: give one of test.json, val.json"),
        (("train.json", "a.json", "b.json"), None),
        (("a.json", "b.json"), "holds 2 JSON files: give one of a.json, b.json"),
        (("train/a.json", "train/b.json"), "holds no data set"),
        ((), "holds no data set"),
    ],
)
def test_files_of_which_it_is_unclear_what_they_are_are_named(files, said, call, tmp_path):
    for file in files:
        write(tmp_path / "set" / file, content("train"))
    (tmp_path / "set").mkdir(exist_ok=True)
    for number in range(4):
        write_photo(tmp_path / "set" / "images" / f"train_{number}.png", seed=number)
    code, _, err = call("train", "data", "check", tmp_path / "set")
    assert (code, said is None or said in err) == (2 if said else 0, True), err


def test_a_file_for_each_image_is_no_coco(call, tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "set" / f"{name}.json", json.dumps({"imagePath": f"{name}.png", "shapes": []}))
        write_photo(tmp_path / "set" / f"{name}.png")
    code, _, err = call("train", "data", "check", tmp_path / "set")
    assert code == 2
    assert "a JSON file for each image, as LabelMe writes: export the whole set as COCO there" in err


def test_a_split_that_is_not_there_is_refused_with_those_that_are(call, tmp_path):
    root = lay_out(tmp_path / "set", *LAYOUTS["coco"])
    code, _, err = call("train", "data", "convert", root, tmp_path / "out.json", "--split", "test")
    assert (code, "has no split 'test'; splits: train, val" in err) == (2, True), err
    file = root / "annotations" / "instances_val2017.json"
    with pytest.raises(DataError, match="has no split 'val'; splits: none"):
        reader_of(file)(file, None, split="val")


@pytest.mark.parametrize("files", [["a.xml"], ["a.xml", "notes.json"], []])
def test_a_folder_with_a_capital_letter_is_pascal_vocs_unless_it_holds_json_alone(files, tmp_path):
    """`annotations` and `Annotations` are one folder where names have no case."""
    (tmp_path / "Annotations").mkdir()
    for file in files:
        write(tmp_path / "Annotations" / file, "")
    assert format_of(tmp_path) == "voc"


def test_a_data_set_one_folder_further_down_is_named(call, tmp_path):
    root = lay_out(tmp_path / "unpacked" / "pets", *LAYOUTS["coco"])
    (tmp_path / "unpacked" / "empty").mkdir()
    code, _, err = call("train", "data", "check", tmp_path / "unpacked")
    assert (code, "holds no data set" in err) == (2, True)
    assert "; there is one in pets below it" in " ".join(err.split())
    assert len(read(root).images) == 8


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pets.zip", "is an archive: unpack it, and give the folder that comes out"),
        ("pets.TAR.GZ", "is an archive"),
        ("pets.csv", "is a table, which is not read: export the data set as COCO, Pascal VOC or YOLO"),
    ],
)
def test_what_holds_a_data_set_in_another_way_is_refused_with_the_way_out(name, said, call, tmp_path):
    file = write(tmp_path / name, "x")
    for words in (["data", "check", file], ["new", tmp_path / "project", "--data", file]):
        code, _, err = call("train", *words)
        assert (code, said in " ".join(err.split())) == (2, True), err
    assert not (tmp_path / "project").exists()


@pytest.mark.parametrize("other", ["train/_annotations_train.json", "val/_annotations.coco.json"])
def test_a_split_of_two_files_is_not_left_out_in_silence(other, call, tmp_path):
    root = lay_out(tmp_path / "set", *LAYOUTS["roboflow"])
    write(root / other, content("train"))
    split = "train" if other.startswith("train") else "val"
    for words in (["data", "check", root], ["new", tmp_path / "project", "--data", root]):
        code, _, err = call("train", *words)
        assert (code, f"holds 2 JSON files for {split}: give one of " in err, other in err) == (2, True, True), err
    (root / other).unlink()
    write(root / "train" / "._annotations.coco.json", "what a Mac leaves")
    write(root / ".idea" / "misc.xml", "what an editor leaves")
    assert splits_of(root) == ["train", "val", "test"]


def test_a_split_without_annotations_is_left_out_of_the_whole(call, tmp_path):
    root = lay_out(tmp_path / "set", *LAYOUTS["one image folder"])
    bare = json.loads((root / "test.json").read_text())
    del bare["annotations"]
    write(root / "test.json", json.dumps(bare))
    dataset = read(root)
    assert list(boxes_of(dataset)) == [f"{split}_{n}.png" for split in ("train", "val") for n in range(4)]
    assert "1 split without annotations left out: test" in map(str, dataset.notes)
    code, _, err = call("train", "data", "convert", root, tmp_path / "all.json")
    assert code == 0, err
    assert len(json.loads((tmp_path / "all.json").read_text())["annotations"]) == 8
    assert [read(tmp_path / "all.json").annotated, read(root / "test.json").annotated] == [True, False]


def test_the_whole_may_list_its_classes_in_two_orders(tmp_path):
    root = lay_out(tmp_path / "set", *LAYOUTS["coco"])
    file = root / "annotations" / "instances_val2017.json"
    turned = json.loads(file.read_text())
    turned["categories"] = [TREE[0], TREE[2], TREE[1]]
    file.write_text(json.dumps(turned))
    dataset = read(root)
    assert dataset.classes == ("cat", "dog")
    assert boxes_of(dataset)["val_0.png"] == [[4, 4, 10, 20, "cat"]]


def test_the_whole_has_the_folder_of_its_images_and_its_own_name(layout):
    root, names = layout
    dataset = read(root)
    assert dataset.source == root
    assert dataset.image_root.is_relative_to(root)
    assert not any(image["file_name"].startswith("/") for image in dataset.images)
    (root / dataset.path(dataset.images[0])).unlink()
    with pytest.raises(DataError, match=f"{names['train']}_0.png does not exist"):
        read(root).check().raise_for_errors()


@pytest.mark.parametrize("other", ["test", "val"])
def test_an_empty_split_is_left_out_of_the_whole_and_refused_by_its_name(other, tmp_path):
    root = lay_out(tmp_path / "set", ("train", "val", "test"), *LAYOUTS["one image folder"][1:])
    write(root / f"{other}.json", json.dumps({"images": [], "annotations": [], "categories": TREE}))
    dataset = read(root)
    assert len(dataset.images) == 8
    assert f"1 split without images left out: {other}" in map(str, dataset.notes)
    assert splits_of(root) == ["train", "val", "test"]
    with pytest.raises(
        DataError, match=rf"the split {other} of .* has no image: write its images into .*{other}\.json, or"
    ):
        reader_of(root)(root, split=other)
    for split in ("train", "val", "test"):
        write(root / f"{split}.json", json.dumps({"images": [], "annotations": [], "categories": TREE}))
    with pytest.raises(DataError, match=r"no split of .*set has images: train, val, test"):
        read(root)


# The root of the categories


def with_root_boxes(file):
    """Name the root of the categories in one box."""
    data = json.loads(file.read_text())
    data["annotations"][0]["category_id"] = 0
    file.write_text(json.dumps(data))


@pytest.mark.parametrize("split", ["train", "valid"])
def test_the_root_of_the_categories_is_a_class_in_all_splits_where_one_has_boxes_of_it(split, call, tmp_path):
    root = lay_out(tmp_path / "set", *LAYOUTS["roboflow"])
    with_root_boxes(root / split / "_annotations.coco.json")
    dataset = read(root)
    assert dataset.classes == ("pets", "cat", "dog")
    assert boxes_of(dataset)[f"{split}_0.png"] == [[4, 4, 10, 20, "pets"]]
    assert not any("is no class" in str(note) for note in dataset.notes)
    for one in ("train", "val", "test"):
        part = reader_of(root)(root, split=one)
        assert part.classes == ("pets", "cat", "dog")
        assert [category["id"] for category in part.with_keys()["categories"]] == [0, 1, 2]
    code, _, err = call("train", "data", "check", *(root / one for one in ("train", "valid", "test")))
    assert code == 0, err
    code, out, err = call("train", "new", tmp_path / "project", "--data", root, "--json")
    assert code == 0, err
    assert json.loads(out)["classes"] == ["pets", "cat", "dog"]


def test_files_given_one_by_one_agree_on_the_root(call, tmp_path):
    root = lay_out(tmp_path / "set", *LAYOUTS["roboflow"])
    with_root_boxes(root / "valid" / "_annotations.coco.json")
    files = [word for one in ("train", "valid") for word in ("--data", root / one / "_annotations.coco.json")]
    code, out, err = call("train", "new", tmp_path / "project", *files, "--json")
    assert code == 0, err
    assert json.loads(out)["classes"] == ["pets", "cat", "dog"]


def test_classes_that_were_left_out_by_choice_are_still_a_difference(tmp_path):
    from cskd_data.together import check_together

    root = lay_out(tmp_path, *LAYOUTS["roboflow"])
    train = read(root / "train")
    with pytest.raises(DataError, match="train and val have different classes"):
        check_together({"train": train, "val": train.select(["dog"])})
    assert train.unused == {"pets": 0}
    assert train.select(["pets", "cat", "dog"]).unused == {}
