"""`cskd-train run` and `test` on every device: mixed precision, a stop within an epoch and `--resume`, evaluation.

On a processor runs are compared to the last bit. On a GPU kernels add in no fixed order, and small differences stay.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch
from mmcv.runner import HOOKS, Hook

from cskd_train.engine.build import build_split
from cskd_train.engine.evaluate import build_trained
from cskd_train.engine.records import read_log
from cskd_train.files import checkpoints
from cskd_train.files.config import config_from_data

WITHIN = {"cpu": 0.0, "cuda": 0.02}  # of a loss, and of how far the weights have moved


@HOOKS.register_module(force=True)
class SendTerm(Hook):
    """SIGTERM to this process as a step begins."""

    def __init__(self, step):
        self.step = step

    def before_train_iter(self, runner):
        if runner.iter + 1 == self.step:
            signal.raise_signal(signal.SIGTERM)


def records(work_dir):
    return [record for record in read_log(work_dir / "log.jsonl") if record["mode"] == "train"]


def losses(work_dir):
    return [record["loss"] for record in records(work_dir)]


def weights(work_dir):
    found = checkpoints.read(work_dir / "last.pth")
    both = {**found["state_dict"], **found["distiller"]}
    return torch.cat([value.double().flatten() for value in both.values() if value.is_floating_point()])


@pytest.mark.parametrize("amp", [None, "bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_a_run_stopped_within_an_epoch_ends_where_it_would_have_ended(
    train_tiny, distill_config, tmp_path, device, amp
):
    options = ["--device", device, *(() if amp is None else ("--amp", amp))]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, _, err = train_tiny(whole, *options, config=distill_config)
    assert code == 0, err
    hook = ["--set", "custom_hooks=[{'type': 'SendTerm', 'step': 4}]"]
    code, _, err = train_tiny(parts, *options, *hook, config=distill_config)
    assert code == 128 + signal.SIGTERM, err
    assert checkpoints.read(parts / "last.pth")["position"] == {"epoch": 1, "batches": 1, "inner": 1, "step": 4}
    stopped = weights(parts)
    code, _, err = train_tiny(parts, *options, "--resume", config=distill_config)
    assert code == 0, err

    assert len(losses(whole)) == 6
    assert all(math.isfinite(loss) for loss in losses(whole))
    assert losses(parts) == pytest.approx(losses(whole), rel=WITHIN[device], abs=0)
    moved = (weights(whole) - stopped).norm()
    assert moved > 0
    assert (weights(parts) - weights(whole)).norm() <= WITHIN[device] * moved
    scaler = checkpoints.read(parts / "last.pth")["scaler"]
    assert bool(scaler) == (amp == "fp16")
    result = json.loads((parts / "result.json").read_text())
    assert (result["iterations"], result["skipped_steps"]) == (
        6,
        checkpoints.read(whole / "last.pth")["run"]["skipped"],
    )


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_as_float32_does(train_tiny, distill_config, tmp_path, device, amp):
    for name, options in (("float32", ()), (amp, ("--amp", amp))):
        code, _, err = train_tiny(tmp_path / name, "--device", device, "--epochs", 1, *options, config=distill_config)
        assert code == 0, err
    exact, half = losses(tmp_path / "float32"), losses(tmp_path / amp)
    assert half[0] == pytest.approx(exact[0], rel=0.01)
    assert half[0] != exact[0]


def test_detections_are_those_that_mmdet_finds_on_the_processor(command_line, trained, tmp_path, device):
    found = checkpoints.load_checkpoint(trained / "best.pth")
    cfg = config_from_data(found.config)
    model, dataset = build_trained(cfg, found, "cpu"), build_split(cfg, "val")
    expected = {}
    for place, image in enumerate(dataset.img_ids):
        batch = dataset[place]
        with torch.no_grad():
            (by_class,) = model.simple_test(batch["img"][0][None], [batch["img_metas"][0].data], rescale=True)
        for category, rows in zip(dataset.cat_ids, by_class, strict=True):
            expected[image, category] = [(x1, y1, x2 - x1, y2 - y1, score) for x1, y1, x2, y2, score in rows.tolist()]

    code, _, err = command_line("test", trained / "best.pth", "--device", device, "--out", tmp_path / "found.json")

    assert code == 0, err
    detections = json.loads((tmp_path / "found.json").read_text())
    count = sum(map(len, expected.values()))
    assert count > 50
    assert len(detections) == pytest.approx(count, rel=0.01)
    same = [
        any(
            max(abs(a - b) for a, b in zip(one["bbox"], other[:4], strict=True)) < 0.05
            and abs(one["score"] - other[4]) < 1e-3
            for other in expected[one["image_id"], one["category_id"]]
        )
        for one in detections
    ]
    assert sum(same) >= 0.99 * count


@pytest.mark.slow
def test_a_launched_process_trains_as_one_that_is_not(train_tiny, distill_config, shapes_root, tmp_path, device):
    options = ["--device", device, "--epochs", "1", "--set", f"data_root={shapes_root}"]
    code, _, err = train_tiny(tmp_path / "alone", *options, config=distill_config)
    assert code == 0, err
    command = [
        sys.executable,
        "-m",
        "cskd_train",
        "run",
        distill_config,
        "--work-dir",
        tmp_path / "launched",
        "--gpus",
        1,
    ]
    done = subprocess.run(
        [*map(str, command), *options],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "launched") == pytest.approx(losses(tmp_path / "alone"), rel=WITHIN[device], abs=0)
    result = json.loads((tmp_path / "launched" / "result.json").read_text())
    assert result["processes"] == 1
    assert result["device"].startswith("CPU") == (device == "cpu")
