"""Build the teacher that a plan names, with its weights."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import nn

from cskd_core.plan import TeacherPlan
from cskd_train.engine.checkpoints import load_checkpoint, load_weights
from cskd_train.engine.config import config_from_data, load_config
from cskd_train.errors import TrainError
from cskd_train.mm.plain import build_without_pretrained


def build_teacher(plan: TeacherPlan) -> nn.Module:
    """The teacher with its weights loaded.

    Raises:
        TrainError: config or checkpoint are missing, broken, or do not belong together.
    """
    file = fetch(plan.checkpoint)
    checkpoint = load_checkpoint(file, require_config=plan.config is None)
    cfg = load_config(plan.config) if plan.config else config_from_data(checkpoint.config)
    teacher = build_without_pretrained(cfg.model)
    load_weights(teacher, checkpoint)
    return teacher


def fetch(checkpoint: str) -> Path:
    """A local file for a path or a URL; a download is kept, and checked against the hash that ends its name.

    Raises:
        TrainError: there is no such file, or the download failed.
    """
    if not checkpoint.startswith(("http://", "https://")):
        path = Path(checkpoint).expanduser()
        if not path.is_file():
            raise TrainError(
                f"the teacher's checkpoint {checkpoint} does not exist: train the teacher first, "
                "or name a file with --set distill.teacher.checkpoint=FILE"
            )
        return path
    name = Path(urlparse(checkpoint).path).name
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not target.is_file():
        digest = re.search(r"-([0-9a-f]{8,})\.pth$", name)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(checkpoint, str(target), digest.group(1) if digest else None)
        except (OSError, RuntimeError) as error:
            raise TrainError(
                f"the teacher's checkpoint could not be downloaded from {checkpoint} ({error}). "
                f"Place the file at {target}, or name another with --set distill.teacher.checkpoint=FILE"
            ) from error
    return target
