"""The tables and plots of the study of gains, from its records."""

from __future__ import annotations

import importlib
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from click.testing import CliRunner

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DEVICE = "CPU (x86_64, 1 threads)"  # as a run's result.json has it


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gain_table")


def record(method, seed, value, epochs=8, processor="one", **more):
    metrics = {"bbox_mAP": value / 100}
    curve = [{"epoch": epoch, "minutes": epoch * 2.0 + seed, "mAP": value / 100 * epoch / 2} for epoch in (1, 2)]
    return {
        "study": "lasting", "data": "shapes", "detector": "RetinaNet R18", "method": method, "epochs": epochs,
        "seed": seed, "val": metrics, "test": {"bbox_mAP": value / 100 - 0.01}, "split": "test", "curve": curve,
        "improving": None, "seconds": 500.0, "processor_minutes": 2.0, "device": DEVICE, "commit": "abc", "threads": 1,
        "processor": processor, "instructions": ["avx2"], "errors": {"ap": value, "dap": {"both": 10 - value / 4}},
        **more,
    }  # fmt: skip


def rows_of(table, records):
    return [row for part in table.parts_of(records) for row in table.rows_of(part)]


def test_gains_are_taken_seed_by_seed_with_the_interval_of_their_mean(table):
    records = [record("alone", seed, value) for seed, value in enumerate((10, 14, 12))]
    records += [record("cskd", seed, value) for seed, value in enumerate((13, 15, 17))]
    alone, cskd = rows_of(table, records)
    assert alone.gain is None
    assert cskd.gain.values == pytest.approx((3, 1, 5))
    assert (cskd.gain.mean, cskd.gain.deviation) == pytest.approx((3, 2))
    assert cskd.gain.half_width == pytest.approx(4.302653 * 2 / 3**0.5)  # t of 2 degrees of freedom, 97.5 %
    text = table.tables(records)
    assert "| 8 | alone | 3 | 12.0 ± 2.0 | 11.0 ± 2.0 |  |  | 2.0 |" in text
    assert "| 8 | cskd | 3 | 15.0 ± 2.0 | 14.0 ± 2.0 | +3.0 | -2.0 to +8.0 | 2.0 |" in text


def test_a_student_alone_of_other_epochs_is_compared_where_it_has_them_by_itself(table):
    alone = [record("alone", seed, value, epochs=12) for seed, value in enumerate((10, 14))]
    cskd = [record("cskd", seed, value) for seed, value in enumerate((13, 15))]
    rows = {(one.method, one.epochs): one for one in rows_of(table, alone + cskd)}
    assert rows["cskd", 8].gain.values == pytest.approx((3, 1))
    both = [record("alone", seed, 9) for seed in (0, 1)]
    rows = {(one.method, one.epochs): one for one in rows_of(table, both + alone + cskd)}
    assert rows["cskd", 8].gain.values == pytest.approx((4, 6))
    longer = [record("cskd", seed, 20, epochs=12) for seed in (0, 1)]
    rows = {(one.method, one.epochs): one for one in rows_of(table, alone + cskd + longer)}
    assert rows["cskd", 8].gain is None


def test_the_page_of_the_repository_is_made_from_its_records(table):
    results = BENCHMARKS.parent / "docs" / "results"
    page, records = (results / "gain.md").read_text(), table.read(results / "gain.jsonl")
    assert table.section(records) in page
    assert all((results / f"gain_{one['study']}.svg").is_file() for one in records)


def test_what_errors_cost_is_a_mean_over_the_seeds_by_epochs(table):
    records = [record("teacher", 0, 40), record("alone", 0, 8), record("alone", 0, 12, epochs=24)]
    records += [record("alone", 1, 20, epochs=24), record("cskd", 0, 24, epochs=24)]
    assert table.errors_of(*table.parts_of(records))[2:] == [
        f"| teacher, {records[0]['epochs']} epochs | 40.0 | 0.0 |",
        f"| alone, {records[1]['epochs']} epochs | 8.0 | 8.0 |",
        "| alone, 24 epochs | 16.0 | 6.0 |",
        "| cskd, 24 epochs | 24.0 | 4.0 |",
    ]
    assert "\none (avx2), CPU (x86_64, 1 threads), commit abc.\n" in table.tables(records)


def test_what_was_found_best_and_what_another_study_ran_stands_under_the_table(table):
    records = [record("alone", seed, 8, run_of="first/alone") for seed in (0, 1)]
    assert "\n\nRun once for two studies: alone is first/alone.\n\n" in table.tables(records)
    records = [record("alone", 0, 8), record("mse", 0, 12, chosen="weights/mse_10"), record("alone", 1, 8)]
    assert "Run once" not in table.tables(records)
    assert "\n\nFound best on val before: mse is weights/mse_10.\n\n" in table.tables(records)
    assert "Found best" not in table.tables(records[::2])


def test_minutes_are_those_of_the_clock_on_a_gpu(table):
    (row,) = rows_of(table, [record("alone", 0, 8, device="H200")])
    assert row.minutes == pytest.approx(500 / 60)


