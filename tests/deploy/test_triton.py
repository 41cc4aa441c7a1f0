"""A model repository of Triton: its configuration by Triton's schema, its README's client against the detector."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

import cskd_deploy
from cskd_deploy.backends.base import INPUT
from cskd_deploy.backends.tensorrt.manifest import EngineManifest, manifest_path, sha256_of, write_engine_manifest
from cskd_deploy.backends.tensorrt.shapes import ShapeRange
from cskd_deploy.measure.bench import random_images
from cskd_deploy.model.manifest import MANIFEST_KEY, manifest_from_metadata
from cskd_deploy.model.onnx_file import interface_of
from cskd_deploy.serving.triton import TYPES, Enum, written

from .engines import MANIFEST, ORIN, write_graph, write_small_model
from .students import student_config, write_checkpoint
from .triton_text import read_config

CLASSES = ("circle", 'a "square"', "triángulo")
FIXED, SEVERAL = ShapeRange(*3 * [(1, 3, 64, 96)]), ShapeRange((1, 3, 32, 32), (2, 3, 64, 96), (4, 3, 64, 96))


@pytest.fixture(scope="module")
def students(tmp_path_factory) -> dict[str, Path]:
    """Exported students: one whose threshold applies to an output of its own, one with NMS in the graph."""
    folder = tmp_path_factory.mktemp("students")
    forms: dict[str, dict[str, Any]] = {
        "FCOS": {"batch": None},
        "RetinaNet": {"nms": "graph", "graph_input": "float", "input_sizes": [(96, 128)]},
    }
    for family, form in forms.items():
        config = student_config(CLASSES, (128, 96), family, width=16, candidates=50)
        checkpoint = write_checkpoint(folder / f"{family}.pth", CLASSES, config)
        cskd_deploy.export(checkpoint, folder / f"{family}.onnx", **form)
    return {family: folder / f"{family}.onnx" for family in forms}


def write_engine(path: Path, image: ShapeRange, outputs: int = -1) -> Path:
    """No engine, with the manifest of one."""
    path.write_bytes(b"an engine")
    manifest = EngineManifest(
        sha256=sha256_of(b"an engine"),
        onnx="student.onnx",
        onnx_sha256="0" * 64,
        tensorrt="10.13.0.35",
        cuda="13.2",
        gpu=ORIN.gpus[0],
        precision="fp32",
        profiles=({INPUT: image},),
        outputs={"boxes": (outputs, 5, 4), "scores": (outputs, 5), "labels": (outputs, 5)},
        version_compatible=False,
        hardware_compatible="none",
        model=MANIFEST,
    )
    write_engine_manifest(path, manifest)
    return path


def config_of(deploy, model: Path, output: Path, *options: object) -> dict[str, Any]:
    done = deploy("triton", model, output, *options, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    folder = Path(result["folder"])
    assert (folder / "config.pbtxt").read_text() == result["config"]
    assert sorted(str(path) for path in folder.rglob("*") if path.is_file()) == sorted(result["files"])
    assert folder.name == read_config(result["config"])["name"]
    return read_config(result["config"])


def shapes(config: dict[str, Any], field: str) -> dict[str, tuple[str, list[int]]]:
    return {one["name"]: (one["data_type"], one["dims"]) for one in config[field]}


def test_one_image_at_a_time_has_the_batch_in_its_shapes(deploy, tmp_path):
    model = write_graph(tmp_path / "student.onnx")
    config = config_of(deploy, model, tmp_path / "models")
    assert (config["backend"], config["max_batch_size"]) == ("onnxruntime", 0)
    assert "dynamic_batching" not in config
    assert shapes(config, "input") == {"image": ("TYPE_FP32", [1, 3, 64, 96])}
    assert shapes(config, "output") == {
        "boxes": ("TYPE_FP32", [1, 5, 4]),
        "scores": ("TYPE_FP32", [1, 5]),
        "labels": ("TYPE_INT64", [1, 5]),
    }
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_AUTO"}]
    assert manifest_from_metadata(config["parameters"], "config") == MANIFEST
    folder = tmp_path / "models" / "student"
    assert (folder / "1" / "model.onnx").read_bytes() == model.read_bytes()
    assert (folder / "labels.txt").read_text().splitlines() == list(MANIFEST.classes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "student.onnx"]


@pytest.mark.parametrize(("options", "batch"), [((), 8), (("--max-batch", 3), 3), (("--max-batch", 1), 1)])
def test_any_batch_leaves_it_to_the_server_and_sizes_are_dynamic(options, batch, deploy, students, tmp_path):
    config = config_of(deploy, students["FCOS"], tmp_path / "models", *options)
    assert config["max_batch_size"] == batch
    assert ("dynamic_batching" in config) == (batch > 1)
    assert shapes(config, "input") == {"image": ("TYPE_UINT8", [-1, -1, 3]), "image_shape": ("TYPE_FP32", [2])}
    assert shapes(config, "output") == {
        "boxes": ("TYPE_FP32", [-1, 4]),
        "scores": ("TYPE_FP32", [-1]),
        "labels": ("TYPE_INT64", [-1]),
        "class_scores": ("TYPE_FP32", [-1]),
    }
    assert json.loads(config["parameters"][MANIFEST_KEY])["classes"] == list(CLASSES)
    assert (tmp_path / "models" / "FCOS" / "labels.txt").read_text(encoding="utf-8").splitlines() == list(CLASSES)


@pytest.mark.parametrize(
    ("device", "kind"), [((), "KIND_AUTO"), (("--device", "cpu"), "KIND_CPU"), (("--device", "cuda"), "KIND_GPU")]
)
def test_the_device_is_the_kind_of_its_instances(device, kind, deploy, tmp_path):
    model = write_graph(tmp_path / "a.onnx")
    config = config_of(deploy, model, tmp_path / "models", "--name", "cards", "--instances", 3, *device)
    assert config["instance_group"] == [{"count": 3, "kind": kind}]
    assert config["name"] == "cards"


def test_an_engine_of_a_fixed_size_and_one_with_a_profile(deploy, tmp_path):
    config = config_of(deploy, write_engine(tmp_path / "a.engine", FIXED, 1), tmp_path / "models")
    assert (config["backend"], config["max_batch_size"]) == ("tensorrt", 0)
    assert shapes(config, "input") == {"image": ("TYPE_FP32", [1, 3, 64, 96])}
    assert shapes(config, "output")["labels"] == ("TYPE_INT64", [1, 5])
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU"}]
    assert (tmp_path / "models" / "a" / "1" / "model.plan").read_bytes() == b"an engine"
    config = config_of(deploy, write_engine(tmp_path / "b.engine", SEVERAL), tmp_path / "models")
    assert config["max_batch_size"] == 4
    assert shapes(config, "input") == {"image": ("TYPE_FP32", [3, -1, -1])}
    assert shapes(config, "output")["boxes"] == ("TYPE_FP32", [5, 4])


def test_names_of_files_become_names_of_models(deploy, tmp_path):
    model = write_graph(tmp_path / "..my cards (1).int8.onnx")
    assert config_of(deploy, model, tmp_path / "models")["name"] == "my_cards__1_.int8"


@pytest.mark.parametrize("family", ["FCOS", "RetinaNet"])
def test_what_the_file_says_of_its_ends_is_what_onnx_runtime_says(family, students):
    kinds = {"tensor(float)": 1, "tensor(uint8)": 2, "tensor(int64)": 7}
    session = onnxruntime.InferenceSession(str(students[family]), providers=["CPUExecutionProvider"])
    for found, expected in zip(
        interface_of(students[family].read_bytes()), (session.get_inputs(), session.get_outputs()), strict=True
    ):
        assert [(one.name, one.type) for one in found] == [(one.name, kinds[one.type]) for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.shape == tuple(size if isinstance(size, int) else None for size in other.shape)
            assert TYPES[one.type]


@pytest.fixture
def assert_client_finds_what_the_detector_finds(deploy, tmp_path, monkeypatch, capsys) -> Callable[..., None]:
    """Given a model, an image and the names of its classes, runs the program in the README.

    The server is ONNX Runtime here, fed through the names, types and shapes of the configuration.
    """

    def check(model: Path, image: np.ndarray, classes: Sequence[str]) -> None:
        config = config_of(deploy, model, tmp_path / "models")
        folder = tmp_path / "models" / model.stem
        put_server(monkeypatch, config, folder / "1" / "model.onnx")
        cv2.imwrite(str(tmp_path / "image.png"), image)
        monkeypatch.setattr(sys, "argv", ["client.py", str(tmp_path / "image.png")])
        program = (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
        capsys.readouterr()
        exec(compile(program, "client.py", "exec"), {})
        with cskd_deploy.load(model, device="cpu") as detector:
            found = detector.detect(image)
        assert len(found) > 3
        assert capsys.readouterr().out.splitlines() == [
            f"{classes[label]} {round(float(score), 3)} {[round(float(side), 1) for side in box]}"
            for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)
        ]

    return check


def put_server(monkeypatch: Any, config: dict[str, Any], model: Path) -> None:
    """A `tritonclient` whose server has this model."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    batched = config["max_batch_size"] > 0

    class Input:
        def __init__(self, name: str, shape: Any, kind: str) -> None:
            declared, dims = shapes(config, "input")[name]
            assert f"TYPE_{kind}" == declared
            sizes = shape[1:] if batched else shape
            assert len(sizes) == len(dims)
            assert all(wanted in (-1, size) for size, wanted in zip(sizes, dims, strict=True))
            self.name, self.shape = name, tuple(shape)

        def set_data_from_numpy(self, array: np.ndarray) -> None:
            assert array.shape == self.shape
            self.array = array

    class Client:
        def __init__(self, url: str) -> None:
            assert url == "localhost:8000"

        def get_model_config(self, name: str) -> dict[str, Any]:
            texts = {key: {"string_value": text} for key, text in config["parameters"].items()}
            return {"name": name, "parameters": texts}

        def infer(self, name: str, inputs: list[Input]) -> Any:
            assert name == config["name"]
            names = list(shapes(config, "output"))
            values = session.run(names, {one.name: one.array for one in inputs})
            return SimpleNamespace(as_numpy=dict(zip(names, values, strict=True)).__getitem__)

    module: Any = ModuleType("tritonclient.http")
    module.InferenceServerClient, module.InferInput = Client, Input
    package: Any = ModuleType("tritonclient")
    package.http = module
    monkeypatch.setitem(sys.modules, "tritonclient", package)
    monkeypatch.setitem(sys.modules, "tritonclient.http", module)


