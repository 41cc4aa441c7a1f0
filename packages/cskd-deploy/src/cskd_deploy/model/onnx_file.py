"""What is looked at before a runtime opens a model file: files come from elsewhere, and are not trusted.

A file is refused when it is no ONNX file, larger than any detector, or refers to files outside its own folder. Its
metadata is data: limited in length, read by a strict parser, and printable.
"""

from __future__ import annotations

import itertools
import mmap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cskd_data.files import check_utf8_name
from cskd_deploy.errors import DeployError
from cskd_deploy.model.manifest import MANIFEST_KEY, Manifest, manifest_from_metadata
from cskd_deploy.outputs import ONNX, check_output

MOST_BYTES = 1 << 31  # protobuf's own limit of a message
MOST_EXTERNAL_BYTES = 1 << 33
MOST_METADATA = 1 << 20
MOST_SIDE = 1 << 14  # pixels
MOST_NAME = 200  # characters of a class name


def check_model_output(path: Path, inputs: Iterable[Path | None], own: tuple[str, ...] = ONNX) -> None:
    """Fail before long work when a model file could not be written, or not be opened after it.

    Args:
        inputs, own: as `check_output`.

    Raises:
        DataError, DeployError: as `check_output`; also when its name is not UTF-8.
    """
    check_utf8_name(path, "output")
    check_output(path, inputs, own)


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


def read_model(path: Path, allow_external_data: bool = False) -> tuple[bytes, Manifest]:
    """The content of an ONNX file of `cskd-deploy export`, and what it says about itself; no runtime is needed.

    Args:
        allow_external_data: as `check_model_file`; what lies in other files is not read.

    Raises:
        DeployError: it is missing, damaged, of another kind, or keeps weights in other files.
        DataError: its name is not UTF-8.
    """
    check_model_file(path, allow_external_data)
    content = path.read_bytes()
    metadata = metadata_of(content)
    check_metadata(metadata, path)
    manifest = manifest_from_metadata(metadata, path)
    check_manifest(manifest, path)
    return content, manifest


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
    if max(*rule.input_size, *rule.scale, rule.pad_divisor, *itertools.chain(*rule.canvases)) > MOST_SIDE:
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


# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_METADATA, _MODEL_FUNCTION = 7, 14, 25
_FUNCTION_NODE = 7
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_GRAPH_INPUT, _GRAPH_OUTPUT = 11, 12
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR = 1, 2, 1
_TENSOR_TYPE, _TENSOR_SHAPE, _DIMENSION_VALUE = 1, 2, 1
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE = 4, 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_ATTRIBUTE_SPARSE = (22, 23)
_SPARSE_TENSORS = (1, 2)  # values and indices
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_EXTERNAL_KEY = b"location"
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def metadata_of(content: bytes | memoryview) -> dict[str, str]:
    """The `metadata_props` of a sound file."""
    found = {}
    for field, part in _fields(memoryview(content)):
        if field == _MODEL_METADATA:
            entry = {key: bytes(value).decode(errors="replace") for key, value in _fields(part)}
            found[entry.get(_ENTRY_KEY, "")] = entry.get(_ENTRY_VALUE, "")
    return found


@dataclass(frozen=True)
class Tensor:
    """An input or an output of a graph."""

    name: str
    type: int  # of onnx.proto's `TensorProto.DataType`
    shape: tuple[int | None, ...]  # None where a dimension is dynamic


