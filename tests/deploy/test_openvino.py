"""OpenVINO runs the files that ONNX Runtime runs, and finds the same; its GPUs and NPUs are doubles here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import cskd_deploy
from cskd_deploy.accuracy.agreement import match
from cskd_deploy.backends import device_among, openvino, runs
from cskd_deploy.commands import doctor
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import BackendMissing, DeployError
from cskd_deploy.measure.bench import random_images
from cskd_deploy.measure.benchmark import benchmark

from .engines import write_graph, write_small_model
from .students import student_config, write_checkpoint

CLASSES = ("circle", "square", "triangle")
SIZES = ((96, 128), (128, 96))  # of images: lying, upright
ONE_RUN = ("--duration", 0, "--iterations", 1, "--warmup", 0, "--no-cold")
FORMS: dict[str, dict[str, Any]] = {
    "any size and batch": {"batch": None},
    "fixed size, float input, NMS in the graph": {
        "input_sizes": [(96, 128)],
        "graph_input": "float",
        "nms": "graph",
    },
    "FP16": {"precision": "fp16"},
}


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    for name in ("TURN_SECONDS", "GPU_TURN_SECONDS", "GPU_UNCOUNTED_SECONDS", "GPU_WARM_UP_SECONDS"):
        monkeypatch.setattr(f"cskd_deploy.measure.bench.{name}", 0.001)


@pytest.fixture
def installed() -> Any:
    return pytest.importorskip("openvino", reason="needs `pip install openvino`")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("students")
    return {
        family: write_checkpoint(
            folder / f"{family}.pth",
            CLASSES,
            student_config(CLASSES, (128, 96), family, width=8, candidates=50),
        )
        for family in ("RetinaNet", "FasterRCNN")
    }


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("graph") / "student.onnx")


class Double:
    """The module `openvino` as far as it is used: what is compiled and with which settings, on devices that are none.

    Args:
        there: names of devices, as OpenVINO has them.
        real: the true module, whose processor computes in the place of every device; without it nothing is opened.
    """

    def __init__(self, there: tuple[str, ...], real: Any = None) -> None:
        self.compiled: list[tuple[str, dict[str, str]]] = []
        core = None if real is None else openvino.core_of(real)

        def read_model(path: str) -> Any:
            assert core is not None, f"{path} was opened"
            return core.read_model(path)

        def compile_model(model: Any, device: str, settings: dict[str, str]) -> Any:
            assert core is not None
            self.compiled.append((device, settings))
            return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

        self.Core = lambda: SimpleNamespace(
            available_devices=list(there), read_model=read_model, compile_model=compile_model
        )


@pytest.fixture
def double(monkeypatch):
    def make(*there: str, real: Any = None) -> Double:
        module = Double(there, real)
        monkeypatch.setitem(sys.modules, "openvino", module)
        return module

    return make


def detections(path: Path, backend: str, sizes: Sequence[tuple[int, int]] = SIZES) -> list[Any]:
    with cskd_deploy.load(path, backend=backend, threads=1, device="cpu") as detector:
        return [detector.detect(random_images(size, count=1, seed=3)[0]) for size in sizes]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_finds_what_it_finds_in_onnx_runtime(form, installed, checkpoints, tmp_path):
    model = tmp_path / "student.onnx"
    cskd_deploy.export(checkpoints["RetinaNet"], model, **FORMS[form])
    for one, other in zip(detections(model, "onnxruntime"), detections(model, "openvino"), strict=True):
        assert len(one) == len(other) > 5
        triple = [(found.boxes, found.scores, found.labels) for found in (one, other)]
        # ONNX Runtime computes FP16 files in float32 between casts; OpenVINO in float32 throughout.
        tolerance = (0.97, 3e-3, 0.95) if form == "FP16" else (0.99, 1e-5, 1.0)
        assert match(*triple, iou=tolerance[0], score=tolerance[1]).share >= tolerance[2]


def test_a_two_stage_student_finds_what_it_finds_in_onnx_runtime(installed, checkpoints, tmp_path):
    model = tmp_path / "student.onnx"
    cskd_deploy.export(checkpoints["FasterRCNN"], model)
    for one, other in zip(
        detections(model, "onnxruntime", SIZES[:1]), detections(model, "openvino", SIZES[:1]), strict=True
    ):
        assert len(one) == len(other) > 5
        assert match((one.boxes, one.scores, one.labels), (other.boxes, other.scores, other.labels)).share == 1


@pytest.mark.filterwarnings("ignore:.*calibration images are few:UserWarning")
def test_int8_for_tensorrt_runs_in_integers_and_agrees(installed, checkpoints, shapes_root, tmp_path):
    model = tmp_path / "int8.onnx"
    cskd_deploy.export(
        checkpoints["RetinaNet"],
        model,
        precision="int8",
        target="tensorrt",
        calibration_images=shapes_root / "images",
        calibration_count=2,
    )
    core = openvino.core_of(installed)
    compiled = core.compile_model(core.read_model(str(model)), "CPU", {openvino.PRECISION: "f32"})
    kinds = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    convolutions = [kind["runtimePrecision"].astype(str) for kind in kinds if kind["layerType"] == "Convolution"]
    assert convolutions.count("i8") + convolutions.count("u8") > len(convolutions) / 2 > 10
    for one, other in zip(
        detections(model, "onnxruntime", SIZES[:1]), detections(model, "openvino", SIZES[:1]), strict=True
    ):
        agreement = match((one.boxes, one.scores, one.labels), (other.boxes, other.scores, other.labels), 0.5, 0.1)
        assert agreement.share > 0.5


def test_batches_of_a_file_that_takes_any_and_of_one_that_takes_one(installed, tmp_path):
    one, several = write_graph(tmp_path / "one.onnx"), write_graph(tmp_path / "several.onnx", dynamic=True)
    with openvino.OpenVinoBackend(several, 1) as backend, openvino.OpenVinoBackend(one, 1) as single:
        assert (backend.batch_size, single.batch_size) == (None, 1)
        detector = Detector(backend)
        prepared = [detector.prepare(image) for image in random_images((64, 96), count=3)]
        together = detector.infer(*prepared)
        for place, image in enumerate(prepared):
            alone = detector.infer(image)
            np.testing.assert_allclose(together["scores"][place], alone["scores"][0], atol=1e-6)
        assert len(together["scores"]) == 3


SIGNALLED = """
import os, signal, sys
from pathlib import Path
from cskd_deploy.backends.openvino import OpenVinoBackend
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
backends = [OpenVinoBackend(Path(path), 1) for path in sys.argv[1:]]
for backend in backends:
    backend.load()
