"""Batches whose order and augmentation depend on nothing but the seed, the epoch and the image.

mmdet's samplers draw from NumPy's global state and its workers start every epoch with the same seed. Here an epoch is
one list of batches drawn from (seed, epoch), of which each process takes every world-size-th, and each image's
augmentation is drawn from (seed, epoch, image): a resumed run sees what the uninterrupted one would have seen, with any
number of workers, and at another number of processes the list is the same.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.parallel import DataContainer, collate
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from cskd_train.engine.device import keep_freed_memory
from cskd_train.engine.distributed import World
from cskd_train.engine.open_files import allow_open_files
from cskd_train.engine.signals import outlive_the_step

Place = tuple[int, int]  # epoch (of unlabelled images: the pass over them), index of an image


@dataclass(frozen=True)
class Position:
    """How far a run has come: finished epochs, batches of the next one, optimizer steps in it and in all."""

    epoch: int = 0
    batches: int = 0
    inner: int = 0
    step: int = 0


@dataclass(frozen=True)
class Part:
    """Images of a batch that go through the detector together."""

    data: dict[str, Any]  # the arguments of a detector's training forward
    share: float  # of the batch's images
    weight: float  # of the student's own losses on them

    def on(self, device: torch.device) -> dict[str, Any]:
        """The arguments with their tensors on `device`."""
        moved: dict[str, Any] = to_device(self.data, device)
        return moved


@dataclass(frozen=True)
class Batch:
    """A batch, its place in the run, and the arguments of a detector's training forward: for labelled images and, in a
    run that has such, for pseudo-labelled ones beside them."""

    epoch: int
    number: int  # in the epoch's list
    data: dict[str, Any]
    unlabelled: dict[str, Any] | None = None
    weight: float = 1.0  # of the student's own losses on the latter

    @property
    def parts(self) -> list[Part]:
        """What goes through the detector, one after the other; the shares are 1 in all."""
        if self.unlabelled is None:
            return [Part(self.data, 1.0, 1.0)]
        share = len(self.unlabelled["img_metas"]) / len(self.image_names)
        return [Part(self.data, 1 - share, 1.0), Part(self.unlabelled, share, self.weight)]

    @property
    def image_names(self) -> list[str]:
        """The file names of the images."""
        metas = [meta for data in (self.data, self.unlabelled) if data for meta in data["img_metas"]]
        return [str(meta.get("ori_filename") or meta.get("filename")) for meta in metas]


@dataclass(frozen=True)
class Unlabelled:
    """Pseudo-labelled images that are trained on beside the labelled ones.

    Attributes:
        dataset: mmdet's, with `flag`.
        images: of them in a batch.
        weight: of the student's own losses on them.
    """

    dataset: Any
    images: int
    weight: float

    def __str__(self) -> str:
        return (
            f"data.unlabeled: {len(self.dataset)} images, {self.images} in each batch; the student's own losses on "
            f"them count {self.weight:g}"
        )


class SeededDataset(Dataset):
    """A dataset that seeds the generators, which augmentations draw from, before each image.

    Its index is a `Place`, (epoch, image), so that workers which outlive an epoch know which one it is.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Place) -> Any:
        seed_generators(self.seed, *place)
        return self.dataset[place[1]]


def epoch_batches(groups: np.ndarray, batch_size: int, seed: int, epoch: int, stream: int = 0) -> np.ndarray:
    """The batches of an epoch: image indices (batches, batch_size), shuffled; another `stream` gives another shuffle.

    A batch holds images of one aspect ratio group (mmdet's `flag`), like mmdet's GroupSampler; each group is filled up
    to whole batches by repeating some of its images.
    """
    generator = np.random.default_rng((seed, epoch, stream) if stream else (seed, epoch))
    batches: list[np.ndarray] = []
    for group in np.unique(groups):
        members = generator.permutation(np.flatnonzero(groups == group))
        repeats = generator.choice(members, size=-len(members) % batch_size)
        batches.extend(np.concatenate([members, repeats]).reshape(-1, batch_size))
    return np.stack(batches)[generator.permutation(len(batches))]


