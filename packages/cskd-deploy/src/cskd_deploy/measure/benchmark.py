"""A benchmark from files to its report: models in backends, timed in turns in one process, and once cold each."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cskd_data.dataset import Dataset
from cskd_data.files import sha256_of_file
from cskd_data.images import list_images, read_image
from cskd_deploy.arguments import at_least, several, whole
from cskd_deploy.backends import backend_for, backend_name, beside, device_among, runs
from cskd_deploy.backends.onnxruntime_settings import OrtSettings
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import DeployError
from cskd_deploy.measure import environment
from cskd_deploy.measure.bench import check_comparable, differences, measure, random_images
from cskd_deploy.measure.cold_start import ColdStart, measure_cold
from cskd_deploy.measure.report import BenchReport, notes_on_samples
from cskd_deploy.measure.streams import Streams
from cskd_deploy.progress import Begin, silent

MOST_IMAGES = 32  # held decoded in memory


@dataclass(frozen=True)
class Subject:
    """A file in a backend."""

    path: Path
    backend: str
    options: dict[str, Any]


def benchmark(
    models: Sequence[Path],
    images: Path | Dataset | None = None,
    *,
    reference: Path | None = None,
    backends: Sequence[str] = (),
    batches: Sequence[int] = (),
    streams: Sequence[int] = (),
    duration: float = 3.0,
    iterations: int = 10,
    warmup: float | None = None,
    mlperf: bool = False,
    cold: bool = True,
    force: bool = False,
    progress: Begin = silent,
    device: str | None = None,
    threads: int | None = None,
    ort: OrtSettings | None = None,
    skip: Collection[tuple[Path, str]] = (),
    **options: Any,
) -> BenchReport:
    """Time models in turns.

    Args:
        images: folder of images, or a data set; None takes seeded random ones.
        reference: a checkpoint to time in PyTorch in the same run.
        backends: run each file in those of them that run it; by default in the one for its name.
        batches, duration, iterations, warmup, mlperf: as `measure.bench.measure`; seconds.
        streams: each exported file also in so many streams at a time, which share `threads` where that is None, else
            have so many each.
        cold: time a process of its own for each model, too.
        force: time files that do different work; what differs is a note.
        progress: as `cskd_deploy.progress.Progress`.
        skip: files with backends that they do not run in here.
        device, threads, ort, options: of `backends.backend_for`. A checkpoint runs on the device of the first model.

    Raises:
        DeployError: a file cannot be used, not in these backends, or not in these batches; the files do different work.
        BackendMissing: a runtime is not installed.
        DataError: an image cannot be read.
    """
    each, threads = threads, environment.thread_count(threads)
    backends = several(backends)
    batches, streams = (
        tuple(whole(one, name) for one in several(given))
        for name, given in (("batches", batches), ("streams", streams))
    )
    duration, iterations = at_least(duration, "duration"), whole(iterations, "iterations")
    warmup = None if warmup is None else at_least(warmup, "warmup")
    if not models:
        raise DeployError("there is no model to time: give one at least")
    ort = ort or OrtSettings()
    options = {**options, "device": device, "threads": threads, "ort": ort}
    # Checkpoints come last: they get their images on the canvases of the first exported file.
    files = sorted([*models, *([reference] if reference else [])], key=lambda path: backend_name(path) == "pytorch")
    subjects = [one for one in _subjects(files, backends, options) if (one.path, one.backend) not in skip]
    with contextlib.ExitStack() as stack:
        stack.callback(cv2.setNumThreads, cv2.getNumThreads())
        cv2.setNumThreads(threads)
        detectors: list[Detector] = []
        for subject in subjects:
            if backend_name(subject.path) == "pytorch" and detectors:
                subject.options["like"] = detectors[0].manifest
                subject.options["device"] = beside(device, detectors[0].backend)
            backend = stack.enter_context(backend_for(subject.path, subject.backend, **subject.options))
            subject.options["device"] = backend.device  # that of its cold start
            detectors.append(Detector(backend))
        notes = _unlike(detectors, force)
        groups, without = _streams(subjects, streams, each or 0, stack)
        notes += without
        size = detectors[0].manifest.preprocessing.input_size
        largest = max([*batches, *(detector.batch() for detector in detectors)])
        decoded, source = _images(images, size, largest)
        starts, failures = _cold_starts(subjects) if cold else ({}, [])
        with progress("bench", "s measured") as count:
            results = measure(
                detectors,
                decoded,
                batches=batches,
                duration=duration,
                iterations=iterations,
                warmup=warmup,
                mlperf=mlperf,
                streams=groups,
                progress=count,
            )
        notes += dict.fromkeys(note for detector in detectors for note in detector.backend.notes)
        notes += [*failures, *_notes(detectors), *notes_on_samples(results)]
    for one in results:
        one.cold = starts.get((one.path, one.backend))
        one.sha256 = sha256_of_file(Path(one.path))
    settings = {**environment.describe(threads), "onnxruntime_settings": str(ort)}
    return BenchReport(results, settings, source, size, notes)


def _subjects(files: Sequence[Path], backends: Sequence[str], options: Mapping[str, Any]) -> list[Subject]:
    """Each file in each backend that was asked for and runs it."""
    # A checkpoint has one backend, and is there to be compared with.
    chosen = {path: [name for name in backends if runs(name, path)] for path in files}
    subjects = []
    for path in dict.fromkeys(files):
        natural = backend_name(path)
        names = chosen[path] or ([natural] if not backends or natural == "pytorch" else [])
        if not names:
            raise DeployError(f"{path} runs in {natural}, not in {', '.join(backends)}: change --backend")
        for name in dict.fromkeys(names):
            device = device_among(name, backends, options["device"])
            subjects.append(Subject(path, name, {**options, "device": device}))
    idle = [name for name in backends if not any(name in names for names in chosen.values())]
    if idle:
        raise DeployError(f"--backend {idle[0]} runs none of the files given: {', '.join(map(str, files))}")
    return subjects


def _streams(
    subjects: Sequence[Subject], counts: Sequence[int], threads: int, stack: contextlib.ExitStack
) -> tuple[list[Streams], list[str]]:
    """Each exported file in so many streams, loaded, and why others are left out.

    Args:
        threads: of each stream; 0 shares the cores among them.
        stack: closes them.
    """
    groups, notes = [], []
    for count in dict.fromkeys(counts):
        if count == 1:
            continue  # is measured anyway
        for subject in subjects:
            if subject.backend == "pytorch":  # whose threads are the process's
                notes.append(f"{subject.path} is timed in one stream only: several are for exported files")
                continue
            own = threads or max(environment.usable_cores() // count, 1)
            if subject.backend != "tensorrt":
                notes.append(f"each of {count} streams has a session of {own} thread{'s' if own > 1 else ''}")
            options = {**subject.options, "threads": own}
            backends = [backend_for(subject.path, subject.backend, **options) for _ in range(count)]
            groups.append(stack.enter_context(Streams(backends)))
    return groups, list(dict.fromkeys(notes))


def _unlike(detectors: Sequence[Detector], force: bool) -> list[str]:
    if not force:
        check_comparable(detectors)
    return [f"not the same work: {difference}" for difference in differences(detectors)]


def images_of(source: Path | Dataset | None) -> list[Path]:
    """The image files of a folder or a data set.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    if source is None:
        return []
    if isinstance(source, Dataset):
        return [source.path(image) for image in source.images]
    return list_images(source)


