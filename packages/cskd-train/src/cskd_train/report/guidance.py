"""Where on an image the student's features differ from the teacher's: what guides the distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from cskd_core.plan import DistillPlan
from cskd_train.engine.build import build_split
from cskd_train.engine.loader import evaluation_loader, to_device
from cskd_train.errors import TrainError
from cskd_train.files import checkpoints
from cskd_train.files.config import config_from_data
from cskd_train.files.overrides import move_root
from cskd_train.mm.detector import build_distilled
from cskd_train.mm.plain import build_without_pretrained
from cskd_train.report.detected import Asked
from cskd_train.report.runs import Subject


@dataclass(frozen=True)
class Guidance:
    """The spatial guidance of one image.

    Attributes:
        file: of the image.
        levels: stride and map of each level that is compared: one minus the cosine of the adapted student's and the
            teacher's features at each position, (H, W), in [0, 2].
        covered: width and height that a map covers, in pixels of the image as stored; it may be larger than the image.
    """

    file: Path
    levels: Sequence[tuple[int, np.ndarray]]
    covered: tuple[float, float]


def guidance(subject: Subject, moved: tuple[str, str], image_ids: Sequence[int], asked: Asked) -> list[Guidance]:
    """The guidance of some images, by the weights of a run's last.pth, which alone has the adapters.

    Args:
        image_ids: in normal form, of the split.

    Raises:
        TrainError, PlanError ...: what is missing, in a sentence.
    """
    run, teacher = subject.run, subject.teacher
    last = run.files.last
    if not last.is_file():
        raise TrainError("there is no last.pth, which alone holds the adapters of the features")
    if teacher is None or teacher.checkpoint is None:
        raise TrainError(f"the teacher's checkpoint {run.teacher_checkpoint} is not there")
    contents = checkpoints.read(last)
    checkpoint = checkpoints.parse(contents, last)
    settings = {**run.data_root(checkpoint.config), **asked.overrides}
    cfg = config_from_data(move_root(dict(checkpoint.config), *moved), settings)
    plan = DistillPlan.parse(cfg.distill)
    if plan.pyramid is None or plan.pyramid.kind != "cskd":
        kind = "not compared" if plan.pyramid is None else f"compared by {plan.pyramid.kind}"
        raise TrainError(f"the pyramids are {kind} here, which has no guidance")
    where = {"checkpoint": str(teacher.checkpoint), **({"config": teacher.config} if teacher.config else {})}
    cfg.distill = {**cfg.distill, "teacher": {**cfg.distill["teacher"], **where}}
    dataset = build_split(cfg, asked.split, checkpoint.classes)
    student = build_without_pretrained(cfg.model)
    student.CLASSES = dataset.CLASSES
    checkpoints.load_weights(student, checkpoint)
    distilled = build_distilled(student, cfg, asked.device)
    try:
        distilled.distiller.load_state_dict(contents["distiller"])
    except (KeyError, RuntimeError) as error:
        raise TrainError(f"{last} holds no adapters that fit this teacher") from error
    places = [dataset.img_ids.index(one) for one in image_ids]
    batches = evaluation_loader(dataset, places, 0)
    found = []
    for done, (place, batch) in enumerate(zip(places, batches, strict=True), start=1):
        found.append(_of_image(distilled.eval(), dataset, place, to_device(batch, asked.device)))
        asked.progress("guidance", done, len(places))
    return found


@torch.no_grad()
def _of_image(distilled: Any, dataset: Any, place: int, batch: Any) -> Guidance:
    image, meta = batch["img"][0], batch["img_metas"][0][0]
    height, width = image.shape[2:]
    pairs = distilled.compared_pyramids(image, batch["img_metas"][0])
    across, down = meta["scale_factor"][:2]
    levels = [(stride, distance(*pair)) for stride, pair in pairs.items()]
    info = dataset.data_infos[place]
    return Guidance(dataset.normal.path(info), levels, (width / float(across), height / float(down)))


def distance(student: torch.Tensor, teacher: torch.Tensor) -> np.ndarray:
    """One minus the cosine of the features at each position: (1, C, H, W) twice to (H, W)."""
    found: np.ndarray = (1 - cosine_similarity(student.float(), teacher.float(), dim=1))[0].cpu().numpy()
    return found
