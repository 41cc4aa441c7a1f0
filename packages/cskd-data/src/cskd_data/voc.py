"""Read a Pascal VOC data set into the normal form."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Any

from cskd_data.dataset import GIVE_IMAGES, Dataset, Note
from cskd_data.errors import DataError, refuse
from cskd_data.folders import check_folder, files_below
from cskd_data.guesses import FolderNames, Folders, folder_names
from cskd_data.image_files import ImageFiles, common_folder
from cskd_data.images import SUFFIXES
from cskd_data.names import counted
from cskd_data.normalise import normalise
from cskd_data.split import no_such_split
from cskd_data.voc_lists import annotations_of, folders_of, listed, splits_of_files
from cskd_data.voc_xml import VocAnnotation, VocObject, is_another, read_xml

_IMAGE_FOLDERS = ("images", "JPEGImages")  # beside the folder of the annotations

Progress = Callable[[int, int], None]

Claim = tuple[bool, int]
"""Whether an image has the XML file's own name, and how many folders they share: of two the higher one counts."""


def read_voc(
    path: Path | str,
    images: Path | str | None = None,
    *,
    split: str | None = None,
    zero_based: bool | None = None,
    skip_missing: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """The data set of a folder of VOC's XML files, whatever its folders are called.

    Boxes. VOC counts pixels from one and a box includes both its end pixels, so the box from pixel 1 to pixel 10
    becomes x = 0, width = 10: `x = xmin - 1`, `width = xmax - xmin + 1`. Some tools write VOC files with coordinates
    from zero and the end not included: `x = xmin`, `width = xmax - xmin`. All splits of a folder are read alike.

    Difficult objects get `iscrowd` 1: mmdet does not learn them, and what they cover is background, unless a pipeline
    collects `gt_bboxes_ignore` and the assigner has an `ignore_iof_thr`; pycocotools counts neither finding nor missing
    them. (COCO's `ignore` flag would leave them out of training only.)

    The classes are those of all XML files, sorted, whatever the split: all splits of a folder have the same. Where the
    splits are folders, and one is for training, a split goes by the XML files in these. XML files of other programs,
    whose root is no `<annotation>`, are left aside.

    Args:
        path: the folder (`Annotations/` in it, XML files in it or further below), or one XML file.
        images: folder of the images; None looks for them below `path`, else in a folder `images` or `JPEGImages` beside
            it. An image is found by the name of its XML file, else by `<filename>`; of several in other folders it is
            the one in those of the XML file, or of `<filename>`.
        split: the name of a list in `ImageSets/Main/`, without `.txt`, or where there are no lists train, val or test,
            as the folders of the XML files say; None takes every XML file, or those of the one list that is there and
            is for training.
        zero_based: whether coordinates count from zero; None sees it from a coordinate below one in any XML file.
        skip_missing: leave images out whose file is not there, with a note.
        progress: called with (XML files done, XML files in all).

    Raises:
        DataError: the first few faults, their count and the way out: nothing to read, an XML file that is broken (file
            and line are named), images missing.
    """
    path = Path(path)
    root = path.parent if path.is_file() else path
    if split is not None and path.is_file():
        raise no_such_split(path, split, [])
    within = _folders_of_splits(path) if split is not None else []
    base, files, others = _xml_files(path, within)
    chosen, listing = listed(root, base, files, split) if path.is_dir() else (set(files), [])
    every: list[VocAnnotation] = []
    faults: list[str] = []
    for done, file in enumerate(files, start=1):
        try:
            every.append(read_xml(file))
        except DataError as error:
            faults += [str(error)] if file in chosen else []
        if progress is not None:
            progress(done, len(files))
    refuse(path, faults, "Correct these files, or take them out")
    files_there = _image_files(root, images, within)
    found_of, image_notes = _images(every, chosen, files_there, base, path)
    annotations = [one for one in every if one.path in chosen]
    found = [found_of[one.path] for one in annotations]
    if not any(found) and images is None:
        raise DataError(f"no image of {path} was found below or beside it ({', '.join(SUFFIXES)}): {GIVE_IMAGES}")
    folder = common_folder([image for image in found if image is not None], files_there.folder)
    objects = [one for annotation in every for one in annotation.objects]
    shift, base_notes = _base(objects, zero_based)
    classes = sorted({one.name for one in objects})
    raw = {
        "images": [
            _image_entry(number, annotation, image, folder, base)
            for number, (annotation, image) in enumerate(zip(annotations, found, strict=True), start=1)
        ],
        "annotations": [
            {"image_id": number, "category_id": classes.index(one.name) + 1, **_box(one, one.box, shift)}
            for number, annotation in enumerate(annotations, start=1)
            for one in annotation.objects
            if one.box is not None
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, start=1)],
    }
    if not classes:
        raise DataError(f"{path} has no object of any class in {counted(len(files), 'XML file')}")
    notes = [*listing, *image_notes, *base_notes, *_object_notes(annotations)]
    if others:
        names = [file.relative_to(base).as_posix() for file in others]
        notes.append(
            Note.of(f"{counted(len(others), 'XML file')} of something else, without <annotation>, left aside", names)
        )
    return normalise(raw, path, folder, notes, skip_missing=skip_missing, searched=True)


