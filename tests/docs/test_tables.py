"""The tables of docs/results say what the files beside them say: every figure is computed here from those."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def stored(name):
    text = (RESULTS / name).read_text()
    return [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else json.loads(text)


def table(page, titles):
    """The cells of each row of those tables of a page whose title line begins with `titles`."""
    rows = []
    for rest in (RESULTS / page).read_text().split(f"\n| {titles}")[1:]:
        lines = itertools.takewhile(lambda line: line.startswith("|"), rest.splitlines()[2:])
        rows += [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return rows


def points(metrics):
    return 100 * metrics["bbox_mAP"]


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
    return precision_of("precision_cards.json", ("retinanet", "faster_rcnn", "gfl", "fcos"))


def precision_without_vnni():
    return precision_of("precision_bccd.json", ("retinanet",))


def precision_of(file, families):
    rows = stored(file)["rows"]
    for family in families:
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


def ratio(value):
    return "" if value is None else f"{value:.2f}"


def latency_of_random_weights():
    """With VNNI, then without."""
    for row in [*stored("latency_random.jsonl"), *stored("latency_random_avx2.jsonl")]:
        yield [
            ("PyTorch" if row["backend"] == "pytorch" else PRECISIONS[row["precision"]])
            + (f", {row['proposals']} proposals" if row["proposals"] else ""),
            f"{row['size_bytes'] / 1e6:.1f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p90_ms']:.1f}",
            ratio(row["over_pytorch"]),
            ratio(row["over_fp32"]),
            f"{row['overhead']:.3f}",
        ]


def step():
    for row in stored("step.jsonl"):
        seconds = [f"{row[name]:.2f}" for name in ("plain_s", "teacher_s", "added_s", "distilled_s")]
        seconds[2] += f" ({row['forced_s']:.2f})"
        figures = (
            f"{row['ratio']:.2f} {row['bound']:.2f} {row['over_bound']:.3f} {row['peak_mb']:.0f} {row['tapped_mb']:.0f}"
        )
        yield [*seconds, *figures.split()]


def growth():
    for row in stored("scale.jsonl"):
        seconds = row["distilled_s"] - row["plain_s"] - row["teacher_s"]
        megapixels = row["images"] * row["height"] * row["width"] / 1e6
        yield [
            f"{row['images']} x {row['height']} x {row['width']}",
            str(row["boxes"]),
            f"{row['plain_s']:.2f}",
            f"{seconds:.2f}",
            f"{seconds / megapixels:.2f}",
        ]


def forms():
    for report in stored("forms.json")["reports"].values():
        for row in report["rows"]:
            yield [
                f"{row['backend']} {row['device']}",
                f"{row['size_bytes'] / 1e6:.1f}",
                f"{row['mean_average_precision']:.2f}",
                "-" if row["drop"] is None else f"{row['drop']:+.2f}",
                *(f"{row[name]:.1f}" for name in ("p50_ms", "p90_ms", "images_per_second")),
                "-" if row["agreement"] is None else f"{100 * row['agreement']:.1f} %",
            ]


def throughput():
    for bench in stored("forms.json")["streams"].values():
        for row in sorted(bench["results"], key=lambda one: (one["precision"] != "fp32", one["streams"])):
            total = row["milliseconds"]["total"]
            figures = (row["images_per_second"], total["p50"], total["p90"])
            yield [row["precision"], str(row["streams"]), *(f"{value:.1f}" for value in figures)]


def forms_of(file, *forms):
    """The rows of each student, one a form."""
    rows = stored(file)["rows"]
    for student in dict.fromkeys(row["student"] for row in rows):
        by_form = {row["form"]: row for row in rows if row["student"] == student}
        yield [by_form[form] for form in forms]


LAID_OUT = ("default", "float", "nms graph", "batch any", "batch any, nms graph", "batch 4")


def parity():
    for forms in forms_of("parity.json", *LAID_OUT):
        matched = [round(one["share_matched"] * one["detections"]) for one in forms]
        less = [
            f"{count} of {one['detections']} ({one['form']})"
            for count, one in zip(matched, forms, strict=True)
            if count < one["detections"]
        ]
        yield [
            f"{100 * forms[0]['reference_mAP']:.2f}",
            *(f"{one['drop_points']:+.4f}" for one in forms),
            "; ".join([f"{matched[0]} of {forms[0]['detections']}", *less]),
            f"{max(one['largest_score_difference'] for one in forms):.1e}",
            f"{max(one['largest_corner_difference'] for one in forms):.1e}",
        ]


def parity_of_fixed_sizes():
    for forms in forms_of("parity.json", "fixed", "pair", "square", "padded"):
        drops = [f"{100 * one['mAP']:.2f} ({one['drop_points']:+.2f})" for one in forms]
        yield [*drops, ", ".join(f"{100 * one['share_matched']:.0f} %" for one in forms)]


TABLES = [
    ("other_kinds.md", "val mAP, points, last epoch", other_kinds),
    ("geometry.md", "file | precision", geometry),
    ("precision.md", "student | precision | FP32", precision),
    ("precision.md", "student, AVX2 | precision", precision_without_vnni),
    ("precision.md", "student | precision | val: FP32", precision_of_0_1_0),
    ("latency.md", "student | file | MB | p50, ms", latency_of_random_weights),
    ("../performance.md", "family | plain, s", step),
    ("../performance.md", "varied | batch", growth),
    ("forms.md", "form          |", forms),
    ("forms.md", "student | form | streams", throughput),
    ("parity.md", "student | mAP, mmdet | drop: default", parity),
    ("parity.md", "student | fixed", parity_of_fixed_sizes),
]


@pytest.mark.parametrize(("page", "titles", "computed"), TABLES, ids=[one[2].__name__ for one in TABLES])
def test_a_table_has_the_figures_of_its_file(page, titles, computed):
    found, expected = table(page, titles), list(computed())
    assert len(expected) > 1
    assert [row[1:] for row in found] == expected
