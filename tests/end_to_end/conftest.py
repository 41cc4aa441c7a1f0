"""A study of gains whose commands are a double's."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from .studies import BENCHMARKS, PLAN, at_step, seconds_of


@pytest.fixture
def gain(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gain")


@pytest.fixture
def plan(tmp_path):
    file = tmp_path / "plan.toml"
    file.write_text(PLAN)
    return file


@pytest.fixture
def origin(gain):
    return importlib.import_module("gain_origin")


@pytest.fixture
def done(gain, origin, monkeypatch):
    """The commands that were run, by a double that writes what a run leaves behind; a method is as good as it says."""
    commands = []

    def execute(words):
        commands.append(words)
        if words[1] == "data":
            return ""
        if words[1] == "test":
            return json.dumps({"metrics": {"bbox_mAP": 0.25}, "errors": {"ap": 40.0, "dap": {"both": 2.5}}})
        folder = Path(words[words.index("--work-dir") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        metrics = {"bbox_mAP": 0.3}
        result = {"best": metrics, "last": metrics, "best_epoch": 2, "improving": True, "seconds": seconds_of(words)}
        result |= {"epochs": round(seconds_of(words) / 10), "iterations": 60}
        (folder / "result.json").write_text(json.dumps({**result, "device": "CPU (x86_64, 1 threads)"}))
        log = [
            {"mode": "teacher", "epoch": 0, "iter": 0, "bbox_mAP": 0.5},
            {"mode": "train", "epoch": 1, "iter": 10, "time": 1.5},
            {"mode": "train", "epoch": 1, "iter": 30, "time": 3.0},
            {"mode": "val", "epoch": 1, "iter": 30, "bbox_mAP": 0.1},
            {"mode": "train", "epoch": 2, "iter": 60, "time": 0.5},
            {"mode": "val", "epoch": 2, "iter": 60, "bbox_mAP": 0.3},
        ]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        (folder / "best.pth").touch()
        at_step(folder, 60)
        return ""

    monkeypatch.setattr(gain, "execute", execute)
    monkeypatch.setattr(origin, "processor_seconds", lambda: 480.0 * sum(words[1] == "run" for words in commands))
    return commands