def splits_of_voc(folder: Path) -> list[str]:
    """The names of its lists that are splits, or where it has no lists of its folders that are.

    Raises:
        DataError: no XML file is there.
    """
    base, files, _ = _xml_files(folder)
    return splits_of_files(folder, base, files)


def _xml_files(path: Path, within: Sequence[Path] = ()) -> tuple[Path, list[Path], list[Path]]:
    """The folder that annotations are named from, the annotations, and XML files of something else.

    Args:
        within: the folders below `path` that hold them; none takes all.
    """
    if path.is_file():
        return path.parent, [path], []
    base = annotations_of(path)
    files: list[Path] = []
    others: list[Path] = []
    for file in (file for folder in within or [base] for file in files_below(folder, (".xml",))):
        (others if is_another(file) else files).append(file)
    if not files:
        raise DataError(f"{path} holds no XML file: give the folder that holds the annotations of Pascal VOC")
    return base, files, others


def _folders_of_splits(root: Path) -> list[Path]:
    """The folders that are the splits of a set, where one of them is for training; none elsewhere."""
    folders = folders_of(root)
    return [one for inner in folders.values() for one in inner] if "train" in folders else []


def _image_files(root: Path, images: Path | str | None, within: Sequence[Path]) -> ImageFiles:
    """The images below the given folder; else those in the folders of the splits, those below `root`, or those in a
    folder beside it: the first of these that holds any."""
    if images is not None:
        return ImageFiles(check_folder(Path(images), root))
    beside = (Path(os.path.abspath(root)).parent / name for name in _IMAGE_FOLDERS)
    candidates = (ImageFiles(folder) for folder in (root, *beside) if folder.is_dir())
    inner = [ImageFiles(root, within)] if within and annotations_of(root) == root else []
    return next((found for found in itertools.chain(inner, candidates) if found.paths), ImageFiles(root))


def _images(
    annotations: Sequence[VocAnnotation], chosen: Container[Path], files: ImageFiles, base: Path, source: Path
) -> tuple[dict[Path, Path | None], list[Note]]:
    """The image of each XML file: the one with its own name, else the one that `<filename>` names.

    Args:
        annotations: of all splits, so that none takes the image of another's file.
        chosen: the XML files that are read.
        base: the folder that they are named from.

    Raises:
        DataError: two XML files mean one image, by equal claims.
    """
    found: dict[Path, Path | None] = {}
    others, faults, guesses = [], [], []
    ways = _Ways(annotations, files, base)
    users: dict[Path, tuple[Path, Claim]] = {}
    for annotation in annotations:
        path = annotation.path
        image, claim, odd = _image(annotation, files, path.relative_to(base).parts[:-1])
        others += odd if path in chosen else []
        agreed = ways.agree(annotation, image) if image is not None else None
        found[path] = image = image if agreed is not None else None
        if image is None or agreed is None:
            continue
        if agreed[1] and path in chosen:
            guesses.append(f"{image.relative_to(files.folder).as_posix()} has {path.relative_to(base).as_posix()}")
        user, best = users.setdefault(image, (path, claim))
        if claim > best:
            found[user] = None
            users[image] = path, claim
        elif claim < best:
            found[path] = None
        elif user != path and (path in chosen or user in chosen):
            faults.append(f"{path} and {user} both mean the image {image}")
    refuse(source, faults, "Give each XML file the name of its image")
    what = "somebody else's image as <filename>: the image with the XML file's own name is taken"
    notes = [Note.of(f"{counted(len(others), 'XML file')} with {what}", others)] if others else []
    what = "whose XML file is not in a folder of the same name, found by its own name"
    return found, notes + ([Note.of(f"{counted(len(guesses), 'image')} {what}", guesses)] if guesses else [])


