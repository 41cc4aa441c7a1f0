"""The categories of a COCO file as classes: numbered from 1 in the file's order, the root of a tree left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cskd_data.dataset import NO_CLASS, Note
from cskd_data.errors import refuse
from cskd_data.ids import Key, key_of, with_aliases
from cskd_data.names import counted, plain_name

_WAY_OUT = "Give each class one id and one name"


@dataclass(frozen=True)
class Categories:
    """The classes of a data set."""

    entries: list[dict[str, Any]]
    ids: Mapping[Any, int]  # the file's id, as a number or as text, -> category id of the normal form
    keys: dict[int, Key]  # and back
    unused: dict[str, Key]  # the root
    notes: tuple[Note, ...]


def normal_categories(raw: Sequence[Any], source: Path, used: set[Any]) -> Categories:
    """The classes of a COCO file.

    Args:
        raw: its `categories`.
        used: the category ids that annotations name.

    Raises:
        DataError: a category without id or name, two of one id or one name, none at all.
    """
    refuse(source, _shape_faults(raw), _WAY_OUT)
    entries, changed = [], []
    for category in raw:
        name = plain_name(str(category["name"]))
        if name != str(category["name"]):
            changed.append(repr(str(category["name"])))
        entry = {**category, "id": key_of(category["id"]), "name": name}
        if entry not in entries:  # one that is listed twice is one
            entries.append(entry)
    notes = []
    if changed:
        notes.append(
            Note.of(
                f"{counted(len(changed), 'class name')} with other white space than plain spaces, made plain", changed
            )
        )
    used_keys = {str(key_of(key)) for key in used}
    roots = [entry for entry in entries if _is_root(entry, entries) and str(entry["id"]) not in used_keys]
    if roots:
        names = [root["name"] for root in roots]
        notes.append(Note.of(NO_CLASS, names))
        entries = [entry for entry in entries if entry not in roots]
    refuse(source, _double(entries), _WAY_OUT)
    keys = {number: entry["id"] for number, entry in enumerate(entries, start=1)}
    return Categories(
        entries=[{**entry, "id": number} for number, entry in enumerate(entries, start=1)],
        ids=with_aliases({key: number for number, key in keys.items()}),
        keys=keys,
        unused={root["name"]: root["id"] for root in roots},
        notes=tuple(notes),
    )


def _is_root(entry: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all other categories lie under this one, as Roboflow writes them."""
    others = [other for other in entries if other is not entry]
    return (
        bool(others)
        and entry.get("supercategory") in (None, "", "none", "None")
        and all(plain_name(str(other.get("supercategory"))) == entry["name"] for other in others)
    )


def _shape_faults(raw: Sequence[Any]) -> list[str]:
    faults = [] if raw else ["categories is an empty list"]
    for position, entry in enumerate(raw):
        if not isinstance(entry, dict):
            faults.append(f"categories[{position}] is a {type(entry).__name__}, expected an object")
        elif key_of(entry.get("id")) is None:
            wrong = f"id {entry['id']!r} (expected a number or text)" if "id" in entry else "no id"
            faults.append(f"categories[{position}] has {wrong}")
        elif not isinstance(entry.get("name"), (str, int)) or not plain_name(str(entry["name"])):
            wrong = f"name {entry['name']!r} (expected text)" if "name" in entry else "no name"
            faults.append(f"category {entry['id']} has {wrong}")
    return faults


def _double(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    faults = []
    for key in ("id", "name"):
        counts: dict[Any, int] = {}
        for entry in entries:
            counts[entry[key]] = counts.get(entry[key], 0) + 1
        faults += [f"categories have the {key} {value!r} {count} times" for value, count in counts.items() if count > 1]
    return faults
