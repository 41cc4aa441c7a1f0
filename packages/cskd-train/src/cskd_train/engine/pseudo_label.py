"""Pseudo-labels: what a trained teacher finds on pictures that nobody has labelled, as a COCO file with scores."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from mmcv import Config

from cskd_data.boxes import degenerate
from cskd_data.check import check
from cskd_data.clean import usable
from cskd_data.dataset import PSEUDO_LABELLED, Dataset
from cskd_data.evaluate import numbered
from cskd_data.files import write_json
from cskd_data.json_file import load_json
from cskd_data.names import counted
from cskd_data.operating_point import best_f1
from cskd_data.unlabelled import read_unlabelled
from cskd_train.engine.build import (
    agree_on_broken,
    build_split,
    check_classes,
    check_split,
    class_names,
    has_split,
    skips_broken,
    split_files,
)
from cskd_train.engine.device import choose_device
from cskd_train.engine.distributed import World
from cskd_train.engine.evaluate import Detections, build_trained, detect_each, eval_workers
from cskd_train.engine.failures import explained_failures
from cskd_train.engine.outputs import check_output, files_of_split, images_of
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import Checkpoint, load_checkpoint
from cskd_train.files.config import config_from_data, config_to_data, load_config
from cskd_train.mm.datasets import build_unlabelled

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""Called with what is done, how many images of it are done, and how many there are."""


@dataclass(frozen=True)
class PseudoLabels:
    """What a teacher found on pictures without labels; the `info` of the file that holds it says the same."""

    written: str
    teacher: str  # file name of the checkpoint
    teacher_sha256: str
    threshold: float  # detections of at least this score are in the file
    precision: float | None  # on the validation split, at IoU 0.5 over all classes; None with a given threshold
    recall: float | None
    images: int
    boxes: int
    empty_images: int  # on which the teacher found nothing
    skipped_images: int  # which cannot be used

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)

    def __str__(self) -> str:
        skipped = f", {counted(self.skipped_images, 'image')} skipped" if self.skipped_images else ""
        if self.precision is None or self.recall is None:
            why = "as given"
        else:
            why = f"best F1 on val: precision {self.precision:.3f}, recall {self.recall:.3f} at IoU 0.5"
        return (
            f"{self.written}: {counted(self.images, 'image')} ({self.empty_images} without a box), "
            f"{counted(self.boxes, 'box')} of {self.teacher}{skipped}\n  scores from {self.threshold:.3f} on ({why})"
        )


