"""Write a project: the splits in normal form, three configs, and a README with the commands."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cskd_data.dataset import Dataset
from cskd_data.names import counted
from cskd_train.engine.signals import stop_on_signals
from cskd_train.errors import TrainError
from cskd_train.project import choices
from cskd_train.project.choices import DETECTORS, Choice
from cskd_train.project.data import Progress, read_pictures, read_splits
from cskd_train.project.machine import Machine, this_machine
from cskd_train.project.readme import readme
from cskd_train.project.recipes import CAFFE, Detector, dataset_config, distilled_config
from cskd_train.report import words

TEACHERS = {"r50": 50, "r101": 101}
STUDENTS = {"r18": 18, "r50": 50}
_UNFIT = "\"'\\{}\n\r"
"""In the path of a folder that configs name as text."""


@dataclass(frozen=True)
class Project:
    """A project that was written, with what was chosen for it."""

    folder: str
    splits: dict[str, int]  # split -> images
    classes: tuple[str, ...]
    boxes: int  # for training
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...]
    files: tuple[str, ...]  # in the folder

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)

    def __str__(self) -> str:
        images = ", ".join(f"{number} {split}" for split, number in self.splits.items())
        wide = max(len(one.name) for one in self.choices)
        values = max(len(one.value) for one in self.choices)
        return "\n".join(
            [
                f"{self.folder}: images {images}; {counted(self.boxes, 'box')} to learn of "
                f"{counted(len(self.classes), 'class')}: {', '.join(self.classes)}",
                *(f"  {one.name:<{wide}}  {one.value:<{values}}  {one.why}" for one in self.choices),
                *(f"  warning: {warning}" for warning in self.warnings),
                f"  files: {', '.join(self.files)}",
                f"  go on with: {shlex.join(['cskd-train', 'distill', self.folder])}; "
                f"{os.path.join(self.folder, 'README.md')} has each step",
            ]
        )


def new(
    folder: Path | str,
    data: Path | str | Sequence[Path | str],
    *,
    images: Path | str | None = None,
    detector: str = "retinanet",
    teacher: str = "r50",
    student: str = "r18",
    width: float | None = None,
    init: str | None = None,
    size: int | None = None,
    unlabeled: Path | str | None = None,
    machine: Machine | None = None,
    progress: Progress = lambda what, done, of: None,
) -> Project:
    """Write a project for training a teacher and a distilled student on a data set of one's own.

    Args:
        folder: is made; nothing may be in it.
        data: a COCO file, or a folder of COCO, Pascal VOC or YOLO, cut where it has no splits of its own; or two or
            three files: training, validation, test. Images are not copied.
        images: folder that the file names start from; None looks for it.
        detector: retinanet, fcos, gfl or faster_rcnn.
        teacher: r50 or r101.
        student: r18 or r50.
        width: 1, or 0.5 for processors; None goes by the machine and `init`.
        init: `imagenet`, `none`, or a detector's checkpoint that the teacher starts from: a file, a URL, or the
            `mmdet::` name of its config; None: `imagenet` at width 1, `none` at 0.5.
        size: the longer side that images are scaled to; None goes by the boxes.
        unlabeled: a folder of pictures without labels, on which the student under the teacher trains too, once
            `cskd-train pseudo-label` has labelled them.
        machine: what it will be trained on; None looks.
        progress: called with what is done, how much of it is done, and how much there is.

    Raises:
        TrainError: the folder is in use, or the options do not go together.
        DataError: the data cannot be used, or the folder not be written. Nothing is left behind.
        Interrupted: a signal. Nothing is left behind.
    """
    target = Path(folder)
    paths = [Path(data)] if isinstance(data, (str, Path)) else [Path(one) for one in data]
    for name, value, known in (
        ("detector", detector, DETECTORS), ("teacher", teacher, TEACHERS), ("student", student, STUDENTS)
    ):  # fmt: skip
        if value not in known:
            raise TrainError(f"{name} {value!r}: expected {', '.join(known)}")
    if TEACHERS[teacher] <= STUDENTS[student]:
        raise TrainError(f"a {teacher} teacher is no larger than a {student} student: take teacher r101 or student r18")
    if size is not None and size < 64:
        raise TrainError(f"size {size}: expected the longer side of the images, at least 64 pixels")
    machine = machine or this_machine()
    narrow, init, why_width = _width(width, init, machine)
    depth = TEACHERS[teacher]
    start = _start(init, detector, depth)
    with stop_on_signals(), _folder(target) as made:
        splits, how, warnings = read_splits(paths, None if images is None else Path(images), progress)
        way = None
        beside: list[Choice] = []
        if unlabeled is not None:
            pictures, shared = read_pictures(Path(unlabeled), splits, progress)
            warnings += shared
            way = _way(made, Path(unlabeled))
            number = counted(len(pictures.images), "image")
            beside = [Choice("unlabeled", number, "as asked for: half of each batch of distilled.py")]
        plan = _Plan(splits["train"], detector, depth, STUDENTS[student], narrow, start, size, machine)
        chosen = (
            Choice("data", counted(len(splits), "split"), how),
            *beside,
            Choice("machine", "GPU" if machine.gpu else "processor", str(machine)),
            Choice("width", "0.5" if narrow else "1", why_width),
            *plan.choices,
        )
        warnings += plan.warnings
        for name, part in splits.items():
            part.to_coco(made / "data" / f"{name}.json")
        test = "test" if "test" in splits else "val"
        texts = {
            "dataset.py": dataset_config(splits["train"].classes, plan.scale, plan.batch, plan.workers, plan.amp, test),
            "teacher.py": plan.teacher.config(),
            "student.py": plan.student.config(),
            "distilled.py": distilled_config(detector, way, plan.batch),
            "README.md": readme(target.absolute().name, chosen, warnings, test, _images_of(splits[test]), way),
        }
        for name, text in texts.items():
            (made / name).write_text(text, encoding="utf-8")
        files = (*(f"data/{name}.json" for name in splits), *texts)
    train, numbers = splits["train"], {name: len(part.images) for name, part in splits.items()}
    return Project(str(target), numbers, train.classes, train.countable, chosen, tuple(warnings), files)


class _Plan:
    """What is chosen for one training set: sizes, schedules, rates, each with its reason."""

    def __init__(
        self,
        train: Dataset,
        family: str,
        teacher: int,
        student: int,
        narrow: bool,
        start: _Start,
        size: int | None,
        machine: Machine,
    ) -> None:
        self._family, self._narrow = family, narrow
        self._images = len({one["image_id"] for one in train.annotations})  # those without a box are not trained on
        self.scale, why_scale = choices.image_scale(train, size, machine)
        anchor = choices.smallest_anchor(family, choices.box_sides(train, self.scale))
        self._anchor = anchor.scale
        self.batch, why_batch = choices.batch(self._images, self.scale, machine, teacher == 101)
        self.workers, why_workers = choices.workers(machine)
        self.amp, why_amp = choices.precision(machine)
        self.choices = [
            Choice("image_scale", f"{self.scale[0]} x {self.scale[1]}", why_scale),
            Choice("smallest anchor" if anchor.scale else "finest stride", f"{anchor.pixels} pixels", anchor.why),
            Choice("batch", counted(self.batch, "image"), why_batch),
            Choice("workers", str(self.workers), why_workers),
            Choice("precision", self.amp or "float32", why_amp),
        ]
        self.warnings = []
        if anchor.below > 0.01 * anchor.boxes:
            self.warnings.append(
                f"{anchor.below} of {anchor.boxes} boxes ({anchor.below / anchor.boxes:.1%}) are under {anchor.pixels} "
                f"pixels once images are {self.scale[0]} long, and hard to learn: a larger --size helps them"
            )
        if not narrow and not machine.gpu:
            self.warnings.append("full width on a processor takes hours: --width 0.5 is about four times as fast")
        self.teacher = self._detector("teacher", teacher, start)
        self.student = self._detector("student", student, _student_start(start.init, narrow))

    def _detector(self, role: str, depth: int, start: _Start) -> Detector:
        tuned = start.init != "none"
        epochs, why_epochs = choices.epochs(self._images, tuned, longer=not tuned and role == "teacher")
        rate, why_rate = choices.learning_rate(self.batch, tuned)
        caffe = self._family == "fcos" and depth > 18 and tuned and start.style is None  # its weights want its images
        detector = Detector(
            role=role,
            family=self._family,
            depth=depth,
            narrow=self._narrow,
            init=start.init,
            anchor=self._anchor,
            epochs=epochs,
            steps=choices.decay_steps(epochs),
            warmup=min(100 if tuned else 500, max(1, self._images // self.batch)),
            rate=rate,
            normalization=start.normalization or (CAFFE if caffe else None),
            style=start.style,
        )
        self.choices += [
            Choice(role, f"{DETECTORS[self._family]} ResNet-{depth}", detector.start),
            Choice("  epochs", str(epochs), why_epochs),
            Choice("  learning rate", f"{rate:g}", why_rate),
        ]
        return detector


def _way(folder: Path, pictures: Path) -> str:
    """Where pictures are, seen from a project's folder.

    Raises:
        TrainError: a config cannot name that.
    """
    way = os.path.relpath(os.path.realpath(pictures), os.path.realpath(folder))
    if any(character in _UNFIT for character in way):
        raise TrainError(f"{pictures}: quotes, braces and backslashes cannot be in the path of pictures")
    return way


def _images_of(dataset: Dataset) -> str:
    return os.path.abspath(dataset.image_root or "")


@dataclass(frozen=True)
class _Start:
    """What a detector starts from; of a zoo model also how its backbone takes images."""

    init: str
    normalization: dict[str, Any] | None = None
    style: str | None = None


def _width(width: float | None, init: str | None, machine: Machine) -> tuple[bool, str, str]:
    """Whether the detectors are narrow, what they start from, and why they have their width.

    Raises:
        TrainError: a width and a start that do not go together.
    """
    if width not in (None, 1, 0.5):
        raise TrainError(f"width {width!r}: expected 1, or 0.5 for processors")
    if width is None:
        narrow = init == "none" and not machine.gpu if init else not machine.gpu
        half = "half width is for processors; published weights (--init) have full width"
        why = half if narrow else "weights fit no other" if init else "there is a GPU"
    else:
        narrow, why = width == 0.5, "as asked for"
    init = init or ("none" if narrow else "imagenet")
    if narrow and (init == "imagenet" or init.startswith("mmdet::")):
        raise TrainError(f"{init} has no weights of half width: take --width 1, or --init none")
    return narrow, init, why


def _start(init: str, detector: str, depth: int) -> _Start:
    """What the teacher starts from.

    Raises:
        TrainError: a file that is not there, or a zoo model of another architecture.
    """
    if init in ("none", "imagenet") or init.startswith(("http://", "https://")):
        return _Start(init)
    if not init.startswith("mmdet::"):
        if not Path(init).expanduser().is_file():
            raise TrainError(f"init {init}: no such file; expected imagenet, none, a checkpoint, a URL or mmdet::NAME")
        return _Start(os.path.abspath(Path(init).expanduser()))
    from cskd_train.files.config import load_config

    cfg = load_config(init)
    model = cfg.get("model") or {}
    backbone = model.get("backbone") or {}
    wanted = DETECTORS[detector].replace(" ", "").replace("-", "")
    if (model.get("type"), backbone.get("type"), backbone.get("depth")) != (wanted, "ResNet", depth):
        found = words.short(cfg) or "config without a detector"
        teacher = f"{DETECTORS[detector]} ResNet-{depth}"
        raise TrainError(
            f"init {init} is {words.article(found)} {found}, the teacher is {words.article(teacher)} {teacher}"
        )
    style = backbone.get("style", "pytorch")
    own = "caffe" if detector == "fcos" else "pytorch"
    normalization = cfg.get("img_norm_cfg") if style == "caffe" else None
    return _Start(init, dict(normalization) if normalization else None, None if style == own else style)


def _student_start(init: str, narrow: bool) -> _Start:
    """The student starts from ImageNet's weights where the teacher starts from a detector's, if they fit."""
    return _Start("none" if narrow or init == "none" else "imagenet")


@contextlib.contextmanager
def _folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` at the end, whole, or is gone.

    Raises:
        TrainError: something is there, or the folder cannot be made.
    """
    if target.is_dir() and any(target.iterdir()):
        raise TrainError(f"{target} is not empty: nothing was changed. Give another folder, or remove that one first")
    if target.exists() and not target.is_dir():
        raise TrainError(f"{target} is a file: give the name of a folder to make")
    whole = Path(os.path.abspath(target))
    if any(character in _UNFIT for character in str(whole)):
        raise TrainError(f"{whole}: quotes, braces and backslashes cannot be in the path of a project")
    parents = [one for one in whole.parents if not one.exists()]
    made = None
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=whole.parent, prefix=f".{whole.name}.", suffix=".new"))
        yield made
        if whole.is_dir():  # an empty one, in which a shell may stand
            for part in made.iterdir():
                part.rename(whole / part.name)
        else:
            made.chmod(0o777 & ~_umask())
            made.rename(whole)
            made = None
        parents = []
    except OSError as error:
        raise TrainError(f"{target} cannot be written: {error}. Free space, or choose another folder") from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        for parent in parents:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
