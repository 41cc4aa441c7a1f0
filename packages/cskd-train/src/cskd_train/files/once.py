"""Values that a config says once: `classes`, `image_scale`, `img_norm_cfg`, `data_root` reach all that is made of them.

The whole rule. One of these names, set at the top level of a config or by `--set`, reaches

- every `${name}` in the config, as all references do: CSKD's own configs are written with them;
- what a file that it builds on makes of the name in Python, as mmdet's configs do: the file is read once more with the
  new value in the place of its own. Configs that mmdet ships stay as mmdet reads them;
- by `data_root`, given by `--set`, also every path under `data` that begins with the old root;
- by `classes`, every data set that names none of its own, and `num_classes` of every head, unless the user has chosen
  another number, which the run refuses. Text, a file of names or a single one, is the list of these names where
  `--set` gives it or a file below makes something of it.

What reaches nothing is refused, with the settings to write instead.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cskd_train.errors import TrainError
from cskd_train.files.chain import ConfigFile, referred_names
from cskd_train.files.class_names import names_of_text
from cskd_train.files.heads import head_kind, tells_classes
from cskd_train.files.locate import shipped_by
from cskd_train.files.overrides import assign, move_root
from cskd_train.files.reading import Bound
from cskd_train.files.variables import SETTINGS, copies, listed, standing

NAMES = {
    "classes": ("classes", "num_classes"),
    "image_scale": ("img_scale",),
    "img_norm_cfg": ("mean", "std", "to_rgb"),
    "data_root": ("data_root", "ann_file", "img_prefix"),
}
"""Each name, and the keys that take its value or a part of it."""

Data = dict[str, Any]


def set_once(
    data: Data, chain: ConfigFile, overrides: Mapping[str, Any], read: Callable[[Bound], Data]
) -> tuple[Data, dict[str, Any]]:
    """The data of a config with these names wherever they belong, and the overrides that are still to be applied.

    Args:
        data: what the file says, references unresolved.
        chain: the file and those below it.
        read: gives `data` anew, with other values in some of the files.

    Raises:
        TrainError: a name that reaches nothing, with what to write instead; a file of classes that cannot be read.
    """
    given = {key: value for key, value in overrides.items() if key.partition(".")[0] in NAMES}
    rest = {key: value for key, value in overrides.items() if key not in given}
    before = dict(data)
    values = copy.deepcopy({name: data[name] for name in NAMES if name in data})
    for key, value in given.items():
        assign(values, key, value, free=True)
    names = {key.partition(".")[0] for key in given}
    text = values.get("classes")
    if isinstance(text, str) and ("classes" in names or _readers(chain, "classes", False)):
        values["classes"] = list(names_of_text(text))
    bound: dict[Path, dict[str, Any]] = {}
    for name, value in values.items():
        for file in _readers(chain, name, name in names):
            bound.setdefault(file, {})[name] = value
    if bound:
        data = read(bound)
    data.update({name: values[name] for name in names})
    if "data_root" in names and isinstance(before.get("data_root"), str) and isinstance(data.get("data"), dict):
        data["data"] = move_root(data["data"], before["data_root"], str(values["data_root"]))
    taken = {name for found in bound.values() for name in found}
    for name in values:
        if name not in taken:
            _refuse_idle(name, data, chain, before, name in names)
    return data, rest


def _readers(chain: ConfigFile, name: str, given: bool) -> list[Path]:
    """The files that make something of their own value of a name, which is not the one that counts."""
    setters = [file for file in chain.all_files() if name in file.assigned]
    if not given:
        if not setters or shipped_by(setters[0].path) == "mmdet::":
            return []
        setters = [file for file in setters if file.path != setters[0].path]
    return [file.path for file in setters if name in file.read and file.path.suffix == ".py"]


def _refuse_idle(name: str, data: Data, chain: ConfigFile, before: Data, given: bool) -> None:
    """Refuse a value of the user's that nothing takes up."""
    setter = chain.setter(name)
    if name == "classes" or name in _reached(data):  # the former reach data sets and heads: follow_classes
        return
    where = f"--set {name}" if given else f"{name} in {setter.path if setter else chain.path}"
    if name == "data_root" and given and name in before:
        return  # paths have been moved
    if given and name not in before:
        raise TrainError(f"{where}: the config has no key {name!r}; {_instead(name, data)}")
    if not given and (
        setter is None
        or shipped_by(setter.path)
        or name in setter.read
        or any(name in file.of_base for file in chain.all_files())
    ):
        return
    places = list(copies(before, name, before[name]))
    if not given and places:
        return  # it is in effect already: a program has written the config out
    message = f"set {listed(places)}" if places else _instead(name, data)
    raise TrainError(f"{where}: nothing reads it; {message}")


