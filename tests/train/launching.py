"""How tests start `cskd-train` in processes of its own, and look at what these leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from cskd_train.files import checkpoints

TESTS = Path(__file__).parent
CSKD = ("-m", "cskd_train")


@dataclass
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str
    seconds: float


def start(*arguments, environment=None):
    """`python ARGUMENTS` with the tests' hooks on its path; signals that this process ignores are its own again."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **(environment or {})}
    arguments = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def end(process, timeout=120):
    """Wait for a command."""
    began = time.monotonic()
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Ended(process.returncode, out, err, time.monotonic() - began)


def command(*arguments, timeout=120):
    """Run `cskd-train ARGUMENTS`."""
    return end(start(*CSKD, *arguments), timeout)


def written_config(path, base, *hooks, **settings):
    """A config file upon another one, with hooks of `process_hooks`."""
    lines = [f"_base_ = [{str(base)!r}]", 'custom_imports = dict(imports=["process_hooks"])']
    lines += [f"custom_hooks = {list(hooks)!r}", *(f"{key} = {value!r}" for key, value in settings.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


def arguments_of(folder, base, root, **disturbance):
    """`run` of a config that writes down its steps, one image a batch, into `folder/work`."""
    hooks = [{"type": "WriteDown", "folder": str(folder)}]
    if disturbance:
        hooks.append({"type": "Disturb", "once": str(folder / "once"), **disturbance})
    config = written_config(folder / "tiny.py", base, *hooks)
    data = ("--set", f"data_root={root}", "--batch-size", 1, "--workers", 1, "--device", "cpu")
    return ("run", config, "--work-dir", folder / "work", *data)


def alive(work_dir, patience=0.0):
    """The processes whose command line names a folder, after waiting so many seconds for them to end."""
    deadline = time.monotonic() + patience
    while True:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().decode().split("\0")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except (OSError, UnicodeDecodeError):
                continue
            if any(str(work_dir) in word for word in words) and state != "Z":
                found.append(int(folder.name))
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def notes(folder, rank):
    """What `process_hooks.WriteDown` wrote in one process."""
    file = folder / f"{rank}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def curve(work_dir):
    """Every number of the log that does not measure time."""
    lines = (work_dir / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("time", "data_time", "seconds")} for line in lines]


def wait_for(path, process, seconds=100):
    """Wait until a file is there."""
    deadline = time.monotonic() + seconds
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists(), f"{path} was not written; exit code {process.poll()}"


def position(folder):
    """Where the run of `folder/work` was saved."""
    return checkpoints.read(folder / "work" / "last.pth")["position"]


def check_same_run(folder, other):
    """Log and weights of two runs are equal; running statistics are but for the last digits.

    These are averaged over the processes whenever a checkpoint is written, and a stop writes one more.
    """
    one, two = ([line for line in curve(place / "work") if line["mode"] == "train"] for place in (folder, other))
    assert one == two
    one, two = (checkpoints.read(place / "work/last.pth")["state_dict"] for place in (folder, other))
    assert one.keys() == two.keys()
    for name, value in one.items():
        if "running" in name:
            assert torch.allclose(value, two[name], rtol=1e-5, atol=1e-7), name
        else:
            assert torch.equal(value, two[name]), name
