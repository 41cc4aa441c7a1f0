"""Many images: results keep their order, what is slow goes on in threads, and no file is compared with every other."""

from __future__ import annotations

import gc
import json
import os
import threading
import time

import cv2
import numpy as np
import pytest

from cskd_data import many, read, together
from cskd_data.coco import read_coco
from cskd_data.many import in_threads, paused_garbage_collection

from .factories import write, write_photo


@pytest.mark.parametrize("seconds", [0.0, 0.002])
@pytest.mark.parametrize("threads", [1, 4])
def test_results_come_in_order_and_only_slow_work_is_done_in_threads(seconds, threads):
    used = set()

    def work(number):
        used.add(threading.get_ident())
        time.sleep(seconds if number % 2 else 0)
        return number * number

    assert list(in_threads(work, range(150), threads)) == [number * number for number in range(150)]
    assert (len(used) > 1) == (seconds > 0 and threads > 1)
    assert list(in_threads(work, [], threads)) == []


def test_an_error_of_one_item_ends_all_and_a_caller_that_stops_leaves_no_thread_at_work():
    done = []

    def work(number):
        time.sleep(0.002)
        done.append(number)
        if number == 40:
            raise ValueError("40")
        return number

    with pytest.raises(ValueError, match="40"):
        list(in_threads(work, range(10_000), 4))
    assert len(done) < 200
    results = in_threads(work, range(41, 10_000), 4)
    assert [next(results) for _ in range(20)] == list(range(41, 61))
    results.close()
    count = len(done)
    time.sleep(0.05)
    assert len(done) == count < 400


def test_a_check_in_threads_reports_what_one_after_the_other_reports(tmp_path, monkeypatch):
    for number in range(40):
        write_photo(tmp_path / "images" / f"{number}.jpg", number)
    whole = (tmp_path / "images" / "30.jpg").read_bytes()
    write(tmp_path / "images" / "30.jpg", whole[: len(whole) // 3])
    write_photo(tmp_path / "images" / "35.jpg", height=40)
    images = [{"id": n + 1, "file_name": f"{n}.jpg", "width": 64, "height": 48} for n in range(40)]
    data = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    dataset = read(write(tmp_path / "a.json", json.dumps(data)))
    steps, reports = [], []
    for slow in (1e9, 0):
        monkeypatch.setattr(many, "_SLOW", slow)
        for decode in (False, True):
            reports.append(dataset.check(decode=decode, progress=lambda *step: steps.append(step)).errors)
    assert reports[0] == reports[2] == reports[3] == reports[1]
    assert [error.split()[1] for error in reports[0]] == ["30.jpg", "35.jpg"]
    assert steps == [(done, 40) for done in range(1, 41)] * 4


def test_garbage_is_looked_for_again_after_a_reading_that_fails(tmp_path):
    for _ in range(2):
        with pytest.raises(Exception, match="is not JSON"):
            read_coco(write(tmp_path / "a.json", "{"))
        assert gc.isenabled()
    gc.disable()
    try:
        with paused_garbage_collection():
            pass
        assert not gc.isenabled()  # as it was
    finally:
        gc.enable()


def test_sets_of_files_of_one_size_are_compared_in_one_pass(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for number in range(60):
        pixels = rng.integers(0, 256, (90, 90, 3), np.uint8)
        write(tmp_path / f"{number}.bmp", cv2.imencode(".bmp", pixels)[1].tobytes())
    same = (tmp_path / "7.bmp").read_bytes()
    write(tmp_path / "40.bmp", same)
    write(tmp_path / "50.bmp", same[:100] + b"\0\1\2\3" + same[104:])  # differs before the last bytes
    write(tmp_path / "51.bmp", same[:-4] + b"\0\1\2\3")
    assert len({path.stat().st_size for path in tmp_path.glob("*.bmp")}) == 1

    def part(name, numbers):
        images = [{"id": n + 1, "file_name": f"{n}.bmp", "width": 90, "height": 90} for n in numbers]
        data = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
        return read(write(tmp_path / f"{name}.json", json.dumps(data)))

    opened = []
    compute = together._Digests._compute
    monkeypatch.setattr(
        together._Digests,
        "_compute",
        staticmethod(lambda path, whole: opened.append((os.path.basename(path), whole)) or compute(path, whole)),
    )
    first, second = part("first", range(30)), part("second", [*range(30, 60), 3])
    (note,) = together.check_together({"train": first, "val": second})
    assert (note.count, note.examples) == (2, ("3.bmp", "7.bmp"))
    assert len(opened) == len(set(opened)) < 70
    assert {name for name, whole in opened if whole} == {"7.bmp", "40.bmp", "50.bmp"}
