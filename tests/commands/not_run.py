"""Commands of the pages that test_run.py does not run, by a pattern over `page: command`, and why."""

from __future__ import annotations

import re

from .pages import Command

NOT_RUN = {
    r": make (demo|test|env)": "covered by continuous integration, and tests/train/test_distill.py",
    r": make (bench|gpu|lint|golden|docs|reliability)": "measures or checks the repository itself",
    r": (\.|git|pip|docker|srun) ": "the reader's own machine",
    r"cskd-train distill": "minutes of training; covered by tests/train/test_distill.py",
    r": torchrun .*--nnodes": "needs several machines; covered by tests/reliability/test_torchrun.py",
    r": python benchmarks/": "hours, or real photographs; covered by tests/end_to_end/test_benchmarks.py",
    r"--gpus \d+( |$)(?!.*--device cpu)": "needs GPUs; covered by tests/train/test_launched.py",
    r"--amp": "needs GPUs; covered by tests/train/test_half_precision.py",
    r"mmdet::": "needs the network: checkpoints of the zoo; covered by tests/train/test_start.py",
    r"https?://": "needs the network; covered by tests/train/test_downloads.py",
    r"configs/(cskd|student|teacher)/": "needs COCO; covered by tests/train/test_recipes.py",
    r"camera:\d|--mlperf|traffic\.mp4": "needs a camera, a film or ten minutes; covered by tests/deploy/test_video.py",
    r"--format trt|\.engine|--cuda-graph|\.plan": "needs TensorRT; covered by tests/deploy/test_tensorrt_export.py",
}


def reason(command: Command) -> str | None:
    """Why a command is not run; None where it is."""
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, str(command))), None)
