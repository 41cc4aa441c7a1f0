"""Pictures that nobody has labelled: a folder of them, or a COCO file that lists images only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cskd_data.coco import read_coco
from cskd_data.dataset import Dataset
from cskd_data.errors import DataError
from cskd_data.folders import files_below
from cskd_data.images import SUFFIXES
from cskd_data.json_file import load_json
from cskd_data.names import counted
from cskd_data.normalise import normalise


def read_unlabelled(
    path: Path | str, classes: Sequence[str], images: Path | str | None = None, *, skip_missing: bool = False
) -> Dataset:
    """The pictures at a path as a data set without annotations.

    Args:
        path: a folder, searched to any depth, or a COCO file without annotations.
        classes: what may be found on them; the classes that such a COCO file lists do not count.
        images: folder that the file names of a COCO file start from; None looks for it.
        skip_missing: leave images out whose file is not there, or whose size cannot be read, with a note.

    Raises:
        DataError: nothing is there, no picture is in it, or the file has annotations; as `cskd_data.read`.
    """
    path = Path(path)
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    if path.is_dir():
        files = files_below(path, SUFFIXES)
        if not files:
            raise DataError(f"no picture is in {path} or below it: expected {', '.join(SUFFIXES)}")
        entries = [{"id": number, "file_name": str(file.relative_to(path))} for number, file in enumerate(files, 1)]
        return normalise({"images": entries, "categories": categories}, path, path, skip_missing=skip_missing)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; expected a folder of pictures, or a COCO file of images only")
    content = load_json(path, "file of images")
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        if boxes := content.get("annotations"):
            what = counted(len(boxes), "annotation") if isinstance(boxes, list) else "annotations"
            raise DataError(
                f"{path} has {what}: its pictures are labelled already. Give a folder of pictures, or a file whose "
                "only list is `images`"
            )
        content = {**content, "categories": categories}
    return read_coco(path, images, skip_missing=skip_missing, content=content)
