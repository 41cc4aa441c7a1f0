"""benchmarks/deploy.py: a row for PyTorch and each file, its ratios and mAP, and the table of a page."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path

import cv2
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CONFIGS = BENCHMARKS.parent / "configs"
RESULTS = BENCHMARKS.parent / "docs" / "results"
PAGE = """# Speed

<!-- benchmarks/deploy.py: begin -->
old
<!-- benchmarks/deploy.py: end -->

After.
"""


@pytest.fixture
def benchmark(monkeypatch):
    """Run benchmarks/deploy.py in this process with arguments."""

    def run(*arguments):
        monkeypatch.syspath_prepend(BENCHMARKS)
        monkeypatch.setattr(sys, "argv", ["deploy.py", *map(str, arguments)])
        before = cv2.getNumThreads()
        try:
            runpy.run_path(str(BENCHMARKS / "deploy.py"), run_name="__main__")
        finally:
            cv2.setNumThreads(before)

    return run


@pytest.fixture
def runs(exported, tmp_path):
    """A folder of two runs."""
    for family in ("RetinaNet", "FasterRCNN"):
        (tmp_path / "runs" / family).mkdir(parents=True)
        shutil.copy(exported(family).checkpoint, tmp_path / "runs" / family / "best.pth")
    return tmp_path / "runs"


QUICK = ("--duration", 0, "--iterations", 2, "--threads", 1)


def test_each_file_of_each_run_has_a_row_with_its_ratios_and_its_map(
    benchmark, runs, annotated, shapes_root, tmp_path, capsys
):
    out, page = tmp_path / "out.jsonl", tmp_path / "page.md"
    page.write_text(PAGE)
    images = shapes_root / "images"
    data = ("--ann", annotated("FasterRCNN"), "--images", images, "--calibration-images", images)
    benchmark(runs, *data, "--proposals", 7, *QUICK, "--json", out, "--write", page)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["student"], row["backend"], row["precision"], row["proposals"]) for row in rows] == [
        ("FasterRCNN", "pytorch", "fp32", 300),
        ("FasterRCNN", "onnxruntime", "fp32", 300),
        ("FasterRCNN", "onnxruntime", "int8-cpu", 300),
        ("FasterRCNN", "onnxruntime", "fp32", 7),
        ("FasterRCNN", "onnxruntime", "int8-cpu", 7),
        ("RetinaNet", "pytorch", "fp32", None),
        ("RetinaNet", "onnxruntime", "fp32", None),
        ("RetinaNet", "onnxruntime", "int8-cpu", None),
    ]
    pytorch, plain, lowered, few, few_lowered = rows[:5]
    assert plain["over_pytorch"] == pytest.approx(pytorch["inference_p50_ms"] / plain["inference_p50_ms"])
    assert lowered["over_fp32"] == pytest.approx(plain["inference_p50_ms"] / lowered["inference_p50_ms"])
    assert few_lowered["over_fp32"] == pytest.approx(few["inference_p50_ms"] / few_lowered["inference_p50_ms"])
    assert few["over_fp32"] is None
    assert (pytorch["over_pytorch"], pytorch["drop_points"]) == (1, 0)
    assert 0.2 < pytorch["mAP"] < 0.95
    assert abs(plain["drop_points"]) < 0.05
    assert few["drop_points"] == pytest.approx(100 * (pytorch["mAP"] - few["mAP"]))
    assert few["drop_points"] > 1
    assert lowered["size_bytes"] < plain["size_bytes"] / 2
    assert all(row["detections_an_image"] > 0 and row["images_timed"] >= 2 for row in rows)
    assert {row["images_scored"] for row in rows} == {6}

    printed = capsys.readouterr().out
    written = page.read_text()
    assert "old" not in written
    assert written.endswith("end -->\n\nAfter.\n")
    line = f"| Faster R-CNN | INT8, `cpu`, 7 proposals | {few_lowered['size_bytes'] / 1e6:.1f} | "
    assert line in printed
    assert line in written
    assert f"Faster R-CNN {few_lowered['over_fp32']:.2f}; RetinaNet {rows[-1]['over_fp32']:.2f}." in written

    assert "All figures: [out.jsonl](out.jsonl)." in written

    page.write_text(PAGE)
    benchmark("--json", out, "--write", page)  # nothing runs
    assert page.read_text() == written


def test_a_config_gets_random_weights_and_is_timed_without_data(benchmark, tmp_path):
    out = tmp_path / "out.jsonl"
    benchmark(CONFIGS / "demo" / "fcos_r18_shapes.py", "--input-size", 96, 160, *QUICK, "--json", out)
    pytorch, plain = (json.loads(line) for line in out.read_text().splitlines())
    assert (plain["family"], plain["student"], plain["random_weights"]) == ("fcos", "fcos_r18_shapes", True)
    assert (plain["input_size"], plain["mAP"], plain["over_fp32"]) == ([96, 160], None, None)
    assert pytorch["inference_p50_ms"] / plain["inference_p50_ms"] == pytest.approx(plain["over_pytorch"])


@pytest.mark.parametrize(("flags", "goal"), [("sse4_1 avx2", "2.0"), ("avx2 avx512_vnni", "3.5"), ("avx_vnni", "3.5")])
def test_the_goal_is_that_of_the_instructions_of_the_processor(benchmark, monkeypatch, tmp_path, flags, goal):
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = runpy.run_path(str(BENCHMARKS / "deploy.py"))
    row = {"family": "gfl", "backend": "onnxruntime", "precision": "int8-cpu", "proposals": None, "size_bytes": 1e6}
    row |= {"p50_ms": 3.0, "p90_ms": 4.0, "over_pytorch": 3.25, "over_fp32": 2.5, "overhead": 0.1, "mAP": 0.5}
    row |= {"detections_an_image": 2.0, "drop_points": -0.25, "scale": [320, 240], "input_size": None, "seed": 0}
    row |= {"images": "None", "images_scored": None, "load_before": None, "commit": "abc"}
    facts = {"processor": "P", "threads": 2, "versions": {"numpy": "1"}}
    text = module["section"]([{**row, "instructions": flags.split(), "environment": facts}])
    assert "| GFL | INT8, `cpu` | 1.0 | 3.0 | 4.0 | 3.25 | 2.50 | 0.100 | 2.0 | 50.00 | -0.25 |" in text
    assert f"is {goal} here; last file of each: GFL 2.50." in text


def test_the_page_of_the_repository_is_made_from_its_lines(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    module, page = runpy.run_path(str(BENCHMARKS / "deploy.py")), RESULTS / "latency.md"
    rows = [json.loads(line) for line in page.with_suffix(".jsonl").read_text().splitlines()]
    text = page.read_text()
    assert module["with_table"](text, module["section"](rows, page.with_suffix(".jsonl"))) == text


def test_what_cannot_be_run_is_refused_before_it_runs(benchmark, tmp_path):
    (tmp_path / "page.md").write_text("no marks")
    with pytest.raises(SystemExit, match=r"holds no best\.pth"):
        benchmark(tmp_path)
    with pytest.raises(SystemExit, match="has no lines <!--"):
        benchmark(tmp_path, "--write", tmp_path / "page.md")
    with pytest.raises(SystemExit):
        benchmark()
