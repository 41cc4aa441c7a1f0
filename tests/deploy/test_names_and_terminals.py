"""File names that are not UTF-8, and terminals that are not: nothing is lost, and what cannot be opened is named."""

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

ODD = os.fsdecode(b"caf\xe9 \xff")
TERMINALS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C locale": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "no home, no temporary folder": {"PYTHONIOENCODING": "ascii", "HOME": "/proc/none", "TMPDIR": "/nonexistent"},
}


def in_a_shell(*arguments, env):
    command = [sys.executable, "-m", "cskd_deploy", *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, classes):
    """An upright and a lying image, both of odd names, and an annotation file of them."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    images = []
    for number, size in enumerate(((96, 64), (64, 96)), start=1):
        name = f"{ODD} {number}.png"
        pixels = cv2.imencode(".png", rng.integers(0, 256, (*size, 3), np.uint8))[1]
        (folder / "images" / name).write_bytes(pixels.tobytes())
        images.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [4, 4, 30, 30]} for n in (1, 2)]
    data = {"images": images, "annotations": boxes}
    data["categories"] = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    (folder / "ann.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize("terminal", TERMINALS)
def test_every_command_on_images_keeps_its_output_whole(folder, model_file, tmp_path, terminal):
    images, env = folder / "images", TERMINALS[terminal]
    data = ("--ann", folder / "ann.json", "--images", images)
    found, detections = tmp_path / "found.json", tmp_path / "detections.json"
    for arguments in (
        ("infer", model_file, images, "--json", found),
        ("infer", model_file, images, "--output", tmp_path / "drawn"),
        ("eval", model_file, *data, "--detections", detections),
        ("bench", model_file, "--images", images, "--iterations", "2", "--duration", "0.1"),
        ("compare", model_file, model_file, "--images", images),
    ):
        done = in_a_shell(*arguments, env=env)
        assert done.returncode == 0, (arguments[0], done.stderr)
        assert b"Traceback" not in done.stderr
    names = [Path(one["image"]).name for one in json.loads(found.read_text())["images"]]
    assert names == [f"{ODD} 1.png", f"{ODD} 2.png"]
    assert isinstance(json.loads(detections.read_text()), list)
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == names
    done = in_a_shell("eval", model_file, *data, "--json", env=env)
    assert json.loads(done.stdout)["images"] == 2


def test_a_model_of_such_a_name_is_refused_wherever_it_is_read_or_written(model_file, checkpoint, tmp_path, folder):
    odd = tmp_path / f"{ODD}.onnx"
    shutil.copy(model_file, odd)
    images = folder / "images"
    for arguments in (
        ("bench", odd),
        ("infer", odd, images),
        ("inspect", odd),
        ("eval", odd, "--ann", folder / "ann.json", "--images", images),
        ("export", "--checkpoint", checkpoint, "--output", tmp_path / f"{ODD} new.onnx"),
        ("export", "--onnx", model_file, "--precision", "fp16", "--output", tmp_path / f"{ODD} new.onnx"),
    ):
        done = in_a_shell(*arguments, env={})
        assert (done.returncode, done.stdout) == (2, b""), arguments
        assert b"has a name whose bytes are not UTF-8 text" in done.stderr
        assert b"rename it, or give another one" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [odd.name]
