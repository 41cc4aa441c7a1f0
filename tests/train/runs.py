"""Runs that take a second, in this process: narrow detectors, stops at a chosen step, comparisons to the last bit."""

from __future__ import annotations

import io
import signal
from functools import cache
from pathlib import Path

import torch
from mmcv.runner import HOOKS, Hook
from rich.console import Console

from cskd_data.shapes import generate
from cskd_train.engine.prepare import RunOptions
from cskd_train.engine.records import read_log
from cskd_train.engine.run import run
from cskd_train.errors import REFUSALS
from cskd_train.files import checkpoints
from cskd_train.files.config import config_to_data, load_config
from cskd_train.files.vocabulary import TABLES
from cskd_train.mm.plain import build_without_pretrained

CONFIGS = Path(__file__).parents[2] / "configs" / "_base_"
TINY = Path(__file__).parent / "tiny_retinanet.py"
BACKBONE = {"base_channels": 8, "norm_eval": False, "init_cfg": None}
STEPS = 14  # of a small run: 7 batches of 2 images, two epochs
TIMES = ("time", "data_time", "training_seconds", "data_seconds", "earlier_seconds", "seconds")
DISTILL = {
    "RetinaNet": {"pyramid": {"full": (1, 0.5), "roi": (1, 0.5)}, "tower": {"cls": (1, 0.5)}, "assistant": True},
    "FasterRCNN": {"pyramid": {"full": (2, 0.25)}, "roi": {"features_student": (3, 0.5), "fc": (0.5, 2)}},
}


@HOOKS.register_module()
class StopAfter(Hook):
    """Sends this process a signal after a step; the run takes the next one, and stops."""

    step = number = None

    def after_train_iter(self, runner):
        if runner.iter + 1 == self.step:
            signal.raise_signal(self.number)


def narrow(family, depth=18, width=16):
    """The `model` of a config."""
    model = load_config(CONFIGS / ("faster_rcnn_r18.py" if family == "FasterRCNN" else "retinanet_r18.py")).model
    model.backbone.update(BACKBONE, depth=depth)
    model.neck.update(in_channels=[8, 16, 32, 64] if depth < 50 else [32, 64, 128, 256], out_channels=width)
    if family == "RetinaNet":
        model.bbox_head.update(num_classes=6, in_channels=width, feat_channels=width, stacked_convs=1)
        model.test_cfg.score_thr = 0.001
        return model
    model.rpn_head.update(in_channels=width, feat_channels=width)
    model.rpn_head.anchor_generator.scales = [4]
    model.roi_head.bbox_roi_extractor.out_channels = width
    model.roi_head.bbox_head.update(in_channels=width, fc_out_channels=32, num_classes=6)
    model.train_cfg.rpn.sampler.num = 24  # both samplers leave most of what they choose from out, at random
    model.train_cfg.rpn_proposal.update(nms_pre=80, max_per_img=40)
    model.train_cfg.rcnn.sampler.num = 12
    model.test_cfg.rpn.update(nms_pre=40, max_per_img=20)
    model.test_cfg.rcnn.score_thr = 0.01
    return model


class SmallRuns:
    """Runs of two epochs of seven steps, on 14 images of 112 x 80."""

    def __init__(self, folder):
        self.folder = folder
        self.data = folder / "shapes"
        generate(self.data, images=14, val_images=3, size=(112, 80), seed=4)
        self.config = cache(self._config)

    def _config(self, family="RetinaNet", distilled=False):
        name = f"{family}{'_distilled' if distilled else ''}"
        cfg = load_config(TINY, {"data_root": str(self.data), "data.samples_per_gpu": 2, "log_config.interval": 3})
        cfg.model = narrow(family)
        cfg.custom_hooks = [{"type": "StopAfter"}]
        if distilled:
            cfg.distill = {"teacher": self._teacher(family), **DISTILL[family]}
        return self._write(name, cfg)

    def _teacher(self, family):
        """A detector of random weights, of another depth and width."""
        cfg = load_config(TINY, {"data_root": str(self.data)})
        cfg.model = narrow(family, depth=50, width=24)
        torch.manual_seed(8)
        weights = build_without_pretrained(cfg.model).state_dict()
        torch.save({"state_dict": weights}, self.folder / f"{family}.pth")
        return {"config": str(self._write(f"{family}_teacher", cfg)), "checkpoint": str(self.folder / f"{family}.pth")}

    def _write(self, name, cfg):
        path = self.folder / f"{name}.py"
        settings = {key: value for key, value in config_to_data(cfg).items() if key in TABLES[""]}
        path.write_text("\n".join(f"{key} = {value!r}" for key, value in settings.items()))
        return path

    def options(self, work_dir, family="RetinaNet", distilled=False, *, settings=None, **options):
        """What `train` takes; keywords are those of RunOptions."""
        config = str(self.config(family, distilled))
        return RunOptions(config=config, work_dir=work_dir, overrides=settings or {}, device="cpu", **options)


def train(options, stop_after=None, number=signal.SIGTERM):
    """Run; gives the result, or the error that ended it, and everything that was printed."""
    StopAfter.step, StopAfter.number = stop_after, number
    console = Console(file=io.StringIO(), width=400)
    try:
        outcome = run(options, console)
    except REFUSALS as error:
        outcome = error
    finally:
        StopAfter.step = None
    return outcome, console.file.getvalue()


def log(work_dir):
    """Every number of the log that does not measure time, from the first step on."""
    return [
        {key: value for key, value in record.items() if key not in TIMES}
        for record in read_log(work_dir / "log.jsonl")
        if record["mode"] != "teacher"
    ]


def last(work_dir):
    """`last.pth`, without times and paths."""
    contents = checkpoints.read(work_dir / "last.pth")
    for times in (contents["run"], contents["records"]["sums"], contents["meta"].get("teacher", {})):
        for name in TIMES:
            times.pop(name, None)
    contents["meta"].pop("config")
    return contents


def differences(value, other, path=""):
    """The places where two nested values are not equal to the last bit."""
    if isinstance(value, dict) and isinstance(other, dict) and value.keys() == other.keys():
        return [place for key in value for place in differences(value[key], other[key], f"{path}.{key}")]
    if isinstance(value, (list, tuple)) and isinstance(other, (list, tuple)) and len(value) == len(other):
        pairs = enumerate(zip(value, other, strict=True))
        return [place for key, (one, two) in pairs for place in differences(one, two, f"{path}.{key}")]
    if isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor):
        same = value.dtype == other.dtype and value.shape == other.shape and torch.equal(value, other)
    else:
        same = type(value) is type(other) and value == other
    return [] if same else [path]
