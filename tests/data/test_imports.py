"""cskd-data needs neither torch nor mmdet nor a neighbour, and scores a file where no runtime is installed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from .conftest import COCO

ABSENT = ["torch", "mmcv", "mmdet", "onnx", "onnxruntime", "tensorrt", "cskd_core", "cskd_train"]


def run(code, *arguments, absent=ABSENT):
    block = f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
    command = [sys.executable, "-c", block + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_every_module_imports_without_torch_mmdet_or_a_neighbour():
    code = (
        "import pkgutil, importlib, cskd_data\n"
        "names = [module.name for module in pkgutil.iter_modules(cskd_data.__path__, 'cskd_data.')]\n"
        "[importlib.import_module(name) for name in names]\n"
        "print(len(names))"
    )
    done = run(code, absent=[*ABSENT, "cskd_deploy", "matplotlib", "click", "rich"])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_importing_the_package_loads_no_protocol_before_it_is_needed():
    done = run("import cskd_data, sys; print([m for m in ('matplotlib', 'pycocotools.cocoeval') if m in sys.modules])")
    assert done.stdout.strip() == "[]"


def test_predictions_are_scored_on_an_edge_box_without_any_runtime(tmp_path):
    (file := tmp_path / "coco.json").write_text(json.dumps(COCO))
    keys = ("image_id", "category_id", "bbox")
    found = [{**{key: one[key] for key in keys}, "score": 0.5} for one in COCO["annotations"]]
    (predictions := tmp_path / "found.json").write_text(json.dumps(found))
    code = "from cskd_deploy.cli import main; main(sys.argv[1:])"
    done = run(code, "eval", "--predictions", predictions, "--ann", file, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["bbox_mAP"] == pytest.approx(1.0, abs=1e-12)


def test_a_model_or_predictions_are_asked_for(tmp_path):
    code = "from cskd_deploy.cli import main; main(sys.argv[1:])"
    done = run(code, "eval", "--ann", tmp_path / "coco.json")
    assert done.returncode == 2
    assert done.stderr.startswith("error: give a model, or --predictions with a file of detections")
