"""What can be exported: the table, the page that shows it, and the refusal of everything else."""

from __future__ import annotations

import ctypes
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import FPN, build_head

from cskd_deploy.errors import DeployError
from cskd_deploy.exporter import EXPORTABLE
from cskd_deploy.exporter.mmdet_config import candidates_per_level, family_of, postprocessing_of, preprocessing_of
from cskd_deploy.exporter.onnx import export
from cskd_deploy.model.manifest import GraphForm
from cskd_train.files.config import config_to_data, load_config

from .students import student_config, write_checkpoint

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


def test_the_page_names_exactly_what_can_be_exported():
    rows = re.findall(r"^\| (`.*?) \| (`.*?) \|", PAGE.read_text(), flags=re.MULTILINE)
    assert {kind.strip("`"): tuple(re.findall(r"`(\w+)`", heads)) for kind, heads in rows} == EXPORTABLE


@pytest.mark.parametrize(
    ("name", "family", "thresholded"),
    [
        ("atss/atss_r50_fpn_1x_coco.py", "atss", "class_scores"),
        ("autoassign/autoassign_r50_fpn_8x2_1x_coco.py", "autoassign", "class_scores"),
        ("fsaf/fsaf_r50_fpn_1x_coco.py", "fsaf", "scores"),
        ("free_anchor/retinanet_free_anchor_r50_fpn_1x_coco.py", "retinanet", "scores"),
        ("pisa/pisa_retinanet_r50_fpn_1x_coco.py", "retinanet", "scores"),
    ],
)
def test_the_configs_that_mmdet_ships_are_taken(name, family, thresholded):
    config = config_to_data(load_config(f"mmdet::{name}"))
    assert family_of(config) == family
    assert candidates_per_level(config) == 1000
    assert postprocessing_of(config).threshold_on == thresholded
    assert preprocessing_of(config).scale == (1333, 800)


def test_an_atss_that_mmdet_ships_with_deformable_convolutions_is_refused():
    with pytest.raises(DeployError, match="the neck DyHead, which cannot be exported"):
        family_of(config_to_data(load_config("mmdet::dyhead/atss_r50_fpn_dyhead_1x_coco.py")))


def test_the_weights_of_localisation_distillation_are_those_of_gfl():
    head = student_config(("a", "b"), family="GFL")["model"]["bbox_head"]
    distilled = {**head, "type": "LDHead", "loss_ld": {"type": "KnowledgeDistillationKLDivLoss", "T": 10}}
    weights = [{name: value.shape for name, value in build_head(one).state_dict().items()} for one in (head, distilled)]
    assert weights[0] == weights[1]


