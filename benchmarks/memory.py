"""Peak memory of one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak(step: Callable[[], Any], device: torch.device) -> int:
    """Bytes of the tensors that a call has alive at its peak, beyond those that were there before; of a second call.

    On a GPU torch's own count. On a processor every tensor that an operator returns is followed until it is freed; what
    kernels allocate inside is not seen.
    """
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return int(torch.cuda.max_memory_allocated() - before)
    with _Follow() as follow:
        step()
    return follow.peak


class _Follow(TorchDispatchMode):
    """Counts the bytes of living storages that were made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._current = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if _is_tensor(leaf):
                self._add(leaf.untyped_storage(), given)
        return result

    def _add(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        address = storage.data_ptr()
        known = self._storages.get(address)
        if address in given or (known is not None and not known[0].expired()):
            return  # a view, or in place
        if known is not None:
            self._current -= known[1]
        self._storages[address] = (StorageWeakRef(storage), storage.nbytes())
        self._current += storage.nbytes()
        if self._current > self.peak:
            self._forget_the_freed()
            self.peak = max(self.peak, self._current)

    def _forget_the_freed(self) -> None:
        for address in [address for address, (storage, _) in self._storages.items() if storage.expired()]:
            self._current -= self._storages.pop(address)[1]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
