"""An edge box has neither torch nor mmdet: everything but export works there."""

from __future__ import annotations

import json
import os
import pkgutil
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import cskd_deploy
from cskd_deploy import cli
from cskd_deploy.commands import doctor
from cskd_deploy.exporter.onnx import export
from cskd_deploy.measure import environment
from cskd_deploy.model.manifest import GraphForm

from .conftest import ABSENT

REPOSITORY = Path(__file__).parents[2]
COMMANDS = tuple(cli.COMMANDS)


def test_every_module_but_the_graphs_imports_without_torch():
    modules = [
        module.name
        for module in pkgutil.walk_packages(cskd_deploy.__path__, "cskd_deploy.")
        if not module.name.startswith("cskd_deploy.exporter.graph.")
    ]
    assert len(modules) > 20
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({[*ABSENT, "onnxruntime"]}))
for name in {modules}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_works_without_torch_and_shows_an_example(edge_deploy, command):
    done = edge_deploy(command, "--help")
    assert done.code == 0
    assert f"cskd-deploy {command}" in done.out.split("Example")[1]


def test_the_reference_without_torch_is_exit_code_3_with_the_fix(
    edge_deploy, model_file, checkpoint, found_annotations, shapes_root
):
    images = shapes_root / "images"
    for arguments in (
        ("bench", model_file, "--reference", checkpoint),
        ("eval", model_file, "--ann", found_annotations, "--images", images, "--reference", checkpoint),
    ):
        done = edge_deploy(*arguments)
        assert done.code == 3
        assert "make env" in done.err
        assert "eval 6/6" not in done.err


def test_export_without_torch_is_exit_code_3_with_the_fix(edge_deploy, checkpoint, tmp_path):
    done = edge_deploy("export", "--checkpoint", checkpoint, "--output", tmp_path / "student.onnx")
    assert done.code == 3
    assert "export needs torch" in done.err
    assert list(tmp_path.iterdir()) == []


def test_without_onnxruntime_a_model_is_exit_code_3_with_the_fix(deploy, model_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = deploy("inspect", model_file)
    assert done.code == 3
    assert "pip install onnxruntime" in done.err


def test_inspect_says_all_without_onnx(edge_deploy, deploy, model_file, classes):
    there = json.loads(edge_deploy("inspect", model_file, "--json").out)
    assert there == json.loads(deploy("inspect", model_file, "--json").out)
    assert there["operators"]["TopK"] == 5
    assert there["inputs"] == {
        "image": "tensor(uint8) [1, 'height', 'width', 3]",
        "image_shape": "tensor(float) [1, 2]",
    }
    text = deploy("inspect", model_file).out
    assert f"{model_file.stat().st_size / 1e6:.1f} MB" in text
    assert ", ".join(classes) in text


def test_doctor_says_what_is_absent_and_the_fix(edge_deploy):
    done = edge_deploy("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(done.out)}
    assert done.code == 0
    assert findings["onnxruntime"]["state"] == "ok"
    assert "CPUExecutionProvider" in findings["onnxruntime"]["detail"]
    # Installed, but not to be imported in this process.
    assert findings["torch"]["state"] == "fault"
    assert "make env" in findings["torch"]["fix"]


def test_doctor_finds_both_onnxruntime_packages(deploy, monkeypatch):
    real = environment.version_of
    others = {"onnxruntime-gpu": "1.2.3", "openvino": None}  # OpenVINO would run a model in its place
    monkeypatch.setattr(doctor, "version_of", lambda name: others[name] if name in others else real(name))
    done = deploy("doctor")
    assert done.code == 3
    assert "both installed" in done.out
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in done.out


def test_doctor_without_onnxruntime_is_exit_code_3(deploy, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(doctor, "version_of", lambda name: None)
    done = deploy("doctor")
    assert done.code == 3
    assert "absent  onnxruntime" in done.out


def test_training_packages_without_mmcv_are_exit_code_3_too(checkpoint):
    code = f"""
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *package: None if name == "mmcv" else find_spec(name, *package)
from cskd_deploy.cli import main
main(["bench", {str(checkpoint)!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert "mmcv is not installed" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)  # most of it is the network's
def test_a_fresh_environment_with_ort_alone_runs_every_command_but_export(
    tmp_path, model_file, checkpoint, found_annotations, shapes_root
):
    # A copy, so that building leaves nothing in the repository.
    packages = tmp_path / "packages"
    for name in ("cskd-data", "cskd-deploy"):
        ignore = shutil.ignore_patterns("*.egg-info", "build")
        shutil.copytree(REPOSITORY / "packages" / name, packages / name, ignore=ignore)
    venv.create(tmp_path / "edge", with_pip=True)
    binaries = tmp_path / "edge" / "bin"
    constraints = REPOSITORY / "requirements" / "constraints.txt"
    install = [binaries / "python", "-m", "pip", "install", "-q", "-c", constraints]
    install += [packages / "cskd-data", f"{packages / 'cskd-deploy'}[ort]"]
    subprocess.run(install, check=True, timeout=1000)

    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(argument) for argument in (binaries / "cskd-deploy", *arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=own)

    pip = [binaries / "pip", "list", "--format=json"]
    listed = subprocess.run(pip, capture_output=True, text=True, check=True, env=own)
    installed = {entry["name"].lower() for entry in json.loads(listed.stdout)}
    assert "onnxruntime" in installed
    assert not installed & {"torch", "mmdet", "mmcv", "mmcv-full", "onnx", "cskd-train", "cskd-core"}

    for command in COMMANDS:
        assert run(command, "--help").returncode == 0
    assert run("doctor").returncode == 0
    assert json.loads(run("inspect", model_file, "--json").stdout)["metadata"]["family"] == "retinanet"
    slowest = json.loads(run("inspect", model_file, "--profile", "--json").stdout)["layers"]
    assert len(slowest) == 10
    bench = run("bench", model_file, "--duration", 0.2, "--json")
    (result,) = json.loads(bench.stdout)["results"]
    assert result["images"] >= 10, bench.stderr
    assert result["cold_start"]["peak_host_memory_bytes"] > 50e6
    drawn = run("infer", model_file, shapes_root / "images", "--output", "drawn", "--json", "found.json")
    assert drawn.returncode == 0, drawn.stderr
    found = json.loads((tmp_path / "found.json").read_text())["images"]
    assert len(found) == len(list((tmp_path / "drawn").iterdir())) > 0
    whole = export(checkpoint, tmp_path / "whole.onnx", form=GraphForm(input="uint8", nms="graph")).path
    example = [binaries / "python", packages / "cskd-deploy" / "examples" / "detect.py", whole, found[0]["image"]]
    lines = subprocess.run(example, capture_output=True, text=True, check=True, timeout=60, env=own).stdout.splitlines()
    best = found[0]["detections"][0]
    assert json.loads(lines[0]) == [
        best["class"],
        pytest.approx(best["score"], abs=1e-4),
        pytest.approx(best["box"], abs=0.02),
    ]
    assert run("bench", model_file, "--plot", "latency.png").returncode == 3
    data = ("--ann", found_annotations, "--images", shapes_root / "images")
    evaluation = run("eval", model_file, *data, "--json")
    assert json.loads(evaluation.stdout)["metrics"]["bbox_mAP"] > 0.2, evaluation.stderr
    refused = run("eval", model_file, *data, "--reference", checkpoint)
    assert refused.returncode == 3
    assert "cskd-train" in refused.stderr


def test_the_package_is_a_command_of_its_own():
    run = subprocess.run([sys.executable, "-m", "cskd_deploy", "--help"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0
    assert "Usage: cskd-deploy" in run.stdout