class _Ways:
    """Whether an XML file's folders, or where it is in none those of `<filename>`, speak against an image's."""

    def __init__(self, annotations: Sequence[VocAnnotation], files: ImageFiles, base: Path) -> None:
        self._folder, self._base = files.folder, base
        self._own = Folders(self._below(base, one.path) for one in annotations)
        self._named = Folders(_folders_named(one) for one in annotations)
        self._images = Folders(self._below(files.folder, path) for path in files.paths)

    def agree(self, annotation: VocAnnotation, image: Path) -> tuple[int, bool] | None:
        """As `cskd_data.guesses.Folders.agree`."""
        there, own = self._below(self._folder, image), self._below(self._base, annotation.path)
        folders = _folders_named(annotation)
        if not own and folders and os.path.splitext(_parts(annotation)[-1])[0] == image.stem:
            agreed = self._named.agree(folders, self._images, there)
            return agreed and (agreed[0], False)
        agreed = self._own.agree(own, self._images, there)
        return agreed and (agreed[0], agreed[1] and own[:1] != there[:1])  # of `cam1/xml` and `cam1/png` too

    @staticmethod
    def _below(folder: Path, file: Path) -> FolderNames:
        return folder_names(file.relative_to(folder).parts[:-1])


def _parts(annotation: VocAnnotation) -> list[str]:
    return re.split(r"[\\/]", annotation.filename or "")


def _folders_named(annotation: VocAnnotation) -> FolderNames:
    return folder_names(_parts(annotation)[:-1])


def _image(
    annotation: VocAnnotation, files: ImageFiles, own_folders: Sequence[str]
) -> tuple[Path | None, Claim, list[str]]:
    """The image, the XML file's claim on it, and what is odd about `<filename>`."""
    *folders, last = _parts(annotation)
    own = files.named(annotation.path.stem, annotation.path, (own_folders, folders))
    named = None
    for name in (last, os.path.splitext(last)[0]) if last else ():
        named = named or files.named(name, annotation.path, (own_folders, folders))
    odd = own is not None and named is not None and own[0].stem != named[0].stem
    image, shared = own or named or (None, 0)
    return image, (own is not None, shared), [f"{annotation.path.name} names {last}"] if odd else []


def _image_entry(
    number: int, annotation: VocAnnotation, image: Path | None, folder: Path, base: Path
) -> dict[str, Any]:
    name = os.path.relpath(os.path.abspath(image), folder) if image is not None else _wanted(annotation, folder, base)
    entry: dict[str, Any] = {"id": number, "file_name": name}
    if annotation.width and annotation.height:
        entry |= {"width": annotation.width, "height": annotation.height}
    return entry


def _wanted(annotation: VocAnnotation, folder: Path, base: Path) -> str:
    """The name of an image that is not there, which is no other's name."""
    own = annotation.path.relative_to(base).with_suffix("").as_posix()
    names = (annotation.filename, f"{own}.jpg", own)
    return next((name for name in names if name and not os.path.isfile(os.path.join(folder, name))), own)


def _base(objects: Iterable[VocObject], zero_based: bool | None) -> tuple[int, list[Note]]:
    """What to take off a coordinate, 1 or 0."""
    if zero_based is not None:
        return 0 if zero_based else 1, []
    below = [one for one in objects if one.box is not None and any(0 <= value < 1 for value in one.box[:2])]
    if not below:
        return 1, []
    what = f"coordinates are read as counted from zero (width = xmax - xmin): {counted(len(below), 'box')} at 0"
    return 0, [Note(f"{what}. `--one-based` counts them from one, as VOC does", len(below))]


def _box(one: VocObject, box: Sequence[float], shift: int) -> dict[str, Any]:
    xmin, ymin, xmax, ymax = box
    bbox = [xmin - shift, ymin - shift, xmax - xmin + shift, ymax - ymin + shift]
    scored = {} if one.score is None else {"score": one.score}
    return {"bbox": bbox, "iscrowd": int(one.difficult), **scored}


def _object_notes(annotations: Sequence[VocAnnotation]) -> list[Note]:
    """What is not as in VOC."""
    without, polygons, difficult = [], [], []
    for annotation in annotations:
        name = annotation.path.name
        without += [f"a {one.name} of {name}" for one in annotation.objects if one.box is None]
        polygons += [f"a {one.name} of {name}" for one in annotation.objects if one.of_polygon]
        difficult += [f"a {one.name} of {name}" for one in annotation.objects if one.difficult and one.box is not None]
    notes = []
    if without:
        notes.append(Note.of(f"{counted(len(without), 'object')} without <bndbox> left out", without))
    if polygons:
        notes.append(Note.of(f"{counted(len(polygons), 'polygon')} read as the box around it", polygons))
    if difficult:
        notes.append(Note.of(f"{counted(len(difficult), 'object')} marked difficult, as iscrowd 1", difficult))
    return notes
