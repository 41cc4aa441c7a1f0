"""What the tests of engines share: a graph with the interface of an exported student in a few hundred bytes, a machine
with a GPU that is none, and modules that the child process finds."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from cskd_deploy.backends.tensorrt import export as tensorrt_export
from cskd_deploy.backends.tensorrt.build import build_engine
from cskd_deploy.backends.tensorrt.driver import CudaGraph, Driver, Gpu
from cskd_deploy.backends.tensorrt.export import read_model
from cskd_deploy.backends.tensorrt.session import EngineSession, LoadedEngine
from cskd_deploy.backends.tensorrt.settings import BuildSettings
from cskd_deploy.model.manifest import Manifest, Postprocessing, Preprocessing

from .gpu_double import BuffersDouble, DriverDouble, GpuDouble
from .tensorrt_double import session_of

Feed = dict[str, np.ndarray]

REPOSITORY = Path(__file__).parents[2]
VERSIONS = ("10.13.0.35", "11.4.0.106")
ORIN = Driver((13, 2), (Gpu("Double of Orin", (8, 7), 14),))
CANDIDATES = 5
MANIFEST = Manifest(
    family="retinanet",
    classes=("circle", "square"),
    preprocessing=Preprocessing(
        input_size=(64, 96),
        scale=(96, 64),
        keep_ratio=True,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        channel_order="rgb",
        pad_divisor=32,
        pad_value=0.0,
    ),
    postprocessing=Postprocessing(
        score_threshold=0.05, nms_iou_threshold=0.5, nms_class_agnostic=False, max_per_image=100, clip_boxes=True
    ),
    checkpoint="best.pth",
    sha256="0" * 64,
    opset=17,
    precision="fp32",
    versions={},
)
TENSORRT_OF_CHILD = """
import sys
from tests.deploy.tensorrt_double import make_tensorrt
sys.modules[__name__] = make_tensorrt()
"""


def write_graph(path: Path, dynamic: bool = False, outputs: int = 3, precision: str = "fp32") -> Path:
    """An ONNX file: its boxes are the twenty brightest values, scores and labels the five brightest and their places.

    Args:
        dynamic: in batch, height and width.
        outputs: how many of boxes, scores, labels.
        precision: what its manifest says.
    """
    import onnx
    from onnx import TensorProto, helper

    batch, size = ("n", ["h", "w"]) if dynamic else (1, [64, 96])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, *size])
    values = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [batch, CANDIDATES, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, CANDIDATES]),
        helper.make_tensor_value_info("labels", TensorProto.INT64, [batch, CANDIDATES]),
    ]
    constants = [
        helper.make_tensor("twenty", TensorProto.INT64, [1], [4 * CANDIDATES]),
        helper.make_tensor("five", TensorProto.INT64, [1], [CANDIDATES]),
        helper.make_tensor("shape", TensorProto.INT64, [3], [0, CANDIDATES, 4]),
    ]
    nodes = [
        helper.make_node("Flatten", ["image"], ["pixels"], axis=1),
        helper.make_node("TopK", ["pixels", "twenty"], ["corners", "places"], axis=1),
        helper.make_node("Reshape", ["corners", "shape"], ["boxes"]),
        helper.make_node("TopK", ["pixels", "five"], ["best", "labels"], axis=1),
        helper.make_node("Sigmoid", ["best"], ["scores"]),
    ]
    graph = helper.make_graph(nodes, "few", [image], values[:outputs], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    form = dataclasses.replace(MANIFEST.graph, dynamic=True, batch=None) if dynamic else MANIFEST.graph
    for key, value in dataclasses.replace(MANIFEST, precision=precision, graph=form).to_metadata().items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, str(path))
    return path


def write_small_model(path: Path) -> Path:
    """As `write_graph`, with what whole commands need: a layer, `neck.identity`, and labels that are classes."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(write_graph(path)))
    weights = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    model.graph.initializer.append(numpy_helper.from_array(weights, "weights"))
    model.graph.initializer.append(helper.make_tensor("classes", TensorProto.INT64, [1], [len(MANIFEST.classes)]))
    flatten, best = model.graph.node[0], model.graph.node[3]
    flatten.input[0], best.output[1] = "mapped", "best_places"
    model.graph.node.insert(0, helper.make_node("Conv", ["image", "weights"], ["mapped"], "/neck/identity/Conv"))
    model.graph.node.append(helper.make_node("Mod", ["best_places", "classes"], ["labels"]))
    onnx.save(model, str(path))
    return path


def picture(shape: tuple[int, ...] = (1, 3, 64, 96), seed: int = 0) -> dict[str, np.ndarray]:
    """Noise to feed."""
    return {"image": np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)}


def build(trt: Any, model: Path, settings: BuildSettings | None = None, **options: Any) -> Any:
    """`build_engine` of a file in this process."""
    content, manifest = read_model(model)
    return build_engine(trt, content, manifest, settings or BuildSettings(), **options)


def put_module(monkeypatch: Any, folder: Path, name: str, source: str) -> str:
    """Put a module where the child process finds it, before an installed one of its name."""
    paths = (str(folder), str(REPOSITORY), os.environ.get("PYTHONPATH"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    (folder / f"{name}.py").write_text(source)
    return name


TENSORRT_RTX_OF_CHILD = """
import sys
from types import ModuleType
import tensorrt_rtx

class Builder(tensorrt_rtx.Builder):
    def create_builder_config(self):
        config = super().create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(tensorrt_rtx.ComputeCapability.SM80, 0)
        return config

double = ModuleType("tensorrt")
vars(double).update(vars(tensorrt_rtx))
double.Builder, double.__version__ = Builder, "10.0.0.rtx"
sys.modules[__name__] = double
"""


def put_rtx(monkeypatch: Any, folder: Path) -> None:
    """TensorRT-RTX in TensorRT's place: a real parser and builder that need no GPU. Its engines are never loaded."""
    put_module(monkeypatch, folder, "tensorrt", TENSORRT_RTX_OF_CHILD)
    real = tensorrt_export.run_in_worker
    monkeypatch.setattr(tensorrt_export, "find_driver", lambda: ORIN)
    monkeypatch.setattr(
        tensorrt_export, "run_in_worker", lambda action, *rest: {} if action == "load" else real(action, *rest)
    )


def session(loaded: LoadedEngine, gpu: GpuDouble, cuda_graph: bool) -> EngineSession:
    """An engine of the double with the double's memory and driver."""

    def record(stream: int, work: Any) -> CudaGraph:
        return CudaGraph(stream, work, lambda name: DriverDouble(gpu))

    return EngineSession(loaded, BuffersDouble(gpu), cuda_graph, record)


def assert_same(found: Feed, model: Path, feed: Feed) -> None:
    """As ONNX Runtime computes it, to the bit: the double computes with it too."""
    session = session_of(model.read_bytes())
    names = [value.name for value in session.get_outputs()]
    expected = session.run(names, {value.name: feed[value.name] for value in session.get_inputs()})
    assert set(found) == set(names)
    for name, values in zip(names, expected, strict=True):
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)
