"""Build a stock mmdet detector from its config; its pretrained weights are read as data only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from mmcv import ConfigDict
from mmcv.cnn.utils.weight_init import INITIALIZERS
from mmcv.runner.checkpoint import CheckpointLoader
from mmdet import models
from mmdet.models.dense_heads import paa_head
from torch import Tensor, nn

from cskd_train.errors import NotInstalled, TrainError
from cskd_train.files.checkpoints import read, weights_of
from cskd_train.files.downloads import local_file
from cskd_train.mm.normalization import Normalization


def build_detector(model: Any) -> nn.Module:
    """The detector of a `model` config, its weights not initialised.

    Raises:
        TrainError: the model cannot be built, or reads a file of weights while it is (see `barred_mmcv_loader`); it
            normalises images itself, as mmdet 3 has it, for which a pipeline here would have to know.
    """
    if model.get("data_preprocessor"):
        found = Normalization.of_preprocessor(model["data_preprocessor"])
        step = "dict(type='Normalize', ...)" if found is None else found.as_step()
        raise TrainError(
            "model.data_preprocessor is mmdet 3's place for the normalisation of images; here it is a step of the "
            f"pipelines. Take it out, and write {step} before Pad, in training and test"
        )
    try:
        with barred_mmcv_loader():
            detector: nn.Module = models.build_detector(model)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise TrainError(f"the config's model cannot be built: {error}") from error
    return detector


def build_without_pretrained(model: Any) -> nn.Module:
    """The detector of a `model` config, ready for a checkpoint: nothing is fetched that it would overwrite.

    Raises:
        TrainError: the model cannot be built.
    """
    return build_detector(ConfigDict(_strip(model)))


def without_pretrained_backbone(model: Any) -> Any:
    """The `model` config without the pretrained weights of its backbone, which others are about to replace."""
    kept = {key: _strip(value) if key == "backbone" else value for key, value in model.items() if key != "pretrained"}
    return ConfigDict(kept)


def _strip(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strip(item) for key, item in value.items() if not _asks_for_pretrained(key, item)}
    return [_strip(item) for item in value] if isinstance(value, list) else value


def _asks_for_pretrained(key: str, value: Any) -> bool:
    return key == "pretrained" or (key == "init_cfg" and isinstance(value, dict) and value.get("type") == "Pretrained")


_SHOWN = 5  # keys in a message


@contextmanager
def barred_mmcv_loader() -> Iterator[None]:
    """Refuse, within, every checkpoint that mmcv would read.

    Some parts of mmdet open a file without asking the initialisers: Swin, PVT and DetectoRS backbones their
    `init_cfg`, detectors with a built-in teacher their `teacher_ckpt`.
    """

    def refuse(filename: Any, map_location: Any = None, logger: Any = None) -> NoReturn:
        raise TrainError(
            f"a part of the config's model reads its weights {filename} by itself (as Swin, PVT and DetectoRS "
            "backbones and detectors with a built-in teacher do), in a way that would run code in it: not supported. "
            "Take them out of the config, and give the weights of the whole detector by load_from"
        )

    stock = inspect.getattr_static(CheckpointLoader, "load_checkpoint")
    CheckpointLoader.load_checkpoint = staticmethod(refuse)
    try:
        yield
    finally:
        CheckpointLoader.load_checkpoint = stock


def init_weights(model: nn.Module, cfg: Mapping[str, Any], note: Callable[[str], None]) -> None:
    """Initialise a detector as its config says, `Pretrained` with files that are read as data only.

    mmcv decides what is initialised and in which order, so the random weights of a seed are those that mmdet draws.

    Args:
        model: as `cfg` builds it.
        cfg: the `model` config, for the key in which a message names a way out.
        note: called with one line for each pretrained part: what was taken from which file.

    Raises:
        TrainError: the file cannot be had or read, or does not fit the part of the model.
        NotInstalled: the detector learns with a package that is not there.
    """
    _check_learns(model)
    names = {module: name for name, module in model.named_modules()}

    class Pretrained:  # mmcv 1.4 registers classes only
        def __init__(self, checkpoint: str, prefix: str | None = None, map_location: Any = None) -> None:
            # map_location: where mmcv keeps the tensors on their way into the module; here that is the CPU's memory.
            self.checkpoint, self.prefix = checkpoint, prefix

        def __call__(self, module: nn.Module) -> None:
            _Part(module, names[module], cfg).load(self.checkpoint, self.prefix, note)

    stock = INITIALIZERS.get("Pretrained")
    INITIALIZERS.register_module(name="Pretrained", module=Pretrained, force=True)
    try:
        with barred_mmcv_loader():
            model.init_weights()  # type: ignore[operator]
    finally:
        INITIALIZERS.register_module(name="Pretrained", module=stock, force=True)


def _check_learns(model: nn.Module) -> None:
    """mmdet imports scikit-learn if it is there, and misses it in the first training step only."""
    if any(isinstance(module, paa_head.PAAHead) for module in model.modules()) and paa_head.skm is None:
        raise NotInstalled(
            f"a {type(model).__name__} learns with mixtures that scikit-learn fits, which is not installed: "
            "pip install 'cskd-train[paa]'"
        )


class _Part:
    """A submodule that a config wants pretrained, by its name in the detector ("" is the whole)."""

    def __init__(self, module: nn.Module, name: str, cfg: Mapping[str, Any]) -> None:
        self.module, self.name = module, name
        self.what = f"the {name or 'detector'}'s pretrained weights"
        self.key, self.from_scratch = _keys(name, cfg)

    def load(self, checkpoint: Any, prefix: str | None, note: Callable[[str], None]) -> None:
        """Load what belongs to this part, and say what was loaded and what was not."""
        if not isinstance(checkpoint, str):
            raise TrainError(f"{self.key} = {checkpoint!r}: expected a path, an http(s) URL or a name of weights")
        try:
            file = local_file(checkpoint, self.what, self.key)
            weights = self._own(weights_of(read(file), file), prefix, file)
        except TrainError as error:
            raise TrainError(f"{error}. Or train from scratch with --set {self.from_scratch}=None") from error
        missing, unused = self.module.load_state_dict(weights, strict=False)
        missing = [key for key in missing if not key.endswith("num_batches_tracked")]  # older files have no such counts
        line = f"{self.name or 'detector'}: {len(weights) - len(unused)} tensors from {file.name}"
        if unused:
            line += f", {len(unused)} not used ({_some(unused)})"
        if missing:
            line += f", {len(missing)} not in it and left as initialised ({_some(missing)})"
        note(line)

    def _own(self, weights: Mapping[str, Tensor], prefix: str | None, file: Path) -> dict[str, Tensor]:
        """The weights of a file under this part's own keys; those that it does not have are among them."""
        expected = self.module.state_dict()
        found = dict(weights)
        if prefix is not None:
            found = _below(prefix, weights)
        elif self.name and not found.keys() & expected.keys():
            found = _below(self.name, weights)  # a whole detector's file
        if not found.keys() & expected.keys():
            under = "" if prefix is None else f" under the prefix {prefix!r}"
            raise TrainError(
                f"{self.what}: {file} holds none of the tensors of this {type(self.module).__name__}{under}. It has "
                f"{_some(list(weights))}; expected {_some(list(expected))}. "
                f"Name another file with --set {self.key}=FILE"
            )
        others = [
            f"{key} has shape {tuple(value.shape)}, the config's model {tuple(expected[key].shape)}"
            for key, value in found.items()
            if key in expected and value.shape != expected[key].shape
        ]
        if others:
            raise TrainError(
                f"{self.what}: {file} is of another architecture than this {type(self.module).__name__}: "
                f"{_some(others, '; ')}. Name another file with --set {self.key}=FILE"
            )
        return found


def _below(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix.removesuffix('.')}."
    return {key.removeprefix(start): value for key, value in weights.items() if key.startswith(start)}


def _keys(name: str, cfg: Mapping[str, Any]) -> tuple[str, str]:
    """The keys of a config that name the file of a part, and that ask for pretrained weights at all."""
    place, inner = "model", cfg
    if inner.get("pretrained"):  # of the whole detector, in configs of mmdet before 2.11: it hands it to the backbone
        return "model.pretrained", "model.pretrained"
    for step in filter(None, name.split(".")):
        place, inner = f"{place}.{step}", inner.get(step) or {} if isinstance(inner, Mapping) else {}
    if isinstance(inner, Mapping) and inner.get("pretrained"):
        return f"{place}.pretrained", f"{place}.pretrained"
    return f"{place}.init_cfg.checkpoint", f"{place}.init_cfg"


def _some(items: list[str], separator: str = ", ") -> str:
    more = f"{separator}and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return separator.join(items[:_SHOWN]) + more
