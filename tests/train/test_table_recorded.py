"""`cskd-train table` reads the measurements that are recorded as JSON files, and passes over what is none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
CommandLine = Callable[..., tuple[int, str, str]]


def _record(**roles: Any) -> dict[str, Any]:
    return {"data": "blobs (drawn), 3 classes", "seed": 4, "runs": roles}


def _run(**metrics: float) -> dict[str, Any]:
    return {"config": "configs/x.py", **{split: {"bbox_mAP": value} for split, value in metrics.items()}}


def _recorded(command_line: CommandLine, folder: Path) -> tuple[list[dict[str, Any]], str]:
    code, out, err = command_line("table", "--json", "--results", folder)
    assert code == 0
    return json.loads(out)["measured"]["recorded"]["rows"], err


def test_the_recorded_results_of_this_repository_are_read(command_line: CommandLine) -> None:
    rows, err = _recorded(command_line, REPOSITORY / "docs" / "results")
    by_name = {(row["data"], row["split"], row["recipe"]): row for row in rows}

    fcos = by_name["shapes", "val", "configs/demo/cskd_retina_r50_distill_fcos_r18_shapes.py"]
    retinanet = by_name["shapes", "val", "configs/demo/cskd_cascade_rcnn_r50_distill_retina_r18_shapes.py"]
    assert err == ""
    assert [fcos[role]["mean"] for role in ("teacher", "student_alone", "student_distilled")] == pytest.approx(
        [26.299, 24.693, 28.591], abs=0.001
    )
    assert (fcos["gain"]["n"], fcos["gain"]["mean"]) == (1, pytest.approx(3.898, abs=0.001))
    assert retinanet["gain"]["mean"] == pytest.approx(-4.029, abs=0.001)


def test_a_file_may_hold_a_list_of_records_and_lack_a_role_or_a_split(
    command_line: CommandLine, tmp_path: Path
) -> None:
    records = [
        _record(student_alone=[{**_run(val=0.1), "seed": 0}, {**_run(val=0.3), "seed": 1}]),
        _record(teacher=_run(val=0.5), student_distilled=_run(val=0.4, test=0.35)),
    ]
    (tmp_path / "families.json").write_text(json.dumps(records))

    (alone, val, test), err = _recorded(command_line, tmp_path)

    assert err == ""
    assert (alone["student_alone"]["mean"], alone["student_distilled"], alone["gain"]) == (
        pytest.approx(20.0),
        None,
        None,
    )
    assert (val["split"], val["teacher"]["values"], val["student_distilled"]["values"]) == ("val", [50.0], [40.0])
    assert (test["split"], test["teacher"], test["student_distilled"]["seeds"]) == ("test", None, [4])
    assert (test["data"], test["details"]) == ("blobs", "blobs (drawn), 3 classes")


BROKEN = {
    "not JSON": ("{", "not JSON"),
    "not text": (b"\xff\xfe\x00", "not JSON"),
    "a number": ("3", "expected an object, found int"),
    "role": (json.dumps(_record(pupil=_run(val=0.1))), "'pupil' is none of teacher"),
    "no student": (json.dumps(_record(teacher=_run(val=0.1))), "neither 'student_alone'"),
    "no metrics": (json.dumps(_record(student_alone=_run())), "no student has metrics"),
    "percent": (json.dumps(_record(student_alone=_run(val=31.7))), "expected bbox_mAP in [0, 1], found 31.7"),
    "no boxes": (json.dumps(_record(student_alone=_run(val=-1.0))), "found -1.0"),
    "not finite": (json.dumps(_record(student_alone=_run(val=math.nan))), "found nan"),
    "one seed twice": (json.dumps(_record(student_alone=[_run(val=0.1), _run(val=0.2)])), "two runs with seed 4"),
    "no seed": (json.dumps({**_record(student_alone=_run(val=0.1)), "seed": None}), "whole number under 'seed'"),
}


@pytest.mark.parametrize(("content", "problem"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_a_warning_and_the_rest_is_shown(
    command_line: CommandLine, tmp_path: Path, content: str | bytes, problem: str
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "whole.json").write_text(json.dumps(_record(student_alone=_run(val=0.2))))

    (row,), err = _recorded(command_line, tmp_path)

    assert row["student_alone"]["values"] == [20.0]
    assert err.startswith(f"warning: {broken}")
    assert problem in err
    assert err.count("\n") == 1


def test_results_of_another_kind_are_passed_over(command_line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "latency.json").write_text('[{"family": "gfl", "p50_ms": 8.5}]')
    (tmp_path / "whole.json").write_text(json.dumps(_record(student_alone=_run(val=0.2))))

    (row,), err = _recorded(command_line, tmp_path)

    assert row["student_alone"]["values"] == [20.0]
    assert err == ""