def interface_of(content: bytes | memoryview) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The inputs and the outputs of the main graph of a sound file."""
    graph = next(part for field, part in _fields(memoryview(content)) if field == _MODEL_GRAPH)
    found: dict[int, list[Tensor]] = {_GRAPH_INPUT: [], _GRAPH_OUTPUT: []}
    for field, value in _fields(graph):
        if field in found:
            found[field].append(_tensor(value))
    return tuple(found[_GRAPH_INPUT]), tuple(found[_GRAPH_OUTPUT])


def _tensor(value: memoryview) -> Tensor:
    parts = dict(_fields(value))
    name = bytes(parts.get(_VALUE_NAME, b"")).decode(errors="replace")
    tensor = dict(_fields(parts.get(_VALUE_TYPE, memoryview(b"")))).get(_TYPE_TENSOR, memoryview(b""))
    kind, shape = 0, []
    for field, part in _fields(tensor, varints=True):
        if field == _TENSOR_TYPE:
            kind = _varint(part, 0)[0]
        elif field == _TENSOR_SHAPE:
            sizes = [dict(_fields(one, varints=True)).get(_DIMENSION_VALUE) for _, one in _fields(part)]
            shape = [None if size is None else _varint(size, 0)[0] for size in sizes]
    return Tensor(name, kind, tuple(shape))


def external_files(content: bytes | memoryview) -> set[str]:
    """The names of the other files that an ONNX model keeps weights in, as the model has them.

    Raises:
        ValueError: it is no ONNX model.
    """
    try:
        parts = list(_fields(memoryview(content)))
        if not any(field == _MODEL_GRAPH for field, _ in parts):
            raise ValueError("it holds no graph")
        return {name for field, part in parts for tensor in _model_tensors(field, part) for name in _locations(tensor)}
    except RecursionError as error:
        raise ValueError("its graphs are nested too deep") from error


def operators_of(content: bytes | memoryview) -> dict[str, int]:
    """How often each operator stands in the main graph of a sound file, the most frequent first."""
    found: Counter[str] = Counter()
    for field, graph in _fields(memoryview(content)):
        if field == _MODEL_GRAPH:
            nodes = (part for graph_field, part in _fields(graph) if graph_field == _GRAPH_NODE)
            found.update(
                bytes(name).decode() for node in nodes for part, name in _fields(node) if part == _NODE_OPERATOR
            )
    return dict(found.most_common())


def _locations(tensor: memoryview) -> Iterator[str]:
    if not _is_external(tensor):
        return
    entries = [dict(_fields(part)) for field, part in _fields(tensor) if field == _TENSOR_EXTERNAL]
    names = [bytes(entry.get(_ENTRY_VALUE, b"")) for entry in entries if entry.get(_ENTRY_KEY) == _EXTERNAL_KEY]
    yield from (name.decode(errors="surrogateescape") for name in names or [b""])


def _model_tensors(field: int, part: memoryview) -> Iterator[memoryview]:
    """The tensors of a graph or a function of a model."""
    if field == _MODEL_GRAPH:
        yield from _tensors(part)
    elif field == _MODEL_FUNCTION:
        for function_field, node in _fields(part):
            if function_field == _FUNCTION_NODE:
                yield from _node_tensors(node)


def _is_external(tensor: memoryview) -> bool:
    for field, part in _fields(tensor, varints=True):
        if field == _TENSOR_EXTERNAL or (field == _TENSOR_LOCATION and bytes(part) != b"\x00"):
            return True
    return False


def _tensors(graph: memoryview) -> Iterator[memoryview]:
    """The initializers of a graph, and the tensors and graphs in the attributes of its nodes."""
    for field, part in _fields(graph):
        if field == _GRAPH_INITIALIZER:
            yield part
        elif field == _GRAPH_SPARSE:
            yield from _parts_of_sparse(part)
        elif field == _GRAPH_NODE:
            yield from _node_tensors(part)


def _node_tensors(node: memoryview) -> Iterator[memoryview]:
    for node_field, attribute in _fields(node):
        if node_field != _NODE_ATTRIBUTE:
            continue
        for field, part in _fields(attribute):
            if field in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                yield part
            elif field in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                yield from _tensors(part)
            elif field in _ATTRIBUTE_SPARSE:
                yield from _parts_of_sparse(part)


def _parts_of_sparse(tensor: memoryview) -> Iterator[memoryview]:
    return (part for field, part in _fields(tensor) if field in _SPARSE_TENSORS)


def _fields(message: memoryview, varints: bool = False) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a protobuf message, and with `varints` those too, as their bytes.

    Raises:
        ValueError: it is no message.
    """
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        field, kind = tag >> 3, tag & 7
        begin = place
        if kind == _VARINT:
            _, place = _varint(message, place)
        elif kind == _LENGTH:
            length, begin = _varint(message, place)
            place = begin + length
        elif kind in (_FIXED32, _FIXED64):
            place += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError("it is no protobuf message")
        if place > len(message) or field == 0:
            raise ValueError("it is damaged or cut short")
        if kind == _LENGTH or (varints and kind == _VARINT):
            yield field, message[begin:place]


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(message) or shift > 63:
            raise ValueError("it is damaged or cut short")
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
