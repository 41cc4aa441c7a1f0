"""The benchmarks run and say what they promise; how fast anything is, no test asks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
