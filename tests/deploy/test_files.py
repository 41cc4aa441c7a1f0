"""How a file takes another's place: in which order, with which disk, and what is left when it goes wrong."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from cskd_deploy.errors import DeployError
from cskd_deploy.files import check_writable, sweep, write_atomically
from tests.file_operations import report_operations

ORDER = ["open", "lock", "write", "flush", "fsync file", "rename", "close", "fsync folder"]


@pytest.fixture
def target(tmp_path):
    """An older file."""
    (path := tmp_path / "student.onnx").write_bytes(b"old")
    return path


def failing_at(monkeypatch, operation, number):
    def report(name, when):
        if (name, when) == (operation, "before"):
            raise OSError(number, os.strerror(number))

    report_operations(report, monkeypatch.setattr)


def test_the_order_is_write_flush_sync_rename_and_sync_the_folder(target, monkeypatch):
    seen = []
    report_operations(lambda name, when: seen.append(name) if when == "after" else None, monkeypatch.setattr)
    write_atomically(target, lambda file: file.write(b"new"))
    assert seen == ORDER
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("operation", ["open", "write", "flush", "fsync file", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_costs_the_new_file_only_and_says_so(target, monkeypatch, operation, number):
    failing_at(monkeypatch, operation, number)
    expected = rf"output {target} cannot be written: {os.strerror(number)}\. Give another path"
    with pytest.raises(DeployError, match=expected):
        write_atomically(target, lambda file: file.write(b"new"))
    assert os.listdir(target.parent) == ["student.onnx"]
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_folder_that_cannot_be_synced_is_no_error(target, monkeypatch, number):
    failing_at(monkeypatch, "fsync folder", number)
    write_atomically(target, lambda file: file.write(b"new"))
    assert target.read_bytes() == b"new"


def test_a_folder_whose_disk_fails_is_an_error_that_says_that_the_file_is_there(target, monkeypatch):
    failing_at(monkeypatch, "fsync folder", errno.EIO)
    with pytest.raises(DeployError, match=r"student\.onnx is written, but a power cut may undo it: .*Input/output"):
        write_atomically(target, lambda file: file.write(b"new"))
    assert target.read_bytes() == b"new"


def test_the_check_before_long_work_sweeps_what_killed_work_left(target):
    leftover, other = target.with_name(".student.onnx.123.tmp"), target.with_name(".int8.onnx.123.tmp")
    leftover.write_bytes(b"half")
    other.write_bytes(b"half")
    check_writable(target)
    assert sorted(target.parent.iterdir()) == sorted([target, other])


def test_a_sweep_leaves_the_file_of_a_save_that_is_going_on(target):
    def write(file):
        file.write(b"new")
        sweep([target])

    write_atomically(target, write)
    assert target.read_bytes() == b"new"


def test_a_sweep_between_making_the_temporary_file_and_locking_it_costs_that_file_only(target, monkeypatch):
    lock, opened = fcntl.flock, []

    def swept_first(file, how):
        if not opened:
            opened.append(file.name)
            monkeypatch.setattr(fcntl, "flock", lock)
            sweep([target])
            assert not os.path.exists(file.name)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", swept_first)
    write_atomically(target, lambda file: file.write(b"new"))
    assert target.read_bytes() == b"new"
    assert os.listdir(target.parent) == ["student.onnx"]
