"""Write the samples of this folder again with the code of version 0.1.0: `python make.py CHECKOUT OUT` (README.md)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NARROW = {
    "data_root": "shapes",
    "model.backbone.base_channels": 2,
    "model.backbone.num_stages": 2,
    "model.backbone.strides": (1, 2),
    "model.backbone.dilations": (1, 1),
    "model.backbone.out_indices": (0, 1),
    "model.neck.in_channels": [2, 4],
    "model.neck.out_channels": 4,
    "model.bbox_head.in_channels": 4,
    "model.bbox_head.feat_channels": 4,
    "model.bbox_head.stacked_convs": 1,
    "optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0001},
}


def main(checkout: Path, out: Path) -> None:
    sources = [str(checkout / "packages" / name / "src") for name in ("cskd-core", "cskd-train")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sources), "OMP_NUM_THREADS": "1"}
    settings = [word for key, value in NARROW.items() for word in ("--set", f"{key}={value!r}")]
    recipe = str(checkout / "tests" / "train" / "tiny_retinanet.py")
    with tempfile.TemporaryDirectory() as folder:

        def cskd_train(*arguments: str) -> None:
            command = [sys.executable, "-m", "cskd_train.cli", *arguments]
            subprocess.run(command, cwd=folder, env=environment, check=True)  # paths in a checkpoint are relative

        cskd_train("data", "shapes", "shapes", "--images", "12", "--val-images", "6", "--size", "128", "128")
        cskd_train("run", recipe, "--work-dir", "plain", *settings)
        cskd_train("run", recipe, "--work-dir", "distilled", "--teacher-checkpoint", "plain/best.pth", *settings)
        for run in ("plain", "distilled"):
            (out / run).mkdir(parents=True, exist_ok=True)
            for name in ("last.pth", "best.pth", "config.json", "log.jsonl"):
                shutil.copy(Path(folder) / run / name, out / run / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
