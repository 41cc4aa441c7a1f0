"""The oldest supported mmdet and mmcv, which the published code names, give the losses of the newest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.reliability, pytest.mark.timeout(900)]

OLDEST = ["2.22.0", "1.4.7"]
SCRIPT = Path(__file__).with_name("step_every_family.py")
TINY_CONFIG = Path(__file__).parents[1] / "train" / "tiny_retinanet.py"
# mmdet 2.28 divides by avg_factor + EPSILON, 2.22 by avg_factor; no other terms have one as small as 1.
EPSILON = torch.finfo(torch.float32).eps
DIVIDED_BY_ONE = {"GFL": ("loss_bbox", "loss_assistant_reg", "loss"), "ATSS": ("loss_bbox", "loss")}


@pytest.fixture(scope="module")
def oldest(tmp_path_factory):
    """A folder with the oldest pair, for the front of the path; everything else is this interpreter's.

    mmcv-full is built apart from torch: it then leaves its compiled operators out. mmcv 1.4.7 names an argument that
    yapf 0.40.2 does not know any more.
    """
    folder = tmp_path_factory.mktemp("oldest")
    constraint = folder / "constraint.txt"
    constraint.write_text("setuptools<81\n")  # its setup.py imports pkg_resources
    mmdet, mmcv = OLDEST
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--use-pep517", "--no-deps", "--target", str(folder),
         f"mmdet=={mmdet}", f"mmcv-full=={mmcv}", "yapf==0.32.0"],
        env={**os.environ, "PIP_CONSTRAINT": str(constraint)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def python(*arguments, front=None):
    """What this interpreter prints, with the packages of the folder `front` before its own."""
    path = os.pathsep.join(map(str, filter(None, [front, os.environ.get("PYTHONPATH")])))
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_familys_distilled_losses_are_the_same_to_the_last_digit(oldest):
    old, new = json.loads(python(SCRIPT, front=oldest)), json.loads(python(SCRIPT))
    assert old.pop("versions") == OLDEST
    assert new.pop("versions") > OLDEST
    assert old.keys() == new.keys() >= {"RetinaNet", "FCOS", "GFL", "FasterRCNN"}
    for family, steps in new.items():
        divided = DIVIDED_BY_ONE.get(family, ())
        first, expected = old[family][0], steps[0]
        assert {name for name in expected if first[name] != expected[name]} <= set(divided)
        assert [first[name] for name in divided] == pytest.approx([expected[name] for name in divided], rel=2 * EPSILON)
        if not divided:
            assert old[family][1] == steps[1]
        assert old[family][1] == pytest.approx(steps[1], rel=1e-5)
        assert steps[1] != pytest.approx(steps[0], rel=1e-3)


def test_a_run_of_the_oldest_logs_the_losses_of_the_newest(oldest, shapes_root, tmp_path):
    logs = []
    for front in (oldest, None):
        work_dir = tmp_path / ("new" if front is None else "old")
        python(
            "-c", "from cskd_train.cli import main; main()", "run", TINY_CONFIG,
            "--work-dir", work_dir, "--set", f"data_root={shapes_root}", front=front,
        )  # fmt: skip
        logs.append([json.loads(line) for line in (work_dir / "log.jsonl").read_text().splitlines()])
    steps = [[line["loss"] for line in log if line["mode"] == "train"] for log in logs]
    assert len(steps[0]) == 6
    assert steps[0] == steps[1]
