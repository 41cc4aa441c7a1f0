"""What several processes compute together: evaluation, gradients, and errors that one of them meets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import process_parts
from process_parts import in_processes

from cskd_data.shapes import generate
from cskd_train.engine.distributed import SharedError, World
from cskd_train.engine.evaluate import evaluate_checkpoint
from cskd_train.errors import TrainError

SGD = {"optimizer": {"type": "SGD", "lr": 0.01}, "optimizer_config": None, "lr_config": None}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """21 validation images: no multiple of two processes."""
    root = tmp_path_factory.mktemp("many") / "shapes"
    generate(root, images=4, val_images=21, size=(128, 128), seed=3)
    return root


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Two validation images."""
    root = tmp_path_factory.mktemp("few") / "shapes"
    generate(root, images=4, val_images=2, size=(128, 128), seed=3)
    return root


@pytest.fixture(scope="module")
def settings(shapes_root):
    """Overrides of `tiny_config`: one image a batch, a plain optimizer that does not clip."""
    return {"data_root": str(shapes_root), "data.samples_per_gpu": 1, **SGD}


@pytest.fixture(scope="module")
def distilled(tiny_config, trained, tmp_path_factory):
    """`tiny_config` under a teacher, every term of the distillation on."""
    path = tmp_path_factory.mktemp("distilled") / "tiny_distill.py"
    path.write_text(
        f"_base_ = [{str(tiny_config)!r}]\n"
        f"distill = dict(teacher=dict(checkpoint={str(trained / 'best.pth')!r}), pyramid=dict(full=(1, 0.5), "
        "roi=(1, 0.5), foreground=(1, 0.5), background=(1, 0.5)), tower=dict(cls=(1, 0.5), reg=(1, 0.5)), "
        "prediction=(1, 0.5), assistant=True)\n"
    )
    return path


def test_every_image_counts_once_at_any_number_of_processes(trained, many, tmp_path):
    found, files = {}, {}
    for size in (1, 2, 3):
        files[size] = tmp_path / f"{size}.json"
        found[size] = in_processes(size, process_parts.evaluation, trained / "best.pth", many, files[size])
    metrics, images, detections = found[1][0]
    assert images == 21
    assert detections == len(json.loads(files[1].read_text())) > 21
    assert all(one == (metrics, images, detections) for size in (1, 2, 3) for one in found[size])
    assert files[1].read_bytes() == files[2].read_bytes() == files[3].read_bytes()


def test_a_process_without_an_image_takes_part(trained, few, tmp_path):
    three = in_processes(3, process_parts.evaluation, trained / "best.pth", few, tmp_path / "three.json")
    alone = evaluate_checkpoint(trained / "best.pth", {"data_root": str(few)}, out=tmp_path / "alone.json")
    assert three == [(alone.metrics, 2, alone.detections)] * 3
    assert (tmp_path / "three.json").read_bytes() == (tmp_path / "alone.json").read_bytes()


def test_an_evaluation_stops_in_all_processes_where_one_is_asked(trained, many):
    assert in_processes(2, process_parts.stopped_in_evaluation, trained / "best.pth", many, 1) == [11, 1]


@pytest.mark.parametrize("teacher", [False, True], ids=["plain", "distilled"])
def test_the_gradient_is_the_mean_over_the_processes(tiny_config, distilled, settings, teacher):
    config = distilled if teacher else tiny_config
    both = in_processes(2, process_parts.training, config, settings)
    assert both[0]["gradients"].keys() == both[1]["gradients"].keys()
    singles = [_single(config, settings, number) for number in (0, 1)]
    assert len(both[0]["gradients"]) > (60 if teacher else 40)
    for name, gradient in both[0]["gradients"].items():
        assert torch.equal(gradient, both[1]["gradients"][name])
        mean = (singles[0]["gradients"][name] + singles[1]["gradients"][name]) / 2
        scale = max(float(single["gradients"][name].abs().max()) for single in singles)
        assert (gradient - mean).abs().max() <= 1e-6 * max(scale, 1), name
    for name, value in both[0]["terms"][0].items():
        assert value == pytest.approx(sum(single["terms"][0][name] for single in singles) / 2, rel=1e-6)
        assert value == both[1]["terms"][0][name]


