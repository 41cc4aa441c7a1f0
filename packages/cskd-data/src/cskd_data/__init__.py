"""Detection data sets in one normal form: read, checked and scored by the COCO protocol."""

from __future__ import annotations

from pathlib import Path

from cskd_data.dataset import Dataset, Note
from cskd_data.errors import CskdError, DataError
from cskd_data.evaluate import evaluate
from cskd_data.results import CocoResult

__all__ = ["CocoResult", "CskdError", "DataError", "Dataset", "Note", "evaluate", "read"]


def read(path: Path | str, images: Path | str | None = None, *, skip_missing: bool = False) -> Dataset:
    """The data set at a path, whatever its format.

    Args:
        path: a COCO file or folder; a Pascal VOC folder or XML file; a YOLO folder or `data.yaml`; or one split: a list
            in VOC's `ImageSets/Main`, or the folder that holds it. A data set with splits is read with all of them as
            one, and a note says so.
        images: folder that the file names start from; None looks for it where the format has it.
        skip_missing: leave images out whose file is not there, or whose size cannot be read, with a note.

    Raises:
        DataError: nothing is there, it is of no known format, or it cannot be used: the first few faults, their count,
            and the way out.
    """
    from cskd_data.formats import reader_of

    return reader_of(Path(path))(path, images, skip_missing=skip_missing)
