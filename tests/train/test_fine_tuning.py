"""Runs that start from another detector's weights: what is said and recorded, and what a fine-tuned config asks for."""

from __future__ import annotations

import hashlib
import io
import json
import shutil

import numpy as np
import pytest
import torch

from cskd_core.plan import TeacherPlan
from cskd_train.engine.records import read_log
from cskd_train.errors import TrainError
from cskd_train.files import model_zoo
from cskd_train.files.checkpoints import load_checkpoint
from cskd_train.files.config import load_config
from cskd_train.files.downloads import fetch, local_file
from cskd_train.mm import start
from cskd_train.mm.normalization import Normalization
from cskd_train.mm.start import started_student
from cskd_train.mm.teacher import build_teacher

from .file_server import serving
from .launching import command
from .runs import log, train

FEWER = ("--set", "model.bbox_head.num_classes=3", "--set", "optimizer.lr=0.0")
ZOO = "mmdet::retinanet/retinanet_r18_fpn_1x_coco.py"


@pytest.fixture
def fewer(tiny_config, tmp_path):
    """The tiny config for three classes, two of which `trained` knows."""
    path = tmp_path / "fewer.py"
    names = ["star", "hexagon", "ring"]
    path.write_text(f"_base_ = [{str(tiny_config)!r}]\nclasses = {names}\n")
    return path


@pytest.fixture
def renamed_root(shapes_root, tmp_path):
    """`shapes_root` without three of its classes, and with another name for one."""
    root = shutil.copytree(shapes_root, tmp_path / "renamed")
    names = {3: "hexagon"}  # a square
    for file in (root / "annotations").glob("*.json"):
        data = json.loads(file.read_text())
        found = {one["id"]: one for one in data["categories"]}
        kept = {key: names.get(key, one["name"]) for key, one in found.items() if one["name"] in ("star", "ring")}
        square = next(key for key, one in found.items() if one["name"] == "square")
        kept[square] = "hexagon"
        data["categories"] = [{"id": key, "name": name} for key, name in kept.items()]
        data["annotations"] = [one for one in data["annotations"] if one["category_id"] in kept]
        file.write_text(json.dumps(data))
    return root


@pytest.fixture
def tuned(command_line, fewer, renamed_root):
    """`cskd-train run` on the three classes: `tuned(work_dir, *options)` -> exit code, output and error."""

    def call(work_dir, *options, epochs=1):
        options = ("--epochs", epochs, *options)
        return command_line(
            "run", fewer, "--work-dir", work_dir, "--set", f"data_root={renamed_root}", *FEWER, *options
        )

    return call


def test_what_a_run_starts_from_is_said_recorded_and_kept_over_a_resume(tuned, trained, tmp_path):
    work_dir, init = tmp_path / "w", trained / "best.pth"
    code, _, err = tuned(work_dir, "--init", init)
    assert code == 0, err
    line = next(line for line in err.splitlines() if line.startswith("starts from"))
    taken, tensors = (int(word) for word in line.split(": ")[1].split(" tensors")[0].split(" of "))
    assert taken == tensors > 100
    assert line.endswith("rows of 2 of 3 classes kept by name (star, ring), fresh for hexagon")
    result = json.loads((work_dir / "result.json").read_text())
    assert result["start"]["source"] == str(init)
    assert (result["start"]["classes_kept"], result["start"]["classes_fresh"]) == (["star", "ring"], ["hexagon"])
    assert json.loads((work_dir / "config.json").read_text())["load_from"] == str(init)

    before = load_checkpoint(init).state_dict["bbox_head.retina_cls.weight"]
    after = load_checkpoint(work_dir / "last.pth").state_dict["bbox_head.retina_cls.weight"]
    for anchor in range(9):
        torch.testing.assert_close(after[3 * anchor], before[6 * anchor + 4])  # star
        torch.testing.assert_close(after[3 * anchor + 2], before[6 * anchor + 1])  # ring

    code, _, err = tuned(work_dir, "--init", tmp_path / "gone.pth", "--resume", epochs=2)
    assert code == 0, err
    assert f"--resume goes on from last.pth: load_from = {tmp_path / 'gone.pth'} is not read" in err
    assert "starts from" not in err
    assert json.loads((work_dir / "result.json").read_text())["start"] == result["start"]


