"""Detections on images: drawn, printed, as JSON; what cannot be read is named and left out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from cskd_data import DataError
from cskd_data.images import find_images, read_image
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.commands.infer import draw
from cskd_deploy.detect.detector import Detector
from cskd_deploy.detect.postprocess import Detections

from .engines import write_small_model

EXAMPLE = Path(__file__).parents[2] / "packages" / "cskd-deploy" / "examples" / "detect.py"


@pytest.fixture
def frames(shapes_root, tmp_path) -> Path:
    """Three frames, one of them in a folder of its own and lying."""
    folder = tmp_path / "frames"
    (folder / "late").mkdir(parents=True)
    first, second, third = sorted((shapes_root / "images").iterdir())[:3]
    shutil.copy(first, folder / "a.jpg")
    shutil.copy(second, folder / "b.jpg")
    cv2.imwrite(str(folder / "late" / "a.png"), read_image(third)[:100])
    return folder


def test_json_holds_the_detections_of_every_image_above_the_threshold(deploy, model_file, frames, tmp_path):
    file = tmp_path / "found" / "detections.json"
    done = deploy("infer", model_file, frames, frames / "late", "--json", file, "--score-thr", 0.7)
    assert done.code == 0, done.err
    result = json.loads(file.read_text())
    assert [one["image"] for one in result["images"]] == [
        str(frames / name) for name in ("a.jpg", "b.jpg", "late/a.png")
    ]
    assert result["skipped"] == []
    with OnnxRuntimeBackend(model_file) as backend:
        for one in result["images"]:
            image = read_image(Path(one["image"]))
            assert (one["height"], one["width"]) == image.shape[:2]
            expected = Detector(backend).detect(image)
            kept = expected.scores >= np.float32(0.7)
            assert 0 < kept.sum() < len(kept)
            np.testing.assert_allclose([d["score"] for d in one["detections"]], expected.scores[kept], rtol=1e-6)
            np.testing.assert_allclose([d["box"] for d in one["detections"]], expected.boxes[kept], rtol=1e-5)
            names = [backend.manifest.classes[label] for label in expected.labels[kept]]
            assert [d["class"] for d in one["detections"]] == names
    assert f"{frames / 'a.jpg'}: {len(result['images'][0]['detections'])} detections: " in done.out


def test_json_on_the_standard_output_stands_there_alone(deploy, model_file, frames):
    done = deploy("infer", model_file, frames / "a.jpg", "--json", "-")
    assert json.loads(done.out)["score_threshold"] == 0.3
    assert "infer 1/1 images" in done.err


def test_drawings_keep_their_place_below_the_folder_and_the_images_stay(deploy, model_file, frames, tmp_path):
    before = {path: path.read_bytes() for path in frames.rglob("*") if path.is_file()}
    done = deploy("infer", model_file, f"{frames}/**/*.*", "--output", tmp_path / "drawn")
    assert done.code == 0, done.err
    for name in ("a.jpg", "b.jpg", "late/a.png"):
        drawn, image = read_image(tmp_path / "drawn" / name), read_image(frames / name)
        assert drawn.shape == image.shape
        assert np.abs(drawn.astype(int) - image).mean() > 1
    assert before == {path: path.read_bytes() for path in before}
    refused = deploy("infer", model_file, frames, "--output", frames)
    assert refused.code == 2
    assert "would replace the image" in refused.err
    assert before == {path: path.read_bytes() for path in before}


def test_drawings_of_links_are_named_after_the_links(deploy, frames, tmp_path):
    """As a data set of a hub, whose names are links to files that are named after their content."""
    model = write_small_model(tmp_path / "model.onnx")
    blobs, links = tmp_path / "blobs", tmp_path / "links"
    links.mkdir()
    frames.rename(blobs)
    (blobs / "a.jpg").rename(blobs / "3f9c2a")
    for name in ("one.jpg", "two.jpg"):
        (links / name).symlink_to(blobs / "3f9c2a")
    (links / "late").symlink_to(blobs / "late")
    done = deploy("infer", model, links / "one.jpg", links / "two.jpg", links / "late", "--output", tmp_path / "o")
    assert done.code == 0, done.err
    drawn = sorted(str(path.relative_to(tmp_path / "o")) for path in (tmp_path / "o").rglob("*.*"))
    assert drawn == ["late/a.png", "one.jpg", "two.jpg"]
    for folder in (links, blobs / "late"):
        (tmp_path / "there").unlink(missing_ok=True)
        (tmp_path / "there").symlink_to(folder)
        refused = deploy("infer", model, *sorted(folder.glob("*.*")), "--output", tmp_path / "there")
        assert refused.code == 2
        assert "would replace the image" in refused.err


def test_images_that_cannot_be_read_are_named_and_the_others_done(deploy, model_file, frames, tmp_path):
    (frames / "aa.jpg").write_bytes((frames / "a.jpg").read_bytes()[:900])
    (frames / "c.jpg").write_bytes(b"")
    file = tmp_path / "detections.json"
    done = deploy("infer", model_file, frames, "--json", file, "--output", tmp_path / "drawn")
    assert done.code == 1
    assert "aa.jpg is truncated" in done.err
    assert "c.jpg is empty" in done.err
    assert "2 of 4 images could not be read" in done.err
    result = json.loads(file.read_text())
    assert [Path(one["image"]).name for one in result["images"]] == ["a.jpg", "b.jpg"]
    assert [Path(one["image"]).name for one in result["skipped"]] == ["aa.jpg", "c.jpg"]
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["a.jpg", "b.jpg"]


def test_the_frames_of_a_video_get_what_they_get_as_images(deploy, model_file, frames, tmp_path):
    film, pictures = tmp_path / "film.avi", tmp_path / "pictures"
    pictures.mkdir()
    first = read_image(frames / "a.jpg")
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"MJPG"), 5, first.shape[1::-1])
    for image in (first, read_image(frames / "b.jpg"), first[::-1]):
        writer.write(np.ascontiguousarray(image))
    writer.release()
    capture = cv2.VideoCapture(str(film))
    for number in range(3):
        cv2.imwrite(str(pictures / f"{number}.png"), capture.read()[1])
    found = [json.loads(line) for line in deploy("infer", model_file, film, "--json", "-").out.splitlines()]
    expected = json.loads(deploy("infer", model_file, pictures, "--json", "-").out)["images"]
    assert len(found) == len(expected) == 3
    assert [one["detections"] for one in found] == [one["detections"] for one in expected]
    assert all(one["detections"] for one in found)


def test_a_source_without_images_and_a_threshold_below_the_files_own_are_refused(deploy, model_file, frames, tmp_path):
    for source, message in (
        (tmp_path / "nowhere.jpg", "nowhere.jpg does not exist"),
        (f"{frames}/*.webp", "no image matches"),
        (tmp_path / "empty", "holds no image"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        done = deploy("infer", model_file, source)
        assert done.code == 2
        assert message in done.err
    done = deploy("infer", model_file, frames, "--score-thr", 0.01)
    assert done.code == 2
    assert "is below 0.05" in done.err


def test_sources_give_each_image_once_in_their_order(frames):
    found = find_images([str(frames / "b.jpg"), str(frames), f"{frames}/**/*.png"])
    assert found == [frames / "b.jpg", frames / "a.jpg", frames / "late" / "a.png"]
    with pytest.raises(DataError, match="does not exist"):
        find_images([str(frames / "c.jpg")])


def test_an_image_under_two_spellings_is_one_and_a_link_to_it_another(frames, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("way").symlink_to(frames)
    Path("linked").mkdir()
    Path("linked/a.jpg").symlink_to(frames / "a.jpg")
    name = os.path.relpath(frames / "a.jpg")
    spellings = [name, str(frames / "a.jpg"), f"linked/../{name}", "way/a.jpg"]
    for first, *others in (spellings, spellings[::-1]):
        assert find_images([first, *others, *others]) == [Path(first)]
    assert find_images([name, str(frames), "linked"]) == [Path(name), frames / "b.jpg", Path("linked/a.jpg")]


def test_an_image_that_is_named_beside_its_folder_is_drawn_once(deploy, model_file, frames, tmp_path, monkeypatch):
    monkeypatch.chdir(frames.parent)
    done = deploy("infer", model_file, frames.name, frames / "a.jpg", "--output", tmp_path / "drawn", "--json", "-")
    assert done.code == 0, done.err
    assert [entry["image"] for entry in json.loads(done.out)["images"]] == [
        f"{frames.name}/a.jpg",
        f"{frames.name}/b.jpg",
    ]
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["a.jpg", "b.jpg"]


def test_a_box_is_drawn_in_its_place_and_the_image_is_not_changed():
    image = np.full((200, 300, 3), 255, dtype=np.uint8)
    found = Detections(
        np.array([[100, 80, 250, 180]], dtype=np.float32), np.array([0.9], dtype=np.float32), np.array([1])
    )
    drawn = draw(image, found, ("square", "circle"))
    assert (image == 255).all()
    changed = (drawn != 255).any(axis=2)
    assert changed[80:181, 100].all()
    assert changed[180, 100:251].all()
    assert not changed[100:170, 110:240].any()
    assert not changed[185:].any()
    # Boxes that reach out of the image, and names that OpenCV's font has no letters for.
    far = Detections(np.array([[-1e9, -5, 1e9, 1e9]], dtype=np.float32), found.scores, np.array([0]))
    assert draw(image, far, ("größe", "b")).shape == image.shape


@pytest.mark.parametrize(
    "sizes", [(), (128, 160), (128, 160, 160, 128)], ids=["every size", "a fixed size", "a pair of orientations"]
)
def test_the_example_without_this_package_finds_what_infer_finds(
    deploy, lying_checkpoint, model_file, frames, tmp_path, sizes
):
    def example(model: Path, image: Path) -> subprocess.CompletedProcess[str]:
        code = "import sys; sys.modules.update(dict.fromkeys(['cskd_deploy', 'torch'])); import runpy; "
        code += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
        command = [sys.executable, "-c", code, str(EXAMPLE), str(model), str(image)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    model = tmp_path / "whole.onnx"
    options = [option for place in range(0, len(sizes), 2) for option in ("--input-size", *sizes[place : place + 2])]
    done = deploy("export", "--checkpoint", lying_checkpoint, "--output", model, "--nms", "graph", *options)
    assert done.code == 0
    upright = frames / "upright.png"
    small = np.random.default_rng(6).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    cv2.imwrite(str(upright), cv2.resize(small, (150, 211), interpolation=cv2.INTER_CUBIC))
    for image in (frames / "a.jpg", frames / "late" / "a.png", upright):
        done = example(model, image)
        assert done.returncode == 0, done.stderr
        found = [json.loads(line) for line in done.stdout.splitlines()]
        (expected,) = json.loads(deploy("infer", model, image, "--json", "-", "--score-thr", 0.05).out)["images"]
        assert len(found) == len(expected["detections"]) > 20
        for (name, score, box), detection in zip(found, expected["detections"], strict=True):
            assert name == detection["class"]
            assert score == pytest.approx(detection["score"], abs=1e-4)
            assert box == pytest.approx(detection["box"], abs=0.02)
    refused = example(model_file, frames / "a.jpg")
    assert refused.returncode == 1
    assert refused.stderr.startswith("export the model with `--input uint8 --nms graph`")
