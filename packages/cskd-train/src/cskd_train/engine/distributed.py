"""The processes of a run: joined from torchrun's environment, and what they agree on.

Plain torch: torchrun (or `engine.launch`) starts the processes, DistributedDataParallel averages their gradients. Every
collective here is a no-op in a run of one process.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from cskd_train.engine.device import choose_device
from cskd_train.errors import REFUSALS, TrainError

T = TypeVar("T")

# DistributedDataParallel's argument for the main process's buffers in every forward; torch 2.13 has renamed it.
_ARGUMENTS = inspect.signature(DistributedDataParallel).parameters
_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _ARGUMENTS else "broadcast_buffers"

LAUNCHED = "CSKD_LAUNCHED"
"""The environment variable that tells a process that `engine.launch` has started it."""

# The longest that processes wait for each other: the main process scores an evaluation meanwhile.
TIMEOUT = timedelta(minutes=30)


class SharedError(TrainError):
    """An error that every process of a run raises alike: the main process alone prints it."""

    def __init__(self, message: str, exit_code: int = TrainError.exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ConnectionLost(TrainError):
    """Another process of the run is gone; its own message says why."""


@dataclass(frozen=True)
class World:
    """One process among the processes of a run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this machine
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes, prints and keeps the log."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def gather(self, item: T) -> list[T]:
        """What each process gave, in the order of the ranks, to all of them."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def from_main(self, item: T) -> T:
        """What the main process gave, to all of them."""
        if self.size == 1:
            return item
        items = [item]
        dist.broadcast_object_list(items)
        return items[0]

    def together(self, action: Callable[[], T]) -> T:
        """Run `action` in every process. Where it fails in one it fails in all, with the message of the lowest rank.

        Raises:
            REFUSALS, OSError: as `action` raises them, in a run of one process.
            SharedError: with that message and exit code, in a run of several.
        """
        if self.size == 1:
            return action()
        failure, result = None, None
        try:
            result = action()
        except (*REFUSALS, OSError) as error:
            failure = str(error), getattr(error, "exit_code", TrainError.exit_code)
        if failures := [found for found in self.gather(failure) if found]:
            raise SharedError(*failures[0])
        return result  # type: ignore[return-value]

    def check_equal(self, what: str, settings: dict[str, Any]) -> None:
        """Refuse processes that were started with different settings.

        Args:
            what: the settings in a word, for the message.
            settings: key -> plain value.

        Raises:
            SharedError: names up to three settings that differ, and their values.
        """
        main, *others = self.gather(settings)
        for rank, other in enumerate(others, start=1):
            keys = [key for key in {**main, **other} if main.get(key) != other.get(key)]
            if keys:
                shown = "; ".join(f"{key}: {main.get(key, 'none')} and {other.get(key, 'none')}" for key in keys[:3])
                raise SharedError(
                    f"processes 0 and {rank} were started with different {what} ({shown}). "
                    "Start all of them with the same command and the same files"
                )

    def wrap(self, model: nn.Module, find_unused_parameters: bool = False) -> nn.Module:
        """The model whose backward averages gradients over the processes; the model itself where there is one."""
        if self.size == 1:
            return model
        settings: dict[str, Any] = {
            "device_ids": [self.device] if self.device.type == "cuda" else None,
            _BUFFERS: False,  # statistics are shared when they are needed: `share_statistics`
            "find_unused_parameters": find_unused_parameters,
            "gradient_as_bucket_view": True,
        }
        return DistributedDataParallel(model, **settings)

    def share_statistics(self, model: nn.Module, *copies: nn.Module) -> None:
        """Average the running statistics of trained BatchNorm layers: each process has seen other images.

        Args:
            copies: modules of the same structure, whose statistics are averaged where the model's are.
        """
        if self.size == 1:
            return
        norms = [name for name, part in model.named_modules() if isinstance(part, _BatchNorm) and part.training]
        for network in (model, *copies):
            for name in norms:
                norm: Any = network.get_submodule(name)
                if norm.track_running_stats:
                    self.mean(norm.running_mean)
                    self.mean(norm.running_var)

    def to_main(self, item: T) -> list[T]:
        """What each process gave, in the order of the ranks, to the main one; nothing to the others."""
        if self.size == 1:
            return [item]
        items: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(item, items)
        return items or []


@contextmanager
def joined(device: str) -> Iterator[World]:
    """This process among those that torchrun's environment tells of, for as long as the context lasts.

    Args:
        device: `auto`, `cpu` or `cuda`; each process takes the GPU of its local rank.

    Raises:
        TrainError: no such device; the processes do not find each other.
        ConnectionLost: inside the context, where another process is gone.
    """
    if not is_worker():
        yield World(device=choose_device(device))
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    chosen = choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    try:
        _join(backend)
    except (RuntimeError, ValueError) as error:
        raise TrainError(f"this process cannot join the others of the run: {error}") from error
    try:
        yield World(dist.get_rank(), dist.get_world_size(), local_rank, chosen)
    except RuntimeError as error:
        if _is_lost_connection(error):
            raise ConnectionLost(
                "the connection to another process of the run is lost; see that one's message"
            ) from error
        raise
    dist.destroy_process_group()  # not after an error: it would wait for processes that are gone


def _join(backend: str) -> None:
    """`init_process_group`, in a part of the store of its own for each restart.

    torchrun keeps the store when it restarts the processes, and torch 2.13 finds in it the addresses of those that are
    gone: a process that is quicker than the others would try to connect to them.
    """
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
    store.set_timeout(TIMEOUT)
    store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)


def is_worker() -> bool:
    """Whether torchrun, or `engine.launch`, has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "WORLD_SIZE" in os.environ


def is_main_process() -> bool:
    """Whether this process is alone, or the one that prints."""
    return not is_worker() or os.environ.get("RANK") == "0"


def is_launched() -> bool:
    """Whether `engine.launch` has started this process: it has checked the input, and prints for its processes."""
    return is_worker() and LAUNCHED in os.environ


def is_restart() -> bool:
    """Whether torchrun started this process anew after one of the run had failed."""
    return is_worker() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _is_lost_connection(error: RuntimeError) -> bool:
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return any(
        sign in text for sign in ("Connection closed by peer", "Connection reset", "Broken pipe", "[gloo", "/gloo/")
    )
