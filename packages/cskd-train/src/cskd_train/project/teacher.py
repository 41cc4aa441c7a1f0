"""The teacher of a project: its own, or another one, which is had, tried and made to label before anything trains."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from cskd_core.plan import DistillPlan, TeacherPlan
from cskd_data.images import SUFFIXES
from cskd_data.names import plain_name
from cskd_train.engine.build import class_names
from cskd_train.engine.prepare import say
from cskd_train.engine.progress import evaluation_progress
from cskd_train.engine.pseudo_label import pseudo_label
from cskd_train.engine.workdir import WorkDir
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import Checkpoint, sha256
from cskd_train.files.config import config_to_data
from cskd_train.files.downloads import fetch
from cskd_train.mm.datasets import with_images_of
from cskd_train.mm.teacher import build_teacher, detector_of, read_teacher
from cskd_train.project.state import State, content_of, read_json

if TYPE_CHECKING:  # at run time cskd_train.mm has to come before mmcv, which it changes
    from mmcv import Config


@dataclass(frozen=True)
class ProjectTeacher:
    """What teaches the student of a project, and labels its pictures.

    Attributes:
        root: folder of the project.
        cfg: of distilled.py.
        pictures: without labels; empty where there are none.
        labels: the file that is made of them.
        device: auto, cpu or cuda.
        console: takes warnings and progress.
    """

    root: Path
    cfg: Config
    pictures: str
    labels: Path
    device: str
    console: Console

    @property
    def plan(self) -> TeacherPlan:
        return DistillPlan.parse(self.cfg.distill).teacher

    @property
    def best(self) -> Path:
        """The checkpoint of the teacher that the project trains."""
        return WorkDir(self.root / "work_dirs" / "teacher").best

    @property
    def own(self) -> bool:
        """Whether the project trains it."""
        return os.path.abspath(Path(self.plan.checkpoint).expanduser()) == os.path.abspath(self.best)

    @property
    def student(self) -> WorkDir:
        """Of the student under it."""
        return WorkDir(self.root / "work_dirs" / "distilled")

    def prepare(self, state: State, epochs: int) -> None:
        """Have another teacher than the project's own on this machine, tried, and its labels made.

        Args:
            epochs: of the student under it; one that has been through them needs its teacher no more.

        Raises:
            TrainError: it cannot be had or loaded, or has other classes than the labels are to have; as `taken`.
        """
        if self.student.result.exists() and read_json(self.student.result)["epochs"] >= epochs:
            file = Path(self.plan.checkpoint).expanduser()
            if not file.is_file():  # gone, or a URL
                return
        else:
            file = fetch(self.plan.checkpoint, self.plan.config)
            build_teacher(self.plan)
        self.taken(state, file)

    def taken(self, state: State, checkpoint: Path) -> None:
        """Keep the teacher's hash, and have it label the pictures, where that is not done yet.

        Raises:
            TrainError: the student under it began under another one, or with other labels.
        """
        teacher, root, begun = sha256(checkpoint), self.student.root, self.student.has_run
        if begun and state.made.get("distilled", teacher) != teacher:
            raise TrainError(
                f"{root} was trained under another teacher than {checkpoint} is now: remove {root} to train it anew"
            )
        state.made["distilled"] = teacher
        state.write()
        if not self.pictures:
            return
        self._have_labels(state, checkpoint, begun)
        labels = sha256(self.labels)
        if begun and state.made.get("labels", labels) != labels:
            raise TrainError(
                f"{self.labels} has changed since {root} was trained on it: remove {root} to train it anew, or put the "
                "file back"
            )
        state.made["labels"] = labels
        state.write()

    def _have_labels(self, state: State, checkpoint: Path, begun: bool) -> None:
        """Have the pictures labelled. Labels that the user has made are left as they are, and so are those that the
        student has begun with.
        """
        inputs = (sha256(checkpoint), content_of(self.pictures, SUFFIXES))
        if self.labels.exists() and not state.is_own("unlabeled", self.labels):
            say(
                self.console,
                f"note: {self.labels} was not made by this command, or has changed since: it is trained on as it is. "
                f"Remove it to have the teacher label {self.pictures}",
            )
        elif self.labels.exists() and begun and not state.is_made("unlabeled", inputs):
            say(
                self.console,
                f"note: {self.pictures} has other pictures than {self.student.root} was trained on: remove that folder "
                "to train with these",
            )
        else:
            state.make("unlabeled", self.labels, inputs, lambda: self._label(state, checkpoint), self.console)

    def _label(self, state: State, checkpoint: Path) -> None:
        began = time.perf_counter()
        with evaluation_progress(self.console) as bar:
            found = pseudo_label(
                checkpoint if self.own else self._labelling(),
                self.pictures,
                self.labels,
                config=self.root / "teacher.py" if self.own else None,
                device=self.device,
                overwrite=True,
                progress=lambda _, done, of: bar(done, of),
                warn=lambda line: say(self.console, f"warning: {line}"),
            )
        say(self.console, str(found))
        state.labelling = time.perf_counter() - began

    def _labelling(self) -> Checkpoint:
        """Another teacher than the project's own, with a config by which pictures, and the validation images that its
        threshold is chosen on, come in as its own config says.
        """
        checkpoint, own = read_teacher(self.plan)
        classes = class_names(self.cfg, "train")
        if checkpoint.classes and sorted(map(plain_name, checkpoint.classes)) != sorted(map(plain_name, classes)):
            few = ", ".join(checkpoint.classes[:8]) + (", ..." if len(checkpoint.classes) > 8 else "")
            raise TrainError(
                f"data.unlabeled: the teacher {checkpoint.path} detects {few}, and the labels are to be "
                f"{', '.join(classes)}: take data.unlabeled out of distilled.py, or make a project whose teacher "
                f"starts from that file: cskd-train new DIR --init {checkpoint.path}"
            )
        data = config_to_data(with_images_of(own, self.cfg, "val").data)
        return replace(checkpoint, config={"model": config_to_data(detector_of(own)), "data": data})
