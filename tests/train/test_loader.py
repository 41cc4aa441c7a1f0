"""The order and the augmentation of training batches, for any number of workers, processes and interruptions."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

from cskd_train.engine.build import build_split
from cskd_train.engine.distributed import World
from cskd_train.engine.loader import Position, SeededDataset, TrainLoader, epoch_batches
from cskd_train.files.config import load_config


@pytest.fixture(scope="module")
def dataset(tiny_config, shapes_root):
    return build_split(load_config(tiny_config, {"data_root": str(shapes_root)}), "train")


def epoch(loader, position):
    """File names and pixels of an epoch, from a position on."""
    batches = [batch for step, _ in loader.steps(position) for batch in step]
    return list(chain(*(b.image_names for b in batches))), torch.cat([b.data["img"] for b in batches])


def test_order_and_augmentation_depend_on_seed_and_epoch_alone(dataset):
    np.random.seed(1)
    first, second = TrainLoader(dataset, 4, 0, seed=5), TrainLoader(dataset, 4, 0, seed=5)
    names, images = epoch(first, Position(3))
    np.random.seed(2)
    epoch(second, Position(0))
    again, same_images = epoch(second, Position(3))
    assert again == names
    assert torch.equal(same_images, images)
    assert sorted(names) == sorted(set(names))
    assert epoch(first, Position(4))[0] != names
    assert epoch(TrainLoader(dataset, 4, 0, seed=6), Position(3))[0] != names


def test_workers_that_outlive_an_epoch_know_the_next_one(dataset):
    alone, helped = TrainLoader(dataset, 2, 0, seed=5), TrainLoader(dataset, 2, 2, seed=5)
    for number in range(3):
        (names, images), (same_names, same_images) = epoch(alone, Position(number)), epoch(helped, Position(number))
        assert same_names == names
        assert torch.equal(same_images, images)


def test_the_augmentation_of_an_image_changes_from_epoch_to_epoch(dataset):
    seeded = SeededDataset(dataset, seed=0)
    assert {seeded[epoch, 0]["img_metas"].data["flip"] for epoch in range(8)} == {True, False}


def test_a_batch_holds_one_aspect_ratio_group_and_every_image_comes():
    groups = np.array([0] * 7 + [1] * 5)
    batches = epoch_batches(groups, batch_size=4, seed=0, epoch=0)
    assert batches.shape == (4, 4)
    assert set(batches.flat) == set(range(12))
    for batch in batches:
        assert len(set(groups[batch])) == 1


START = Position()


def numbers(loader, position=START):
    return [[batch.number for batch in step] for step, _ in loader.steps(position)]


@pytest.mark.parametrize(
    ("processes", "accumulate", "steps"), [(1, 1, 6), (2, 1, 3), (3, 1, 2), (4, 1, 2), (1, 4, 2), (2, 2, 2)]
)
def test_processes_share_one_list_of_batches_step_by_step(dataset, processes, accumulate, steps):
    loaders = [TrainLoader(dataset, 2, 0, 0, World(rank, processes), accumulate) for rank in range(processes)]
    shares = [numbers(loader) for loader in loaders]
    assert [len(share) for share in shares] == [steps] * processes == [len(loader) for loader in loaders]
    together = [
        number
        for step in range(steps)
        for place in range(accumulate)
        for share in shares
        for number in [share[step][place]]
    ]
    # In order, and filled up from the beginning of the list.
    assert together == [place % 6 for place in range(steps * processes * accumulate)]


@pytest.mark.parametrize("taken", [1, 2, 5])
def test_an_epoch_goes_on_after_the_batches_that_were_taken_at_another_number_of_processes(dataset, taken):
    whole = numbers(TrainLoader(dataset, 2, 0, 0))
    assert numbers(TrainLoader(dataset, 2, 0, 0), Position(0, taken, taken, taken)) == whole[taken:]
    halves = [numbers(TrainLoader(dataset, 2, 0, 0, World(rank, 2)), Position(0, taken)) for rank in (0, 1)]
    in_order = [number for step in zip(*halves, strict=True) for (number,) in step]
    assert in_order[: 6 - taken] == list(range(taken, 6))


def test_the_position_counts_batches_of_all_processes_and_steps(dataset):
    loader = TrainLoader(dataset, 2, 0, 0, World(1, 2))
    positions = [position for _, position in loader.steps(Position(epoch=4, step=12))]
    assert positions == [Position(4, 2, 1, 13), Position(4, 4, 2, 14), Position(4, 6, 3, 15)]
