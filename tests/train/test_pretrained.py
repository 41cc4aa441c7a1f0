"""Pretrained weights that a config asks for: they come through our own reader, fit, and are reported; or a reason."""

from __future__ import annotations

import hashlib
import io
import os
from collections import OrderedDict
from pathlib import Path

import mmcv.runner
import mmcv.runner.checkpoint
import pytest
import torch
from mmcv import Config
from mmcv.cnn.utils.weight_init import INITIALIZERS, PretrainedInit
from mmdet import models
from mmdet.models import ResNet

from cskd_train.errors import TrainError
from cskd_train.files import model_zoo
from cskd_train.files.config import load_config
from cskd_train.mm.detector import build_student
from cskd_train.mm.plain import build_detector, build_without_pretrained

from .file_server import serving

ROOT = Path(__file__).parents[2]
ZOO = {path.stem: path for path in sorted((ROOT / "configs").glob("*/*.py")) if path.parent.name != "_base_"}
PRETRAINED = [name for name, path in ZOO.items() if load_config(path).model.backbone.get("init_cfg")]
STOCK_LOADERS = ("load_checkpoint", "_load_checkpoint", "_load_checkpoint_with_prefix")


@pytest.fixture(autouse=True)
def only_our_reader(monkeypatch, tmp_path):
    """mmcv's and torch's own ways to a checkpoint raise; torch.load reads data only."""

    def never(*_, **__):
        raise AssertionError("mmcv's loader was called")

    for name in STOCK_LOADERS:
        monkeypatch.setattr(mmcv.runner, name, never)
        monkeypatch.setattr(mmcv.runner.checkpoint, name, never)
    monkeypatch.setattr(mmcv.runner.checkpoint.CheckpointLoader, "load_checkpoint", never)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", never)
    load = torch.load

    def as_data(*arguments, **options):
        assert options.get("weights_only") is True
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", as_data)
    monkeypatch.setenv("CSKD_CACHE", str(tmp_path / "cache"))


