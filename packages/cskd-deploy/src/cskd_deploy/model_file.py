"""What is looked at before a runtime opens a model file: files come from elsewhere, and are not trusted.

A file is refused when it is no ONNX file, larger than any detector, or refers to files outside its own folder. Its
metadata is data: limited in length, read by a strict parser, and printable.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from cskd_data.files import check_utf8_name, check_writable
from cskd_deploy.errors import DeployError
from cskd_deploy.manifest import MANIFEST_KEY, Manifest
from cskd_deploy.onnx_metadata import external_files

MOST_BYTES = 1 << 31  # protobuf's own limit of a message
MOST_EXTERNAL_BYTES = 1 << 33
MOST_METADATA = 1 << 20
MOST_SIDE = 1 << 14  # pixels
MOST_NAME = 200  # characters of a class name


def check_model_output(path: Path) -> None:
    """Fail before long work when a model file could not be written, or not be opened after it.

    Raises:
        DataError: says why.
    """
    check_utf8_name(path, "output")
    check_writable(path)


def check_model_file(path: Path, allow_external_data: bool = False) -> int:
    """Refuse an ONNX file that should not be opened.

    Args:
        allow_external_data: weights may lie in other files below the folder of the model.

    Returns:
        Bytes of the file, and of the files that it refers to.

    Raises:
        DeployError: says what the file is, and what was expected.
        DataError: its name is not UTF-8.
    """
    if not path.is_file():
        raise DeployError(f"model {path} does not exist" if not path.exists() else f"model {path} is not a file")
    check_utf8_name(path, "model")
    size = path.stat().st_size
    if not size:
        raise DeployError(f"model {path} is empty (0 bytes): export it again")
    if size > MOST_BYTES:
        raise DeployError(f"model {path} has {size / 1e9:.1f} GB, more than the 2 GiB that an ONNX file can have")
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise DeployError(
                f"model {path} is a PyTorch checkpoint, expected an ONNX file: "
                f"run `cskd-deploy export --checkpoint {path}` first (or give it as --reference)"
            )
        # Mapped, not read: a graph is small, its weights are skipped.
        names = _external_files(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), path)
    if names and not allow_external_data:
        raise DeployError(
            f"{path} keeps weights in other files ({_listed(names)}), which are not read: export it as one file, or "
            "give --allow-external-data if you know its origin"
        )
    return size + sum(_external_size(path, name) for name in names)


def check_metadata(metadata: Mapping[str, str], path: Path) -> None:
    """Refuse metadata that is far longer than any detector's.

    Raises:
        DeployError: names the length.
    """
    length = len(metadata.get(MANIFEST_KEY, ""))
    if length > MOST_METADATA:
        raise DeployError(f"the metadata of {path} has {length} characters, more than the {MOST_METADATA} allowed")


def check_manifest(manifest: Manifest, path: Path) -> None:
    """Refuse class names that are no names, and sizes of images that no memory holds.

    Raises:
        DeployError: names the first of them.
    """
    _check_class_names(manifest.classes, path)
    rule = manifest.preprocessing
    if max(*rule.input_size, *rule.scale, rule.pad_divisor) > MOST_SIDE:
        raise DeployError(
            f"the metadata of {path} has images of {rule.scale} resized for an input of {rule.input_size}, expected at "
            f"most {MOST_SIDE} pixels a side"
        )


def _check_class_names(classes: tuple[str, ...], path: Path) -> None:
    """Refuse class names that are no names: they are printed, drawn and written.

    Raises:
        DeployError: names the first of them.
    """
    for name in classes:
        if not (name.isprintable() and 0 < len(name) <= MOST_NAME):
            raise DeployError(
                f"the class name {name[:MOST_NAME]!r} of {path} is not one: expected 1 to {MOST_NAME} printable "
                "characters"
            )


def _external_files(content: mmap.mmap, path: Path) -> list[str]:
    try:
        return sorted(external_files(memoryview(content)))
    except ValueError as error:
        raise DeployError(
            f"{path} cannot be loaded as an ONNX model ({error}). Expected a file of `cskd-deploy export`"
        ) from error


def _external_size(model: Path, name: str) -> int:
    """Bytes of a file that a model refers to, which must lie below the model's folder, links followed."""
    folder = model.parent.resolve()
    # A backslash separates folders on Windows only, and is in no name that an exporter writes.
    plain = name.isprintable() and "\\" not in name and not PurePosixPath(name).is_absolute()
    target = (folder / name).resolve() if name and plain else None
    if target is None or ".." in PurePosixPath(name).parts or not target.is_relative_to(folder):
        raise DeployError(f"{model} is refused: its weights {name!r} do not lie below its own folder {folder}")
    if not target.is_file():
        raise DeployError(f"{model} keeps weights in {name!r}, which is not in {folder}: copy it there")
    size = target.stat().st_size
    if size > MOST_EXTERNAL_BYTES:
        raise DeployError(f"the weights {name!r} of {model} have {size / 1e9:.1f} GB, more than the 8 GiB allowed")
    return size


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
