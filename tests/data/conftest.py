"""What the tests of cskd-data share: a small set to change, and the odd sets of `intake/`."""

from __future__ import annotations

import copy
import functools
import json

import cv2
import numpy as np
import pytest

COCO = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 64, "height": 48},
        {"id": 3, "file_name": "b.png", "width": 40, "height": 56},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 12, "bbox": [2.0, 3.0, 20.0, 10.0], "area": 200.0, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 5, "bbox": [10.0, 8.0, 40.0, 40.0], "area": 1600.0, "iscrowd": 0},
    ],
    "categories": [{"id": 12, "name": "cat"}, {"id": 5, "name": "dog"}],
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test reads or leaves a remembered check."""
    monkeypatch.setenv("CSKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def coco_set(tmp_path):
    """A set of two images as (annotation file, image folder, function that writes changed annotations)."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    cv2.imwrite(str(folder / "a.jpg"), rng.integers(0, 256, (48, 64, 3), np.uint8))
    cv2.imwrite(str(folder / "b.png"), rng.integers(0, 256, (56, 40, 3), np.uint8))
    file = tmp_path / "coco.json"

    def write(change=None):
        data = copy.deepcopy(COCO)
        if change is not None:
            change(data)
        file.write_text(json.dumps(data))

    write()
    return file, folder, write


@pytest.fixture
def call(capsys):
    """Run a command in this process: `call("train", "data", "check", ...)` -> exit code, output and error."""
    import cskd_deploy.cli
    import cskd_train.cli

    mains = {"train": cskd_train.cli.main, "deploy": cskd_deploy.cli.main}

    def run(command, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            mains[command]([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return int(stopped.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """`model(classes)`: a checkpoint of untrained weights for these classes, and its ONNX file."""
    import cskd_train.mm  # noqa: F401  (before mmcv is imported)
    from cskd_deploy.exporter.onnx import export
    from tests.deploy.students import student_config, write_checkpoint

    @functools.cache
    def make(classes):
        folder = tmp_path_factory.mktemp("model")
        path = write_checkpoint(folder / "best.pth", classes, student_config(classes))
        return path, export(path, folder / "student.onnx").path

    return make