def _reached(data: Data) -> set[str]:
    """The top-level names that settings refer to, by way of others too."""
    reached: set[str] = set()
    new = {name for name in data if name in SETTINGS}
    while new:
        reached |= new
        new = {found for name in new for found in referred_names(repr(data[name])) if found in data} - reached
    return reached


def _instead(name: str, data: Data) -> str:
    """Where the config has what a name would have said."""
    reached = _reached(data)
    found = dict.fromkeys(
        "{} = {!r}".format(*standing(value, data, path))
        for top in data
        if top in reached
        for path, key, value in _items(data[top], top)
        if key in NAMES[name]
    )
    return f"here it is {listed(list(found))}: set that" if found else "no setting would take it"


def _items(node: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    key = path.rpartition(".")[2]
    yield path, key, node
    for name, item in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from _items(item, f"{path}.{name}")


def follow_classes(data: Data, chain: ConfigFile | None, overrides: Mapping[str, Any]) -> None:
    """Give the classes of the config to its data sets and their number to its heads, in place.

    Args:
        data: of a config, references resolved.
        chain: its files; None where they cannot be read.

    Raises:
        TrainError: a data set has other classes of its own.
    """
    classes = data.get("classes")
    setter = chain.setter("classes") if chain else None
    if classes is None or ("classes" not in overrides and setter and shipped_by(setter.path) == "mmdet::"):
        return
    if any(key.startswith("data.") and key.endswith(".classes") for key in overrides):
        return  # each data set has been given its own
    others = []
    for path, dataset in _datasets(data.get("data")):
        own = dataset.setdefault("classes", classes) or classes
        if isinstance(own, (list, tuple)) and isinstance(classes, (list, tuple)) and set(own) != set(classes):
            others.append(f"{path}.classes")
    if others:
        where = "--set classes" if "classes" in overrides else f"classes in {setter.path if setter else 'the config'}"
        raise TrainError(f"{where} = {classes!r}, but other classes stand in {listed(others)}: set these to the same")
    if isinstance(classes, str) or chain is None:
        return  # a file of names, or nobody knows who has set the numbers: the run compares them
    for path, head in _heads(data.get("model"), "model"):
        if not _chosen(f"{path}.num_classes", chain, setter, overrides):
            head["num_classes"] = len(classes)


def _chosen(path: str, chain: ConfigFile, classes: ConfigFile | None, overrides: Mapping[str, Any]) -> bool:
    """Whether the user has set a head's number of classes beside the classes, or above them.

    A number below the file of the classes, or in a file that a package ships, is what the classes replace.
    """
    if any(path == key or (path.startswith(f"{key}.") and isinstance(overrides[key], Mapping)) for key in overrides):
        return True
    number = next((file for file in chain.all_files() if "num_classes" in file.keys), None)
    if "classes" in overrides or number is None or shipped_by(number.path):
        return False
    return classes is None or number is classes or number not in list(classes.all_files())


def _datasets(node: Any, path: str = "data") -> Iterator[tuple[str, Data]]:
    """The data sets of a `data` block, inside of wrappers too."""
    if isinstance(node, dict) and "ann_file" in node:
        yield path, node
        return
    for key, item in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from _datasets(item, f"{path}.{key}")


def _heads(node: Any, path: str) -> Iterator[tuple[str, Data]]:
    """The heads of a model that have a number of classes."""
    for key, item in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        place = f"{path}.{key}"
        if isinstance(item, dict) and tells_classes(place):
            if "num_classes" in item or ("type" in item and head_kind(place) == "bbox_head"):
                yield place, item
        elif isinstance(item, (dict, list)):
            yield from _heads(item, place)
