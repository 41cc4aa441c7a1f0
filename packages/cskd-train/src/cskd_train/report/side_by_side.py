"""A picture of what several detectors find in the same images, side by side with the ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from cskd_data.files import write_atomically
from cskd_data.images import read_image
from cskd_data.names import plain_name
from cskd_train.engine.build import build_split, check_classes, check_split
from cskd_train.engine.evaluate import build_trained, detect
from cskd_train.engine.failures import explained_failures
from cskd_train.engine.outputs import check_output, files_of_split
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import load_checkpoint
from cskd_train.files.config import config_from_data
from cskd_train.mm.teacher import with_own_config
from cskd_train.report.detected import evenly_spaced, images_for

CELL_INCHES = 3.0


@dataclass(frozen=True)
class Drawn:
    """One box to draw: x, y, width, height in pixels, the place of its class, and its score (None: ground truth)."""

    box: tuple[float, float, float, float]
    label: int
    score: float | None = None


@explained_failures(training=False)
def draw_side_by_side(
    checkpoints: Sequence[str | Path],
    out: Path,
    *,
    titles: Sequence[str] = (),
    images: int = 3,
    split: str = "val",
    score_threshold: float = 0.4,
    overrides: dict[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
) -> None:
    """Draw a row an image and a column a detector, the ground truth first.

    Images are brought in as each detector's own config says.

    Args:
        checkpoints: trained by `cskd-train run`, on the same classes; the first one's config says which data.
        out: the PNG to write.
        titles: of the columns; by default the folder of each checkpoint. The validation mAP is added.
        images: how many, evenly spaced over the split.
        score_threshold: detections below are not drawn.
        overrides: dotted key -> value, changes to the first config.
        data: the config of the split's dataset in the place of the first config's. It says which images, not how they
            come in.

    Raises:
        TrainError: a checkpoint, the data or the number of titles is wrong.
        DataError: `out` cannot be written, or is a file that is read.
    """
    if titles and len(titles) != len(checkpoints):
        raise TrainError(f"{len(titles)} titles for {len(checkpoints)} checkpoints: give one of each, or no title")
    loaded = [with_own_config(load_checkpoint(path), None) for path in checkpoints]
    first, changes = loaded[0][0], overrides or {}
    cfg = config_from_data(first.config, {**changes, **({} if data is None else {f"data.{split}": data})})
    classes = first.classes
    check_split(cfg, split, classes)
    check_output(out, [*(one.path for one, _ in loaded), *files_of_split(cfg, split, classes)])
    places = evenly_spaced(images, len(build_split(cfg, split, classes)))
    _, dataset = images_for({}, cfg, split, classes, places)
    columns = [("ground truth", _ground_truth(dataset))]
    for place, ((checkpoint, own), title) in enumerate(
        zip(loaded, titles or [one.path.parent.name for one, _ in loaded], strict=True)
    ):
        own = own if place else config_from_data(checkpoint.config, changes)
        model = build_trained(own, checkpoint, device)
        check_classes(model, dataset.CLASSES)
        if checkpoint.classes and [plain_name(name) for name in checkpoint.classes] != list(dataset.CLASSES):
            raise TrainError(
                f"{checkpoint.path} was trained on {', '.join(checkpoint.classes)}, the first checkpoint on "
                f"{', '.join(dataset.CLASSES)}: draw detectors of the same classes, in the same order"
            )
        _, brought_in = images_for(own, cfg, split, classes, places)
        found = [one for one in detect(model, brought_in) if one["score"] >= score_threshold]
        heading = f"{title}\nmAP {checkpoint.metrics['bbox_mAP']:.3f}" if "bbox_mAP" in checkpoint.metrics else title
        columns.append((heading, _by_image(dataset, found)))
    _draw(dataset, columns, out)


def _ground_truth(dataset: Any) -> list[list[Drawn]]:
    shown = dataset.normal.subset(dataset.img_ids)
    return _by_image(dataset, shown.with_keys()["annotations"])


def _by_image(dataset: Any, annotations: Sequence[dict[str, Any]]) -> list[list[Drawn]]:
    """COCO annotations or results as boxes to draw, a list an image of the dataset."""
    rows: dict[Any, list[Drawn]] = {dataset.normal.image_keys[image]: [] for image in dataset.img_ids}
    labels = {key: label for label, key in enumerate(dataset.normal.category_keys.values())}
    for one in annotations:
        rows[one["image_id"]].append(Drawn(tuple(one["bbox"]), labels[one["category_id"]], one.get("score")))
    return list(rows.values())


def _draw(dataset: Any, columns: Sequence[tuple[str, list[list[Drawn]]]], out: Path) -> None:
    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
    rows = len(dataset.data_infos)
    height, width = dataset.data_infos[0]["height"], dataset.data_infos[0]["width"]
    size = CELL_INCHES * len(columns), CELL_INCHES * height / width * rows + 0.8
    figure = Figure(figsize=size, layout="compressed")  # without pyplot, which would choose the caller's backend
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for row, info in enumerate(dataset.data_infos):
        image = read_image(Path(dataset.img_prefix) / info["filename"])
        for column, (title, drawn) in enumerate(columns):
            axis = axes[row][column]
            axis.imshow(image[..., ::-1])
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=9)
            for one in drawn[row]:
                x, y, w, h = one.box
                colour = colours[one.label % len(colours)]
                axis.add_patch(Rectangle((x, y), w, h, fill=False, linewidth=1.2, edgecolor=colour))
    handles = [
        Line2D([], [], color=colours[label % len(colours)], label=name) for label, name in enumerate(dataset.CLASSES)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), fontsize=8, frameon=False)
    write_atomically(out, lambda file: figure.savefig(file, format="png", dpi=110))
