"""Going on with an interrupted run as if it had never stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from cskd_train.engine.state import RunState, restore_rng
from cskd_train.engine.workdir import WorkDir
from cskd_train.errors import TrainError
from cskd_train.files import checkpoints


class Resumption:
    """The `last.pth` of an interrupted run.

    Raises:
        TrainError: the file cannot be read, or holds nothing to go on from.
    """

    def __init__(self, work_dir: WorkDir) -> None:
        self._checkpoint = checkpoints.load_checkpoint(work_dir.last)
        self._contents = checkpoints.read(work_dir.last)
        if missing := [key for key in ("optimizer", "rng", "run") if key not in self._contents]:
            raise TrainError(f"{work_dir.last} holds no {', '.join(missing)}: it is not the last.pth of a run")

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return int(self._checkpoint.meta["epoch"])

    @property
    def iteration(self) -> int:
        """Iterations in these."""
        return int(self._checkpoint.meta["iter"])

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self._checkpoint.meta["seed"])

    def changed_settings(self, config: Mapping[str, Any]) -> list[str]:
        """`key: old -> new` for each setting that is not as it was when the run began."""
        before, now = dict(_flat(self._checkpoint.config)), dict(_flat(config))
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return [f"{key}: {before.get(key, 'none')} -> {now.get(key, 'none')}" for key in keys]

    def check_epoch_length(self, iterations: int) -> None:
        """Refuse another number of iterations an epoch: the schedule would no longer be the run's own.

        Raises:
            TrainError: names both numbers.
        """
        if self.iteration != self.epoch * iterations:
            raise TrainError(
                f"{self._checkpoint.path} was trained with {self.iteration // self.epoch} iterations an epoch, the "
                f"config now gives {iterations}: data or batch size have changed. Start a new run in another --work-dir"
            )

    def restore(self, student: nn.Module, distiller: nn.Module | None, optimizer: Optimizer) -> RunState:
        """Load weights, optimizer state and generators; gives the results and times so far.

        The optimizer's settings (learning rate, weight decay) stay the config's, which a user may have changed to
        mend a run; the schedule sets the learning rate of each epoch from them.

        Raises:
            TrainError: model, distiller or optimizer are not those of the run.
        """
        checkpoints.load_weights(student, self._checkpoint)
        groups = optimizer.state_dict()["param_groups"]
        try:
            if distiller is not None:
                distiller.load_state_dict(self._contents["distiller"])
            optimizer.load_state_dict({"state": self._contents["optimizer"]["state"], "param_groups": groups})
        except (KeyError, RuntimeError, ValueError) as error:
            raise TrainError(
                f"{self._checkpoint.path} does not fit this config's distillation or optimizer: {error}. "
                "Resume with the config of the run"
            ) from error
        restore_rng(self._contents["rng"])
        return RunState.from_data(self._contents["run"])


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf of nested settings."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        for place, item in enumerate(value):
            yield from _flat(item, f"{path}.{place}")
    else:
        yield path, value
