"""Where weights come from: a path, the cache, a download, a name; and every way in which they do not come."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mmdet
import pytest
import torch
from mmcv.runner.checkpoint import get_deprecated_model_names, get_external_models, get_torchvision_models

from cskd_train.errors import TrainError
from cskd_train.files import downloads, model_zoo
from cskd_train.files.downloads import fetch, local_file

from .file_server import serving

WEIGHTS = b"weights" * 1000
DIGITS = hashlib.sha256(WEIGHTS).hexdigest()[:8]
NAME = f"retinanet_r50-{DIGITS}.pth"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CSKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server():
    with serving(WEIGHTS) as running:
        yield running


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


@pytest.mark.parametrize("digits", ["20240115", "202401151230"])
def test_a_name_that_ends_in_a_date_promises_no_hash(server, cache, digits):
    name = f"student-{digits}.pth"
    for _ in range(2):
        assert fetch(f"{server.url}/{name}").read_bytes() == WEIGHTS
    assert sorted(os.listdir(cache)) == [name, f"{name}.sha256"]
    (cache / name).write_bytes(WEIGHTS[::-1])
    assert "is damaged or altered" in refused(f"{server.url}/{name}")


def test_eight_digits_that_are_no_date_are_of_a_hash(server):
    assert "by its name with 20241315" in refused(f"{server.url}/student-20241315.pth")


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

    monkeypatch.setattr(downloads._Download, "_read", interrupt)
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


RECORDED = "no_digits.pth"


def refused_for(source, what="load_from", key=None):
    with pytest.raises(TrainError) as error:
        local_file(source, what, key)
    return str(error.value)


def test_a_download_without_digits_in_its_name_is_recorded_once_and_compared_each_time(server, cache, capfd):
    url = f"{server.url}/{RECORDED}?token=secret"
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    assert local_file(url, "load_from") == cache / RECORDED
    assert f"note: the name {RECORDED} holds no SHA-256 to check it by; this one is {digest}" in capfd.readouterr().err
    assert (cache / f"{RECORDED}.sha256").read_text() == f"# {server.url}/{RECORDED}\n{digest}  {RECORDED}\n"
    assert local_file(url, "load_from") == cache / RECORDED
    assert capfd.readouterr().err == ""
    assert len(server.asked) == 1
    assert subprocess.run(["sha256sum", "--strict", "-c", f"{RECORDED}.sha256"], cwd=cache).returncode == 0

    (cache / RECORDED).write_bytes(WEIGHTS[::-1])
    message = refused_for(url)
    found = hashlib.sha256(WEIGHTS[::-1]).hexdigest()[:16]
    assert f"load_from {cache / RECORDED} is damaged or altered: its SHA-256 begins with {found}, " in message
    assert f"in {RECORDED}.sha256 with {digest[:16]} (7000 bytes). Remove it with `rm {cache / RECORDED}" in message
    assert len(server.asked) == 1


def test_a_recorded_sha256_that_was_altered_is_reported(server, cache):
    local_file(f"{server.url}/{RECORDED}", "load_from")
    record = cache / f"{RECORDED}.sha256"
    record.write_text(record.read_text().replace(hashlib.sha256(WEIGHTS).hexdigest(), "0" * 64))
    assert f"in {RECORDED}.sha256 with 0000000000000000" in refused_for(f"{server.url}/{RECORDED}")
    record.write_text("nothing of use")
    assert f"{record} is not a record of load_from's SHA-256. Remove it" in refused_for(f"{server.url}/{RECORDED}")


def test_two_addresses_with_one_file_name_are_not_taken_for_each_other(server, cache):
    local_file(f"{server.url}/one/{RECORDED}", "load_from")
    message = refused_for(f"{server.url}/two/{RECORDED}")
    assert f"where the file of that name from {server.url}/one/{RECORDED} is" in message
    assert server.asked == [f"/models/one/{RECORDED}"]


def test_a_file_that_was_placed_in_the_cache_without_digits_is_recorded_at_its_first_use(server, cache, capfd):
    cache.mkdir()
    (cache / RECORDED).write_bytes(WEIGHTS)
    local_file(f"{server.url}/{RECORDED}", "load_from")
    assert "holds no SHA-256 to check it by" in capfd.readouterr().err
    (cache / RECORDED).write_bytes(WEIGHTS[1:])
    assert "is damaged or altered" in refused_for(f"{server.url}/{RECORDED}")
    assert server.asked == []


def test_a_server_that_does_not_listen_gives_the_command_that_fetches_the_file(cache):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/{NAME}"
        message = refused_for(url, "the backbone's pretrained weights", "model.backbone.init_cfg.checkpoint")
    assert message.startswith("the backbone's pretrained weights could not be downloaded (<urlopen error [Errno 111]")
    assert f"`curl -fL -o {NAME} {url}`; then copy {NAME} to {cache}" in message
    assert "Or name another file with --set model.backbone.init_cfg.checkpoint=FILE" in message


def test_a_path_that_does_not_exist_names_its_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused_for("none.pth")
    assert (
        message
        == f"load_from none.pth: no such file (looked in {tmp_path}); name another file with --set load_from=FILE"
    )


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("torchvision://resnet51", "torchvision://resnet50"),
        ("open-mmlab://detectron3/resnet50_caffe", "open-mmlab://detectron2/resnet50_caffe"),
        ("jit://resnet50", "torchvision://resnet50"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_ones(name, nearest):
    message = refused_for(name)
    assert f"load_from: {name} is no known name of pretrained weights; the nearest known names: " in message
    assert nearest in message
    assert "Give its http(s) URL, or name another file with --set load_from=FILE" in message


def test_every_name_leads_to_the_file_that_mmcv_means_by_it_and_its_name_ends_in_digits():
    of_mmcv = {f"torchvision://{name}": url for name, url in get_torchvision_models().items()}
    of_mmcv |= {f"open-mmlab://{name}": url for name, url in get_external_models().items()}
    assert len(model_zoo._FILES) >= 40
    for name, url in model_zoo._FILES.items():
        assert of_mmcv[name] == url
        assert re.search(r"-[0-9a-f]{8}\.pth$", url)
    for old, new in model_zoo._NAMES.items():
        assert get_deprecated_model_names()[old.removeprefix("open-mmlab://")] == new.removeprefix("open-mmlab://")
    assert model_zoo.address_of("openmmlab://resnet50_caffe").endswith("resnet50_caffe-788b5fa3.pth")
    assert model_zoo.address_of("modelzoo://resnet50").endswith("resnet50-0676ba61.pth")


def test_every_name_in_mmdets_own_configs_is_known():
    configs = Path(mmdet.__file__).parent / ".mim" / "configs"
    named = {
        name
        for file in configs.rglob("*.py")
        for name in re.findall(r"[\"']((?:torchvision|open-mmlab)://[\w/.+-]+)", file.read_text())
    }
    assert len(named) > 30
    assert {name for name in named if name not in model_zoo._FILES} - {"open-mmlab://resnet50_caffe"} == set()


@pytest.mark.parametrize("name", [NAME, RECORDED])
def test_two_that_download_one_file_at_the_same_time_both_get_it(server, cache, monkeypatch, name):
    both, read = threading.Barrier(2, timeout=30), downloads._Download._read

    def read_together(download, response):
        both.wait()  # each has its temporary file by now, and has swept those of others
        return read(download, response)

    monkeypatch.setattr(downloads._Download, "_read", read_together)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(fetch, [f"{server.url}/{name}"] * 2)) == [cache / name] * 2
    assert len(server.asked) == 2
    assert (cache / name).read_bytes() == WEIGHTS
    assert set(os.listdir(cache)) - {f"{name}.sha256"} == {name}
