"""No command writes over what it reads, nor over what a pattern of the shell has put in an option's place."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import cskd_deploy
from cskd_data.errors import CskdError, DataError
from cskd_deploy.commands import bench as bench_command
from cskd_deploy.commands import infer as infer_command
from cskd_deploy.detect.drawing import drawn_name
from cskd_deploy.errors import DeployError
from cskd_deploy.outputs import check_apart

from .engines import MANIFEST, write_small_model

SIZES = [(60, 90), (90, 40), (33, 57)]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A small model, photographs with boxes, a film, and what stands for a checkpoint and a config."""
    root = tmp_path_factory.mktemp("made")
    write_small_model(root / "r.onnx")
    (root / "p").mkdir()
    images, boxes = [], []
    for number, (height, width) in enumerate(SIZES, 1):
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "p" / f"{number}.png"), noise)
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        box = {"id": number, "image_id": number, "category_id": 1, "bbox": [3, 4, 20, 10], "area": 200, "iscrowd": 0}
        boxes.append(box)
    categories = [{"id": number, "name": name} for number, name in enumerate(MANIFEST.classes, 1)]
    (root / "ann.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    film = cv2.VideoWriter(str(root / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for value in (40, 80):
        film.write(np.full((48, 64, 3), value, np.uint8))
    film.release()
    (root / "t.pth").write_bytes(b"trained for weeks")
    (root / "t.py").write_text("model = dict()")
    (root / "former.json").write_text("{}")
    os.link(root / "ann.json", root / "linked.json")
    (root / "link.json").symlink_to("ann.json")
    return root


@pytest.fixture
def world(made, tmp_path, monkeypatch) -> Path:
    shutil.copytree(made, tmp_path / "world", symlinks=True)
    (tmp_path / "world" / "linked.json").unlink()
    os.link(tmp_path / "world" / "ann.json", tmp_path / "world" / "linked.json")
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"


def contents(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


EVAL = ("eval", "r.onnx", "--ann", "ann.json", "--images", "p", "--detections")
EXPORT = ("export", "--checkpoint", "t.pth", "-o")
LOWER = ("export", "--onnx", "r.onnx", "--precision")
INT8 = (*LOWER, "int8", "--calibration-ann", "ann.json", "--calibration-images", "p")
SEARCH = ("search", "r.onnx", "--calibration-images", "p", "--ann", "ann.json", "--images", "p", "--max-drop", 1, "-o")
BENCH = ("bench", "r.onnx", "--no-cold", "--duration", 0, "--iterations", 1, "--images", "p", "--plot")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # What the shell makes of `--json p/*.png`.
        (("infer", "r.onnx", "--json", "p/1.png", "p/2.png", "p/3.png"), "--json p/1.png has the name of an image"),
        (("infer", "r.onnx", "p/1.png", "--json", "r.onnx"), "--json r.onnx has the name of an exported model"),
        (("infer", "r.onnx", "film.avi", "--json", "film.avi"), "--json film.avi has the name of a video"),
        (("infer", "r.onnx", "film.avi", "--json", "t.pth"), "--json t.pth has the name of a checkpoint"),
        (("infer", "r.onnx", "film.avi", "--output", "../world/film.avi"), "would replace film.avi, which is read"),
        (("infer", "r.onnx", "p", "--output", "p"), "would replace the image p/1.png"),
        ((*EVAL, "ann.json"), "output ann.json would replace ann.json, which is read"),
        ((*EVAL, "../world/ann.json"), "would replace ann.json, which is read"),
        ((*EVAL, "link.json"), "output link.json would replace ann.json"),
        ((*EVAL, "linked.json"), "output linked.json would replace ann.json"),
        ((*EVAL, "r.onnx"), "output r.onnx has the name of an exported model"),
        ((*EVAL, "p/1.png"), "output p/1.png has the name of an image"),
        ((*EVAL, "former.json", "--reference", "former.json"), "output former.json would replace former.json"),
        ((*EXPORT, "t.pth"), "output t.pth has the name of a checkpoint"),
        ((*EXPORT, "other.pth"), "output other.pth has the name of a checkpoint"),
        ((*EXPORT, "x.engine"), "output x.engine has the name of an engine"),
        ((*EXPORT, "t.py", "--config", "t.py"), "output t.py would replace t.py"),
        ((*EXPORT, "t.pth", "--precision", "fp16"), "output t.pth has the name of a checkpoint"),
        ((*EXPORT, "t.py", "--config", "t.py", "--precision", "fp16"), "output t.py would replace t.py"),
        ((*LOWER, "fp16", "-o", "r.onnx"), "output r.onnx would replace r.onnx"),
        ((*INT8, "-o", "r.onnx"), "output r.onnx would replace r.onnx"),
        ((*INT8, "-o", "ann.json"), "output ann.json would replace ann.json"),
        ((*INT8, "-o", "new.onnx", "--calibration-cache", "x.png"), "calibration cache x.png has the name of an image"),
        ((*INT8, "-o", "new", "--calibration-cache", "new"), "output new would replace new"),
        ((*SEARCH, "r.onnx"), "output r.onnx would replace r.onnx"),
        ((*SEARCH, "ann.json"), "output ann.json would replace ann.json"),
        ((*BENCH, "r.onnx"), "--plot r.onnx: matplotlib draws"),
        ((*BENCH, "p/1.png"), "--plot p/1.png would replace p/1.png"),
    ],
)
def test_an_output_that_is_an_input_is_refused_and_everything_stays(words, message, deploy, world):
    before = contents(world)
    done = deploy(*words)
    assert done.code == 2, done.out
    assert message in done.err
    assert contents(world) == before


