"""Latency of every form against its mAP, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cskd_data.files import write_atomically
from cskd_deploy.errors import DeployError
from cskd_deploy.forms.report import Row
from cskd_deploy.measure.plot import picture_kind

MARKERS = {"pytorch": "s", "onnxruntime": "o", "openvino": "^", "tensorrt": "D"}


def plot_rows(rows: Sequence[Row], path: Path) -> None:
    """Draw the rows that have both into an image file of the kind that its name says, as `check_plot` takes it.

    A colour is a form, a marker a backend: forms of one mAP lie close to each other.

    Raises:
        DeployError: no row has both.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = [
        (row, row.p50_ms, row.mean_average_precision, row.p90_ms)
        for row in rows
        if row.p50_ms is not None and row.mean_average_precision is not None and row.p90_ms is not None
    ]
    if not points:
        raise DeployError(f"--plot {path}: no form has both a latency and mAP")
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    colours = {form: f"C{place}" for place, form in enumerate(dict.fromkeys(row.form for row, *_ in points))}
    for row, latency, precision, slow in points:
        axes.errorbar(
            latency,
            precision,
            xerr=[[0], [max(slow - latency, 0)]],
            fmt=MARKERS[row.backend],
            color=colours[row.form],
            capsize=3,
            label=f"{row.form}, {row.backend} {row.device}",
        )
    figure.legend(loc="outside right upper", fontsize=8)
    axes.set_xlabel("milliseconds an image, the whole (median; bar to p90)")
    axes.set_ylabel("mAP (points)")
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    write_atomically(path, lambda file: figure.savefig(file, format=picture_kind(path), dpi=150))
