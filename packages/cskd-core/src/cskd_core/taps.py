"""Taps: what named submodules and methods of a detector return during one forward, recorded from outside."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cskd_core.errors import TapError

INPUTS = "@inputs"

_NONE = object()
"""In place of an attribute that an instance does not have."""


class Recording:
    """What each tap saw, in call order: a tower runs once a pyramid level, so its tap holds one tensor a level."""

    def __init__(self, taps: Mapping[str, str]) -> None:
        self._taps = taps
        self._calls: dict[str, list[Any]] = {name: [] for name in taps}
        self._with_graph = torch.is_grad_enabled()
        self.read_once: set[str] = set()
        """Taps whose last call was asked for."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of all taps."""
        return tuple(self._taps)

    def add(self, name: str, value: Any) -> None:
        self._calls[name].append(value)

    def add_feature(self, name: str, value: Any) -> None:
        """`add` for what a submodule takes or gives.

        Raises:
            TapError: the forward has a graph, but not here: no gradient would come back through this tap.
        """
        if self._with_graph and not torch.is_grad_enabled():
            raise TapError(
                f"tap '{name}' on '{self._taps[name]}' runs without gradients, as inside a reentrant activation "
                "checkpoint: what is recorded there teaches nothing. Call torch.utils.checkpoint.checkpoint with "
                "use_reentrant=False"
            )
        self.add(name, value)

    def ran(self, name: str) -> bool:
        """Whether tap `name` recorded anything (a teacher assigns no targets, for example)."""
        return bool(self._calls[name])

    def runs(self, name: str) -> int:
        """How many values tap `name` recorded."""
        return len(self._calls[name])

    def calls(self, name: str) -> list[Any]:
        """Every value that tap `name` recorded.

        Raises:
            TapError: the tap recorded nothing.
        """
        if not self._calls[name]:
            found = f"tap '{name}' on '{self._taps[name]}' recorded nothing: the detector's forward did not run it"
            if "torch._dynamo" in sys.modules:
                found += (
                    ", or ran a graph that torch.compile had made of it outside of the recording, without taps. Set "
                    "torch._dynamo.config.skip_nnmodule_hook_guards = False before the first call, or compile in place "
                    "(detector.backbone.compile()) parts that hold no tap"
                )
            raise TapError(found)
        return self._calls[name]

    def last(self, name: str) -> Any:
        """What the last call returned (for a submodule that runs once a forward).

        Raises:
            TapError: the tap recorded nothing.
        """
        value = self.calls(name)[-1]
        self.read_once.add(name)
        return value


class Taps:
    """Taps on one detector.

    Args:
        detector: any module; it is neither changed nor registered anywhere.
        taps: name -> path. `neck` records what the submodule `detector.neck` returns, `bbox_head.get_targets()` what
            that method returns, `roi_extractor@inputs` the tuple of positional arguments of that submodule.

    Raises:
        TapError: a path that the detector does not have; the message names the nearest ones.

    Example:
        >>> import torch
        >>> detector = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with Taps(detector, {"hidden": "0"}).recording() as recording:
        ...     _ = detector(torch.zeros(1, 2))
        >>> recording.last("hidden").shape
        torch.Size([1, 3])
    """

    def __init__(self, detector: nn.Module, taps: Mapping[str, str]) -> None:
        self._taps = dict(taps)
        self._modules: dict[str, nn.Module] = {}
        self._inputs: dict[str, nn.Module] = {}
        self._methods: dict[str, tuple[nn.Module, str]] = {}
        for name, path in self._taps.items():
            if path.endswith("()"):
                owner_path, _, method = path[:-2].rpartition(".")
                owner = submodule(detector, owner_path)
                if not callable(getattr(owner, method, None)):
                    raise TapError(f"tap '{name}': {type(owner).__name__} at '{owner_path}' has no method '{method}'")
                self._methods[name] = (owner, method)
            elif path.endswith(INPUTS):
                self._inputs[name] = submodule(detector, path.removesuffix(INPUTS))
            else:
                self._modules[name] = submodule(detector, path)

    @contextmanager
    def recording(self) -> Iterator[Recording]:
        """Record while the context lasts; afterwards the detector is as it was. Recordings may be nested.

        Submodules may run inside activation checkpoints that are not reentrant; their second forward, in the backward
        pass, comes after the context.
        """
        record = Recording(self._taps)
        handles = [
            module.register_forward_hook(_module_recorder(record, name)) for name, module in self._modules.items()
        ]
        handles += [
            module.register_forward_pre_hook(_input_recorder(record, name)) for name, module in self._inputs.items()
        ]
        before: list[tuple[nn.Module, str, Any]] = []
        for name, (owner, method) in self._methods.items():
            # An instance attribute shadows the class's method for as long as it is there.
            before.append((owner, method, owner.__dict__.get(method, _NONE)))
            owner.__dict__[method] = _method_recorder(record, name, getattr(owner, method))
        try:
            yield record
        finally:
            for handle in handles:
                handle.remove()
            for owner, method, own in reversed(before):
                if own is _NONE:
                    owner.__dict__.pop(method, None)
                else:
                    owner.__dict__[method] = own


def _module_recorder(record: Recording, name: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
        record.add_feature(name, output)

    return hook


def _input_recorder(record: Recording, name: str) -> Callable[[nn.Module, Any], None]:
    def hook(_module: nn.Module, arguments: Any) -> None:
        record.add_feature(name, arguments)

    return hook


def _method_recorder(record: Recording, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def recorded(*args: Any, **kwargs: Any) -> Any:
        output = method(*args, **kwargs)
        record.add(name, output)
        return output

    return recorded


def submodule(detector: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path.

    Raises:
        TapError: the detector has none there; the message names the nearest paths, or the detector within a wrapper.
    """
    modules = dict(detector.named_modules())
    if path in modules:
        return modules[path]
    for wrapped in ("_orig_mod", "module"):  # as torch.compile and nn.parallel name it
        if f"{wrapped}.{path}" in modules:
            raise TapError(
                f"{type(detector).__name__} has no submodule '{path}', but the detector that it wraps has: give that "
                f"one, its .{wrapped}, and run the wrapper"
            )
    near = difflib.get_close_matches(path, modules, n=3, cutoff=0.0)
    raise TapError(f"{type(detector).__name__} has no submodule '{path}'; the nearest are: {', '.join(near)}")
