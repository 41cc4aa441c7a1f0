"""Latency is measured stage by stage, in turns with PyTorch, and only between detectors that do the same work."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from cskd_deploy.backends.base import Backend
from cskd_deploy.backends.torch import TorchBackend
from cskd_deploy.bench import Latencies, check_comparable, measure, random_images
from cskd_deploy.detector import Detector
from cskd_deploy.errors import DeployError
from cskd_deploy.manifest import Manifest, Postprocessing, Preprocessing

from .students import FAMILIES

MANIFEST = Manifest(
    family="retinanet",
    classes=("a",),
    preprocessing=Preprocessing((32, 32), (32, 32), True, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "rgb", 32, 0.0),
    postprocessing=Postprocessing(0.05, 0.5, False, 100, True),
    checkpoint="a.pth",
    sha256="0",
    opset=17,
    precision="fp32",
    versions={},
)


class Counting(Backend):
    """One box at a fixed place; writes down its turns."""

    name = "counting"
    size_bytes = 1

    def __init__(self, path, calls):
        super().__init__(path)
        self.manifest = MANIFEST
        self.calls = calls

    def load(self):
        pass

    def close(self):
        pass

    def infer(self, feed):
        self.calls.append(self.path)
        box = np.array([[[1, 1, 9, 9]]], dtype=np.float32)
        return {"boxes": box, "scores": np.array([[0.9]], dtype=np.float32), "labels": np.array([[0]])}


def test_detectors_take_turns_until_time_and_count_are_reached(monkeypatch):
    monkeypatch.setattr("cskd_deploy.bench.TURN_SECONDS", 0.01)
    calls: list[str] = []
    detectors = [Detector(Counting(name, calls)) for name in ("one", "two")]
    found = measure(detectors, random_images((32, 32)), duration=0.1, iterations=20, warmup=0.0)
    turns = [name for place, name in enumerate(calls) if place == 0 or calls[place - 1] != name]
    assert turns[:4] == ["one", "two", "one", "two"]
    assert len(turns) >= 8
    for one in found:
        assert one.count >= 20
        assert sum(one.samples["total"]) > 50
        assert one.detections == one.count


def test_summaries_are_percentiles_of_the_samples():
    found = Latencies("x", "x", 1, {stage: [float(n) for n in range(1, 101)] for stage in ("inference", "total")})
    assert found.summary("inference") == pytest.approx({"mean": 50.5, "p50": 50.5, "p90": 90.1, "p99": 99.01})
    assert found.images_per_second == pytest.approx(1000 / 50.5)


def test_detectors_that_do_different_work_are_not_compared():
    one, two = (Counting(name, []) for name in ("one.onnx", "two.onnx"))
    two.manifest = dataclasses.replace(MANIFEST, postprocessing=Postprocessing(0.05, 0.6, False, 100, True))
    with pytest.raises(DeployError, match=r"postprocessing.nms_iou_threshold: 0.5 and 0.6"):
        check_comparable([Detector(one), Detector(two)])


def test_random_images_are_the_same_for_the_same_seed():
    first, again = random_images((48, 80)), random_images((48, 80))
    assert first[0].shape == (48, 80, 3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_bench_prints_percentiles_throughput_size_and_the_ratio_to_pytorch(deploy, family, exported, shapes_root):
    checkpoint, model_file = exported(family)
    done = deploy(
        "bench",
        model_file,
        *("--reference", checkpoint, "--images", shapes_root / "images"),
        *("--duration", 0.1, "--iterations", 3, "--json"),
    )
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    exported, reference = facts["results"]
    assert (exported["backend"], reference["backend"]) == ("onnxruntime", "pytorch")
    for result in facts["results"]:
        assert result["images"] >= 3
        for stage in ("preprocess", "inference", "postprocess", "total"):
            times = result["milliseconds"][stage]
            assert 0 < times["p50"] <= times["p90"] <= times["p99"]
        parts = sum(result["milliseconds"][stage]["mean"] for stage in ("preprocess", "inference", "postprocess"))
        assert result["milliseconds"]["total"]["mean"] == pytest.approx(parts, rel=1e-6)
    assert exported["size_bytes"] == model_file.stat().st_size
    assert exported["detections_per_image"] > 1
    expected = reference["milliseconds"]["inference"]["p50"] / exported["milliseconds"]["inference"]["p50"]
    assert facts["speedup"]["inference"] == pytest.approx(expected)
    assert facts["environment"]["threads"] >= 1
    assert facts["environment"]["versions"]["onnxruntime"]


def test_the_table_says_what_was_timed_and_how_to_add_pytorch(deploy, model_file):
    done = deploy("bench", model_file, "--duration", 0, "--iterations", 3, "--warmup", 0, "--threads", 1)
    assert done.code == 0
    for text in ("preprocess", "inference", "postprocess", "p99", "1 threads", "random images", "add --reference"):
        assert text in done.out
    assert "p99 rests on" in done.out


def test_the_reference_gives_the_threads_back_that_it_took(checkpoint):
    before = torch.get_num_threads()
    with TorchBackend(checkpoint, threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
