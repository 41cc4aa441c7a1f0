"""What a user can put right of torch's and the system's errors is one message, wherever it comes from."""

from __future__ import annotations

import errno

import pytest
import torch

import cskd_train
from cskd_train.engine import evaluate, pseudo_label, run
from cskd_train.engine.failures import explained_failures
from cskd_train.errors import TrainError
from cskd_train.report import detected, side_by_side

from .runs import train

MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
DIED = RuntimeError("DataLoader worker (pid 12) is killed by signal: Bus error.")
SHARED = RuntimeError("unable to write to file </torch_12_3>: No space left on device (28)")
FILES = OSError(errno.EMFILE, "Too many open files")
WAYS = {
    MEMORY: ("--batch-size", "--device cpu"),
    DIED: ("--workers 0", "--set data.workers_per_gpu=0"),
    SHARED: ("--workers 0", "--set data.workers_per_gpu=0"),
    FILES: ("--set data.workers_per_gpu=0", "--set data.workers_per_gpu=0"),
}


@pytest.fixture(params=WAYS, ids=["memory", "worker", "shared memory", "files"])
def failing(request, monkeypatch):
    """`failing(MODULE, NAME)` makes a function fail; gives the ways out of a run and of an evaluation."""

    def put(module, name):
        def fail(*_, **__):
            raise request.param

        monkeypatch.setattr(module, name, fail)
        return WAYS[request.param]

    return put


@pytest.mark.parametrize("name", ["prepare", "build_parts", "check_teacher", "evaluate"])
def test_a_run_that_fails_at_any_stage_says_the_way_out(failing, small_runs, tmp_path, name):
    way = failing(run, name)[0]
    outcome, _ = train(small_runs.options(tmp_path / "w", distilled=True))
    assert isinstance(outcome, TrainError)
    assert way in str(outcome)


@pytest.mark.parametrize("name", ["build_trained", "detect"])
def test_the_test_command_says_the_way_out(failing, command_line, trained, shapes_root, name):
    way = failing(evaluate, name)[1]
    code, out, err = command_line("test", trained / "best.pth", "--set", f"data_root={shapes_root}")
    assert (code, out) == (2, "")
    assert way in err
    assert "Traceback" not in err


def test_so_do_evaluation_and_pseudo_labels_and_pictures_from_python(failing, trained, shapes_root, tmp_path):
    settings = {"data_root": str(shapes_root)}
    checkpoint, pictures = trained / "best.pth", shapes_root / "images"
    for module, name, call in (
        (evaluate, "detect", lambda: cskd_train.evaluate(checkpoint, settings=settings, device="cpu")),
        (
            pseudo_label,
            "detect_each",
            lambda: pseudo_label.pseudo_label(
                checkpoint, pictures, tmp_path / "p.json", overrides=settings, threshold=0.1, device="cpu"
            ),
        ),
        (
            side_by_side,
            "detect",
            lambda: side_by_side.draw_side_by_side([checkpoint], tmp_path / "p.png", overrides=settings, images=1),
        ),
    ):
        way = failing(module, name)[1]
        with pytest.raises(TrainError) as error:
            call()
        assert way in str(error.value)


def test_a_report_says_of_which_detector_there_is_nothing(failing, trained, tmp_path):
    way = failing(detected, "detect")[1]
    page = tmp_path / "page.html"
    cskd_train.write_report(trained, output=page, images=2, device="cpu")
    assert way in page.read_text()


def test_an_error_in_a_step_of_the_pipeline_is_not_taken_for_a_lack_of_memory():
    error = RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback ...")
    with pytest.raises(RuntimeError) as raised, explained_failures():
        raise error
    assert raised.value is error
