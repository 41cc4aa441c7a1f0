"""What the tests have several processes do, each of them a fork of a clean interpreter; and how to start these.

A top-level module, not one of the package of tests: the processes import it by its name.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import torch
from pairs import distilled, trained
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from cskd_data import clean
from cskd_train.engine.build import agree_on_broken, build_parts, build_split
from cskd_train.engine.distributed import World, joined
from cskd_train.engine.evaluate import evaluate_checkpoint
from cskd_train.engine.loader import Batch, Position
from cskd_train.engine.pseudo_label import pseudo_label
from cskd_train.engine.step import TrainStep
from cskd_train.errors import TrainError
from cskd_train.files.config import load_config
from cskd_train.mm import data_sources
from cskd_train.mm.plain import build_without_pretrained

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["process_parts"])


def in_processes(size, function, *arguments):
    """`function(world, *arguments)` in so many processes: what each gave, in the order of the ranks."""
    if size == 1:
        return [function(World(), *arguments)]
    _start_server()
    results = _SERVER.Queue()
    port = free_port()
    processes = [
        _SERVER.Process(target=_one, args=(rank, size, port, results, function, arguments)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    return [torch.load(io.BytesIO(found[rank]), weights_only=False) for rank in range(size)]


def _start_server():
    """The interpreter that is forked imports everything once; it finds this module by the environment alone."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), before]))
    forkserver.ensure_running()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def _one(rank, size, port, results, function, arguments):
    torch.set_num_threads(1)
    os.environ.update(worker_environment(rank, size, port))
    with joined("cpu") as world:
        found = io.BytesIO()  # a tensor in a queue is shared memory of a process that may be gone
        torch.save(function(world, *arguments), found)
        results.put((rank, found.getvalue()))


def worker_environment(rank, size, port):
    """What torchrun would tell a process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "by hand",
    }


def pseudo_labels(world, teacher, pictures, out, threshold):
    """The result that each process gets."""
    return pseudo_label(teacher, pictures, out, threshold=threshold, world=world).to_dict()


def in_parts(world, models, batches, weight):
    """One step of a distilled detector on a batch of two parts: gradients and terms."""
    torch.manual_seed(0)
    model = distilled(*map(build_without_pretrained, models))
    step = TrainStep(model, torch.optim.SGD(model.parameters(), lr=0.0), world)
    step.model = world.wrap(model)
    model.train()
    report = step([Batch(0, 0, *batches, weight=weight)])
    return {"gradients": {name: one.grad for name, one in trained(model).items()}, "terms": report.terms}


def free_port():
    """A port that nothing listens on."""
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def evaluation(world, checkpoint, root, out):
    """The metrics of a checkpoint, and how many detections the process itself has in its hands."""
    result = evaluate_checkpoint(checkpoint, {"data_root": str(root)}, out=out, world=world)
    return result.metrics, result.images, result.detections


def training(world, config, overrides, steps=1, wrapped=True):
    """Some steps from the beginning of a run: terms, gradients of the last and weights, and how often buckets went out.

    Args:
        wrapped: False leaves out what averages the gradients.
    """
    cfg = load_config(config, overrides)
    parts = build_parts(cfg, 0, world, "unused", lambda line: None)
    step, sent = parts.step, []
    step.model = world.wrap(parts.trained) if wrapped else parts.trained
    if isinstance(step.model, DistributedDataParallel):
        step.model.register_comm_hook(
            None, lambda _, bucket: sent.append(bucket.index()) or allreduce_hook(None, bucket)
        )
    parts.trained.train()
    terms = []
    for batches, position in parts.loader.steps(Position()):
        terms.append(step(batches).terms)
        if position.step == steps:
            break
    return {
        "terms": terms,
        "gradients": {
            name: parameter.grad.clone()
            for name, parameter in parts.trained.named_parameters()
            if parameter.grad is not None
        },
        "weights": {name: value.clone() for name, value in parts.trained.state_dict().items()},
        "sent": sent,
    }


def together(world, failing):
    """What `World.together` gives where the process `failing` cannot do its part."""

    def action():
        if world.rank == failing:
            raise TrainError(f"no file on process {world.rank}")
        return world.rank

    try:
        return world.together(action)
    except TrainError as error:
        return f"{type(error).__name__}: {error}"


def compared(world, settings):
    """What `World.check_equal` says of each process's settings."""
    try:
        world.check_equal("settings", settings[world.rank])
    except TrainError as error:
        return str(error)
    return "equal"


def stopped_in_evaluation(world, checkpoint, root, rank):
    """How many images each process had detected when one of them was asked to stop after its first."""
    from cskd_train.engine.evaluate import EvaluationStopped, build_split, build_trained, detect
    from cskd_train.files.checkpoints import load_checkpoint
    from cskd_train.files.config import config_from_data

    loaded = load_checkpoint(checkpoint)
    cfg = config_from_data(loaded.config, {"data_root": str(root)})
    done = []
    try:
        detect(
            build_trained(cfg, loaded, "cpu"),
            build_split(cfg, "val"),
            progress=lambda at, of: done.append(at),
            world=world,
            stopped=lambda: world.rank == rank,
        )
    except EvaluationStopped:
        return len(done)
    return None


class LosesATerm(torch.nn.Module):
    """Two losses, of which one process lacks the second in its second step, as a box head without a RoI does."""

    def __init__(self, lacking):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.lacking, self.steps = lacking, 0

    def forward(self, img_metas):
        self.steps += 1
        losses = {"loss_cls": self.weight.sum()}
        if not (self.lacking and self.steps == 2):
            losses["loss_bbox"] = 3 * self.weight.sum()
        return losses


def lacking_a_term(world, lacking):
    model = LosesATerm(world.rank == lacking)
    step = TrainStep(model, torch.optim.SGD(model.parameters(), lr=0), world)
    return [step([Batch(0, number, {"img_metas": []})]).terms for number in range(3)]


def agreed(world, config, settings, machines):
    """What each process leaves out of the training images, and how many files it has looked through.

    Of two machines the second cannot use the last image either.
    """
    looked = []

    def usable(dataset, **options):
        looked.append(dataset.source)
        found = clean.usable(dataset, **options)
        if world.rank == 0:
            return found
        key = found.dataset.image_keys[found.dataset.images[-1]["id"]]
        name = found.dataset.images[-1]["file_name"]
        return replace(found, dataset=found.dataset.without({key: f"image {name} is gone here"}))

    data_sources.usable = usable
    if machines == 2:
        world = replace(world, local_rank=0)
    cfg = load_config(config, settings)
    agree_on_broken(cfg, ("train", "val"), world)
    normal = build_split(cfg, "train").normal
    return {"left_out": [fault.split()[1] for fault in normal.left_out.values()], "decoded": len(looked)}


def teacher_checked(world, config, root, alone, images, seconds=60.0):
    """What each process finds out about the teacher of a config, beside a finished run of the student alone.

    Args:
        seconds: that the main process has; the others have all the time there is.
    """
    from cskd_train.engine.preflight import check_teacher
    from cskd_train.files.config import config_to_data

    cfg = load_config(config, {"data_root": str(root)})
    parts = build_parts(cfg, 0, world, "unused", lambda line: None)
    parts.trained.teacher = None  # nothing is stored: the student is evaluated too
    bounds = {"images": images, "seconds": seconds if world.is_main else float("inf")}
    found = check_teacher(parts.trained, parts.validation, world, alone, config_to_data(cfg), **bounds)
    return {
        "images": found.images,
        "teacher": found.mean_average_precision,
        "student": found.student_mean_average_precision,
    }
