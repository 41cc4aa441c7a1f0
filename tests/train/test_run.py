"""`cskd-train run` from the outside: what it trains, and what it writes."""

from __future__ import annotations

import io
import json
import shlex

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cskd_train.engine import progress
from cskd_train.engine.progress import ProgressDisplay
from cskd_train.engine.records import read_log
from cskd_train.files import checkpoints
from cskd_train.mm.families.retinanet import RetinaNetFamily

TERMS = ("loss_cls", "loss_bbox", "loss", "lr", "time", "data_time", "grad_norm")


def losses(work_dir):
    return [record["loss"] for record in read_log(work_dir / "log.jsonl") if record["mode"] == "train"]


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
    record = next(one for one in read_log(work_dir / "log.jsonl") if one["mode"] == "train")
    assert {"loss_pyramid_full", "loss_tower_cls", "loss_prediction_cls", "loss_assistant_cls"} <= record.keys()
    # The student starts from the weights that it starts from alone.
    assert record["loss_cls"] == read_log(trained / "log.jsonl")[0]["loss_cls"]


def test_pretrained_weights_named_by_the_config_are_loaded(train_tiny, trained, tmp_path):
    code, _, err = train_tiny(
        tmp_path / "w", "--set", f"load_from={trained / 'last.pth'}", "--set", "runner.max_epochs=1"
    )
    assert code == 0, err
    assert losses(tmp_path / "w")[0] < 0.97 * losses(trained)[0]


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
    steps = [record for record in read_log(trained / "log.jsonl") if record["mode"] == "train"]
    seconds, waited = (sum(record[name] for record in steps) for name in ("time", "data_time"))
    assert len(steps) == 6
    assert result["images_per_second"] == pytest.approx(6 * 4 / seconds)
    assert result["data_share"] == pytest.approx(waited / seconds)
    assert result["versions"]["torch"] == torch.__version__
    stored = json.loads((trained / "config.json").read_text())
    assert stored["optimizer"] == {"type": "AdamW", "lr": 0.001, "weight_decay": 0.05}


def test_evaluation_follows_its_interval_and_the_last_epoch(train_tiny, tmp_path):
    assert train_tiny(tmp_path, "--set", "evaluation.interval=2", "--set", "runner.max_epochs=3")[0] == 0
    assert [r["epoch"] for r in read_log(tmp_path / "log.jsonl") if r["mode"] == "val"] == [2, 3]


def test_the_line_after_a_run_exports_the_best_checkpoint(train_tiny, tmp_path):
    from cskd_deploy.cli import main

    work_dir = tmp_path / "my work"
    _, out, _ = train_tiny(work_dir, "--set", "runner.max_epochs=1")
    (line,) = (line for line in out.splitlines() if line.startswith("  export it: "))
    program, *arguments = shlex.split(line.removeprefix("  export it: "))
    assert (program, arguments[2]) == ("cskd-deploy", str(work_dir / "best.pth"))
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert not stopped.value.code
    assert (work_dir / "student.onnx").exists()


def test_a_config_without_validation_split_trains(train_tiny, tmp_path):
    code, out, err = train_tiny(tmp_path, "--set", "data.val=None", "--set", "runner.max_epochs=1")
    assert code == 0, err
    assert (tmp_path / "last.pth").exists()
    assert f"  export it: cskd-deploy export --checkpoint {tmp_path}/last.pth --output {tmp_path}/student.onnx\n" in out
    assert not (tmp_path / "best.pth").exists()
    assert json.loads((tmp_path / "result.json").read_text())["best"] == {}


def test_progress_names_the_terms_the_map_and_the_time_left(monkeypatch):
    monkeypatch.setattr(progress, "LINES_APART", 0)
    console = Console(file=io.StringIO(), width=80)
    display = ProgressDisplay(console, epochs=2, iterations=40, done=0, best=None)
    display.begin_epoch(0, 0, 40)
    speed = {"time": 0.5, "data_time": 0.1, "lr": 0.01}
    for done in range(1, 41):
        display.step()
        display.train({"mode": "train", "epoch": 1, "iter": done, "loss_cls": 0.25, "loss": 0.75, **speed})
    display.evaluating(1, 1)
    display.validation({"epoch": 1, "iter": 40, "bbox_mAP": 0.3, "bbox_mAP_50": 0.5, "bbox_mAP_75": 0.2})
    display.begin_epoch(1, 3, 40)
    display.step()
    display.train({"mode": "train", "epoch": 2, "iter": 44, "loss_cls": 0.25, "loss": 0.75, **speed})
    display.close()
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 10 + 1 + 1  # a line for each tenth of an epoch, one for the evaluation
    expected = "0:00:38 left  loss 0.7500  lr 1.00e-02  0.50 s/step, data 20%  (loss_cls 0.25)"
    assert lines[0] == f"epoch 1/2  step 4/40  {expected}"
    assert lines[10].startswith("epoch 1/2  val mAP 0.3000  AP50 0.5000  AP75 0.2000  best mAP 0.3000")
    assert "step 4/40  0:00:18 left  loss 0.7500  best mAP 0.3000" in lines[11]


def test_off_a_terminal_short_epochs_have_a_line_now_and_then(monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    console = Console(file=io.StringIO(), width=80)
    display = ProgressDisplay(console, epochs=5, iterations=10, done=0, best=None)
    for epoch in range(5):
        display.begin_epoch(epoch, 0, 10)
        for step in range(1, 11):
            now += 0.5
            display.step()
            record = {"mode": "train", "epoch": epoch + 1, "iter": 10 * epoch + step, "loss": 1.0, "lr": 0.01}
            display.train({**record, "time": 0.5, "data_time": 0.1})
    lines = console.file.getvalue().splitlines()
    assert [line.partition("  0:")[0] for line in lines] == [
        "epoch 1/5  step 1/10",
        "epoch 3/5  step 1/10",
        "epoch 5/5  step 1/10",
    ]


def test_a_student_that_cannot_be_exported_is_said_so_and_no_export_is_proposed(train_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(RetinaNetFamily, "exported", {})
    code, out, err = train_tiny(tmp_path, "--set", "runner.max_epochs=1")
    assert code == 0, err
    note = "a RetinaNet with a RetinaHead can be trained and distilled, but cskd-deploy cannot export it yet"
    assert err.count(note) == 1
    assert "export it" not in out
    assert json.loads((tmp_path / "result.json").read_text())["exportable"] is False


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
