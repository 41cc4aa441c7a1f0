"""The published table, with what mmdet publishes beside it. Data only: nothing in this file was measured here.

Source of the printed figures: the results table in the README of the published code (docs/algorithm.md 8.5). Source of
mmdet's: `configs/*/metafile.yml` as the mmdet 2.28.2 package ships them; a test holds each against that file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PRINTED_IN = "README of the published code, github.com/swkdn16/CSKD"
DATA = "COCO 2017"
RECIPES = "configs/cskd"


@dataclass(frozen=True)
class MmdetFigure:
    """The box mAP that mmdet publishes for one of its models.

    `differs` says in what the model's recipe is not that of the row's student; empty where that is not compared.
    """

    folder: str  # under mmdet's configs, holds metafile.yml
    model: str
    mean_average_precision: float
    differs: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "model": self.model,
            "mAP": self.mean_average_precision,
            "source": f"mmdet configs/{self.folder}/metafile.yml",
            **({"differs": self.differs} if self.differs else {}),
        }


@dataclass(frozen=True)
class PublishedRow:
    """One recipe and what is printed for it; `teacher`, `student` and `distilled` are all given or all None."""

    detector: str  # name of the mmdet class
    teacher_depth: int  # of the ResNet
    student_depth: int
    recipe: str  # file under configs/cskd/
    teacher: float | None = None
    student: float | None = None
    distilled: float | None = None
    mmdet_teacher: MmdetFigure | None = None  # the checkpoint that the recipe names
    printed_student: MmdetFigure | None = None  # mmdet's model of the same depth with exactly the printed student's mAP
    matched_student: MmdetFigure | None = None  # trained alone with the student's backbone, schedule and image scales
    nearest_student: MmdetFigure | None = None  # the nearest that is not a match
    remark: str = ""

    @property
    def gain(self) -> float | None:
        """Distilled less student, both as printed."""
        return _difference(self.distilled, self.student)

    @property
    def like_for_like_gain(self) -> float | None:
        """Distilled as printed, less the student that mmdet trained alone by the same recipe."""
        matched = self.matched_student
        return _difference(self.distilled, matched.mean_average_precision if matched else None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        printed = {"teacher": self.teacher, "student": self.student, "distilled": self.distilled, "gain": self.gain}
        figures = {
            name: figure.to_dict() if figure else None
            for name, figure in (
                ("mmdet_teacher", self.mmdet_teacher),
                ("printed_student_equals", self.printed_student),
                ("matched_student", self.matched_student),
                ("nearest_student", self.nearest_student),
            )
        }
        return {
            "detector": self.detector,
            "teacher_depth": self.teacher_depth,
            "student_depth": self.student_depth,
            "recipe": f"{RECIPES}/{self.recipe}",
            "printed": printed if self.distilled is not None else None,
            **figures,
            "like_for_like_gain": self.like_for_like_gain,
            "remark": self.remark or None,
        }


def _difference(distilled: float | None, alone: float | None) -> float | None:
    return None if distilled is None or alone is None else round(distilled - alone, 1)


_RETINANET_R101 = MmdetFigure("retinanet", "retinanet_r101_fpn_2x_coco", 38.9)
_RETINANET_R18 = MmdetFigure("retinanet", "retinanet_r18_fpn_1x_coco", 31.7, "one image scale")

ROWS = (
    PublishedRow(
        "FasterRCNN", 101, 50, "cskd_faster_rcnn_r101_distill_r50_fpn_coco_2x.py", 39.8, 38.4, 41.0,
        mmdet_teacher=MmdetFigure("faster_rcnn", "faster_rcnn_r101_fpn_2x_coco", 39.8),
        printed_student=MmdetFigure("faster_rcnn", "faster_rcnn_r50_fpn_2x_coco", 38.4, "one image scale"),
        nearest_student=MmdetFigure("faster_rcnn", "faster_rcnn_r50_fpn_mstrain_3x_coco", 40.3, "36 epochs, not 24"),
    ),
    PublishedRow(
        "FasterRCNN", 50, 18, "cskd_faster_rcnn_r50_distill_r18_fpn_coco_1x.py", 38.4, 34.5, 36.6,
        mmdet_teacher=MmdetFigure("faster_rcnn", "faster_rcnn_r50_fpn_2x_coco", 38.4),
    ),
    PublishedRow(
        "RetinaNet", 101, 50, "cskd_retina_r101_distill_r50_fpn_coco_2x.py", 38.9, 37.4, 40.2,
        mmdet_teacher=_RETINANET_R101,
        printed_student=MmdetFigure("retinanet", "retinanet_r50_fpn_2x_coco", 37.4, "one image scale"),
        nearest_student=MmdetFigure(
            "retinanet", "retinanet_r50_fpn_mstrain_640-800_3x_coco", 39.5, "36 epochs, not 24"
        ),
    ),
    PublishedRow(
        "RetinaNet", 101, 18, "cskd_retina_r101_distill_r18_fpn_coco_1x.py", 38.9, 31.7, 35.8,
        mmdet_teacher=_RETINANET_R101,
        printed_student=_RETINANET_R18,
    ),
    PublishedRow(
        "RetinaNet", 50, 18, "cskd_retina_r50_distill_r18_fpn_coco_1x.py", 37.4, 31.7, 35.2,
        mmdet_teacher=MmdetFigure("retinanet", "retinanet_r50_fpn_2x_coco", 37.4),
        printed_student=_RETINANET_R18,
    ),
    PublishedRow(
        "FCOS", 101, 50, "cskd_fcos_r101_distill_r50_fpn_coco_2x.py", 42.6, 40.9, 42.0,
        nearest_student=MmdetFigure(
            "fcos", "fcos_r50_caffe_fpn_gn-head_mstrain_640-800_2x_coco", 38.5, "another head and box loss"
        ),
        remark="40.9 is also the printed teacher of the next row, which the authors trained on these image scales for "
        "24 epochs. If it is the same model, this gain is like for like already",
    ),
    PublishedRow("FCOS", 50, 18, "cskd_fcos_r50_distill_r18_fpn_coco_1x.py", 40.9, 32.5, 35.9),
    PublishedRow(
        "GFL", 101, 50, "cskd_gfl_r101_distill_r50_fpn_coco_2x.py", 44.9, 40.2, 44.5,
        mmdet_teacher=MmdetFigure("gfl", "gfl_r101_fpn_mstrain_2x_coco", 44.7),
        printed_student=MmdetFigure("gfl", "gfl_r50_fpn_1x_coco", 40.2, "one image scale, 12 epochs, not 24"),
        matched_student=MmdetFigure(
            "gfl", "gfl_r50_fpn_mstrain_2x_coco", 42.9,
            "the backbone's first stage is frozen, gradients are not clipped, warm-up starts lower",
        ),
    ),
    PublishedRow(
        "GFL", 50, 18, "cskd_gfl_r50_distill_r18_fpn_coco_1x.py", 42.9, 35.8, 38.9,
        mmdet_teacher=MmdetFigure("gfl", "gfl_r50_fpn_mstrain_2x_coco", 42.9),
    ),
    PublishedRow(
        "FCOS", 101, 18, "cskd_fcos_r101_distill_r18_fpn_coco_1x.py", remark="a recipe without published figures"
    ),
)  # fmt: skip


def notes() -> list[str]:
    """What has to be known to read the published rows; rows are counted from 1."""
    numbered = list(enumerate(ROWS, start=1))
    single_scale = ", ".join(str(number) for number, row in numbered if row.printed_student)
    lines = [
        f"Published: as printed in the {PRINTED_IN} ({DATA}). None of these rows was measured by this project.",
        "Published gains compare students trained on several image scales with baselines trained on one: the printed "
        f"student of rows {single_scale} has the mAP of mmdet's single-scale model (of GFL its 12-epoch model beside "
        "a student of 24). A part of those gains is the recipe's.",
    ]
    lines += [
        f"Row {number}, matched: mmdet's {row.matched_student.model} has the backbone, schedule and image scales of "
        f"the student, and no teacher. What still differs: {row.matched_student.differs}."
        for number, row in numbered
        if row.matched_student
    ]
    nearest = "; ".join(
        f"row {number} {row.nearest_student.mean_average_precision} ({row.nearest_student.differs})"
        for number, row in numbered
        if row.nearest_student
    )
    lines.append(f"mmdet publishes no match for the other rows. Its nearest, not comparable: {nearest}.")
    lines += [
        f"Row {number}: mmdet gives {row.mmdet_teacher.mean_average_precision} for its teacher checkpoint, not "
        f"{row.teacher}."
        for number, row in numbered
        if row.mmdet_teacher and row.mmdet_teacher.mean_average_precision != row.teacher
    ]
    return [*lines, *(f"Row {number}: {row.remark}." for number, row in numbered if row.remark)]