@pytest.mark.parametrize("family", ["FCOS", "RetinaNet"])
def test_the_client_of_the_readme_prints_what_the_detector_finds(
    family, students, assert_client_finds_what_the_detector_finds
):
    image = random_images((128, 96), count=1, seed=5)[0]
    assert_client_finds_what_the_detector_finds(students[family], image, CLASSES)


def test_the_client_of_a_fixed_batch_sends_as_many_images(tmp_path, assert_client_finds_what_the_detector_finds):
    model = onnx.load(str(write_small_model(tmp_path / "three.onnx")))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    manifest = dataclasses.replace(MANIFEST, graph=dataclasses.replace(MANIFEST.graph, batch=3))
    onnx.helper.set_model_props(model, manifest.to_metadata())
    onnx.save(model, str(tmp_path / "three.onnx"))
    image = random_images((64, 96), count=1, seed=5)[0] // 40
    assert_client_finds_what_the_detector_finds(tmp_path / "three.onnx", image, MANIFEST.classes)
    text = (tmp_path / "models" / "three" / "README.md").read_text(encoding="utf-8")
    assert "3 images at a time" in text
    assert "Send 3 images; where there are fewer, the last one fills up." in text


@pytest.mark.parametrize(("batches", "words"), [((4, 4), "4 images at a time"), ((2, 4), "2 to 4 images of one size")])
def test_an_engine_whose_profile_takes_no_single_image_gets_no_single_image(batches, words, deploy, tmp_path):
    low, high = ((batch, 3, 64, 96) for batch in batches)
    engine = write_engine(tmp_path / "a.engine", ShapeRange(low, high, high))
    config = config_of(deploy, engine, tmp_path / "models")
    assert config["max_batch_size"] == (0 if low == high else 4)
    text = (tmp_path / "models" / "a" / "README.md").read_text(encoding="utf-8")
    assert words in text
    assert f"np.repeat(array, {batches[0]}, axis=0)" in text


