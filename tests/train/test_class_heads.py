"""Which heads tell the classes of the data apart: of detectors with one of them, and with several."""

from __future__ import annotations

import pytest
import torch

from cskd_train.engine.build import check_classes
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import Checkpoint
from cskd_train.files.config import load_config
from cskd_train.files.heads import head_kind, tells_classes
from cskd_train.mm.detector import float32_heads
from cskd_train.mm.plain import build_without_pretrained
from cskd_train.mm.start import Fit

from .runs import BACKBONE, train

CASCADE = "mmdet::cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco.py"
NAMES = ("a", "b", "c")


def cascade(overrides=None):
    """A Cascade R-CNN, 16 channels wide: three heads one after the other."""
    model = load_config(CASCADE, overrides).model
    model.backbone.update(BACKBONE, depth=18)
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    model.rpn_head.update(in_channels=16, feat_channels=16)
    model.roi_head.bbox_roi_extractor.out_channels = 16
    for head in model.roi_head.bbox_head:
        head.update(in_channels=16, fc_out_channels=16)
    return model


@pytest.mark.parametrize(
    ("path", "kind", "classes"),
    [
        ("bbox_head", "bbox_head", True),
        ("model.roi_head.bbox_head.2", "bbox_head", True),
        ("model.roi_head.0.bbox_head", "bbox_head", True),
        ("teacher_bbox_head", "bbox_head", True),
        ("roi_head.mask_head", "mask_head", True),
        ("rpn_head", "rpn_head", False),
        ("rpn_head.stages.0", "", False),
        ("roi_head.bbox_head.0.fc_cls", "", False),
        ("backbone", "", False),
        ("", "", False),
    ],
)
def test_a_head_is_known_by_its_name_alone_or_in_a_list(path, kind, classes):
    assert head_kind(path) == kind
    assert tells_classes(path) is classes


def test_each_of_several_heads_is_compared_with_the_data():
    with pytest.raises(TrainError, match=r"roi_head\.bbox_head\.0 has 80 classes, the data has 3 \(a, b, c\)") as found:
        check_classes(build_without_pretrained(cascade()), NAMES)
    settings = [word for word in str(found.value).split() if word.startswith("model.")]
    assert [word.rstrip(",") for word in settings] == [
        f"model.roi_head.bbox_head.{number}.num_classes=3" for number in range(3)
    ]
    first = build_without_pretrained(cascade({"model.roi_head.bbox_head.0.num_classes": 3}))
    with pytest.raises(TrainError, match=r"roi_head\.bbox_head\.1 has 80 classes"):
        check_classes(first, NAMES)
    check_classes(build_without_pretrained(cascade({"classes": NAMES})), NAMES)


def test_a_run_of_several_heads_with_other_classes_is_refused_before_its_first_step(small_runs, tmp_path):
    cfg = load_config(small_runs.config())
    cfg.model = cascade()
    path = small_runs._write("cascade", cfg)
    options = small_runs.options(tmp_path / "w")
    error, _ = train(type(options)(config=str(path), work_dir=tmp_path / "w", device="cpu"))
    assert isinstance(error, TrainError)
    assert "roi_head.bbox_head.0 has 80 classes, the data has 6" in str(error)
    assert not list((tmp_path / "w").iterdir())


def test_several_heads_with_other_classes_are_refused_in_an_evaluation(small_runs, command_line, tmp_path):
    model = build_without_pretrained(cascade())
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    cfg = load_config(small_runs.config())
    cfg.model = cascade()
    config = small_runs._write("cascade_tested", cfg)
    code, _, err = command_line("test", tmp_path / "weights.pth", "--config", config, "--device", "cpu")
    assert code == 2
    assert "roi_head.bbox_head.0 has 80 classes, the data has 6" in err
    assert "Traceback" not in err


def test_a_backbone_that_could_tell_classes_apart_is_no_head_to_start_from(tmp_path):
    """mmcv's VGG, of an SSD, has a number of classes."""
    model = build_without_pretrained(load_config("mmdet::ssd/ssd300_coco.py", {"classes": NAMES}).model)
    checkpoint = Checkpoint(model.state_dict(), {}, ("d", "e", "f"), {}, {}, tmp_path / "ssd.pth")
    start = Fit(model, checkpoint, NAMES).load(model)
    assert not [part for part in start.fresh if part.startswith(("backbone.", "neck."))]
    assert [part for part in start.fresh if part.startswith("bbox_head.")]


def test_each_of_several_heads_computes_boxes_in_float32():
    model = build_without_pretrained(cascade({"classes": NAMES}))
    torch.manual_seed(0)
    logits, deltas = torch.randn(8, 4), torch.randn(8, 4)
    corners = torch.rand(8, 2) * torch.tensor([60.0, 30.0])
    rois = torch.cat([torch.zeros(8, 1), corners, corners + 30], dim=1)
    meta = {"img_shape": (64, 96, 3)}

    def boxes(head, dtype):
        of_class = logits.to(dtype), deltas.to(dtype)
        found = head.get_bboxes(rois, *of_class, meta["img_shape"], 1.0)
        return [*found, head.regress_by_class(rois, torch.zeros(8, dtype=torch.long), of_class[1], meta)]

    logits, deltas = logits.bfloat16().float(), deltas.bfloat16().float()
    for head in model.roi_head.bbox_head:
        exact = boxes(head, torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = boxes(head, torch.bfloat16)
            with float32_heads(model):
                found = boxes(head, torch.bfloat16)
        assert all(map(torch.equal, found, exact))
        assert not torch.equal(rounded[0], exact[0])
        assert not torch.equal(rounded[2], exact[2])