def test_a_dry_run_says_it_too(tuned, trained, tmp_path):
    code, out, err = tuned(tmp_path / "w", "--init", trained / "best.pth", "--dry-run")
    assert code == 0, err
    plan = next(line for line in out.splitlines() if line.startswith("starts from"))
    assert plan.endswith("rows of 2 of 3 classes kept by name (star, ring), fresh for hexagon")
    assert str(trained / "best.pth") in plan
    assert not (tmp_path / "w").exists()


def test_a_file_that_does_not_fit_ends_the_run_before_its_first_step(tuned, trained, tmp_path):
    narrower = ("--set", "model.backbone.base_channels=8", "--set", "model.neck.in_channels=[8, 16, 32, 64]")
    code, _, err = tuned(tmp_path / "w", "--init", trained / "best.pth", *narrower)
    assert code == 2
    assert "nothing of the backbone of this RetinaNet fits (backbone.layer1.0: " in err
    assert "Traceback" not in err
    assert not (tmp_path / "w" / "last.pth").exists()


@pytest.mark.reliability
def test_two_processes_start_from_the_same_rows(trained, shapes_root, tiny_config, tmp_path):
    init = trained / "best.pth"
    data = ("--set", f"data_root={shapes_root}", "--batch-size", 2, "--workers", 0, "--device", "cpu", "--epochs", 1)
    options = ("--gpus", 2, "--set", "optimizer.lr=0.0", "--init", init)
    ended = command("run", tiny_config, "--work-dir", tmp_path / "w", *data, *options)
    assert ended.code == 0, ended.err
    assert "rows of 6 of 6 classes kept by name" in ended.err
    key = "bbox_head.retina_cls.weight"
    before, after = (load_checkpoint(file).state_dict[key] for file in (init, tmp_path / "w" / "last.pth"))
    torch.testing.assert_close(before, after)


def test_a_head_for_another_number_of_classes_than_the_datas_is_named(tuned, trained, tmp_path):
    code, _, err = tuned(tmp_path / "w", "--init", trained / "best.pth", "--set", "model.bbox_head.num_classes=4")
    assert code == 2
    assert "bbox_head has 4 classes, the data has 3 (star, hexagon, ring)" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("load_from", ["file", "mmdet::"])
def test_images_that_are_normalised_otherwise_are_a_warning_with_the_step_to_write(
    trained, tiny_config, tmp_path, monkeypatch, load_from
):
    source = trained / "best.pth"
    cfg = load_config(tiny_config, {"load_from": str(source)})
    notes = []
    started_student(cfg, ("star",), notes.append)
    assert notes == []
    for step in cfg.data.train.pipeline:
        if step["type"] == "Normalize":
            step["to_rgb"], step["std"] = not step.get("to_rgb", True), [1.0, 2.0, 3.0]
    if load_from == "mmdet::":
        cfg.load_from = "mmdet::retinanet/retinanet_r50_caffe_fpn_1x_coco.py"
        monkeypatch.setattr(start, "local_file", lambda *_: source)
    started_student(cfg, ("star",), notes.append)
    caffe = "dict(type='Normalize', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)"
    own = Normalization.of_config(load_checkpoint(source).config).as_step()
    expected = own if load_from == "file" else caffe
    assert notes == [
        f"warning: load_from was trained on other images than this run gives it: write {expected} in the pipelines"
    ]


# The same reader behind every door


@pytest.fixture
def wrapped(trained, tmp_path):
    """`trained`, as a parallel wrapper with a built-in teacher would have saved it, with a numpy number beside it."""
    weights = load_checkpoint(trained / "best.pth").state_dict
    inside = {f"module.student.{key}": value for key, value in weights.items()}
    beside = {f"module.teacher.{key}": torch.zeros_like(value) for key, value in weights.items()}
    meta = {"dataset_meta": {"classes": load_checkpoint(trained / "best.pth").classes}, "best": np.float64(0.3)}
    torch.save({"state_dict": {**beside, **inside}, "meta": meta}, path := tmp_path / "wrapped.pth")
    return path


def test_one_reader_serves_run_teacher_test_and_export(
    wrapped, trained, tiny_config, shapes_root, train_tiny, tmp_path
):
    from cskd_deploy.exporter.student import load_student

    expected = load_checkpoint(trained / "best.pth").state_dict
    teacher = build_teacher(TeacherPlan(checkpoint=str(wrapped), config=str(tiny_config)))
    exported = load_student(wrapped, tiny_config)
    for model in (teacher.model, exported.model):
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert teacher.classes == exported.classes == load_checkpoint(trained / "best.pth").classes
    left = f"{len(expected)} tensors beside student left out: teacher"
    assert teacher.notes == (f"the teacher's checkpoint: {left}",)
    code, _, err = train_tiny(tmp_path / "w", "--init", wrapped, "--epochs", 1, "--set", "optimizer.lr=0.0")
    assert code == 0, err
    assert f"1 part left out: {left}" in err
    key = "bbox_head.retina_cls.weight"
    torch.testing.assert_close(load_checkpoint(tmp_path / "w" / "last.pth").state_dict[key], expected[key])


