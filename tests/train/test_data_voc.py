"""`data from-voc`: VOC's boxes in COCO's convention, and errors that name file and line."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

FIRST = """<annotation>
  <filename>a.jpg</filename>
  <size><width>64</width><height>48</height><depth>3</depth></size>
  <object>
    <name>dog</name><difficult>0</difficult>
    <bndbox><xmin>1</xmin><ymin>3</ymin><xmax>10</xmax><ymax>22</ymax></bndbox>
  </object>
  <object>
    <name>cat</name><difficult>1</difficult>
    <bndbox><xmin>20</xmin><ymin>20</ymin><xmax>39.5</xmax><ymax>30</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
  </object>
</annotation>
"""
SECOND = """<annotation>
  <filename>renamed.jpg</filename>
  <object><name>dog</name>
    <bndbox><xmin>5</xmin><ymin>5</ymin><xmax>14</xmax><ymax>9</ymax></bndbox>
  </object>
</annotation>
"""


@pytest.fixture
def voc_root(tmp_path):
    """Two images; the second's XML has no size and names a file that is not there."""
    root = tmp_path / "voc"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    (root / "Annotations" / "a.xml").write_text(FIRST)
    (root / "Annotations" / "b.xml").write_text(SECOND)
    for name, shape in (("a.jpg", (48, 64, 3)), ("b.png", (32, 40, 3))):
        cv2.imwrite(str(root / "JPEGImages" / name), np.full(shape, 90, np.uint8))
    (root / "ImageSets" / "Main" / "train.txt").write_text("b  1\n\n")
    return root


def test_boxes_and_names_become_coco(voc_root, tmp_path, command_line):
    out = tmp_path / "coco.json"
    code, printed, _ = command_line("data", "from-voc", voc_root, out)
    coco = json.loads(out.read_text())
    assert code == 0
    assert coco["images"] == [
        {"id": 1, "file_name": "a.jpg", "width": 64, "height": 48},
        {"id": 2, "file_name": "b.png", "width": 40, "height": 32},
    ]
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    boxes = [(a["id"], a["image_id"], a["category_id"], a["bbox"], a["area"]) for a in coco["annotations"]]
    assert boxes == [
        (1, 1, 2, [0.0, 2.0, 10.0, 20.0], 200.0),
        (2, 1, 1, [19.0, 19.0, 20.5, 11.0], 225.5),
        (3, 2, 2, [4.0, 4.0, 10.0, 5.0], 50.0),
    ]
    check = ("data", "check", out, "--images", voc_root / "JPEGImages", "--decode")
    assert " ".join(map(str, check[:-1])) in printed
    assert command_line(*check)[0] == 0


def test_difficult_objects_are_crowds_that_pycocotools_and_mmdet_ignore(voc_root, tmp_path, command_line):
    out = tmp_path / "coco.json"
    _, printed, _ = command_line("data", "from-voc", voc_root, out)
    assert [annotation["iscrowd"] for annotation in json.loads(out.read_text())["annotations"]] == [0, 1, 0]
    assert "1 difficult boxes have iscrowd 1" in printed


def test_zero_based_coordinates_are_taken_as_they_are(voc_root, tmp_path, command_line):
    command_line("data", "from-voc", voc_root, tmp_path / "coco.json", "--zero-based")
    first = json.loads((tmp_path / "coco.json").read_text())["annotations"][0]
    assert (first["bbox"], first["area"]) == ([1.0, 3.0, 9.0, 19.0], 171.0)


def test_a_split_and_classes_choose_images_and_the_order_of_ids(voc_root, tmp_path, command_line):
    command_line("data", "from-voc", voc_root, tmp_path / "split.json", "--split", "train", "--classes", "dog,cat")
    coco = json.loads((tmp_path / "split.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["b.png"]
    assert coco["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    _, printed, _ = command_line("data", "from-voc", voc_root, tmp_path / "dogs.json", "--classes", "dog", "--json")
    assert json.loads(printed)["left_out"] == {"cat": 1}
    assert len(json.loads((tmp_path / "dogs.json").read_text())["annotations"]) == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("</object>", "</objekt>", "a.xml, line 7, column 5: not XML (mismatched tag)"),
        ("<ymin>20</ymin>", "", "a.xml, line 10: <bndbox> has no <ymin>"),
        ("<xmax>39.5</xmax>", "<xmax>wide</xmax>", "a.xml, line 10: <xmax> is 'wide', expected a number"),
        ("<xmax>39.5</xmax>", "<xmax>nan</xmax>", "a.xml, line 10: <xmax> is 'nan', expected a number"),
        ("<name>cat</name>", "", "a.xml, line 8: <object> has no <name>"),
        ("<name>cat</name>", "<name> </name>", "a.xml, line 9: <name> is empty, expected a class name"),
        (FIRST, "<html></html>", "a.xml, line 1: <html> is <html>, expected a VOC <annotation>"),
        (FIRST, "", "a.xml, line 1, column 1: not XML (no element found)"),
        ("a.jpg", "c.jpg", None),  # falls back to the XML's own name
    ],
)
def test_a_broken_annotation_is_named_with_its_line(voc_root, tmp_path, command_line, old, new, said):
    (voc_root / "Annotations" / "a.xml").write_text(FIRST.replace(old, new, 1))
    code, _, err = command_line("data", "from-voc", voc_root, tmp_path / "coco.json")
    assert code == (2 if said else 0)
    assert (said or "") in err
    assert "Traceback" not in err
    assert (tmp_path / "coco.json").exists() == (said is None)


def test_a_missing_image_folder_or_split_is_named(voc_root, tmp_path, command_line):
    out = tmp_path / "coco.json"
    _, _, err = command_line("data", "from-voc", voc_root, out, "--split", "test")
    assert "test.txt does not exist; splits there: train" in err
    (voc_root / "ImageSets" / "Main" / "train.txt").write_text("b\nghost\n")
    _, _, err = command_line("data", "from-voc", voc_root, out, "--split", "train")
    assert "train.txt, line 2:" in err
    assert "ghost.xml does not exist" in err
    (voc_root / "JPEGImages" / "a.jpg").unlink()
    _, _, err = command_line("data", "from-voc", voc_root, out)
    assert "a.xml: its image a.jpg is not in" in err
    code, _, err = command_line("data", "from-voc", tmp_path / "nowhere", out)
    assert code == 2
    assert "has no folder Annotations" in err


def test_classes_that_never_occur_are_refused(voc_root, tmp_path, command_line):
    code, _, err = command_line("data", "from-voc", voc_root, tmp_path / "coco.json", "--classes", "cow")
    assert code == 2
    assert "has no object of the classes cow; found: dog, cat" in err


def test_an_existing_file_is_kept_unless_it_may_be_replaced(voc_root, tmp_path, command_line):
    out = tmp_path / "coco.json"
    out.write_text("mine")
    code, _, err = command_line("data", "from-voc", voc_root, out)
    assert (code, out.read_text()) == (2, "mine")
    assert "exists: nothing was changed. Give another name, or --overwrite" in err
    assert command_line("data", "from-voc", voc_root, out, "--overwrite")[0] == 0
    assert len(json.loads(out.read_text())["images"]) == 2
