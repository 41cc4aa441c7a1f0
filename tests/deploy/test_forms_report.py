"""`cskd-deploy report`: every form a row, nothing done twice, and no form's failure the end."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import cskd_deploy
from cskd_data.images import read_image
from cskd_deploy.errors import BackendMissing, CheckFailed, DeployError
from cskd_deploy.forms import run as forms
from cskd_deploy.forms.plot import plot_rows
from cskd_deploy.forms.record import Record
from cskd_deploy.forms.report import Row
from cskd_deploy.lower.precision import PrecisionPlan
from cskd_deploy.measure.environment import describe

from .engines import ORIN
from .students import student_config, write_checkpoint

CLASSES = ("circle", "square")


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    monkeypatch.setattr("cskd_deploy.measure.bench.TURN_SECONDS", 0.001)
    monkeypatch.setattr("cskd_deploy.measure.bench.WARM_UP_SECONDS", 0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory, shapes_root) -> Path:
    """A data set whose boxes `checkpoint` fills in."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    for path in sorted((shapes_root / "images").iterdir())[:4]:
        shutil.copy(path, root / "images")
    return root


def config_of(data: Path) -> dict[str, Any]:
    """Of a narrow student, with its training and validation images below a folder."""
    config = student_config(CLASSES, (64, 64), width=8, candidates=50)
    split = {"type": "CocoDataset", "classes": CLASSES, "data_root": str(data), "img_prefix": "images/", "pipeline": []}
    config["data"] |= {name: {**split, "ann_file": f"{name}.json"} for name in ("train", "val")}
    return config


