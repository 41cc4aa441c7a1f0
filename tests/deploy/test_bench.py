"""Latency is measured stage by stage, in turns with PyTorch, and only between detectors that do the same work."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from typing import ClassVar

import numpy as np
import pytest
import torch

from cskd_deploy.backends.base import Backend
from cskd_deploy.backends.torch import TorchBackend
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import DeployError
from cskd_deploy.measure.bench import Latencies, check_comparable, measure, random_images
from cskd_deploy.measure.cold_start import measure_cold
from cskd_deploy.measure.plot import read_evaluations
from cskd_deploy.model.manifest import GraphForm, Manifest, Postprocessing, Preprocessing

from .students import GRAPHS

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

QUICK = ("--duration", 0, "--iterations", 3, "--no-cold")


class Counting(Backend):
    """One box at a fixed place; writes down its turns."""

    name = "counting"
    size_bytes = 1
    device_milliseconds: ClassVar = {}

    def __init__(self, path, calls):
        super().__init__(path)
        self.manifest = MANIFEST
        self.calls = calls

    def load(self):
        pass

    def _close(self):
        pass

    def _infer(self, feed):
        self.calls.append(self.path)
        batch = len(feed["image"])
        assert feed["image_shape"].shape == (batch, 2)
        boxes = np.tile(np.array([1, 1, 9, 9], dtype=np.float32), (batch, 1, 1))
        scores = np.full((batch, 1), 0.9, dtype=np.float32)
        return {"boxes": boxes, "scores": scores, "labels": np.zeros((batch, 1), dtype=np.int64)}


def test_detectors_take_turns_until_time_and_count_are_reached(monkeypatch):
    monkeypatch.setattr("cskd_deploy.measure.bench.TURN_SECONDS", 0.01)
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
    expected = {"mean": 50.5, "p50": 50.5, "p90": 90.1, "p95": 95.05, "p99": 99.01}
    assert found.summary("inference") == pytest.approx(expected)
    assert found.images_per_second == pytest.approx(1000 / 50.5)


def test_detectors_that_do_different_work_are_not_compared():
    one, two = (Counting(name, []) for name in ("one.onnx", "two.onnx"))
    two.manifest = dataclasses.replace(MANIFEST, postprocessing=Postprocessing(0.05, 0.6, False, 100, True))
    with pytest.raises(DeployError, match=r"postprocessing.nms_iou_threshold: 0.5 and 0.6"):
        check_comparable([Detector(one), Detector(two)])


def test_graphs_that_normalise_and_graphs_that_do_not_are_compared_but_not_those_with_nms_inside():
    one, two, three = (Counting(name, []) for name in ("one.onnx", "two.onnx", "three.onnx"))
    two.manifest = dataclasses.replace(MANIFEST, graph=GraphForm(input="uint8"))
    three.manifest = dataclasses.replace(MANIFEST, graph=GraphForm(nms="graph"))
    check_comparable([Detector(one), Detector(two)])
    with pytest.raises(DeployError, match=r"one.onnx and three.onnx: graph.nms: outside and graph"):
        check_comparable([Detector(one), Detector(three)])


def test_each_batch_size_is_timed_in_turns_and_counts_its_images(monkeypatch):
    monkeypatch.setattr("cskd_deploy.measure.bench.TURN_SECONDS", 0.005)
    calls: list[str] = []
    detectors = [Detector(Counting(name, calls)) for name in ("one", "two")]
    found = measure(detectors, random_images((32, 32)), batches=(1, 4), duration=0.02, iterations=5, warmup=0.0)
    assert [(one.path, one.batch) for one in found] == [("one", 1), ("two", 1), ("one", 4), ("two", 4)]
    for one in found:
        assert one.detections == one.count * one.batch
        assert one.to_dict()["images"] == one.detections
        assert one.images_per_second == pytest.approx(1e3 * one.batch / one.summary("total")["mean"])


def test_what_a_device_tells_of_its_copies_is_summed_up_beside_the_stages(monkeypatch):
    monkeypatch.setattr("cskd_deploy.measure.bench.TURN_SECONDS", 0.005)
    backend = Counting("one", [])
    backend.device_milliseconds = {"h2d": 0.5, "compute": 2.0, "d2h": 0.25}
    (found,) = measure([Detector(backend)], random_images((32, 32)), duration=0.0, iterations=2, warmup=0.0)
    times = found.to_dict()["milliseconds"]
    assert [times[stage]["p95"] for stage in ("h2d", "compute", "d2h")] == [0.5, 2.0, 0.25]


def test_a_graph_of_one_batch_size_refuses_others():
    backend = Counting("one.onnx", [])
    backend.batch_size = 1
    with pytest.raises(DeployError, match=r"one.onnx takes batches of 1 only, asked for 4: export it with --batch any"):
        measure([Detector(backend)], random_images((32, 32)), batches=(1, 4))
    assert backend.calls == []


def test_random_images_are_the_same_for_the_same_seed():
    first, again = random_images((48, 80)), random_images((48, 80))
    assert first[0].shape == (48, 80, 3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("family", GRAPHS)
def test_bench_prints_percentiles_throughput_size_and_the_ratio_to_pytorch(deploy, family, exported, shapes_root):
    checkpoint, model_file = exported(family)
    done = deploy(
        "bench",
        model_file,
        *("--reference", checkpoint, "--images", shapes_root / "images"),
        *("--duration", 0.1, "--iterations", 3, "--no-cold", "--json"),
    )
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    exported, reference = facts["results"]
    assert (exported["backend"], reference["backend"]) == ("onnxruntime", "pytorch")
    for result in facts["results"]:
        assert result["images"] >= 3
        for stage in ("preprocess", "inference", "postprocess", "total"):
            times = result["milliseconds"][stage]
            assert 0 < times["p50"] <= times["p90"] <= times["p95"] <= times["p99"]
        parts = sum(result["milliseconds"][stage]["mean"] for stage in ("preprocess", "inference", "postprocess"))
        assert result["milliseconds"]["total"]["mean"] == pytest.approx(parts, rel=1e-6)
    assert exported["size_bytes"] == model_file.stat().st_size
    assert exported["detections_per_image"] > 1
    medians = {stage: times["p50"] for stage, times in exported["milliseconds"].items()}
    around = medians["preprocess"] + medians["postprocess"]
    assert exported["overhead"] == pytest.approx(around / (around + medians["inference"]))
    expected = reference["milliseconds"]["inference"]["p50"] / exported["milliseconds"]["inference"]["p50"]
    assert facts["speedup"]["inference"] == pytest.approx(expected)
    assert facts["environment"]["threads"] >= 1
    assert facts["environment"]["versions"]["onnxruntime"]


def test_bench_times_the_images_of_a_data_set_wherever_they_lie(deploy, model_file, shapes_root, tmp_path):
    (tmp_path / "images" / "deep").mkdir(parents=True)
    data = json.loads((shapes_root / "annotations" / "val.json").read_text())
    for image in data["images"]:
        shutil.copy(shapes_root / "images" / image["file_name"], tmp_path / "images" / "deep")
        image["file_name"] = f"deep/{image['file_name']}"
    data["images"] = data["images"][:2]
    kept = {image["id"] for image in data["images"]}
    data["annotations"] = [one for one in data["annotations"] if one["image_id"] in kept]
    (tmp_path / "val.json").write_text(json.dumps(data))
    quick = ("--duration", 0, "--iterations", 1, "--no-cold", "--json")
    for images, source in (
        (("--ann", tmp_path / "val.json"), f"2 images of {tmp_path / 'val.json'}"),
        (("--ann", tmp_path / "val.json", "--images", tmp_path / "images" / "deep"), "2 images of"),
        (("--images", tmp_path), f"images of {tmp_path}"),
    ):
        done = deploy("bench", model_file, *images, *quick)
        assert done.code == 0, done.err
        assert source in json.loads(done.out)["images"]


def test_the_table_says_what_was_timed_and_how_to_add_pytorch(deploy, model_file):
    done = deploy("bench", model_file, *QUICK[:-1], "--warmup", 0, "--threads", 1)
    assert done.code == 0
    for text in ("preprocess", "inference", "postprocess", "p99", "1 threads", "random images", "add --reference"):
        assert text in done.out
    for text in (
        model_file.name,
        f"{model_file.stat().st_size / 1e6:.1f} MB",
        "of the whole",
        "first detections after",
        "host memory at most",
        "images/s, one stream",
    ):
        assert text in done.out
    assert "p99 rests on" in done.out


def test_the_reference_gives_the_threads_back_that_it_took(checkpoint):
    before = torch.get_num_threads()
    with TorchBackend(checkpoint, threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_batch_of_the_reference_gives_each_image_its_own_detections(exported):
    for family in ("FCOS", "FasterRCNN"):
        with TorchBackend(exported(family).checkpoint) as backend:
            detector = Detector(backend)
            prepared = [detector.prepare(image) for image in random_images((128, 128), count=2)]
            outputs = detector.infer(*prepared)
            together = [detector.select(outputs, one, place) for place, one in enumerate(prepared)]
            for one, found in zip(prepared, together, strict=True):
                alone = detector.select(detector.infer(one), one)
                assert len(found) == len(alone) > 5
                np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)


def test_any_number_of_files_is_timed_and_held_against_the_first(deploy, exported):
    files = [exported(family).model for family in ("RetinaNet", "FCOS")]
    refused = deploy("bench", *files, *QUICK)
    assert refused.code == 2
    assert "postprocessing.threshold_on: scores and class_scores" in refused.err
    assert "--force" in refused.err
    facts = json.loads(deploy("bench", *files, *QUICK, "--force", "--json").out)
    assert [result["path"] for result in facts["results"]] == [str(file) for file in files]
    assert facts["baseline"].startswith(files[0].name)
    first, last = facts["results"]
    expected = first["milliseconds"]["total"]["p50"] / last["milliseconds"]["total"]["p50"]
    assert facts["speedup"]["total"] == last["speedup"]["total"] == pytest.approx(expected)
    assert first["speedup"] is None
    assert any(note.startswith("not the same work: ") for note in facts["notes"])


def test_streams_stand_in_the_table_and_in_the_record_beside_latency(deploy, model_file, monkeypatch):
    monkeypatch.setattr("cskd_deploy.measure.bench.STREAMS_TURN_SECONDS", 0.1)
    quick = ("--duration", 0, "--iterations", 2, "--warmup", 0, "--no-cold")
    done = deploy("bench", model_file, *quick, "--streams", "1,2", "--json")
    assert done.code == 0, done.err
    alone, together = json.loads(done.out)["results"]
    assert (alone["streams"], together["streams"]) == (1, 2)
    assert alone["enqueue_ms"] is None
    assert together["images_per_second"] == pytest.approx(together["images"] / together["seconds"])
    wrong = deploy("bench", model_file, "--streams", "0")
    assert wrong.code == 2
    assert "'0' are no numbers of streams, expected for example 1,2,4" in wrong.err


def test_a_batch_that_the_file_cannot_take_is_refused_by_name(deploy, model_file):
    done = deploy("bench", model_file, *QUICK, "--batch", "1,2")
    assert done.code == 2
    assert "takes batches of 1 only, asked for 2" in done.err
    assert deploy("bench", model_file, *QUICK, "--batch", "1,x").code == 2


def test_a_backend_that_runs_none_of_the_files_is_refused(deploy, model_file):
    done = deploy("bench", model_file, *QUICK, "--backend", "onnxruntime", "--backend", "tensorrt")
    assert done.code == 2
    assert "--backend tensorrt runs none of the files given" in done.err
    assert "runs in onnxruntime, not in tensorrt" in deploy("bench", model_file, "--backend", "tensorrt").err


def test_a_gpu_provider_that_is_not_there_is_exit_code_3(deploy, model_file):
    done = deploy("bench", model_file, *QUICK, "--device", "cuda")
    assert done.code == 3
    assert "CUDAExecutionProvider" in done.err
    assert "onnxruntime-gpu" in done.err


def test_settings_of_the_runtime_are_applied_and_noted_and_unknown_ones_refused(deploy, model_file):
    settings = ("--ort", "graph=none", "--ort", "spinning=off")
    facts = json.loads(deploy("bench", model_file, *QUICK, *settings, "--json").out)
    assert facts["environment"]["onnxruntime_settings"] == "graph=none arena=on spinning=off"
    for wrong in ("graph=most", "arena=1", "speed=on"):
        done = deploy("bench", model_file, *QUICK, "--ort", wrong)
        assert done.code == 2
        assert "graph=none|basic|extended|all" in done.err


def test_a_cold_start_is_timed_in_a_process_of_its_own(model_file):
    start = measure_cold(model_file, "onnxruntime", {"threads": 1})
    assert 1 < start.first_ms < 60_000
    assert start.load_ms > 1
    assert 60e6 < start.peak_bytes < 2e9  # not the memory of this process, which holds PyTorch
    empty = model_file.with_name("empty.onnx")
    empty.touch()
    with pytest.raises(DeployError, match="is empty"):
        measure_cold(empty, "onnxruntime", {})


def test_latency_is_drawn_against_the_map_of_the_same_file(
    deploy, model_file, found_annotations, shapes_root, tmp_path
):
    data = ("--ann", found_annotations, "--images", shapes_root / "images", "--limit", 2)
    evaluation = tmp_path / "eval.json"
    evaluation.write_text(deploy("eval", model_file, *data, "--json").out)
    picture = tmp_path / "latency.png"
    done = deploy("bench", model_file, *QUICK, "--plot", picture, "--eval", evaluation)
    assert done.code == 0, done.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "has no evaluation" not in done.out
    facts = json.loads(evaluation.read_text())
    assert read_evaluations([evaluation])[0].mean_average_precision == facts["metrics"]["bbox_mAP"]
    # Of another file of the same name: its content decides.
    evaluation.write_text(json.dumps({**facts, "file_sha256": "0" * 64}))
    other = deploy("bench", model_file, *QUICK, "--plot", picture, "--eval", evaluation)
    assert other.code == 2
    assert "no evaluation given by --eval is of a file that is timed" in other.err
    evaluation.write_text("{}")
    assert (
        "is not the output of `cskd-deploy eval"
        in deploy("bench", model_file, "--plot", picture, "--eval", evaluation).err
    )


def test_stages_are_drawn_without_evaluations_and_a_missing_matplotlib_is_exit_code_3(
    deploy, model_file, tmp_path, monkeypatch
):
    picture = tmp_path / "stages.svg"
    assert deploy("bench", model_file, *QUICK, "--plot", picture).code == 0
    assert "preprocess" in picture.read_text()
    assert deploy("bench", model_file, *QUICK, "--eval", "x.json").code == 2
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = deploy("bench", model_file, *QUICK, "--plot", picture)
    assert done.code == 3
    assert "pip install matplotlib" in done.err
