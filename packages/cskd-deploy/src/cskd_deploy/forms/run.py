"""From a checkpoint to a report of its forms: make each file, evaluate it, and time them all in turns.

Each step is kept in a record beside the files (`state.json`), with all that it depends on: what is unchanged is not
done again. A form that fails is a row with its reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cskd_data.errors import CskdError
from cskd_data.files import check_not_input, check_writable, sha256_of_file, write_json
from cskd_data.formats import annotation_files
from cskd_deploy import __version__
from cskd_deploy.accuracy.eval import load_countable, load_dataset
from cskd_deploy.accuracy.evaluate import annotations_sha256, evaluate_model
from cskd_deploy.backends import device_among
from cskd_deploy.backends.tensorrt.driver import Driver
from cskd_deploy.backends.tensorrt.export import export_engine, require_tensorrt
from cskd_deploy.backends.tensorrt.settings import BuildSettings
from cskd_deploy.errors import BackendMissing, DeployError
from cskd_deploy.exporter.onnx import export
from cskd_deploy.exporter.student import load_student, split_files
from cskd_deploy.forms.agreement import agreement
from cskd_deploy.forms.pictures import content_of, training_images
from cskd_deploy.forms.plot import plot_rows
from cskd_deploy.forms.record import Record
from cskd_deploy.forms.report import FormsReport, Row
from cskd_deploy.lower.conversion import FP32, CalibrationSettings
from cskd_deploy.lower.precision import PrecisionPlan
from cskd_deploy.measure.benchmark import MOST_IMAGES, benchmark, images_of
from cskd_deploy.measure.environment import describe, thread_count, versions
from cskd_deploy.measure.plot import check_plot
from cskd_deploy.model.manifest import GraphForm
from cskd_deploy.model.onnx_file import read_model
from cskd_deploy.outputs import check_apart
from cskd_deploy.progress import Begin, silent

STATE, JSON, TEXT, REFERENCE = "state.json", "report.json", "report.md", "pytorch.json"
FOR_ENGINES = ("fp32", "fp16", "int8-tensorrt")
PLANS = {
    plan.name: plan
    for plan in (
        PrecisionPlan(),
        PrecisionPlan("fp16"),
        PrecisionPlan("int8", "cpu"),
        PrecisionPlan("int8", "tensorrt"),
    )
}


@dataclass(frozen=True)
class Settings:
    """What a report is made with."""

    ann: Path | None = None  # None: what the checkpoint's config names as val
    images: Path | None = None
    calibration: CalibrationSettings | None = None  # None: the training images that the config names
    calibration_count: int = CalibrationSettings.count  # of those
    input_sizes: Sequence[tuple[int, int]] = ()
    graph: GraphForm = field(default_factory=lambda: GraphForm(input="uint8"))
    limit: int | None = None
    device: str | None = None
    threads: int | None = None
    duration: float = 3.0


@dataclass
class _Subject:
    """A file in a backend, on its way to a row."""

    form: str
    path: Path
    backend: str
    row: Row


def report_forms(
    checkpoint: Path,
    output: Path,
    settings: Settings,
    say: Callable[[str], None] = lambda line: None,
    progress: Begin = silent,
    plot_file: Path | None = None,
) -> FormsReport:
    """Make, evaluate and time every form that this machine can make.

    Args:
        checkpoint: of cskd-train, with its config.
        output: folder for the files, `report.json`, `report.md` and the record of what is done.
        say: called with a line for each step.
        plot_file: a picture of latency against mAP.

    Raises:
        DeployError, DataError: the checkpoint, the images, `output` or `plot_file` cannot be used, or PyTorch or FP32
            fails.
        BackendMissing: torch, cskd-train, onnx, onnxruntime or, for a picture, matplotlib is not installed.
    """
    run = _Run(checkpoint, output, settings, say, progress, plot_file)
    report = run.report()
    if plot_file is not None:
        plot_rows(report.rows, plot_file)
    return report


class _Run:
    def __init__(
        self,
        checkpoint: Path,
        output: Path,
        settings: Settings,
        say: Callable[[str], None],
        progress: Begin,
        plot_file: Path | None,
    ) -> None:
        student = load_student(checkpoint)
        self._checkpoint, self._sha256, self._output = checkpoint, student.sha256, output
        ann, images = split_files(student, "val") if settings.ann is None else (settings.ann, settings.images)
        if ann is None:
            raise DeployError(f"the config in {checkpoint} names no one file of validation images: give --ann")
        calibration, self._uncalibrated = settings.calibration, ""
        if calibration is None:
            calibration, self._uncalibrated = training_images(student, settings.calibration_count)
        pictures = [] if calibration is None else calibration.paths(student.classes)
        self._dataset = load_countable(ann, images, student.classes, settings.limit)
        self._timed = self._dataset
        if settings.limit is not None:  # of the evaluation alone
            self._timed, _ = load_dataset(ann, images, student.classes, max(settings.limit, MOST_IMAGES))
        self._settings = dataclasses.replace(
            settings, ann=ann, images=images, calibration=calibration, threads=thread_count(settings.threads)
        )
        self._images = images_of(self._dataset)
        self._content, self._pictures = content_of(self._images), content_of(pictures)
        read = [checkpoint, *annotation_files(ann), *(calibration.files if calibration else ()), *self._images]
        for name in (STATE, JSON, TEXT, REFERENCE):
            check_not_input(output / name, read)
        if plot_file is not None:
            check_apart({"--plot": [plot_file], "--output": [output / name for name in (STATE, JSON, TEXT, REFERENCE)]})
            check_plot(plot_file, [*read, *pictures])
        check_writable(output / STATE)
        self._say, self._progress = say, progress
        self._record = Record(output / STATE)
        self._notes: list[str] = []
        if self._uncalibrated:
            self._notes.append(f"{self._uncalibrated}: FP16 is compared with FP32 on random ones, INT8 needs them")

    def report(self) -> FormsReport:
        files, rows = self._files()
        subjects = [_Subject(FP32, self._checkpoint, "pytorch", Row(FP32, self._checkpoint.name, "pytorch"))]
        for backend in ("onnxruntime", *self._openvino()):
            subjects += [_subject(form, path, backend) for form, path in files.items()]
        engines, failed = self._engines(files)
        subjects += [_subject(form, path, "tensorrt") for form, path in engines.items()]
        names = [subject.backend for subject in subjects]
        for subject in subjects:
            self._evaluate(subject, names)
        bench = self._bench(subjects)
        report = FormsReport(
            checkpoint=str(self._checkpoint),
            sha256=self._sha256,
            evaluated_on=str(self._settings.ann),
            images=len(self._images),
            timed_on=bench.get("images", "nothing"),
            environment=bench.get("environment") or describe(thread_count(self._settings.threads)),
            rows=[*(subject.row for subject in subjects), *rows, *failed],
            notes=list(dict.fromkeys([*self._notes, *(note for note in bench.get("notes", []) if "p99" not in note)])),
        )
        write_json(self._output / JSON, report.to_dict())
        (self._output / TEXT).write_text(f"{report}\n", encoding="utf-8")
        return report

    # The files

    def _files(self) -> tuple[dict[str, Path], list[Row]]:
        """The ONNX file of each form, and rows of those that cannot be made. FP32 must be."""
        settings = self._settings
        fp32 = self._output / f"{self._checkpoint.stem}{PLANS[FP32].suffix}"
        shape = {"input_sizes": [list(size) for size in settings.input_sizes], **dataclasses.asdict(settings.graph)}

        def to_fp32() -> Mapping[str, Any]:
            made = export(
                self._checkpoint, fp32, None, settings.input_sizes, self._say, settings.graph, "cpu", for_engine=False
            )
            return {"size_bytes": made.size_bytes}

        self._record.done(f"make {FP32}", {"checkpoint": self._sha256, **self._version(), **shape}, to_fp32, fp32)
        files, failed = {FP32: fp32}, []
        for form, plan in PLANS.items():
            if not plan.is_plain:
                path = self._output / f"{self._checkpoint.stem}{plan.suffix}"
                fault = self._attempt(f"making {form}", partial(self._lower, fp32, plan, path))
                if fault is None:
                    files[form] = path
                else:
                    failed.append(Row(form, path.name, "onnxruntime", fault=fault))
        return files, failed

    def _lower(self, fp32: Path, plan: PrecisionPlan, path: Path) -> None:
        calibration = self._settings.calibration
        if plan.precision == "int8" and calibration is None:
            raise DeployError(f"{self._uncalibrated}: give --calibration-images or --calibration-ann")

        def make() -> Mapping[str, Any]:
            made = dataclasses.replace(plan, calibration=calibration)
            return made.convert(fp32, path, self._say, self._warn, self._progress).to_dict()

        settings = {"source": sha256_of_file(fp32), **self._version(), "pictures": self._pictures}
        self._record.done(f"make {plan.name}", settings, make, path)

    def _openvino(self) -> tuple[str, ...]:
        from cskd_deploy.backends.openvino import import_openvino

        try:
            import_openvino()
        except BackendMissing as error:
            self._notes.append(f"not in OpenVINO: {error}")
            return ()
        return ("openvino",)

    def _engines(self, files: Mapping[str, Path]) -> tuple[dict[str, Path], list[Row]]:
        """An engine of each form that TensorRT takes, where it is there."""
        try:
            driver = require_tensorrt()
        except DeployError as error:
            self._notes.append(str(error))
            return {}, []
        engines, failed = {}, []
        for form in FOR_ENGINES:
            if form not in files:
                continue
            path = files[form].with_suffix(".engine")
            fault = self._attempt(f"an engine of {form}", partial(self._engine, form, files[form], path, driver))
            if fault is None:
                engines[form] = path
            else:
                failed.append(Row(form, path.name, "tensorrt", fault=fault))
        return engines, failed

    def _engine(self, form: str, source: Path, path: Path, driver: Driver) -> None:
        def make() -> Mapping[str, Any]:
            self._say(f"building an engine of {source.name}")
            with self._progress("report: TensorRT", "%") as count:
                return export_engine(source, path, BuildSettings(), count).to_dict()

        settings = {
            "source": sha256_of_file(source),
            **self._version(),
            "gpu": str(driver.gpus[0]),
            "tensorrt": versions(("tensorrt", "tensorrt-cu12", "tensorrt-cu13")),
        }
        self._record.done(f"make engine {form}", settings, make, path)

    # What they find, and how fast

    def _evaluate(self, subject: _Subject, backends: Sequence[str]) -> None:
        settings, is_first = self._settings, subject.backend == "pytorch"
        device = device_among(subject.backend, backends, settings.device)
        found, reference = self._detections(subject), self._output / REFERENCE
        sha256 = sha256_of_file(subject.path)

        def evaluate() -> Mapping[str, Any]:
            self._say(f"evaluating {subject.form} in {subject.backend}")
            result = evaluate_model(
                subject.path,
                settings.ann or subject.path,
                settings.images,
                None if is_first else reference,
                backend=subject.backend,
                limit=settings.limit,
                output=found,
                warn=self._warn if is_first else lambda line: None,
                progress=self._progress,
                device=device,
                threads=settings.threads,
            )
            return result.to_dict()

        depends = {
            "file": sha256,
            "annotations": annotations_sha256(self._dataset),
            "images": self._content,
            "limit": settings.limit,
            "device": device,
            **self._version(),
            "runtimes": versions(("onnxruntime", "onnxruntime-gpu", "openvino", "torch", "tensorrt")),
            "reference": None if is_first else sha256_of_file(reference),
        }
        results: list[dict[str, Any]] = []
        step = f"evaluate {subject.form} in {subject.backend}"
        fault = self._attempt(step, lambda: results.append(self._record.done(step, depends, evaluate, found)))
        size = subject.path.stat().st_size
        if fault is not None:
            if is_first:
                raise DeployError(fault)
            subject.row = dataclasses.replace(subject.row, size_bytes=size, file_sha256=sha256, fault=fault)
            return
        (result,) = results
        if is_first:
            write_json(reference, result)
        self._notes += [note for note in result["notes"] if not note.startswith("the reference is the result of")]
        subject.row = dataclasses.replace(
            subject.row,
            device=result["device"],
            size_bytes=size,
            file_sha256=sha256,
            mean_average_precision=100 * result["metrics"]["bbox_mAP"],
            drop=result["drop_points"],
            agreement=None if is_first else agreement(self._output / "pytorch.detections.json", found),
            requires=() if is_first or subject.backend == "tensorrt" else read_model(subject.path)[1].requires,
        )

    def _detections(self, subject: _Subject) -> Path:
        name = "pytorch" if subject.backend == "pytorch" else f"{subject.form}.{subject.backend}"
        return self._output / f"{name}.detections.json"

    def _bench(self, subjects: Sequence[_Subject]) -> dict[str, Any]:
        """Latencies into the rows; the benchmark as plain data."""
        settings, running = self._settings, [subject for subject in subjects if subject.row.fault is None]
        files = list(dict.fromkeys(subject.path for subject in running if subject.backend != "pytorch"))
        backends = list(dict.fromkeys(subject.backend for subject in running if subject.backend != "pytorch"))
        skip = {(subject.path, subject.backend) for subject in subjects if subject.row.fault is not None}

        def time() -> Mapping[str, Any]:
            self._say(f"timing {len(running)} forms in turns")
            return benchmark(
                files,
                self._timed,
                reference=self._checkpoint,
                backends=backends,
                duration=settings.duration,
                cold=False,
                progress=self._progress,
                device=settings.device,
                threads=settings.threads,
                skip=skip,
            ).to_dict()

        machine = describe(thread_count(settings.threads))
        depends = {
            "rows": [[subject.row.file_sha256, subject.backend, subject.row.device] for subject in running],
            "duration": settings.duration,
            "images": [str(self._timed.source), content_of(images_of(self._timed)[:MOST_IMAGES])],
            "machine": {name: machine[name] for name in ("processor", "threads", "gpus", "versions", "power_mode")},
        }
        results: list[dict[str, Any]] = []
        fault = self._attempt("timing", lambda: results.append(self._record.done("bench", depends, time)))
        if fault is not None:
            self._notes.append(f"not timed: {fault}")
            return {}
        (result,) = results
        timed = {(one["file_sha256"], one["backend"]): one for one in result["results"]}
        for subject in running:
            one = timed[subject.row.file_sha256, subject.backend]
            whole, speedup = one["milliseconds"]["total"], one["speedup"]
            subject.row = dataclasses.replace(
                subject.row,
                device=one["device"],
                size_bytes=one["size_bytes"],
                p50_ms=whole["p50"],
                p90_ms=whole["p90"],
                images_per_second=one["images_per_second"],
                speedup=None if speedup is None else speedup["total"],
            )
        return result

    # Steps

    def _attempt(self, what: str, step: Callable[[], object]) -> str | None:
        """Do a step; why it failed, if it did."""
        try:
            step()
        except CskdError as error:
            fault = str(error)
        except Exception as error:  # of a converter or a runtime: the other forms are still wanted
            fault = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            return None
        self._say(f"{what} failed: {fault}")
        return fault

    def _warn(self, line: str) -> None:
        self._say(f"warning: {line}")

    @staticmethod
    def _version() -> dict[str, str]:
        return {"cskd-deploy": __version__}


def _subject(form: str, path: Path, backend: str) -> _Subject:
    return _Subject(form, path, backend, Row(form, path.name, backend))
