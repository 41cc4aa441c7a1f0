"""What benchmarks write is tried before they measure, is whole at any moment, and says of each row where it is from."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS.parent / "docs" / "results"


@pytest.fixture
def call(monkeypatch):
    """Run the `main` of a module of benchmarks/ with words, some of its functions replaced."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def run(name, *words, **replaced):
        module = importlib.import_module(name)
        for key, value in replaced.items():
            monkeypatch.setattr(module, key, value)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        module.main()

    return run


def measured(*arguments, **options):
    raise AssertionError("nothing may be measured")


DATA = ("--ann", "a.json", "--images", "images")
CALIBRATED = (*DATA, "--calibration-ann", "a.json", "--calibration-images", "images")
# The words of each benchmark, and what it measures with.
BENCHES = {
    "step": ((), {"Bench": measured}),
    "scale": ((), {"Bench": measured}),
    "loss": (("--rounds", "1"), {"timed": measured}),
    "run": ((), {"measure": measured}),
    "regression": (("--baseline", "HEAD"), {"checked_out": measured}),
    "data_check": (("{}/sets",), {"generate": measured}),
    "geometry": (("best.pth", *CALIBRATED), {"compare": measured}),
    "parity": (("best.pth", *DATA), {"load_student": measured}),
    "precision": (("--checkpoint", "best.pth", *CALIBRATED), {"compare": measured}),
    "deploy": (("best.pth",), {"compare": measured}),
    "gpu_engines": ((), {"run": measured}),
}


@pytest.mark.parametrize("name", BENCHES)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(call, tmp_path, name, capsys):
    words, doubles = BENCHES[name]
    (tmp_path / "file").touch()
    words = [word.format(tmp_path) for word in words]
    with pytest.raises(SystemExit) as refused:
        call(name, *words, "--out" if name == "regression" else "--json", tmp_path / "file" / "a.json", **doubles)
    assert refused.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: cannot write {tmp_path / 'file' / 'a.json'}: ")


def test_a_folder_that_is_not_there_is_made(call, tmp_path):
    out = tmp_path / "new" / "more" / "a.jsonl"
    row = {"images_per_second": 4.0, "waiting": 0.1, "peak_mb": 8.0}
    with pytest.raises(SystemExit) as ended:
        call("run", "--families", "RetinaNet,FCOS", "--json", out, measure=lambda *_: row)
    assert ended.value.code == 0
    assert [json.loads(line)["family"] for line in out.read_text().splitlines()] == ["RetinaNet", "FCOS"]


