"""`export --proposals`: a two-stage student with fewer proposals, compared with mmdet at that number."""

from __future__ import annotations

import dataclasses
import json

import onnx
import pytest

from cskd_data.images import read_image
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.backends.torch import TorchBackend
from cskd_deploy.detect.detector import Detector
from cskd_deploy.exporter.onnx import beyond_tensorrt, export
from cskd_deploy.exporter.student import load_student
from cskd_deploy.measure.bench import differences, random_images
from cskd_deploy.model.manifest import MANIFEST_KEY, GraphForm, manifest_from_metadata

from .conftest import detect_with_mmdet
from .students import student_config, write_checkpoint
from .test_export import assert_same, flat, triple

FEW = 11


@pytest.fixture(scope="module")
def few(exported, tmp_path_factory):
    """The file of a student that keeps `FEW` proposals, where its config has 300."""
    from cskd_deploy import cli

    path = tmp_path_factory.mktemp("few") / "few.onnx"
    arguments = ("export", "--checkpoint", exported("FasterRCNN").checkpoint, "--proposals", FEW, "--output", path)
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    assert not stop.value.code
    return path


def test_a_file_with_few_proposals_finds_what_mmdet_finds_with_as_many(few, exported, shapes_root):
    student = load_student(exported("FasterRCNN").checkpoint)
    assert student.model.rpn_head.test_cfg["max_per_img"] == 300
    pictures = sorted((shapes_root / "images").iterdir())[:3]
    with OnnxRuntimeBackend(few) as backend:
        found = [triple(Detector(backend).detect(read_image(path))) for path in pictures]
    many = [flat(detect_with_mmdet(student, path)) for path in pictures]
    student.model.rpn_head.test_cfg["max_per_img"] = FEW
    for path, one in zip(pictures, found, strict=True):
        assert_same(flat(detect_with_mmdet(student, path)), one)
    assert sum(len(one[1]) for one in found) < sum(len(one[1]) for one in many)


def test_the_file_says_how_many_proposals_it_keeps(deploy, few, exported):
    classes = len(manifest_of(few).classes)
    facts = json.loads(deploy("inspect", few, "--json").out)
    assert facts["metadata"]["graph"]["proposals"] == FEW
    assert facts["outputs"]["scores"] == f"tensor(float) [1, {FEW * classes}]"
    assert manifest_of(exported("FasterRCNN").model).graph.proposals == 300
    assert manifest_of(exported("GFL").model).graph.proposals is None


@pytest.mark.parametrize(("nms", "size"), [("outside", (64, 96)), ("graph", (96, 64)), ("outside", None)])
def test_where_there_are_fewer_candidates_than_proposals_empty_ones_fill_up(deploy, classes, tmp_path, nms, size):
    config = student_config(classes, scale=(96, 64), family="FasterRCNN")
    config["model"]["test_cfg"]["rpn"]["nms_pre"] = 20  # of each of five levels
    checkpoint = write_checkpoint(tmp_path / "student.pth", classes, config)
    form = GraphForm("uint8", nms=nms)
    path = export(checkpoint, tmp_path / "student.onnx", None, [size] if size else [], form=form).path
    with OnnxRuntimeBackend(path) as backend:
        detector = Detector(backend)
        image = random_images(size or (64, 96))[0]
        outputs = detector.infer(detector.prepare(image))
        assert len(detector.detect(image)) > 0
        assert backend.manifest.graph.proposals == 300
        with TorchBackend(checkpoint, like=backend.manifest, threads=1) as reference:
            assert_same(triple(Detector(reference).detect(image)), triple(detector.detect(image)))
            assert not any("proposals" in one for one in differences([detector, Detector(reference)]))
    rows = 100 if nms == "graph" else 300 * len(classes)
    assert outputs["scores"].shape == (1, rows)
    outputs_of_file = onnx.load(path).graph.output
    declared = {value.name: [one.dim_value for one in value.type.tensor_type.shape.dim] for value in outputs_of_file}
    assert declared == {"boxes": [1, rows, 4], "scores": [1, rows], "labels": [1, rows]}
    assert deploy("triton", path, tmp_path / "repository").code == 0
    assert f"dims: [ 1, {rows}, 4 ]" in (tmp_path / "repository" / "student" / "config.pbtxt").read_text()


