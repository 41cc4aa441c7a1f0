"""`cskd-train report`: its figures are those of the run's files and detections, and it asks the network for nothing."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter

import numpy as np
import pytest
import torch

import cskd_data
import cskd_train
from cskd_data import read
from cskd_data.error_kinds import KINDS, error_kinds
from cskd_data.evaluate import load_detections
from cskd_data.operating_point import best_f1, score_curve
from cskd_train.engine.records import read_log
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import load_checkpoint, load_weights
from cskd_train.files.config import config_from_data
from cskd_train.mm.detector import build_distilled
from cskd_train.mm.plain import build_without_pretrained
from cskd_train.report import detected, write
from cskd_train.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from cskd_train.report.detected import Found
from cskd_train.report.guidance import distance, guidance
from cskd_train.report.matches import on_images
from cskd_train.report.pictures import MOST_BYTES, shrunk
from cskd_train.report.runs import Detector, read_subject
from cskd_train.report.words import recipe

from .reported import Page, a_run, make_runs

NAMES = {"teacher": "teacher", "student alone": "alone", "student distilled": "distilled"}
VAL = "annotations/val.json"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, trained, tiny_config, shapes_root):
    return make_runs(tmp_path_factory.mktemp("runs"), trained, tiny_config, shapes_root)


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    return cskd_train.write_report(runs, output=tmp_path_factory.mktemp("page") / "page.html", device="cpu")


@pytest.fixture(scope="module")
def page(report):
    return Page(report.file)


@pytest.fixture(scope="module")
def found(runs, shapes_root, tmp_path_factory):
    """The detections of each detector as `cskd-train test` has them."""
    folder = tmp_path_factory.mktemp("found")
    for name in NAMES.values():
        best, out = runs.parent / name / "best.pth", folder / f"{name}.json"
        cskd_train.evaluate(best, device="cpu", settings={"data_root": str(shapes_root)}, out=out)
    return {name: load_detections(folder / f"{name}.json") for name in NAMES.values()}


def test_the_overview_has_the_best_epoch_of_every_run(page, runs):
    shown = page.table("Overview")
    assert list(shown) == list(NAMES)
    for title, name in NAMES.items():
        result = json.loads((runs.parent / name / "result.json").read_text())
        assert shown[title]["mAP"] == f"{result['best']['bbox_mAP']:.3f}"
        assert shown[title]["AP50"] == f"{result['best']['bbox_mAP_50']:.3f}"
        assert (shown[title]["best epoch"], shown[title]["epochs"]) == (str(result["best_epoch"]), "2")


def test_map_by_epoch_and_the_losses_are_those_of_the_log(page, runs):
    by_epoch = page.table("mAP by epoch")
    log = read_log(runs / "log.jsonl")
    for one in (record for record in log if record["mode"] == "val"):
        assert by_epoch[str(one["epoch"])]["student distilled"] == f"{one['bbox_mAP']:.4f}"
    steps = [record for record in log if record["mode"] == "train"]
    losses = page.table("Losses and learning rate")
    assert list(losses) == [str(one["iter"]) for one in steps]
    for one in steps:
        row = losses[str(one["iter"])]
        assert {"cls", "bbox", "pyramid_full", "loss"} <= {*row}
        for name in ("cls", "pyramid_full"):
            assert float(row[name]) == pytest.approx(one[f"loss_{name}"], abs=1e-4, rel=1e-2)


def test_classes_thresholds_and_errors_are_those_of_the_detections(page, found, shapes_root):
    data = read(shapes_root / VAL)
    by_class, points = page.table("AP of each class"), page.table("Precision, recall and threshold")
    errors = page.table("Errors by kind")
    for title, name in NAMES.items():
        result = cskd_data.evaluate(data, found[name])
        assert by_class["mean (mAP)"][title] == f"{result.mean_average_precision:.3f}"
        for one, precision in result.per_class.items():
            assert by_class[one][title] == f"{precision:.3f}"
        kinds = error_kinds(data, found[name])
        assert errors["AP at IoU 0.5"][title] == f"{kinds.ap:.1f}"
        for kind in KINDS:
            assert errors[kind][title] == f"{kinds.dap[kind]:.1f} ({kinds.counts[kind]})"
        point = best_f1(data, found[name])
        assert points[title]["best threshold"] == f"{point.threshold:.3f}"
        assert points[title]["F1"] == f"{point.f1:.3f}"


def test_the_lines_of_the_curves_go_through_their_values(page, found, shapes_root):
    """The polyline of precision over recall, taken back from pixels to values."""
    curve = score_curve(read(shapes_root / VAL), found["distilled"])
    svg = page.source[page.source.index('aria-label="Precision over recall"') :]
    lines = re.findall(r'<polyline points="([^"]+)" class="line line(\d)"', svg[: svg.index("</svg>")])
    drawn = [
        ((float(x) - LEFT) / (WIDTH - RIGHT - LEFT), (HEIGHT - BOTTOM - float(y)) / (HEIGHT - BOTTOM - TOP))
        for x, y in (point.split(",") for point in {colour: line for line, colour in lines}["0"].split())
    ]
    assert len(drawn) > 5
    values = np.stack([curve.recall, curve.precision], axis=1)
    for point in drawn:
        assert np.abs(values - point).max(axis=1).min() < 1e-3


def test_the_page_asks_for_nothing_and_runs_nothing(page):
    kinds = Counter(name for name, _ in page.elements)
    assert not {"link", "iframe", "object", "embed", "audio", "video", "img", "form"} & {*kinds}
    scripts = [attributes for name, attributes in page.elements if name == "script"]
    assert scripts == [{"type": "application/json", "id": "figures"}]
    for _, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on")]
        href = attributes.get("href") or "#"
        assert href.startswith(("#", "data:image/"))
    policy = [one["content"] for name, one in page.elements if name == "meta" and one.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert "url(" not in page.source
    assert "@import" not in page.source


def test_every_mark_that_is_pointed_to_is_there_once(page):
    marks = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert set(marks.values()) == {1}
    for _, attributes in page.elements:
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in marks


def test_figures_in_the_page_are_those_of_the_report(page, report):
    assert json.loads(json.dumps({**report.figures, "missing": list(report.missing)}, default=str)) == page.figures
    assert page.figures["looked_at"][0]["images"] == 6
    assert report.missing == []


def test_the_phases_add_up_to_the_time_of_the_run(page, runs):
    for title, name in NAMES.items():
        result = json.loads((runs.parent / name / "result.json").read_text())
        (one,) = [one for one in page.figures["detectors"] if one["name"] == title]
        assert sum(one["phases"].values()) == pytest.approx(result["seconds"], abs=1e-6)
        training, waiting = one["phases"]["training"], one["phases"]["waiting for data"]
        assert waiting / (training + waiting) == pytest.approx(result["data_share"], abs=1e-6)
        assert one["phases"]["teacher check"] == pytest.approx(result["teacher"].get("seconds", 0.0))
    assert list(page.table("Time")) == list(NAMES)


def test_the_recipe_is_told_in_words():
    said = " ".join(
        recipe(
            {
                "model": {
                    "type": "FCOS",
                    "backbone": {
                        "type": "ResNet",
                        "depth": 18,
                        "init_cfg": {"type": "Pretrained", "checkpoint": "a.pth"},
                    },
                    "neck": {"type": "FPN", "out_channels": 64},
                },
                "data": {
                    "samples_per_gpu": 4,
                    "train": {
                        "dataset": {"pipeline": [{"type": "Resize", "img_scale": [(8, 4), (6, 3)]}, {"type": "Mosaic"}]}
                    },
                },
                "optimizer": {"type": "SGD", "lr": 0.02, "momentum": 0.9},
                "lr_config": {"policy": "step", "step": [3, 5], "warmup": "linear", "warmup_iters": 7},
                "runner": {"max_epochs": 6},
                "distill": {"teacher": {"checkpoint": "t.pth"}, "tower": None, "prediction": (1, 0.5)},
            }
        )
    )
    assert said == (
        "The detector is an FCOS with a ResNet-18 backbone and an FPN neck of 64 channels. Pretrained weights come "
        "from a.pth; the rest starts at random. Images are scaled to 8 x 4 or 6 x 3, keeping their shape; changed by "
        "Mosaic. A step takes 4 images a process: SGD with learning rate 0.02, momentum 0.9. It is trained for 6 "
        "epochs, the learning rate rises over the first 7 steps (linear), and is multiplied by 0.1 after epoch 3, 5. "
        "It learns under a frozen teacher, t.pth. Terms of the distillation: tower: left out, prediction: 1/0.5; what "
        "is not named has the published weights."
    )


def test_detections_are_kept_and_made_again_for_another_checkpoint(runs, tmp_path, monkeypatch):
    calls = []
    detect = detected.detect
    monkeypatch.setattr(detected, "detect", lambda *args: calls.append(len(args[1])) or detect(*args))
    copy = shutil.copytree(runs.parent, tmp_path / "runs") / "distilled"
    page = tmp_path / "page.html"
    first = cskd_train.write_report(copy, output=page, images=2, device="cpu")
    assert calls == [2, 2]  # teacher and student alone have the same weights
    assert cskd_train.write_report(copy, output=page, images=2, device="cpu").figures == first.figures
    assert calls == [2, 2]
    contents = torch.load(copy / "best.pth", weights_only=True)
    contents["meta"]["epoch"] = 77
    torch.save(contents, copy / "best.pth")
    cskd_train.write_report(copy, output=page, images=2, device="cpu")
    assert calls == [2, 2, 2]
    assert "2 of 6 images, evenly spaced" in Page(page).text["Precision, recall and threshold"]


def test_boxes_that_are_marked_right_are_as_many_as_the_threshold_says(found, shapes_root):
    data = read(shapes_root / VAL)
    detector = Detector("one", "student", None, None, None, 0)
    for detections in found.values():
        one = Found(detector, data, detections)
        images = on_images(one).values()
        right, shown = sum(image.right for image in images), sum(len(image.boxes) for image in images)
        assert right / data.countable == pytest.approx(one.point.recall)
        assert right / shown == pytest.approx(one.point.precision)
        assert sum(image.missed for image in images) == data.countable - right


def test_guidance_is_the_distance_of_the_features_at_every_level(runs, shapes_root, tmp_path):
    subject = read_subject(runs)
    told = []
    asked = detected.Asked("val", 1, {}, torch.device("cpu"), tmp_path, lambda *one: told.append(one))
    first, second = guidance(subject, ("", ""), [1, 3], asked)
    assert [stride for stride, _ in first.levels] == [8, 16, 32, 64, 128]
    assert [values.shape for _, values in first.levels] == [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
    assert first.covered == (128, 128)
    assert (first.file.name, second.file.name) == ("val_00000.jpg", "val_00002.jpg")
    assert not np.array_equal(first.levels[0][1], second.levels[0][1])
    assert all(values.min() >= 0 and values.max() <= 2 for _, values in first.levels)
    assert told[-1] == ("guidance", 2, 2)
    student, teacher = torch.randn(2, 1, 5, 3, 4)
    by_hand = 1 - (student * teacher).sum(1) / (student.norm(dim=1) * teacher.norm(dim=1))
    assert distance(student, teacher) == pytest.approx(by_hand[0].numpy(), abs=1e-6)


def test_a_run_under_way_is_reported_as_far_as_it_is(runs, tmp_path, command_line):
    copy = shutil.copytree(runs, tmp_path / "runs" / "half")
    for name in ("result.json", "best.pth", "last.pth"):
        (copy / name).unlink()
    log = [one for one in read_log(copy / "log.jsonl") if one["mode"] == "train" and one["epoch"] == 1]
    (copy / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in log) + '{"mode": "tra')
    code, out, error = command_line("report", copy, "--output", tmp_path / "page.html")
    assert code == 0, error
    assert "there is no best.pth" in out
    page = Page(tmp_path / "page.html")
    assert "This run is not finished: epoch 1 of 2" in page.text["Overview"]
    assert page.table("Overview")["student distilled"]["epochs"] == "1 of 2"
    assert page.table("Losses and learning rate")
    assert "there is no best.pth" in page.text["Accuracy"]
    assert page.table("Data")["images"]["val"] == "6"


def test_a_teacher_of_which_only_the_checkpoint_is_there_has_the_map_that_the_run_knows(runs, tmp_path):
    copy = shutil.copytree(runs.parent, tmp_path / "runs")
    for name in ("log.jsonl", "result.json"):
        (copy / "teacher" / name).unlink()
    config = (copy / "distilled" / "config.json").read_text().replace(str(runs.parent), str(copy))
    (copy / "distilled" / "config.json").write_text(config)
    page = Page(cskd_train.write_report(copy / "distilled", images=1, device="cpu").file)
    known = json.loads((copy / "distilled" / "result.json").read_text())["teacher"]["val_bbox_mAP"]
    assert page.table("Overview")["teacher"]["mAP"] == f"{known:.3f}"
    assert page.table("Overview")["teacher"]["AP50"] == "-"
    assert list(page.table("AP of each class")["circle"]) == list(NAMES)


def test_a_project_that_was_moved_is_reported_by_its_data_where_they_are(runs, shapes_root, tmp_path):
    """The old data are still there; the new ones lack three validation images."""
    project = tmp_path / "project"
    for role, name in {"teacher": "teacher", "student": "alone", "distilled": "distilled"}.items():
        shutil.copytree(runs.parent / name, project / "work_dirs" / role)
    (project / "distilled.py").touch()
    (project / "work_dirs" / "distill.json").write_text(json.dumps({"root": str(shapes_root.parent)}))
    annotations = shutil.copytree(shapes_root, project / shapes_root.name) / VAL
    data = json.loads(annotations.read_text())
    kept = {image["id"] for image in data["images"][:3]}
    data["images"] = data["images"][:3]
    data["annotations"] = [one for one in data["annotations"] if one["image_id"] in kept]
    annotations.write_text(json.dumps(data))
    report = cskd_train.write_report(project, device="cpu")
    assert report.file == project / "report.html"
    assert report.missing == []
    assert report.figures["looked_at"][0]["in_all"] == 3
    page = Page(report.file)
    assert page.table("Data")["images"]["val"] == "3"
    assert "stride 8" in page.text["Guidance"]
    assert list(page.table("Overview")) == list(NAMES)


def test_runs_beside_each_other_are_compared(runs, tmp_path, command_line):
    copy = shutil.copytree(runs, tmp_path / "other")
    code, out, error = command_line("report", runs, copy, "--output", tmp_path / "page.html", "--images", 1, "--json")
    assert code == 0, error
    page = Page(tmp_path / "page.html")
    names = list(page.table("Overview"))
    assert names == ["teacher (teacher)", "alone (student alone)", "distilled (student distilled)",
                     "other (student distilled)"]  # fmt: skip
    assert {"distilled (student distilled)", "other (student distilled)"} <= {*page.table("mAP by epoch")["1"]}
    assert [one["name"] for one in json.loads(out)["detectors"]] == names
    assert list(page.table("AP of each class")["mean (mAP)"]) == names
    assert {"Guidance: distilled", "Guidance: other"} <= {*page.text}


def test_the_table_of_the_exported_forms_is_read_tolerantly(runs, tmp_path, command_line):
    rows = [
        {"form": "ONNX FP32", "MB": 14.06, "mAP": 0.3121, "drop": 0.0, "p50": 13.66, "p90": 21.8, "images/s": 61.9,
         "device": "cpu", "agreement": 0.999, "threads": 4},
        {"form": "ONNX INT8", "size_mb": 3.9, "mAP": None, "notes": ["x"]},
    ]  # fmt: skip
    (tmp_path / "report.json").write_text(json.dumps({"device": "cpu", "rows": rows}))
    page = tmp_path / "page.html"
    code, _, error = command_line("report", runs, "--output", page, "--images", 0, "--deploy", tmp_path)
    assert code == 0, error
    shown = Page(page).table("Exported forms")
    assert shown["ONNX FP32"] == {"MB": "14.1", "mAP": "0.312", "drop, points": "0.00", "p50 ms": "13.7",
                                  "p90 ms": "21.8", "images/s": "61.9", "device": "cpu", "agreement": "0.999",
                                  "threads": "4"}  # fmt: skip
    assert shown["ONNX INT8"]["MB"] == "3.9"
    assert shown["ONNX INT8"]["mAP"] == "-"
    of_deploy = {"form": "int8-cpu", "file": "a.onnx", "backend": "openvino", "device": "cpu", "size_bytes": 4_230_000,
                 "file_sha256": "00", "mean_average_precision": 31.06, "drop": 0.15, "agreement": 0.9876,
                 "p50_ms": 8.04, "p90_ms": 9.46, "images_per_second": 121.34, "speedup": 2.515, "requires": [],
                 "fault": None}  # fmt: skip
    rows = [of_deploy, {**of_deploy, "form": "b"}]
    (written := tmp_path / "report.json").write_text(json.dumps({"notes": ["x"], "rows": rows}))
    code, _, error = command_line("report", runs, "--output", page, "--images", 0, "--deploy", written)
    assert code == 0, error
    assert Page(page).table("Exported forms")["int8-cpu"] == {
        "backend": "openvino", "device": "cpu", "MB": "4.2", "mAP": "0.311", "drop, points": "0.15",
        "agreement": "0.988", "p50 ms": "8.0", "p90 ms": "9.5", "images/s": "121.3", "speedup": "2.52",
    }  # fmt: skip
    (tmp_path / "report.json").write_text(json.dumps({"rows": [1, 2]}))
    code, _, error = command_line("report", runs, "--output", page, "--images", 0, "--deploy", tmp_path)
    assert (code, error.count("\n")) == (2, 1)
    assert "no row in it names a form" in error


def test_names_of_classes_files_and_folders_are_text(shapes_root, trained, tmp_path, command_line):
    """A class named `<script>` in the data, and a folder named as an image with a handler."""
    evil = "<script>alert(1)</script>"
    data = json.loads((shapes_root / VAL).read_text())
    data["categories"][0]["name"] = evil
    (annotations := tmp_path / "a.json").write_text(json.dumps(data))
    config = json.loads((trained / "config.json").read_text())
    names = [evil if name == "circle" else name for name in config["classes"]]
    split = {**config["data"]["val"], "ann_file": str(annotations), "img_prefix": str(shapes_root / "images"),
             "classes": names, "data_root": None}  # fmt: skip
    config = {**config, "classes": names, "data": {**config["data"], "train": split, "val": split, "test": split}}
    folder = a_run(tmp_path / "<img src=x onerror=alert(2)>", config, read_log(trained / "log.jsonl"))
    code, _, error = command_line("report", folder, "--output", tmp_path / "page.html")
    assert code == 0, error
    page = Page(tmp_path / "page.html")
    assert evil in page.table("Data")
    assert "<img src=x onerror=alert(2)>" in page.text[""]
    assert [name for name, _ in page.elements if name == "script"] == ["script"]
    assert not [name for name, _ in page.elements if name == "img"]
    assert "<script>alert" not in page.source
    assert "</script>" in page.source


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "holds no run"),
        (lambda folder: a_run(folder, {}, []), "no step of this run is logged yet"),
        (lambda folder: (a_run(folder, {}, []) / "config.json").write_text("{"), "not JSON"),
        (lambda folder: (a_run(folder, {}, []) / "result.json").write_text("[]"), "expected an object"),
        (lambda folder: [folder.mkdir(), (folder / "distilled.py").touch()], "nothing was trained in this project yet"),
    ],
)
def test_a_folder_without_a_run_is_refused_in_a_sentence(make, message, tmp_path, command_line):
    folder = tmp_path / "work"
    make(folder)
    for command in (["report", folder, "--output", tmp_path / "page.html"], ["card", folder]):
        code, out, error = command_line(*command)
        assert (code, out, error.count("\n")) == (2, "", 1)
        assert message in error
    assert not (tmp_path / "page.html").exists()


def test_a_run_is_given_once(runs):
    with pytest.raises(TrainError, match="named twice"):
        write.write_report(runs, runs / ".")


def test_pictures_stay_within_their_budget():
    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8)
    assert len(shrunk(noise)) <= MOST_BYTES
    assert len(shrunk(np.zeros((40, 60, 3), np.uint8))) < 2000


def test_compared_pyramids_are_the_adapted_students_and_the_teachers(runs):
    """With the teacher's weights in the student, each adapter gives what it makes of the teacher's features."""
    checkpoint = load_checkpoint(runs / "last.pth")
    cfg = config_from_data(checkpoint.config)
    teacher = load_checkpoint(runs.parent / "teacher" / "best.pth")
    student = build_without_pretrained(cfg.model)
    load_weights(student, teacher)
    distilled = build_distilled(student, cfg, "cpu").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        pairs = distilled.compared_pyramids(images, [{"img_shape": (64, 64, 3)}])
        assert list(pairs) == [8, 16, 32, 64, 128]
        for adapter, (adapted, of_teacher) in zip(distilled.distiller.pyramid.adapters, pairs.values(), strict=True):
            assert torch.allclose(adapted, adapter(of_teacher), atol=1e-4)
            assert not torch.allclose(adapted, of_teacher, atol=1e-2)
