"""Before a distilled run its teacher is evaluated, within bounds, and compared with the student alone."""

from __future__ import annotations

import io
import json
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))

import process_parts
from process_parts import in_processes

from cskd_train.engine import preflight
from cskd_train.engine.build import build_split
from cskd_train.engine.distributed import World
from cskd_train.engine.evaluate import build_trained, detect, evaluate_checkpoint
from cskd_train.engine.preflight import TeacherCheck, check_teacher, find_student_alone
from cskd_train.engine.prepare import warn
from cskd_train.engine.records import read_log
from cskd_train.engine.signals import Interrupted
from cskd_train.files import checkpoints
from cskd_train.files.config import config_from_data, config_to_data, load_config
from cskd_train.mm.detector import DistilledDetector, build_distilled, build_student
from cskd_train.tables.work_dirs import load_run

from .distilling import IMAGES, METAS, store_teacher, under
from .known_boxes import CLASSES, KnownBoxes
from .runs import train

CAFFE = {"mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "to_rgb": False}


@pytest.fixture
def cfg(distill_config, shapes_root):
    """`tiny_config` under the student of the `trained` run."""
    return load_config(distill_config, {"data_root": str(shapes_root)})


@pytest.fixture
def val_set(cfg):
    return build_split(cfg, "val")


@pytest.fixture
def model(cfg):
    return distilled(cfg)


@pytest.fixture
def alone(trained, tmp_path):
    """The finished run of the student alone, beside `tmp_path / "w"`."""
    return load_run(shutil.copytree(trained, tmp_path / "alone"))


def distilled(cfg):
    student = build_student(cfg)
    student.CLASSES = CLASSES
    return build_distilled(student, cfg, "cpu")


def boxes_of(root, score=0.9):
    """Every annotated box of the validation split, as `KnownBoxes` takes it."""
    data = json.loads((root / "annotations" / "val.json").read_text())
    names = {one["id"]: one["name"] for one in data["categories"]}
    files = {one["id"]: one["file_name"] for one in data["images"]}
    found = {file: [] for file in files.values()}
    for one in data["annotations"]:
        found[files[one["image_id"]]].append((names[one["category_id"]], *one["bbox"], score))
    return found


@pytest.fixture
def sees(monkeypatch):
    """`sees(boxes)`: every teacher detects these, in so many seconds an image; otherwise the clock stands still."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(preflight, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def let(boxes, seconds=0.0):
        class Teacher(KnownBoxes):
            can_detect = True

            def forward(self, *args, **keywords):
                clock.now += seconds
                return super().forward(*args, **keywords)

        monkeypatch.setattr(DistilledDetector, "taught_by", lambda _: Teacher(boxes))

    return let


def check(model, val_set, cfg, alone=None, **bounds):
    return check_teacher(model, val_set, World(), alone, config_to_data(cfg), **bounds)


def by_image(detections):
    """Detections as rows (image, class, x, y, width, height, score), the surest of an image first."""
    rows = [(one["image_id"], one["category_id"], *one["bbox"], one["score"]) for one in detections]
    return np.array(sorted(rows, key=lambda row: (row[0], -row[-1])))


# What the teacher sees


def test_the_teacher_detects_in_its_own_normalisation_and_classes(trained, cfg, shapes_root, tmp_path):
    """On the student's images, otherwise normalised and with the classes in another order, as on its own."""
    contents = checkpoints.read(trained / "best.pth")
    own = config_from_data(contents["meta"]["config"])
    expected = detect(
        build_trained(own, checkpoints.load_checkpoint(trained / "best.pth"), "cpu"), build_split(own, "val")
    )
    steps = [*cfg.data.train.pipeline, *cfg.data.val.pipeline[1].transforms]
    for step in steps:
        step.update(CAFFE if step.type == "Normalize" else {})
    cfg.distill.teacher.class_map = {}
    student = build_student(cfg)
    student.CLASSES = CLASSES[::-1]
    model = build_distilled(student, cfg, "cpu")
    images = build_split(cfg, "val", CLASSES[::-1])
    found = detect(model.taught_by(), images)
    assert len(found) == len(expected) > 100
    np.testing.assert_allclose(by_image(found)[:, [0, 6]], by_image(expected)[:, [0, 6]], rtol=1e-4)
    surest = [max(one, key=lambda detection: detection["score"]) for one in (found, expected)]
    assert surest[0]["category_id"] == surest[1]["category_id"]
    np.testing.assert_allclose(surest[0]["bbox"], surest[1]["bbox"], rtol=1e-3)
    model._normalizations = None
    assert by_image(detect(model.taught_by(), images))[0, 6] != pytest.approx(by_image(expected)[0, 6], rel=1e-3)


def test_a_teacher_of_every_family_detects_in_the_students_classes(narrow_model, family, tmp_path):
    theirs = ("cross", "star", "triangle", "disc", "ring", "square")
    own = narrow_model(family, 50, classes=6)
    (own.test_cfg.rcnn if family == "FasterRCNN" else own.test_cfg).score_thr = 0.0
    file = store_teacher(tmp_path / "teacher.pth", own, theirs)
    ours = {"classes": ("circle", "ring", "square", "star"), "teacher": {"class_map": {"circle": "disc"}}}
    teacher = under(narrow_model(family), file, **ours).taught_by()
    metas = [{**meta, "scale_factor": np.ones(4, dtype=np.float32)} for meta in METAS]
    for by_class in teacher(return_loss=False, rescale=True, img=[IMAGES], img_metas=[metas]):
        assert len(by_class) == 4
        found = np.concatenate(by_class)
        assert len(found) >= 4
        assert np.isfinite(found).all()


def test_the_teacher_stays_as_the_distiller_has_it(model, val_set, cfg):
    before = {key: value.clone() for key, value in model.distiller.teacher.detector.state_dict().items()}
    model.train()
    assert isinstance(check(model, val_set, cfg), TeacherCheck)
    teacher = model.distiller.teacher.detector
    assert not teacher.training
    assert model.student.training
    assert all((value == before[key]).all() for key, value in teacher.state_dict().items())
    assert not any("teacher" in key for key in model.state_dict())


# What is looked at


def test_a_good_teacher_is_measured_on_a_sample_and_not_warned_of(sees, model, val_set, cfg, shapes_root):
    sees(boxes_of(shapes_root))
    model.teacher = None  # what its checkpoint has stored is far less
    found = check(model, val_set, cfg, images=4)
    assert found.mean_average_precision == pytest.approx(1)
    assert (found.images, found.of) == (4, 6)
    assert found.warnings == []
    assert str(found).startswith("the teacher has mAP 1.0000 on 4 of 6 images of data.val, ")


def test_only_the_images_that_were_looked_at_count(sees, model, val_set, cfg, shapes_root):
    boxes = boxes_of(shapes_root)
    order = np.random.default_rng(0).permutation(6)
    files = [val_set.normal.images[place]["file_name"] for place in order]
    sees({files[0]: boxes[files[0]], files[1]: boxes[files[1]]})
    assert check(model, val_set, cfg, images=2).mean_average_precision == pytest.approx(1)
    assert check(model, val_set, cfg, images=6).mean_average_precision < 0.9


def test_time_bounds_the_images(sees, model, val_set, cfg, shapes_root):
    sees(boxes_of(shapes_root), seconds=0.2)
    found = check(model, val_set, cfg, seconds=0.5)
    assert found.images == 3  # the third was begun after 0.4 seconds
    assert found.seconds == pytest.approx(0.6)
    assert found.mean_average_precision == pytest.approx(1)


def test_the_floor_is_named_with_what_to_do(sees, model, val_set, cfg):
    sees({})
    (warning,) = check(model, val_set, cfg).warnings
    assert "has mAP 0.0000 on all 6 images of data.val: below 0.05 it detects next to nothing here" in warning
    assert "Train it longer" in warning
    stored = TeacherCheck("t.pth", 0.2, 8, 60, 1.0, val=0.03, source="checkpoint")
    assert "t.pth has mAP 0.0300 on all 60 images of data.val: below 0.05" in stored.warnings[0]


def test_a_teacher_that_cannot_be_evaluated_teaches_all_the_same(model, val_set, cfg):
    model.distiller.teacher.detector.test_cfg = None
    assert "its config has no model.test_cfg" in check(model, val_set, cfg)
    model.same_classes = False
    assert "its classes are not known to be the student's" in check(model, val_set, cfg)
    model.same_classes = True
    val_set.normal = replace(val_set.normal, data={**val_set.normal.data, "annotations": []})
    model.distiller.teacher.detector.test_cfg = model.student.test_cfg
    assert check(model, val_set, cfg, images=2) == (
        "the teacher is not evaluated before training: 2 validation images have no box to find"
    )


# The comparison with the student alone


def test_what_both_have_stored_for_the_whole_split_is_compared(model, val_set, cfg, alone, trained):
    stored = checkpoints.load_checkpoint(trained / "best.pth").metrics["bbox_mAP"]
    better = replace(alone, best=100 * stored + 2)
    found = check(model, val_set, cfg, better, images=2)
    assert (found.val, found.source) == (stored, "checkpoint")
    assert (found.compared, found.compared_images) == (stored, 6)
    assert found.student_mean_average_precision == pytest.approx(stored + 0.02)
    assert "teaches little, or harms" in found.warnings[-1]
    assert (
        f"has mAP {stored:.4f} on all 6 images of data.val, the student alone {stored + 0.02:.4f}"
        in (found.warnings[-1])
    )
    worse = replace(alone, best=100 * stored - 0.01)
    assert not any("teaches little" in warning for warning in check(model, val_set, cfg, worse, images=2).warnings)


def test_what_the_teacher_stored_for_another_split_is_not_compared(model, val_set, cfg):
    other = {**model.teacher.config, "data": {"val": {"ann_file": "other.json"}}}
    model.teacher = replace(model.teacher, config=other)
    assert check(model, val_set, cfg, images=2).val is None
    found = check(model, val_set, cfg)
    assert (found.val, found.source) == (found.mean_average_precision, "measured")


def test_else_both_are_compared_on_the_images_that_were_looked_at(
    sees, model, val_set, cfg, alone, trained, shapes_root
):
    sees(boxes_of(shapes_root))
    model.teacher = None
    found = check(model, val_set, cfg, replace(alone, best=100.0), images=3)
    assert (found.compared, found.compared_images) == (pytest.approx(1), 3)
    student = build_trained(cfg, checkpoints.load_checkpoint(trained / "best.pth"), "cpu")
    order = np.random.default_rng(0).permutation(6)[:3]
    ids = [val_set.normal.image_keys[val_set.img_ids[place]] for place in order]
    detections = [one for one in detect(student, val_set) if one["image_id"] in ids]
    subset = val_set.normal.subset(val_set.img_ids[place] for place in order)
    expected = preflight.cskd_data.evaluate(subset, detections).mean_average_precision
    assert found.student_mean_average_precision == pytest.approx(expected)
    assert found.warnings == []
    (alone.folder / "best.pth").unlink()
    assert check(model, val_set, cfg, alone, images=3).student_alone is None


def test_the_student_alone_is_found_by_its_config(cfg, alone, tmp_path):
    def found(work_dir=tmp_path / "w", seed=0, images=6, **settings):
        config = config_to_data(load_config(cfg.filename, {"data_root": cfg.data_root, **settings}))
        run = find_student_alone(work_dir, config, seed, images, World())
        return run and run.folder

    assert found() == alone.folder
    assert (
        found(**{"data.workers_per_gpu": 3, "log_config.interval": 7, "distill.preset": "cskd-fixed"}) == alone.folder
    )
    for setting in ({"optimizer.lr": 0.5}, {"runner.max_epochs": 9}, {"ema": {}}, {"model.neck.num_outs": 4}):
        assert found(**setting) is None
    beside = config_to_data(cfg)
    beside["data"] = {**beside["data"], "unlabeled": {"ann_file": "pseudo.json"}}
    assert find_student_alone(tmp_path / "w", beside, 0, 6, World()).folder == alone.folder
    assert find_student_alone(tmp_path / "w", {**beside, "distill": None}, 0, 6, World()) is None
    assert found(images=5) is None
    assert found(work_dir=alone.folder) is None
    assert found(work_dir=tmp_path / "deeper" / "w") is None
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text("{")
    other = shutil.copytree(alone.folder, tmp_path / "other")
    result = json.loads((other / "result.json").read_text())
    (other / "result.json").write_text(json.dumps({**result, "seed": 1, "started": "2999-01-01"}))
    assert found() == alone.folder
    assert found(seed=1) == other
    assert found(seed=2) == other
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "distill": {"teacher": {"checkpoint": "t.pth"}}}))
    assert found(seed=1) == alone.folder


