"""A study of gains for tests: its plan, and a call of benchmarks/gain.py."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from click.testing import CliRunner

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PLAN = """
[studies.lasting]
data = "shapes"
detector = "RetinaNet R18"
teacher = { config = "configs/demo/retinanet_r50_shapes.py", epochs = 28 }
epochs = [4, 16]
seeds = [0, 1]
methods.alone = { config = "configs/demo/retinanet_r18_shapes.py" }
[studies.lasting.methods.cskd]
config = "configs/demo/cskd_retina_r50_distill_r18_shapes.py"
set = { "distill.init_student" = true }
"""

BEST_OF = """
[studies.rivals]
data = "shapes"
detector = "RetinaNet R18"
prepare = ["cskd-train data shapes here"]
teacher = "lasting"
epochs = [4]
seeds = [0]
methods.alone = { config = "configs/demo/retinanet_r18_shapes.py" }
methods.best = { best_of = "weights:cskd_", set = { "data.samples_per_gpu" = 2 } }

[studies.weights]
data = "shapes"
detector = "RetinaNet R18"
teacher = "lasting"
epochs = [8]
seeds = [0, 1]
methods.cskd = { config = "configs/demo/cskd_retina_r50_distill_r18_shapes.py" }
methods.cskd_1 = { like = "cskd", set = { "distill.pyramid.full" = "(1, 1)" } }
methods.cskd_2 = { like = "cskd", set = { "distill.pyramid.full" = "(2, 2)" } }
methods.cskd_3 = { like = "cskd", set = { "distill.pyramid.full" = "(3, 3)" } }
"""


def seconds_of(words):
    return 10.0 * int(next(re.search(r"runner\.max_epochs=(\d+)", word)[1] for word in words if "max_epochs" in word))


def at_step(folder, step):
    """What a run keeps of itself after so many steps."""
    torch.save({"meta": {"iter": step}}, folder / "last.pth")


def run(gain, plan, tmp_path, *arguments):
    words = [str(plan), "--work-dir", str(tmp_path / "runs"), "--records", str(tmp_path / "gain.jsonl"), *arguments]
    result = CliRunner().invoke(gain.main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def found(gain, run, precision):
    """What `best_of` reads of a run's record of this machine."""
    key = dict(zip(("study", "method", "epochs", "seed"), run.key, strict=True))
    return {**key, "val": {"bbox_mAP": precision}, **gain.here()}
