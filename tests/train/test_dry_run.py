"""`--dry-run`: the numbers of a run before it begins, and nothing written."""

from __future__ import annotations

import io
import re
import shutil
from dataclasses import replace

import pytest
import torch
from mmcv.runner import HOOKS, LoggerHook
from rich.console import Console

from cskd_train.engine.dry_run import dry_run
from cskd_train.engine.signals import Interrupted
from cskd_train.errors import REFUSALS, TrainError
from cskd_train.mm.plain import build_without_pretrained

from .runs import STEPS, log, narrow, train


def plan(options):
    """Name -> what is said of it, and what was printed beside it."""
    console = Console(file=io.StringIO(), width=400)
    lines = dry_run(replace(options, dry_run=True), console).splitlines()
    named = {line[:14].strip(): line[14:] for line in lines if line[:14].strip()}
    terms = {}
    for line in lines[[line.startswith("first loss") for line in lines].index(True) :] if "first loss" in named else []:
        name, value, *_ = line[14:].split()
        terms[name] = value
    return named, terms, console.file.getvalue()


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def whole(small_runs, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("whole") / "w"
    train(small_runs.options(work_dir))
    return work_dir


@HOOKS.register_module()
class WritingLogger(LoggerHook):
    """Writes as the run begins."""

    def before_run(self, runner):
        super().before_run(runner)
        with open("logger.txt", "w") as file:
            file.write("begun")

    def log(self, runner):
        pass


def test_nothing_is_written(small_runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {
        "log_config": {"hooks": [{"type": "WritingLogger"}]},
        "data.workers_per_gpu": 2,
        "ema": {},
        "amp": "fp16",
    }
    options = small_runs.options(tmp_path / "parent" / "w", settings=settings, checkpoint_every=3)
    before = listing(small_runs.folder)
    named, _, _ = plan(options)
    assert named["EMA"] == "decay 0.9998, warmup 2000; the average of the weights is evaluated and kept"
    assert (
        named["saved"]
        == f"{tmp_path / 'parent' / 'w' / 'last.pth'} after every epoch and every 3 steps, best.pth beside it"
    )
    assert listing(tmp_path) == {}
    assert listing(small_runs.folder) == before
    train(small_runs.options(tmp_path / "w", settings={**settings, "runner.max_epochs": 1}))
    assert (tmp_path / "logger.txt").exists()  # the run itself has the logger


def test_the_numbers_are_those_of_the_run(small_runs, whole, tmp_path):
    named, terms, said = plan(small_runs.options(tmp_path / "w"))
    assert named["processes"].startswith("1, each on CPU (")
    assert named["a step"] == "2 images: 2 a batch x 1 process(es) x 1 accumulated, float32"
    assert named["steps"] == f"{STEPS}: 2 epochs of 7, {STEPS} of them to come"
    assert named["learning rate"] == "0.001 (policy step, warmup linear, warmup_iters 2, warmup_ratio 0.1, step [2])"
    assert named["evaluation"] == "every 1 epoch(s) on 3 images; its time is not in the above"
    model = build_without_pretrained(narrow("RetinaNet"))
    frozen = sum(p.numel() for name, p in model.named_parameters() if re.match(r"backbone\.(conv1|bn1|layer1)\.", name))
    trained = sum(p.numel() for p in model.parameters()) - frozen
    assert frozen > 1000
    assert named["student"] == f"{trained / 1e6:.2f} M parameters trained, {frozen / 1e6:.2f} M frozen"
    assert 0.1 < float(re.match(r"([\d.]+) GiB", named["peak memory"])[1]) < 30
    took = re.match(r"([\d.e-]+) s, ([\d.e+]+) images/s; ([\d.]+) minutes to come", named["a step takes"])
    assert float(took[1]) * float(took[2]) == pytest.approx(2, rel=0.02)
    assert float(took[3]) == pytest.approx(STEPS * float(took[1]) / 60, abs=0.06)
    first = log(whole)[0]
    assert terms == {name: f"{first[name]:.4g}" for name in ("loss_cls", "loss_bbox", "loss")}
    assert "learning rate 0.001, 2 images a step" in said


def test_accumulation_and_scaling_are_in_the_numbers(small_runs, tmp_path):
    settings = {"optimizer": {"type": "SGD", "lr": 0.02}, "accumulate": 3, "amp": "bf16"}
    settings["auto_scale_lr"] = {"enable": True, "base_batch_size": 12}
    named, _, said = plan(small_runs.options(tmp_path / "w", settings=settings))
    assert named["a step"] == "6 images: 2 a batch x 1 process(es) x 3 accumulated, bf16"
    assert named["steps"] == "6: 2 epochs of 3, 6 of them to come"
    assert named["learning rate"].startswith("0.01 (policy step")
    assert "learning rate 0.02 x 0.5 = 0.01" in said


def test_a_distilled_run_shows_its_teacher_and_every_term(small_runs, tmp_path):
    options = small_runs.options(tmp_path / "w", "RetinaNet", True, settings={"runner.max_epochs": 1})
    named, terms, said = plan(options)
    assert re.search(r"the teacher has mAP 0\.\d+ on all 3 images of data\.val", said)
    assert "EMA" not in named
    teacher = sum(p.numel() for p in build_without_pretrained(narrow("RetinaNet", 50, 24)).parameters()) / 1e6
    assert named["teacher"] == f"{teacher:.2f} M parameters, frozen"
    assert re.fullmatch(r"0\.\d\d M parameters trained beside it", named["distillation"])
    assert train(options)[0].iterations == 7
    first = log(tmp_path / "w")[0]
    assert {"loss_pyramid_full", "loss_pyramid_roi", "loss_tower_cls", "loss_assistant_cls"} < terms.keys()
    assert terms == {name: f"{value:.4g}" for name, value in first.items() if "loss" in name}


def test_with_resume_it_tells_what_is_left(small_runs, tmp_path):
    work_dir = tmp_path / "w"
    assert isinstance(train(small_runs.options(work_dir), stop_after=8)[0], Interrupted)
    before = listing(tmp_path)
    options = small_runs.options(work_dir, settings={"runner.max_epochs": 3}, resume=True)
    named, terms, said = plan(options)
    assert named["steps"] == "21: 3 epochs of 7, 12 of them to come"
    assert "a setting has changed since the run began: runner.max_epochs: 2 -> 3" in said
    assert listing(tmp_path) == before
    train(options)
    step = next(record for record in log(work_dir) if record["iter"] == 10)
    assert terms["loss"] == f"{step['loss']:.4g}"


def test_a_finished_run_has_nothing_to_do(small_runs, whole):
    before = listing(whole)
    options = replace(small_runs.options(whole, resume=True), dry_run=True)
    assert dry_run(options, Console(quiet=True)) == f"{whole}: this run is finished already; there is nothing to do"
    assert listing(whole) == before


def test_what_a_run_refuses_is_refused(small_runs, whole, tmp_path):
    used = shutil.copytree(whole, tmp_path / "used")
    (tmp_path / "file").touch()
    before = listing(tmp_path)
    other = {"data.samples_per_gpu": 7, "runner.max_epochs": 3}
    for options, message in (
        (small_runs.options(used), "already holds a finished run"),
        (small_runs.options(tmp_path / "file" / "w"), "cannot be written"),
        (small_runs.options(tmp_path / "w", settings={"amp": "int8"}), "amp = 'int8'"),
        (small_runs.options(tmp_path / "w", settings={"data.val.img_prefix": "nowhere/"}), "nowhere"),
        (small_runs.options(tmp_path / "w", settings={"load_from": "nothing.pth"}), "nothing.pth: no such file"),
        (small_runs.options(used, settings=other, resume=True), "7 batches an epoch, the config now gives 2"),
    ):
        with pytest.raises(REFUSALS, match=re.escape(message)):
            plan(options)
        assert listing(tmp_path) == before
        outcome, _ = train(options)
        assert message in str(outcome)
        if (tmp_path / "w").exists():  # a run makes it first
            (tmp_path / "w").rmdir()
        before = listing(tmp_path)


def test_too_little_memory_is_one_message_and_a_terminal_keeps_its_cursor(small_runs, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    console = Console(file=io.StringIO(), force_terminal=True)
    options = replace(small_runs.options(tmp_path / "w"), dry_run=True)
    dry_run(options, console)
    monkeypatch.setattr("cskd_train.engine.step.TrainStep.__call__", full)
    with pytest.raises(TrainError, match=r"too little memory: CUDA out of memory.* Lower the batch size"):
        dry_run(options, console)
    assert "\x1b[?25l" not in console.file.getvalue()
