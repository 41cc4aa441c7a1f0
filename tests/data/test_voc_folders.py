"""Pascal VOC in folders below one another: which file a list means, which image an XML file means."""

from __future__ import annotations

from pathlib import Path

import pytest

from cskd_data import DataError, read
from cskd_data.formats import format_of, splits_of
from cskd_data.voc import read_voc

from .factories import boxes_of, note_of, write, write_photo
from .test_voc import annotation, thing

PLACES = {  # layout -> folder of the XML files, folder of the images
    "beside": ("{}", "{}"),
    "voc": ("Annotations/{}", "JPEGImages/{}"),
    "folders in the middle": ("{}/xml", "{}/images"),
}


@pytest.fixture(params=PLACES)
def cameras(request, tmp_path):
    """Two cameras whose files have equal names; the boxes of each tell it."""
    labels, pictures = PLACES[request.param]
    for camera, name in (("cam1", "dog"), ("cam2", "cat")):
        for number in range(2):
            file = f"{camera}/{number}.png" if request.param == "voc" else f"{number}.png"
            write(tmp_path / labels.format(camera) / f"{number}.xml", annotation(thing(name), file))
            write_photo(tmp_path / pictures.format(camera) / f"{number}.png", seed=number + 9 * (camera == "cam2"))
    return tmp_path, labels


def classes_by_file(dataset):
    """Each image's file below the set's folder -> the class of its box."""
    names = {image["id"]: dataset.path(image) for image in dataset.images}
    return {names[one["image_id"]]: dataset.classes[one["category_id"] - 1] for one in dataset.annotations}


def test_equal_names_in_several_folders_have_the_images_of_their_folders(cameras):
    root, _ = cameras
    found = classes_by_file(read_voc(root))
    assert len(found) == 4
    assert all(name == ("dog" if "cam1" in path.parts else "cat") for path, name in found.items())


@pytest.mark.parametrize("line", ["{}/{}", "{}/{}.png", "./{}/{}.xml", "/home/you/{}/{}.png", "{}/{} 1"])
def test_a_list_names_the_folders_too(cameras, line):
    root, labels = cameras
    way = labels.removeprefix("Annotations/")
    for split, camera in (("train", "cam1"), ("val", "cam2")):
        lines = [line.format(way.format(camera), number) for number in range(2)]
        write(root / "ImageSets" / "Main" / f"{split}.txt", "\n".join(lines))
    for split, camera in (("train", "cam1"), ("val", "cam2")):
        found = classes_by_file(read_voc(root, split=split))
        assert [camera in path.parts for path in found] == [True, True]
        assert set(found.values()) == {"dog" if camera == "cam1" else "cat"}


@pytest.mark.parametrize("line", ["0", "0.png", "elsewhere/0"])
def test_a_line_that_may_mean_several_files_is_refused(cameras, line):
    root, _ = cameras
    write(root / "ImageSets" / "Main" / "train.txt", f"{line}\n")
    with pytest.raises(DataError, match=r"line 1: it is unclear which of .*cam1.*, .*cam2.* is .*0.*: name its folder"):
        read_voc(root, split="train")


def test_a_file_without_a_folder_is_meant_by_its_name_alone(tmp_path):
    for way, name in (("0", "dog"), ("cam1/0", "cat")):
        write(tmp_path / "Annotations" / f"{way}.xml", annotation(thing(name), f"{way}.png"))
        write_photo(tmp_path / "JPEGImages" / f"{way}.png", seed=len(way))
    for line, name in (("0", "dog"), ("cam1/0", "cat"), ("JPEGImages/0.png", "dog")):
        write(tmp_path / "ImageSets" / "Main" / "train.txt", line)
        assert list(classes_by_file(read_voc(tmp_path, split="train")).values()) == [name]


def test_the_folder_in_filename_tells_where_xml_files_have_none(tmp_path):
    write(tmp_path / "Annotations" / "0.xml", annotation(filename="cam2\\0.png"))
    for camera in ("cam1", "cam2"):
        write_photo(tmp_path / "JPEGImages" / camera / "0.png")
    assert [path.parent.name for path in classes_by_file(read(tmp_path))] == ["cam2"]


@pytest.mark.parametrize("filename", ["cam2/0.png", "0.png"])
def test_no_image_of_another_folder_stands_in_for_one_that_is_missing(tmp_path, filename):
    for camera in ("cam1", "cam2"):
        write(tmp_path / "Annotations" / camera / "0.xml", annotation(filename=filename))
        write(tmp_path / "Annotations" / camera / "1.xml", annotation(filename=f"{camera}/1.png"))
        write_photo(tmp_path / "JPEGImages" / camera / "1.png", seed=len(camera))
        write(tmp_path / "ImageSets" / "Main" / f"{camera}.txt", f"{camera}/0\n{camera}/1\n")
    write_photo(tmp_path / "JPEGImages" / "cam1" / "0.png")
    for split in (None, "cam2"):
        with pytest.raises(DataError, match=r"1 fault:\n  image .*0\.(png|jpg) does not exist"):
            read_voc(tmp_path, split=split)
    assert [path.parts[-2:] for path in classes_by_file(read_voc(tmp_path, split="cam2", skip_missing=True))] == [
        ("cam2", "1.png")
    ]