class TrainLoader:
    """The training batches of one process.

    Args:
        dataset: mmdet's, with `flag`.
        batch_size: images a batch.
        workers: processes that load images; 0 loads them here. They live as long as the run.
        accumulate: batches that this process contributes to a step.
        unlabelled: images that take a part of every batch. An epoch is one pass over `dataset`; of these, passes follow
            one another over the whole run, and a batch has those that its number in the run says. Their order comes
            from (seed, pass), their augmentation from (seed, pass, image).

    Attributes:
        batches: in an epoch, of all processes together.
        dataset: as it was given.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        workers: int,
        seed: int,
        world: World | None = None,
        accumulate: int = 1,
        unlabelled: Unlabelled | None = None,
    ) -> None:
        allow_open_files(workers, batch_size)
        self.world = world or World()
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.dataset = dataset
        self._seed = seed
        self._groups = np.asarray(dataset.flag, dtype=np.int64)
        self._unlabelled = unlabelled
        self._labelled = batch_size - (unlabelled.images if unlabelled else 0)  # images of a batch
        self._places: list[list[Place]] = []  # of the epoch under way; the DataLoader takes them from here
        self.batches = len(epoch_batches(self._groups, self._labelled, seed, 0))
        sizes = [self._labelled]
        if unlabelled:
            sizes.append(unlabelled.images)
            self._first = len(dataset)  # the index of the first of them
            groups = np.asarray(unlabelled.dataset.flag, dtype=np.int64)
            self._pass = functools.cache(partial(epoch_batches, groups, unlabelled.images, seed, stream=1))
            dataset = ConcatDataset([dataset, unlabelled.dataset])
        self._loader = DataLoader(
            SeededDataset(dataset, seed),
            batch_sampler=_View(self._places),
            num_workers=workers,
            collate_fn=partial(_collated_parts, sizes),
            generator=torch.Generator(),  # of its own: nothing that a step draws depends on it
            pin_memory=self.world.device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=_prepare_worker,
        )

    @property
    def per_step(self) -> int:
        """Batches of a step, of all processes together."""
        return self.world.size * self.accumulate

    @property
    def images_per_step(self) -> int:
        """Images of a step, of all processes together."""
        return self.per_step * self.batch_size

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return -(-self.batches // self.per_step)

    def steps_left(self, position: Position) -> int:
        """Steps from a position to the end of its epoch."""
        return -(-(self.batches - position.batches) // self.per_step)

    def steps_done(self, position: Position) -> tuple[int, int]:
        """Steps up to a position, of its epoch and of the whole run, as if all had been of this many batches.

        The steps that a `Position` counts may have been longer or shorter: of other numbers of processes and of
        accumulated batches.
        """
        inner = len(self) - self.steps_left(position)
        return inner, position.epoch * len(self) + inner

    def steps(self, position: Position) -> Iterator[tuple[list[Batch], Position]]:
        """The batches of this process for each step from `position` to the end of its epoch, and where it then is.

        The last step is filled up from the beginning of the epoch's list.
        """
        order = epoch_batches(self._groups, self._labelled, self._seed, position.epoch)
        count = self.steps_left(position)
        first = position.batches + self.world.rank
        numbers = [(first + place * self.world.size) % self.batches for place in range(count * self.accumulate)]
        self._places[:] = [[(position.epoch, int(index)) for index in order[number]] for number in numbers]
        for places, number in zip(self._places, numbers, strict=True):
            places += self._beside(position.epoch, number)
        weight = self._unlabelled.weight if self._unlabelled else 1.0
        loaded = (
            Batch(position.epoch, number, data, beside[0] if beside else None, weight)
            for number, (data, *beside) in zip(numbers, self._loader, strict=True)
        )
        for _ in range(count):
            batches = [next(loaded) for _ in range(self.accumulate)]
            position = replace(
                position,
                batches=min(position.batches + self.per_step, self.batches),
                inner=position.inner + 1,
                step=position.step + 1,
            )
            yield batches, position

    def _beside(self, epoch: int, number: int) -> list[Place]:
        """The unlabelled images of a batch of an epoch."""
        if self._unlabelled is None:
            return []
        turn, within = divmod(epoch * self.batches + number, len(self._pass(0)))
        return [(turn, self._first + int(index)) for index in self._pass(turn)[within]]

    def close(self) -> None:
        """End the processes that load images; others, with the dataset as it is then, are started for another epoch."""
        end_workers(self._loader._iterator)
        self._loader._iterator = None


class _View:
    """Iterates a list that changes from epoch to epoch; a DataLoader keeps its batch sampler."""

    def __init__(self, places: list[list[Place]]) -> None:
        self._places = places

    def __iter__(self) -> Iterator[list[Place]]:
        return iter(list(self._places))

    def __len__(self) -> int:
        return len(self._places)


def end_workers(batches: Any) -> None:
    """End the processes of a DataLoader's iterator, if it has any.

    What is left of them at the end of the interpreter is sent SIGTERM and waited for, and they take it as notice of an
    end to come (`outlive_the_step`).
    """
    if isinstance(batches, _MultiProcessingDataLoaderIter):
        batches._shutdown_workers()


def evaluation_loader(dataset: Any, indices: Sequence[int], workers: int, world: World | None = None) -> DataLoader:
    """One image at a time, so that a result depends on one image only.

    Args:
        indices: of the images of this process.
    """
    allow_open_files(workers, 1)
    world = world or World()
    return DataLoader(
        dataset,
        batch_size=1,
        sampler=indices,
        num_workers=workers,
        collate_fn=partial(_collated, 1),
        generator=torch.Generator(),
        pin_memory=world.device.type == "cuda",
        worker_init_fn=_prepare_worker,
    )


def _collated(batch_size: int, samples: list[Any]) -> Any:
    """A batch of plain tensors, lists and dicts, which the DataLoader can pin, out of mmcv's DataContainers."""
    return _unpacked(collate(samples, samples_per_gpu=batch_size))


def _collated_parts(sizes: Sequence[int], samples: list[Any]) -> list[Any]:
    """Samples that lie one after the other, so many in each part of a batch, collated by part."""
    ends = itertools.accumulate(sizes)
    return [_collated(size, samples[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def _unpacked(data: Any) -> Any:
    if isinstance(data, DataContainer):
        return data.data[0]  # one chunk for each device; there is one device
    if isinstance(data, dict):
        return {key: _unpacked(value) for key, value in data.items()}
    return [_unpacked(value) for value in data] if isinstance(data, (list, tuple)) else data


def to_device(data: Any, device: torch.device) -> Any:
    """Move the tensors of nested lists and dicts."""
    if isinstance(data, Tensor):
        return data.to(device, non_blocking=True)
    if isinstance(data, dict):
        return {key: to_device(value, device) for key, value in data.items()}
    return type(data)(to_device(value, device) for value in data) if isinstance(data, (list, tuple)) else data


def _prepare_worker(_number: int) -> None:
    cv2.setNumThreads(0)
    keep_freed_memory(False)
    outlive_the_step()


def seed_generators(seed: int, *position: int) -> None:
    """Seed torch, NumPy and Python from the run's seed and a position in it."""
    state = np.random.SeedSequence((seed, *position)).generate_state(4)
    np.random.seed(state)
    random.seed(state.tobytes())
    torch.manual_seed(int(state[:2].view(np.uint64)[0] >> np.uint64(1)))
