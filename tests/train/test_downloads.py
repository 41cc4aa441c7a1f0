"""Where a teacher's weights come from: a path, the cache, a download; and every way in which they do not come."""

from __future__ import annotations

import hashlib
import http.server
import os
import threading
from types import SimpleNamespace

import pytest
import torch

from cskd_train.errors import TrainError
from cskd_train.files import downloads
from cskd_train.files.downloads import fetch

WEIGHTS = b"weights" * 1000
DIGITS = hashlib.sha256(WEIGHTS).hexdigest()[:8]
NAME = f"retinanet_r50-{DIGITS}.pth"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CSKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server():
    """An HTTP server on this machine: `url`, what it `sends`, how many bytes it `announces`, and what was `asked`."""
    state = SimpleNamespace(sends=WEIGHTS, announces=len(WEIGHTS), status=200, asked=[])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.asked.append(self.path)
            self.send_response(state.status)
            if state.announces is not None:
                self.send_header("Content-Length", str(state.announces))
            self.end_headers()
            self.wfile.write(state.sends)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        state.url = f"http://127.0.0.1:{running.server_port}/models"
        yield state
        running.shutdown()
        thread.join()


def refused(*arguments):
    with pytest.raises(TrainError) as error:
        fetch(*arguments)
    return str(error.value)


def test_a_download_is_kept_and_taken_from_the_cache_the_next_time(server, cache):
    url = f"{server.url}/{NAME}?download=1"
    assert fetch(url) == cache / NAME
    assert fetch(url).read_bytes() == WEIGHTS
    assert server.asked == [f"/models/{NAME}?download=1"]
    assert os.listdir(cache) == [NAME]


def test_a_length_that_is_not_announced_is_no_obstacle(server):
    server.announces = None
    assert fetch(f"{server.url}/{NAME}").read_bytes() == WEIGHTS


def test_without_the_variable_the_cache_is_that_of_torch_hub(monkeypatch, tmp_path):
    monkeypatch.delenv("CSKD_CACHE")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert downloads.cache_folder() == tmp_path / "hub" / "checkpoints"


def test_a_download_that_is_not_what_its_name_says_is_refused_and_not_kept(server, cache):
    server.sends = WEIGHTS[::-1]
    message = refused(f"{server.url}/{NAME}")
    assert (
        f"its SHA-256 begins with {hashlib.sha256(WEIGHTS[::-1]).hexdigest()[:8]}, by its name with {DIGITS}" in message
    )
    assert os.listdir(cache) == []


def test_a_download_that_breaks_off_leaves_nothing_behind(server, cache):
    server.sends = WEIGHTS[:1000]
    message = refused(f"{server.url}/no_digits.pth")
    assert "the connection ended after 1000 of 7000 bytes" in message
    assert os.listdir(cache) == []


def test_an_interrupted_download_leaves_nothing_behind(server, cache, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads, "_read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(f"{server.url}/{NAME}")
    assert os.listdir(cache) == []


def test_a_missing_page_and_a_missing_network_give_the_command_that_fetches_the_file(server, cache, monkeypatch):
    url = f"{server.url}/{NAME}"
    server.status = 404
    way_out = f"`curl -fL -o {NAME} {url}`; then copy {NAME} to {cache}. Or name another file with --set distill"
    message = refused(url)
    assert "HTTP Error 404" in message
    assert way_out in message

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    message = refused(url)
    assert "could not be downloaded (no route to host)" in message
    assert way_out in message


@pytest.mark.parametrize("content", [WEIGHTS[:-1], WEIGHTS[::-1]], ids=["truncated", "altered"])
def test_a_file_in_the_cache_that_is_not_what_its_name_says_is_reported(server, cache, content):
    cache.mkdir()
    (cache / NAME).write_bytes(content)
    message = refused(f"{server.url}/{NAME}")
    assert f"{cache / NAME} is damaged or altered" in message
    assert f"by its name with {DIGITS} ({len(content)} bytes). Remove it with `rm {cache / NAME}`" in message
    assert server.asked == []


def test_a_file_that_was_placed_in_the_cache_needs_no_network(server, cache):
    cache.mkdir()
    (cache / NAME).write_bytes(WEIGHTS)
    assert fetch(f"{server.url}/{NAME}") == cache / NAME
    assert server.asked == []


def test_a_url_that_names_no_file_is_refused(server):
    assert "names no file" in refused("https://example.org/")


def test_a_cache_that_cannot_be_made_names_the_variable(server, cache):
    cache.write_text("a file")
    assert "name another in the environment variable CSKD_CACHE" in refused(f"{server.url}/{NAME}")


def test_a_file_on_this_machine_is_taken_as_it_is(tmp_path):
    (file := tmp_path / "mine-00000000.pth").write_bytes(WEIGHTS)
    assert fetch(str(file)) == file


@pytest.mark.parametrize(
    ("checkpoint", "config", "command"),
    [
        ("work_dirs/big/best.pth", "configs/teacher/big.py", "cskd-train run configs/teacher/big.py, or"),
        ("work_dirs/big/last.pth", "mmdet::fcos/big.py", "cskd-train run mmdet::fcos/big.py, or"),
        ("runs/one/best.pth", "my configs/big.py", "cskd-train run 'my configs/big.py' --work-dir runs/one, or"),
        ("work_dirs/big/best.pth", None, "cskd-train run CONFIG --work-dir work_dirs/big, or"),
        ("teacher.pth", "configs/teacher/big.py", "train the teacher first, or"),
    ],
)
def test_a_teacher_that_is_not_trained_yet_comes_with_its_command(tmp_path, monkeypatch, checkpoint, config, command):
    monkeypatch.chdir(tmp_path)
    message = refused(checkpoint, config)
    assert f"the teacher's checkpoint {checkpoint} does not exist (looked in {tmp_path}); train the teacher" in message
    assert f"{command} name another file with --set distill.teacher.checkpoint=FILE" in message
