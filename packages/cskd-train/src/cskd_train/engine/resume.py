"""`last.pth` and `best.pth`: written as a run goes, and going on from them as if it had never stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cskd_data.errors import DataError
from cskd_train.engine.attributes import Attributes
from cskd_train.engine.loader import Position, TrainLoader
from cskd_train.engine.origin import refuse_another, refuse_other_classes
from cskd_train.engine.records import Recorder, RunState
from cskd_train.engine.signals import StopRequest
from cskd_train.engine.step import AveragedStudent, NotFinite, TrainStep
from cskd_train.engine.terms import DistilledTerms
from cskd_train.engine.workdir import WorkDir
from cskd_train.errors import TrainError
from cskd_train.files import checkpoints
from cskd_train.stored import current_terms


@dataclass(frozen=True)
class Trained:
    """Everything of a run that changes as it trains."""

    student: nn.Module
    distiller: nn.Module | None
    step: TrainStep
    loader: TrainLoader
    state: RunState
    recorder: Recorder
    attributes: Attributes  # of the student
    terms: DistilledTerms | None = None  # None without a distiller

    @property
    def average(self) -> AveragedStudent | None:
        return self.step.average

    @property
    def model(self) -> nn.Module:
        """The detector that is evaluated and kept: the student, or the average of its weights."""
        return self.student if self.average is None else self.average.model


class Saver:
    """Writes the checkpoints of a run, from the main process; every process has to call it.

    Args:
        meta: what every checkpoint of the run says beside its position and metrics.
        origin: what the run learns from, which `last.pth` alone says.
        warn: takes why a checkpoint could not be written, where the run can go on without it.
        stop: its signals cut off no file.

    Attributes:
        saved: the position that `last.pth` holds.
    """

    def __init__(
        self,
        trained: Trained,
        work_dir: WorkDir,
        meta: Mapping[str, Any],
        origin: Mapping[str, Any],
        warn: Callable[[str], None],
        stop: StopRequest,
    ) -> None:
        self._trained = trained
        self._work_dir = work_dir
        self._meta = meta
        self._origin = origin
        self._warn = warn
        self._stop = stop
        self._world = trained.loader.world
        self.saved: Position | None = None

    def last(self, position: Position, *, required: bool = False) -> None:
        """Write `last.pth`.

        Args:
            required: nothing follows that would write it again.

        Raises:
            NotFinite: the weights are not finite; `last.pth` is as it was.
            DataError: it cannot be written, and is required.
            Interrupted: a second signal came while it was written.
        """
        one = self._trained
        averages = [] if one.average is None else [one.average.model]
        self._world.share_statistics(one.student, *averages)
        for part in (one.student, one.distiller):
            if part is not None:
                check_finite(part, position.step)
        attributes = self._world.to_main(one.attributes.changed())
        if not self._world.is_main:
            return
        contents = {
            **self._checkpoint(position),
            "origin": self._origin,
            "position": asdict(position),
            "epoch_batches": one.loader.batches,
            "optimizer": one.step.optimizer.state_dict(),
            "scaler": one.step.scaler.state_dict(),
            "run": one.state.to_data(),
            "attributes": attributes,  # of each process
            "records": {"sums": one.recorder.sums, "counts": one.recorder.counts},
        }
        if one.distiller is not None:
            contents["distiller"] = one.distiller.state_dict()
        if one.terms is not None:
            contents["terms"] = one.terms.state_dict()
        if one.average is not None:
            contents["average"] = one.average.state_dict()
            contents["student"] = _weights(one.student)
        try:
            with self._stop.held():
                checkpoints.save(self._work_dir.last, contents)
                self.saved = position
        except DataError as error:
            if required:
                raise
            self._warn(f"{error}. The run goes on, and the next checkpoint will be tried")

    def best(self, position: Position) -> bool:
        """Write `best.pth`: the detector alone. Says whether it could be written."""
        if self._world.is_main:
            try:
                with self._stop.held():
                    checkpoints.save(self._work_dir.best, self._checkpoint(position))
            except DataError as error:
                self._warn(f"{error}. The run goes on; the best weights of epoch {position.epoch} are not kept")
                return False
        return True

    def _checkpoint(self, position: Position) -> dict[str, Any]:
        state = self._trained.state
        evaluated = state.evaluated_epoch == position.epoch and not position.batches
        meta = {"epoch": position.epoch, "iter": position.step, "metrics": state.last if evaluated else {}}
        return {"state_dict": _weights(self._trained.model), "meta": {**self._meta, **meta}}


class Resumption:
    """The `last.pth` of an interrupted run, read once.

    Raises:
        TrainError: the file cannot be read, or holds nothing to go on from.
    """

    def __init__(self, last: Path) -> None:
        self._contents = checkpoints.read(last)
        self._checkpoint = checkpoints.parse(self._contents, last)
        if missing := [key for key in ("optimizer", "run") if key not in self._contents]:
            raise TrainError(f"{last} holds no {', '.join(missing)}: it is not the last.pth of a run")

    @property
    def position(self) -> Position:
        """How far the run had come."""
        meta = self._checkpoint.meta  # a file of 0.1.0 says no more: it was written at the end of an epoch
        return Position(**self._contents.get("position", {"epoch": meta["epoch"], "step": meta["iter"]}))

    @property
    def path(self) -> Path:
        """The file."""
        return self._checkpoint.path

    @property
    def config(self) -> Mapping[str, Any]:
        """The config that the run had, as plain data."""
        return self._checkpoint.config

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self._checkpoint.meta["seed"])

    @property
    def start(self) -> dict[str, Any]:
        """What the run started from (see `mm.start`); nothing in a file of before there was this."""
        return dict(self._checkpoint.meta.get("start") or {})

    @property
    def teacher(self) -> dict[str, Any]:
        """What was found out about the teacher before the first step (see `preflight`); nothing in an older file."""
        return dict(self._checkpoint.meta.get("teacher") or {})

    @property
    def images_per_step(self) -> int:
        """Of the session that was interrupted."""
        return int(self._contents["run"]["batch_size"])

    def changed_settings(self, config: Mapping[str, Any]) -> list[str]:
        """`key: old -> new` for each setting that is not as it was when the run began."""
        before, now = dict(flat(self.config)), dict(flat(config))
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return [f"{key}: {before.get(key, 'none')} -> {now.get(key, 'none')}" for key in keys]

    def check_origin(self, classes: Sequence[str], origin: Mapping[str, Any]) -> None:
        """Refuse other classes, other annotations or another teacher, as far as the file says what they were.

        Args:
            classes, origin: of the config by now (see `engine.origin`).

        Raises:
            TrainError: names both, and the way out.
        """
        if self._checkpoint.classes:
            refuse_other_classes(self.path, self._checkpoint.classes, classes)
        refuse_another(self.path, self._contents.get("origin") or {}, origin)

    def check_epoch(self, loader: TrainLoader) -> None:
        """Refuse another number of batches an epoch: the schedule would no longer be the run's own.

        The number of processes and of batches a step may change.

        Raises:
            TrainError: names both numbers.
        """
        batches = self._contents.get("epoch_batches") or self.position.step // self.position.epoch
        if batches != loader.batches:
            raise TrainError(
                f"{self.path} was trained with {batches} batches an epoch, the config now gives "
                f"{loader.batches}: data or batch size have changed. Start a new run in another --work-dir"
            )

    def state(self, images_per_step: int) -> RunState:
        """The results and times so far."""
        data = dict(self._contents["run"])
        if "position" not in self._contents:  # of 0.1.0, which evaluated before it saved
            data["evaluated_epoch"] = self.position.epoch
        return RunState.from_data(data, images_per_step)

    def restore(self, trained: Trained) -> None:
        """Load weights, averages, optimizer, scale and attributes into what the config has built.

        The optimizer's settings (learning rate, weight decay) stay the config's, which a user may have changed; the
        schedule sets the learning rate of each epoch from them.

        Raises:
            TrainError: model, distiller or optimizer are not those of the run.
        """
        optimizer, contents = trained.step.optimizer, self._contents
        weights = self._checkpoint.state_dict
        checkpoints.load_weights(trained.student, self._checkpoint)
        groups = optimizer.state_dict()["param_groups"]
        try:
            if "student" in contents:
                trained.student.load_state_dict(contents["student"])
            if trained.average is not None:
                trained.average.restore(weights, contents.get("average", {"updates": 1}))
            if trained.distiller is not None:
                trained.distiller.load_state_dict(contents["distiller"])
            optimizer.load_state_dict({"state": contents["optimizer"]["state"], "param_groups": groups})
            if contents.get("scaler") and trained.step.scaler.is_enabled():
                trained.step.scaler.load_state_dict(contents["scaler"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise TrainError(
                f"{self.path} does not fit this config's distillation or optimizer: {error}. "
                "Resume with the config of the run"
            ) from error
        if trained.terms is not None:
            trained.terms.load_state_dict(contents.get("terms", {}))
        if attributes := contents.get("attributes"):
            world = trained.loader.world
            trained.attributes.restore(attributes[world.rank if world.size == len(attributes) else 0])
        records = contents.get("records", {"sums": {}, "counts": {}})
        trained.recorder.sums, trained.recorder.counts = (current_terms(records[key]) for key in ("sums", "counts"))


def saved_position(last: Path) -> Position | None:
    """How far the run of a `last.pth` had come; None where there is none."""
    return Resumption(last).position if last.exists() else None


def check_finite(model: nn.Module, step: int) -> None:
    """Refuse weights that are not finite (a gradient can overflow under a finite loss).

    Raises:
        NotFinite: names the first such key.
    """
    weights = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    finite = torch.stack([value.isfinite().all() for value in weights.values()]).tolist()
    if not all(finite):
        raise NotFinite(f"{list(weights)[finite.index(False)]} is not finite after step {step}")


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().cpu() for key, value in model.state_dict().items()}


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf of nested settings."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        for place, item in enumerate(value):
            yield from flat(item, f"{path}.{place}")
    else:
        yield path, value
