"""Outputs that are no plain file: links, pipes, this process's own output, sockets."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cskd_data import DataError
from cskd_data.files import check_not_input, check_writable, sweep, write_atomically, write_json


@pytest.fixture
def pipe(tmp_path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def reading(path: Path) -> tuple[threading.Thread, list[bytes]]:
    """A reader at the other end of a pipe, and what it will have read."""
    read: list[bytes] = []
    thread = threading.Thread(target=lambda: read.append(path.read_bytes()), daemon=True)
    thread.start()
    return thread, read


def test_a_link_is_followed_and_stays_and_its_file_is_replaced_as_a_whole(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.json").write_bytes(b"old")
    (tmp_path / "near").symlink_to("real/x.json")
    (tmp_path / "far").symlink_to(tmp_path / "near")
    check_writable(tmp_path / "far")
    write_atomically(tmp_path / "far", lambda file: file.write(b"new"))
    assert (tmp_path / "far").is_symlink()
    assert (tmp_path / "near").is_symlink()
    assert (tmp_path / "real" / "x.json").read_bytes() == b"new"
    assert os.listdir(tmp_path / "real") == ["x.json"]

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="No space left on device; the older far is untouched"):
        write_atomically(tmp_path / "far", fail)
    assert (tmp_path / "real" / "x.json").read_bytes() == b"new"
    assert os.listdir(tmp_path / "real") == ["x.json"]


def test_a_file_that_no_user_names_takes_the_place_of_a_link(tmp_path):
    write_json(tmp_path / "of_another_run", [1], indent=None)
    (tmp_path / "last").symlink_to("of_another_run")
    write_atomically(tmp_path / "last", lambda file: file.write(b"2"), keep_links=False)
    assert not (tmp_path / "last").is_symlink()
    assert (tmp_path / "last").read_bytes() == b"2"
    assert (tmp_path / "of_another_run").read_text() == "[1]\n"


def test_a_link_to_what_is_not_there_makes_it_with_its_folder(tmp_path):
    (tmp_path / "link").symlink_to("new/folder/x.json")
    check_writable(tmp_path / "link")
    assert os.listdir(tmp_path / "new" / "folder") == []
    write_json(tmp_path / "link", [1], indent=None)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "new" / "folder" / "x.json").read_text() == "[1]\n"


def test_a_circle_of_links_and_a_link_to_a_folder_are_refused(tmp_path):
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    (tmp_path / "folder").symlink_to(".")
    for call in (check_writable, lambda path: write_atomically(path, lambda file: file.write(b"new"))):
        with pytest.raises(DataError, match="one is a link in a circle of links: give another name"):
            call(tmp_path / "one")
        with pytest.raises(DataError, match="folder is a folder, expected the name of a file"):
            call(tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == ["folder", "one", "two"]


def test_two_links_to_one_place_are_one_file_before_it_is_there(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).symlink_to("not there")
    with pytest.raises(DataError, match=r"one would replace .*two, which is read"):
        check_not_input(tmp_path / "one", [tmp_path / "two"])


def test_a_sweep_takes_the_leftovers_of_the_file_that_a_link_points_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/x.json")
    leftover = tmp_path / "real" / ".x.json.abcd1234.tmp"
    leftover.write_bytes(b"half")
    sweep([tmp_path / "link"])
    assert not leftover.exists()


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_gets_the_whole_content_and_stays_a_pipe(pipe, tmp_path, linked):
    path = pipe
    if linked:
        path = tmp_path / "link"
        path.symlink_to("pipe")
    check_writable(path)  # which waits for no reader
    thread, read = reading(pipe)

    def write(file):
        file.write(b"....")
        file.seek(0)  # as writers of archives do
        file.write(b"new ")
        assert Path(file.name).is_file()

    write_atomically(path, write)
    thread.join(10)
    assert read == [b"new "]
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert path.is_symlink() == linked


def test_nothing_goes_into_a_pipe_when_the_content_is_not_whole(pipe):
    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"cannot write .*pipe: .*No space left on device\. It is no file"):
        write_atomically(pipe, fail)
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


def test_a_socket_is_refused_and_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        for call in (check_writable, lambda path: write_atomically(path, lambda file: file.write(b"new"))):
            with pytest.raises(DataError, match="output socket is neither a file nor a pipe: give another name"):
                call(Path("socket"))
        assert stat.S_ISSOCK(os.lstat("socket").st_mode)


def test_the_file_that_is_the_standard_output_keeps_what_is_printed_and_gets_what_is_written(tmp_path):
    program = (
        "from pathlib import Path; from cskd_data.files import check_writable, write_atomically\n"
        "out = Path('out.txt'); check_writable(out); print('before', flush=True)\n"
        "write_atomically(out, lambda file: file.write(b'written\\n')); print('after')"
    )
    with (tmp_path / "out.txt").open("wb") as out:
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, stdout=out, check=True, timeout=60)
    assert (tmp_path / "out.txt").read_text() == "before\nwritten\nafter\n"
