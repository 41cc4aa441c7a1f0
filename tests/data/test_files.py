"""How a file takes another's place: in which order, with which disk, and what is left when it goes wrong."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from cskd_data import DataError
from cskd_data.files import check_not_input, check_writable, sweep, write_atomically, written_over
from tests.file_operations import report_operations

ORDER = ["open", "lock", "write", "flush", "fsync file", "chmod", "rename", "close", "fsync folder"]


@pytest.fixture
def target(tmp_path):
    """An older file."""
    (path := tmp_path / "last.pth").write_bytes(b"old")
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


def test_the_synced_file_is_the_whole_new_one_while_the_old_one_still_has_the_name(target, monkeypatch):
    def report(name, when):
        if (name, when) == ("fsync file", "after"):
            (temporary,) = (path for path in target.parent.iterdir() if path != target)
            found.append((temporary.read_bytes(), target.read_bytes()))
        if (name, when) == ("fsync folder", "before"):
            found.append(target.read_bytes())

    found = []
    report_operations(report, monkeypatch.setattr)
    write_atomically(target, lambda file: file.write(b"new"))
    assert found == [(b"new", b"old"), b"new"]


@pytest.mark.parametrize("operation", ["open", "write", "flush", "fsync file", "chmod", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_costs_the_new_file_only_and_says_so(target, monkeypatch, operation, number):
    failing_at(monkeypatch, operation, number)
    expected = rf"cannot write {target}: .*{os.strerror(number)}; the older last\.pth is untouched\. Free space on that"
    with pytest.raises(DataError, match=expected):
        write_atomically(target, lambda file: file.write(b"new"))
    assert os.listdir(target.parent) == ["last.pth"]
    assert target.read_bytes() == b"old"


def test_without_an_older_file_a_full_disk_leaves_none(tmp_path, monkeypatch):
    failing_at(monkeypatch, "write", errno.ENOSPC)
    with pytest.raises(DataError, match=r"new\.pth: .*No space left on device\. Free space"):
        write_atomically(tmp_path / "new.pth", lambda file: file.write(b"new"))
    assert os.listdir(tmp_path) == []


def test_a_disk_that_becomes_read_only_is_named_although_the_temporary_file_cannot_be_removed(target, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    failing_at(monkeypatch, "fsync file", errno.EIO)
    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    with pytest.raises(DataError, match="Input/output error; the older"):
        write_atomically(target, lambda file: file.write(b"new"))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_folder_that_cannot_be_synced_is_no_error(target, monkeypatch, number):
    failing_at(monkeypatch, "fsync folder", number)
    write_atomically(target, lambda file: file.write(b"new"))
    assert target.read_bytes() == b"new"


def test_a_folder_whose_disk_fails_is_an_error_that_says_that_the_file_is_there(target, monkeypatch):
    failing_at(monkeypatch, "fsync folder", errno.EIO)
    with pytest.raises(DataError, match=r"last\.pth is written, but a power cut may undo it: .*Input/output error"):
        write_atomically(target, lambda file: file.write(b"new"))
    assert target.read_bytes() == b"new"


def test_the_new_file_has_the_permissions_that_any_new_file_has(target):
    (target.parent / "plain").touch()
    write_atomically(target, lambda file: file.write(b"new"))
    assert target.stat().st_mode == (target.parent / "plain").stat().st_mode


def test_a_sweep_takes_the_leftovers_of_its_files_and_nothing_else(target):
    leftover, other = target.with_name(".last.pth.abcd1234.tmp"), target.with_name(".best.pth.abcd1234.tmp")
    own = target.with_name(".last.pth.notes")
    for path in (leftover, other, own):
        path.write_bytes(b"half")
    sweep([target])
    assert sorted(target.parent.iterdir()) == sorted([target, other, own])
    odd = target.with_name(".of [one].pth.abcd1234.tmp")
    odd.write_bytes(b"half")
    sweep([target.with_name("of [one].pth")])
    assert not odd.exists()
    sweep([target.parent / "no folder" / "last.pth"])


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
    assert os.listdir(target.parent) == ["last.pth"]


def test_where_files_cannot_be_locked_a_save_works_and_a_sweep_leaves_everything(target, monkeypatch):
    leftover = target.with_name(".last.pth.abcd1234.tmp")
    leftover.write_bytes(b"half")
    failing_at(monkeypatch, "lock", errno.ENOLCK)
    write_atomically(target, lambda file: file.write(b"new"))
    sweep([target])
    assert target.read_bytes() == b"new"
    assert leftover.exists()


def test_the_check_before_long_work_sweeps_what_killed_work_left_and_leaves_nothing(target):
    leftover, other = target.with_name(".last.pth.123.tmp"), target.with_name(".best.pth.123.tmp")
    leftover.write_bytes(b"half")
    other.write_bytes(b"half")
    check_writable(target)
    assert sorted(target.parent.iterdir()) == sorted([target, other])
    check_writable(target.parent / "new" / "folder" / "last.pth")
    assert list((target.parent / "new" / "folder").iterdir()) == []


def test_an_output_is_an_input_by_name_or_by_a_link_whether_it_is_there_or_not(target, monkeypatch):
    monkeypatch.chdir(target.parent)
    (target.parent / "link.pth").symlink_to(target)
    os.link(target, target.parent / "linked.pth")
    new = target.parent / "new.pth"
    for output, inputs in (
        ("last.pth", [target]),
        ("link.pth", [None, new, target]),
        ("linked.pth", [target]),
        ("new.pth", [target, new]),
    ):
        with pytest.raises(DataError, match=f"--out {output} would replace {inputs[-1]}, which is read: give another"):
            check_not_input(Path(output), inputs, "--out")
    check_not_input(Path("new.pth"), [target, None])
    assert written_over([new, Path("link.pth")], [target]) == (Path("link.pth"), target)
    assert target.read_bytes() == b"old"


def test_an_output_that_cannot_be_written_is_named_before_long_work(target):
    with pytest.raises(DataError, match="is a folder, expected the name of a file"):
        check_writable(target.parent)
    with pytest.raises(DataError, match=f"cannot write {target}/x: "):
        check_writable(target / "x")
