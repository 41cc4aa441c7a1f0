"""mmcv hooks for runs of several processes: what a test wants to know of each of them, and what it does to one.

A top-level module, which a config imports by its name (`custom_imports`).
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import torch
from mmcv.runner import HOOKS, Hook


@HOOKS.register_module()
class WriteDown(Hook):
    """After every step, a line in `folder/RANK.jsonl`: the step, its images and a hash of the weights after it."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def after_train_iter(self, runner):
        digest = hashlib.sha256()
        for parameter in runner.model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        names = [meta["ori_filename"] for meta in runner.data_batch["img_metas"]]
        with (self.folder / f"{runner.rank}.jsonl").open("a") as file:
            file.write(json.dumps({"step": runner.iter + 1, "images": names, "weights": digest.hexdigest()}) + "\n")


@HOOKS.register_module()
class Disturb(Hook):
    """Before step `step`, once, in process `rank` or in all of them.

    Args:
        action: `nan` (the weights of this process), `raise`, or the names of signals, sent one after the other.
        to: whom the signals are sent to: the process `itself`, or its `launcher`.
        once: a file that says that it has happened.
    """

    def __init__(self, action, step, once, rank=0, to="itself"):
        self.action, self.step, self.once, self.rank, self.to = action, step, Path(once), rank, to

    def before_train_iter(self, runner):
        if runner.rank != self.rank or runner.iter + 1 != self.step or self.once.exists():
            return
        self.once.write_text(f"process {runner.rank} of {runner.world_size}, step {runner.iter + 1}")
        if self.action == "nan":
            with torch.no_grad():
                for parameter in runner.model.parameters():
                    parameter.fill_(float("nan"))
            return
        if self.action == "raise":
            raise RuntimeError("a fault in the program")
        for name in self.action:
            os.kill(os.getpid() if self.to == "itself" else os.getppid(), getattr(signal, name))
            time.sleep(0.5)