def test_export_of_another_detector_says_what_can_be_exported_and_builds_nothing(deploy, tmp_path, monkeypatch):
    config = student_config(("a",), family="ATSS")
    stored = torch.load(write_checkpoint(tmp_path / "student.pth", ("a",), config), weights_only=True)
    model = stored["meta"]["config"]["model"]
    model["type"], model["bbox_head"]["type"] = "PAA", "PAAHead"
    torch.save(stored, tmp_path / "student.pth")
    monkeypatch.setattr("cskd_train.engine.evaluate.build_trained", lambda *_: pytest.fail("the student was built"))
    done = deploy("export", "--checkpoint", tmp_path / "student.pth")
    assert done.code == 2
    (line,) = (line for line in done.err.splitlines() if line.startswith("error: "))
    assert line == (
        "error: the config's model is of type 'PAA', which cannot be exported yet, though cskd-train may train and "
        "distil it. What can be exported: RetinaNet (RetinaHead, FreeAnchorRetinaHead, PISARetinaHead); "
        "FCOS (FCOSHead); GFL (GFLHead); ATSS (ATSSHead); AutoAssign (AutoAssignHead); FSAF (FSAFHead); "
        "FasterRCNN (Shared2FCBBoxHead, Shared4Conv1FCBBoxHead, ConvFCBBoxHead)"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["student.pth"]


def pooled(level):
    """As the neck BFP does: to a size that depends on the image."""
    return F.adaptive_max_pool2d(level, level.shape[2:])


@pytest.mark.parametrize(
    ("operator", "named"),
    [(torch.special.bessel_j0, "bessel_j0"), (pooled, "adaptive pooling")],
)
def test_a_neck_with_an_operator_that_onnx_has_not_is_refused_by_its_name(
    checkpoint, tmp_path, monkeypatch, operator, named
):
    plain = FPN.forward
    monkeypatch.setattr(FPN, "forward", lambda self, maps: plain(self, list(map(operator, maps))))
    with pytest.raises(DeployError, match=rf"an operator that the exported file cannot have \([^\[]*{named}[^\[]*\)"):
        export(checkpoint, tmp_path / "student.onnx")
    assert not list(tmp_path.iterdir())


def of_even_sides(level):
    """As necks that join levels of half the size: a side that is odd has no such level."""
    return level + F.interpolate(level[:, :, ::2, : level.shape[3] // 2], scale_factor=2)


def test_a_size_that_the_layers_themselves_do_not_take_is_refused(checkpoint, tmp_path, monkeypatch):
    plain = FPN.forward
    monkeypatch.setattr(FPN, "forward", lambda self, maps: plain(self, list(map(of_even_sides, maps))))
    message = r"PyTorch itself cannot compute an image of 96 x 64 \(The size .*\)\. .*give others with --input-size$"
    with pytest.raises(DeployError, match=message):
        export(checkpoint, tmp_path / "student.onnx", input_sizes=[(64, 96)])
    assert not list(tmp_path.iterdir())


def of_the_traced_size(level):
    """As Swin and PVT do in their attention: to a size that is a number by then."""
    return level.reshape(*map(int, level.shape))


ONE_SIZE = r"is of one size \(ONNX Runtime fails at Reshape /neck/\S*\): give --input-size H W \(once\)$"
ONE_SIZE_AND_BATCH = r"is of one size and number of images \(.*\): give --input-size H W \(once\) and --batch N$"


@pytest.mark.parametrize(
    ("sizes", "batch", "message"),
    [
        ((), 1, ONE_SIZE),
        (((64, 96), (96, 64)), 1, r"candidates agree.*\. At the size .* it does: give --input-size H W \(once\)$"),
        ((), None, ONE_SIZE_AND_BATCH),
        (((64, 96),), None, r"is of one number of images \(.*\): give --batch N$"),
        (((64, 96),), 2, None),
    ],
)
def test_layers_that_keep_the_size_of_the_trace_are_refused_with_the_form_that_they_can_have(
    checkpoint, tmp_path, monkeypatch, sizes, batch, message
):
    plain = FPN.forward
    monkeypatch.setattr(FPN, "forward", lambda self, maps: plain(self, list(map(of_the_traced_size, maps))))
    output = tmp_path / "student.onnx"
    with nullcontext() if message is None else pytest.raises(DeployError, match=message):
        export(checkpoint, output, input_sizes=sizes, form=GraphForm("uint8", batch=batch))
    assert output.exists() == (message is None)


def failing(*_, **__):
    raise ValueError("first line\nsecond line")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "onnxslim.slim",
            r"best\.pth: its graph is exported, but onnxslim \S+ and onnx \S+ make no valid file of it",
        ),
        ("onnx.checker.check_model", r"make no valid file of it \(first line\)\. Try other versions"),
        (
            "onnxruntime.InferenceSession",
            r"the exported graph cannot be run \(ONNX Runtime: first line\)\. No file was",
        ),
    ],
)
def test_a_step_of_the_export_that_fails_is_one_message(checkpoint, tmp_path, monkeypatch, place, message):
    monkeypatch.setattr(place, failing)
    with pytest.raises(DeployError, match=message):
        export(checkpoint, tmp_path / "student.onnx", input_sizes=[(64, 96)])
    assert not list(tmp_path.iterdir())


def test_a_neck_that_cannot_be_exported_is_named_and_the_standard_output_is_empty(tmp_path, capfd):
    config = student_config(("a", "b"))
    neck = config["model"]["neck"]
    kept = {name: neck[name] for name in ("in_channels", "out_channels", "num_outs", "start_level")}
    config["model"]["neck"] = {"type": "NASFPN", "stack_times": 1, "norm_cfg": {"type": "BN"}, **kept}
    checkpoint = write_checkpoint(tmp_path / "nas.pth", ("a", "b"), config)
    capfd.readouterr()
    with pytest.raises(DeployError, match=r"cannot have \(onnx::Cast in neck\.sum_34_4, of type SumCell\)\. Train it"):
        export(checkpoint, tmp_path / "nas.onnx")
    print("seen again", flush=True)
    ctypes.CDLL(None).fflush(None)  # what C++ has kept back would come now
    assert capfd.readouterr().out == "seen again\n"


@pytest.mark.parametrize("detector", [name for name in EXPORTABLE if name != "FasterRCNN"])
def test_a_head_without_loss_cls_is_mmdets_sigmoid(detector):
    model = student_config(("a", "b"), family=detector)["model"]
    model["bbox_head"].pop("loss_cls", None)
    for head in EXPORTABLE[detector]:
        model["bbox_head"]["type"] = head
        family_of({"model": model})
        assert build_head(dict(model["bbox_head"])).use_sigmoid_cls