def _images(source: Path | Dataset | None, size: tuple[int, int], batch: int) -> tuple[list[np.ndarray], str]:
    if source is None:
        return random_images(size), f"4 random images of {size[1]} x {size[0]} pixels (seed 0)"
    name = source.source if isinstance(source, Dataset) else source
    decoded = [read_image(path) for path in images_of(source)[:MOST_IMAGES]]
    if batch > 1:  # a batch is one array
        decoded = [image for image in decoded if image.shape == decoded[0].shape]
    return decoded, f"{len(decoded)} images of {name}"


def _cold_starts(subjects: Sequence[Subject]) -> tuple[dict[tuple[str, str], ColdStart], list[str]]:
    starts, failures = {}, []
    for subject in subjects:
        try:
            start = measure_cold(subject.path, subject.backend, subject.options)
        except DeployError as error:
            failures.append(str(error))
        else:
            starts[str(subject.path), subject.backend] = start
    return starts, failures


def _notes(detectors: Sequence[Detector]) -> list[str]:
    first = detectors[0]
    checkpoints = [detector for detector in detectors if detector.backend.name == "pytorch"]
    if not checkpoints:
        return ["add --reference CHECKPOINT to time PyTorch in the same run"]
    return [
        f"{detector.backend.path} is not the checkpoint that {first.backend.path} was exported from (sha256 differs)"
        for detector in checkpoints
        if detector.manifest.sha256 != first.manifest.sha256
    ]