def test_an_evaluation_says_what_it_leaves_out(wrapped, tiny_config, shapes_root, command_line):
    code, _, err = command_line("test", wrapped, "--config", tiny_config, "--set", f"data_root={shapes_root}")
    assert code == 0, err
    assert "tensors beside student left out: teacher" in err


# mmdet's zoo


def as_bytes(contents):
    torch.save(contents, buffer := io.BytesIO())
    return buffer.getvalue()


def test_a_config_of_mmdet_names_its_published_checkpoint():
    folder = "https://download.openmmlab.com/mmdetection/v2.0/"
    retina = "retinanet/retinanet_r18_fpn_1x_coco/retinanet_r18_fpn_1x_coco_20220407_171055-614fd399.pth"
    assert model_zoo.address_of(ZOO) == folder + retina
    gfl = "gfl/gfl_r50_fpn_1x_coco/gfl_r50_fpn_1x_coco_20200629_121244-25944287.pth"
    assert model_zoo.address_of("mmdet::gfl/gfl_r50_fpn_1x_coco.py") == folder + gfl


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mmdet::gfl/gfl_r18_fpn_1x_coco.py", "mmdet ships no such file"),
        ("mmdet::_base_/models/retinanet_r50_fpn.py", "publishes no checkpoint for this config"),
        (
            "mmdet::fcos/fcos_r50_caffe_fpn_gn-head_4x4_1x_coco.py",
            "publishes no checkpoint for this config; it does for mmdet::fcos/",
        ),
    ],
)
def test_a_config_without_a_checkpoint_is_named(name, said):
    with pytest.raises(TrainError) as error:
        local_file(name, "load_from")
    assert said in str(error.value)
    assert "name another file with --set load_from=FILE" in str(error.value)


def test_every_published_recipe_of_the_four_families_has_an_address():
    found = [
        f"mmdet::{folder}/{one}"
        for folder, one in (
            ("retinanet", "retinanet_r50_fpn_1x_coco.py"),
            ("fcos", "fcos_r50_caffe_fpn_gn-head_1x_coco.py"),
            ("gfl", "gfl_r101_fpn_mstrain_2x_coco.py"),
            ("faster_rcnn", "faster_rcnn_r50_fpn_1x_coco.py"),
        )
    ]
    assert all(model_zoo.address_of(name).startswith("https://download.openmmlab.com/") for name in found)


@pytest.fixture
def zoo_model(narrow_model, tmp_path, monkeypatch):
    """A student to be started from the zoo's name, served from here: `zoo_model(meta)` -> student, Start."""

    def build(meta, source=ZOO, classes=("person", "ace", "dog"), count=80):
        monkeypatch.setenv("CSKD_CACHE", str(tmp_path / "cache"))
        from mmcv import Config

        from cskd_train.mm.plain import build_without_pretrained

        old = build_without_pretrained(narrow_model("RetinaNet", classes=count))
        content = as_bytes({"state_dict": old.state_dict(), "meta": meta})
        name = f"retinanet-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        with serving(content) as server:
            monkeypatch.setattr(model_zoo, "_published", lambda _: f"{server.url}/{name}")
            shipped = model_zoo.shipped_configs()
            (tmp_path / "zoo" / "retinanet").mkdir(parents=True)
            text = (shipped / "retinanet" / "metafile.yml").read_text()
            text = text.replace("retinanet_r18_fpn_1x_coco_20220407_171055-614fd399.pth", name)
            (tmp_path / "zoo" / "retinanet" / "metafile.yml").write_text(text)
            monkeypatch.setattr(model_zoo, "shipped_configs", lambda: tmp_path / "zoo")
            if source != ZOO:
                source.write_bytes(content)
            model = narrow_model("RetinaNet", classes=len(classes))
            # Not to be fetched: the file has the whole backbone.
            model.backbone.init_cfg = {"type": "Pretrained", "checkpoint": "torchvision://resnet18"}
            student, start = started_student(Config({"model": model, "load_from": str(source)}), classes)
            return old, student, start

    return build


