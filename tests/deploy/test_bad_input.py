"""Bad input of every command: one message, exit code 2, nothing overwritten."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import pytest

from cskd_deploy.errors import DeployError
from cskd_deploy.exporter.mmdet_config import candidates_per_level, family_of, postprocessing_of, proposals_of

from .students import student_config, write_checkpoint


@pytest.fixture
def classifier(tmp_path) -> Path:
    """A sound ONNX file that is no detector of ours."""
    from onnx import TensorProto, helper, save

    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    classes = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["y"])], "classifier", [image], [classes])
    path = tmp_path / "classifier.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


COMMANDS = {
    "bench": [],
    "inspect": [],
    "eval": ["--ann", "nowhere.json", "--images", "nowhere"],
    "infer": [Path(__file__).parents[2] / "docs" / "images" / "detections.png"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.onnx", None, "does not exist"),
        ("empty.onnx", b"", "is empty (0 bytes)"),
        ("text.onnx", b"this is a text file\n" * 20, "cannot be loaded as an ONNX model"),
        ("random.onnx", bytes(range(256)) * 40, "cannot be loaded as an ONNX model"),
        ("folder.onnx", "folder", "is not a file"),
    ],
)
def test_what_is_no_model_is_refused_by_every_command(deploy, tmp_path, command, name, content, message):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    done = deploy(command, path, *COMMANDS[command])
    assert done.code == 2
    assert message in done.err
    assert name in done.err
    assert done.err.count("error: ") == 1


def test_a_truncated_model_is_refused(deploy, model_file, tmp_path):
    path = written(tmp_path / "cut.onnx", model_file.read_bytes()[:-100_000])
    done = deploy("inspect", path)
    assert done.code == 2
    assert "cannot be loaded as an ONNX model" in done.err


def test_an_onnx_file_of_another_kind_is_refused(deploy, classifier):
    done = deploy("bench", classifier)
    assert done.code == 2
    assert "not one of `cskd-deploy export`" in done.err


def test_a_checkpoint_in_place_of_a_model_is_told_to_be_exported(deploy, checkpoint, tmp_path):
    renamed = tmp_path / "student.onnx"
    shutil.copy(checkpoint, renamed)
    assert "cskd-deploy export --checkpoint" in deploy("bench", renamed).err
    done = deploy("inspect", checkpoint)
    assert done.code == 2
    assert "cskd-deploy export --checkpoint" in done.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b'{"images": [', "line 1"),
        (b"\xff\xfe\x00\x01", "not JSON"),
        (b"[]", "is not COCO"),
        (b'{"images": [], "annotations": []}', "'categories'"),
        (b'{"images": [], "annotations": [], "categories": []}', "images is an empty list"),
        (b'{"images": [{"id": 1}], "annotations": [], "categories": []}', "image 1 has no file_name"),
    ],
)
def test_a_missing_or_malformed_annotation_file_is_refused(deploy, model_file, tmp_path, content, message):
    path = tmp_path / "annotations.json"
    if content is not None:
        path.write_bytes(content)
    done = deploy("eval", model_file, "--ann", path, "--images", tmp_path)
    assert done.code == 2
    assert message in done.err
    assert "annotations.json" in done.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["annotations"][0].update(image_id=777), "image id 777"),
        (lambda data: data["annotations"][0].update(category_id=778), "category id 778"),
        (lambda data: data["annotations"][0].update(bbox=[1, 2, 3]), "annotation 1 has bbox [1, 2, 3]"),
        (lambda data: data["images"][1].update(id=data["images"][0]["id"]), "twice"),
        (lambda data: data["categories"][0].update(name="horse"), "has no class"),
        (lambda data: [box.update(iscrowd=1) for box in data["annotations"]], "are crowds"),
        (lambda data: data["images"][0].update(width=99), "its boxes would not fit"),
        (lambda data: data["images"][0].update(file_name="nowhere.jpg"), "nowhere.jpg"),
    ],
)
def test_annotations_that_do_not_fit_are_named(
    deploy, model_file, found_annotations, shapes_root, tmp_path, change, message
):
    data = json.loads(found_annotations.read_text())
    change(data)
    path = written(tmp_path / "annotations.json", json.dumps(data).encode())
    out = written(tmp_path / "results.json", b"of yesterday")
    done = deploy("eval", model_file, "--ann", path, "--images", shapes_root / "images", "--detections", out)
    assert done.code == 2
    assert message in done.err
    assert out.read_bytes() == b"of yesterday"


def test_a_class_without_category_is_named(deploy, model_file, shapes_root, found_annotations, classes, tmp_path):
    data = json.loads(found_annotations.read_text())
    next(category for category in data["categories"] if category["name"] == classes[2])["name"] = "horse"
    path = written(tmp_path / "annotations.json", json.dumps(data).encode())
    done = deploy("eval", model_file, "--ann", path, "--images", shapes_root / "images")
    assert done.code == 2
    assert f"no class {classes[2]!r}" in done.err
    assert "'horse'" in done.err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content[: len(content) // 2], "is truncated"),
        (lambda content: b"", "is empty"),
        (lambda content: b"no image" * 50, "is no image"),
    ],
)
def test_a_damaged_image_stops_the_evaluation(
    deploy, model_file, found_annotations, shapes_root, tmp_path, spoil, message
):
    images = tmp_path / "images"
    shutil.copytree(shapes_root / "images", images)
    name = json.loads(found_annotations.read_text())["images"][3]["file_name"]
    written(images / name, spoil((images / name).read_bytes()))
    done = deploy("eval", model_file, "--ann", found_annotations, "--images", images)
    assert done.code == 2
    assert message in done.err
    assert name in done.err


def test_bench_refuses_a_folder_without_images_and_a_truncated_image(deploy, model_file, shapes_root, tmp_path):
    assert "does not exist" in deploy("bench", model_file, "--images", tmp_path / "nowhere").err
    assert "holds no image" in deploy("bench", model_file, "--images", tmp_path).err
    image = next((shapes_root / "images").iterdir())
    written(tmp_path / "cut.jpg", image.read_bytes()[:-2000])
    done = deploy("bench", model_file, "--images", tmp_path)
    assert done.code == 2
    assert "cut.jpg is truncated" in done.err


def test_a_jpeg_with_a_whole_thumbnail_and_a_cut_picture_is_truncated(shapes_root, tmp_path):
    from cskd_data import DataError
    from cskd_data.images import read_image

    content = next((shapes_root / "images").glob("*.jpg")).read_bytes()
    thumbnail = b"Exif\0\0" + content[:2000] + b"\xff\xd9"
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = written(tmp_path / "whole.jpg", content[:2] + segment + content[2:] + b"trailing bytes")
    assert read_image(whole).shape == (128, 128, 3)
    cut = written(tmp_path / "cut.jpg", content[:2] + segment + content[2:-3000])
    with pytest.raises(DataError, match="truncated"):
        read_image(cut)


class Code:
    """A pickle of it asks to run code."""

    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "code", "architecture", "family", "input size"])
def test_a_checkpoint_that_cannot_be_exported_leaves_nothing_and_overwrites_nothing(
    deploy, checkpoint, classes, tmp_path, monkeypatch, kind
):
    import torch

    monkeypatch.chdir(tmp_path)
    path = tmp_path / "student.pth"
    options: list[object] = []
    if kind == "text":
        written(path, b"weights, perhaps\n" * 10)
    elif kind == "truncated":
        written(path, checkpoint.read_bytes()[:-5000])
    elif kind == "code":
        torch.save({"state_dict": {}, "meta": Code()}, path)
    elif kind in ("architecture", "family"):
        contents = torch.load(checkpoint, weights_only=True)
        model = contents["meta"]["config"]["model"]
        if kind == "family":
            model["type"] = "PAA"
        else:
            model["bbox_head"]["stacked_convs"] = 4
        torch.save(contents, path)
    elif kind == "input size":
        shutil.copy(checkpoint, path)
        options = ["--input-size", 100, 128]
    message = {
        "missing": "no such file",
        "text": "not a PyTorch checkpoint",
        "truncated": "cut short",
        "code": "asks for code",
        "architecture": "another architecture",
        "family": "'PAA', which cannot be exported",
        "input size": "multiples of 32, for example 128 128",
    }[kind]
    target = written(tmp_path / "student.onnx", b"of yesterday")
    done = deploy("export", "--checkpoint", path, "--output", target, *options)
    assert done.code == 2
    assert message in done.err
    assert target.read_bytes() == b"of yesterday"
    assert not (tmp_path / "executed").exists()
    assert {entry.name for entry in tmp_path.iterdir()} <= {"student.pth", "student.onnx"}


def test_an_output_that_cannot_be_written_is_refused_before_the_work(deploy, checkpoint, model_file, tmp_path):
    file = written(tmp_path / "file", b"a file")
    done = deploy("export", "--checkpoint", checkpoint, "--output", file / "student.onnx")
    assert done.code == 2
    assert "cannot write" in done.err
    assert "simplifying" not in done.err
    assert "is a folder" in deploy("export", "--checkpoint", checkpoint, "--output", tmp_path).err
    done = deploy("eval", model_file, "--ann", "x.json", "--images", tmp_path, "--detections", file / "results.json")
    assert done.code == 2
    assert "cannot write" in done.err
    assert file.read_bytes() == b"a file"


def test_a_test_config_that_is_not_reproduced_is_refused(deploy, checkpoint, tmp_path):
    import torch

    path = tmp_path / "student.pth"
    contents = torch.load(checkpoint, weights_only=True)
    contents["meta"]["config"]["model"]["test_cfg"]["nms"]["type"] = "soft_nms"
    torch.save(contents, path)
    done = deploy("export", "--checkpoint", path)
    assert done.code == 2
    assert "only type='nms'" in done.err
    assert not path.with_suffix(".onnx").exists()


def changed(**settings):
    """A change of a model's settings; `__` in a name stands for the dot between levels."""

    def change(model):
        for path, value in settings.items():
            *levels, key = path.split("__")
            functools.reduce(lambda inner, level: inner[level], levels, model)[key] = value

    return change


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("RetinaNet", changed(bbox_head__type="GARetinaHead"), "bbox_head.type='GARetinaHead'"),
        ("RetinaNet", changed(bbox_head__loss_cls__use_sigmoid=False), "loss_cls.use_sigmoid=False"),
        ("RetinaNet", changed(backbone__dcn={"type": "DCNv2"}), "backbone.dcn={'type': 'DCNv2'}"),
        ("RetinaNet", changed(test_cfg__nms_pre=-1), "test_cfg.nms_pre is -1"),
        ("RetinaNet", changed(test_cfg__nms__max_num=100), "only type='nms' with an iou_threshold"),
        ("RetinaNet", changed(test_cfg=None), "test_cfg.score_thr is None"),
        ("FCOS", changed(bbox_head__dcn_on_last_conv=True), "bbox_head.dcn_on_last_conv=True"),
        ("FCOS", changed(bbox_head__conv_cfg={"type": "DCN"}), "bbox_head.conv_cfg.type='DCN'"),
        ("GFL", changed(bbox_head__type="LDHead"), "bbox_head.type='LDHead'"),
        ("ATSS", changed(bbox_head__type="PAAHead"), "bbox_head.type='PAAHead'"),
        ("ATSS", changed(bbox_head__bbox_coder__type="TBLRBBoxCoder"), "bbox_coder.type='TBLRBBoxCoder'"),
        ("ATSS", changed(neck=[{"type": "FPN"}, {"type": "DyHead"}]), "the neck DyHead, which cannot be exported"),
        ("FSAF", changed(bbox_head__bbox_coder=None), "bbox_coder.type=None"),
        ("AutoAssign", changed(bbox_head__dcn_on_last_conv=True), "bbox_head.dcn_on_last_conv=True"),
        ("FasterRCNN", changed(rpn_head__type="GARPNHead"), "rpn_head.type='GARPNHead'"),
        ("FasterRCNN", changed(roi_head__type="CascadeRoIHead", roi_head__bbox_head=[]), "type='CascadeRoIHead'"),
        ("FasterRCNN", changed(roi_head__bbox_head__reg_class_agnostic=True), "reg_class_agnostic=True"),
        ("FasterRCNN", changed(rpn_head__bbox_coder__clip_border=False), "clip_border=False"),
        ("FasterRCNN", changed(roi_head__bbox_head__loss_cls__type="SeesawLoss"), "loss_cls.type='SeesawLoss'"),
        ("FasterRCNN", changed(roi_head__bbox_roi_extractor__roi_layer__pool_mode="max"), "pool_mode='max'"),
        ("FasterRCNN", changed(roi_head__mask_head={"type": "FCNMaskHead"}), "mask_head={'type': 'FCNMaskHead'}"),
        ("FasterRCNN", changed(test_cfg__rcnn__nms={"type": "soft_nms"}), "test_cfg.rcnn.nms is {'type': 'soft_nms'}"),
        ("FasterRCNN", changed(test_cfg__rpn__nms__class_agnostic=True), "test_cfg.rpn.nms is"),
        ("FasterRCNN", changed(test_cfg__rpn__nms_pre=0), "test_cfg.rpn.nms_pre is 0"),
        ("FasterRCNN", changed(test_cfg__rcnn__max_per_img=None), "test_cfg.rcnn.max_per_img is None"),
    ],
)
def test_a_variant_that_is_nearly_of_a_family_is_refused_by_the_name_of_its_setting(family, change, message):
    config = student_config(("a",), family=family)
    postprocessing_of(config)
    change(config["model"])
    with pytest.raises(DeployError) as error:
        read_model(config)
    assert message in str(error.value)


