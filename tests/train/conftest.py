"""What the tests of cskd-train share: a fresh interpreter, the command line, a trained run, narrow stock detectors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cskd_train.mm  # noqa: F401  (changes mmcv before any test imports it)

from .narrow import PUBLISHED, narrow

FreshPython = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def fresh_python() -> FreshPython:
    """Run code in a new interpreter, with folders put in front of its path: `fresh_python(code, folder, ...)`."""

    def run(code: str, *folders: Path) -> subprocess.CompletedProcess[str]:
        path = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )

    return run


@pytest.fixture
def command_line(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `cskd-train` in this process: `command_line("data", "check", ...)` -> exit code, output and error."""
    from cskd_train.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return call


TINY_CONFIG = Path(__file__).parent / "tiny_retinanet.py"


@pytest.fixture(scope="session")
def tiny_config() -> Path:
    """A RetinaNet that trains within a test: six iterations in two epochs on `shapes_root`."""
    return TINY_CONFIG


@pytest.fixture(scope="session")
def trained(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work dir of an undisturbed run of `tiny_config`, seed 0. Not to be changed."""
    from rich.console import Console

    from cskd_train.engine.run import RunOptions, run

    work_dir = tmp_path_factory.mktemp("trained") / "work"
    options = RunOptions(config=str(TINY_CONFIG), work_dir=work_dir, overrides={"data_root": str(shapes_root)})
    run(options, Console(stderr=True, quiet=True))
    return work_dir


@pytest.fixture
def train_tiny(
    command_line: Callable[..., tuple[int, str, str]], shapes_root: Path
) -> Callable[..., tuple[int, str, str]]:
    """`cskd-train run` on `shapes_root`: `train_tiny(work_dir, *options)` -> exit code, output and error."""

    def call(work_dir: Path, *options: object, config: Path = TINY_CONFIG) -> tuple[int, str, str]:
        return command_line("run", config, "--work-dir", work_dir, "--set", f"data_root={shapes_root}", *options)

    return call


UPRIGHT = (160, 96)  # height, width; the tiny configs scale these images to 128 x 77 and pad them to 128 x 96


@pytest.fixture(scope="session")
def upright_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated set like `shapes_root`, of images that are higher than wide."""
    from cskd_data.shapes import generate

    root = tmp_path_factory.mktemp("data") / "upright"
    generate(root, images=12, val_images=6, size=UPRIGHT, seed=3)
    return root


@pytest.fixture
def train_upright(
    command_line: Callable[..., tuple[int, str, str]], upright_root: Path
) -> Callable[..., tuple[int, str, str]]:
    """`train_tiny` on `upright_root`; settings are given as such: `train_upright(work_dir, "--seed", 1, *settings)`."""

    def call(work_dir: Path, *options: object, config: Path = TINY_CONFIG) -> tuple[int, str, str]:
        words = [word for one in options for word in (("--set", one) if "=" in str(one) else (one,))]
        return command_line("run", config, "--work-dir", work_dir, "--set", f"data_root={upright_root}", *words)

    return call


@pytest.fixture
def distill_config(tiny_config: Path, trained: Path, tmp_path: Path) -> Path:
    """`tiny_config` under a teacher: the student of the `trained` run."""
    path = tmp_path / "tiny_distill.py"
    path.write_text(
        f"_base_ = [{str(tiny_config)!r}]\n"
        f"distill = dict(teacher=dict(checkpoint={str(trained / 'best.pth')!r}), pyramid=dict(full=(1, 0.5), "
        "roi=(1, 0.5), foreground=(1, 0.5), background=(1, 0.5)), tower=dict(cls=(1, 0.5), reg=(1, 0.5)), "
        "prediction=(1, 0.5), assistant=True)\n"
    )
    return path


@pytest.fixture
def used(trained: Path, tmp_path: Path) -> Path:
    """A work dir that holds a finished run, free to be changed."""
    return shutil.copytree(trained, tmp_path / "used")


@pytest.fixture(params=PUBLISHED)
def family(request: pytest.FixtureRequest) -> str:
    """The class name of each mmdet detector for which the distillation is published, in turn."""
    return str(request.param)


@pytest.fixture
def narrow_model() -> Callable[..., Any]:
    """The `model` config of a stock detector, 32 channels wide: `narrow_model("GFL", depth=18, classes=4)`."""
    return narrow


@pytest.fixture(scope="session")
def small_runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Configs of runs that take a second, in this process: see `runs.SmallRuns`."""
    from .runs import SmallRuns

    return SmallRuns(tmp_path_factory.mktemp("small_runs"))
