"""That freed memory is kept, counted in page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS_IN_STEADY_STATE = """
import resource
import torch
from cskd_train.engine.memory import keep_freed_memory

{call}
def touch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print([touch() for _ in range(6)][-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no such setting")
def test_memory_freed_is_not_mapped_anew():
    def faults(call: str) -> int:
        command = [sys.executable, "-c", FAULTS_IN_STEADY_STATE.format(call=call)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert faults("keep_freed_memory()") < 100
    assert faults("") > 1000  # of 16384 pages: what is avoided is there to be avoided
