"""Latency as a picture: against mAP where evaluations are at hand, by stage where they are not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cskd_data.files import sha256_of_file, write_atomically
from cskd_data.images import SUFFIXES as PICTURES
from cskd_deploy.errors import BackendMissing, DeployError
from cskd_deploy.measure.bench import STAGES, Latencies
from cskd_deploy.outputs import check_output

INSTALL = "`pip install matplotlib`"
NOT_EVALUATED = "no evaluation given by --eval is of a file that is timed: evaluate the same files"


@dataclass(frozen=True)
class Evaluation:
    """mAP of a file, from a JSON of `cskd-deploy eval`."""

    path: str
    sha256: str | None
    mean_average_precision: float  # in [0, 1]


def read_evaluations(paths: Sequence[Path]) -> list[Evaluation]:
    """The models, and the references, of evaluations.

    Raises:
        DeployError: a file is missing or not a JSON of `cskd-deploy eval`.
    """
    evaluations = []
    for path in paths:
        try:
            data = json.loads(path.read_text())
            evaluations.append(_evaluation(data["model"], data["file_sha256"], data["metrics"]))
            if data["reference"] is not None:
                metrics = data["reference_metrics"]["metrics"]
                evaluations.append(_evaluation(data["reference"], data["reference_sha256"], metrics))
        except OSError as error:
            raise DeployError(f"evaluation {path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DeployError(
                f"{path} is not the output of `cskd-deploy eval MODEL ... --json` ({type(error).__name__}: {error})"
            ) from error
    return evaluations


def mean_average_precision(path: str, sha256: str | None, evaluations: Sequence[Evaluation]) -> float | None:
    """mAP of the very file at a path: by its content where both have one, else by its path."""
    for one in evaluations:
        if one.sha256 is not None and sha256 is not None:
            if one.sha256 == sha256:
                return one.mean_average_precision
        elif Path(one.path).resolve() == Path(path).resolve():
            return one.mean_average_precision
    return None


def check_evaluated(files: Sequence[Path], evaluations: Sequence[Evaluation]) -> None:
    """Fail before the measurement when there are evaluations, and none is of a file to be timed.

    Raises:
        DeployError: none is.
    """
    there = [file for file in files if file.is_file()]  # what is missing is refused where it is opened
    found = (mean_average_precision(str(file), sha256_of_file(file), evaluations) for file in there)
    if evaluations and there and all(one is None for one in found):
        raise DeployError(NOT_EVALUATED)


def check_plot(path: Path, inputs: Iterable[Path | None]) -> None:
    """Fail before the measurement, not after it, when a picture could not be drawn.

    Args:
        inputs: as `check_output`.

    Raises:
        BackendMissing: matplotlib is not installed.
        DeployError: it writes no files of this kind, or the name is that of a model or a video.
        DataError: it is an input, or cannot be written.
    """
    try:
        import matplotlib  # noqa: F401
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise BackendMissing(f"--plot needs matplotlib, which cannot be imported ({error}): {INSTALL}") from error
    kinds = FigureCanvasAgg.get_supported_filetypes()
    if picture_kind(path) not in kinds:
        raise DeployError(f"--plot {path}: matplotlib draws {', '.join(sorted(kinds))}, give it such a name (plot.svg)")
    check_output(path, inputs, PICTURES, "--plot")


def picture_kind(path: Path) -> str:
    """matplotlib's name of the kind of a picture: the ending of its file's name, else png."""
    return path.suffix.lstrip(".").lower() or "png"


def plot(results: Sequence[Latencies], evaluations: Sequence[Evaluation], path: Path) -> list[str]:
    """Draw the results into an image file of the kind that its name says.

    Returns:
        The labels of results without an evaluation, which are not in a picture of latency against mAP.

    Raises:
        DeployError: no evaluation is of a file that was timed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    missing: list[str] = []
    if evaluations:
        missing = _against_map(axes, results, evaluations)
    else:
        _by_stage(axes, results)
    write_atomically(path, lambda file: figure.savefig(file, format=picture_kind(path), dpi=150))
    return missing


def _evaluation(path: Any, sha256: Any, metrics: Mapping[str, Any]) -> Evaluation:
    return Evaluation(str(path), None if sha256 is None else str(sha256), float(metrics["bbox_mAP"]))


def _against_map(axes: Any, results: Sequence[Latencies], evaluations: Sequence[Evaluation]) -> list[str]:
    missing = []
    for one in results:
        precision = mean_average_precision(one.path, one.sha256, evaluations)
        if precision is None:
            missing.append(one.label)
            continue
        total = one.summary("total")
        latency, slowest = total["p50"] / one.batch, total["p99"] / one.batch
        axes.errorbar(latency, 100 * precision, xerr=[[0], [slowest - latency]], fmt="o", capsize=3)
        axes.annotate(_plain(one.label), (latency, 100 * precision), xytext=(6, 6), textcoords="offset points")
    if len(missing) == len(results):
        raise DeployError(NOT_EVALUATED)
    axes.set_xlabel("milliseconds an image, the whole (median; bar to p99)")
    axes.set_ylabel("mAP (points)")
    axes.margins(0.2)
    axes.grid(alpha=0.3)
    return missing


def _by_stage(axes: Any, results: Sequence[Latencies]) -> None:
    left = [0.0] * len(results)
    places = list(range(len(results)))
    for stage in STAGES[:3]:
        widths = [one.summary(stage)["p50"] / one.batch for one in results]
        axes.barh(places, widths, left=left, label=stage)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(places, [_plain(one.label) for one in results])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds an image (medians of the stages)")
    axes.legend()


def _plain(label: str) -> str:
    return label.replace("$", r"\$")  # matplotlib sets what stands between dollars as mathematics
