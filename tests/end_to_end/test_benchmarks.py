"""The benchmarks run and say what they promise; how fast anything is, no test asks."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_step_benchmark_writes_a_line_a_family_whose_ratios_agree(tmp_path):
    out = tmp_path / "step.jsonl"
    command = [sys.executable, BENCHMARKS / "step.py", "--families", "RetinaNet", "--size", "64", "64", "--images", "1"]
    run = subprocess.run([*command, "--rounds", "1", "--json", out], capture_output=True, text=True, check=True)
    (line,) = out.read_text().splitlines()
    cost = json.loads(line)
    assert cost["family"] == "RetinaNet"
    assert cost["ratio"] == cost["distilled_s"] / cost["plain_s"]
    bound = (cost["plain_s"] + cost["teacher_s"] + cost["added_s"]) / cost["plain_s"]
    assert abs(cost["over_bound"] - cost["ratio"] / bound) < 1e-9
    assert 0 < cost["peak_mb"] < 100
    # Of student and teacher: five levels, eight tower maps a level and side, 720 + 36 channels of predictions.
    positions = sum(size * size for size in (8, 4, 2, 1, 1))
    assert cost["tapped_mb"] == 2 * 4 * positions * (256 * 9 + 756) / 1e6
    assert "over_bound" in run.stdout


def test_the_loss_benchmark_compares_equal_losses(tmp_path):
    out = tmp_path / "loss.jsonl"
    command = [sys.executable, BENCHMARKS / "loss.py", "--size", "64", "96", "--channels", "8", "--rounds", "1"]
    subprocess.run([*command, "--json", out], capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["way"] for row in rows] == ["equations", "cskd_core"]
    positions = sum(height * width for height, width in ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1)))
    for row in rows:
        assert row["bytes_per_s"] * row["seconds"] == pytest.approx(7 * 2 * 8 * positions * 4)
        assert row["speedup"] == pytest.approx(rows[0]["seconds"] / row["seconds"])
    loss = runpy.run_path(str(BENCHMARKS / "loss.py"))
    student, teacher = torch.randn(2, 8, 4, 6), torch.randn(2, 8, 4, 6)
    torch.testing.assert_close(loss["ours"](student, teacher), loss["equations"](student, teacher))
