"""`cskd-train run` from the outside: what it trains, what it writes, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cskd_train.engine.data import build_split
from cskd_train.engine.loader import SeededDataset, ShapeGroupSampler, TrainLoader, image_names
from cskd_train.engine.progress import ProgressDisplay
from cskd_train.engine.records import read_log
from cskd_train.engine.signals import Interrupted, stop_on_signals
from cskd_train.files import checkpoints
from cskd_train.files.config import load_config

TERMS = ("loss_cls", "loss_bbox", "loss", "lr", "time", "data_time", "grad_norm")


def losses(work_dir):
    return [record["loss"] for record in read_log(work_dir / "log.jsonl") if record["mode"] == "train"]


@pytest.fixture
def distill_config(tiny_config, trained, tmp_path):
    """`tiny_config` under a teacher: the student of the `trained` run."""
    path = tmp_path / "tiny_distill.py"
    path.write_text(
        f"_base_ = [{str(tiny_config)!r}]\n"
        f"distill = dict(teacher=dict(checkpoint={str(trained / 'best.pth')!r}), pyramid=dict(full=(1, 0.5), "
        "roi=(1, 0.5), region=(1, 0.5)), tower=dict(cls=(1, 0.5), reg=(1, 0.5)), prediction=(1, 0.5), assistant=True)\n"
    )
    return path


# What a run trains


def test_the_same_seed_gives_the_same_losses_to_the_last_bit(trained, train_tiny, tmp_path):
    code, _, _ = train_tiny(tmp_path / "again")
    assert code == 0
    assert len(losses(trained)) == 6
    assert losses(tmp_path / "again") == losses(trained)


def test_workers_change_no_number(trained, train_tiny, tmp_path):
    options = ["--set", "data.workers_per_gpu=2", "--set", "runner.max_epochs=1"]
    assert train_tiny(tmp_path / "workers", *options)[0] == 0
    assert losses(tmp_path / "workers") == losses(trained)[:3]


def test_another_seed_gives_other_losses(trained, train_tiny, tmp_path):
    assert train_tiny(tmp_path / "seed", "--seed", 1, "--set", "runner.max_epochs=1")[0] == 0
    assert losses(tmp_path / "seed")[0] != losses(trained)[0]
    assert checkpoints.load_checkpoint(tmp_path / "seed" / "last.pth").meta["seed"] == 1


def test_the_loss_falls_and_the_learning_rate_follows_the_schedule(trained):
    records = [record for record in read_log(trained / "log.jsonl") if record["mode"] == "train"]
    assert records[-1]["loss"] < records[0]["loss"]
    assert [record["lr"] for record in records] == pytest.approx([1e-4, 5.5e-4, 1e-3, 1e-3, 1e-3, 1e-3])
    assert [(record["epoch"], record["iter"]) for record in records] == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6)]


def test_a_distilled_run_keeps_the_student_plain_and_logs_every_term(train_tiny, distill_config, trained, tmp_path):
    work_dir = tmp_path / "distilled"
    code, out, err = train_tiny(work_dir, "--set", "runner.max_epochs=1", config=distill_config)
    assert code == 0, err
    assert "distilled" in out
    plain, distilled = (checkpoints.read(folder / "last.pth") for folder in (trained, work_dir))
    assert list(distilled["state_dict"]) == list(plain["state_dict"])
    assert distilled["meta"]["distilled"] is True
    assert len(distilled["distiller"]) > 0
    # The distiller's parameters are trained along: the optimizer has a state for each.
    assert len(distilled["optimizer"]["state"]) > len(plain["optimizer"]["state"])
    assert "distiller" not in checkpoints.read(work_dir / "best.pth")
    record = read_log(work_dir / "log.jsonl")[0]
    assert {"loss_pyramid", "loss_tower_cls", "loss_prediction_cls", "loss_assistant_cls"} <= record.keys()
    # The student starts from the weights that it starts from alone.
    assert record["loss_cls"] == read_log(trained / "log.jsonl")[0]["loss_cls"]


def test_pretrained_weights_named_by_the_config_are_loaded(train_tiny, trained, tmp_path):
    code, _, err = train_tiny(
        tmp_path / "w", "--set", f"load_from={trained / 'last.pth'}", "--set", "runner.max_epochs=1"
    )
    assert code == 0, err
    assert losses(tmp_path / "w")[0] < 0.97 * losses(trained)[0]


# The order of the data


def test_order_and_augmentation_hang_on_seed_and_epoch_alone(tiny_config, shapes_root):
    dataset = build_split(load_config(tiny_config, {"data_root": str(shapes_root)}), "train")

    def epoch(loader, number):
        loader.set_epoch(number)
        batches = list(loader)
        return [name for batch in batches for name in image_names(batch)], torch.cat(
            [b["img"].data[0] for b in batches]
        )

    np.random.seed(1)
    first, second = TrainLoader(dataset, 4, 0, seed=5), TrainLoader(dataset, 4, 0, seed=5)
    names, images = epoch(first, 3)
    np.random.seed(2)
    epoch(second, 0)
    again, same_images = epoch(second, 3)
    assert again == names
    assert torch.equal(same_images, images)
    assert sorted(names) == sorted(set(names))
    assert epoch(first, 4)[0] != names
    assert epoch(TrainLoader(dataset, 4, 0, seed=6), 3)[0] != names


def test_the_augmentation_of_an_image_changes_from_epoch_to_epoch(tiny_config, shapes_root):
    dataset = SeededDataset(build_split(load_config(tiny_config, {"data_root": str(shapes_root)}), "train"), seed=0)
    flips = set()
    for dataset.epoch in range(8):
        flips.add(dataset[0]["img_metas"].data["flip"])
    assert flips == {True, False}


def test_a_batch_holds_one_aspect_ratio_group_and_every_image_comes():
    groups = np.array([0] * 7 + [1] * 5)
    sampler = ShapeGroupSampler(groups, batch_size=4, seed=0)
    order = list(sampler)
    assert len(order) == len(sampler) == 16
    assert set(order) == set(range(12))
    for batch in np.array(order).reshape(-1, 4):
        assert len(set(groups[batch])) == 1


# What a run writes


def test_the_log_holds_every_term_and_every_evaluation(trained):
    records = read_log(trained / "log.jsonl")
    assert [record["mode"] for record in records] == ["train"] * 3 + ["val"] + ["train"] * 3 + ["val"]
    assert all(isinstance(record[term], float) for record in records if record["mode"] == "train" for term in TERMS)
    assert records[-1]["bbox_mAP"] == checkpoints.load_checkpoint(trained / "last.pth").metrics["bbox_mAP"]


def test_tensorboard_draws_every_term_and_every_evaluation(trained):
    events = EventAccumulator(str(trained / "tf_logs"))
    events.Reload()
    assert {f"train/{term}" for term in TERMS} <= set(events.Tags()["scalars"])
    drawn = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert drawn == [(step + 1, pytest.approx(loss)) for step, loss in enumerate(losses(trained))]
    assert [event.step for event in events.Scalars("val/bbox_mAP")] == [3, 6]


def test_the_result_holds_what_was_measured(trained):
    result = json.loads((trained / "result.json").read_text())
    evaluations = [record for record in read_log(trained / "log.jsonl") if record["mode"] == "val"]
    assert result["last"]["bbox_mAP"] == evaluations[-1]["bbox_mAP"]
    assert result["best"]["bbox_mAP"] == max(record["bbox_mAP"] for record in evaluations)
    assert (result["epochs"], result["iterations"], result["seed"], result["distilled"]) == (2, 6, 0, False)
    assert result["images_per_second"] > 0
    assert 0 < result["data_share"] < 1
    assert result["versions"]["torch"] == torch.__version__
    stored = json.loads((trained / "config.json").read_text())
    assert stored["optimizer"] == {"type": "AdamW", "lr": 0.001, "weight_decay": 0.05}


def test_evaluation_follows_its_interval_and_the_last_epoch(train_tiny, tmp_path):
    assert train_tiny(tmp_path, "--set", "evaluation.interval=2", "--set", "runner.max_epochs=3")[0] == 0
    assert [r["epoch"] for r in read_log(tmp_path / "log.jsonl") if r["mode"] == "val"] == [2, 3]


def test_a_config_without_validation_split_trains(train_tiny, tmp_path):
    code, _, err = train_tiny(tmp_path, "--set", "data.val=None", "--set", "runner.max_epochs=1")
    assert code == 0, err
    assert (tmp_path / "last.pth").exists()
    assert not (tmp_path / "best.pth").exists()
    assert json.loads((tmp_path / "result.json").read_text())["best"] == {}


def test_progress_names_the_terms_the_map_and_the_time_left():
    console = Console(file=io.StringIO(), width=80)
    display = ProgressDisplay(console, epochs=2, iterations=40, done=0, best=None)
    runner = SimpleNamespace(epoch=0, inner_iter=0)
    display.before_train_epoch(runner)
    speed = {"time": 0.5, "data_time": 0.1, "lr": 0.01}
    for done in range(1, 41):
        display.train({"mode": "train", "epoch": 1, "iter": done, "loss_cls": 0.25, "loss": 0.75, **speed})
    display.after_train_epoch(runner)
    display.validation({"epoch": 1, "iter": 40, "bbox_mAP": 0.3, "bbox_mAP_50": 0.5, "bbox_mAP_75": 0.2})
    display.before_train_epoch(SimpleNamespace(epoch=1))
    display.train({"mode": "train", "epoch": 2, "iter": 44, "loss_cls": 0.25, "loss": 0.75, **speed})
    display.close()
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 10 + 1 + 1  # a line for each tenth of an epoch, one for the evaluation
    expected = "0:00:38 left  loss 0.7500  lr 1.00e-02  0.50 s/iter, data 20%  (loss_cls 0.25)"
    assert lines[0] == f"epoch 1/2  iter 4/40  {expected}"
    assert lines[10].startswith("epoch 1/2  val mAP 0.3000  AP50 0.5000  AP75 0.2000  best mAP 0.3000")
    assert "iter 4/40  0:00:18 left  loss 0.7500  best mAP 0.3000" in lines[11]


def test_degenerate_boxes_are_named_once_and_kept_out(train_tiny, shapes_root, tmp_path):
    annotations = json.loads((shapes_root / "annotations" / "train.json").read_text())
    annotations["annotations"][0] |= {"bbox": [5, 5, 0, 0], "area": 0}
    (ann_file := tmp_path / "train.json").write_text(json.dumps(annotations))
    code, _, err = train_tiny(
        tmp_path / "w", "--set", f"data.train.ann_file={ann_file}", "--set", "runner.max_epochs=1"
    )
    assert code == 0, err
    named = [line for line in err.splitlines() if f"annotation {annotations['annotations'][0]['id']} of" in line]
    assert len(named) == 1


def test_a_batch_without_any_box_trains(train_tiny, distill_config, shapes_root, tmp_path):
    annotations = json.loads((shapes_root / "annotations" / "train.json").read_text())
    bare = {image["id"] for image in annotations["images"][4:]}
    annotations["annotations"] = [one for one in annotations["annotations"] if one["image_id"] not in bare]
    (ann_file := tmp_path / "train.json").write_text(json.dumps(annotations))
    settings = [f"data.train.ann_file={ann_file}", "data.train.filter_empty_gt=False", "data.samples_per_gpu=2"]
    options = [option for setting in [*settings, "runner.max_epochs=1"] for option in ("--set", setting)]
    code, _, err = train_tiny(tmp_path / "w", *options, config=distill_config)
    assert code == 0, err
    assert any(
        record["loss_bbox"] == 0 for record in read_log(tmp_path / "w" / "log.jsonl") if record["mode"] == "train"
    )


# What a run refuses


def contents_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def used(trained, tmp_path):
    """A work dir that holds a finished run, free to be changed."""
    return shutil.copytree(trained, tmp_path / "used")


def test_a_folder_with_a_run_is_refused_and_untouched(train_tiny, used):
    before = contents_of(used)
    code, _, err = train_tiny(used)
    assert code == 2
    assert "already holds a finished run" in err
    assert "--resume" in err
    assert "--overwrite" in err
    assert contents_of(used) == before


def test_overwrite_replaces_the_run_and_nothing_else_once_the_input_is_right(train_tiny, used):
    (used / "notes.txt").write_text("mine")
    before = contents_of(used)
    code, _, _ = train_tiny(used, "--overwrite", "--set", "data.train.ann_file=annotations/nothing.json")
    assert code == 2
    assert contents_of(used) == before
    assert train_tiny(used, "--overwrite", "--set", "runner.max_epochs=1", "--seed", 1)[0] == 0
    assert len(losses(used)) == 3
    assert checkpoints.load_checkpoint(used / "last.pth").meta["seed"] == 1
    assert (used / "notes.txt").read_text() == "mine"


def test_resume_and_overwrite_together_are_refused(train_tiny, tmp_path):
    assert train_tiny(tmp_path, "--resume", "--overwrite")[0] == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.train.ann_file=annotations/nothing.json", "nothing.json"),
        ("data.val.img_prefix=nowhere/", "nowhere"),
        ("model.bbox_head.num_classes=80", "bbox_head has 80 classes, the data has 6 (circle, ring"),
        ("model.backbone.depth=19", "the config's model cannot be built"),
        ("optimizer.type=Adagard", "Adagard"),
        ("optimizer.learning_rate=1", "learning_rate"),
        ("lr_config.policy=stairs", "StairsLrUpdaterHook"),
        ("runner.type=IterBasedRunner", "only runner = dict(type='EpochBasedRunner'"),
        ("runner.max_epochs=0", "runner.max_epochs = 0: expected a whole number"),
        ("load_from=nothing.pth", "nothing.pth: no such file"),
        ("optimizer.lr.x=1", "not a group of settings"),
        ("optimiser.lr=1", "did you mean optimizer"),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_trained(train_tiny, tmp_path, setting, message):
    code, out, err = train_tiny(tmp_path / "w", "--set", setting)
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert contents_of(tmp_path) == {}


def test_a_missing_teacher_is_refused(train_tiny, distill_config, tmp_path):
    setting = f"distill.teacher.checkpoint={tmp_path / 'nobody.pth'}"
    code, _, err = train_tiny(tmp_path / "w", "--set", setting, config=distill_config)
    assert code == 2
    assert "nobody.pth" in err
    assert "Traceback" not in err


def test_an_unknown_key_in_distill_is_refused(train_tiny, distill_config, tmp_path):
    code, _, err = train_tiny(tmp_path / "w", "--set", "distill.piramid=1", config=distill_config)
    assert code == 2
    assert "piramid" in err


def test_a_work_dir_that_cannot_be_made_is_refused(train_tiny, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = train_tiny(tmp_path / "file" / "work")
    assert code == 2
    assert "cannot be written" in err
    assert "--work-dir" in err


def test_a_gpu_that_is_not_there_is_refused(train_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = train_tiny(tmp_path, "--device", "cuda")
    assert code == 2
    assert "torch sees no GPU" in err


def test_an_image_that_is_cut_short_ends_the_run_with_its_name(train_tiny, shapes_root, tmp_path):
    annotations = json.loads((shapes_root / "annotations" / "train.json").read_text())
    name = annotations["images"][3]["file_name"]
    (images := tmp_path / "images").mkdir()
    for image in annotations["images"]:
        (images / image["file_name"]).write_bytes((shapes_root / "images" / image["file_name"]).read_bytes())
    encoded = cv2.imencode(".jpg", np.zeros((128, 128, 3), np.uint8))[1].tobytes()
    (images / name).write_bytes(encoded[:200])
    code, _, err = train_tiny(tmp_path / "w", "--set", f"data.train.img_prefix={images}")
    assert code == 2
    assert name in err
    assert "Traceback" not in err


# What ends a run


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_epoch(train_tiny, used):
    before = (used / "last.pth").read_bytes()
    code, _, err = train_tiny(used, "--resume", "--set", "runner.max_epochs=4", "--set", "optimizer.lr=1e30")
    assert code == 2
    message = err[err.index("error: ") :]
    assert "the loss is not finite: loss_" in message
    assert "at epoch 3, iteration" in message
    assert ".jpg" in message
    assert "last.pth still holds epoch 2" in message
    assert "Lower the learning rate" in message
    assert (used / "last.pth").read_bytes() == before


def test_weights_that_are_not_finite_are_never_saved(train_tiny, tmp_path):
    # In the last iteration of an epoch no loss follows that could tell: here the epoch has but one.
    sgd = {"type": "SGD", "lr": 1e30, "weight_decay": 1e30}
    options = [f"optimizer={sgd}", "optimizer_config=None", "lr_config=None", "data.samples_per_gpu=12"]
    code, _, err = train_tiny(tmp_path, *[part for option in options for part in ("--set", option)])
    assert code == 2
    assert "is not finite after epoch 1. No epoch had been finished" in err
    assert not (tmp_path / "last.pth").exists()


def test_the_first_signal_waits_to_be_asked_for_and_a_second_ctrl_c_does_not():
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        stop.check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted, match="stopped by SIGINT") as stopped:
            stop.check()
        assert stopped.value.exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_ends_the_run_and_resume_goes_on(train_tiny, trained, shapes_root, tiny_config, tmp_path):
    work_dir = tmp_path / "w"
    options = ["--set", f"data_root={shapes_root}", "--set", "runner.max_epochs=500"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cskd_train.cli", "run", str(tiny_config), "--work-dir", str(work_dir), *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 200
    while not (work_dir / "last.pth").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "error: stopped by SIGTERM; epoch " in err
    assert f"Go on with: cskd-train run {tiny_config} --work-dir {work_dir} " in err
    assert "runner.max_epochs=500 --resume" in err
    assert "Traceback" not in err
    done = checkpoints.load_checkpoint(work_dir / "last.pth").meta["epoch"]
    assert train_tiny(work_dir, "--resume", "--set", f"runner.max_epochs={done + 1}")[0] == 0
    assert len(losses(work_dir)) == 3 * (done + 1)
    assert losses(work_dir)[:3] == losses(trained)[:3]