def test_rows_are_there_when_a_later_one_fails(call, tmp_path):
    def measure(folder, family, *_):
        if family == "FCOS":
            raise MemoryError
        return {"images_per_second": 4.0, "waiting": 0.1, "peak_mb": 8.0}

    with pytest.raises(MemoryError):
        call("run", "--families", "RetinaNet,FCOS", "--json", tmp_path / "a.jsonl", measure=measure)
    assert [json.loads(line)["family"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == ["RetinaNet"]


def test_counting_pieces_leaves_the_file_of_seconds_alone(call, tmp_path, capsys):
    (file := tmp_path / "step.jsonl").write_text("kept\n")
    with pytest.raises(SystemExit) as refused:
        call("step", "--count", "--json", file, Bench=measured)
    assert (refused.value.code, file.read_text()) == (2, "kept\n")
    assert "--json takes seconds, which --count does not measure: leave one of them out" in capsys.readouterr().err


def precision_row(student, precision, value):
    return {
        "student": student, "precision": precision, "images": 2, "mAP_fp32": 40.0, "mAP": value, "drop_points": 0.0,
        "least_correlation": 1.0, "matched": 1.0, "size_bytes": 1,
    }  # fmt: skip


def parity_row(student, form, value):
    return {
        "student": student, "form": form, "mAP": value, "drop_points": 0.0, "detections": 1, "share_matched": 1.0,
        "largest_score_difference": 0.0, "largest_corner_difference": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words", "row", "doubles"),
    [
        ("precision", ("--checkpoint", "a/best.pth", *CALIBRATED), precision_row, {}),
        ("parity", ("a/best.pth", *DATA), parity_row, {"load_student": lambda _: argparse.Namespace(classes=())}),
    ],
    ids=["precision", "parity"],
)
def test_a_row_replaces_that_of_its_machine_and_leaves_the_origin_of_others(
    call, tmp_path, monkeypatch, name, words, row, doubles
):
    monkeypatch.syspath_prepend(BENCHMARKS)
    machine, file = importlib.import_module("machine"), tmp_path / "rows.json"
    of_another = {"processor": "P", "instructions": ["avx2", "avx512f"], "torch": "2.0", "commit": "old"}
    of_none = {"processor": None, "instructions": [], "commit": "older"}
    known = [
        {**row("a", "fp16", 1.0), **of_another},
        {**row("a", "fp16", 2.0), **of_none},
        {**row("a", "fp16", 3.0), **of_another, "instructions": ["avx2"]},
        {**row("b", "fp16", 4.0), **of_another, "instructions": ["avx2"]},
    ]
    file.write_text(json.dumps({"rows": known}))
    here = {"processor": "P", "instructions": ["avx2"], "torch": "2.1", "commit": "new"}
    monkeypatch.setattr(machine, "origin", lambda: here)
    if name == "parity":
        doubles = {**doubles, "load_dataset": lambda *_: (None, None)}
    rows = [row("a", "fp16", 5.0), row("a", "int8-cpu", 6.0)]
    for _ in range(2):
        call(name, *words, "--json", file, **doubles, compare=lambda *_: [dict(one) for one in rows])
    found = json.loads(file.read_text())["rows"]
    assert [(one["student"], one["mAP"], one["commit"]) for one in found] == [
        ("a", 1.0, "old"), ("a", 2.0, "older"), ("a", 5.0, "new"), ("b", 4.0, "old"), ("a", 6.0, "new")
    ]  # fmt: skip
    assert found[:2] == known[:2]
    assert found[2]["torch"] == "2.1"


@pytest.mark.parametrize("content", [[1], {"commit": "abc", "rows": []}, {"reports": {}}])
def test_rows_are_not_added_to_a_file_of_another_kind(call, tmp_path, content, capsys):
    (file := tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit) as refused:
        call("precision", "--checkpoint", "a.pth", *CALIBRATED, "--json", file, compare=measured)
    assert (refused.value.code, json.loads(file.read_text())) == (2, content)
    assert f'{file} is not of this benchmark, whose files are {{"rows": [...]}}' in capsys.readouterr().err


@pytest.mark.parametrize("name", ["precision_cards.json", "parity.json"])
def test_rows_of_the_repository_say_where_they_are_from(monkeypatch, name):
    monkeypatch.syspath_prepend(BENCHMARKS)
    rows = importlib.import_module("stored").rows_of(RESULTS / name)
    assert len(rows) > 10
    assert all({"processor", "instructions", "torch", "commit"} <= set(row) for row in rows)


def test_every_family_that_can_be_exported_has_a_name_in_the_table(monkeypatch):
    from cskd_deploy.exporter import mmdet_config

    monkeypatch.syspath_prepend(BENCHMARKS)
    deploy = importlib.import_module("deploy")
    families = {family for family, _ in mmdet_config._FAMILIES.values()}
    assert families <= set(deploy.FAMILIES)
    assert [deploy.FAMILIES[one] for one in ("atss", "autoassign", "gfl", "faster_rcnn")] == [
        "ATSS", "AutoAssign", "GFL", "Faster R-CNN"
    ]  # fmt: skip


def test_latencies_are_saved_before_they_are_printed(call, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    with pytest.raises(KeyError):  # a row that the table cannot show
        call("deploy", "best.pth", "--json", tmp_path / "a.jsonl", compare=lambda *_: [{"p50_ms": 3.0}])
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"p50_ms": 3.0}
