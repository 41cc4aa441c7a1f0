"""Where the files of a COCO data set lie that is given as a folder: one file, or one for each split."""

from __future__ import annotations

import re
from pathlib import Path

from cskd_data.coco import EXPORT_AS_COCO
from cskd_data.errors import SHOWN, DataError
from cskd_data.folders import folders_of_splits
from cskd_data.images import SUFFIXES
from cskd_data.split import SPLIT_CALLED, SPLIT_NAMES


def coco_files(folder: Path) -> dict[str, Path]:
    """The COCO files of a folder by split, in the order of training; one file alone under "".

    A split has its own folder (`train/_annotations.coco.json`, as Roboflow writes), or its name is the last one in that
    of its file, in `annotations` (`instances_train2017.json`, as COCO has it) or in the folder itself (`train.json`).
    In this order. Beside a file of the training images those of no split are left aside, as are other kinds of COCO's
    annotations beside its `instances`.

    Raises:
        DataError: several files for one split, several of which none is for training, or a file for each image.
    """
    places = (folder / "annotations", folder)
    found = _in_folders_of_splits(folder)
    for place in places:
        found = found or _by_name(place)
    for place in () if found else places:
        files = _json_files(place)
        if len(files) > 1:
            if any(files[0].with_suffix(suffix).is_file() for suffix in SUFFIXES):
                raise DataError(f"{place} holds a JSON file for each image, as LabelMe writes: {EXPORT_AS_COCO}")
            raise DataError(f"the folder {place} holds {len(files)} JSON files: {_give_one_of(files, place)}")
        if files:
            return {"": files[0]}
    return found


def _in_folders_of_splits(folder: Path) -> dict[str, Path]:
    """The one file of each split's folder; none where no such folder holds one alone.

    Raises:
        DataError: another one holds several.
    """
    of_split = {
        split: [file for one in folders for file in _json_files(one)]
        for split, folders in folders_of_splits(folder).items()
    }
    found = {split: files[0] for split, files in of_split.items() if len(files) == 1}
    for split, files in of_split.items() if found else ():
        if len(files) > 1:
            raise DataError(f"{folder} holds {len(files)} JSON files for {split}: {_give_one_of(files, folder)}")
    return found


def _by_name(place: Path) -> dict[str, Path]:
    """The files whose names say their split; none where none of them is for training.

    Raises:
        DataError: several say the same.
    """
    by_split: dict[str, list[Path]] = {split: [] for split in SPLIT_NAMES}
    for file in _json_files(place):
        words = [word for word in re.findall("[a-z]+", file.stem.lower()) if word in SPLIT_CALLED]
        if words:
            by_split[SPLIT_CALLED[words[-1]]].append(file)
    for split, files in by_split.items():
        if len(files) > 1:
            raise DataError(f"{place} holds {len(files)} JSON files for {split}: {_give_one_of(files, place)}")
    return {split: files[0] for split, files in by_split.items() if files} if by_split["train"] else {}


def _json_files(place: Path) -> list[Path]:
    """By name; without captions and keypoints where there are `instances`."""
    files = sorted(file for file in place.glob("*") if file.suffix.lower() == ".json" and not file.name.startswith("."))
    return [file for file in files if file.stem.startswith("instances_")] or files


def _give_one_of(files: list[Path], place: Path) -> str:
    return f"give one of {', '.join(file.relative_to(place).as_posix() for file in files[:SHOWN])}"
