"""The file that ships and what is measured on it, by cskd-deploy, run as a command."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cskd_data.json_file import load_json
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import sha256
from cskd_train.mm.data_sources import Source
from cskd_train.project.state import State, content_of

MISSING = (
    "cskd-deploy is not installed: no file was exported. Install packages/cskd-deploy[ort,export] and call this again"
)
SECONDS = 60.0
"""What export, evaluation and benchmark take beside the detections themselves, as an estimate."""


@dataclass(frozen=True)
class Measured:
    """The exported file, the mAP of it and of its checkpoint on the test split, and the latency of both."""

    path: Path
    eval_file: Path
    bench_file: Path
    eval: Mapping[str, Any]
    bench: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """What a table needs."""
        environment = self.bench["environment"]
        keys = ("backend", "images_per_second", "size_bytes")
        return {
            "path": str(self.path),
            "metrics": self.eval["metrics"],
            "drop_points": self.eval["drop_points"],
            "latency": [
                {**{key: one[key] for key in keys}, "milliseconds": one["milliseconds"]["total"]}
                for one in self.bench["results"]
            ],
            "where": f"{environment['processor']}, {environment['threads']} threads",
        }


@dataclass(frozen=True)
class Files:
    """Where the file and its results lie."""

    model: Path
    results: Path  # a folder

    @property
    def eval(self) -> Path:
        return self.results / "eval.json"

    @property
    def bench(self) -> Path:
        return self.results / "bench.json"

    def made(self, state: State, checkpoint: Path, test: Source, console: Console) -> Measured:
        """Export, evaluate and time a student, each where that is not done yet.

        Raises:
            TrainError: with cskd-deploy's own message.
        """
        quiet, of = console.quiet, [sha256(checkpoint)]

        def make(name: str, file: Path, made: Callable[[], None]) -> None:
            state.make(name, file, of, made, console)

        make("student.onnx", self.model, lambda: export(checkpoint, self.model, quiet))
        of += [sha256(self.model), content_of(test.ann_file)]
        make("eval", self.eval, lambda: evaluate(self, checkpoint, test, quiet))
        make("bench", self.bench, lambda: bench(self, checkpoint, test, quiet))
        results = [load_json(file, "result") for file in (self.eval, self.bench)]
        return Measured(self.model, self.eval, self.bench, *results)


def installed() -> bool:
    """Whether cskd-deploy is there to be run."""
    return importlib.util.find_spec("cskd_deploy") is not None


def export(checkpoint: Path, model: Path, quiet: bool) -> None:
    """Export a student to ONNX.

    Raises:
        TrainError: with cskd-deploy's own message.
    """
    _call(["export", "--checkpoint", str(checkpoint), "--format", "onnx", "--output", str(model)], quiet)


def evaluate(files: Files, checkpoint: Path, test: Source, quiet: bool) -> None:
    """The mAP of the file, and of the checkpoint it was made from, into `files.eval`. No drop is refused."""
    words = [*_images_of(test), "--reference", str(checkpoint), "--max-drop", "100", "--json"]
    files.eval.write_text(_call(["eval", str(files.model), *words], quiet), encoding="utf-8")


def bench(files: Files, checkpoint: Path, test: Source, quiet: bool) -> None:
    """The latency of the file, and of its checkpoint in PyTorch, on the test images, into `files.bench`."""
    words = ["bench", str(files.model), "--reference", str(checkpoint), *_images_of(test), "--json"]
    files.bench.write_text(_call(words, quiet), encoding="utf-8")


def _images_of(test: Source) -> list[str]:
    return ["--ann", test.ann_file, *([] if test.images is None else ["--images", test.images])]


def _call(words: list[str], quiet: bool) -> str:
    """Run cskd-deploy; gives what it prints."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cskd_deploy", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if quiet else None,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise TrainError(f"cskd-deploy cannot be started: {error}") from error
    if done.returncode:
        reason = f": {done.stderr.strip()}" if quiet else ", for the reason above"
        raise TrainError(
            f"`{shlex.join(['cskd-deploy', *words])}` failed{reason}. The trainings are done: once it is put right, "
            "the same command goes on from here"
        )
    return done.stdout