@explained_failures(training=False)
def pseudo_label(
    teacher: Checkpoint | str | Path,
    pictures: str | Path,
    out: str | Path,
    *,
    images: str | Path | None = None,
    config: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    threshold: float | None = None,
    device: str | torch.device = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    world: World | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> PseudoLabels:
    """Write a teacher's detections on pictures as a COCO file with `score` on each annotation, for training only.

    What is done of it lies in the folder `OUT.partial` until the file is whole. After an interruption the same call
    goes on from there, at any number of processes, and ends with the same file to the last byte. A file that the same
    call has written is left as it is.

    Args:
        teacher: a checkpoint of cskd-train; with `config` a plain mmdet one too.
        pictures: a folder, searched to any depth, or a COCO file of images only.
        out: the file to write.
        images: folder that the file names of a COCO file start from; None looks for it.
        config: a config file in the place of the one that the checkpoint holds.
        overrides: dotted key -> value, as `--set` gives them.
        threshold: the least score in [0, 1]; None takes that of the best F1 on the config's validation split.
        overwrite: replace a file, or a partial one, that another call has left.
        progress: called after each image of the two parts, `validation` and `pictures`.
        warn: called with each warning.
        world: the processes that share the images; each gets the result, the main one writes.
        stopped: asked after each image.

    Raises:
        TrainError: the teacher or its config cannot be used; there is no validation split; the file exists.
        DataError: pictures or validation split cannot be used; the teacher finds nothing of the validation split; `out`
            cannot be written, or is a file that is read.
        EvaluationStopped: `stopped` said yes in one of the processes.
    """
    out = Path(out)
    warn = warn or (lambda line: None)
    if threshold is not None and not 0 <= threshold <= 1:
        raise TrainError(f"threshold {threshold}: expected a score in [0, 1]")
    if not isinstance(teacher, Checkpoint):
        teacher = load_checkpoint(teacher, require_config=config is None)
    cfg = load_config(config, overrides) if config else config_from_data(teacher.config, overrides)
    split = next((split for split in ("val", "test") if has_split(cfg, split)), None)
    if split is None or (split != "val" and threshold is None):
        raise TrainError(
            "the teacher's config has no data.val to choose the threshold on: give a threshold, or a config that has it"
        )
    world = world or World(device=device if isinstance(device, torch.device) else choose_device(device))
    for line in teacher.notes:
        warn(line)
    classes = teacher.classes or class_names(cfg, split)
    if threshold is None:
        agree_on_broken(cfg, ["val"], world)
        for line in world.together(lambda: check_split(cfg, "val", classes)):
            warn(line)

    def looked_at() -> Dataset:
        return _usable(read_unlabelled(pictures, classes, images, skip_missing=skips_broken(cfg)), cfg, warn)

    dataset = _by_main(world, looked_at)

    def read() -> Iterator[Path]:
        yield from (teacher.path, *(Path(one) for one in (config, pictures) if one and not Path(one).is_dir()))
        yield from files_of_split(cfg, "val", classes) if threshold is None else ()
        yield from images_of(dataset)

    _by_main(world, lambda: check_output(out, read()))
    cut = (
        f"from {threshold}" if threshold is not None else f"best F1, {_digest([cfg.data.val, split_files(cfg, 'val')])}"
    )
    work = _Work(out, _job(teacher, cfg, split, dataset), cut, world)
    finished = _by_main(world, lambda: work.begin(overwrite))
    if finished is not None:
        return finished
    work.share()
    model = build_trained(cfg, teacher, world.device)
    check_classes(model, tuple(classes))

    def found_on(pictures: Any, part: str, key: str) -> Detections:
        told = None if progress is None else partial(progress, part)
        return work.detections(
            key, partial(detect_each, model, pictures, eval_workers(cfg, split), told, world, stopped)
        )

    cut_at: dict[str, Any] = {"threshold": threshold, "precision": None, "recall": None}
    if threshold is None:
        validation = build_split(cfg, "val", classes)
        found = found_on(validation, "validation", cut)
        cut_at = asdict(_by_main(world, lambda: best_f1(validation.normal, found)))
    labels = found_on(build_unlabelled(cfg.data[split], dataset), "pictures", "pictures")
    return _by_main(world, lambda: work.end(teacher, dataset, labels, **cut_at))


def _by_main(world: World, action: Callable[[], T]) -> T:
    """What the main process makes of an action, in every process."""
    return world.from_main(world.together(lambda: action() if world.is_main else None))  # type: ignore[return-value]


def _usable(dataset: Dataset, cfg: Config, warn: Callable[[str], None]) -> Dataset:
    """Pictures whose files have been looked at.

    Raises:
        DataError: one cannot be used and the config does not go on without it; none can be used.
    """
    if skips_broken(cfg):
        dataset = usable(dataset, use_memory=True).dataset
        warnings: Sequence[str] = [str(note) for note in dataset.notes]
    else:
        report = check(dataset, use_memory=True)
        report.raise_for_errors()
        warnings = report.warnings[:-1]  # the last is that there are no annotations
    for line in warnings:
        warn(f"{dataset.source}: {line}")
    return dataset


def _job(teacher: Checkpoint, cfg: Config, split: str, dataset: Dataset) -> str:
    """Of all that decides what is found on the pictures: weights, model, how pictures come in, which they are."""
    settings = config_to_data(cfg)
    pictures = [(image["file_name"], os.stat(dataset.path(image)).st_size) for image in dataset.images]
    keys = list(dataset.image_keys.values())
    return _digest([teacher.sha256, settings["model"], settings["data"][split], dataset.classes, pictures, keys])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


class _Work:
    """What is found, image by image, kept in a folder until the file is whole.

    Each process appends to a file of its own, a line an image; a line that was cut short does not count.

    Args:
        out: the file to come.
        job: what decides the detections; another one does not go on from them.
        cut: how the threshold is chosen.
    """

    def __init__(self, out: Path, job: str, cut: str, world: World) -> None:
        self.out, self.job, self.cut, self.world = out, job, cut, world
        self.folder = out.with_name(f"{out.name}.partial")
        self.done: dict[str, dict[int, Detections]] = {}  # part -> index of an image -> detections
        self._file = self.folder

    def begin(self, overwrite: bool) -> PseudoLabels | None:
        """Take up what was done before; gives the result where that is everything. Of the main process.

        Raises:
            TrainError: the file or the folder is another call's.
        """
        header = self.folder / "job.json"
        if header.exists():
            if load_json(header, "file")["job"] == self.job:
                self._read()
                return None
            if not overwrite:
                raise TrainError(
                    f"{self.folder} is half of another call's work (its teacher, pictures or settings are other ones): "
                    "go on with that call, or give --overwrite"
                )
        elif self.out.exists() and not overwrite:
            if (finished := self._finished()) is not None:
                self._remove()
                return finished
            raise TrainError(f"{self.out} exists: nothing was changed. Give another name, or --overwrite")
        self._remove()
        self.folder.mkdir()
        write_json(header, {"job": self.job, "out": self.out.name})
        return None

    def share(self) -> None:
        """Let the other processes know which images are done, and where to write."""
        images: dict[str, dict[int, Detections]] = {
            part: {index: [] for index in found} for part, found in self.done.items()
        }
        files = len(list(self.folder.glob("*.jsonl"))) if self.world.is_main else 0
        images, files = self.world.from_main((images, files))
        self.done = self.done if self.world.is_main else images
        self._file = self.folder / f"{files + self.world.rank}.jsonl"

    def detections(self, part: str, detect: Callable[..., dict[int, Detections]]) -> Detections:
        """Of all images of one part, in their order, in the main process; `detect` takes those that are not done."""
        done = self.done.get(part, {})
        with self._file.open("a", encoding="utf-8") as file:

            def keep(index: int, detections: Detections) -> None:
                file.write(json.dumps({"part": part, "image": index, "detections": detections}) + "\n")
                file.flush()

            found = {**done, **detect(done=done, keep=keep)}
        return [one for index in sorted(found) for one in found[index]]

    def end(
        self,
        teacher: Checkpoint,
        dataset: Dataset,
        detections: Detections,
        threshold: float,
        precision: float | None,
        recall: float | None,
    ) -> PseudoLabels:
        """Write the file, and remove what it was made from. Of the main process."""
        sizes = {image["id"]: (image["width"], image["height"]) for image in dataset.images}
        kept = [
            one
            for one in numbered(dataset, [one for one in detections if one["score"] >= threshold])
            if degenerate(one["bbox"], one["area"], *sizes[one["image_id"]]) is None
        ]
        labels = PseudoLabels(
            written=str(self.out),
            teacher=teacher.path.name,
            teacher_sha256=teacher.sha256,
            threshold=threshold,
            precision=precision,
            recall=recall,
            images=len(dataset.images),
            boxes=len(kept),
            empty_images=len(dataset.images) - len({one["image_id"] for one in kept}),
            skipped_images=len(dataset.left_out),
        )
        said = {key: value for key, value in labels.to_dict().items() if key != "written"}
        replace(
            dataset,
            data={**dataset.data, "annotations": [{**one, "id": number} for number, one in enumerate(kept, start=1)]},
            annotated=True,
            pseudo_labels={**said, "job": self._identity},
        ).to_coco(self.out)
        self._remove()
        return labels

    def _remove(self) -> None:
        """The header goes first: what is left without one, by a kill in between, counts for nothing."""
        (self.folder / "job.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _identity(self) -> str:
        return _digest([self.job, self.cut])

    def _finished(self) -> PseudoLabels | None:
        """The result of this very call, where its file is there."""
        content = load_json(self.out, "file")
        info = content.get("info") if isinstance(content, dict) else None
        said = info.get(PSEUDO_LABELLED) if isinstance(info, dict) else None
        if not isinstance(said, dict) or said.get("job") != self._identity:
            return None
        return PseudoLabels(str(self.out), **{key: value for key, value in said.items() if key != "job"})

    def _read(self) -> None:
        for file in sorted(self.folder.glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # cut short by what ended its process
                    one = json.loads(line)
                    self.done.setdefault(one["part"], {})[one["image"]] = one["detections"]
