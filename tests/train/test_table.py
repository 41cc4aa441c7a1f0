"""`cskd-train table` pairs the runs in work dirs by their configs, and keeps them apart from what is published."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
CommandLine = Callable[..., tuple[int, str, str]]

CONFIG: dict[str, Any] = {
    "model": {"type": "RetinaNet", "backbone": {"depth": 18}},
    "data": {
        "samples_per_gpu": 4,
        "workers_per_gpu": 1,
        "train": {"type": "CocoDataset", "data_root": "data/blobs", "ann_file": "annotations/train.json"},
        "val": {"type": "CocoDataset", "data_root": "data/blobs", "ann_file": "annotations/val.json"},
    },
    "optimizer": {"type": "SGD", "lr": 0.01},
    "lr_config": {"policy": "step", "step": [6, 7]},
    "runner": {"type": "EpochBasedRunner", "max_epochs": 8},
    "log_level": "INFO",
}
WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteRun:
    """A finished run in a work dir of the current folder: `write_run("name", 0.2, seed=1, change={"a.b": 2})`."""
    monkeypatch.chdir(tmp_path)

    def write(
        name: str,
        mean_average_precision: float,
        *,
        seed: int = 0,
        teacher: str | None = None,
        change: dict[str, Any] | None = None,
        started: str = "2026-01-01T00:00:00+00:00",
    ) -> Path:
        config = copy.deepcopy(CONFIG)
        for key, value in (change or {}).items():
            *parents, leaf = key.split(".")
            holder = config
            for parent in parents:
                holder = holder[parent]
            holder[leaf] = value
        if teacher:
            config["distill"] = {"teacher": {"checkpoint": teacher}, "prediction": [1, 0.5]}
        folder = Path("work_dirs") / name
        folder.mkdir(parents=True)
        metrics = {"bbox_mAP": mean_average_precision, "bbox_mAP_50": 0.9}
        last = {**metrics, "bbox_mAP": mean_average_precision / 2}
        result = {"config": f"configs/{name.partition('-')[0]}.py", "work_dir": str(folder), "seed": seed}
        result |= {"distilled": bool(teacher), "started": started, "best": metrics, "last": last}
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write


BIG = {"model.backbone.depth": 50, "runner.max_epochs": 14}


@pytest.fixture
def rows_found(command_line: CommandLine) -> Callable[..., list[dict[str, Any]]]:
    """The rows of the work dirs, as `--json` gives them."""

    def find(*options: object) -> list[dict[str, Any]]:
        code, out, err = command_line("table", "--json", *options)
        assert (code, err) == (0, "")
        return json.loads(out)["measured"]["work_dirs"]["rows"]

    return find


def test_a_distilled_run_stands_beside_its_plain_twin_and_its_teacher(write_run: WriteRun, rows_found) -> None:
    write_run("teacher", 0.30, change=BIG)
    write_run("plain", 0.20)
    write_run("cskd", 0.25, teacher="work_dirs/teacher/best.pth")

    (row,) = rows_found()

    assert (row["recipe"], row["data"], row["split"]) == ("configs/cskd.py", "blobs", "val")
    assert row["details"] == "data/blobs/annotations/val.json"
    assert row["teacher"] == {"mean": 30.0, "standard_deviation": None, "n": 1, "seeds": [0], "values": [30.0]}
    assert row["student_alone"]["values"] == [20.0]
    assert row["student_distilled"]["values"] == [25.0]
    assert row["gain"]["values"] == [pytest.approx(5.0)]
    assert row["sources"] == ["work_dirs/cskd", "work_dirs/plain", "work_dirs/teacher"]


def test_what_a_distilled_run_has_without_labels_makes_it_another_row_beside_the_same_student_alone(
    write_run: WriteRun, rows_found
) -> None:
    write_run("plain", 0.20)
    write_run("cskd", 0.25, teacher="t.pth")
    write_run("more", 0.27, teacher="t.pth", change={"data.unlabeled": {"ann_file": "pseudo.json"}})

    rows = rows_found()

    assert [row["student_distilled"]["values"] for row in rows] == [[25.0], [27.0]]
    assert [row["student_alone"]["values"] for row in rows] == [[20.0], [20.0]]


def test_seeds_give_mean_sample_deviation_and_a_gain_paired_by_seed(write_run: WriteRun, rows_found) -> None:
    for seed, (alone, distilled) in enumerate([(0.20, 0.26), (0.22, 0.27), (0.27, 0.28)]):
        write_run(f"plain-{seed}", alone, seed=seed)
        write_run(f"cskd-{seed}", distilled, seed=seed, teacher="https://example.org/teacher.pth")
    write_run("plain-9", 0.99, seed=9)  # no distilled run has this seed: no part in the gain

    (row,) = rows_found()

    assert row["teacher"] is None
    assert row["student_alone"]["seeds"] == [0, 1, 2, 9]
    assert row["student_distilled"]["mean"] == pytest.approx(27.0)
    assert row["student_distilled"]["standard_deviation"] == pytest.approx(1.0)
    assert row["student_distilled"]["n"] == 3
    assert row["gain"]["values"] == pytest.approx([6.0, 5.0, 1.0])
    assert row["gain"]["mean"] == pytest.approx(4.0)
    assert row["gain"]["standard_deviation"] == pytest.approx(math.sqrt(7))


@pytest.mark.parametrize(
    "change",
    [
        {"runner.max_epochs": 9},
        {"lr_config.step": [5, 7]},
        {"optimizer.lr": 0.02},
        {"data.samples_per_gpu": 8},
        {"data.train.ann_file": "annotations/other.json"},
        {"data.val.data_root": "data/others"},
        {"model.backbone.depth": 34},
        {"ema": {}},
        {"amp": "bf16"},
        {"accumulate": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_runs_that_differ_in_student_data_or_schedule_are_not_paired(
    write_run: WriteRun, rows_found, change: dict[str, Any]
) -> None:
    write_run("plain", 0.20, change=change)
    write_run("cskd", 0.25, teacher="nowhere/best.pth")

    distilled, plain = rows_found()

    assert distilled["student_alone"] is None
    assert distilled["gain"] is None
    assert plain["student_distilled"] is None
    assert plain["student_alone"]["values"] == [20.0]


def test_settings_that_change_nothing_of_the_student_do_not_part_a_pair(write_run: WriteRun, rows_found) -> None:
    write_run("plain", 0.20, change={"data.workers_per_gpu": 4, "log_level": "DEBUG", "seed": 0})
    write_run("cskd", 0.25, teacher="nowhere/best.pth")

    (row,) = rows_found()

    assert row["gain"]["values"] == [pytest.approx(5.0)]


def test_students_of_two_teachers_are_two_rows_with_the_same_twin(write_run: WriteRun, rows_found) -> None:
    write_run("plain", 0.20)
    write_run("cskd-a", 0.25, teacher="a/best.pth")
    write_run("cskd-b", 0.23, teacher="b/best.pth")

    rows = rows_found()

    assert [row["student_distilled"]["values"] for row in rows] == [[25.0], [23.0]]
    assert [row["gain"]["mean"] for row in rows] == pytest.approx([5.0, 3.0])


def test_a_teacher_counts_by_the_checkpoint_that_taught(write_run: WriteRun, rows_found) -> None:
    write_run("teacher", 0.30, change=BIG)
    write_run("cskd", 0.25, teacher="work_dirs/teacher/last.pth")

    (row,) = rows_found()

    assert row["teacher"]["values"] == [15.0]


def test_a_teacher_that_was_evaluated_on_other_images_has_no_figure_in_the_row(write_run: WriteRun, rows_found) -> None:
    write_run("teacher", 0.30, change={**BIG, "data.val.ann_file": "annotations/easy.json"})
    write_run("cskd", 0.25, teacher="work_dirs/teacher/best.pth")

    distilled, teacher = rows_found()

    assert distilled["teacher"] is None
    assert teacher["details"] == "data/blobs/annotations/easy.json"


def test_work_dirs_that_were_moved_together_are_still_paired(write_run: WriteRun, rows_found) -> None:
    write_run("teacher", 0.30, change=BIG)
    write_run("cskd", 0.25, teacher="work_dirs/teacher/best.pth")
    Path("work_dirs").rename("moved")

    (row,) = rows_found("--work-dirs", "moved")

    assert row["teacher"]["values"] == [30.0]
    assert row["sources"] == ["moved/cskd", "moved/teacher"]


def test_single_work_dirs_can_be_named_and_count_once(write_run: WriteRun, rows_found) -> None:
    write_run("other", 0.10, change={"optimizer.lr": 0.5})
    plain, cskd = write_run("plain", 0.20), write_run("cskd", 0.25, teacher="nowhere/best.pth")

    (row,) = rows_found("--work-dirs", plain, "--work-dirs", cskd, "--work-dirs", cskd.resolve())

    assert (row["student_alone"]["n"], row["student_distilled"]["n"]) == (1, 1)


def test_of_two_runs_with_the_same_seed_the_later_one_counts(write_run: WriteRun, command_line: CommandLine) -> None:
    write_run("plain-b", 0.20, started="2026-01-01T00:00:00+00:00")
    write_run("plain-a", 0.21, started="2026-01-02T00:00:00+00:00")

    code, out, err = command_line("table", "--json")

    (row,) = json.loads(out)["measured"]["work_dirs"]["rows"]
    assert (code, row["student_alone"]["values"]) == (0, [21.0])
    assert row["sources"] == ["work_dirs/plain-a"]
    assert err.startswith("warning: work_dirs/plain-b/result.json: left out, work_dirs/plain-a is a later run")


def test_a_run_as_cskd_train_writes_it_is_found(trained: Path, rows_found) -> None:
    best = json.loads((trained / "result.json").read_text())["best"]["bbox_mAP"]

    (row,) = rows_found("--work-dirs", trained)

    assert row["student_alone"]["values"] == [pytest.approx(100 * best)]
    assert (row["data"], row["recipe"].rpartition("/")[2]) == ("shapes", "tiny_retinanet.py")


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("result.json", "{", "not JSON"),
        ("result.json", '{"passed": 3}', "not the result of a run"),
        ("result.json", '{"config": "a.py", "seed": 0, "best": {}}', "never evaluated"),
        ("result.json", '{"config": "a.py", "seed": "x", "best": {"bbox_mAP": 0.1}}', "whole number under 'seed'"),
        ("config.json", None, "cannot be read: No such file"),
        ("config.json", "[]", "expected an object, found list"),
        ("config.json", '{"model": {}}', "data: expected an object, found NoneType"),
        ("config.json", '{"data": {"train": {}}}', "data.val: expected an object"),
    ],
)
def test_a_broken_work_dir_is_a_warning_and_the_rest_is_shown(
    write_run: WriteRun, command_line: CommandLine, file: str, content: str | None, problem: str
) -> None:
    broken = write_run("broken", 0.1) / file
    broken.unlink() if content is None else broken.write_text(content)
    write_run("whole", 0.2)

    code, out, err = command_line("table", "--json")

    (row,) = json.loads(out)["measured"]["work_dirs"]["rows"]
    assert (code, row["student_alone"]["values"]) == (0, [20.0])
    assert err.startswith(f"warning: {broken}")
    assert problem in err
    assert json.loads(out)["warnings"] == [err.removeprefix("warning: ").rstrip("\n")]


# What is printed


@pytest.fixture
def measured(write_run: WriteRun, tmp_path: Path) -> Path:
    """The current folder with a recorded file and three runs whose figures no published row has."""
    write_run("teacher", 0.7777, change=BIG)
    write_run("plain", 0.5556)
    write_run("cskd", 0.6666, teacher="work_dirs/teacher/best.pth")
    (tmp_path / "docs" / "results").mkdir(parents=True)
    runs = [
        {"config": "configs/x.py", "seed": seed, "val": {"bbox_mAP": value}} for seed, value in enumerate((0.11, 0.13))
    ]
    (tmp_path / "docs" / "results" / "blobs.json").write_text(
        json.dumps({"data": "blobs (drawn)", "runs": {"student_distilled": runs}})
    )
    return tmp_path


def test_the_terminal_table_keeps_published_and_measured_figures_apart(
    measured: Path, command_line: CommandLine
) -> None:
    code, out, err = command_line("table")

    published, _, found = out.partition("Measured, recorded under docs/results")
    lines = [line.split() for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert ["8", "GFL", "R101", "->", "R50", "44.9", "40.2", "44.5", "+4.3", "42.9", "+1.6"] in lines
    assert ["10", "FCOS", "R101", "->", "R18", "-", "-", "-", "-", "-", "-"] in lines
    assert ["8", "cskd_gfl_r101_distill_r50_fpn_coco_2x.py"] in lines
    assert ["x", "blobs", "val", "-", "-", "12.0±1.4", "-", "0", "1"] in lines
    assert ["cskd", "blobs", "val", "77.8", "55.6", "66.7", "+11.1", "0"] in lines
    assert not any(figure in published for figure in ("77.8", "55.6", "66.7", "12.0"))
    assert "docs/results/blobs.json" in found
    assert "work_dirs/plain" in found
    words = " ".join(published.split())
    assert "compare students trained on several image scales with baselines trained on one" in words
    assert "None of these rows was measured by this project" in words
    assert "Row 8: mmdet gives 44.7 for its teacher checkpoint, not 44.9." in words


def test_what_is_piped_fits_100_columns_except_paths(measured: Path, command_line: CommandLine) -> None:
    _, out, _ = command_line("table")

    assert max(len(line.rstrip()) for line in out.splitlines()) <= 100
    assert "\x1b" not in out


def test_a_long_recipe_name_is_folded_and_no_figure_is_cut(write_run: WriteRun, command_line: CommandLine) -> None:
    for seed in range(3):
        write_run(f"{'cskd_' * 12}-{seed}", 0.1 * (1 + seed), seed=seed, teacher="t/best.pth")

    _, out, _ = command_line("table")

    (line,) = (line for line in out.splitlines() if "20.0±10.0" in line)
    assert line.startswith("cskd_cskd_")
    assert line.rstrip().endswith("0 1 2")
    assert len(line.rstrip()) <= 100


def test_nothing_measured_is_said_and_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: CommandLine
) -> None:
    monkeypatch.chdir(tmp_path)

    code, out, err = command_line("table")

    assert (code, err) == (0, "")
    assert "Measured, recorded under docs/results: none found" in out
    assert "Measured, work dirs under work_dirs: none found" in out


def test_json_has_every_row_with_its_source(measured: Path, command_line: CommandLine) -> None:
    _, out, _ = command_line("table", "--json")

    report = json.loads(out)
    rows = report["published"]["rows"]
    assert report["unit"] == "points of COCO box mAP (0-100)"
    assert rows[7]["printed"] == {"teacher": 44.9, "student": 40.2, "distilled": 44.5, "gain": 4.3}
    assert rows[7]["matched_student"]["mAP"] == 42.9
    assert rows[7]["matched_student"]["source"] == "mmdet configs/gfl/metafile.yml"
    assert rows[7]["like_for_like_gain"] == 1.6
    assert rows[9]["printed"] is None
    assert all((REPOSITORY / row["recipe"]).is_file() for row in rows)
    assert report["measured"]["recorded"]["rows"][0]["sources"] == ["docs/results/blobs.json"]
    assert len(report["measured"]["work_dirs"]["rows"]) == 1


def test_markdown_has_tables_of_equal_width_rows(measured: Path, command_line: CommandLine) -> None:
    _, out, _ = command_line("table", "--markdown")

    tables = [block.splitlines() for block in out.split("\n\n") if block.startswith("|")]
    assert [len(table) for table in tables] == [12, 3, 3]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
    assert "| 8 | GFL | R101 -> R50 | 44.9 | 40.2 | 44.5 | +4.3 | 42.9 | +1.6 | `cskd_gfl_r101_" in out
    assert (
        "| cskd | blobs | val | 77.8 | 55.6 | 66.7 | +11.1 | 0 | work_dirs/cskd, work_dirs/plain, work_dirs/teacher |"
        in out
    )


def test_json_and_markdown_exclude_each_other(command_line: CommandLine) -> None:
    code, _, err = command_line("table", "--json", "--markdown")

    assert code == 2
    assert "give one of them" in err


@pytest.mark.parametrize("option", ["--results", "--work-dirs"])
def test_a_folder_that_is_named_and_missing_is_an_error(command_line: CommandLine, tmp_path: Path, option: str) -> None:
    code, out, err = command_line("table", option, tmp_path / "nowhere")

    assert (code, out) == (2, "")
    assert err.startswith(f"error: {option} {tmp_path / 'nowhere'}: no such folder")


def test_the_examples_of_the_help_run(measured: Path, command_line: CommandLine) -> None:
    _, text, _ = command_line("table", "--help")
    examples = [line.split()[1:] for line in text.splitlines() if line.strip().startswith("cskd-train table")]

    assert len(examples) == 3
    for example in examples:
        assert command_line(*example)[0] == 0


def test_the_table_needs_neither_torch_nor_mmdet(measured: Path, fresh_python) -> None:
    done = fresh_python(
        """
import sys
sys.modules.update({name: None for name in ("torch", "mmcv", "mmdet")})
from cskd_train.cli import main
try:
    main(["table"])
except SystemExit as stopped:
    assert not stopped.code
"""
    )

    assert done.returncode == 0, done.stderr
    assert "66.7" in done.stdout
