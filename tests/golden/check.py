"""Compare distilled training steps with golden values of the published code.

    python tests/golden/check.py FILE.json

The format of the file is described in README.md beside this one. Each case names a recipe under configs/cskd/: student,
teacher and plan are built from that recipe with the changes that the case states, so that the recipe is checked too.
Prints one line a case; exits 1 if a case is above the tolerance or of a detector family that is not supported yet.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import fill

from cskd_core.distiller import Distiller
from cskd_core.plan import DistillPlan
from cskd_train.files.config import load_config
from cskd_train.mm.detector import DistilledDetector
from cskd_train.mm.families import family_of
from cskd_train.mm.plain import build_without_pretrained

RECIPES = Path(__file__).parents[2] / "configs" / "cskd"
LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 1e-5

PYRAMID = {
    "loss_neck": "pyramid_full",
    "loss_nkroi": "pyramid_roi",
    "loss_nkfg": "pyramid_foreground",
    "loss_nkbg": "pyramid_background",
}
ONE_STAGE = {
    **PYRAMID,
    "loss_kdcls": "prediction_cls",
    "loss_kdbbox": "prediction_reg",
    "loss_assis_cls": "assistant_cls",
    "loss_assis_bbox": "assistant_reg",
    "loss_brcls": "tower_cls",
    "loss_brreg": "tower_reg",
}
LOSS_NAMES = {
    "RetinaNet": ONE_STAGE,
    "GFL": {**ONE_STAGE, "loss_assis_dfl": "assistant_dfl"},
    "FCOS": {
        **ONE_STAGE,
        "loss_roi": "pyramid_roi",
        "loss_nfg": "pyramid_foreground",
        "loss_nbg": "pyramid_background",
        "loss_brnchcls": "tower_cls",
        "loss_brnchreg": "tower_reg",
        "loss_kdcenterness": "prediction_centerness",
        "loss_assis_centerness": "assistant_centerness",
    },
    "FasterRCNN": {
        **PYRAMID,
        "loss_rpn_kdhead": "tower_rpn",
        "loss_rpn_kdcls": "prediction_cls",
        "loss_rpn_kdbbox": "prediction_reg",
        "loss_rpn_assist_cls": "assistant_cls",
        "loss_rpn_assist_bbox": "assistant_reg",
        "loss_nkroi_st": "roi_features_student",
        "loss_nkroi_tch": "roi_features_teacher",
        "loss_headfeat": "roi_fc",
        "loss_kdcls": "roi_prediction_cls",
        "loss_kdbbox": "roi_prediction_reg",
        "loss_assist_cls": "assistant_roi_cls",
        "loss_assist_bbox": "assistant_roi_reg",
    },
}
"""Published loss key -> our term, for each detector; its own losses have the same keys (docs/algorithm.md 6.4)."""

ONE_STAGE_PARAMETERS = [
    (r"distiller\.pyramid\.adapters\.(\d+)\.", r"bbox_head.distill_neck.\1.mimic_conv."),
    (r"distiller\.tower\.adapters\.(cls|reg)\.(\d+)\.(\d+)\.", r"bbox_head.distill_brnch_\1.\2.mimic_conv.\3."),
    (r"distiller\.assistant\.scales\.", "bbox_head.assis_scales."),
    (r"student\.", ""),
]
PARAMETER_NAMES = {
    "RetinaNet": [(r"distiller\.assistant\.predictors\.(\w+)\.", r"bbox_head.assis_retina_\1."), *ONE_STAGE_PARAMETERS],
    "GFL": [(r"distiller\.assistant\.predictors\.(\w+)\.", r"bbox_head.assis_gfl_\1."), *ONE_STAGE_PARAMETERS],
    "FCOS": [(r"distiller\.assistant\.predictors\.(\w+)\.", r"bbox_head.assis_conv_\1."), *ONE_STAGE_PARAMETERS],
    "FasterRCNN": [
        (r"distiller\.pyramid\.adapters\.(\d+)\.", r"rpn_head.distill_neck.\1.mimic_conv."),
        (r"distiller\.tower\.adapters\.rpn\.(\d+)\.0\.", r"rpn_head.distill_head.\1.mimic_conv."),
        (r"distiller\.assistant\.predictors\.(\w+)\.", r"rpn_head.assist_rpn_\1."),
        (r"distiller\.roi\.adapters\.student\.", "roi_head.bbox_head.distill_roi.mimic_conv_st_rois."),
        (r"distiller\.roi\.adapters\.teacher\.", "roi_head.bbox_head.distill_roi.mimic_conv_tch_rois."),
        (r"distiller\.roi\.fc_adapters\.(\d+)\.", r"roi_head.bbox_head.distill_head.\1.mimic_linear."),
        (r"distiller\.roi\.assistant\.(\w+)\.", r"roi_head.bbox_head.assist_fc_\1."),
        (r"student\.", ""),
    ],
}
"""Our parameter name -> the published one, for each detector (docs/algorithm.md 7.2)."""

UNCOMPARED = {"assist_acc"}
"""Published entries that are no losses and that we do not log."""


class CaseMissing(Exception):
    """The case asks for what the project does not have yet."""


@dataclass(frozen=True)
class Agreement:
    """Largest relative errors of one case, and the name that has them."""

    losses: tuple[float, str]
    total: float
    gradients: tuple[float, str]

    @property
    def passed(self) -> bool:
        return max(self.losses[0], self.total) <= LOSS_TOLERANCE and self.gradients[0] <= GRADIENT_TOLERANCE

    def __str__(self) -> str:
        return (
            f"losses {self.losses[0]:.1e} ({self.losses[1]})  total {self.total:.1e}  "
            f"gradients {self.gradients[0]:.1e} ({self.gradients[1]})"
        )


def check_case(entry: Mapping[str, Any], precision: torch.dtype = torch.float64) -> Agreement:
    """Run one training step and compare it with the entry's values.

    Raises:
        CaseMissing: no such recipe, or a change that has no counterpart.
    """
    case = entry["case"]
    model = build(case).to(precision)
    detector = type(model.student).__name__
    images, metas, boxes, labels = fill.batch(case)
    images, boxes = images.to(precision), [image_boxes.float() for image_boxes in boxes]
    losses = model(images, metas, gt_bboxes=boxes, gt_labels=labels)
    total, values = model.student._parse_losses(losses)
    total.backward()
    gradients = {published_name(name, detector): parameter.grad for name, parameter in model.named_parameters()}
    expected = {
        our_loss(name, detector): total_of(value) for name, value in entry["losses"].items() if name not in UNCOMPARED
    }
    missing = [name for name in expected if name not in values]
    extra = [name for name in values if "loss" in name and name not in expected and name != "loss"]
    if missing or extra:
        raise CaseMissing(f"losses of one side only: {', '.join(missing + extra)}")
    errors = {name: relative_error(values[name], value) for name, value in expected.items()}
    gradient_errors = {name: gradient_error(gradients.get(name), given) for name, given in entry["grads"].items()}
    still = {name: gradients[name] for name in entry["no_grad"] if gradients.get(name) is not None}
    gradient_errors |= {name: gradient.norm().item() for name, gradient in still.items() if gradient is not None}
    return Agreement(largest(errors), relative_error(values["loss"], entry["total"]), largest(gradient_errors))


def build(case: Mapping[str, Any]) -> DistilledDetector:
    """Student, teacher and distiller of the case's recipe, in float64, filled by parameter name."""
    recipe = RECIPES / f"{case['config']}.py"
    if not recipe.is_file():
        raise CaseMissing(f"no recipe {recipe.name}")
    cfg = load_config(recipe)
    plan = DistillPlan.parse(with_weights(cfg.distill, case.get("head", {})))
    teacher_cfg = load_config(plan.teacher.config)
    for model_cfg in (cfg.model, teacher_cfg.model):
        set_classes(model_cfg, case["num_classes"])
        if "proposals" in case:
            sample_everything(model_cfg.train_cfg, case["proposals"])
    student, teacher = build_without_pretrained(cfg.model), build_without_pretrained(teacher_cfg.model)
    student.train()
    model = DistilledDetector(student, Distiller(student, teacher, family_of(student), plan)).double()
    state = {published_name(name, type(student).__name__): value for name, value in model.state_dict().items()}
    fill.fill(state, "student", case["seed"])
    fill.fill(teacher.state_dict(), "teacher", case["seed"])
    return model


