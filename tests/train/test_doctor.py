"""`cskd-train doctor` says what serves and how to mend what is wrong, whatever is broken."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from cskd_train import environment
from cskd_train.commands.doctor import command


def test_a_whole_environment_can_train_and_exits_with_0() -> None:
    done = CliRunner().invoke(command)

    assert done.exit_code == 0
    assert "Training can run." in done.output
    shown = dict(line.split(maxsplit=1) for line in done.output.splitlines() if len(line.split()) >= 2)
    assert shown["mmdet"].strip() == "2.28.2"
    assert shown["nms"].strip() in ("mmcv-full", "torchvision", "torch")
    assert shown["torch"].strip() == torch.__version__


def test_json_holds_versions_operators_devices_and_faults() -> None:
    done = CliRunner().invoke(command, ["--json"])

    report = json.loads(done.stdout)
    assert report["can_train"] is True
    assert report["packages"]["mmdet"] == "2.28.2"
    assert report["operators"]["roi_align"] in ("mmcv-full", "torchvision", "torch")
    assert report["devices"][0].startswith("cpu: ")


@pytest.mark.parametrize("package", ["mmdet", "mmcv"])
def test_a_missing_openmmlab_package_is_reported_with_its_fix(fresh_python, package: str) -> None:
    done = fresh_python(
        f"import sys; sys.modules[{package!r}] = None; from cskd_train.cli import main; main(['doctor'])"
    )

    assert done.returncode == 3, done.stderr
    assert f"error: mmdet and mmcv do not import: NotInstalled: {package} is not installed" in done.stdout
    assert re.search(r"fix: pip install 'mmcv-full\S+' 'mmdet\S+'", done.stdout)
    assert "Training cannot run" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_another_line_of_mmcv_is_reported(fresh_python, tmp_path: Path) -> None:
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").write_text("raise RuntimeError('never imported')")
    (tmp_path / "mmcv" / "version.py").write_text("__version__ = '2.1.0'\n")

    done = fresh_python("from cskd_train.cli import main; main(['test', 'best.pth'])", tmp_path)

    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith(
        "error: mmcv 2.1.0 is installed, cskd-train works with mmcv >=1.4.7,<2: pip uninstall"
    )

    done = fresh_python("from cskd_train.cli import main; main(['doctor', '--json'])", tmp_path)

    assert done.returncode == 3, done.stderr
    (fault,) = json.loads(done.stdout)["faults"]
    assert "mmcv 2.1.0 is installed, cskd-train works with mmcv >=1.4.7,<2" in fault["problem"]


def test_an_mmdet_that_fails_half_way_through_its_import_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmdet.apis", None)

    report = environment.inspect()

    assert not report.can_train
    assert report.operators == {}
    assert "mmdet and mmcv do not import: ModuleNotFoundError" in report.faults[0].problem


def test_a_needed_module_that_does_not_import_blocks_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)

    report = environment.inspect()

    assert [fault.blocks_training for fault in report.faults] == [True]
    assert report.faults[0].problem.startswith("pycocotools 2.")
    assert report.faults[0].fix == "pip install --force-reinstall 'pycocotools>=2.0.7'"


@pytest.fixture
def pretend_installed(monkeypatch: pytest.MonkeyPatch):
    """Make distributions look installed in a version: `pretend_installed(numpy="2.4.0")`."""
    real = environment.installed

    def pretend(**versions: str) -> None:
        named = {name.replace("_", "-"): version for name, version in versions.items()}
        monkeypatch.setattr(environment, "installed", lambda name: named.get(name) or real(name))

    return pretend


def test_an_untested_version_is_a_warning_with_the_command_for_the_tested_one(pretend_installed) -> None:
    pretend_installed(numpy="2.4.0")

    report = environment.inspect()

    (fault,) = report.faults
    assert report.can_train
    assert fault.problem.startswith("numpy 2.4.0 is installed, CSKD is tested with ")
    assert fault.fix.startswith("pip install 'numpy")


def test_packages_that_overwrite_each_other_are_named(pretend_installed) -> None:
    pretend_installed(onnxruntime="1.31.1", onnxruntime_gpu="1.31.1")

    (fault,) = environment.inspect().faults

    assert fault.problem == "onnxruntime and onnxruntime-gpu are both installed and overwrite each other"
    assert not fault.blocks_training


@pytest.mark.skipif(environment.installed("torchvision") is not None, reason="torchvision is really installed")
def test_a_torchvision_that_does_not_load_is_a_warning(pretend_installed) -> None:
    pretend_installed(torchvision="0.20.0")

    (fault,) = environment.inspect().faults

    assert fault.problem.startswith("torchvision 0.20.0 does not load with torch ")
    assert not fault.blocks_training


def test_compiled_operators_that_do_not_load_are_a_warning(fresh_python, tmp_path: Path) -> None:
    (tmp_path / "_ext.py").write_text("raise ImportError('undefined symbol: _ZN2at4_ops')")

    done = fresh_python(
        f"""
import warnings; warnings.simplefilter("ignore")
import mmcv; mmcv.__path__.append({str(tmp_path)!r})
from cskd_train.cli import main; main(["doctor"])
"""
    )

    assert done.returncode == 0, done.stderr
    assert "warning: mmcv-full's compiled operators do not load (undefined symbol: _ZN2at4_ops)" in done.stdout
    assert "fix: rebuild them against this torch: MMCV_WITH_OPS=1 pip install" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch finds a GPU here")
def test_a_driver_without_a_gpu_in_torch_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "version").touch()
    monkeypatch.setattr(environment, "NVIDIA_DRIVER", tmp_path / "version")

    (fault,) = environment.inspect().faults

    assert fault.problem.startswith("there is an NVIDIA driver, but torch ")
    assert not fault.blocks_training


def test_every_gpu_is_listed_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="NVIDIA L4", total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)

    assert environment.inspect().devices[1:] == ("cuda:0: NVIDIA L4, 24 GiB", "cuda:1: NVIDIA L4, 24 GiB")
