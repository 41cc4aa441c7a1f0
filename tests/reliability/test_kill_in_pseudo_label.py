"""`cskd-train pseudo-label`, killed at any moment: no image is detected on twice, and the file is the same."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter

import pytest

import cskd_train.mm  # noqa: F401  (changes mmcv before `runs` imports it)
from cskd_data.shapes import generate

from ..train import runs
from ..train.launching import CSKD, end, start

pytestmark = pytest.mark.reliability

PICTURES, KILLS = 150, 6


def lines_of(folder):
    """What each process has written down, whole lines only."""
    texts = [file.read_text() for file in folder.glob("*.jsonl")]
    return [json.loads(line) for text in texts for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_call_that_is_killed_again_and_again_writes_the_same_file(processes, tmp_path):
    small = runs.SmallRuns(tmp_path / "small")
    runs.train(small.options(tmp_path / "work"))
    generate(tmp_path / "pictures", images=PICTURES, val_images=1, size=(112, 80), seed=5)
    teacher, pictures = tmp_path / "work" / "best.pth", tmp_path / "pictures" / "images"
    words = ("pseudo-label", teacher, pictures, tmp_path / "killed.json", "--device", "cpu", "--threshold", 0.002)
    words += ("--gpus", processes) if processes > 1 else ()
    partial, delays = tmp_path / "killed.json.partial", random.Random(3)
    kills, done = 0, 0
    while kills < KILLS:
        process = start(*CSKD, *words)
        while process.poll() is None and (not partial.exists() or len(lines_of(partial)) <= done):
            time.sleep(0.01)
        time.sleep(delays.uniform(0, 0.2))
        process.kill()
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            break
        time.sleep(1 if processes > 1 else 0)  # its processes end when it is gone
        kills += 1
        found = Counter(one["image"] for one in lines_of(partial)) if partial.exists() else Counter()
        assert set(found.values()) <= {1}
        assert len(found) > done or not partial.exists()
        done = len(found)
    assert kills >= 2
    ended = end(start(*CSKD, *words))
    assert ended.code == 0, ended.err
    whole = end(start(*CSKD, *words[:3], tmp_path / "whole.json", *words[4:]))
    assert whole.code == 0, whole.err
    assert (tmp_path / "killed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not partial.exists()
