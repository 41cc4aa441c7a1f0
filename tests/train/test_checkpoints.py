"""Checkpoints: what they hold, and every way in which a file is not one."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import resource

import pytest
import torch
from mmcv.runner import load_checkpoint as load_with_mmcv
from mmdet.models import build_detector

from cskd_data import DataError
from cskd_train.errors import TrainError
from cskd_train.files import checkpoints
from cskd_train.files.config import config_from_data, load_config
from tests.file_operations import report_operations


def refused(path, **options):
    with pytest.raises(TrainError) as error:
        checkpoints.load_checkpoint(path, **options)
    return str(error.value)


def test_a_missing_file_is_named(tmp_path):
    assert "nothing.pth: no such file" in refused(tmp_path / "nothing.pth")


def test_a_text_file_is_no_checkpoint(tmp_path):
    (path := tmp_path / "notes.pth").write_text("epoch 1: fine\n" * 100)
    assert "is not a PyTorch checkpoint" in refused(path)


def test_an_empty_file_is_no_checkpoint(tmp_path):
    (path := tmp_path / "empty.pth").touch()
    assert "is not a PyTorch checkpoint" in refused(path)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_truncated_checkpoint_is_said_to_be_cut_short(trained, tmp_path, share):
    whole = (trained / "best.pth").read_bytes()
    (path := tmp_path / "cut.pth").write_bytes(whole[: int(len(whole) * share)])
    assert "cut short" in refused(path)


class _Trap:
    """Unpickled without care, it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_asks_for_code_is_refused_and_not_run(tmp_path, zipped):
    trap = {"state_dict": {}, "meta": _Trap(tmp_path / "sprung")}
    path = tmp_path / "trap.pth"
    if zipped:
        torch.save(trap, path)
    else:
        path.write_bytes(pickle.dumps(trap, protocol=2))
    message = refused(path)
    assert "its pickle asks for code (posix.mkdir)" in message
    assert not (tmp_path / "sprung").exists()


def test_a_checkpoint_without_config_asks_for_one(tmp_path):
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "meta": {"epoch": 1}}, path := tmp_path / "mmdet.pth")
    assert "holds no config of cskd-train" in (message := refused(path))
    assert "--config" in message


@pytest.mark.parametrize("wrap", [lambda w: {"state_dict": w}, lambda w: w, lambda w: {f"module.{k}": w[k] for k in w}])
def test_plain_weights_are_read_where_no_config_is_needed(tmp_path, wrap):
    torch.save(wrap({"a.weight": torch.ones(2), "b.bias": torch.zeros(1)}), path := tmp_path / "plain.pth")
    found = checkpoints.load_checkpoint(path, require_config=False)
    assert list(found.state_dict) == ["a.weight", "b.bias"]
    assert (found.config, found.classes, found.metrics) == ({}, (), {})


@pytest.mark.parametrize(
    ("contents", "message"),
    [([1, 2], "holds list, expected a dict"), ({"lr": 0.1}, "holds no weights"), ({}, "holds no weights")],
)
def test_data_without_weights_is_refused(tmp_path, contents, message):
    torch.save(contents, path := tmp_path / "data.pth")
    assert message in refused(path, require_config=False)


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path, trained):
    contents = checkpoints.read(trained / "best.pth")
    contents["meta"]["version"] = 2
    checkpoints.save(path := tmp_path / "later.pth", contents)
    assert "format version 2, this program reads 1" in refused(path)


def test_weights_of_another_architecture_are_refused_with_keys_and_shapes(trained, tiny_config):
    other = load_config(tiny_config, {"model.bbox_head.stacked_convs": 3, "model.bbox_head.num_classes": 4})
    model = build_detector(other.model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(TrainError) as error:
        checkpoints.load_weights(model, checkpoints.load_checkpoint(trained / "best.pth"))
    message = str(error.value)
    assert "another architecture than this RetinaNet" in message
    assert "bbox_head.cls_convs.2.conv.weight is missing" in message
    assert "bbox_head.retina_cls.weight has shape (54, 32, 3, 3), the config's model (36, 32, 3, 3)" in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_more_than_five_faults_are_counted(trained):
    model = torch.nn.Linear(2, 2)
    with pytest.raises(TrainError, match=r"and \d+ more"):
        checkpoints.load_weights(model, checkpoints.load_checkpoint(trained / "best.pth"))


def test_the_best_checkpoint_holds_the_plain_student_and_plain_data(trained):
    contents = torch.load(trained / "best.pth", weights_only=True)
    assert sorted(contents) == ["meta", "state_dict"]
    found = checkpoints.load_checkpoint(trained / "best.pth")
    assert found.sha256 == hashlib.sha256((trained / "best.pth").read_bytes()).hexdigest()
    assert found.classes == ("circle", "ring", "square", "triangle", "star", "cross")
    assert found.meta["epoch"] in (1, 2)
    assert found.meta["seed"] == 0
    assert found.meta["distilled"] is False
    assert 0 <= found.metrics["bbox_mAP"] <= 1
    assert found.meta["versions"]["mmdet"] == "2.28.2"
    assert found.config["model"]["bbox_head"]["num_classes"] == 6


@pytest.mark.parametrize("name", ["best.pth", "last.pth"])
def test_stock_mmdet_loads_it_strictly(trained, name):
    config = config_from_data(checkpoints.load_checkpoint(trained / name).config)
    model = build_detector(config.model)
    loaded = load_with_mmcv(model, str(trained / name), map_location="cpu", strict=True)
    assert loaded["meta"]["CLASSES"][0] == "circle"
    stored = checkpoints.load_checkpoint(trained / name).state_dict
    assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "last.pth"
    checkpoints.save(path, {"state_dict": {"weight": torch.ones(2)}})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(DataError, match=r"cannot write .*the older last\.pth is untouched"):
            checkpoints.save(path, {"state_dict": {"weight": torch.ones(100_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.pth"]


def test_a_write_that_is_interrupted_leaves_no_litter(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(tmp_path / "last.pth", {})
    assert os.listdir(tmp_path) == []


def test_a_written_checkpoint_has_the_permissions_of_any_new_file(tmp_path):
    checkpoints.save(path := tmp_path / "last.pth", {})
    (plain := tmp_path / "plain").touch()
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("operation", ["write", "flush", "fsync file", "rename"])
def test_a_checkpoint_that_finds_the_disk_full_leaves_the_older_one_to_be_read(tmp_path, monkeypatch, operation):
    def fail(name, when):
        if (name, when) == (operation, "before"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoints.save(target := tmp_path / "last.pth", {"epoch": 1, "weights": torch.ones(1000)})
    report_operations(fail, monkeypatch.setattr)
    with pytest.raises(DataError, match=f"cannot write {target}: .*; the older last.pth is untouched"):
        checkpoints.save(target, {"epoch": 2, "weights": torch.zeros(1000)})
    assert os.listdir(target.parent) == ["last.pth"]
    assert checkpoints.read(target)["epoch"] == 1