# In a run


@pytest.fixture(scope="module")
def pair(small_runs, tmp_path_factory):
    """The student alone and, beside it, the distilled one: folder, and what the latter printed and gave."""
    folder = tmp_path_factory.mktemp("pair")
    train(small_runs.options(folder / "alone"))
    return folder, *train(small_runs.options(folder / "distilled", distilled=True))


def test_a_run_says_and_keeps_what_its_teacher_was(pair):
    folder, result, said = pair
    assert said.index("the teacher has mAP 0.0") < said.index("epoch 1/2")
    assert "warning: the teacher " in said
    assert result.teacher["bbox_mAP"] == result.teacher["val_bbox_mAP"]
    assert {key: result.teacher[key] for key in ("images", "of", "source")} == {
        "images": 3,
        "of": 3,
        "source": "measured",
    }
    assert json.loads((folder / "distilled" / "result.json").read_text())["teacher"] == result.teacher
    first, *others = read_log(folder / "distilled" / "log.jsonl")
    assert first == {"mode": "teacher", "epoch": 0, "iter": 0, **result.teacher}
    assert not any(record["mode"] == "teacher" for record in others)


def test_a_run_keeps_how_the_student_alone_did(pair):
    folder, result, said = pair
    alone = json.loads((folder / "alone" / "result.json").read_text())
    expected = {"work_dir": str(folder / "alone"), "seed": 0, "bbox_mAP": pytest.approx(alone["best"]["bbox_mAP"])}
    assert result.baseline == expected
    assert alone["baseline"] == alone["teacher"] == {}
    assert f"the student alone {alone['best']['bbox_mAP']:.4f} ({folder / 'alone'})" in said