@pytest.fixture(scope="module")
def checkpoint(data) -> Path:
    """A student whose config names its validation and training images; two thirds of its detections are annotated."""
    path = write_checkpoint(data / "best.pth", CLASSES, config_of(data))
    images, boxes = [], []
    with cskd_deploy.load(path, device="cpu") as detector:
        for number, file in enumerate(sorted((data / "images").iterdir()), start=1):
            image = read_image(file)
            images.append({"id": number, "file_name": file.name, "height": image.shape[0], "width": image.shape[1]})
            found = detector.detect(image)
            sides = found.boxes[:, 2:] - found.boxes[:, :2]
            for place in np.flatnonzero(sides.min(axis=1) > 2)[::3]:
                x1, y1, x2, y2 = found.boxes[place].tolist()
                box = {"image_id": number, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
                label = int(found.labels[place])
                boxes.append({**box, "id": len(boxes) + 1, "category_id": label + 1, "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    content = json.dumps({"images": images, "annotations": boxes, "categories": categories})
    for name in ("train", "val"):
        (data / f"{name}.json").write_text(content)
    return path


@pytest.fixture
def no_openvino(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)


def test_every_form_is_a_row_and_a_second_run_does_nothing(
    deploy, checkpoint, data, tmp_path, monkeypatch, no_openvino
):
    """FP16 fails here, as a form may."""
    convert = PrecisionPlan.convert

    def failing(self: PrecisionPlan, *arguments: Any) -> Any:
        if self.precision == "fp16":
            raise CheckFailed("fp16 does not find what the file that it is made of finds")
        return convert(self, *arguments)

    plans = {name: plan for name, plan in forms.PLANS.items() if name != "int8-tensorrt"}
    monkeypatch.setattr(forms, "PLANS", plans)
    monkeypatch.setattr(PrecisionPlan, "convert", failing)
    output = tmp_path / "forms"
    line = ("report", checkpoint, "--output", output, "--duration", 0, "--threads", 1, "--device", "cpu")
    done = deploy(*line, "--plot", tmp_path / "forms.svg")
    assert done.code == 0, done.err
    report = json.loads((output / "report.json").read_text())
    rows = report["rows"]
    assert [(row["form"], row["backend"]) for row in rows] == [
        ("fp32", "pytorch"),
        ("fp32", "onnxruntime"),
        ("int8-cpu", "onnxruntime"),
        ("fp16", "onnxruntime"),
    ]
    assert "does not find what" in rows[3]["fault"]
    assert rows[3]["mean_average_precision"] is rows[3]["p50_ms"] is None
    own = cskd_deploy.evaluate(
        output / "best.int8-cpu.onnx", data / "val.json", data / "images", device="cpu", threads=1
    )
    assert rows[2]["mean_average_precision"] == pytest.approx(100 * own.metrics.mean_average_precision)
    first = rows[0]["mean_average_precision"]
    assert 10 < first <= 100
    assert rows[0]["drop"] is None
    for row in rows[1:3]:
        assert row["drop"] == pytest.approx(first - row["mean_average_precision"])
        assert row["size_bytes"] == (output / row["file"]).stat().st_size
        assert 0 < row["p50_ms"] <= row["p90_ms"]
        assert row["device"] == "cpu"
        assert row["speedup"] > 0
    assert rows[1]["agreement"] == 1
    assert rows[1]["drop"] == pytest.approx(0, abs=1e-3)
    assert report["environment"]["instruction_sets"] == describe(1)["instruction_sets"]
    assert any("OpenVINO cannot be imported" in note for note in report["notes"])
    assert (output / "report.md").read_text().strip() in done.out
    table = [line for line in done.out.splitlines() if line.startswith("|")]
    assert len(table) == 6
    assert len({len(line) for line in table}) == 1
    svg = (tmp_path / "forms.svg").read_text()
    assert svg.count("<!-- int8-cpu, onnxruntime cpu -->") == 1

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("done again")

    for name in ("export", "evaluate_model", "benchmark"):
        monkeypatch.setattr(forms, name, refuse)
    assert deploy(*line).code == 0
    assert json.loads((output / "report.json").read_text()) == report


class Doors:
    """The doors that a report goes through, as doubles that write files; what went through them, in order."""

    def __init__(self, monkeypatch: Any) -> None:
        self.calls: list[str] = []
        self.failing: dict[str, Exception] = {}
        self.skipped: set[tuple[str, str]] = set()
        monkeypatch.setattr(forms, "export", self.export)
        monkeypatch.setattr(PrecisionPlan, "convert", lambda plan, *rest: self.convert(plan, *rest))
        monkeypatch.setattr(forms, "export_engine", self.export_engine)
        monkeypatch.setattr(forms, "require_tensorrt", self.require_tensorrt)
        monkeypatch.setattr(forms, "evaluate_model", self.evaluate)
        monkeypatch.setattr(forms, "benchmark", self.benchmark)
        monkeypatch.setattr(forms, "read_model", lambda path: (b"", SimpleNamespace(requires=("vnni",))))
        monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace())

    def _called(self, call: str) -> None:
        self.calls.append(call)
        if call in self.failing:
            raise self.failing[call]

    def export(self, source: Path, path: Path, *rest: Any, **options: Any) -> Any:
        self._called("make fp32")
        self.export_arguments = (*rest, options)
        path.write_bytes(b"fp32")
        return SimpleNamespace(size_bytes=4)

    def convert(self, plan: PrecisionPlan, source: Path, path: Path, *_: Any) -> Any:
        self._called(f"make {plan.name}")
        self.calibration = plan.calibration
        path.write_bytes(plan.name.encode())
        return SimpleNamespace(to_dict=dict)

    def require_tensorrt(self) -> Any:
        if "tensorrt" in self.failing:
            raise self.failing["tensorrt"]
        return ORIN

    def export_engine(self, onnx: Path, path: Path, *_: Any) -> Any:
        self._called(f"build {path.name}")
        path.write_bytes(b"engine of " + onnx.read_bytes())
        return SimpleNamespace(to_dict=dict)

    def evaluate(self, model: Path, ann: Path, images: Path, reference: Path | None, **options: Any) -> Any:
        self._called(f"evaluate {model.name} {options['backend']} {options['device']} {options['limit']}")
        self.evaluated_on = ann, images
        options["output"].write_text("[]")
        points = {"metrics": {"bbox_mAP": 0.5}, "drop_points": None if reference is None else 1.0, "notes": []}
        return SimpleNamespace(to_dict=lambda: {**points, "device": "cpu"})

    def benchmark(self, files: list[Path], images: Path, **options: Any) -> Any:
        self._called("bench")
        self.skipped = {(path.name, backend) for path, backend in options["skip"]}
        pairs = [(options["reference"], "pytorch")]
        for path in files:
            engine = path.suffix == ".engine"
            names = [name for name in options["backends"] if (name == "tensorrt") == engine]
            pairs += [(path, name) for name in names if (path, name) not in options["skip"]]
        results = [
            {
                "file_sha256": forms.sha256_of_file(path),
                "backend": backend,
                "device": "cpu",
                "size_bytes": path.stat().st_size,
                "milliseconds": {"total": {"p50": 2.0, "p90": 3.0}},
                "images_per_second": 500.0,
                "speedup": None,
            }
            for path, backend in pairs
        ]
        data = {"results": results, "images": "images", "environment": describe(1), "notes": []}
        return SimpleNamespace(to_dict=lambda: data)


@pytest.fixture
def doors(monkeypatch) -> Doors:
    return Doors(monkeypatch)


@pytest.fixture
def made(checkpoint, tmp_path) -> Callable[..., list[Row]]:
    def report(**settings: Any) -> list[Row]:
        found = forms.report_forms(checkpoint, tmp_path / "forms", forms.Settings(**{"threads": 1, **settings}))
        return list(found.rows)

    return report


def test_engines_and_openvino_have_rows_of_their_own(doors, made, data):
    rows = made()
    four = ["fp32", "fp16", "int8-cpu", "int8-tensorrt"]
    assert [(row.form, row.backend) for row in rows] == [
        ("fp32", "pytorch"),
        *((form, "onnxruntime") for form in four),
        *((form, "openvino") for form in four),
        *((form, "tensorrt") for form in ("fp32", "fp16", "int8-tensorrt")),
    ]
    assert [row.requires for row in rows[:2]] == [(), ("vnni",)]
    assert all((row.p50_ms, row.p90_ms, row.images_per_second, row.fault) == (2, 3, 500, None) for row in rows)
    # What the config names.
    assert doors.evaluated_on == (data / "val.json", data / "images")
    assert doors.calibration == forms.CalibrationSettings(data / "images", data / "train.json", 64)


def test_only_what_is_changed_is_done_again(doors, made, tmp_path):
    made()
    doors.calls.clear()
    made()
    assert doors.calls == []
    (tmp_path / "forms" / "best.int8-cpu.onnx").write_bytes(b"damaged")
    made()
    assert doors.calls == ["make int8-cpu"]  # and got its content back, which was evaluated and timed before
    doors.calls.clear()
    made(limit=2)
    assert {call.split()[0] for call in doors.calls} == {"evaluate"}
    assert len(doors.calls) == 12
    doors.calls.clear()
    made(limit=2, duration=1.0)
    assert doors.calls == ["bench"]
    doors.calls.clear()
    made(limit=2, duration=1.0, calibration_count=2)
    assert doors.calls == ["make fp16", "make int8-cpu", "make int8-tensorrt"]
    doors.calls.clear()
    made(limit=2, duration=1.0, calibration_count=2, input_sizes=[(64, 64)])
    assert doors.calls == ["make fp32"]
    assert doors.export_arguments[1] == [(64, 64)]


def test_a_run_that_was_stopped_goes_on_where_it_was(doors, made):
    doors.failing["bench"] = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        made()
    doors.failing.clear()
    doors.calls.clear()
    made()
    assert doors.calls == ["bench"]


def test_a_form_that_fails_is_a_row_with_its_reason_and_is_not_timed(doors, made):
    doors.failing = {
        "make fp16": RuntimeError("an operator\nand more"),
        "build best.int8-tensorrt.engine": CheckFailed("the engine finds other things"),
        "evaluate best.int8-cpu.onnx openvino None None": DeployError("it cannot be loaded"),
    }
    rows = made()
    faults = {(row.form, row.backend): row.fault for row in rows if row.fault}
    assert faults == {
        ("fp16", "onnxruntime"): "RuntimeError: an operator",
        ("int8-tensorrt", "tensorrt"): "the engine finds other things",
        ("int8-cpu", "openvino"): "it cannot be loaded",
    }
    assert doors.skipped == {("best.int8-cpu.onnx", "openvino")}
    assert [row.p50_ms for row in rows if row.fault] == [None] * 3
    doors.calls.clear()
    doors.failing.clear()
    made()  # what failed is tried again
    assert {"make fp16", "build best.fp16.engine", "build best.int8-tensorrt.engine"} < set(doors.calls)
    assert "make fp32" not in doors.calls


def test_without_tensorrt_it_is_a_note_and_without_fp32_the_end(doors, made, checkpoint, tmp_path):
    doors.failing["tensorrt"] = BackendMissing("no engine can be built here: there is no driver")
    found = forms.report_forms(checkpoint, tmp_path / "forms", forms.Settings(threads=1))
    assert "no engine can be built here: there is no driver" in found.notes
    assert {row.backend for row in found.rows} == {"pytorch", "onnxruntime", "openvino"}
    shutil.rmtree(tmp_path / "forms")
    doors.failing["make fp32"] = DeployError("its operators cannot be exported")
    with pytest.raises(DeployError, match="its operators cannot be exported"):
        made()


def test_what_cannot_be_timed_is_a_note(doors, checkpoint, tmp_path):
    doors.failing["bench"] = DeployError("the memory is full")
    found = forms.report_forms(checkpoint, tmp_path / "forms", forms.Settings(threads=1))
    assert "not timed: the memory is full" in found.notes
    assert found.rows[1].mean_average_precision == 50
    assert "| fp32          | onnxruntime cpu |" in str(found)


def test_on_an_intel_gpu_the_others_run_on_the_processor(doors, made):
    made(device="gpu")
    devices = {tuple(call.split()[2:4]) for call in doors.calls if call.startswith("evaluate")}
    assert devices == {("pytorch", "cpu"), ("onnxruntime", "cpu"), ("openvino", "gpu"), ("tensorrt", "cpu")}


def without(data: Path, split: str) -> Path:
    """The student with a config that does not name a split."""
    config = student_config(CLASSES, (64, 64), width=8, candidates=50)
    there = {"type": "CocoDataset", "classes": CLASSES, "data_root": str(data), "img_prefix": "images/", "pipeline": []}
    config["data"] |= {name: {**there, "ann_file": f"{name}.json"} for name in ("train", "val") if name != split}
    return write_checkpoint(data / f"without_{split}.pth", CLASSES, config)


def test_what_the_config_does_not_name_has_to_be_given(doors, deploy, checkpoint, data, tmp_path):
    done = deploy("report", without(data, "val"), "--output", tmp_path / "a")
    assert done.code == 2
    assert "names no one file of validation images: give --ann" in done.err
    assert doors.calls == []
    line = ("report", without(data, "train"), "--output", tmp_path / "b", "--json")
    done = deploy(*line)
    assert done.code == 0, done.err
    faults = {row["form"]: row["fault"] for row in json.loads(done.out)["rows"] if row["fault"]}
    assert set(faults) == {"int8-cpu", "int8-tensorrt"}
    assert "give --calibration-images" in faults["int8-cpu"]
    done = deploy(*line, "--calibration-images", data / "images", "--calibration-count", 3)
    assert not any(row["fault"] for row in json.loads(done.out)["rows"])
    assert doors.calibration == forms.CalibrationSettings(data / "images", None, 3)


def test_images_that_the_config_leaves_to_be_looked_for_are_calibrated_on(doors, deploy, data, tmp_path):
    config = student_config(CLASSES, (64, 64), width=8, candidates=50)
    split = {"type": "CocoDataset", "classes": CLASSES, "img_prefix": None, "pipeline": []}
    config["data"] |= {name: {**split, "ann_file": str(data / f"{name}.json")} for name in ("train", "val")}
    student = write_checkpoint(data / "looked_for.pth", CLASSES, config)
    done = deploy("report", student, "--output", tmp_path, "--json")
    assert done.code == 0, done.err
    assert not any(row["fault"] for row in json.loads(done.out)["rows"])
    assert doors.calibration == forms.CalibrationSettings(None, data / "train.json", 64)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--images", "x"), "--images is the folder of the images of --ann: give that too"),
        (("--calibration-ann", "x"), "annotation file x does not exist"),
        (("--calibration-images", "x"), "image folder x does not exist"),
        (("--ann", "missing.json"), "missing.json"),
        (("--plot", "forms"), "--plot forms would take the place of the folder of --output forms/state.json"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_made(
    options, words, doors, deploy, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    done = deploy("report", checkpoint, "--output", "forms", *options)
    assert done.code == 2
    assert words in done.err
    assert doors.calls == []
    assert not (tmp_path / "forms").exists()


def test_a_picture_needs_matplotlib_before_anything_is_made(doors, deploy, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = deploy("report", checkpoint, "--plot", tmp_path / "forms.svg", "--output", tmp_path / "forms")
    assert done.code == 3
    assert "pip install matplotlib" in done.err
    assert doors.calls == []


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 99, "steps": {}}', '{"schema": 1, "steps": 3}'])
def test_a_record_of_another_kind_is_refused(text, tmp_path):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(DeployError, match="take it away, or give another --output"):
        Record(tmp_path / "state.json")


def test_a_picture_without_points_and_of_an_unknown_kind(tmp_path):
    row = Row("fp32", "a.onnx", "onnxruntime", "cpu", mean_average_precision=40.0, p50_ms=2.0, p90_ms=3.0)
    with pytest.raises(DeployError, match="no form has both"):
        plot_rows([Row("fp32", "a.onnx", "onnxruntime")], tmp_path / "a.svg")
    plot_rows([row], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
