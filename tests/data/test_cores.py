"""The cores that a process may use: those that it is bound to, and no more than a container's quota comes to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cskd_data.cores import usable_cores

QUOTAS = {
    "a container of version 2": ("0::/\n", {"cpu.max": "150000 100000"}, 2),
    "less than a core": ("0::/\n", {"cpu.max": "20000 100000"}, 1),
    "whole cores": ("0::/\n", {"cpu.max": "300000 100000"}, 3),
    "a group of its own": ("0::/user.slice/run.scope\n", {"user.slice/run.scope/cpu.max": "400000 100000"}, 4),
    "a group around its own": (
        "0::/pods/one/main\n",
        {"pods/one/main/cpu.max": "max 100000", "pods/one/cpu.max": "200000 100000", "pods/cpu.max": "500000 100000"},
        2,
    ),
    "another group": ("0::/mine\n", {"other/cpu.max": "100000 100000", "mine/cpu.max": "max 100000"}, 8),
    "a container of version 1": (
        "4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n",  # whose root is its group
        {"cpu,cpuacct/cpu.cfs_quota_us": "250000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
        3,
    ),
    "a group of version 1": (
        "3:cpu:/batch/ab\n",
        {"cpu/batch/ab/cpu.cfs_quota_us": "10000\n", "cpu/batch/ab/cpu.cfs_period_us": "5000\n"},
        2,
    ),
    "none of version 1": ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
    "none of version 2": ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
    "more than there are": ("0::/\n", {"cpu.max": "9900000 100000"}, 8),
    "outside of the container": ("0::/../../other\n", {"cpu.max": "500000 100000"}, 5),
    "unreadable": ("nonsense\n\n:\n", {"cpu.max": "many few more", "cpu/cpu.cfs_quota_us": "?"}, 8),
    "no groups": (None, {}, 8),
}


@pytest.mark.parametrize("case", QUOTAS)
def test_no_more_cores_than_the_quota_of_the_process_comes_to(case, tmp_path, monkeypatch):
    own, files, expected = QUOTAS[case]
    groups, process = tmp_path / "cgroup", tmp_path / "own"
    for name, text in files.items():
        file = groups / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    if own is not None:
        process.write_text(own)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert usable_cores(groups, process) == expected


def test_the_cores_that_this_process_is_bound_to_are_its_most(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert usable_cores(Path("none"), Path("none")) == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores(Path("none"), Path("none")) == 6


def test_every_package_asks_the_same_function():
    from cskd_data import many
    from cskd_deploy.measure import environment

    assert environment.usable_cores is usable_cores
    assert min(4, usable_cores()) == many.DECODERS
