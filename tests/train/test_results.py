"""What a finished run says of itself: how it compares, whether it still improved, how to go on."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from cskd_train.files.config import config_to_data, load_config
from cskd_train.files.overrides import parse_overrides
from cskd_train.results import RunResult, next_steps, prolonged, still_improving, without_teacher
from cskd_train.tables.work_dirs import FinishedRun

RESULT = RunResult(
    config="mine.py",
    work_dir="work_dirs/mine",
    seed=0,
    distilled=True,
    epochs=12,
    iterations=120,
    last={"bbox_mAP": 0.30},
    best={"bbox_mAP": 0.312},
    best_epoch=11,
    seconds=1.0,
    images_per_second=1.0,
    data_share=0.1,
    device="CPU",
    command="cskd-train run mine.py",
    started="2026-01-01T00:00:00+00:00",
    teacher={"val_bbox_mAP": 0.346},
    baseline={"work_dir": "work_dirs/alone", "seed": 0, "bbox_mAP": 0.291},
)


def test_the_student_is_compared_with_the_student_alone_and_with_its_teacher():
    (sentence,) = next_steps(RESULT)
    assert sentence == (
        "mAP 0.3120 on val: 2.1 points above the student alone (0.2910, work_dirs/alone), "
        "3.4 points below its teacher (0.3460)"
    )
    other = replace(RESULT, baseline={**RESULT.baseline, "seed": 3})
    assert "the student alone (0.2910, work_dirs/alone, seed 3)" in next_steps(other)[0]


def test_a_student_worse_than_alone_is_said_to_be_so_with_what_to_try():
    comparison, advice = next_steps(replace(RESULT, best={"bbox_mAP": 0.28}))
    assert "1.1 points below the student alone" in comparison
    assert "the distillation has not helped here" in advice


def test_what_is_not_known_for_the_whole_split_is_not_compared():
    without = replace(RESULT, teacher={"bbox_mAP": 0.346, "val_bbox_mAP": None}, baseline={})
    (sentence,) = next_steps(without)
    assert sentence.startswith("what the distillation brings is seen beside the student alone: cskd-train run mine.py ")
    assert next_steps(replace(RESULT, distilled=False)) == []
    assert next_steps(replace(RESULT, best={})) == []


def test_more_epochs_are_offered_while_map_rises_only():
    (_, sentence) = next_steps(replace(RESULT, improving=True))
    assert sentence == ("mAP was still rising at the end; more epochs: cskd-train run mine.py --resume --epochs 18")
    assert next_steps(replace(RESULT, improving=False))[1].startswith("mAP was no longer rising")
    assert prolonged(replace(RESULT, epochs=1)).endswith("--resume --epochs 2")


@pytest.mark.parametrize(
    "typed",
    [
        "cskd-train run mine.py --epochs 12 --work-dir 'my work' --overwrite",
        "cskd-train run mine.py --epochs=12 --work-dir 'my work' --resume",
        "cskd-train run mine.py --set runner.max_epochs=12 --work-dir 'my work'",
        "cskd-train run mine.py --set=runner.max_epochs=12 --work-dir 'my work'",
    ],
)
def test_the_way_on_replaces_the_epochs_that_were_typed(typed):
    assert prolonged(replace(RESULT, command=typed)) == (
        "cskd-train run mine.py --work-dir 'my work' --resume --epochs 18"
    )


def test_the_way_to_the_student_alone_leaves_out_its_teacher_and_keeps_the_rest():
    typed = (
        "cskd-train run mine.py --teacher t.py --teacher-checkpoint=t.pth --overwrite --work-dir w --lr 0.1 "
        "--set distill.preset=cskd-fixed --set data_root=data"
    )
    command = without_teacher(replace(RESULT, work_dir="w", command=typed))
    assert command == ("cskd-train run mine.py --lr 0.1 --set data_root=data --set distill=None --work-dir w_alone")
    assert without_teacher(replace(RESULT, command="")) == (
        "cskd-train run mine.py --set distill=None --work-dir work_dirs/mine_alone"
    )


def test_the_student_alone_has_no_images_without_labels_and_is_found_beside_the_distilled_one(tmp_path):
    config = tmp_path / "distilled.py"
    config.write_text(
        f"_base_ = [{str(Path(__file__).with_name('tiny_retinanet.py'))!r}]\n"
        "data = dict(unlabeled=dict(ann_file='pseudo.json', img_prefix='more'))\n"
        "distill = dict(teacher=dict(checkpoint='t.pth'))\n"
    )
    typed = (
        f"cskd-train run {config} --set data.unlabeled.weight=0.3 --set data_root=data --set=data.unlabeled.share=0.25"
    )
    result = replace(RESULT, work_dir="w", command=typed, images={"train": 4, "unlabeled": 9, "val": 2})
    command = without_teacher(result)
    assert command == (
        f"cskd-train run {config} --set data_root=data --set distill=None --set data.unlabeled=None --work-dir w_alone"
    )

    def student(command):
        settings = [word for word in shlex.split(command.replace("--set=", "--set ")) if "=" in word]
        data = config_to_data(load_config(config, parse_overrides(settings)))
        return FinishedRun(tmp_path, "", "", 0, "", data, 0, 0).student

    assert student(command) == student(typed)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 0.2, 0.3], None),  # too few
        ([0.10, 0.14, 0.17, 0.21], True),
        ([0.30, 0.26, 0.21, 0.20], False),
        ([0.2, 0.2, 0.2, 0.2], False),
        ([0.2, 0.201, 0.2, 0.2], False),
        ([0.2, 0.2004, 0.2008, 0.2012], False),  # a tenth of a point
        ([0.185, 0.235, 0.226, 0.221], None),  # noise
        ([0.01 * place for place in range(12)] + [0.12, 0.121, 0.12, 0.12], False),  # of 16 the last 4
        ([0.3 - 0.1 * (place % 2) for place in range(24)] + [0.30, 0.31, 0.33, 0.34, 0.35, 0.36, 0.37, 0.38], True),
    ],
)
def test_improving_is_a_rise_over_the_last_quarter_above_its_noise(values, expected):
    assert still_improving(values) is expected


def test_the_command_that_is_offered_trains_the_student_alone(train_tiny, command_line, trained, tmp_path):
    options = ("--teacher-checkpoint", trained / "best.pth", "--set", "runner.max_epochs=1")
    code, out, err = train_tiny(tmp_path / "w", *options)
    assert code == 0, err
    (line,) = (line for line in out.splitlines() if "is seen beside the student alone: " in line)
    assert command_line(*shlex.split(line.split("alone: ")[1])[1:])[0] == 0
    code, out, err = train_tiny(tmp_path / "w", *options, "--overwrite")
    assert "points above its teacher" in out or "points below its teacher" in out
    assert " the student alone (0.0" in out
    assert f"{tmp_path / 'w_alone'})" in err
