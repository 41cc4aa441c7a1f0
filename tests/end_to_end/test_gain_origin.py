"""Where a run of the study of gains comes from and what it cost stands in its folder; records are read from there."""

from __future__ import annotations

import json
from contextlib import suppress

import click
import pytest
import tomllib
from click.testing import CliRunner

from .studies import BEST_OF, PLAN, at_step, found, run


@pytest.fixture
def teacher(tmp_path):
    folder = tmp_path / "runs" / "lasting" / "teacher"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def another_machine(gain, monkeypatch):
    """From here on the machine is another one."""

    def change():
        here = gain.machine.processor()
        other = {"processor": here["processor"], "instructions": [*here["instructions"], "more"]}
        monkeypatch.setattr(gain.machine, "processor", lambda: other)

    return change


def records_of(gain, tmp_path, name="gain.jsonl"):
    return gain.read(tmp_path / name)


def test_a_run_whose_test_failed_is_recorded_later_as_what_it_was(
    gain, origin, plan, done, tmp_path, monkeypatch, another_machine
):
    succeeds = gain.execute

    def fails(words):
        succeeds(words)
        if words[1] == "test":
            raise click.ClickException("no memory")

    monkeypatch.setattr(gain, "execute", fails)
    monkeypatch.setattr(gain.machine, "commit", lambda tree: "first")
    words = [str(plan), "--work-dir", str(tmp_path / "runs"), "--records", str(tmp_path / "gain.jsonl")]
    assert CliRunner().invoke(gain.main, words).exit_code == 1
    assert records_of(gain, tmp_path) == []
    processor = gain.machine.processor()

    done.clear()
    monkeypatch.setattr(gain, "execute", succeeds)
    monkeypatch.setattr(gain.machine, "commit", lambda tree: "second")
    another_machine()
    run(gain, plan, tmp_path)
    first, second, *_ = records_of(gain, tmp_path)
    assert [words[1] for words in done[:2]] == ["test", "run"]  # the teacher is not begun again
    assert (first["method"], first["processor_minutes"], first["commit"]) == ("teacher", 8.0, "first")
    assert {name: first[name] for name in processor} == processor
    assert (second["commit"], second["instructions"][-1]) == ("second", "more")


def test_other_records_of_the_same_folders_have_the_same_costs(gain, plan, done, tmp_path):
    run(gain, plan, tmp_path)
    done.clear()
    words = [str(plan), "--work-dir", str(tmp_path / "runs"), "--records", str(tmp_path / "more.jsonl")]
    assert CliRunner().invoke(gain.main, words, catch_exceptions=False).exit_code == 0
    assert {words[1] for words in done} == {"test"}
    assert records_of(gain, tmp_path, "more.jsonl") == records_of(gain, tmp_path)


def test_a_run_that_goes_on_costs_what_all_calls_took(gain, origin, tmp_path, monkeypatch):
    used = iter([0.0, 100.0, 100.0, 103.0, 103.0, 107.0, 180.0])
    monkeypatch.setattr(origin, "processor_seconds", lambda: next(used))
    commits = iter(["a", "b", "c", "b"])
    monkeypatch.setattr(origin.machine, "commit", lambda tree: next(commits))
    with suppress(KeyboardInterrupt), origin.trained(tmp_path, ["cskd-train", "run", "x.py"]):
        at_step(tmp_path, 25)  # in the middle of an epoch
        raise KeyboardInterrupt
    with origin.trained(tmp_path, ["cskd-train", "run", "x.py", "--resume"]):
        at_step(tmp_path, 26)
    with suppress(OSError), origin.trained(tmp_path, ["cskd-train", "run", "x.py", "--resume"]):
        raise OSError  # fails as it starts, after 4 s
    with origin.trained(tmp_path, ["cskd-train", "run", "x.py", "--resume"]):
        at_step(tmp_path, 60)
    found = origin.origin_of(tmp_path)
    assert (found["steps"], found["processor_seconds"], found["command"]) == (60, 176.0, "cskd-train run x.py")
    assert (found["commit"], found["commits"]) == ("b", ["a", "b"])
    assert origin.minutes_of(found, {"iterations": 60}) == pytest.approx(176 / 60)


def test_of_a_call_that_was_killed_neither_time_nor_steps_count(gain, plan, done, teacher, tmp_path):
    at_step(teacher, 45)
    run(gain, plan, tmp_path)
    assert records_of(gain, tmp_path)[0]["processor_minutes"] == pytest.approx(8.0 / 15 * 60)


