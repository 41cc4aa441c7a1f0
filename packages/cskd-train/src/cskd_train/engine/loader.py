"""Batches whose order and augmentation depend on nothing but the seed and the epoch.

mmdet's samplers draw from NumPy's global state and its workers start every epoch with the same seed. Here the order
comes from a generator of (seed, epoch), and each image's augmentation from (seed, epoch, image): a resumed run sees
what the uninterrupted one would have seen, with any number of workers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from mmcv.parallel import DataContainer, collate
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


class SeededDataset(Dataset):
    """A dataset that seeds NumPy and Python, which mmdet's augmentations draw from, before each image."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        state = np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(4)
        np.random.seed(state)
        random.seed(state.tobytes())
        return self.dataset[index]


class ShapeGroupSampler(Sampler[int]):
    """Shuffles whole batches of images of one aspect ratio group (mmdet's `flag`), like mmdet's GroupSampler.

    Each group is filled up to whole batches by repeating some of its images.
    """

    def __init__(self, groups: np.ndarray, batch_size: int, seed: int) -> None:
        self.groups = groups
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return sum(-(-int(size) // self.batch_size) * self.batch_size for size in np.bincount(self.groups))

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        batches: list[np.ndarray] = []
        for group in np.unique(self.groups):
            members = generator.permutation(np.flatnonzero(self.groups == group))
            repeats = generator.choice(members, size=-len(members) % self.batch_size)
            batches.extend(np.concatenate([members, repeats]).reshape(-1, self.batch_size))
        for place in generator.permutation(len(batches)):
            yield from batches[place].tolist()


class TrainLoader:
    """The training batches of one run; `set_epoch` before each epoch."""

    def __init__(self, dataset: Any, batch_size: int, workers: int, seed: int) -> None:
        self.dataset = SeededDataset(dataset, seed)
        self.sampler = ShapeGroupSampler(np.asarray(dataset.flag, dtype=np.int64), batch_size, seed)
        self.batch_size = batch_size
        self._seed = seed
        self._loader = DataLoader(
            self.dataset,
            batch_size=batch_size,
            sampler=self.sampler,
            num_workers=workers,
            collate_fn=partial(collate, samples_per_gpu=batch_size),
            generator=torch.Generator(),
            pin_memory=torch.cuda.is_available(),
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._loader)

    def set_epoch(self, epoch: int) -> None:
        """Fix the order, the augmentation and the workers' torch seeds of the epoch (counted from 0)."""
        self.dataset.epoch = self.sampler.epoch = epoch
        state = np.random.SeedSequence((self._seed, epoch)).generate_state(1, np.uint64)
        self._loader.generator.manual_seed(int(state[0] >> np.uint64(1)))


def test_loader(dataset: Any, workers: int) -> DataLoader:
    """One image at a time, in order: no padding to the largest of a batch, so that a result hangs on one image only."""
    # A generator of its own: starting an iteration draws a number, which must not come from the training's state.
    return DataLoader(
        dataset,
        batch_size=1,
        shuffle=False,
        num_workers=workers,
        collate_fn=partial(collate, samples_per_gpu=1),
        generator=torch.Generator(),
    )


def to_device(data: Any, device: torch.device) -> Any:
    """Take a collated batch out of mmcv's DataContainers and move its tensors to `device`."""
    if isinstance(data, DataContainer):
        content = data.data[0]  # one chunk for each device; there is one device
        return content if data.cpu_only else to_device(content, device)
    if isinstance(data, Tensor):
        return data.to(device, non_blocking=True)
    if isinstance(data, dict):
        return {key: to_device(value, device) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return type(data)(to_device(value, device) for value in data)
    return data


def image_names(batch: dict[str, Any]) -> list[str]:
    """The file names of the images of a batch."""
    metas = batch["img_metas"]
    metas = metas.data[0] if isinstance(metas, DataContainer) else metas
    return [str(meta.get("ori_filename") or meta.get("filename")) for meta in metas]