def test_a_resumed_run_keeps_what_was_found_and_does_not_look_again(small_runs, tmp_path):
    options = small_runs.options(tmp_path / "w", distilled=True)
    outcome, said = train(options, stop_after=8)
    assert isinstance(outcome, Interrupted)
    assert said.count("the teacher has mAP") == 1
    before = read_log(tmp_path / "w" / "log.jsonl")[0]
    result, said = train(replace(options, resume=True))
    assert "the teacher has mAP" not in said
    assert {"mode": "teacher", "epoch": 0, "iter": 0, **result.teacher} == before
    assert [one["mode"] for one in read_log(tmp_path / "w" / "log.jsonl")].count("teacher") == 1


def test_a_signal_while_the_teacher_is_looked_at_ends_the_run_before_its_first_step(small_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "detect", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    outcome, _ = train(small_runs.options(tmp_path / "w", distilled=True))
    assert isinstance(outcome, Interrupted)
    assert str(outcome).startswith("stopped by SIGTERM before the first step; nothing is saved in ")
    assert not (tmp_path / "w" / "last.pth").exists()


def test_without_validation_split_nothing_is_looked_at(small_runs, tmp_path):
    settings = {"data.val": None, "runner.max_epochs": 1}
    result, said = train(small_runs.options(tmp_path / "w", distilled=True, settings=settings))
    assert (result.teacher, result.baseline, result.improving) == ({}, {}, None)
    assert "the teacher has mAP" not in said


def test_the_processes_of_a_run_find_the_same(distill_config, shapes_root, alone):
    single, *_ = in_processes(1, process_parts.teacher_checked, distill_config, shapes_root, alone, 4)
    assert single["images"] == 4
    assert single["student"] is not None
    assert in_processes(2, process_parts.teacher_checked, distill_config, shapes_root, alone, 4) == [single] * 2


def test_processes_stop_at_the_same_image_when_time_is_up(distill_config, shapes_root, alone):
    first, second = in_processes(2, process_parts.teacher_checked, distill_config, shapes_root, alone, 6, 1e-9)
    assert first == second
    assert first["images"] == 2


def test_a_warning_is_red_where_there_are_colours_and_plain_elsewhere():
    red = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80)
    plain = Console(file=io.StringIO(), width=80)
    for console in (red, plain):
        warn(console, "the teacher [bold] is none")
    assert red.file.getvalue() == "\x1b[1;31mwarning: the teacher [bold] is none\x1b[0m\n"
    assert plain.file.getvalue() == "warning: the teacher [bold] is none\n"


def test_the_teachers_map_is_that_of_an_evaluation_of_its_checkpoint(model, val_set, cfg, trained, shapes_root):
    expected = evaluate_checkpoint(trained / "best.pth", {"data_root": str(shapes_root)})
    assert check(model, val_set, cfg).mean_average_precision == pytest.approx(expected.mean_average_precision)
