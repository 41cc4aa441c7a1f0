"""Real builds by TensorRT-RTX in TensorRT's place: its parser and builder need no GPU. Its engines are never loaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from cskd_deploy.backends.base import needed_outputs
from cskd_deploy.backends.tensorrt.export import export_engine, read_model
from cskd_deploy.backends.tensorrt.manifest import read_engine_manifest, sha256_of
from cskd_deploy.backends.tensorrt.settings import BuildSettings, parse_build_settings
from cskd_deploy.backends.tensorrt.shapes import ProfileShapes, ShapeRange
from cskd_deploy.errors import DeployError
from cskd_deploy.model.manifest import GraphForm

from .engines import put_rtx, write_graph, write_small_model

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt-rtx is not installed: pip install -r requirements/dev.txt",
)


@pytest.fixture(autouse=True)
def rtx(tmp_path_factory, monkeypatch) -> None:
    """TensorRT-RTX in TensorRT's place."""
    put_rtx(monkeypatch, tmp_path_factory.mktemp("modules"))


@pytest.fixture(scope="module")
def dynamic_graph(tmp_path_factory) -> Path:
    return write_graph(tmp_path_factory.mktemp("graph") / "dynamic.onnx", dynamic=True)


@pytest.mark.parametrize("family", ["RetinaNet", "FCOS", "GFL", pytest.param("ATSS", marks=pytest.mark.reliability)])
def test_tensorrt_rtx_builds_an_engine_of_each_one_stage_student(family, exported, tmp_path):
    shares: list[int] = []
    result = export_engine(
        exported(family).model,
        tmp_path / "student.engine",
        BuildSettings(timing_cache=tmp_path / "timings"),
        progress=lambda done, total: shares.append(done),
    )
    known = read_engine_manifest(result.path)
    assert known is not None
    assert known == result.manifest
    assert known.sha256 == sha256_of(result.path.read_bytes())
    model = read_model(exported(family).model)[1]
    assert known.inputs["image"] == ShapeRange((1, 32, 32, 3), (1, 128, 128, 3), (1, 128, 128, 3))
    assert set(known.outputs) == set(needed_outputs(model))
    assert known.outputs["boxes"][:2] == (1, -1)
    assert all(known.outputs[name] == (1, -1) for name in known.outputs if name != "boxes")
    # All weights are in the engine.
    assert result.size_bytes > 0.9 * exported(family).model.stat().st_size
    assert shares == sorted(shares)
    assert shares[-1] == 100


def test_tensorrt_rtx_takes_the_profile_of_a_dynamic_model(dynamic_graph, tmp_path):
    result = export_engine(dynamic_graph, tmp_path / "dynamic.engine", BuildSettings())
    assert result.manifest.inputs["image"] == ShapeRange((1, 3, 32, 32), (1, 3, 64, 96), (8, 3, 96, 96))
    assert result.manifest.outputs == {"boxes": (-1, 5, 4), "scores": (-1, 5), "labels": (-1, 5)}


def test_tensorrt_rtx_takes_two_profiles(dynamic_graph, tmp_path):
    settings = parse_build_settings(
        ("maxShapes=image:1x3x96x96", "profile=1", "minShapes=image:2x3x32x32", "optShapes=image:8x3x64x96")
    )
    profiles = export_engine(dynamic_graph, tmp_path / "dynamic.engine", settings).manifest.profiles
    assert [profile["image"] for profile in profiles] == [
        ShapeRange((1, 3, 32, 32), (1, 3, 64, 96), (1, 3, 96, 96)),
        ShapeRange((2, 3, 32, 32), (8, 3, 64, 96), (8, 3, 96, 96)),
    ]


def test_tensorrt_rtx_takes_int8_with_fp16_around_it(deploy, shapes_root, tmp_path):
    write_small_model(tmp_path / "student.onnx")
    options = ("--precision", "int8+fp16", "--calibration-images", shapes_root / "images", "--format", "trt")
    done = deploy("export", "--onnx", tmp_path / "student.onnx", *options)
    assert done.code == 0, done.err
    known = read_engine_manifest(tmp_path / "student.int8+fp16.engine")
    assert known is not None
    assert (known.precision, known.onnx, known.model.opset) == ("int8+fp16", "student.int8+fp16.onnx", 19)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8", "int8+fp16"])
def test_tensorrt_rtx_builds_engines_of_lower_precision_that_are_smaller(
    precision, deploy, exported, shapes_root, tmp_path
):
    full = exported("RetinaNet", base=64).model  # of a narrower one the engine is more kernels than weights
    model = tmp_path / "low.onnx"
    images = ("--calibration-images", shapes_root / "images")
    options = {"fp16": (), "int8": ("--target", "tensorrt", *images), "int8+fp16": images}[precision]
    done = deploy("export", "--onnx", full, "--precision", precision, *options, "--output", model)
    assert done.code == 0, done.err
    result = export_engine(model, tmp_path / "low.engine", BuildSettings())
    assert result.manifest.precision == {"int8": "int8-tensorrt"}.get(precision, precision)
    assert result.size_bytes < {"fp16": 0.6, "int8": 0.5, "int8+fp16": 0.5}[precision] * full.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "batch", "settings", "profile"),
    [
        (
            (),
            None,
            {"profiles": (ProfileShapes(max={"image": (4, 256, 160, 3)}),)},
            ((1, 32, 32, 3), (1, 128, 128, 3), (4, 256, 160, 3)),
        ),
        (((96, 128),), None, {}, ((1, 96, 128, 3), (1, 96, 128, 3), (8, 96, 128, 3))),
        (((96, 128),), 1, {}, ((1, 96, 128, 3), (1, 96, 128, 3), (1, 96, 128, 3))),
        (((96, 128), (160, 64)), 1, {}, ((1, 96, 64, 3), (1, 96, 128, 3), (1, 160, 128, 3))),
    ],
)
def test_tensorrt_rtx_builds_students_of_every_form(sizes, batch, settings, profile, exported, tmp_path):
    from cskd_deploy.exporter.onnx import export

    model = tmp_path / "student.onnx"
    export(exported("RetinaNet").checkpoint, model, input_sizes=sizes, form=GraphForm(input="uint8", batch=batch))
    result = export_engine(model, tmp_path / "student.engine", BuildSettings(**settings))
    assert result.manifest.inputs["image"] == ShapeRange(*profile)
    rows = [(shape[0], 2) for shape in profile]
    assert result.manifest.inputs["image_shape"] == ShapeRange(*rows)


def test_what_tensorrt_rtx_cannot_parse_is_named(exported, tmp_path):
    with pytest.raises(DeployError, match=r"parser refuses the ONNX file: node \d+ .*"):
        export_engine(exported("FasterRCNN").model, tmp_path / "two_stage.engine", BuildSettings())
    assert not list(tmp_path.iterdir())