def test_nms_among_more_boxes_than_tensorrt_takes_is_said_at_export(deploy, exported, tmp_path, monkeypatch):
    monkeypatch.setattr("cskd_deploy.exporter.onnx.MOST_NMS_BOXES", 300)
    monkeypatch.setattr("cskd_deploy.commands.export.require_tensorrt", lambda: None)
    words = ("export", "--checkpoint", exported("FasterRCNN").checkpoint, "--nms", "graph", "--proposals")
    line = "among 306 boxes (51 proposals of 6 classes), TensorRT takes 300 at most"
    way_out = "with --nms outside, or with --proposals 50 or fewer"
    done = deploy(*words, 51, "--output", tmp_path / "many.onnx")
    assert done.code == 0
    assert line in done.out
    assert way_out in done.out
    done = deploy(*words, 51, "--format", "trt", "--output", tmp_path / "many.engine")
    assert done.code == 2
    assert line in done.err
    assert way_out in done.err
    assert "exporting" not in done.err  # before the work
    assert not (tmp_path / "many.engine").exists()
    manifest = manifest_of(tmp_path / "many.onnx")
    fewer = dataclasses.replace(manifest.graph, proposals=50)
    outside = dataclasses.replace(manifest.graph, nms="outside")
    for form in (fewer, outside):
        assert beyond_tensorrt(dataclasses.replace(manifest, graph=form)) is None


def manifest_of(path):
    with OnnxRuntimeBackend(path) as backend:
        return backend.manifest


def test_a_file_of_before_schema_4_does_not_say_it_and_is_compared_nevertheless(few):
    manifest = manifest_of(few)
    data = json.loads(manifest.to_metadata()[MANIFEST_KEY])
    del data["graph"]["proposals"]
    with OnnxRuntimeBackend(few) as one, OnnxRuntimeBackend(few) as other:
        other.manifest = manifest_from_metadata({MANIFEST_KEY: json.dumps({**data, "schema": 3})}, "x.onnx")
        assert other.manifest.graph.proposals is None
        other.manifest = dataclasses.replace(manifest, graph=dataclasses.replace(manifest.graph, proposals=None))
        assert differences([Detector(one), Detector(other)]) == []


def test_bench_refuses_files_with_unlike_numbers_and_gives_pytorch_the_number_of_the_file(deploy, few, exported):
    quick = ("--duration", 0, "--iterations", 1, "--no-cold", "--json")
    refused = deploy("bench", few, exported("FasterRCNN").model, *quick)
    assert refused.code == 2
    assert f"graph.proposals: {FEW} and 300" in refused.err
    assert deploy("bench", few, "--reference", exported("FasterRCNN").checkpoint, *quick).code == 0
    like = manifest_of(few)
    with TorchBackend(exported("FasterRCNN").checkpoint, like=like, threads=1) as backend:
        assert backend.manifest.graph.proposals == FEW
        detector = Detector(backend)
        outputs = detector.infer(detector.prepare(random_images((128, 96))[0]))
        assert outputs["scores"].shape == (1, FEW * len(like.classes))
    with TorchBackend(exported("RetinaNet").checkpoint, like=like, threads=1) as backend:
        assert backend.manifest.graph.proposals is None


def test_the_reference_of_an_evaluation_keeps_its_own_number_and_a_note_says_so(
    deploy, few, exported, annotated, shapes_root
):
    where = ("--ann", annotated("FasterRCNN"), "--images", shapes_root / "images", "--json", "--max-drop", 100)
    result = json.loads(deploy("eval", few, *where, "--reference", exported("FasterRCNN").checkpoint).out)
    assert result["notes"][0] == f"the model keeps {FEW} proposals of an image, the reference 300"
    assert result["drop_points"] > 1
    notes = json.loads(deploy("eval", few, *where, "--reference", few).out)["notes"]
    assert not any("proposals" in note for note in notes)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--checkpoint", "RetinaNet"), "is for two-stage students"),
        (("--onnx", "FasterRCNN", "--precision", "fp16"), "--proposals: only with --checkpoint"),
    ],
)
def test_it_is_refused_where_there_are_no_proposals_to_choose(deploy, exported, tmp_path, arguments, said):
    option, family, *others = arguments
    file = exported(family).checkpoint if option == "--checkpoint" else exported(family).model
    target = tmp_path / "out.onnx"
    done = deploy("export", option, file, *others, "--proposals", FEW, "--output", target)
    assert done.code == 2
    assert said in done.err
    assert not target.exists()
