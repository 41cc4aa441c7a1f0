"""Detections on the frames of a video or a camera: as they come, drawn, and whole when they are stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

import cskd_deploy
from cskd_deploy.detect import video as room
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import DeployError

from .test_bench import MANIFEST, Counting

FRAMES, RATE = 7, 12.5


class Brightest(Counting):
    """Finds one box, which is as likely as the image is bright."""

    def _infer(self, feed):
        found = super()._infer(feed)
        found["scores"] = feed["image"].mean(axis=(1, 2, 3))[:, None] / 255
        return found


@pytest.fixture
def film(tmp_path) -> Path:
    """Frames that get brighter, of 40 x 32 pixels."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (40, 32))
    for number in range(FRAMES):
        writer.write(np.full((32, 40, 3), 100 + 20 * number, dtype=np.uint8))
    writer.release()
    return path


@pytest.fixture
def model(monkeypatch) -> str:
    """A model whose file need not exist."""
    calls: list[Any] = []
    monkeypatch.setattr(cskd_deploy, "load", lambda path, **options: Detector(Brightest(path, calls)))
    return "model.onnx"


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def read(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    found = []
    while True:
        there, frame = capture.read()
        if not there:
            return found
        found.append(frame)


def test_each_frame_is_a_line_with_its_time_and_the_standard_output_holds_nothing_else(deploy, model, film):
    done = deploy("infer", model, film, "--json", "-")
    assert done.code == 0, done.err
    found = lines(done.out)
    assert [one["frame"] for one in found] == list(range(FRAMES))
    assert [one["seconds"] for one in found] == pytest.approx([number / RATE for number in range(FRAMES)])
    assert {(one["height"], one["width"]) for one in found} == {(32, 40)}
    scores = [one["detections"][0]["score"] for one in found]
    expected = [(100 + 20 * number) / 255 * 0.8 for number in range(FRAMES)]  # a fifth of the canvas is padding
    assert scores == pytest.approx(expected, abs=0.02)
    assert found[0]["detections"][0]["class"] == "a"
    assert f"{FRAMES} frames in" in done.err
    assert "frames/s; the source has 12.5" in done.err


@pytest.mark.parametrize("batch", [2, 7, 10])
def test_batches_of_frames_give_the_same_lines(deploy, model, film, tmp_path, batch):
    file = tmp_path / "found" / "film.jsonl"
    done = deploy("infer", model, film, "--json", file, "--batch", batch)
    assert done.code == 0, done.err
    assert lines(file.read_text()) == lines(deploy("infer", model, film, "--json", "-").out)
    assert done.out.startswith("frame 0: 1 detection: a 0.3")
    assert len(done.out.splitlines()) == FRAMES


def test_no_more_frames_than_asked_for(deploy, model, film):
    assert len(lines(deploy("infer", model, film, "--json", "-", "--max-frames", 3, "--batch", 2).out)) == 3
    refused = deploy("infer", model, film.parent, "--max-frames", 3)
    assert refused.code == 2
    assert "--max-frames is for a video or a camera" in refused.err


def cut_off(film: Path, path: Path) -> Path:
    """Its first four frames, under a header that announces all."""
    content = film.read_bytes()
    place = content.index(b"movi")
    for _ in range(5):
        place = content.index(b"00dc", place + 4)
    path.write_bytes(content[:place])
    return path


def test_a_video_that_ends_early_is_said_to(deploy, model, film):
    cut = cut_off(film, film.with_name("cut.avi"))
    done = deploy("infer", model, cut, "--json", "-")
    found = lines(done.out)
    assert 0 < len(found) < FRAMES - 1
    assert done.code == 1
    assert f"error: the video ends after {len(found)} frames, about {FRAMES} were announced: " in done.err
    assert deploy("infer", model, cut, "--json", "-", "--max-frames", len(found)).code == 0
    assert deploy("infer", model, cut, "--json", "-", "--max-frames", len(found) + 1).code == 1


@pytest.mark.parametrize(
    ("facts", "announced"),
    [
        ({cv2.CAP_PROP_FRAME_COUNT: 12}, 12),
        ({cv2.CAP_PROP_FRAME_COUNT: 8}, None),  # a frame that players leave out
        ({cv2.CAP_PROP_FRAME_COUNT: 0}, None),
        ({cv2.CAP_PROP_FRAME_COUNT: -9.2e18}, None),
        ({cv2.CAP_PROP_FRAME_COUNT: 9.2e18}, None),
        # Guessed from a rate that the frames do not keep: the last one stands where the file ends.
        ({cv2.CAP_PROP_FRAME_COUNT: 60, cv2.CAP_PROP_POS_MSEC: 4800.0}, None),
    ],
)
def test_frames_are_missed_where_fewer_came_in_less_time_than_announced(film, facts, announced):
    with room.Video(str(film)) as video:
        real = video._capture
        video._capture = SimpleNamespace(
            read=real.read, release=real.release, get=lambda name: facts.get(name, real.get(name))
        )
        assert len(list(video)) == FRAMES
    assert video.announced == announced


def test_a_container_without_a_count_is_not_held_to_a_guess(film):
    with room.Video(str(cut_off(film, film.with_suffix(".mpg")))) as video:
        assert len(list(video)) < FRAMES - 1
    assert video.announced is None


@pytest.mark.parametrize("name", ["drawn.avi", "new/drawn.mp4"])
def test_a_drawn_video_has_the_frames_and_the_rate_of_its_source(deploy, model, film, tmp_path, name):
    target = tmp_path / name
    done = deploy("infer", model, film, "--output", target)
    assert done.code == 0, done.err
    drawn, frames = read(target), read(film)
    assert len(drawn) == len(frames) == FRAMES
    assert cv2.VideoCapture(str(target)).get(cv2.CAP_PROP_FPS) == RATE
    for one, other in zip(drawn, frames, strict=True):
        assert one.shape == other.shape
        assert np.abs(one.astype(int) - other).mean() > 1


def test_a_folder_gets_each_drawn_frame_as_a_picture(deploy, model, film, tmp_path):
    folder = tmp_path / "drawn"
    assert deploy("infer", model, film, "--output", folder, "--max-frames", 2).code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["000000.jpg", "000001.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", b"hello\n" * 500, "is neither a picture nor a video that OpenCV reads"),
        ("noise.mp4", bytes(range(256)) * 40, "is neither a picture nor a video that OpenCV reads"),
        ("empty.avi", b"", "is neither a picture nor a video that OpenCV reads"),
        ("model.bin", bytes(5000), "is neither a picture nor a video that OpenCV reads"),
    ],
)
def test_what_is_neither_picture_nor_video_is_refused_before_the_model_is_loaded(
    deploy, tmp_path, monkeypatch, name, content, message
):
    monkeypatch.setattr(cskd_deploy, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    path = tmp_path / name
    path.write_bytes(content)
    done = deploy("infer", "model.onnx", path)
    assert done.code == 2
    assert done.err == f"error: {path} {message}\n"


def test_sources_and_outputs_that_do_not_go_together_are_refused(deploy, model, film, tmp_path):
    before = film.read_bytes()
    os.mkfifo(tmp_path / "pipe.avi")
    for arguments, message in (
        ((film, "--output", tmp_path / "pipe.avi"), "pipe.avi is no file, and a video is not written front to back"),
        ((film, tmp_path), f"a video or a camera is detected on by itself: give {film} alone"),
        (("camera:0", film), "detected on by itself: give camera:0 alone"),
        (("camera:front",), "camera:front names no camera: expected camera:0 for the first one"),
        ((tmp_path / "none.mp4",), "none.mp4 does not exist"),
        ((film, "--output", film), "film.avi, which is read"),
        ((film, "--json", film), "has the name of a video"),
        ((film, "--output", tmp_path / "drawn.webm"), "videos are written as .mp4 or .avi, or give a folder"),
        ((film, "--output", tmp_path / "drawn.png"), "videos are written as .mp4 or .avi, or give a folder"),
        ((film, "--score-thr", 0.01), "is below 0.05"),
    ):
        done = deploy("infer", model, *arguments)
        assert done.code == 2, arguments
        assert message in done.err
    assert film.read_bytes() == before


def test_a_camera_that_is_not_there_is_refused(deploy, model, monkeypatch):
    monkeypatch.setattr(room.cv2, "VideoCapture", lambda source: Camera(0) if source == 3 else pytest.fail("another"))
    done = deploy("infer", model, "camera:3")
    assert done.code == 2
    assert "camera:3 gives no picture: is there such a camera, and is it free?" in done.err


class Camera:
    """A camera that gives so many frames, then none."""

    def __init__(self, frames):
        self.frames = frames
        self.released = False

    def read(self):
        self.frames -= 1
        return (True, np.full((32, 32, 3), 200, dtype=np.uint8)) if self.frames >= 0 else (False, None)

    def get(self, what):
        return 0.0

    def release(self):
        self.released = True


def test_a_camera_gives_frames_until_it_ends_and_is_let_go(deploy, model, monkeypatch, tmp_path):
    camera = Camera(4)
    of_files = room.cv2.VideoCapture
    monkeypatch.setattr(room.cv2, "VideoCapture", lambda source: camera if source == 0 else of_files(source))
    done = deploy("infer", model, "camera:0", "--json", "-", "--output", tmp_path / "seen.avi")
    assert done.code == 0, done.err
    found = lines(done.out)
    assert [one["frame"] for one in found] == [0, 1, 2, 3]
    times = [one["seconds"] for one in found]
    assert times == sorted(times)
    assert times[0] == 0
    assert "frames/s\n" in done.err
    assert camera.released
    assert len(read(tmp_path / "seen.avi")) == 4


def test_the_rate_is_told_while_it_runs(deploy, model, film, monkeypatch):
    monkeypatch.setattr("cskd_deploy.commands.infer.SECONDS_BETWEEN_LINES", 0.0)
    done = deploy("infer", model, film)
    assert "infer 3 frames, " in done.err


SCRIPT = """
import sys, time
import numpy as np
import cskd_deploy
from cskd_deploy.backends.base import Backend
from cskd_deploy.cli import main
from cskd_deploy.detect.detector import Detector
from cskd_deploy.model.manifest import manifest_from_metadata

class Slow(Backend):
    manifest = manifest_from_metadata({metadata}, "model.onnx")

    def load(self):
        pass

    def _close(self):
        pass

    def _infer(self, feed):
        time.sleep(0.2)
        boxes = np.array([[[1, 1, 9, 9]]], dtype=np.float32)
        return {{"boxes": boxes, "scores": boxes[..., 2] / 10, "labels": np.zeros((1, 1), dtype=np.int64)}}

cskd_deploy.load = lambda path, **options: Detector(Slow(path))
main(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_between_two_frames_and_what_was_written_is_whole(tmp_path, number):
    film, drawn = tmp_path / "film.avi", tmp_path / "drawn.mp4"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (40, 32))
    for _ in range(40):  # whose lines fit into a buffer
        writer.write(np.full((32, 40, 3), 200, dtype=np.uint8))
    writer.release()
    code = SCRIPT.format(metadata=MANIFEST.to_metadata())
    command = [sys.executable, "-c", code, "infer", "model.onnx", str(film), "--json", "-", "--output", str(drawn)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout is not None
        first = [process.stdout.readline() for _ in range(3)]  # they come while it runs
        assert process.poll() is None, process.stderr
        process.send_signal(number)
        rest, error = process.communicate(timeout=60)
    found = lines("".join(first) + rest)
    assert process.returncode == 128 + number
    assert 3 <= len(found) < 40
    assert f"error: stopped after {len(found)} frames by {number.name}" in error
    assert "Traceback" not in error
    assert len(read(drawn)) == len(found)


def test_sources_that_are_images_are_no_videos(film, tmp_path):
    picture = tmp_path / "picture"  # by what it holds
    content = cv2.imencode(".png", np.zeros((8, 8, 3), dtype=np.uint8))[1]
    picture.write_bytes(content.tobytes())
    assert room.video_source([str(picture)]) is None
    assert room.video_source([str(tmp_path)]) is None
    assert room.video_source([str(tmp_path / "*.png")]) is None
    assert room.video_source([str(film)]) == str(film)
    assert room.video_source(["camera:12"]) == "camera:12"
    film.rename(tmp_path / "film")
    assert room.video_source([str(tmp_path / "film")]) == str(tmp_path / "film")
    with pytest.raises(DeployError, match="does not exist"):
        room.Video(str(film))
