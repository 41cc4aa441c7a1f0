"""Reading an ONNX file where neither onnx nor ONNX Runtime need be installed: its metadata, and what it refers to.

Only the few fields of onnx.proto that are asked for are looked at; weights are skipped, not copied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_METADATA, _MODEL_FUNCTION = 7, 14, 25
_FUNCTION_NODE = 7
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
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
