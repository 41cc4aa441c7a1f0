"""The benchmarks run and say what they promise; how fast anything is, no test asks."""

from __future__ import annotations

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from cskd_data import read

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DOCS = BENCHMARKS.parent / "docs"


@pytest.fixture
def benchmark(monkeypatch):
    """A module of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def in_folder(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def in_docs():
    return in_folder(DOCS)


def test_the_step_benchmark_writes_a_line_a_family_whose_ratios_agree(tmp_path):
    out = tmp_path / "step.jsonl"
    command = [sys.executable, BENCHMARKS / "step.py", "--families", "RetinaNet", "--size", "64", "64", "--narrow"]
    command += ["--images", "1", "--amp", "bf16", "--rounds", "1", "--threads", "1", "--kinds"]
    run = subprocess.run([*command, "--json", out], capture_output=True, text=True, check=True)
    costs = [json.loads(line) for line in out.read_text().splitlines()]
    assert [cost["pyramid"] for cost in costs] == [None, "cskd", "mse", "pkd", "cwd"]
    for cost in costs:
        assert (cost["family"], cost["amp"], cost["narrow"]) == ("RetinaNet", "bf16", True)
        assert (cost["torch"], len(cost["commit"].split()[0])) == (torch.__version__, 10)
        assert cost["ratio"] == cost["distilled_s"] / cost["plain_s"]
        bound = (cost["plain_s"] + cost["teacher_s"] + cost["added_s"]) / cost["plain_s"]
        assert abs(cost["over_bound"] - cost["ratio"] / bound) < 1e-9
    assert 0 < costs[0]["peak_mb"] < 100
    rows = run.stdout.splitlines()
    assert [row[:22].rstrip() for row in rows[1:]] == [
        "RetinaNet", "RetinaNet, cskd alone", "RetinaNet, mse alone", "RetinaNet, pkd alone", "RetinaNet, cwd alone"
    ]  # fmt: skip
    assert "over_bound" in rows[0]
    # Of student and teacher: five levels, eight tower maps a level and side, 720 + 36 channels of predictions.
    positions = sum(size * size for size in (8, 4, 2, 1, 1))
    assert costs[0]["tapped_mb"] == 2 * 4 * positions * (32 * 9 + 756) / 1e6
    assert {cost["tapped_mb"] for cost in costs[1:]} == {2 * 4 * positions * 32 / 1e6}


# What a distilled step adds to the plain one and the teacher's forward, in calls of operators and in waits. The second
# stage of Faster R-CNN samples the teacher's proposals, which is mmdet's own code.
PIECES = {"RetinaNet": (1500, 4), "FCOS": (1500, 4), "GFL": (1500, 4), "FasterRCNN": (3200, 190)}


@pytest.mark.parametrize("family", PIECES)
def test_a_distilled_step_adds_no_more_pieces_than_it_should(benchmark, family):
    step = benchmark("step")
    bench = step.Bench(family, 2, (64, 96), boxes=8, device=torch.device("cpu"), narrow=True)
    calls, waits = PIECES[family]
    for kept in (8, 0):
        bench.boxes, bench.labels = ([of_image[:kept] for of_image in all_] for all_ in (bench.boxes, bench.labels))
        added = step.added_pieces(bench)
        assert 500 < added.calls <= calls
        assert added.waits <= waits


def test_the_pyramid_term_of_each_kind_adds_no_wait_and_those_of_others_fewer_pieces_than_cskd(benchmark):
    step, cpu = benchmark("step"), torch.device("cpu")
    kinds = ("cskd", "mse", "pkd", "cwd")
    added = {
        kind: step.added_pieces(step.Bench("RetinaNet", 2, (64, 96), 8, cpu, narrow=True, pyramid=kind))
        for kind in kinds
    }
    assert {kind: one.waits for kind, one in added.items()} == dict.fromkeys(kinds, 0)
    assert added["mse"].calls < added["cwd"].calls < added["pkd"].calls < added["cskd"].calls <= 420


def test_the_folding_benchmark_times_both_forms_of_a_teacher(benchmark):
    command = [sys.executable, BENCHMARKS / "folding.py", "--families", "FCOS", "--size", "160", "160", "--narrow"]
    run = subprocess.run([*command, "--rounds", "2", "--threads", "1"], capture_output=True, text=True, check=True)
    _, row = run.stdout.splitlines()
    plain, lighter, ratio, least, largest = map(float, row.split()[1:])
    assert 0 < lighter < 10 * plain
    assert least <= ratio <= largest
    norms = [
        sum(isinstance(module, torch.nn.BatchNorm2d) for module in one.detector.modules())
        for one in benchmark("folding").teachers("FCOS", 1 / 8)
    ]
    assert norms == [53, 0]


def test_calls_and_waits_are_counted_and_looks_at_a_tensor_are_not(benchmark):
    ones = torch.ones(4, 6, requires_grad=True)

    def step():
        view = ones.view(2, 12).T[1:].expand(11, 2)
        chosen = view[view > 0]  # as many as there are: a wait
        total = chosen.sum() * 2
        total.backward()
        return total.item(), total.tolist()

    found = benchmark("pieces").count(step)
    # Forward gt, index, sum, mul and item; backward mul, ones_like, and what the index and the views make of it.
    assert found.calls["sum"] == found.calls["gt"] == found.calls["index"] == found.calls["_local_scalar_dense"] == 1
    assert not {"view", "t", "expand", "slice", "detach"} & set(found.calls)
    assert found.waits["_local_scalar_dense"] == found.waits["tolist"] == found.waits["index"] == 1


def test_the_loss_benchmark_compares_equal_losses(tmp_path):
    out = tmp_path / "loss.jsonl"
    command = [sys.executable, BENCHMARKS / "loss.py", "--size", "64", "96", "--channels", "8", "--rounds", "1"]
    command += ["--threads", "1"]
    subprocess.run([*command, "--json", out], capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["way"] for row in rows] == ["equations", "cskd_core"]
    positions = sum(height * width for height, width in ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1)))
    for row in rows:
        assert row["bytes_per_s"] * row["seconds"] == pytest.approx(7 * 2 * 8 * positions * 4)
        assert row["speedup"] == pytest.approx(rows[0]["seconds"] / row["seconds"])
        assert (row["torch"], len(row["commit"].split()[0])) == (torch.__version__, 10)
    loss = runpy.run_path(str(BENCHMARKS / "loss.py"))
    student, teacher = torch.randn(2, 8, 4, 6), torch.randn(2, 8, 4, 6)
    torch.testing.assert_close(loss["ours"](student, teacher), loss["equations"](student, teacher))


@pytest.mark.reliability
def test_the_chain_for_a_gpu_runs_on_a_processor_says_so_and_is_resumed(tmp_path):
    command = [sys.executable, BENCHMARKS / "gpu.py", "--device", "cpu", "--quick", "--out", tmp_path / "gpu.json"]
    before = in_docs()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert (found["ran_on"], found["device"], found["driver"]) == ("cpu", "CPU", None)
    assert found["versions"]["torch"] == torch.__version__
    assert {name: part["status"] for name, part in found["parts"].items()} == dict.fromkeys(
        ("tests", "step", "loss", "run"), "done"
    )
    counts = found["parts"]["tests"]["figures"]
    assert (counts["passed"], counts["failed"], counts["skipped"]) == (2, 0, 0)
    (speed,) = found["parts"]["run"]["figures"]
    assert speed["images_per_second"] > 0
    assert 0 <= speed["waiting"] < 1
    assert 100 < speed["peak_mb"] < 10_000
    page = (tmp_path / "gpu.md").read_text()
    assert "This ran on a CPU" in page
    assert f"| RetinaNet | float32 | {speed['images_per_second']:.4g} |" in page
    (tmp_path / "loss.json").unlink()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.partition(":")[0] for line in again.stdout.splitlines() if "done before" in line] == [
        "tests", "step", "run"
    ]  # fmt: skip
    assert "loss: done after" in again.stdout
    assert in_docs() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")
def test_without_a_gpu_nothing_is_run_or_written(tmp_path):
    command = [sys.executable, BENCHMARKS / "gpu.py", "--out", tmp_path / "gpu.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr == "There is no GPU here that torch sees, so nothing was run and nothing was written.\n"
    assert not list(tmp_path.iterdir())


def test_a_part_that_fails_keeps_what_it_said_and_counts_as_not_done(benchmark, tmp_path):
    gpu = benchmark("gpu")
    script = "import sys; sys.exit('no memory')"
    found = gpu.measure(gpu.Part("nothing", lambda device, out: ["-c", script], gpu.read_lines), "cpu")
    assert (found["status"], found["said"]) == ("failed", "no memory\n")
    (file := tmp_path / "part.json").write_text(json.dumps({"environment": {"commit": "a"}, **found}))
    assert gpu.outcome(file, {"environment": {"commit": "a"}}) == found
    assert not gpu.done(file, {"environment": {"commit": "a"}})
    assert gpu.outcome(file, {"environment": {"commit": "b"}}) == {"status": "not run"}


def test_failed_and_skipped_tests_are_counted_with_their_reasons(benchmark, tmp_path):
    (tmp_path / "test_three.py").write_text(
        "import pytest\ndef test_good(): pass\ndef test_bad(): assert 0\n"
        "def test_absent(): pytest.skip('no TensorRT')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", tmp_path, f"--junitxml={tmp_path / 'tests.xml'}"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    found = benchmark("gpu").read_tests(tmp_path / "tests.xml")
    assert found == {
        "passed": 1, "failed": 1, "skipped": 1, "failures": ["test_bad"], "reasons": ["no TensorRT"]
    }  # fmt: skip


def test_the_data_benchmark_makes_its_set_once_and_measures_commands_that_succeed(tmp_path, benchmark, monkeypatch):
    data_check = benchmark("data_check")
    measured, ran = data_check.measured, []
    monkeypatch.setattr(
        data_check, "measured", lambda arguments, cache: ran.append(arguments) or measured(["--help"], cache)
    )
    out = tmp_path / "a.json"
    options = [str(tmp_path / "sets"), "--images", "200", "--boxes", "600", "--rounds", "1", "--json", str(out)]
    done = CliRunner().invoke(data_check.main, options)
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert [row["measured"] for row in result["rows"]] == [
        "check",
        "check, decoded",
        "run, first",
        "run, again",
        "run, a hundredth",
    ]
    assert all(row["seconds"] > 0 and row["peak_mb"] > 10 for row in result["rows"])
    assert {"processor", "commit", "command"} <= set(result)
    dataset = read(tmp_path / "sets" / "200_600" / "annotations" / "train.json")
    assert (len(dataset.images), len(dataset.annotations), dataset.notes) == (200, 600, ())
    made = in_folder(tmp_path / "sets")
    assert CliRunner().invoke(data_check.main, options).exit_code == 0
    assert in_folder(tmp_path / "sets") == made
    for arguments in (ran[1], ran[4]):  # a check, and the run on the small set
        assert measured(arguments, str(tmp_path / "cache"))["seconds"] > 0
    with pytest.raises(click.ClickException, match=r"failed:\n.*error: annotation file"):
        measured(["data", "check", str(tmp_path / "none.json")], str(tmp_path / "cache"))


def test_the_data_benchmark_writes_nothing_into_the_checkout(benchmark):
    done = CliRunner().invoke(benchmark("data_check").main, [str(BENCHMARKS / "sets")])
    assert (done.exit_code, (BENCHMARKS / "sets").exists()) == (2, False)
    assert "give a folder outside of it" in done.output