def test_a_seed_alone_has_no_spread_and_one_without_its_pair_no_gain(table):
    rows = list(rows_of(table, [record("alone", 0, 10), record("cskd", 0, 12), record("cskd", 1, 30)]))
    assert (rows[0].val.deviation, rows[0].val.half_width, str(rows[0].val)) == (None, None, "10.0")
    assert rows[1].gain.values == pytest.approx((2,))
    (row,) = rows_of(table, [record("cskd", 0, 12)])
    assert row.gain is None


GPUS = [{"device": "NVIDIA A100"}, {"device": "NVIDIA H200"}]


@pytest.mark.parametrize(
    "machines", [[{}, {"processor": "other"}], [{}, {"instructions": ["avx2", "avx512f"]}], [{}, GPUS[0]], GPUS]
)
def test_runs_of_two_machines_are_neither_compared_nor_averaged(table, machines):
    first, second = machines
    records = [record("teacher", 0, 40, **first), record("alone", 0, 10, **first), record("cskd", 0, 12, **second)]
    assert [(row.method, row.gain) for row in rows_of(table, records)] == [("alone", None), ("cskd", None)]
    records += [record("alone", 0, 20, **second), record("alone", 1, 30, **second)]
    one, other = table.parts_of(records)
    assert [(row.method, row.val.values) for row in table.rows_of(one)] == [("alone", (10,))]
    assert [(row.method, row.val.values) for row in table.rows_of(other)] == [("cskd", (12,)), ("alone", (20, 30))]
    assert [line.split(" |")[:2] for line in table.errors_of(other)[2:]] == [
        ["| cskd, 8 epochs", " 12.0"],
        ["| alone, 8 epochs", " 25.0"],
    ]
    assert {name: points[-1][1].values for name, points in table.bands(other, "epoch").items()} == {
        ("cskd", 8): pytest.approx((12,)),
        ("alone", 8): pytest.approx((20, 30)),
    }
    text = table.section(records)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "## lasting: shapes, RetinaNet R18",
        f"### lasting on {one.machine}",
        f"### lasting on {other.machine}",
    ]
    assert one.machine != other.machine
    assert f"![lasting on {one.machine}: mAP by epochs and by minutes](gain_lasting.svg)" in text
    assert f"![lasting on {other.machine}: mAP by epochs and by minutes](gain_lasting_2.svg)" in text
    assert "###" not in table.section(records[:2])


def test_a_run_that_was_recorded_twice_counts_once(table):
    (part,) = table.parts_of([record("alone", 0, 10), record("alone", 1, 20), record("alone", 0, 14)])
    (row,) = table.rows_of(part)
    assert row.val.values == pytest.approx((14, 20))
    assert table.errors_of(part)[2:] == ["| alone, 8 epochs | 17.0 | 5.8 |"]


def test_curves_of_seeds_meet_epoch_by_epoch(table):
    records = [record("alone", 0, 10), record("alone", 1, 14), record("teacher", 0, 50)]
    found = table.bands(*table.parts_of(records), "minutes")
    assert list(found) == [("alone", 8)]
    (first, spread), (second, _) = found["alone", 8]
    assert (first, second) == (2.5, 4.5)
    assert spread.values == pytest.approx((5, 7))


def test_an_epoch_that_a_seed_was_not_evaluated_after_has_the_others(table):
    curve = [{"epoch": epoch, "minutes": 3.0 * epoch, "mAP": 0.01 * epoch} for epoch in (2, 3)]
    records = [record("alone", 0, 10), record("alone", 1, 14, curve=curve)]
    found = table.bands(*table.parts_of(records), "epoch")["alone", 8]
    assert [epoch for epoch, _ in found] == [1, 2, 3]
    assert [spread.values for _, spread in found] == [(5,), pytest.approx((10, 2)), (3,)]


def test_tables_and_plots_stand_between_the_marks_of_a_page(table, tmp_path):
    page, lines = tmp_path / "gain.md", tmp_path / "gain.jsonl"
    records = [record("teacher", 0, 40, improving=True), record("alone", 0, 10), record("cskd", 0, 12)]
    lines.write_text("".join(json.dumps(one) + "\n" for one in records))
    page.write_text(f"# Title\n\n{table.BEGIN}\nold\n{table.END}\n\nafter\n")
    for _ in range(2):
        result = CliRunner().invoke(table.main, [str(lines), "--write", str(page)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    text = page.read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("\n\nafter\n")
    assert "old" not in text
    assert "Teacher: 8 epochs, 40.0 on val, 39.0 on test, still rising at the end." in text
    assert text.count("![lasting: mAP by epochs and by minutes](gain_lasting.svg)") == 1
    assert ET.parse(tmp_path / "gain_lasting.svg").getroot().tag.endswith("svg")
    page.write_text("no marks")
    assert CliRunner().invoke(table.main, [str(lines), "--write", str(page)]).exit_code == 2