def test_without_the_wrapper_each_process_keeps_its_own_gradient(tiny_config, settings):
    """The negative control of the test above: its comparison tells the mean from what it is the mean of."""
    both = in_processes(2, process_parts.training, tiny_config, settings, 1, False)
    key = "bbox_head.retina_cls.weight"
    for number in (0, 1):
        single = _single(tiny_config, settings, number)["gradients"][key]
        assert torch.allclose(both[number]["gradients"][key], single, atol=1e-6)
    first, second = (one["gradients"][key] for one in both)
    assert (first - (first + second) / 2).abs().max() > 1e-4


def test_two_batches_of_one_process_are_one_batch_of_two(tiny_config, settings):
    accumulated = in_processes(1, process_parts.training, tiny_config, {**settings, "accumulate": 2}, 3)[0]
    spread = in_processes(2, process_parts.training, tiny_config, settings, 3)
    for one in spread:
        assert one["terms"][0] == pytest.approx(accumulated["terms"][0], rel=1e-6)
        assert len(one["terms"]) == len(accumulated["terms"]) == 3
        for name, value in accumulated["weights"].items():
            if "running" not in name and "num_batches" not in name:  # each process has seen other images
                assert torch.allclose(one["weights"][name], value, atol=1e-5), name
    norm = "backbone.bn1.running_mean"
    assert not torch.equal(spread[0]["weights"][norm], spread[1]["weights"][norm])


def test_gradients_travel_once_a_step_however_many_batches_it_has(tiny_config, settings):
    one = in_processes(2, process_parts.training, tiny_config, settings)[0]
    two = in_processes(2, process_parts.training, tiny_config, {**settings, "accumulate": 2})[0]
    assert len(one["sent"]) >= 1
    assert two["sent"] == one["sent"]


@pytest.mark.parametrize("lacking", [0, 1])
def test_a_term_that_one_process_lacks_counts_as_nothing_there(lacking):
    for terms in in_processes(2, process_parts.lacking_a_term, lacking):
        assert terms == [{"loss_cls": 1, "loss_bbox": both, "loss": 1 + both} for both in (3, 1.5, 3)]


def test_what_fails_in_one_process_fails_in_all_with_its_message():
    assert in_processes(2, process_parts.together, None) == [0, 1]
    assert in_processes(2, process_parts.together, 1) == ["SharedError: no file on process 1"] * 2


def test_processes_with_other_settings_are_refused_by_name_in_all():
    same = {"optimizer.lr": 0.1, "--seed": 0}
    found = in_processes(3, process_parts.compared, [same, same, {"optimizer.lr": 0.2, "extra": True, "--seed": 0}])
    assert len(set(found)) == 1
    assert (
        "processes 0 and 2 were started with different settings (optimizer.lr: 0.1 and 0.2; extra: none and" in found[0]
    )
    assert in_processes(2, process_parts.compared, [same, dict(same)]) == ["equal"] * 2


def test_one_process_alone_talks_to_nobody():
    world = World()
    assert (world.gather(3), world.from_main(4), world.to_main(5), world.together(lambda: 6)) == ([3], 4, [5], 6)
    world.check_equal("settings", {"a": 1})
    with pytest.raises(TrainError) as failed:
        world.together(_refuse)
    assert not isinstance(failed.value, SharedError)


def _single(config, settings, number):
    """A step of one process alone, on the batch that process `number` of two has in their first step."""
    accumulated = {**settings, "accumulate": number + 1}
    if number == 0:
        return in_processes(1, process_parts.training, config, accumulated)[0]
    both, first = (in_processes(1, process_parts.training, config, {**settings, "accumulate": n})[0] for n in (2, 1))
    return {
        "gradients": {name: 2 * both["gradients"][name] - first["gradients"][name] for name in both["gradients"]},
        "terms": [{name: 2 * value - first["terms"][0][name] for name, value in both["terms"][0].items()}],
    }


def _refuse():
    raise TrainError("no")
