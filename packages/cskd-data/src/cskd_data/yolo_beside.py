"""Whether a folder holds YOLO's label files beside their images, as LabelImg writes them."""

from __future__ import annotations

import math
import os
from pathlib import Path

from cskd_data.folders import folders_of_splits
from cskd_data.images import SUFFIXES

_MOST_WORDS = 1 << 12  # bytes in which the first row of a label file ends, or is seen to be one


def rows_beside_images(folder: Path) -> bool:
    """Whether label files lie beside the images of a folder: in it, in its `images`, or in the folder of a split. The
    first one that is not empty tells."""
    roots = [folder / "images", folder]
    splits = [one for root in roots for inner in folders_of_splits(root).values() for one in inner]
    for place in (*roots, *splits, *(one / "images" for one in splits)):
        try:
            files = sorted(os.listdir(place))
        except OSError:
            continue
        stems = {os.path.splitext(name)[0] for name in files if name.lower().endswith(SUFFIXES)}
        for name in files:
            stem, ending = os.path.splitext(name)
            if ending == ".txt" and stem in stems and (words := _first_words(place / name)):
                return len(words) > 4 and all(map(_is_number, words))
    return False


def _first_words(file: Path) -> list[str]:
    """Of a text file's first line that is not blank, or of its first kilobytes."""
    try:
        with file.open("rb") as stream:
            lines = stream.read(_MOST_WORDS).decode("utf-8-sig", errors="replace").splitlines()
    except OSError:
        return []
    return next((words for line in lines if (words := line.split())), [])


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False
