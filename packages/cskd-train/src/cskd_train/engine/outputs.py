"""What is looked at before long work: a file that the user names can be written, and takes the place of no input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mmcv import Config

from cskd_data.dataset import Dataset
from cskd_data.files import check_not_input, check_writable
from cskd_train.engine.build import split_sources


def check_output(output: Path, inputs: Iterable[Path | None]) -> None:
    """Refuse a file that could not be written, or that would replace one that is read.

    Args:
        inputs: files that are read; None is none.

    Raises:
        DataError: it is an input, or cannot be written.
    """
    check_not_input(output, inputs)
    check_writable(output)


def files_of_split(cfg: Config, split: str, classes: Sequence[str] = ()) -> Iterator[Path]:
    """The annotation files and the images of a split.

    Args:
        classes: of the model; the config's own by default.

    Raises:
        TrainError, DataError: as `Source.read`.
    """
    sources = split_sources(cfg, split)
    for source in sources:
        yield from source.label_files
        yield from images_of(source.read(classes or sources[0].classes))


def images_of(dataset: Dataset) -> Iterator[Path]:
    """The image files of a data set; none where there is no folder of images."""
    return iter(()) if dataset.image_root is None else map(dataset.path, dataset.images)
