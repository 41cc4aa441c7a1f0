"""One `--device` for every command and runtime: PyTorch on the device of its model, and no ratio between devices.

GPUs are doubles here: ONNX Runtime's computes on the processor, PyTorch's is the processor under another name.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cskd_deploy.backends.torch import TorchBackend
from cskd_deploy.errors import BackendMissing
from cskd_deploy.exporter.student import torch_device

from .engines import MANIFEST, write_small_model
from .ort_double import OnnxRuntimeDouble
from .students import write_checkpoint
from .unusual import config_with

ONE_RUN = ("--duration", 0, "--iterations", 1, "--warmup", 0, "--no-cold")


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    for name in ("TURN_SECONDS", "GPU_TURN_SECONDS", "GPU_UNCOUNTED_SECONDS", "GPU_WARM_UP_SECONDS"):
        monkeypatch.setattr(f"cskd_deploy.measure.bench.{name}", 0.001)


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("graph") / "student.onnx")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> Path:
    """A checkpoint with the classes of `graph`."""
    path = tmp_path_factory.mktemp("narrow") / "best.pth"
    return write_checkpoint(path, MANIFEST.classes, config_with("RetinaNet", MANIFEST.classes, {}))


@pytest.fixture
def image(tmp_path, shapes_root) -> Path:
    folder = tmp_path / "image"
    folder.mkdir()
    return Path(shutil.copy(sorted((shapes_root / "images").iterdir())[0], folder))


@pytest.fixture
def ort_gpu(monkeypatch) -> OnnxRuntimeDouble:
    runtime = OnnxRuntimeDouble()
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    return runtime


@pytest.fixture
def torch_gpu(monkeypatch) -> list[str]:
    """PyTorch sees a GPU, which is the processor; what was asked of it, in order."""
    calls: list[str] = []
    real = torch.nn.Module.to

    def to(module: Any, *where: Any, **more: Any) -> Any:
        if where == ("cuda",):
            calls.append("to cuda")
            return module
        return real(module, *where, **more)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: calls.append("synchronize"))
    return calls


@pytest.fixture
def no_torch_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


LINES = {
    "infer": "infer {model} {image}",
    "bench": "bench {model} --duration 0 --iterations 1 --no-cold",
    "eval": "eval {model} --ann {ann} --images {images} --limit 1",
    "compare": "compare {model} {model} --images {folder}",
}


@pytest.mark.parametrize("what", LINES)
@pytest.mark.parametrize("kind", ["file", "checkpoint"])
def test_a_gpu_that_is_asked_for_and_not_there_is_exit_code_3_with_the_fix(
    kind, what, deploy, graph, narrow, image, shapes_root, no_torch_gpu
):
    named = {"image": image, "folder": image.parent, "images": shapes_root / "images"}
    named |= {"ann": shapes_root / "annotations" / "val.json", "model": graph if kind == "file" else narrow}
    done = deploy(*(word.format(**named) for word in LINES[what].split()), "--device", "cuda")
    assert done.code == 3
    fix = "onnxruntime-gpu[cuda,cudnn]" if kind == "file" else "use --device cpu"
    assert fix in done.err
    assert done.out == ""


def test_an_engine_is_not_for_the_processor(deploy, tmp_path, image):
    engine = tmp_path / "student.engine"
    engine.write_bytes(b"x")
    done = deploy("infer", engine, image, "--device", "cpu")
    assert done.code == 2
    assert "student.engine is an engine, which runs on a GPU only: leave --device cpu out" in done.err


@pytest.mark.parametrize(
    ("there", "asked", "device"),
    [(True, None, "cuda"), (True, "cpu", "cpu"), (True, "cuda", "cuda"), (False, None, "cpu"), (False, "cpu", "cpu")],
)
def test_pytorch_takes_a_gpu_where_it_sees_one_and_nothing_else_was_asked_for(there, asked, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert torch_device(asked) == device


def test_pytorch_without_a_gpu_refuses_one(no_torch_gpu):
    with pytest.raises(BackendMissing, match=r"--device cuda: PyTorch .* sees no GPU"):
        torch_device("cuda")


def test_pytorch_on_a_double_of_a_gpu_is_waited_for_before_and_after_each_inference(
    narrow, torch_gpu, monkeypatch, deploy, image
):
    monkeypatch.setattr(
        "cskd_deploy.backends.torch.mmdet_candidates", lambda *_: torch_gpu.append("candidates") or {"scores": 0}
    )
    with TorchBackend(narrow, device="cuda") as backend:
        backend.infer({"image": None, "image_shape": None})
    assert torch_gpu == ["to cuda", "synchronize", "candidates", "synchronize"]
    torch_gpu.clear()
    with TorchBackend(narrow) as backend:
        backend.infer({"image": None, "image_shape": None})
    assert torch_gpu == ["candidates"]


@pytest.mark.parametrize(
    ("options", "devices"),
    [((), ["cuda", "cuda"]), (("--device", "cuda"), ["cuda", "cuda"]), (("--device", "cpu"), ["cpu", "cpu"])],
)
def test_the_reference_of_a_benchmark_runs_where_the_model_runs_with_doubles_of_gpus(
    options, devices, deploy, graph, narrow, ort_gpu, torch_gpu
):
    done = deploy("bench", graph, "--reference", narrow, *ONE_RUN, "--force", "--json", *options)
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert [one["device"] for one in facts["results"]] == devices
    assert facts["baseline"] == f"best.pth pytorch {devices[1]}"
    assert facts["speedup"]["total"] > 0
    assert ("to cuda" in torch_gpu) == (devices[1] == "cuda")


def test_the_reference_of_a_model_on_the_processor_stays_there_although_pytorch_sees_a_gpu(
    deploy, graph, narrow, image, shapes_root, torch_gpu
):
    data = ("--ann", shapes_root / "annotations" / "val.json", "--images", shapes_root / "images", "--limit", 1)
    facts = json.loads(deploy("bench", graph, "--reference", narrow, *ONE_RUN, "--force", "--json").out)
    assert [one["device"] for one in facts["results"]] == ["cpu", "cpu"]
    found = json.loads(deploy("eval", graph, *data, "--reference", narrow, "--max-drop", 100, "--json").out)
    assert (found["device"], found["reference_device"]) == ("cpu", "cpu")
    compared = json.loads(deploy("compare", narrow, graph, "--images", image.parent, "--json").out)
    assert compared["devices"] == ["cpu", "cpu"]
    assert torch_gpu == []


def test_a_reference_that_pytorch_has_no_gpu_for_runs_on_the_processor_and_is_no_baseline_of_a_double_of_a_gpu(
    deploy, graph, narrow, ort_gpu, no_torch_gpu
):
    words = ("bench", graph, "--reference", narrow, *ONE_RUN, "--force")
    facts = json.loads(deploy(*words, "--json").out)
    assert [one["device"] for one in facts["results"]] == ["cuda", "cpu"]
    assert facts["speedup"] is None
    (note,) = [note for note in facts["notes"] if note.startswith("no ratio")]
    assert note == (
        "no ratio of student.onnx onnxruntime cuda to best.pth pytorch cpu: they ran on two devices (--device)"
    )
    printed = deploy(*words).out
    assert "times as fast" not in printed
    assert f"note: {note}" in printed


def test_mmdet_evaluates_a_checkpoint_on_the_double_of_the_gpu_that_its_file_ran_on(
    deploy, graph, narrow, shapes_root, ort_gpu, torch_gpu
):
    data = ("--ann", shapes_root / "annotations" / "val.json", "--images", shapes_root / "images", "--limit", 1)
    done = deploy("eval", graph, *data, "--reference", narrow, "--max-drop", 100, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["device"], found["reference_device"]) == ("cuda", "cuda")
    assert "to cuda" in torch_gpu
    assert f"{graph} (cuda) on " in deploy("eval", graph, *data).out


def test_compare_says_where_each_model_ran_with_doubles_of_gpus(deploy, graph, narrow, image, ort_gpu, torch_gpu):
    words = ("compare", narrow, graph, "--images", image.parent)
    assert json.loads(deploy(*words, "--json").out)["devices"] == ["cuda", "cuda"]
    printed = deploy(*words).out
    assert f"first  {narrow} (cuda)\nsecond {graph} (cuda)\n" in printed


def test_compare_takes_backends_for_one_or_both_models(deploy, graph, narrow, image):
    words = ("compare", narrow, graph, "--images", image.parent)
    for names in (["onnxruntime"], ["pytorch"], ["pytorch", "onnxruntime"]):
        done = deploy(*words, *(word for name in names for word in ("--backend", name)))
        assert done.code == 0, done.err
    for names, message in [
        (["tensorrt"], "--backend tensorrt runs neither"),
        (["onnxruntime", "pytorch"], "pytorch does not run"),
        (["pytorch"] * 3, "--backend was given 3 times"),
    ]:
        done = deploy(*words, *(word for name in names for word in ("--backend", name)))
        assert done.code == 2
        assert message in done.err


@pytest.mark.parametrize("family", ["RetinaNet", "FasterRCNN"])
def test_an_export_is_compared_with_mmdet_on_the_device_that_was_asked_for_without_tf32_with_doubles_of_gpus(
    family, deploy, exported, tmp_path, ort_gpu, torch_gpu, monkeypatch
):
    exact: list[bool] = []
    real = OnnxRuntimeDouble.InferenceSession

    def session(runtime: Any, model: Any, **options: Any) -> Any:
        if "use_tf32" in options["providers"][0][1]:
            exact.append(not (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32))
        return real(runtime, model, **options)

    monkeypatch.setattr(OnnxRuntimeDouble, "InferenceSession", session)
    before = torch.backends.cudnn.allow_tf32
    words = ("export", "--checkpoint", exported(family).checkpoint, "--output", tmp_path / "student.onnx")
    done = deploy(*words, "--device", "cuda")
    assert done.code == 0, done.err
    assert "verifying against mmdet in PyTorch, on cuda" in done.err
    assert torch_gpu == ["to cuda"]
    tried, compared = (providers[0][1] for providers in ort_gpu.providers)
    assert (tried.get("use_tf32"), compared["use_tf32"]) == (None, "0")
    assert exact == [True]
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize("missing", ["torch", "onnxruntime"])
def test_an_export_that_is_to_be_compared_on_a_gpu_is_refused_first_where_there_is_none(
    missing, deploy, narrow, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: missing != "torch")
    monkeypatch.setitem(sys.modules, "onnxruntime", OnnxRuntimeDouble(working=missing != "onnxruntime"))
    words = ("export", "--checkpoint", narrow, "--output", tmp_path / "student.onnx", "--device", "cuda")
    done = deploy(*words)
    assert done.code == 3
    assert ("use --device cpu" if missing == "torch" else "onnxruntime-gpu[cuda,cudnn]") in done.err
    assert "reading" not in done.err
    assert list(tmp_path.iterdir()) == []