def test_cocos_classes_are_taken_for_a_zoo_model_that_names_none_and_it_is_said(zoo_model):
    old, student, start = zoo_model({})
    assert start.classes_kept == ["person", "dog"]
    assert "(the file names none; mmdet's zoo says COCO)" in str(start)
    student_rows, stored_rows = student.bbox_head.retina_cls.weight, old.bbox_head.retina_cls.weight
    assert torch.equal(student_rows[0::3], stored_rows[0::80])
    assert torch.equal(student_rows[2::3], stored_rows[16::80])
    assert torch.equal(student.backbone.conv1.weight, old.backbone.conv1.weight)


def test_a_name_in_the_file_goes_before_cocos(zoo_model):
    _, _, start = zoo_model({"CLASSES": [f"class {index}" for index in range(79)] + ["ace"]})
    assert start.classes_kept == ["ace"]


@pytest.mark.parametrize("count", [80, 79])
def test_80_rows_alone_are_not_cocos(zoo_model, tmp_path, count):
    source = ZOO if count == 79 else tmp_path / "mine.pth"
    _, _, start = zoo_model({}, source, count=count)
    assert start.classes_kept == []
    assert ("rows in the file, expected 9 x 80" if count == 79 else "the file names no classes") in start.rows


def test_a_file_that_only_bears_a_zoos_name_has_not_cocos_classes(tmp_path):
    name = model_zoo.address_of(ZOO).rpartition("/")[2]
    torch.save({"state_dict": {"backbone.conv1.weight": torch.ones(1)}}, tmp_path / name)
    assert model_zoo.is_of_coco(tmp_path / name)
    assert start.known_classes(load_checkpoint(tmp_path / name, require_config=False)) == ()


def test_a_teachers_checkpoint_may_be_a_name_of_the_zoo(monkeypatch, tmp_path):
    monkeypatch.setenv("CSKD_CACHE", str(tmp_path))
    name = model_zoo.address_of(ZOO).rpartition("/")[2]
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(TrainError, match=f"the teacher's checkpoint .*{name} is damaged or altered"):
        fetch(ZOO)


# What a fine-tuned config asks for


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("frozen", [2, -1])
def test_frozen_stages_stay_as_they_are_and_the_backbone_goes_at_its_own_rate(small_runs, tmp_path, distilled, frozen):
    settings = {
        "model.backbone.frozen_stages": frozen,
        "optimizer.paramwise_cfg": {"custom_keys": {"backbone": {"lr_mult": 0.1, "decay_mult": 0.5}}},
        "optimizer.lr": 0.002,
        "auto_scale_lr": {},
        "lr_config": {"policy": "step", "warmup": "linear", "warmup_iters": 4, "warmup_ratio": 0.25, "step": [1]},
    }
    folder = tmp_path / "w"
    begun = tmp_path / "begun"
    train(small_runs.options(begun, distilled=distilled, settings={**settings, "optimizer.lr": 0.0}))
    outcome, printed = train(small_runs.options(folder, distilled=distilled, settings=settings))
    assert outcome.iterations == 14, printed
    before, after = (load_checkpoint(work_dir / "last.pth").state_dict for work_dir in (begun, folder))
    still = {key for key in after if torch.equal(before[key], after[key])}
    frozen_parts = ("backbone.conv1.", "backbone.bn1.", "backbone.layer1.", "backbone.layer2.")
    parameters = [key for key in after if key.endswith(("weight", "bias"))]
    assert {key for key in parameters if key in still} == {
        key for key in parameters if frozen > 0 and key.startswith(frozen_parts)
    }
    if frozen > 0:
        assert all(key in still for key in after if key.startswith(frozen_parts))  # running statistics too
    # AdamW moves a weight by about the rate, whatever the gradient: the backbone's by a tenth of the head's.
    moved = {
        part: max(float((after[key] - before[key]).abs().max()) for key in parameters if key.startswith(part))
        for part in ("backbone.layer4.", "bbox_head.")
    }
    assert 5 < moved["bbox_head."] / moved["backbone.layer4."] < 20
    rates = [record["lr"] for record in log(folder) if record["mode"] == "train"]
    assert rates[-1] == pytest.approx(0.0002)  # optimizer.lr's own, not the backbone's
    assert rates[0] < 0.002
    assert [record for record in read_log(folder / "log.jsonl") if record["mode"] == "train"][-1]["iter"] == 14