def test_the_python_door_refuses_them_too(world):
    before = contents(world)
    for call in (
        lambda: cskd_deploy.evaluate("r.onnx", "ann.json", "p", output=str(world / "ann.json")),
        lambda: cskd_deploy.evaluate("r.onnx", "ann.json", "p", output="p/2.png"),
        lambda: cskd_deploy.export("t.pth", "t.pth"),
        lambda: cskd_deploy.export("t.pth", "t.pth", precision="fp16"),
    ):
        with pytest.raises(CskdError, match=r"would replace|has the name of"):
            call()
    assert contents(world) == before


def test_the_annotations_of_a_folder_are_inputs(deploy, world):
    (world / "valid").mkdir()
    shutil.copy("ann.json", "valid/_annotations.coco.json")
    for path in (world / "p").iterdir():
        shutil.copy(path, "valid")
    words = ("eval", "r.onnx", "--ann", "valid", "--detections")
    done = deploy(*words, "valid/_annotations.coco.json")
    assert done.code == 2
    assert "would replace valid/_annotations.coco.json" in done.err
    assert deploy(*words, "found.json").code == 0


def test_outputs_of_before_are_replaced(deploy, world):
    for _ in range(2):
        assert deploy(*EVAL, "found.json").code == 0
        assert deploy("infer", "r.onnx", "p", "--json", "all.json", "--output", "drawn").code == 0
    assert len(json.loads((world / "all.json").read_text())["images"]) == 3


def test_a_link_is_written_through_and_one_to_an_image_or_a_model_is_refused(deploy, world):
    (world / "real").mkdir()
    (world / "real" / "x.json").write_text("old")
    Path("ln.json").symlink_to("real/x.json")
    for words in (("infer", "r.onnx", "p", "--json"), EVAL):
        assert deploy(*words, "ln.json").code == 0
        assert Path("ln.json").is_symlink()
        assert json.loads((world / "real" / "x.json").read_text())
    os.link("p/1.png", "other.png")
    for name, kind in (("other.png", "an image"), ("t.pth", "a checkpoint")):
        link = Path(f"to {name}.json")
        link.symlink_to(name)
        before = contents(world)
        done = deploy("infer", "r.onnx", "p/2.png", "--json", link)
        assert done.code == 2
        assert f"--json {link} is a link to {world / name}, which has the name of {kind}: give another one" in done.err
        assert contents(world) == before


def test_detections_go_into_a_pipe_which_stays_one(deploy, world):
    os.mkfifo("pipe.json")
    for words in (("infer", "r.onnx", "p", "--json"), ("infer", "r.onnx", "film.avi", "--json"), EVAL):
        read: list[str] = []
        reader = threading.Thread(target=lambda into=read: into.append(Path("pipe.json").read_text()), daemon=True)
        reader.start()
        assert deploy(*words, "pipe.json").code == 0
        reader.join(10)
        assert json.loads(read[0].splitlines()[0])
        assert stat.S_ISFIFO(os.lstat("pipe.json").st_mode)


# Outputs of one call beside each other


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("p", "--output", "det", "--json", "det"),
            "--json det would take the place of the folder of --output det/1.png",
        ),
        (("p", "--output", "det/in", "--json", "det"), "--json det would take the place of the folder of --output"),
        (("p", "--output", "x.json/det", "--json", "link/../x.json"), "would take the place of the folder of --output"),
        (("film.avi", "--output", "det", "--json", "det"), "--json det would take the place of the folder of --output"),
        (("film.avi", "--output", "det/d.mp4", "--json", "det"), "the place of the folder of --output det/d.mp4"),
        (
            ("p", "--output", "to later", "--json", "later"),
            "--json later would take the place of the folder of --output",
        ),
        (
            ("film.avi", "--output", "x.json/d.avi", "--json", "x.json"),
            "--json x.json would take the place of the folder",
        ),
    ],
)
def test_an_output_that_is_the_folder_of_another_is_refused_and_nothing_is_made(words, message, deploy, world):
    Path("to later").symlink_to("later")
    Path("link").symlink_to("p")
    before = contents(world), sorted(world.rglob("*"))
    done = deploy("infer", "r.onnx", *words)
    assert done.code == 2, done.out
    assert f"{message}" in done.err
    assert "give another name" in done.err
    assert (contents(world), sorted(world.rglob("*"))) == before


def test_an_output_in_the_folder_of_another_is_written(deploy, world):
    assert deploy("infer", "r.onnx", "p", "--output", "det", "--json", "det/found.json").code == 0
    assert sorted(os.listdir("det")) == ["1.png", "2.png", "3.png", "found.json"]