def read_model(config):
    """All that is read of a config's model."""
    postprocessing_of(config)
    return proposals_of(config) if family_of(config) == "faster_rcnn" else candidates_per_level(config)


def test_a_file_without_the_output_that_its_metadata_names_is_refused(deploy, model_file, tmp_path):
    import onnx

    model = onnx.load(str(model_file))
    entry = model.metadata_props[0]
    manifest = json.loads(entry.value)
    manifest["postprocessing"]["threshold_on"] = "class_scores"
    entry.value = json.dumps(manifest)
    onnx.save(model, str(tmp_path / "other.onnx"))
    done = deploy("bench", tmp_path / "other.onnx")
    assert done.code == 2
    assert "boxes, scores, labels, class_scores. Export it again" in done.err


def test_bench_refuses_a_reference_that_does_different_work(deploy, model_file, classes, tmp_path):
    config = student_config(classes)
    config["model"]["test_cfg"]["score_thr"] = 0.3
    reference = write_checkpoint(tmp_path / "student.pth", classes, config)
    done = deploy("bench", model_file, "--reference", reference)
    assert done.code == 2
    assert "postprocessing.score_threshold: 0.05 and 0.3" in done.err


def test_debug_shows_the_traceback(tmp_path):
    from cskd_deploy import cli

    with pytest.raises(DeployError):
        cli.main(["--debug", "inspect", str(tmp_path / "nowhere.onnx")])
