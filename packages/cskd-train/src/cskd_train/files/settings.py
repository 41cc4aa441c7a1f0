"""Whether a run does what its config says: no key of it is silently ignored."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from mmcv import Config

from cskd_core.plan import DistillPlan
from cskd_train.errors import TrainError
from cskd_train.files.variables import unread_names
from cskd_train.files.vocabulary import NOT_NEGATIVE, PASSED_OVER_HOOKS, REFUSED_HOOKS, REQUIRED, TABLES


def check_settings(cfg: Config) -> list[str]:
    """Refuse a config that misses a block, or asks for what a run would not do.

    Returns:
        notes for the user, on keys that are passed over.

    Raises:
        TrainError: names the key and what to write instead.
        PlanError: the `distill` block does not fit its schema.
    """
    plan = DistillPlan.parse(cfg.distill) if cfg.get("distill") else None
    if plan and plan.init_student and cfg.get("load_from"):
        raise TrainError(
            f"load_from = {cfg.load_from!r} and distill.init_student=True both say how the student's head begins: "
            "take one of them out"
        )
    for key in ("model", "data", "optimizer", "runner"):
        if key not in cfg:
            raise TrainError(f"the config has no {key!r} block; configs/_base_ has one to build on")
    if isinstance(cfg.optimizer, Mapping) and not NOT_NEGATIVE.fits(cfg.optimizer.get("lr")):
        raise TrainError(f"optimizer.lr = {cfg.optimizer.get('lr')!r}: {NOT_NEGATIVE.say}")
    notes = list(_check_block(cfg, ""))
    _check_types(cfg)
    notes.extend(note for path in TABLES if path for note in _check_block(cfg, path))
    _check_required(cfg)
    return [*notes, *unread_names(cfg)]


def _check_types(cfg: Config) -> None:
    """Hooks and the runner by their class, before the keys of the wrong class are found fault with.

    Raises:
        TrainError: names the class and what to write instead.
    """
    if cfg.runner.get("type", "EpochBasedRunner") != "EpochBasedRunner" or "max_epochs" not in cfg.runner:
        raise TrainError(
            f"runner = {dict(cfg.runner)}: only runner = dict(type='EpochBasedRunner', max_epochs=N) is supported"
        )
    gradient = (cfg.get("optimizer_config") or {}).get("type", "OptimizerHook")
    if gradient != "OptimizerHook" and gradient in REFUSED_HOOKS:
        raise TrainError(f"optimizer_config.type = {gradient!r}: {REFUSED_HOOKS[gradient]}")
    for path in ("custom_hooks", "log_config.hooks"):
        hooks = _block(cfg, path) or []
        for place, hook in enumerate(hooks if isinstance(hooks, list) else [hooks]):
            kind = hook.get("type") if isinstance(hook, Mapping) else None
            if not isinstance(kind, str):
                raise TrainError(f"{path}.{place} = {hook!r}: expected a dict with the hook's class as `type`")
            if kind in REFUSED_HOOKS:
                raise TrainError(f"{path}.{place}.type = {kind!r}: {REFUSED_HOOKS[kind]}")
            if kind == "YOLOXModeSwitchHook" and "MultiImageMixDataset" not in str(cfg.data.get("train")):
                raise TrainError(
                    f"{path}.{place}.type = {kind!r}: there is no MultiImageMixDataset in data.train whose steps it "
                    "could leave out; take it out"
                )


def _check_required(cfg: Config) -> None:
    for path, keys in REQUIRED.items():
        block = _block(cfg, path)
        missing = [key for key in keys if isinstance(block, Mapping) and key not in block]
        if missing:
            raise TrainError(f"{path} = {dict(block)!r}: it has no {missing[0]!r}")
    scaling = cfg.get("auto_scale_lr") or {}
    if scaling.get("enable") and "base_batch_size" not in scaling:
        raise TrainError("auto_scale_lr: write base_batch_size, the number of images a step that optimizer.lr is for")


def kept_hooks(cfg: Config) -> list[dict[str, Any]]:
    """The hooks of `custom_hooks` and `log_config.hooks` that a run has to build, the latter with their interval."""
    interval = (cfg.get("log_config") or {}).get("interval", 10)
    loggers = [{"interval": interval, "priority": "VERY_LOW", **hook} for hook in _block(cfg, "log_config.hooks") or []]
    hooks = [*(dict(hook) for hook in cfg.get("custom_hooks") or []), *loggers]
    return [hook for hook in hooks if hook["type"] not in PASSED_OVER_HOOKS]


def _check_block(cfg: Config, path: str) -> Iterator[str]:
    """Check every key of one block; gives the notes."""
    block, rules = _block(cfg, path), TABLES[path]
    if not isinstance(block, Mapping):
        return
    constructor = _block(cfg, "optimizer.constructor")
    if path == "optimizer.paramwise_cfg" and constructor not in (None, "DefaultOptimizerConstructor"):
        return  # it has other keys
    named = f"{path}." if path else ""
    for key, value in block.items():
        rule = rules.get(key)
        if rule is None:
            if not path:
                continue  # a variable of the config file, perhaps: unread_names looks at these
            near = difflib.get_close_matches(str(key), rules, n=3) or list(rules)
            raise TrainError(f"{named}{key} = {value!r}: nothing goes by it; did you mean {', '.join(near)}?")
        if rule.fits(value):
            continue
        message = f"{named}{key} = {value!r}: {rule.say}"
        if not rule.noted:
            raise TrainError(message)
        yield f"{message}; this key is passed over"


def _block(cfg: Config, path: str) -> Any:
    """What the config has at a dotted key; None where there is nothing."""
    block: Any = dict(cfg.items())  # mmcv's Config is no Mapping
    for name in path.split(".") if path else ():
        block = block.get(name) if isinstance(block, Mapping) else None
    return block
