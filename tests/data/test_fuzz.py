"""Broken files of every kind: read, or refused in one message; never a traceback, a hang or memory without end.

The first tier tries a few hundred, the same each time; `-m reliability` tries more than ten thousand, others each time.
"""

from __future__ import annotations

import json
import resource
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cskd_data.coco import read_coco
from cskd_data.contact_sheet import contact_sheet
from cskd_data.errors import DataError
from cskd_data.images import image_size, load_image
from cskd_data.split import split
from cskd_data.voc import read_voc
from cskd_data.yolo import read_yolo

from .factories import encoded, photo, with_orientation, write, write_photo

HANG = 30_000  # milliseconds
MOST_GROWTH = 400_000  # KiB, of a tier over all its inputs; each is a few kilobytes

FEW = {"max_examples": 80, "derandomize": True}
MANY = {"max_examples": 2600}
COMMON = {
    "deadline": HANG,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
}

WORDS = [b"<", b">", b"</", b"<object>", b"]]>", b"<!ENTITY", b"&a;", b"[", b"{", b"}", b'"', b"null", b"-1", b"1e999"]
WORDS += [
    b"NaN",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\0",
    b"\r",
    b"\n",
    b" ",
    b":",
    b"- ",
    b"&x ",
    b"*x",
    b"!!python/x",
    b"../",
]
WORDS += [
    b"\xff\xd9",
    b"\xff\xda",
    b"\xff\xc0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"IEND",
    b"IHDR",
    b"\x80\0\0\0",
]


@st.composite
def mutated(draw, seeds):
    """One of the seeds with pieces cut out, doubled, overwritten or put in; or only bytes."""
    content = draw(st.sampled_from(seeds)) if draw(st.integers(0, 9)) else draw(st.binary(max_size=300))
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 2, 3, 6]))):
        start = draw(st.integers(0, len(content)))
        length = draw(st.one_of(st.integers(0, 8), st.integers(0, len(content))))
        piece = draw(st.one_of(st.sampled_from(WORDS), st.binary(max_size=6)))
        kind = draw(st.sampled_from(["cut", "double", "write", "insert", "end"]))
        rest = content[start + length :]
        if kind == "cut":
            content = content[:start] + rest
        elif kind == "double":
            content = content[: start + length] + content[start:]
        elif kind == "write":
            content = content[:start] + piece + content[start + len(piece) :]
        elif kind == "insert":
            content = content[:start] + piece * draw(st.integers(1, 40)) + content[start:]
        else:
            content = content[:start]
    return content[:20_000]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from([0, 1, 2, "1", "a.png"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)


@st.composite
def changed_coco(draw):
    """A sound COCO file in which up to four entries are something else, or are not there."""
    data = json.loads(COCO)
    for _ in range(draw(st.integers(0, 4))):
        node, key = data, draw(st.sampled_from(["images", "annotations", "categories"]))
        while draw(st.integers(0, 3)) and isinstance(
            node.get(key) if isinstance(node, dict) else node[key], (list, dict)
        ):
            node = node[key]
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
        if isinstance(node, dict) and draw(st.integers(0, 3)) == 0:
            node.pop(key, None)
        elif isinstance(node, dict) or (isinstance(key, int) and key < len(node)):
            node[key] = draw(values)
        if not isinstance(data, dict):
            break
    return json.dumps(data).encode()


COCO = json.dumps(
    {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}, {"id": 2, "file_name": "b.png"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 2, "segmentation": [[1, 2, 30, 4, 5, 6]]},
            {"id": 3, "image_id": 2, "category_id": 2, "segmentation": {"size": [48, 64], "counts": [5, 9, 3058]}},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog", "supercategory": "cat"}],
    }
).encode()
XML = (
    b'<?xml version="1.0" encoding="utf-8"?><annotation><filename>a.png</filename><size><width>64</width><height>48'
    b"</height></size><object><name>dog</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30"
    b"</xmax><ymax>40</ymax></bndbox></object><object><name>cat</name><polygon><x1>1</x1><y1>2</y1><x2>3</x2><y2>4"
    b"</y2></polygon></object></annotation>"
)
YAML = b"path: .\ntrain: images\nval: [images, list.txt]\nnc: 2\nnames:\n  0: cat\n  1: 'dog'\n"
ROWS = b"0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.2 0.1 0.2 0.2\r\n1 0.5 0.5 0.1 0.1 0.9\n"
SMALL = photo(24, 32)
PICTURES = [
    encoded(kind, SMALL, **options)
    for kind, options in (
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"restart_marker_blocks": 1}),
        ("JPEG", {"mode": "CMYK"}),
        ("PNG", {}),
        ("PNG", {"mode": "P"}),
        ("BMP", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
    )
]
PICTURES += [with_orientation(kind, 6) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]


def use(dataset):
    """What the commands do with a data set that was read."""
    dataset.check()
    json.dumps(dataset.with_keys())
    with tempfile.TemporaryDirectory() as folder:
        contact_sheet(dataset, Path(folder) / "sheet.png", count=2)
    split(dataset, 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    for number, name in enumerate(("a", "b")):
        write_photo(root / "images" / f"{name}.png", number)
        write(root / "Annotations" / f"{name}.xml", XML)
        write(root / "labels" / f"{name}.txt", ROWS)
    write(root / "data.yaml", YAML)
    return root


def coco(folder, content):
    use(read_coco(write(folder / "coco.json", content), folder / "images"))


def voc(folder, content):
    write(folder / "Annotations" / "a.xml", content)
    use(read_voc(folder, folder / "images"))


def voc_list(folder, content):
    write(folder / "Annotations" / "a.xml", XML)
    write(folder / "ImageSets" / "Main" / "train.txt", content)
    use(read_voc(folder, folder / "images", split="train"))


def rows(folder, content):
    write(folder / "data.yaml", YAML)
    write(folder / "labels" / "a.txt", content)
    use(read_yolo(folder))


def yaml(folder, content):
    write(folder / "labels" / "a.txt", ROWS)
    write(folder / "data.yaml", content)
    use(read_yolo(folder / "data.yaml"))


def picture(folder, content):
    path = write(folder / "picture", content)
    pixels = load_image(path)
    assert image_size(path) == (pixels.shape[1], pixels.shape[0])


KINDS = {
    "coco": (coco, st.one_of(changed_coco(), mutated([COCO]))),
    "voc": (voc, mutated([XML, XML.decode().encode("utf-16")])),
    "voc list": (voc_list, mutated([b"a\nb 1\n", b"a.png\r\n"])),
    "yolo rows": (rows, mutated([ROWS])),
    "yolo yaml": (yaml, mutated([YAML])),
    "picture": (picture, mutated(PICTURES)),
}


def attack(kind, folder, tier):
    door, inputs = KINDS[kind]
    answers = {"read": 0, "refused": 0}

    @settings(**COMMON, **tier)
    @given(inputs)
    def run(content):
        message = ""
        try:
            door(folder, content)
        except DataError as error:
            message = str(error) or "a message without a word"
        answers["refused" if message else "read"] += 1
        assert len(message) < 20_000
        assert message != "a message without a word"

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_GROWTH
    return answers


@pytest.mark.filterwarnings("ignore::cskd_data.images.ImageWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_file_is_read_or_refused(kind, folder):
    answers = attack(kind, folder, FEW)
    assert min(answers.values()) > 1  # sound and broken ones are both among them


@pytest.mark.reliability
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore::cskd_data.images.ImageWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_broken_files_are_read_or_refused(kind, folder):
    answers = attack(kind, folder, MANY)
    assert sum(answers.values()) >= 2000
    assert min(answers.values()) > 20