while backends:
    backends.pop(0).close()
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_signal_after_two_files_were_closed_is_handled(installed, graph):
    finished = subprocess.run([sys.executable, "-c", SIGNALLED, graph, graph], capture_output=True, text=True)
    assert (finished.returncode, finished.stdout) == (0, "handled\n"), finished.stderr


def test_results_are_not_overwritten_by_the_next_inference(installed, graph):
    with openvino.OpenVinoBackend(graph, 1) as backend:
        first = backend.infer({"image": np.full((1, 3, 64, 96), 2, dtype=np.float32)})
        kept = first["scores"].copy()
        backend.infer({"image": np.zeros((1, 3, 64, 96), dtype=np.float32)})
    np.testing.assert_array_equal(first["scores"], kept)


# Commands


def test_bench_holds_openvino_against_onnx_runtime_on_the_same_file(installed, deploy, graph):
    given = ("--backend", "onnxruntime", "--backend", "openvino")
    facts = json.loads(deploy("bench", graph, *given, *ONE_RUN, "--json").out)
    assert [one["backend"] for one in facts["results"]] == ["onnxruntime", "openvino"]
    assert facts["baseline"] == "student.onnx onnxruntime cpu"
    assert facts["results"][1]["speedup"]["inference"] > 0
    assert facts["environment"]["versions"]["openvino"]


def test_eval_infer_and_compare_run_a_file_in_openvino(installed, deploy, graph, shapes_root, tmp_path, monkeypatch):
    loaded: list[Path] = []
    real = openvino.OpenVinoBackend.load
    monkeypatch.setattr(openvino.OpenVinoBackend, "load", lambda self: (loaded.append(self.path), real(self)))
    image = sorted((shapes_root / "images").iterdir())[0]
    folder = tmp_path / "one"
    folder.mkdir()
    shutil.copy(image, folder)
    ann = shapes_root / "annotations" / "val.json"
    lines = [
        ("infer", graph, image, "--backend", "openvino"),
        ("eval", graph, "--ann", ann, "--images", shapes_root / "images", "--limit", 1, "--backend", "openvino"),
        ("compare", graph, graph, "--images", folder, "--backend", "openvino", "--backend", "onnxruntime"),
    ]
    for count, line in enumerate(lines, start=1):
        done = deploy(*line)
        assert done.code == 0, done.err
        assert len(loaded) == count


def test_the_layers_of_compare_are_those_of_onnx_runtime(deploy, graph, shapes_root):
    images = shapes_root / "images"
    done = deploy("compare", graph, graph, "--images", images, "--layers", "--backend", "openvino")
    assert done.code == 2
    assert "--layers shows what the layers give in ONNX Runtime: leave --backend openvino out" in done.err


