"""What a run says of time: images a second, the share spent waiting for data, the time that is left."""

from __future__ import annotations

import io
import json
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from cskd_data.shapes import generate
from cskd_train.engine import progress
from cskd_train.engine.progress import ProgressDisplay, TimeLeft
from cskd_train.engine.records import RunState


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; `clock.now` is the time in seconds."""
    found = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "perf_counter", lambda: found.now)
    return found


def record(iteration, seconds, data_seconds=0.0, epoch=1):
    """A training record: averages over the iterations since the last one."""
    speed = {"time": seconds, "data_time": data_seconds, "lr": 0.01}
    return {"mode": "train", "epoch": epoch, "iter": iteration, "loss_cls": 0.25, "loss": 0.75, **speed}


def evaluation(epoch, iteration, mean=0.3):
    return {"epoch": epoch, "iter": iteration, "bbox_mAP": mean, "bbox_mAP_50": 0.5, "bbox_mAP_75": 0.2}


# The state of a run


def test_a_record_counts_for_every_iteration_since_the_last_one():
    state = RunState(batch_size=3)
    state.train(record(10, 0.5, 0.1))
    assert (state.images_per_second, state.data_share) == pytest.approx((6.0, 0.2))
    state.train(record(14, 1.0, 0.75))  # the four that end an epoch
    assert state.iterations == 14
    assert state.training_seconds == pytest.approx(10 * 0.5 + 4 * 1.0)
    assert state.data_seconds == pytest.approx(10 * 0.1 + 4 * 0.75)
    assert (state.images_per_second, state.data_share) == pytest.approx((42 / 9, 4 / 9))


@pytest.mark.parametrize("interval", [1, 2, 5, 20])
def test_the_log_interval_changes_neither_speed_nor_share(interval):
    each = [(0.25 + 0.01 * place, 0.02 * (place % 3)) for place in range(20)]
    state = RunState(batch_size=2)
    for end in range(interval, 21, interval):
        latest = each[end - interval : end]
        state.train(record(end, *(sum(column) / interval for column in zip(*latest, strict=True))))
    seconds, waited = (sum(column) for column in zip(*each, strict=True))
    assert state.images_per_second == pytest.approx(40 / seconds)
    assert state.data_share == pytest.approx(waited / seconds)


def test_a_run_without_a_record_has_no_speed_and_no_share():
    assert (RunState(batch_size=2).images_per_second, RunState(batch_size=2).data_share) == (0.0, 0.0)


def test_a_resumed_run_adds_its_seconds_and_iterations_to_the_earlier_ones(clock):
    first = RunState(batch_size=3, began=clock.now - 40)
    first.train(record(10, 0.5, 0.1))
    data = json.loads(json.dumps(first.to_data()))
    clock.now += 1000  # nobody works
    second = RunState.from_data(data, batch_size=3)
    second.began = clock.now
    clock.now += 5
    second.train(record(20, 1.5, 0.9, epoch=2))
    assert second.seconds == pytest.approx(45)
    assert second.training_seconds == pytest.approx(10 * 0.5 + 10 * 1.5)
    assert second.data_share == pytest.approx((10 * 0.1 + 10 * 0.9) / 20)
    assert second.images_per_second == pytest.approx(3 * 20 / 20)


@pytest.fixture
def log_of_25(command_line, tiny_config, tmp_path):
    """`log_of_25(interval)`: the training records of two epochs of 25 iterations, and the result."""
    generate(root := tmp_path / "data", images=25, val_images=1, size=(64, 40), seed=5)

    def run(interval):
        words = [f"data_root={root}", "data.samples_per_gpu=1", f"log_config.interval={interval}", "data.val=None"]
        words.append("data.train.pipeline.2.img_scale=(64, 64)")  # the size of the images
        options = [word for setting in words for word in ("--set", setting)]
        folder = tmp_path / f"every {interval}"
        code, _, err = command_line("run", tiny_config, "--work-dir", folder, *options)
        assert code == 0, err
        records = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        return list(records), json.loads((folder / "result.json").read_text())

    return run


def test_a_record_is_the_average_since_the_last_one_and_the_result_their_sum(log_of_25):
    each, _ = log_of_25(1)
    records, result = log_of_25(50)
    # Ten records an epoch at least, and one where it ends: of one iteration, the others of two.
    ends = [*range(2, 25, 2), 25]
    ends += [25 + end for end in ends]
    counts = ([2] * 12 + [1]) * 2
    assert [one["iter"] for one in each] == list(range(1, 51))
    assert [one["iter"] for one in records] == ends
    for one, end, count in zip(records, ends, counts, strict=True):
        latest = each[end - count : end]
        assert {past["epoch"] for past in latest} == {one["epoch"]}
        assert one["lr"] == latest[-1]["lr"]
        for name in ("loss", "loss_cls", "loss_bbox", "grad_norm"):
            assert one[name] == pytest.approx(sum(past[name] for past in latest) / count, rel=1e-6)
    seconds = sum(one["time"] * count for one, count in zip(records, counts, strict=True))
    waited = sum(one["data_time"] * count for one, count in zip(records, counts, strict=True))
    assert result["images_per_second"] == pytest.approx(50 / seconds)
    assert result["data_share"] == pytest.approx(waited / seconds)


# The time that is left


def test_the_time_left_is_that_of_the_iterations_and_of_the_evaluations_to_come():
    left = TimeLeft(epochs=3, iterations=10, done=0)
    left.trained(4, 0.5)
    assert str(left) == "0:00:13"  # 26 iterations of 0.5 s; nobody knows yet what an evaluation takes
    left.trained(10, 1.0)
    assert str(left) == "0:00:16"  # 20 of (4 * 0.5 + 6 * 1) / 10
    left.evaluated(7.0)
    assert str(left) == "0:00:30"  # and two evaluations
    left.trained(15, 1.8)
    assert str(left) == "0:00:31"  # 15 of (8 + 5 * 1.8) / 15, and still two
    left.trained(20, 0.6)
    left.evaluated(4.0)
    assert str(left) == "0:00:14"  # 10 of 1 s and one evaluation, as long as the latest
    left.trained(30, 1.0)
    left.evaluated(4.0)
    assert str(left) == "0:00:00"


def test_a_resumed_run_estimates_from_its_own_iterations():
    left = TimeLeft(epochs=4, iterations=10, done=20)
    left.trained(25, 2.0)
    assert str(left) == "0:00:30"
    left.trained(30, 1.0)
    left.evaluated(9.0)
    assert str(left) == "0:00:24"  # 10 of 1.5 s, and one evaluation


def test_after_steps_of_another_length_the_time_left_is_that_of_the_steps_to_come():
    # Two of four epochs are done, in 10 steps each: an epoch has 40 by now.
    console = Console(file=io.StringIO(), width=200)
    display = ProgressDisplay(console, epochs=4, iterations=40, done=80, best=None, recorded=20)
    display.train(record(40, 0.5, 0.125, 3))
    assert str(display._time_left) == "0:00:30"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(59.4, "0:00:59"), (59.6, "0:01:00"), (3725.0, "1:02:05"), (100 * 3600.0, "100:00:00")]
)
def test_the_time_left_is_shown_in_hours_minutes_and_seconds(seconds, shown):
    left = TimeLeft(epochs=2, iterations=1, done=0)
    left.trained(1, seconds)
    assert str(left) == shown


def test_the_display_counts_the_evaluations_by_the_clock(clock, monkeypatch):
    monkeypatch.setattr(progress, "LINES_APART", 0)
    console = Console(file=io.StringIO(), width=200)
    display = ProgressDisplay(console, epochs=3, iterations=20, done=0, best=None)
    for epoch in (1, 2):
        display.begin_epoch(epoch - 1, 0, 20)
        for done in (10, 20):
            for _ in range(10):
                display.step()
            display.train(record((epoch - 1) * 20 + done, 0.5, 0.125, epoch))
        clock.now += 50  # nothing of this is the evaluation's
        display.begin_evaluation()
        clock.now += 8 * epoch
        display.validation(evaluation(epoch, 20 * epoch, 0.3 / epoch))
    display.close()
    lines = console.file.getvalue().splitlines()
    assert [line.partition(" left")[0] for line in lines if "step" in line][:3] == [
        "epoch 1/3  step 10/20  0:00:25",
        "epoch 1/3  step 20/20  0:00:20",
        "epoch 2/3  step 10/20  0:00:31",  # 30 iterations, two evaluations of 8 s
    ]
    assert all("0.50 s/step, data 25%" in line for line in lines if "step" in line)
    assert [line.rpartition("  ")[2] for line in lines if "val mAP" in line] == ["0:00:36 left", "0:00:26 left"]
    assert "best mAP 0.3000" in lines[-1]
    assert "val mAP 0.1500" in lines[-1]