def with_weights(distill: Mapping[str, Any], head: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's `distill` block with the weights that a case changes, given under their published names."""
    changed = dict(distill.items())
    for key, value in head.items():
        if key == "kd_neck_weight":
            full, roi, region = value
            changed["pyramid"] = {"full": full, "roi": roi, "foreground": region, "background": region}
        elif key == "kd_brnch_weight":
            changed["tower"] = dict(zip(("reg", "cls"), value, strict=True))
        elif key == "kd_pred_weight":
            changed["prediction"] = value
        else:
            raise CaseMissing(f"no counterpart of the published setting {key}")
    return changed


def sample_everything(train_cfg: Any, proposals: int) -> None:
    """Leave nothing to chance: few proposals, all of them sampled."""
    for stage in (train_cfg.rpn, train_cfg.rcnn):
        stage.sampler.update(num=4096, pos_fraction=1.0)
    train_cfg.rpn_proposal.update(nms_pre=200, max_per_img=proposals)


def set_classes(cfg: Any, classes: int) -> None:
    """Set every `num_classes` of a model config."""
    for key, value in cfg.items():
        if key == "num_classes":
            cfg[key] = classes
        elif isinstance(value, dict):
            set_classes(value, classes)


def our_loss(name: str, detector: str) -> str:
    term = LOSS_NAMES[detector].get(name)
    return f"loss_{term}" if term else name


def published_name(name: str, detector: str) -> str:
    for pattern, published in PARAMETER_NAMES[detector]:
        name, found = re.subn(f"^{pattern}", published, name)
        if found:
            break
    return name


def total_of(value: Any) -> float:
    return sum(value) if isinstance(value, list) else value


def relative_error(value: float, expected: float) -> float:
    """Relative to what is expected; absolute where that is zero. NaN counts as infinite."""
    error = abs(value - expected) / (abs(expected) or 1.0)
    return error if error == error else float("inf")


def gradient_error(gradient: Tensor | None, expected: Mapping[str, Any]) -> float:
    """Of the norm, and of the first four values relative to the norm."""
    if gradient is None:
        return float("inf")
    norm = relative_error(gradient.norm().item(), expected["norm"])
    first = gradient.flatten()[:4] - torch.tensor(expected["head"], dtype=gradient.dtype)
    return max(norm, first.abs().max().item() / (expected["norm"] or 1.0))


def largest(errors: Mapping[str, float]) -> tuple[float, str]:
    name = max(errors, key=lambda key: errors[key])
    return errors[name], name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="golden cases")
    file = parser.parse_args().file
    try:
        cases = fill.load_cases(file)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"{file} holds no golden cases ({error}); the format is described in tests/golden/README.md")
    passed = True
    for name, entry in cases.items():
        try:
            agreement = check_case(entry)
            verdict, detail = ("ok" if agreement.passed else "FAILED"), str(agreement)
        except CaseMissing as error:
            verdict, detail = "MISSING", str(error)
        passed = passed and verdict == "ok"
        print(f"{verdict:8}{name:32}{detail}", flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
