"""The doors from Python: what the packages export, what it takes, and that nothing else is touched."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import cskd_core
import cskd_train
from cskd_train.errors import TrainError

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "whole_way.ipynb"


@pytest.mark.parametrize("package", [cskd_core, cskd_train])
def test_every_exported_name_is_there_and_documented(package):
    assert package.__all__ == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.parametrize("name", cskd_train.__all__)
def test_whatever_is_asked_for_first_mmcv_is_mended_and_says_nothing(fresh_python, name):
    done = fresh_python(f"import cskd_train; print(cskd_train.{name}.__name__)")
    assert (done.stdout.strip(), done.stderr) == (name, "")


def test_importing_the_packages_needs_no_torch(fresh_python):
    done = fresh_python("import sys, cskd_core, cskd_train, cskd_core.errors; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("form", [str, Path])
def test_train_and_evaluate_take_text_and_paths_and_print_nothing(form, tiny_config, shapes_root, tmp_path, capfd):
    settings = {"data_root": str(shapes_root), "runner.max_epochs": 1}
    work_dir = tmp_path / "work"
    result = cskd_train.train(form(tiny_config), form(work_dir), settings=settings, seed=3, device="cpu")
    assert (result.epochs, result.seed, result.work_dir) == (1, 3, str(work_dir))
    assert result.command.startswith(f"cskd-train run {tiny_config} --work-dir {work_dir} --seed 3 --device cpu --set ")
    counts = []
    out = tmp_path / "found.json"
    best = form(work_dir / "best.pth")
    found = cskd_train.evaluate(best, "val", device="cpu", progress=lambda *one: counts.append(one), out=form(out))
    assert found.metrics == pytest.approx(result.best, abs=1e-12)
    assert counts[-1] == (6, 6)
    assert isinstance(json.loads(out.read_text()), list)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(TrainError, match="already holds a finished run"):
        cskd_train.train(form(tiny_config), form(work_dir), settings=settings)


def test_the_default_work_dir_is_the_commands(tiny_config, shapes_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"data_root": str(shapes_root), "runner.max_epochs": 1}
    assert cskd_train.train(tiny_config, settings=settings, device="cpu").work_dir == "work_dirs/tiny_retinanet"


def test_drawing_leaves_the_callers_backend_alone(fresh_python):
    done = fresh_python(
        "import matplotlib\nmatplotlib.use('svg')\nimport cskd_train.report.side_by_side\n"
        "print(matplotlib.get_backend())"
    )
    assert done.stdout.strip() == "svg", done.stderr


def code_cells():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_calls_what_there_is():
    """Every cell compiles, and every name it takes from a package of this project is exported there."""
    import cskd_deploy

    packages = {"cskd_train": cskd_train, "cskd_deploy": cskd_deploy}
    used = set()
    for cell in code_cells():
        for node in ast.walk(ast.parse(cell)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in packages:
                assert node.attr in packages[node.value.id].__all__
                used.add(node.attr)
    assert {"new", "distill", "train", "evaluate", "load"} <= used


@pytest.mark.reliability
def test_the_notebook_runs(fresh_python, tmp_path, monkeypatch):
    """Its cells, one after the other, with fewer images and one epoch."""
    monkeypatch.chdir(tmp_path)
    cells = code_cells()
    assert cells[0].startswith("IMAGES, VALIDATION, BUDGET")
    one_epoch = "import cskd_train.project.choices as choices\nchoices.epochs = lambda *_, **__: (1, 'for a test')"
    code = "\n".join(["IMAGES, VALIDATION, BUDGET = 24, 8, None", one_epoch, *cells[1:]])
    done = fresh_python(code)
    assert done.returncode == 0, done.stderr[-2000:]
    for text in ("On 8 test images", "the exported file (ONNX)", "Average Precision"):
        assert text in done.stdout
    assert "project/distill.py" not in done.stderr
