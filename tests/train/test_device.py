"""What a process takes of a processor: threads, and that freed memory is kept."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from cskd_train.engine import device

MEGABYTES_KEPT = """
from pathlib import Path
import torch
from cskd_train.engine.device import keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

{call}
before = resident()
torch.ones(16_000_000)  # 64 MB, freed at once
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no such setting")
def test_freed_memory_is_kept_where_it_is_asked_for():
    def kept(call: str) -> float:
        command = [sys.executable, "-c", MEGABYTES_KEPT.format(call=call)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert kept("keep_freed_memory()") > 60
    assert kept("") < 30


def test_torch_takes_no_more_threads_than_a_container_may_use(monkeypatch):
    taken = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for cores in (2, 8, 16):
        monkeypatch.setattr(device, "usable_cores", lambda cores=cores: cores)
        assert device.choose_device("auto") == torch.device("cpu")
    assert taken == [2]
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    monkeypatch.setattr(device, "usable_cores", lambda: 2)
    device.choose_device("cpu")
    assert taken == [2]
