"""The odd sets of `intake/`, and the commands that read them, for their tests."""

from __future__ import annotations

from pathlib import Path

INTAKE = Path(__file__).parent / "intake"
TINY = Path(__file__).parents[1] / "train" / "tiny_retinanet.py"
SPLITS = ("train", "val", "test")


def set_options(*assignments):
    return [word for one in assignments for word in ("--set", one)]


def data_settings(annotations, images, splits):
    """Options for `cskd-train` that make a data set the data of splits of a config."""
    found = []
    for split in splits:
        found += [f"data.{split}.ann_file={annotations}", f"data.{split}.img_prefix={images}"]
    return set_options(*found)


def train_tiny(call, classes, work_dir, settings):
    """Run `cskd-train run` for an epoch."""
    names = [*classes]
    changes = [f"data.{split}.classes={names}" for split in SPLITS]
    changes += ["runner.max_epochs=1", f"model.bbox_head.num_classes={len(names)}"]
    return call("train", "run", TINY, "--work-dir", work_dir, *set_options(*changes), *settings)
