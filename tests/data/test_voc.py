"""Pascal VOC into the normal form: other folders, other names, other encodings, and errors that name file and line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cskd_data import DataError, read
from cskd_data.formats import splits_of
from cskd_data.voc import read_voc
from cskd_data.voc_xml import read_xml

from .factories import boxes_of, write, write_photo

INTAKE = Path(__file__).parent / "intake"
NOT_DIFFICULT = ("", "<difficult>0</difficult>", "<difficult>Unspecified</difficult>")
CASES = ("voc_names_with_space", "voc_other_folders", "voc_polygon_object", "voc_wrong_filename", "voc_zero_based")


def thing(name="dog", box=(1, 3, 10, 22), more=""):
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    return f"<object><name>{name}</name>{more}<bndbox>{''.join(f'<{k}>{v}</{k}>' for k, v in sides)}</bndbox></object>"


def annotation(objects=None, filename="a.jpg", size="<size><width>64</width><height>48</height></size>"):
    return (
        f"<annotation>\n<filename>{filename}</filename>\n{size}\n{thing() if objects is None else objects}</annotation>"
    )


@pytest.fixture
def voc(tmp_path):
    """A folder, and a function that writes XML files and images into it."""
    root = tmp_path / "voc"

    def fill(**files):
        for name, content in files.items():
            write(root / "Annotations" / f"{name}.xml", content)
            write_photo(root / "JPEGImages" / f"{name}.jpg")
        return root

    return root, fill


@pytest.mark.parametrize("case", CASES)
def test_an_odd_set_has_its_expected_boxes(case):
    expected = json.loads((INTAKE / case / "expected.json").read_text())
    found = boxes_of(read(INTAKE / case))
    assert found.keys() == expected.keys()
    for name, boxes in expected.items():
        assert [box[4] for box in found[name]] == [box[4] for box in boxes]
        for one, other in zip(found[name], boxes, strict=True):
            assert one[:4] == pytest.approx(other[:4], abs=1e-3)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("voc_names_with_space", "1 XML file not in ImageSets/Main/train.txt, left out"),
        ("voc_polygon_object", "1 polygon read as the box around it: a cup of photo_1.xml"),
        ("voc_wrong_filename", "1 XML file with somebody else's image as <filename>"),
        ("voc_zero_based", "coordinates are read as counted from zero (width = xmax - xmin): 1 box at 0."),
    ],
)
def test_what_was_not_as_in_voc_is_noted_once(case, said):
    (note,) = read(INTAKE / case).notes
    assert str(note).startswith(said)
    assert read(INTAKE / "voc_other_folders").notes == ()


def test_coordinates_count_from_one_unless_one_is_below_or_the_caller_says_so(voc):
    _, fill = voc
    root = fill(a=annotation(thing(box=(2, 3, 10, 22.5))))
    assert boxes_of(read_voc(root))["a.jpg"] == [[1, 2, 9, 20.5, "dog"]]
    assert boxes_of(read_voc(root, zero_based=True))["a.jpg"] == [[2, 3, 8, 19.5, "dog"]]
    root = fill(b=annotation(thing(box=(0.5, 3, 10, 22)), "b.jpg"))
    assert boxes_of(read_voc(root))["a.jpg"] == [[2, 3, 8, 19.5, "dog"]]
    assert boxes_of(read_voc(root, zero_based=False))["a.jpg"] == [[1, 2, 9, 20.5, "dog"]]


def test_all_splits_count_their_coordinates_alike(voc):
    root, fill = voc
    fill(a=annotation(thing(box=(0, 3, 10, 22))), b=annotation(thing(box=(5, 3, 10, 22)), "b.jpg"))
    for split, name in (("train", "a"), ("val", "b")):
        write(root / "ImageSets" / "Main" / f"{split}.txt", f"{name}\n")
    assert boxes_of(read_voc(root, split="train")) == {"a.jpg": [[0, 3, 10, 19, "dog"]]}
    assert boxes_of(read_voc(root, split="val")) == {"b.jpg": [[5, 3, 5, 19, "dog"]]}
    said = "coordinates are read as counted from zero (width = xmax - xmin): 1 box at 0"
    assert str(read_voc(root, split="val").notes[0]).startswith(said)


@pytest.mark.parametrize(
    "box", [(2.5, 3.25, 10.5, 22.0), ("2,5", "3,25", "10,5", "22"), (" 2.5 ", "3.250", "1.05e1", "22")]
)
def test_fractions_of_pixels_are_kept_with_a_point_or_a_comma(voc, box):
    _, fill = voc
    assert boxes_of(read(fill(a=annotation(thing(box=box)))))["a.jpg"] == [[1.5, 2.25, 9, 19.75, "dog"]]


def test_xml_beside_its_image_and_several_splits_as_folders_are_read(tmp_path):
    for split, seed in (("train", 1), ("test", 2)):
        write(tmp_path / split / "same.xml", annotation(thing(split), "same.png"))
        write_photo(tmp_path / split / "same.png", seed)
    dataset = read(tmp_path)
    assert [image["file_name"] for image in dataset.images] == ["test/same.png", "train/same.png"]
    assert [dataset.classes[one["category_id"] - 1] for one in dataset.annotations] == ["test", "train"]


@pytest.mark.parametrize("base", ["", "Annotations"])
def test_folders_named_as_splits_are_splits_where_there_are_no_lists(base, tmp_path):
    for split, seed in (("train", 1), ("valid", 2), ("test", 3), ("other", 4)):
        write(tmp_path / base / split / f"{split}.xml", annotation(thing(split), f"{split}.png"))
        write_photo(tmp_path / (f"images/{split}" if base else split) / f"{split}.png", seed)
    assert splits_of(tmp_path) == ["train", "val", "test"]
    assert list(boxes_of(read_voc(tmp_path, split="val"))) == ["valid.png"]
    assert read_voc(tmp_path, split="val").classes == ("test", "train", "valid")
    assert read(tmp_path).classes == ("other", "test", "train", "valid")
    assert str(read(tmp_path).notes[0]).startswith("3 splits read as one")
    assert len(read(tmp_path).images) == 4
    with pytest.raises(DataError, match="splits: train, val, test"):
        read_voc(tmp_path, split="night")


def test_images_elsewhere_are_found_by_name_and_without_their_folder_the_way_out_is_named(voc, tmp_path):
    _, fill = voc
    root = fill(a=annotation(), b=annotation(filename="B.JPG"))
    shutil.move(root / "JPEGImages", tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "b.jpg").rename(tmp_path / "elsewhere" / "B.jpg")
    dataset = read(root, tmp_path / "elsewhere")
    assert [image["file_name"] for image in dataset.images] == ["a.jpg", "B.jpg"]
    with pytest.raises(DataError, match=r"give the folder of the images \(`--images FOLDER`; `img_prefix` in a config"):
        read(root)
    with pytest.raises(DataError, match=r"the image folder .*nowhere of .* does not exist"):
        read(root, tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["images", "JPEGImages"])
def test_images_in_a_folder_beside_that_of_the_annotations_are_found(voc, tmp_path, monkeypatch, name):
    _, fill = voc
    root = fill(a=annotation())
    shutil.move(root / "JPEGImages", tmp_path / name)
    assert list(boxes_of(read(root))) == ["a.jpg"]
    write_photo(root / "other" / "b.jpg")  # images below the folder go before those beside it
    with pytest.raises(DataError, match=r"no image of .* was found below or beside it"):
        read(root)
    shutil.rmtree(root / "other")
    monkeypatch.chdir(root)
    assert read(".").image_root == tmp_path / name


def test_a_file_name_is_used_where_no_image_has_the_xmls_own_name(voc):
    root, fill = voc
    fill(a=annotation(filename="C:\\photos\\other.jpg"))
    (root / "JPEGImages" / "a.jpg").rename(root / "JPEGImages" / "other.jpg")
    assert list(boxes_of(read(root))) == ["other.jpg"]
    write(root / "Annotations" / "b.xml", annotation(filename="other.jpg"))
    with pytest.raises(DataError, match=r"b\.xml and .*a\.xml both mean the image"):
        read(root)


def test_difficult_objects_are_crowds_and_a_missing_flag_is_none(voc):
    _, fill = voc
    others = "".join(thing(box=(5, 5, 9, 9 + n), more=more) for n, more in enumerate(NOT_DIFFICULT))
    dataset = read(fill(a=annotation(thing(more="<difficult>1</difficult>") + others)))
    assert [one["iscrowd"] for one in dataset.annotations] == [1, 0, 0, 0]
    assert str(dataset.notes[0]) == "1 object marked difficult, as iscrowd 1: a dog of a.xml"


def test_boxes_with_scores_are_pseudo_labels(voc):
    _, fill = voc
    scored = annotation(thing(more="<score>0.83</score>") + thing("cat"))
    dataset = read(fill(a=scored))
    assert (dataset.pseudo_labels, [one.get("score") for one in dataset.annotations]) == ({}, [0.83, None])
    assert read(fill(a=scored.replace("0.83", "Unspecified"))).pseudo_labels is None


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_a_missing_size_is_read_from_the_image(voc, size):
    _, fill = voc
    (image,) = read(fill(a=annotation(size=size))).images
    assert (image["width"], image["height"]) == (64, 48)


def test_an_object_without_any_box_is_left_out_and_counted(voc):
    _, fill = voc
    turned = "<object><name>dog</name><robndbox><cx>3</cx></robndbox></object>"
    dataset = read(fill(a=annotation(thing() + turned)))
    assert len(dataset.annotations) == 1
    assert str(dataset.notes[0]) == "1 object without <bndbox> left out: a dog of a.xml"


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [
        ("utf-8", ""),
        ("utf-8-sig", ""),
        ("utf-16", '<?xml version="1.0" encoding="utf-16"?>'),
        ("latin-1", '<?xml version="1.0" encoding="ISO-8859-1"?>'),
        ("cp1252", '<?xml version="1.0" encoding="windows-1252"?>'),
        ("cp1252", ""),
        ("cp1252", '<?xml version="1.0" encoding="utf-8"?>'),
        ("gbk", '<?xml version="1.0" encoding="GB2312"?>'),
        ("utf-8", '<?xml version="1.0" encoding="martian"?>'),
    ],
)
def test_every_encoding_is_read(voc, encoding, declared):
    name = "狗" if encoding == "gbk" else "é"
    _, fill = voc
    dataset = read(fill(a=(declared + annotation(thing(name))).encode(encoding)))
    expected = {"martian": "Ã©"}.get("martian" if "martian" in declared else "", name)
    assert dataset.classes == (expected,)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (annotation().replace("</object>", "</objekt>"), "a.xml, line 4, column 102: not XML (mismatched tag)"),
        (annotation(thing(box=(1, 2, "wide", 3))), "a.xml, line 4: <xmax> is 'wide', expected a number"),
        (annotation(thing(box=(1, 2, "nan", 3))), "a.xml, line 4: <xmax> is 'nan', expected a number"),
        (annotation(thing().replace("<ymin>3</ymin>", "")), "a.xml, line 4: <bndbox> has no <ymin>"),
        (annotation(thing().replace("<name>dog</name>", "")), "a.xml, line 4: <object> has no <name>"),
        (annotation(thing(" ")), "a.xml, line 4: <name> is empty, expected a class name"),
        ("", "a.xml, line 1, column 1: not XML (no element found)"),
        ('<!DOCTYPE a [<!ENTITY e "aaaa">]><annotation/>', "a.xml, line 1: declares an entity, which is not read"),
        ("<annotation>" + "<object>" * 99, "nested more than 64 deep"),
    ],
)
def test_a_broken_file_is_named_with_its_line(voc, content, said):
    _, fill = voc
    with pytest.raises(DataError) as error:
        read(fill(a=content, b=annotation(filename="b.jpg")))
    assert said in str(error.value)
    assert "cannot be used, 1 fault" in str(error.value)


def test_one_xml_file_that_is_no_annotation_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.xml, line 1: <html> is <html>, expected a VOC <annotation>"):
        read(write(tmp_path / "a.xml", "<html></html>"))


def test_an_entity_is_never_expanded_and_a_huge_file_never_read(tmp_path):
    bomb = "<!DOCTYPE a [" + "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 9)) + "]>"
    with pytest.raises(DataError, match="declares an entity"):
        read_xml(write(tmp_path / "a.xml", bomb + "<annotation>&e8;</annotation>"))
    outside = '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation><filename>&e;</filename></annotation>'
    with pytest.raises(DataError, match="declares an entity"):
        read_xml(write(tmp_path / "b.xml", outside))
    with (tmp_path / "c.xml").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(DataError, match="is larger than 4 MiB"):
        read_xml(tmp_path / "c.xml")


@pytest.mark.parametrize("line", ["a", "a.jpg", "a 1", "a -1", "./images/a.jpg", "a\r"])
def test_a_split_list_names_images_in_any_way(voc, line):
    root, fill = voc
    fill(a=annotation(), b=annotation(thing("cat"), "b.jpg"))
    write(root / "ImageSets" / "Main" / "val.txt", f"{line}\n\n")
    write(root / "ImageSets" / "Main" / "train.txt", "b\n")
    dataset = read_voc(root, split="val")
    assert list(boxes_of(dataset)) == ["a.jpg"]
    assert dataset.classes == ("cat", "dog")  # those of all splits
    assert dataset.notes == ()
    assert list(boxes_of(read(root / "ImageSets" / "Main" / "val.txt"))) == ["a.jpg"]
    whole = read_voc(root)
    assert len(whole.images) == 2
    said = "2 splits read as one (the folder or list of a split names it alone): train, val"
    assert [str(note) for note in whole.notes] == [said]


def test_a_list_that_is_not_there_or_names_nothing_is_refused_with_its_line(voc):
    root, fill = voc
    fill(a=annotation())
    write(root / "ImageSets" / "Main" / "train.txt", "a\nghost\n")
    with pytest.raises(DataError, match=r"voc has no split 'test'; splits: train$"):
        read_voc(root, split="test")
    with pytest.raises(DataError, match=r"train\.txt cannot be used, 1 fault:\n  line 2: there is no ghost\.xml"):
        read_voc(root, split="train")


@pytest.mark.parametrize("folder", ["ImageSets/Main", "ImageSets"])
def test_a_list_is_the_path_of_its_split(voc, tmp_path, folder, monkeypatch):
    root, fill = voc
    fill(a=annotation(), b=annotation(filename="b.jpg"))
    listing = write(root / folder / "test.txt", "b\n")
    shutil.move(root / "JPEGImages", tmp_path / "elsewhere")
    dataset = read(listing, tmp_path / "elsewhere")
    assert list(boxes_of(dataset)) == ["b.jpg"]
    assert (dataset.source, dataset.notes) == (listing, ())
    monkeypatch.chdir(listing.parent)
    assert list(boxes_of(read("test.txt", tmp_path / "elsewhere"))) == ["b.jpg"]
    with pytest.raises(DataError, match=r"other\.txt is not JSON"):
        read(write(root / "other.txt", "a\n"))


def test_a_folder_without_annotations_and_one_without_objects_are_refused(tmp_path, voc):
    _, fill = voc
    with pytest.raises(DataError, match="holds no XML file"):
        read_voc(tmp_path)
    with pytest.raises(DataError, match="has no object of any class in 1 XML file"):
        read_voc(fill(a=annotation("")))


def test_missing_images_may_be_left_out(voc):
    root, fill = voc
    fill(a=annotation(), b=annotation(filename="b.jpg"))
    (root / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"image a\.jpg does not exist"):
        read_voc(root)
    assert list(boxes_of(read_voc(root, skip_missing=True))) == ["b.jpg"]


def test_a_link_to_a_folder_above_ends_nothing(voc):
    root, fill = voc
    fill(a=annotation())
    (root / "JPEGImages" / "again").symlink_to(root, target_is_directory=True)
    assert len(read(root).images) == 1
