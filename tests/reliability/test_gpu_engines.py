"""The benchmark of engines, tried on a processor with ONNX files in their place, and the page that it goes into."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.reliability

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "demo" / "retinanet_r18_shapes.py"
COLUMNS = {"precision", "build_s", "megabytes", "p50_ms", "enqueue_ms", "matched", "slowest"}


def page_of(figures: list[dict]) -> str:
    part = {"command": "python x", "seconds": 1.0, "status": "done", "figures": figures}
    page: str = "\n".join(runpy.run_path(str(ROOT / "benchmarks" / "gpu_page.py"))["_part"](part))
    return page


def test_engines_are_timed_by_precision_with_onnx_files_in_their_place(tmp_path):
    out = tmp_path / "engines.jsonl"
    command = [sys.executable, ROOT / "benchmarks" / "gpu_engines.py", "--device", "cpu", "--config", CONFIG]
    command += ["--size", "64", "64", "--duration", "0.2", "--json", out]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["precision"] for row in rows] == ["fp32", "fp16", "int8-tensorrt", "int8+fp16"]
    for row in rows:
        assert set(row) == COLUMNS
        assert row["p50_ms"] > 0
        assert (row["build_s"], row["enqueue_ms"]) == ("-", "-")  # of engines alone
        assert row["slowest"].count(";") == 2
    assert rows[0]["megabytes"] > 1.8 * rows[1]["megabytes"] > 3 * rows[3]["megabytes"]
    page = page_of(rows)
    assert "| precision | build_s |" in page
    assert f"| int8+fp16 | - | {rows[3]['megabytes']:.4g} |" in page


def test_without_tensorrt_the_page_says_so():
    assert "Not run: there is no NVIDIA driver" in page_of([{"not_run": "there is no NVIDIA driver"}])
