"""Commands of the pages that test_run.py does not run, by a pattern over `page: command`, and why."""

from __future__ import annotations

import re

from .pages import Command

ENGINE = "needs TensorRT and a GPU; covered, with a double in TensorRT's place, by tests/deploy/"
TORCHRUN = "needs several machines; covered on one by tests/reliability/test_torchrun.py"
NOT_RUN = {
    r": make (demo|env)$": "needs the network for the environment; the demo's commands are run as the tutorial's",
    r": make (lint )?test$": "is what continuous integration runs",
    r": make gpu": "needs a GPU; covered by tests/end_to_end/test_benchmarks.py",
    r": \. ": "puts the environment's programs into the reader's shell",
    r": (git clone|cd cskd)": "needs the network",
    r": pip ": "needs the network; what is installed is covered by tests/docs/test_wheels.py",
    r": docker ": "needs Docker; its lines are covered by tests/docs/test_wheels.py",
    r": (srun )?torchrun .*--nnodes": TORCHRUN,
    r": tritonserver ": "needs Triton; what it reads is covered by tests/reliability/test_triton_schema.py",
    r": (cd data/cards|sha256sum)": "needs the photographs; covered by tests/data/test_frozen_sets.py",
    r": python benchmarks/regression\.py": "needs another commit; covered by tests/end_to_end/test_regression.py",
    r"--gpus 8": "needs eight GPUs; covered with two processes by tests/train/test_launched.py",
    r"--backend openvino --device gpu": "needs Intel's GPU; its refusal is covered by tests/deploy/test_openvino.py",
    r"bench .*--device cuda": "needs a GPU; covered with a double by tests/deploy/test_onnxruntime_cuda.py",
    r"--init (mmdet::|https://)": "needs the network (checkpoints); covered by tests/train/test_fine_tuning.py",
    r"run mmdet::|--config mmdet::": "needs COCO",
    r"camera:\d": "needs a camera; covered by tests/deploy/test_video.py",
    r"export .*--format trt": f"{ENGINE}test_tensorrt_export.py",
    r"(bench|eval) \S+\.engine": f"{ENGINE}test_options_of_runtimes.py",
    r"inspect \S+\.engine": f"{ENGINE}test_tensorrt_engine.py",
    r"triton \S+\.engine": "needs an engine, which TensorRT makes on a GPU; covered by tests/deploy/test_triton.py",
}


def reason(command: Command) -> str | None:
    """Why a command is not run; None where it is."""
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, str(command))), None)
