"""How many cores this process may use."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path, PurePosixPath

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def usable_cores(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Logical cores that this process may run on, no more than its share of their time comes to, rounded up.

    A container often has fewer than the machine: `docker run --cpuset-cpus` names them, `docker run --cpus` and the
    limits of Kubernetes give a quota of the time of all.

    Args:
        groups: where Linux has its control groups.
        own: the groups of this process.

    Source: `cpu.max` and `cpu.cfs_quota_us` of Linux's documentation of control groups, version 2 and 1.
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _folders(groups, own) if (quota := _quota(folder)) is not None]
    return min(there, *quotas) if quotas else there


def _folders(groups: Path, own: Path) -> list[Path]:
    """Where a quota of this process may stand: its groups and those around them; in a container the roots alone."""
    folders = {groups: None, groups / "cpu": None}
    with contextlib.suppress(OSError):
        for line in own.read_text(errors="replace").splitlines():
            _, _, rest = line.partition(":")
            controllers, _, name = rest.partition(":")
            if controllers and "cpu" not in controllers.split(","):
                continue
            place = PurePosixPath(name.lstrip("/"))
            if ".." in place.parts:  # a group outside of the container
                continue
            for root in (groups / controllers, groups / "cpu") if controllers else (groups, groups / "unified"):
                folders.update(dict.fromkeys(root / group for group in (place, *place.parents)))
    return list(folders)


def _quota(folder: Path) -> int | None:
    """The cores that the quota of a group comes to; None where it has none."""
    with contextlib.suppress(OSError, ValueError):
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0 and int(period) > 0:  # "max" and -1: none
            return -(-int(quota) // int(period))
    return None