def test_outputs_are_one_file_by_name_or_by_links_whether_they_are_there_or_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("new")
    for first, second in (("new", "a/../new"), ("new", "link"), ("new", tmp_path / "new")):
        with pytest.raises(DeployError, match=f"--b {second} would take the place of --a new: give another name"):
            check_apart({"--a": [Path("other"), Path(first)], "--b": [Path(second)]})
    check_apart({"--a": [Path("new"), Path("new")], "--b": [], "--c": [Path("newer"), Path("folder/new")]})


def test_a_full_disk_costs_the_drawings_and_not_the_json(deploy, world, monkeypatch):
    def full(path: Path, image: np.ndarray) -> None:
        tried.append(path)
        raise DataError("the disk is full")

    monkeypatch.setattr(infer_command, "write_image", full)
    for json_file, printed in (("all.json", 3), ("-", 1)):
        tried: list[Path] = []
        done = deploy("infer", "r.onnx", "p", "--output", "drawn", "--json", json_file)
        assert done.code == 2
        assert done.err.endswith("error: the disk is full\n")
        assert tried == [Path("drawn/1.png")]
        assert len(done.out.splitlines()) == printed
        found = json.loads(done.out if json_file == "-" else (world / json_file).read_text())
        assert len(found["images"]) == 3
    tried = []
    done = deploy("infer", "r.onnx", "p", "--output", "drawn")
    assert (done.code, len(done.out.splitlines()), len(tried)) == (2, 1, 1)


# infer: what is there stays until there is something to replace it


@pytest.mark.parametrize("words", [("missing.onnx",), ("r.onnx", "--score-thr", 0.01), ("r.onnx", "--batch", 3)])
def test_lines_of_an_earlier_video_stay_when_nothing_is_detected(words, deploy, world):
    (world / "old.jsonl").write_text("earlier results\n")
    model, *options = words
    done = deploy("infer", model, "film.avi", "--json", "old.jsonl", *options)
    assert done.code == 2
    assert (world / "old.jsonl").read_text() == "earlier results\n"
    assert deploy("infer", "r.onnx", "film.avi", "--json", "old.jsonl").code == 0
    assert [json.loads(line)["frame"] for line in (world / "old.jsonl").read_text().splitlines()] == [0, 1]


def test_images_whose_kind_opencv_does_not_write_are_drawn_as_png(deploy, world):
    shutil.copy("p/1.png", "p/b.jfif")
    shutil.copy("p/2.png", "p/photo")
    done = deploy("infer", "r.onnx", "p/1.png", "p/b.jfif", "p/photo", "--output", "drawn", "--json", "found.json")
    assert done.code == 0, done.err
    assert sorted(os.listdir("drawn")) == ["1.png", "b.jfif.png", "photo.png"]
    assert cv2.imread("drawn/b.jfif.png").shape == (*SIZES[0], 3)
    assert cv2.imread("drawn/photo.png").shape == (*SIZES[1], 3)
    assert len(json.loads((world / "found.json").read_text())["images"]) == 3
    assert drawn_name(Path("a.JPG")) == Path("a.JPG")


def test_two_drawings_of_one_name_and_one_that_gets_the_name_of_an_image_are_refused(deploy, world):
    shutil.copy("p/1.png", "p/photo")
    shutil.copy("p/2.png", "p/photo.png")
    before = contents(world)
    for folder, message in (
        ("drawn", "the drawings of p/photo and p/photo.png would both be drawn/photo.png"),
        ("p", "--output p would replace the image p/photo.png"),
    ):
        done = deploy("infer", "r.onnx", "p/photo", "p/photo.png", "--output", folder)
        assert done.code == 2
        assert message in done.err
        assert contents(world) == before


# bench: refused before it is timed


@pytest.fixture
def timed(monkeypatch) -> list[Any]:
    calls: list[Any] = []
    real = bench_command.benchmark

    def benchmark(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(bench_command, "benchmark", benchmark)
    return calls


def test_a_picture_that_cannot_be_drawn_is_refused_before_it_is_timed(deploy, world, timed):
    other = {"model": "x.onnx", "file_sha256": "0" * 64, "metrics": {"bbox_mAP": 0.3}, "reference": None}
    (world / "other.json").write_text(json.dumps(other))
    for words, message in (
        (("x.xyz",), "--plot x.xyz: matplotlib draws"),
        (("x.png", "--eval", "other.json"), "no evaluation given by --eval is of a file that is timed"),
    ):
        done = deploy(*BENCH, *words)
        assert done.code == 2
        assert message in done.err
    assert not timed
    (world / "own.json").write_text(json.dumps({**other, "model": "r.onnx", "file_sha256": None}))
    assert deploy(*BENCH, "x.png", "--eval", "own.json").code == 0
    assert (world / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_full_disk_costs_the_picture_and_not_the_figures(deploy, world, monkeypatch):
    def full(*_: Any) -> Any:
        raise DataError("the disk is full")

    monkeypatch.setattr(bench_command, "plot", full)
    done = deploy(*BENCH, "x.svg")
    assert done.code == 2
    assert "the disk is full" in done.err
    assert "images/s" in done.out
