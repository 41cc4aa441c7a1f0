"""Processes that `cskd-train run` has not started: by torchrun, on two hosts, and by hand with other settings."""

from __future__ import annotations

import signal
import sys
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from launching import CSKD, alive, arguments_of, check_same_run, command, end, notes, position, start
from process_parts import free_port, worker_environment

from cskd_data.shapes import generate

pytestmark = pytest.mark.reliability

TINY = Path(__file__).parents[1] / "train" / "tiny_retinanet.py"
TORCHRUN = ("-m", "torch.distributed.run")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Ten training images and 21 of validation."""
    root = tmp_path_factory.mktemp("long") / "shapes"
    generate(root, images=10, val_images=21, size=(128, 128), seed=5)
    return root


@pytest.fixture(scope="module")
def written(root):
    """`written(folder, **disturbance)`, see `arguments_of`."""
    return partial(_written, root)


def _written(root, folder, **disturbance):
    return arguments_of(folder, TINY, root, **disturbance)


@pytest.fixture(scope="module")
def undisturbed(written, tmp_path_factory):
    """The folder of a whole run of two processes, saved every two steps."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = command(*written(folder), "--gpus", 2, "--checkpoint-every", 2)
    assert ended.code == 0, ended.err
    return folder


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (("--lr", 0.5), "processes 0 and 1 were started with different settings (optimizer.lr: 0.001 and 0.5"),
        (("--seed", 3), "processes 0 and 1 were started with different settings (--seed: None and 3)"),
        (("--checkpoint-every", 3), "different settings (--checkpoint-every: None and 3)"),
    ],
)
def test_processes_started_by_hand_with_other_settings_are_refused(written, tmp_path, other, message):
    port = free_port()
    arguments = written(tmp_path)
    processes = [
        start(*CSKD, *arguments, *(other if rank else ()), environment=worker_environment(rank, 2, port))
        for rank in (0, 1)
    ]
    main, second = (end(process) for process in processes)
    assert (main.code, second.code) == (2, 2)
    assert message in main.err
    assert main.err.count("error:") == 1
    assert second.err.strip() == ""  # both know, and the main process speaks
    assert not (tmp_path / "work/log.jsonl").exists()


def test_other_data_on_another_machine_is_refused(written, root, tmp_path):
    fewer = tmp_path / "fewer"
    generate(fewer, images=8, val_images=21, size=(128, 128), seed=5)
    # The same path on two machines: each process runs in a folder of its own.
    port, processes = free_port(), []
    for rank, data in enumerate((root, fewer)):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "data").symlink_to(data)
        environment = worker_environment(rank, 2, port)
        here = str(tmp_path / str(rank))
        code = f"import os, sys; os.chdir({here!r}); from cskd_train.cli import main; main(sys.argv[1:])"
        words = (*written(tmp_path), "--set", "data_root=data")
        processes.append(start("-c", code, *words, environment=environment))
    main, second = (end(process) for process in processes)
    assert (main.code, second.code) == (2, 2)
    assert (
        "processes 0 and 1 were started with different data (training batches: 10 and 8; train images: 10 and 8)"
        in main.err
    )


def torchrun(written, folder, *options, disturbance=None, nproc=2):
    arguments = written(folder, **(disturbance or {}))
    return start(*TORCHRUN, "--nproc-per-node", nproc, *options, *CSKD, *arguments, "--resume")


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["SIGTERM"], ("--standalone",)),
        (["SIGTERM", "SIGTERM"], ("--standalone",)),
        (["SIGUSR1"], ("--standalone", "--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")),
    ],
    ids=["SIGTERM", "SIGTERM twice", "SIGUSR1"],
)
def test_a_signal_to_torchrun_saves_the_step(written, undisturbed, tmp_path, names, options):
    disturbance = {"action": names, "to": "launcher", "step": 3}
    ended = end(torchrun(written, tmp_path, *options, disturbance=disturbance))
    assert ended.code == 1  # torchrun's own, under its traceback
    assert alive(tmp_path / "work", patience=30) == []
    assert f"error: stopped by {names[0]}; step 3 is saved in" in ended.err
    assert "Go on by starting all processes again, with --resume" in ended.err
    assert ended.err.count("error: stopped by") == 1
    assert position(tmp_path) == {"epoch": 0, "batches": 6, "inner": 3, "step": 3}
    if options == ("--standalone",) and len(names) == 1:
        ended = end(torchrun(written, tmp_path, *options, disturbance=disturbance))
        assert ended.code == 0, ended.err
        check_same_run(tmp_path, undisturbed)


def test_torchrun_without_the_option_leaves_the_processes_to_themselves_on_sigusr1(written, tmp_path):
    """What the page on several processes warns of."""
    ended = end(
        torchrun(written, tmp_path, "--standalone", disturbance={"action": ["SIGUSR1"], "to": "launcher", "step": 3})
    )
    assert ended.code == -signal.SIGUSR1
    assert alive(tmp_path / "work", patience=60) == []  # they train to the end
    assert len(notes(tmp_path, 0)) == 10


@pytest.mark.parametrize("rendezvous", ["c10d", "static"])
def test_two_hosts_train_what_two_processes_of_one_train(written, undisturbed, tmp_path, rendezvous):
    port, processes = free_port(), []
    arguments = (*written(tmp_path), "--checkpoint-every", 2, "--resume")
    for rank in (0, 1):
        where = {
            "c10d": ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "tiny"),
            "static": ("--node-rank", rank, "--master-addr", "localhost", "--master-port", port),
        }[rendezvous]
        processes.append(start(*TORCHRUN, "--nnodes", 2, "--nproc-per-node", 1, *where, *CSKD, *arguments))
    first, second = (end(process) for process in processes)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    check_same_run(tmp_path, undisturbed)
    spoke = [ended for ended in (first, second) if "epoch 1/2  step 1/5" in ended.err]
    assert len(spoke) == 1
    assert sum(ended.out.count("result.json") for ended in (first, second)) == 1