def test_the_readme_says_what_the_manifest_says(deploy, students, tmp_path):
    for model in students.values():
        config_of(deploy, model, tmp_path / "models")
    pixels, values = ((tmp_path / "models" / name / "README.md").read_text(encoding="utf-8") for name in students)
    assert "to multiples of 32, with anything. Send `image` as uint8" in pixels
    assert "Send `image_shape` too" in pixels
    assert "Keep candidates whose `class_scores` is above 0.05" in pixels
    assert "up to 8 images of one size at a time" in pixels
    assert "in the order RGB, subtract 123.675, 116.28, 103.53 and divide by 58.395, 57.12, 57.375" in values
    assert "to 96 x 128 (height x width)" in values
    assert "Leave out detections of score 0" in values
    assert "one image at a time" in values


def test_text_is_quoted_as_protobuf_reads_it():
    text = written(
        {"name": 'a "b" \\ c', "max_batch_size": 2, "input": [{"dims": [1, -1], "data_type": Enum("TYPE_FP16")}]}
    )
    assert read_config(text) == {
        "name": 'a "b" \\ c',
        "max_batch_size": 2,
        "input": [{"dims": [1, -1], "data_type": "TYPE_FP16"}],
        "parameters": {},
    }


@pytest.mark.parametrize(
    "text", ["colour: 1", "name: 3", "input { data_type: TYPE_REAL }", "name {", "max_batch_size: x"]
)
def test_the_reader_of_these_tests_refuses_what_the_schema_has_not(text):
    with pytest.raises((ValueError, KeyError, IndexError)):
        read_config(text)