def backbone_file(depth=18, base_channels=8, seed=5):
    """The weights of an ImageNet classifier as torchvision's old files have them: with an fc, without batch counts."""
    torch.manual_seed(seed)
    weights = {
        key: torch.randn(value.shape)
        for key, value in ResNet(depth, base_channels=base_channels).state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    return OrderedDict(weights, **{"fc.weight": torch.randn(10, 64), "fc.bias": torch.randn(10)})


def as_bytes(contents, **options):
    torch.save(contents, buffer := io.BytesIO(), **options)
    return buffer.getvalue()


def written(path, contents):
    path.write_bytes(as_bytes(contents))
    return path


@pytest.fixture
def cfg(narrow_model):
    return Config({"model": narrow_model("RetinaNet")})


def pretrained(cfg, checkpoint, **more):
    cfg.model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": str(checkpoint), **more}
    return cfg


def built(cfg):
    """The student and the notes on it."""
    notes = []
    return build_student(cfg, notes.append), notes


def refused(cfg):
    with pytest.raises(TrainError) as error:
        build_student(cfg)
    return str(error.value)


def check_backbone(student, weights):
    own = student.backbone.state_dict()
    keys = [key for key in own if not key.endswith("num_batches_tracked")]
    assert len(keys) > 90
    assert [key for key in keys if not torch.equal(own[key], weights[key])] == []


def test_a_name_is_downloaded_into_our_cache_and_loaded_into_the_backbone(cfg, tmp_path, monkeypatch):
    weights = backbone_file()
    content = as_bytes(weights)
    file = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    with serving(content) as server:
        monkeypatch.setitem(model_zoo._FILES, "torchvision://resnet18", f"{server.url}/{file}")
        for _ in range(2):
            student, notes = built(pretrained(cfg, "torchvision://resnet18"))
            check_backbone(student, weights)
            assert notes == [f"backbone: 100 tensors from {file}, 2 not used (fc.weight, fc.bias)"]
        assert server.asked == [f"/models/{file}"]
    assert os.listdir(tmp_path / "cache") == [file]


def test_all_random_weights_are_those_that_mmdet_draws_beside_a_pretrained_backbone(cfg, tmp_path, monkeypatch):
    file = written(tmp_path / "resnet.pth", backbone_file())
    torch.manual_seed(0)
    student, _ = built(pretrained(cfg, file))
    drawn = torch.get_rng_state()
    monkeypatch.undo()
    torch.manual_seed(0)
    stock = models.build_detector(cfg.model)
    stock.init_weights()
    assert torch.equal(drawn, torch.get_rng_state())
    assert [key for key, value in stock.state_dict().items() if not torch.equal(value, student.state_dict()[key])] == []


def test_mmcv_is_left_as_it_was_after_a_student_and_after_a_refusal(cfg, tmp_path):
    loader = mmcv.runner.checkpoint.CheckpointLoader.__dict__["load_checkpoint"]
    built(pretrained(cfg, written(tmp_path / "resnet.pth", backbone_file())))
    refused(pretrained(cfg, tmp_path / "none.pth"))
    assert INITIALIZERS.get("Pretrained") is PretrainedInit
    assert mmcv.runner.checkpoint.CheckpointLoader.__dict__["load_checkpoint"] is loader


@pytest.mark.parametrize("name", PRETRAINED)
def test_every_recipe_that_names_pretrained_weights_builds_with_them(name, tmp_path, monkeypatch):
    cfg = load_config(ZOO[name])
    backbone = cfg.model.backbone
    asked = backbone.init_cfg.checkpoint
    cfg.model.backbone.base_channels = 8
    cfg.model.neck.in_channels = [channels // 8 for channels in cfg.model.neck.in_channels]
    weights = backbone_file(backbone.depth)
    content = as_bytes({"state_dict": weights})
    file = tmp_path / "cache" / f"weights-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    file.parent.mkdir()
    file.write_bytes(content)
    monkeypatch.setitem(model_zoo._FILES, asked, f"http://127.0.0.1:1/{file.name}")
    student, notes = built(cfg)
    check_backbone(student, weights)
    assert notes == [f"backbone: {len(weights) - 2} tensors from {file.name}, 2 not used (fc.weight, fc.bias)"]


class Touch:
    """Code in a pickle: reading it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("key", ["checkpoint", "pretrained", "pretrained of the detector"])
def test_code_in_a_file_of_pretrained_weights_does_not_run(cfg, tmp_path, monkeypatch, zipped, key):
    weights = backbone_file()
    weights["harm"] = Touch(tmp_path / "ran")
    content = as_bytes(weights, _use_new_zipfile_serialization=zipped)
    with serving(content) as server:
        url = f"{server.url}/resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        if key == "checkpoint":
            pretrained(cfg, url)
        else:
            del cfg.model.backbone["init_cfg"]
            (cfg.model.backbone if key == "pretrained" else cfg.model).pretrained = url
        message = refused(cfg)
    assert "refused: its pickle asks for code (posix.mkdir), which loading would run" in message
    assert not (tmp_path / "ran").exists()
    monkeypatch.undo()
    torch.load(io.BytesIO(content), weights_only=False)
    assert (tmp_path / "ran").exists()  # the file is what it is said to be


def test_files_of_the_time_before_zip_archives_are_read(cfg, tmp_path):
    weights = backbone_file()
    file = tmp_path / "resnet18.pth"
    file.write_bytes(content := as_bytes(weights, _use_new_zipfile_serialization=False))
    assert content[:2] != b"PK"
    student, notes = built(pretrained(cfg, file))
    check_backbone(student, weights)
    assert notes == ["backbone: 100 tensors from resnet18.pth, 2 not used (fc.weight, fc.bias)"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"state_dict": weights},
        lambda weights: {"model": weights},
        lambda weights: {f"module.{key}": value for key, value in weights.items()},
        lambda weights: {"state_dict": {f"backbone.{key}": value for key, value in weights.items()}, "meta": {}},
        lambda weights: {f"module.backbone.{key}": value for key, value in weights.items()},
    ],
    ids=["state_dict", "model", "module.", "backbone.", "module.backbone."],
)
def test_the_weights_are_found_however_a_file_holds_them(cfg, tmp_path, wrap):
    weights = backbone_file()
    student, notes = built(pretrained(cfg, written(tmp_path / "any.pth", wrap(weights))))
    check_backbone(student, weights)
    assert notes == ["backbone: 100 tensors from any.pth, 2 not used (fc.weight, fc.bias)"]


@pytest.mark.parametrize("prefix", ["encoder.net", "encoder.net."])
def test_a_prefix_takes_that_part_of_a_file(cfg, tmp_path, prefix):
    weights = backbone_file()
    contents = {f"encoder.net.{key}": value for key, value in weights.items() if not key.startswith("fc.")}
    file = written(tmp_path / "any.pth", {**contents, "conv1.weight": torch.zeros(8, 3, 7, 7)})
    student, notes = built(pretrained(cfg, file, prefix=prefix))
    check_backbone(student, weights)
    assert notes == ["backbone: 100 tensors from any.pth"]
    message = refused(pretrained(cfg, file, prefix="decoder"))
    assert f"{file} holds none of the tensors of this ResNet under the prefix 'decoder'. It has encoder.net." in message


def test_neck_and_head_can_be_pretrained_each_from_a_whole_detector(cfg, tmp_path):
    torch.manual_seed(3)
    whole = build_detector(cfg.model).state_dict()
    file = written(tmp_path / "whole.pth", {"state_dict": whole})
    cfg.model.neck.init_cfg = {"type": "Pretrained", "checkpoint": str(file), "prefix": "neck."}
    cfg.model.bbox_head.init_cfg = {"type": "Pretrained", "checkpoint": str(file), "map_location": "cpu"}
    student, notes = built(cfg)
    own = student.state_dict()
    of_neck, of_head = ([key for key in own if key.startswith(part)] for part in ("neck.", "bbox_head."))
    assert [key for key in of_neck + of_head if not torch.equal(own[key], whole[key])] == []
    assert not torch.equal(own["backbone.conv1.weight"], whole["backbone.conv1.weight"])
    assert sorted(notes) == [
        f"bbox_head: {len(of_head)} tensors from whole.pth",
        f"neck: {len(of_neck)} tensors from whole.pth",
    ]


def test_what_a_file_lacks_is_named_and_left_as_initialised(cfg, tmp_path):
    weights = backbone_file()
    for key in [key for key in weights if key.startswith("layer4.1.")]:
        del weights[key]
    _, notes = built(pretrained(cfg, written(tmp_path / "part.pth", weights)))
    assert notes == [
        "backbone: 90 tensors from part.pth, 2 not used (fc.weight, fc.bias), 10 not in it and left as initialised "
        "(layer4.1.conv1.weight, layer4.1.bn1.weight, layer4.1.bn1.bias, layer4.1.bn1.running_mean, "
        "layer4.1.bn1.running_var, and 5 more)"
    ]


def test_a_file_of_another_architecture_is_refused_with_keys_of_both(cfg, tmp_path):
    other = written(tmp_path / "other.pth", {"features.0.weight": torch.zeros(3), "features.0.bias": torch.zeros(3)})
    message = refused(pretrained(cfg, other))
    assert f"the backbone's pretrained weights: {other} holds none of the tensors of this ResNet. " in message
    assert "It has features.0.weight, features.0.bias; expected conv1.weight, bn1.weight, " in message
    assert "Name another file with --set model.backbone.init_cfg.checkpoint=FILE" in message

    deeper = written(tmp_path / "deeper.pth", backbone_file(depth=50))
    message = refused(pretrained(cfg, deeper))
    assert (
        f"{deeper} is of another architecture than this ResNet: layer1.0.conv1.weight has shape (8, 8, 1, 1)" in message
    )
    assert "the config's model (8, 8, 3, 3); " in message


@pytest.mark.parametrize("where", ["init_cfg", "pretrained", "pretrained of the detector"])
def test_weights_that_cannot_be_had_name_the_keys_of_this_config(cfg, tmp_path, where):
    missing = tmp_path / "none.pth"
    if where == "init_cfg":
        pretrained(cfg, missing)
        key, scratch = "model.backbone.init_cfg.checkpoint", "model.backbone.init_cfg"
    else:
        del cfg.model.backbone["init_cfg"]
        (cfg.model.backbone if where == "pretrained" else cfg.model).pretrained = str(missing)
        key = scratch = "model.backbone.pretrained" if where == "pretrained" else "model.pretrained"
    message = refused(cfg)
    assert message.startswith(f"the backbone's pretrained weights {missing}: no such file (looked in ")
    assert f"name another file with --set {key}=FILE. Or train from scratch with --set {scratch}=None" in message


@pytest.mark.parametrize("content", ["cut off", "other content", "not found", "not a checkpoint"])
def test_a_download_that_fails_is_an_error_and_leaves_nothing(cfg, tmp_path, content):
    sent = as_bytes(backbone_file())
    with serving(sent) as server:
        name = f"resnet18-{hashlib.sha256(sent).hexdigest()[:8]}.pth"
        if content == "cut off":
            server.sends = sent[:1000]
            expected = f"the connection ended after 1000 of {len(sent)} bytes"
        elif content == "other content":
            server.sends = sent[::-1]
            expected = "its SHA-256 begins with"
        elif content == "not found":
            server.status = 404
            expected = "HTTP Error 404"
        else:
            server.sends = page = b"<html>please log in</html>"
            server.announces = len(page)
            name = f"resnet18-{hashlib.sha256(page).hexdigest()[:8]}.pth"
            expected = "is not a PyTorch checkpoint, or is damaged"
        message = refused(pretrained(cfg, f"{server.url}/{name}"))
    assert expected in message
    assert "Or train from scratch with --set model.backbone.init_cfg=None" in message
    assert os.listdir(tmp_path / "cache") == ([name] if content == "not a checkpoint" else [])


def test_a_backbone_that_opens_its_file_itself_is_refused_by_name(cfg, tmp_path, monkeypatch):
    monkeypatch.undo()  # mmcv's real loader, which has to be barred
    file = written(tmp_path / "resnet.pth", backbone_file(50))
    cfg.model.backbone.update(type="DetectoRS_ResNet", depth=50)
    cfg.model.neck.in_channels = [32, 64, 128, 256]
    message = refused(pretrained(cfg, file))
    assert f"a part of the config's model reads its weights {file} by itself (as Swin, PVT and DetectoRS" in message


def test_a_detector_with_a_built_in_teacher_is_refused_by_name_as_student_and_as_teacher(
    narrow_model, tmp_path, monkeypatch
):
    monkeypatch.undo()  # mmcv's real loader, which has to be barred
    model = narrow_model("GFL")
    model.update(
        type="KnowledgeDistillationSingleStageDetector",
        teacher_config={"model": narrow_model("GFL")},
        teacher_ckpt=str(tmp_path / "teacher.pth"),
    )
    model.bbox_head.type = "LDHead"
    model.bbox_head.loss_ld = {"type": "KnowledgeDistillationKLDivLoss", "loss_weight": 0.25, "T": 10}
    for build in (lambda: build_student(Config({"model": model})), lambda: build_without_pretrained(model)):
        with pytest.raises(TrainError, match=f"reads its weights {tmp_path / 'teacher.pth'} by itself"):
            build()


@pytest.mark.parametrize(
    "init_cfg", [{"type": "Pretrained"}, {"type": "Unheard"}, {"type": "Pretrained", "checkpoint": 1}]
)
def test_an_init_cfg_that_cannot_be_meant_is_an_error_of_one_line(cfg, init_cfg):
    cfg.model.backbone.init_cfg = init_cfg
    message = refused(cfg)
    assert "init_cfg" in message
    assert "\n" not in message
