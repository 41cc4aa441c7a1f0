"""Where the images of a COCO file are: as it names them, beside it, or elsewhere."""

from __future__ import annotations

import json
import os

import pytest

from cskd_data import DataError, read

from .factories import note_of


def write_far_away(coco_set, tmp_path, odd=False):
    """The set's images in a deep folder of their own, and its file written to another one."""
    file, folder, _ = coco_set
    far = tmp_path / "pictures" / (os.fsdecode(b"2026 \xff") if odd else "2026")
    far.parent.mkdir()
    folder.rename(far)
    dataset = read(file, far)
    out = tmp_path / "sets" / "mine" / "all.json"
    dataset.to_coco(out)
    return dataset, out, far


@pytest.mark.parametrize("odd", [False, True])
def test_a_written_file_finds_its_images_wherever_they_are(coco_set, tmp_path, monkeypatch, odd):
    dataset, out, far = write_far_away(coco_set, tmp_path, odd)
    written = json.loads(out.read_text())
    assert [image["file_name"] for image in written["images"]] == ["a.jpg", "b.png"]  # as other tools expect
    assert written["info"]["image_root"] == os.path.join("..", "..", "pictures", far.name)
    for folder in (None, far):
        again = read(out, folder)
        assert (again.image_root, again.data, again.notes) == (far, dataset.data, ())
    monkeypatch.chdir(out.parent)
    assert read("all.json").image_root == far


def test_a_written_file_and_its_images_may_be_moved_together_and_linked_to(coco_set, tmp_path):
    _, out, far = write_far_away(coco_set, tmp_path)
    (moved := tmp_path / "a" / "b").mkdir(parents=True)
    for folder in ("sets", "pictures"):
        (tmp_path / folder).rename(moved / folder)
    (tmp_path / "link.json").symlink_to(moved / out.relative_to(tmp_path))
    for file in (moved / out.relative_to(tmp_path), tmp_path / "link.json"):
        assert read(file).image_root == moved / far.relative_to(tmp_path)


def test_through_a_linked_folder_the_way_is_that_of_the_folder_itself(coco_set, tmp_path):
    file, folder, _ = coco_set
    (deep := tmp_path / "x" / "y" / "z").mkdir(parents=True)
    (tmp_path / "short").symlink_to(deep)
    folder = folder.rename(tmp_path / "x" / "pictures")
    read(file, folder).to_coco(tmp_path / "short" / "all.json")
    for written in (tmp_path / "short" / "all.json", deep / "all.json"):
        assert read(written).image_root == folder


def test_the_folder_that_a_file_names_counts_only_where_its_images_are_there(coco_set, tmp_path):
    file, folder, write = coco_set
    for info in ({"image_root": "nowhere"}, {"image_root": ".."}, {"image_root": 3}, {"year": 2026}, "text", None):
        write(lambda data, info=info: data.update(info=info))
        assert read(file).image_root == folder
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.jpg").write_bytes((folder / "a.jpg").read_bytes())
    write(lambda data: (data.update(info={"image_root": "other"}), data["images"].pop(), data["annotations"].clear()))
    assert read(file).image_root == other
    assert read(file, folder).image_root == folder  # what is given goes before what is written


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("images/a.jpg", None),
        ("./a.jpg", None),
        ("images\\a.jpg", "1 file name written in Windows' way"),
        ("%61.jpg", "1 file name quoted as in a URL"),
        ("C:\\work\\pictures\\a.jpg", "1 file name with folders that are not there"),
        ("http://images.org/train/a.jpg", "1 file name with folders that are not there"),
        ("A.JPG", "1 file name in other upper or lower case"),
    ],
)
def test_a_file_name_of_another_machine_finds_its_file(coco_set, name, note):
    file, folder, write = coco_set
    write(lambda data: data["images"][0].update(file_name=name))
    dataset = read(file, folder)
    assert os.path.samefile(dataset.path(dataset.images[0]), folder / "a.jpg")
    assert (note is None) == (dataset.notes == ())
    assert note is None or note_of(dataset, note)


def test_two_names_that_would_mean_one_file_mean_none(coco_set):
    file, folder, write = coco_set
    write(lambda data: [image.update(file_name=f"{image['id']}/a.jpg") for image in data["images"]])
    with pytest.raises(DataError, match=r"2 faults:\n  image 7/a\.jpg does not exist\n  image 3/a\.jpg does not"):
        read(file, folder)


def test_images_are_found_beside_the_file_and_a_folder_without_them_is_none(coco_set, tmp_path):
    file, folder, _ = coco_set
    assert read(file).image_root == folder
    (alone := tmp_path / "elsewhere").mkdir()
    file.rename(alone / "coco.json")
    assert read(alone / "coco.json").image_root == folder
    for name in ("a.jpg", "b.png"):
        (folder / name).unlink()
    dataset = read(alone / "coco.json")
    assert dataset.image_root is None
    with pytest.raises(DataError, match="give the folder of the images"):
        dataset.path(dataset.images[0])
    with pytest.raises(DataError, match=r"the image folder .*gone of .*coco\.json does not exist"):
        read(alone / "coco.json", tmp_path / "gone")


def test_a_link_to_a_folder_above_hides_no_image_that_is_looked_for_by_its_base_name(coco_set):
    file, folder, write = coco_set
    (folder / "deep").mkdir()
    (folder / "a.jpg").rename(folder / "deep" / "a.jpg")
    (folder / "deep" / "again").symlink_to(folder, target_is_directory=True)

    def elsewhere(data):
        data["images"][0]["file_name"] = "/mnt/photos/a.jpg"

    write(elsewhere)
    assert [image["file_name"] for image in read(file, folder).images] == ["deep/a.jpg", "b.png"]


def test_a_folder_of_one_file_is_read_and_of_several_each_is_named(coco_set):
    file, folder, _ = coco_set
    assert len(read(file.parent, folder).images) == 2
    (file.parent / "val.json").write_text(file.read_text())
    with pytest.raises(DataError, match=r"holds 2 JSON files: give one of coco\.json, val\.json"):
        read(file.parent, folder)