def test_without_openvino_it_is_exit_code_3_with_the_pip_line(deploy, graph, shapes_root, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    done = deploy("infer", graph, shapes_root / "images", "--backend", "openvino")
    assert done.code == 3
    assert "pip install openvino" in done.err


def test_openvino_runs_onnx_files_alone(deploy, tmp_path, shapes_root):
    assert [runs("openvino", Path(name)) for name in ("a.onnx", "a.engine", "a.pth")] == [True, False, False]
    engine = tmp_path / "student.engine"
    engine.write_bytes(b"x")
    done = deploy("infer", engine, shapes_root / "images", "--backend", "openvino")
    assert done.code == 2
    assert "openvino does not run" in done.err


def test_doctor_names_the_devices_that_openvino_finds(deploy, double, monkeypatch):
    monkeypatch.setattr(doctor, "version_of", lambda name: "2026.4.1" if name == "openvino" else None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    double("CPU", "GPU.0", "GPU.1")
    done = deploy("doctor")
    assert "ok      openvino     2026.4.1, devices: cpu, gpu" in done.out
    assert done.code == 0  # it runs a model, without ONNX Runtime
    monkeypatch.setattr(doctor, "version_of", lambda name: None)
    done = deploy("doctor")
    assert "absent  openvino" in done.out
    assert done.code == 3


# Devices


@pytest.mark.parametrize(
    ("there", "asked", "words"),
    [
        (("CPU",), "gpu", ("OpenVINO finds no gpu here, only cpu", "Intel's driver for OpenCL")),
        (("CPU", "GPU.0"), "npu", ("OpenVINO finds no npu here, only cpu, gpu", "NPU driver")),
    ],
)
def test_a_device_that_is_not_there_is_exit_code_3_with_those_that_are(
    there, asked, words, deploy, double, graph, shapes_root
):
    double(*there)
    done = deploy("infer", graph, shapes_root / "images", "--backend", "openvino", "--device", asked)
    assert done.code == 3
    assert all(word in done.err for word in words)


@pytest.mark.parametrize(
    ("backend", "device", "instead"), [("openvino", "cuda", "onnxruntime"), ("onnxruntime", "gpu", "openvino")]
)
def test_a_device_of_another_backend_is_refused_by_name(backend, device, instead, deploy, graph, shapes_root):
    done = deploy("infer", graph, shapes_root / "images", "--backend", backend, "--device", device)
    assert done.code == 2
    assert f"not on {device}: change --device, or give --backend {instead}" in done.err


def test_beside_openvino_on_a_gpu_other_backends_run_on_the_processor_without_a_ratio(installed, double, deploy, graph):
    used = double("CPU", "GPU", real=installed)
    given = ("--backend", "openvino", "--backend", "onnxruntime", "--device", "gpu")
    done = deploy("bench", graph, *given, *ONE_RUN, "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert [one["device"] for one in facts["results"]] == ["gpu", "cpu"]
    assert [device for device, _ in used.compiled] == ["GPU"]
    assert facts["results"][0]["speedup"] is None
    assert device_among("onnxruntime", ["onnxruntime", "openvino"], "cuda") == "cuda"
    assert device_among("onnxruntime", ["onnxruntime"], "gpu") == "gpu"  # which it refuses


def test_the_second_model_of_compare_and_the_reference_of_eval_run_on_the_processor_beside_a_gpu(
    installed, double, deploy, graph, shapes_root, tmp_path
):
    double("CPU", "GPU", real=installed)
    images = shapes_root / "images"
    given = ("--backend", "openvino", "--device", "gpu", "--json")
    done = deploy(
        "compare",
        graph,
        graph,
        "--images",
        images,
        "--limit",
        1,
        "--backend",
        "openvino",
        *given[2:],
        "--backend",
        "onnxruntime",
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["devices"] == ["gpu", "cpu"]
    copy = shutil.copy(graph, tmp_path / "copy.onnx")
    data = ("--ann", shapes_root / "annotations" / "val.json", "--images", images, "--limit", 1)
    done = deploy("eval", graph, *data, "--reference", copy, "--max-drop", 100, *given)
    assert done.code == 0, done.err
    assert [json.loads(done.out)[name] for name in ("device", "reference_device")] == ["gpu", "cpu"]


def test_a_benchmark_leaves_out_files_in_backends_that_do_not_run_them(installed, graph, tmp_path):
    copy = Path(shutil.copy(graph, tmp_path / "copy.onnx"))
    names = ("openvino", "onnxruntime")
    report = benchmark(
        [graph, copy], backends=names, skip={(copy, "openvino")}, duration=0, iterations=1, warmup=0, cold=False
    )
    pairs = [(one.path, one.backend) for one in report.results]
    assert pairs == [(str(graph), "openvino"), (str(graph), "onnxruntime"), (str(copy), "onnxruntime")]


@pytest.mark.parametrize(
    ("device", "precision", "hint"),
    [
        ("cpu", "fp32", "f32"),
        ("cpu", "fp16", "f32"),
        ("gpu", "fp32", "f32"),
        ("gpu", "fp16", "f16"),
        ("npu", "fp16", None),
    ],
)
def test_float32_is_pinned_and_threads_are_the_processors(device, precision, hint, installed, double, tmp_path):
    used = double("CPU", "GPU", "NPU", real=installed)
    with openvino.OpenVinoBackend(write_graph(tmp_path / "a.onnx", precision=precision), 3, device=device):
        ((name, settings),) = used.compiled
    assert name == device.upper()
    assert settings.get("INFERENCE_PRECISION_HINT") == hint
    assert settings.get("INFERENCE_NUM_THREADS") == ("3" if device == "cpu" else None)
    assert (settings["NUM_STREAMS"], settings["PERFORMANCE_HINT"]) == ("1", "LATENCY")


def test_an_npu_takes_one_size_and_says_that_it_has_no_float32(installed, double, tmp_path):
    double("NPU", real=installed)
    with pytest.raises(DeployError, match=r"export it with --input-size H W and --batch 1"):
        openvino.OpenVinoBackend(write_graph(tmp_path / "dynamic.onnx", dynamic=True), device="npu").load()
    with openvino.OpenVinoBackend(write_graph(tmp_path / "fixed.onnx"), device="npu") as backend:
        assert "an NPU has no float32" in backend.notes[0]


@pytest.mark.parametrize(
    ("precision", "sets", "noted"),
    [
        ("int8-tensorrt", ("sse4_1", "avx2", "avx512f"), True),
        ("int8-tensorrt", ("sse4_1", "avx2", "avx_vnni"), False),
        ("int8-tensorrt", ("neon",), False),
        ("int8-cpu", ("sse4_1", "avx2"), False),
        ("fp32", ("sse4_1", "avx2"), False),
    ],
)
def test_weights_of_8_bits_without_vnni_are_a_note(precision, sets, noted, installed, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino, "instruction_sets", lambda: sets)
    with openvino.OpenVinoBackend(write_graph(tmp_path / "a.onnx", precision=precision), 1) as backend:
        assert [("lacks VNNI" in note, "--target cpu" in note) for note in backend.notes] == [(True, True)] * noted


# Files


def damaged(path: Path) -> Path:
    content = write_graph(path).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def plain(path: Path) -> Path:
    model = onnx.load(str(write_graph(path)))
    del model.metadata_props[:]
    onnx.save(model, str(path))
    return path


def divided(path: Path) -> Path:
    model = onnx.load(str(write_small_model(path)))
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path, "does not exist"),
        (damaged, "cannot be loaded as an ONNX model"),
        (plain, "not one of `cskd-deploy export`"),
        (divided, "--allow-external-data"),
    ],
)
def test_a_file_that_is_refused_never_reaches_openvino(make, words, double, tmp_path):
    double("CPU")
    with pytest.raises(DeployError, match=words):
        openvino.OpenVinoBackend(make(tmp_path / "student.onnx")).load()


def test_weights_in_other_files_are_read_where_that_is_allowed(installed, graph, tmp_path):
    feed = {"image": np.random.default_rng(0).standard_normal((1, 3, 64, 96), dtype=np.float32)}
    with (
        openvino.OpenVinoBackend(divided(tmp_path / "student.onnx"), allow_external_data=True) as backend,
        openvino.OpenVinoBackend(graph) as whole,
    ):
        np.testing.assert_array_equal(backend.infer(feed)["scores"], whole.infer(feed)["scores"])


def test_a_graph_that_is_not_what_its_metadata_says_is_refused(installed, tmp_path):
    with pytest.raises(DeployError, match=r"has inputs .* and outputs .*Export it again"):
        openvino.OpenVinoBackend(write_graph(tmp_path / "two.onnx", outputs=2)).load()


def test_what_openvino_cannot_run_is_one_sentence(installed, tmp_path):
    model = onnx.load(str(write_graph(tmp_path / "student.onnx")))
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, str(tmp_path / "student.onnx"))
    with pytest.raises(DeployError, match=r"cannot be loaded in OpenVINO on cpu \(.*NoSuchOperator.*\)") as caught:
        openvino.OpenVinoBackend(tmp_path / "student.onnx").load()
    assert "\n" not in str(caught.value)


def test_a_feed_of_another_shape_is_one_sentence(installed, graph):
    with openvino.OpenVinoBackend(graph) as backend, pytest.raises(DeployError, match="failed in OpenVINO") as caught:
        backend.infer({"image": np.zeros((1, 3, 32, 32), dtype=np.float32)})
    assert "\n" not in str(caught.value)


def test_a_broken_installation_is_a_missing_backend(monkeypatch):
    def broken(name: str) -> Any:
        raise RuntimeError("no libtbb")

    monkeypatch.setattr(openvino.importlib, "import_module", broken)
    with pytest.raises(BackendMissing, match=r"no libtbb.*pip install openvino"):
        openvino.import_openvino()