# Bad input


def plain(path: Path) -> Path:
    model = onnx.load(str(write_graph(path)))
    del model.metadata_props[:]
    onnx.save(model, str(path))
    return path


def without_manifest(path: Path) -> Path:
    engine = write_engine(path.with_suffix(".engine"), FIXED)
    manifest_path(engine).unlink()
    return engine


def changed(path: Path) -> Path:
    engine = write_engine(path.with_suffix(".engine"), FIXED)
    engine.write_bytes(b"another engine")
    return engine


def renamed_output(path: Path) -> Path:
    model = onnx.load(str(write_graph(path)))
    model.graph.output[0].name = model.graph.node[2].output[0] = "corners_"
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda path: path, (), "model.onnx does not exist"),
        (lambda path: path.with_suffix(".engine"), (), "model.engine does not exist"),
        (lambda path: path.with_suffix(".pth"), (), "model.pth is a checkpoint, expected an exported file"),
        (plain, (), "not one of `cskd-deploy export`"),
        (renamed_output, (), "its metadata says image (1, 3, 64, 96) and boxes, scores, labels. Export it again"),
        (without_manifest, (), "has no manifest beside it (model.engine.json)"),
        (changed, (), "is not the engine that its manifest describes"),
        (write_graph, ("--name", "a/b"), "--name 'a/b' is no name of a model"),
        (write_graph, ("--name", "../up"), "is no name of a model"),
        (write_graph, ("--max-batch", 4), "takes batches of 1 only: export it with --batch any"),
        (lambda path: write_engine(path.with_suffix(".plan"), FIXED), ("--device", "cpu"), "leave --device cpu out"),
        (lambda path: write_engine(path.with_suffix(".plan"), SEVERAL), ("--max-batch", 5), "takes at most 4 images"),
        (
            lambda path: write_engine(path.with_suffix(".plan"), ShapeRange(*2 * [(2, 3, 64, 96)], (4, 3, 64, 96))),
            ("--max-batch", 1),
            "takes at least 2 images",
        ),
        (write_graph, ("--device", "npu"), "Invalid value for '--device'"),
    ],
)
def test_what_cannot_be_served_is_one_sentence_and_leaves_nothing(make, options, words, deploy, tmp_path):
    model = make(tmp_path / "model.onnx")
    before = sorted(tmp_path.iterdir())
    done = deploy("triton", model, tmp_path / "models", *options)
    assert done.code == 2
    assert words in done.err
    assert sorted(tmp_path.iterdir()) == before


def test_a_repository_takes_further_models_and_nothing_is_written_over(deploy, tmp_path):
    model, models = write_graph(tmp_path / "a.onnx"), tmp_path / "deep" / "models"
    assert deploy("triton", model, models).code == 0
    assert deploy("triton", model, models, "--name", "b").code == 0
    assert sorted(path.name for path in models.iterdir()) == ["a", "b"]
    done = deploy("triton", model, models)
    assert done.code == 2
    assert "is there already: give another --name" in done.err
    (models / "empty").mkdir()
    assert deploy("triton", model, models, "--name", "empty").code == 0


def test_a_folder_of_other_things_is_no_repository(deploy, tmp_path):
    model = write_graph(tmp_path / "a.onnx")
    done = deploy("triton", model, tmp_path)
    assert done.code == 2
    assert "is not empty and no model repository" in done.err
    done = deploy("triton", model, model)
    assert done.code == 2
    assert "is a file: give a folder" in done.err


def test_the_edge_alone_writes_a_repository(edge_deploy, tmp_path):
    done = edge_deploy("triton", write_graph(tmp_path / "a.onnx"), tmp_path / "models")
    assert done.code == 0, done.err
    assert "tritonserver --model-repository" in done.out


def test_a_manifest_of_an_engine_has_the_kind_of_its_input(deploy, tmp_path):
    engine = write_engine(tmp_path / "a.engine", FIXED)
    data = json.loads(manifest_path(engine).read_text())
    form = dataclasses.replace(MANIFEST.graph, input="uint8")
    data["model"] = dataclasses.replace(MANIFEST, graph=form).to_dict()
    manifest_path(engine).write_text(json.dumps(data))
    assert shapes(config_of(deploy, engine, tmp_path / "models"), "input")["image"][0] == "TYPE_UINT8"