def test_an_images_own_xml_file_goes_before_one_that_names_it(tmp_path):
    write(tmp_path / "Annotations" / "a.xml", annotation(thing("cat")))
    write(tmp_path / "Annotations" / "b.xml", annotation(filename="a.jpg"))
    write_photo(tmp_path / "JPEGImages" / "a.jpg")
    with pytest.raises(DataError, match=r"image b\.jpg does not exist"):
        read(tmp_path)
    assert boxes_of(read_voc(tmp_path, skip_missing=True)) == {"a.jpg": [[0, 2, 10, 20, "cat"]]}


AUX = "<PAMDataset>\n<Metadata/></PAMDataset>"
MET = '<?xml version="1.0"?>\n<!-- <annotation> --><!DOCTYPE qgis SYSTEM "x.dtd">\n<qgis version="3"></qgis>'


def test_xml_files_of_other_programs_make_no_voc_set(tmp_path):
    from .test_coco_folders import LAYOUTS, lay_out

    root = lay_out(tmp_path, *LAYOUTS["roboflow"])
    write(root / "train" / "train_0.png.aux.xml", AUX)
    write(root / "style.xml", MET.encode("utf-16"))
    assert (format_of(root), splits_of(root)) == ("coco", ["train", "val", "test"])
    assert len(read(root).images) == 12


def test_xml_files_of_other_programs_in_a_voc_set_are_left_aside_with_a_note(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.xml", annotation(filename=f"{name}.tif"))
        write_photo(tmp_path / f"{name}.tif", seed=ord(name))
        write(tmp_path / f"{name}.tif.aux.xml", AUX)
    dataset = read(tmp_path)
    assert len(dataset.images) == 2
    said = "2 XML files of something else, without <annotation>, left aside: a.tif.aux.xml, b.tif.aux.xml"
    assert note_of(dataset, "left aside") == said
    write(tmp_path / "ImageSets" / "Main" / "train.txt", "a\n")
    assert note_of(read(tmp_path), "not in ImageSets").startswith("1 XML file not in ")


def test_endings_in_capitals_are_found(tmp_path):
    write(tmp_path / "voc" / "A.XML", annotation(filename="A.PNG"))
    write_photo(tmp_path / "voc" / "a.png").rename(tmp_path / "voc" / "A.PNG")
    assert list(boxes_of(read(tmp_path / "voc"))) == ["A.PNG"]
    assert Path(read(tmp_path / "voc" / "A.XML").images[0]["file_name"]).name == "A.PNG"


# Images that are gone, and their namesakes


def pictures_and_files(root, pictures, files):
    """Images, and XML files by their names, each with what it says in <filename>."""
    for number, name in enumerate(pictures):
        write_photo(root / name, seed=number)
    for name, filename in files.items():
        write(root / name, annotation(thing("cat"), filename))
    return root


@pytest.mark.parametrize(
    ("pictures", "files", "gone"),
    [
        (["JPEGImages/cam1/1.png", "JPEGImages/cam2/0.png"], ["Annotations/cam1/0.xml", "Annotations/cam1/1.xml"], "0"),
        (["cam1/png/1.png", "cam2/png/0.png"], ["cam1/xml/0.xml", "cam1/xml/1.xml"], "0"),
        (["train/1.png", "valid/0.png"], ["train/0.xml", "train/1.xml"], "0"),
        (["new/cam3/0.png", "new/cam2/1.png"], ["Annotations/cam1/0.xml", "Annotations/cam2/1.xml"], "0"),
    ],
)
def test_an_image_that_is_gone_is_not_replaced_by_its_namesake_in_another_folder(tmp_path, pictures, files, gone):
    names = {name: Path(name).with_suffix(".png").name for name in files}
    root = pictures_and_files(tmp_path, pictures, names)
    with pytest.raises(DataError, match=rf"1 fault:\n  image .*{gone}\S* does not exist"):
        read_voc(root)
    assert list(boxes_of(read_voc(root, skip_missing=True))) == ["1.png"]


def test_the_folders_of_filename_count_where_the_file_is_in_none(tmp_path):
    files = {f"Annotations/{number}.xml": f"cam1/{number}.png" for number in range(2)}
    root = pictures_and_files(tmp_path, ["JPEGImages/cam1/1.png", "JPEGImages/cam2/0.png"], files)
    with pytest.raises(DataError, match=r"image .*0\S* does not exist"):
        read(root)


def test_files_of_one_folder_find_their_images_in_those_of_splits_and_it_is_said(tmp_path):
    files = {f"Annotations/{number}.xml": f"{number}.png" for number in range(2)}
    root = pictures_and_files(tmp_path, ["JPEGImages/train/0.png", "JPEGImages/val/1.png"], files)
    dataset = read(root)
    assert list(boxes_of(dataset)) == ["0.png", "1.png"]
    assert note_of(dataset, "XML file").startswith("2 images whose XML file is not in a folder of the same name")


def test_files_in_a_folder_of_their_kind_are_in_that_of_their_camera(tmp_path):
    files = {f"cam{number}/xml/{number}.xml": f"{number}.png" for number in range(2)}
    dataset = read_voc(pictures_and_files(tmp_path, ["cam0/png/0.png", "cam1/png/1.png"], files))
    assert (list(boxes_of(dataset)), dataset.notes) == (["0.png", "1.png"], ())
