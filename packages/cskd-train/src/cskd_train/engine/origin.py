"""What a run learns from, by content: its classes, annotation files and teacher. Another folder is no change."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcv import Config

from cskd_core.plan import DistillPlan
from cskd_data.names import plain_name
from cskd_train.engine.build import SPLITS, has_split, split_sources
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import sha256
from cskd_train.files.downloads import fetch

_NEW_RUN = "or start a new run in another --work-dir"
_NAMES, _DIGITS = 20, 12


def origin_of(cfg: Config, classes: Sequence[str]) -> dict[str, Any]:
    """What the run of a config learns from and is measured by, as plain data for its `last.pth`.

    Args:
        classes: names, in the order of the labels.

    Returns:
        `annotations`, split -> a list of `file` and `sha256`; `teacher`, `file` and `sha256` of its weights, or None.

    Raises:
        TrainError: the teacher's file is not there; the config has no data.train.
        DataError: annotations cannot be read.
    """
    found: dict[str, Any] = {"annotations": {}, "teacher": None}
    for split in (split for split in SPLITS if has_split(cfg, split)):
        sources = split_sources(cfg, split)
        found["annotations"][split] = [_content(one.ann_file, one.sha256(classes)) for one in sources]
    if cfg.get("distill"):
        teacher = DistillPlan.parse(cfg.distill).teacher
        file = fetch(teacher.checkpoint, teacher.config)
        found["teacher"] = _content(str(file), sha256(file))
    return found


def _content(file: str, digest: str) -> dict[str, str]:
    return {"file": os.path.abspath(file), "sha256": digest}


def refuse_another(last: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a run on other annotations or under another teacher.

    A split that only one of both has is a change of settings, of which `Resumption.changed_settings` warns.

    Args:
        last: the run's `last.pth`, for messages.
        was: what it says of its origin; an older file lacks some or all of the keys.
        now: as `origin_of` gives it.

    Raises:
        TrainError: names both, and the way out.
    """
    for split, before in (was.get("annotations") or {}).items():
        after = now["annotations"].get(split)
        if after is not None and _digests(before) != _digests(after):
            raise TrainError(
                f"{last} was trained with other annotations (data.{split}): they were {_listed(before)}, and are "
                f"{_listed(after)}. Put the former ones back, {_NEW_RUN}"
            )
    if was.get("teacher") and (now["teacher"] is None or _digests([was["teacher"]]) != _digests([now["teacher"]])):
        after = "without a teacher" if now["teacher"] is None else f"under {_listed([now['teacher']])}"
        raise TrainError(
            f"{last} was trained under the teacher {_listed([was['teacher']])}, and would go on {after}. "
            f"Put the former one back (distill.teacher), {_NEW_RUN}"
        )


def refuse_other_classes(last: Path, was: Sequence[str], now: Sequence[str]) -> None:
    """Refuse to go on with a run on other classes, or on the same in another order: its classifier has a row for each.

    Args:
        last: the run's `last.pth`, for messages.
        was, now: names, in the order of the labels; before and by now.

    Raises:
        TrainError: names both, and the way out.
    """
    before, after = ([plain_name(name) for name in names] for names in (was, now))
    if before != after:
        how = "the same classes in another order" if sorted(before) == sorted(after) else "other classes"
        raise TrainError(
            f"{last} was trained on {how}: {_few(before)}; by now they are {_few(after)}. "
            f"Set `classes` to the former ones, in that order, {_NEW_RUN}"
        )


def _digests(contents: Sequence[Mapping[str, str]]) -> list[str]:
    return [one["sha256"] for one in contents]


def _listed(contents: Sequence[Mapping[str, str]]) -> str:
    return ", ".join(f"{one['file']} (sha256 {one['sha256'][:_DIGITS]}...)" for one in contents)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more
