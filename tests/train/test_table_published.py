"""The published rows of `cskd-train table` hold against the recipes and against what mmdet ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmdet
import pytest
import yaml
from mmcv import Config

from cskd_train.files.config import load_config
from cskd_train.tables.published import ROWS, MmdetFigure, PublishedRow

REPOSITORY = Path(__file__).parents[2]
SHIPPED = Path(mmdet.__file__).parent / ".mim" / "configs"
FIGURES = [
    figure
    for row in ROWS
    for figure in (row.mmdet_teacher, row.printed_student, row.matched_student, row.nearest_student)
    if figure
]


def test_the_nine_rows_are_those_of_the_readme_and_the_tenth_recipe_has_none() -> None:
    printed = [
        (row.detector, row.teacher_depth, row.student_depth, row.teacher, row.student, row.distilled) for row in ROWS
    ]

    assert printed == [
        ("FasterRCNN", 101, 50, 39.8, 38.4, 41.0),
        ("FasterRCNN", 50, 18, 38.4, 34.5, 36.6),
        ("RetinaNet", 101, 50, 38.9, 37.4, 40.2),
        ("RetinaNet", 101, 18, 38.9, 31.7, 35.8),
        ("RetinaNet", 50, 18, 37.4, 31.7, 35.2),
        ("FCOS", 101, 50, 42.6, 40.9, 42.0),
        ("FCOS", 50, 18, 40.9, 32.5, 35.9),
        ("GFL", 101, 50, 44.9, 40.2, 44.5),
        ("GFL", 50, 18, 42.9, 35.8, 38.9),
        ("FCOS", 101, 18, None, None, None),
    ]
    # as printed in brackets beside the CSKD figure
    assert [row.gain for row in ROWS] == [2.6, 2.1, 2.8, 4.1, 3.5, 1.1, 3.4, 4.3, 3.1, None]


def test_the_like_for_like_gain_of_gfl_r50_is_1_6_and_no_other_row_has_one() -> None:
    assert [row.like_for_like_gain for row in ROWS] == [None] * 7 + [1.6, None, None]


def test_each_recipe_under_configs_cskd_has_one_row() -> None:
    assert sorted(row.recipe for row in ROWS) == sorted(
        path.name for path in (REPOSITORY / "configs/cskd").glob("*.py")
    )


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.model)
def test_each_figure_of_mmdet_is_in_the_metafile_that_mmdet_ships(figure: MmdetFigure) -> None:
    metafile = yaml.safe_load((SHIPPED / figure.folder / "metafile.yml").read_text(encoding="utf-8"))
    models = {model["Name"]: model for model in metafile["Models"]}

    (result,) = models[figure.model]["Results"]

    assert result["Dataset"] == "COCO"
    assert result["Metrics"]["box AP"] == figure.mean_average_precision


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.recipe)
def test_the_row_of_a_recipe_names_its_detector_student_and_teacher(row: PublishedRow) -> None:
    recipe = load_config(REPOSITORY / "configs/cskd" / row.recipe)

    assert recipe.model.type == row.detector
    assert recipe.model.backbone.depth == row.student_depth
    assert f"r{row.teacher_depth}_" in recipe.distill.teacher.checkpoint
    if row.mmdet_teacher:
        assert f"/{row.mmdet_teacher.model}/" in recipe.distill.teacher.checkpoint


def _recipe(config: Config) -> dict[str, Any]:
    """What makes two recipes one: detector, backbone, head, epochs, steps and the image scales of training."""
    train = config.data.train
    pipeline = train.dataset.pipeline if "dataset" in train else train.pipeline
    (resize,) = (step for step in pipeline if step["type"] == "Resize")
    backbone = config.model.backbone
    return {
        "detector": config.model.type,
        "backbone": (backbone.type, backbone.depth, backbone.style, backbone.get("dcn"), backbone.init_cfg.checkpoint),
        "head": config.model.get("bbox_head"),
        "epochs": config.runner.max_epochs * train.get("times", 1),
        "steps": list(config.lr_config.step),
        "scales": (resize["img_scale"], resize.get("multiscale_mode")),
    }


def test_mmdet_publishes_a_student_trained_by_the_same_recipe_for_the_row_that_says_so_and_for_no_other() -> None:
    shipped = {}
    for folder in ("faster_rcnn", "retinanet", "fcos", "gfl"):
        metafile = yaml.safe_load((SHIPPED / folder / "metafile.yml").read_text(encoding="utf-8"))
        for model in metafile["Models"]:
            config = Config.fromfile(str(SHIPPED.parent / model["Config"]))
            if config.model.backbone.type == "ResNet" and "FPN" in str(config.model.get("neck")):
                shipped[model["Name"]] = _recipe(config)
    assert len(shipped) > 25

    for row in ROWS:
        student = _recipe(load_config(REPOSITORY / "configs/cskd" / row.recipe))
        matches = [name for name, recipe in shipped.items() if recipe == student]
        assert matches == ([row.matched_student.model] if row.matched_student else []), row.recipe


def test_what_is_said_to_differ_from_the_matched_student_differs_and_nothing_else() -> None:
    (row,) = (row for row in ROWS if row.matched_student)
    recipe = load_config(REPOSITORY / "configs/cskd" / row.recipe)
    shipped = Config.fromfile(str(SHIPPED / "gfl" / f"{row.matched_student.model}.py"))

    assert (shipped.model.backbone.frozen_stages, recipe.model.backbone.frozen_stages) == (1, -1)
    assert (shipped.optimizer_config.grad_clip, recipe.optimizer_config.grad_clip.max_norm) == (None, 35)
    assert shipped.lr_config.warmup_ratio < recipe.lr_config.warmup_ratio
    for config in (recipe, shipped):
        del config.model.backbone.frozen_stages
        del config.lr_config.warmup_ratio
    assert recipe.model == shipped.model
    assert recipe.optimizer == shipped.optimizer
    assert recipe.lr_config == shipped.lr_config
    assert recipe.data.samples_per_gpu == shipped.data.samples_per_gpu
    assert recipe.data.train.pipeline == shipped.data.train.pipeline
    assert recipe.data.test.pipeline == shipped.data.test.pipeline


@pytest.mark.parametrize("row", [row for row in ROWS if row.printed_student], ids=lambda row: row.recipe)
def test_a_printed_student_has_the_map_of_a_model_that_mmdet_trained_on_one_image_scale(row: PublishedRow) -> None:
    student = row.printed_student
    config = Config.fromfile(str(SHIPPED / student.folder / f"{student.model}.py"))

    assert student.mean_average_precision == row.student
    assert config.model.backbone.depth == row.student_depth
    assert _recipe(config)["scales"] == ((1333, 800), None)
