"""The tables of docs/results say what the files beside them say: every figure is computed here from those."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def stored(name):
    text = (RESULTS / name).read_text()
    return [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else json.loads(text)


def table(page, titles):
    """The cells of each row of the one table of a page whose title line begins with `titles`."""
    (rest,) = (RESULTS / page).read_text().split(f"\n| {titles}")[1:]
    lines = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def points(metrics):
    return 100 * metrics["bbox_mAP"]


def bccd():
    found, runs = stored("bccd.json"), stored("bccd.json")["runs"]
    for run in runs.values():
        val = [run["val"][f"bbox_mAP{which}"] for which in ("", "_50", "_75")]
        test = [run["test"][f"bbox_mAP{which}"] for which in ("", "_50")]
        yield [str(run["epochs"]), *(f"{value:.4f}" for value in (*val, *test))]
    file = found["exported_file"]["val"]
    yield ["", f"{file['bbox_mAP']:.4f}", f"{file['bbox_mAP_50']:.4f}", "", "", ""]


def bccd_by_epoch():
    for run in ("student_alone", "student_distilled"):
        yield [f"{value:.3f}" for _, value in stored("bccd.json")["runs"][run]["val_mAP_by_epoch"]]


def bccd_speed():
    for result in stored("bccd.json")["exported_file"]["bench"]["results"]:
        times = [result["milliseconds"]["total"][name] for name in ("p50", "p90", "p99")]
        megabytes = result["size_bytes"] / 1e6
        yield [f"{value:.1f}" for value in (*times, result["images_per_second"], megabytes)]


def shapes():
    alone, distilled = (
        [points(run["val"]) for run in stored("shapes.json")["runs"][f"student_{which}"]]
        for which in ("alone", "distilled")
    )
    gained = [after - before for before, after in zip(alone, distilled, strict=True)]
    for values, form in ((alone, ".1f"), (distilled, ".1f"), (gained, "+.1f")):
        yield [format(one, form) for one in (*values, statistics.mean(values))] + [f"{statistics.stdev(values):.1f}"]


def families():
    for row in stored("families.json"):
        teacher, alone, distilled = (points(run["val"]) for run in row["runs"].values())
        file = row["runs"]["student_distilled"]["onnx"]
        yield [
            *(f"{value:.1f}" for value in (teacher, alone, distilled)),
            f"{distilled - alone:+.1f}",
            f"{points(file['val']):.1f}",
            f"{file['drop_points']:+.2f}",
        ]


def other_kinds():
    for row in stored("other_kinds.json"):
        teacher, alone, distilled = (points(run["last"]) for run in row["runs"].values())
        yield [f"{teacher:.1f}", f"{alone:.1f}", f"{distilled:.1f}", f"{distilled - alone:+.1f}"]


PRECISIONS = {
    "fp32": "FP32",
    "fp16": "FP16",
    "int8-cpu": "INT8, `cpu`",
    "int8-tensorrt": "INT8, `tensorrt`",
}


def geometry():
    for row in stored("geometry.json")["rows"]:
        yield [
            PRECISIONS[row["precision"]],
            f"{row['mAP']:.2f}",
            f"{row['drop']:+.2f}",
            f"{row['padded_otherwise']} of {row['images']}",
            f"{row['p50_ms']:.1f}",
            f"{row['turned_p50_ms']:.1f}",
        ]


def precision():
    rows = stored("precision_cards.json")["rows"]
    for family in ("retinanet", "faster_rcnn", "gfl", "fcos"):
        for row in (one for one in rows if one["family"] == family):
            yield [
                PRECISIONS[row["precision"]],
                f"{row['mAP_fp32']:.2f}",
                f"{row['mAP']:.2f}",
                f"{row['drop_points']:+.2f}",
                f"{row['least_correlation']:.5f}",
                f"{100 * row['matched']:.1f} %",
                f"{row['fp32_size_bytes'] / 1e6:.1f} -> {row['size_bytes'] / 1e6:.1f}",
            ]


def precision_of_0_1_0():
    rows = [row for row in stored("precision.json") if row["precision"] != "fp32"]
    sizes = {row["family"]: row["size_bytes"] for row in stored("precision.json") if row["precision"] == "fp32"}
    for val, second in zip(rows[::2], rows[1::2], strict=True):
        assert [val[key] for key in ("student", "precision")] == [second[key] for key in ("student", "precision")]
        yield [
            "FP16" if val["precision"] == "fp16" else f"INT8, `{val['target']}`",
            *(
                cell
                for row in (val, second)
                for cell in (f"{row['mAP_fp32']:.2f}", f"{row['mAP']:.2f}", f"{row['drop_points']:+.2f}")
            ),
            f"{sizes[val['family']] / 1e6:.1f} -> {val['size_bytes'] / 1e6:.1f}",
        ]


def latency_of_random_weights():
    for row in stored("latency_random.jsonl"):
        yield [
            PRECISIONS[row["precision"]],
            f"{row['p50_ms']:.1f}",
            f"{row['pytorch_p50_ms']:.1f}",
            f"{row['total']:.2f}",
            f"{row['overhead']:.3f}",
        ]


def forms_of(file, *forms):
    """The rows of each student, one a form."""
    rows = stored(file)["rows"]
    for student in dict.fromkeys(row["student"] for row in rows):
        by_form = {row["form"]: row for row in rows if row["student"] == student}
        yield [by_form[form] for form in forms]


def parity():
    for forms in forms_of("parity.json", "default", "float", "nms graph"):
        counts = [f"{round(one['share_matched'] * one['detections'])} of {one['detections']}" for one in forms]
        yield [
            f"{100 * forms[0]['reference_mAP']:.2f}",
            *(f"{one['drop_points']:+.4f}" for one in forms),
            ", ".join(counts),
            f"{max(one['largest_score_difference'] for one in forms):.1e}",
            f"{max(one['largest_corner_difference'] for one in forms):.1e}",
        ]


def parity_of_fixed_sizes():
    for forms in forms_of("parity.json", "fixed", "pair", "square", "padded"):
        drops = [f"{100 * one['mAP']:.2f} ({one['drop_points']:+.2f})" for one in forms]
        yield [*drops, ", ".join(f"{100 * one['share_matched']:.0f} %" for one in forms)]


TABLES = [
    ("bccd.md", "detector | epochs", bccd),
    ("bccd.md", "epoch | 1 |", bccd_by_epoch),
    ("bccd.md", "| p50 ms", bccd_speed),
    ("shapes.md", "val mAP, points | seed 0", shapes),
    ("families.md", "val mAP, points | teacher", families),
    ("other_kinds.md", "val mAP, points, last epoch", other_kinds),
    ("geometry.md", "file | precision", geometry),
    ("precision.md", "student | precision | FP32", precision),
    ("precision.md", "student | precision | val: FP32", precision_of_0_1_0),
    ("latency.md", "family | file | p50, ms | PyTorch", latency_of_random_weights),
    ("parity.md", "student | mAP, mmdet | drop: default", parity),
    ("parity.md", "student | fixed", parity_of_fixed_sizes),
]


@pytest.mark.parametrize(("page", "titles", "computed"), TABLES, ids=[one[2].__name__ for one in TABLES])
def test_a_table_has_the_figures_of_its_file(page, titles, computed):
    found, expected = table(page, titles), list(computed())
    assert len(expected) > 1
    assert [row[1:] for row in found] == expected