def test_a_run_that_is_through_and_says_not_where_it_comes_from_is_refused(gain, plan, done, teacher, tmp_path):
    (teacher / "result.json").write_text(json.dumps({"epochs": 28}))
    words = [str(plan), "--work-dir", str(tmp_path / "runs"), "--records", str(tmp_path / "gain.jsonl")]
    result = CliRunner().invoke(gain.main, words)
    assert (result.exit_code, done) == (2, [])
    said = f"{teacher} has a run that is through and no gain.json, which says by what commit and on what machine: "
    assert f"{said}remove that folder, and the run is repeated" in " ".join(result.output.split())
    left = CliRunner().invoke(gain.main, [*words, "--dry-run"])
    assert (left.exit_code, len(left.output.splitlines())) == (0, 9)
    assert said in left.output

    (teacher / "result.json").write_text(json.dumps({"epochs": 14}))  # of a shorter one, which goes on
    at_step(teacher, 30)
    run(gain, plan, tmp_path)
    assert records_of(gain, tmp_path)[0]["processor_minutes"] == 16.0


def test_a_run_is_not_ended_on_another_machine(gain, origin, plan, done, teacher, tmp_path, another_machine):
    with origin.trained(teacher, ["cskd-train"]):
        at_step(teacher, 30)
    another_machine()
    words = [str(plan), "--work-dir", str(tmp_path / "runs"), "--records", str(tmp_path / "gain.jsonl")]
    result = CliRunner().invoke(gain.main, words)
    assert (result.exit_code, done) == (2, [])
    assert f"{teacher} was begun on another machine (" in " ".join(result.output.split())


def test_records_of_another_machine_are_named_and_do_not_count(gain, plan, done, tmp_path, another_machine):
    run(gain, plan, tmp_path)
    done.clear()
    another_machine()
    words = [str(plan), "--work-dir", str(tmp_path / "new"), "--records", str(tmp_path / "gain.jsonl")]
    said = CliRunner().invoke(gain.main, [*words, "--dry-run"], catch_exceptions=False).output.splitlines()
    assert said[0].startswith("9 of the runs are recorded of another machine, ")
    assert said[1:] == [one.name for one in gain.runs_of(tomllib.loads(PLAN))]
    assert CliRunner().invoke(gain.main, words, catch_exceptions=False).exit_code == 0
    assert sum(words[1] == "run" for words in done) == 9
    machines = [gain.machine.key_of(one) for one in records_of(gain, tmp_path)]
    assert [machines.index(one) for one in machines] == 9 * [0] + 9 * [9]


def test_the_best_of_several_is_sought_among_records_of_this_machine(gain, plan, done, tmp_path, another_machine):
    plan.write_text(PLAN + BEST_OF)
    records = [found(gain, one, 0.1) for one in gain.runs_of(tomllib.loads(plan.read_text()), "weights")]
    (tmp_path / "gain.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    another_machine()
    words = [str(plan), "--work-dir", str(tmp_path / "runs"), "--records", str(tmp_path / "gain.jsonl")]
    result = CliRunner().invoke(gain.main, [*words, "--study", "rivals"])
    assert (result.exit_code, done) == (2, [])
    assert "weights/cskd_1_8_seed0 has no record of this machine yet: begin with --study weights" in " ".join(
        result.output.split()
    )


def test_where_all_is_recorded_the_way_to_repeat_it_is_said(gain, plan, done, tmp_path):
    run(gain, plan, tmp_path)
    for more in ([], ["--dry-run"]):
        assert run(gain, plan, tmp_path, *more) == (
            f"all 9 runs are recorded in {tmp_path / 'gain.jsonl'}: to repeat them, give a --work-dir and a file of "
            "--records of your own\n"
        )


def test_a_gpu_is_a_machine_of_its_own_and_threads_are_none(gain):
    one = {"processor": "P", "instructions": ["avx2", "f16"]}
    key = gain.machine.key_of
    assert key(one) == key({**one, "device": "CPU (x86_64, 1 threads)"}) == key({**one, "device": "CPU"})
    assert key({**one, "device": "NVIDIA H200"}) == "P (avx2, f16), NVIDIA H200"
    assert key({**one, "device": "NVIDIA A100"}) != key({**one, "device": "NVIDIA H200"}) != key(one)
    assert key({"commit": "abc"}) == "machine not known"
