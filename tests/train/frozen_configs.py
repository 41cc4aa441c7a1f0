"""What every config under configs/ loads to: `frozen_configs.json` has the hash of each block, as of commit 7ad2a5b.

python tests/train/frozen_configs.py configs/bccd/*.py    # the values, one a line: to diff between two commits
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cskd_train.files.config import config_to_data, load_config

CONFIGS = Path(__file__).parents[2] / "configs"
FROZEN = Path(__file__).with_suffix(".json")


def recipes() -> dict[str, Path]:
    """Name under configs/ -> file, without what they build on."""
    found = {path.relative_to(CONFIGS).as_posix(): path for path in sorted(CONFIGS.glob("*/*.py"))}
    return {name: path for name, path in found.items() if not name.startswith("_base_")}


def hashes(path: Path) -> dict[str, str]:
    """Top-level key of a config -> hash of its value, tuples and lists told apart."""
    return {
        key: hashlib.sha256("\n".join(lines(value, key)).encode()).hexdigest()[:10]
        for key, value in config_to_data(load_config(path)).items()
    }


def lines(value: Any, key: str = "") -> Iterator[str]:
    """`dotted.key = value` for every plain value, the keys of a dict in alphabetical order."""
    if isinstance(value, (dict, list, tuple)) and value:
        items = sorted(value.items()) if isinstance(value, dict) else enumerate(value)
        brackets = {dict: "{}", list: "[]", tuple: "()"}[type(value)]
        yield f"{key} {brackets}"
        for name, item in items:
            yield from lines(item, f"{key}.{name}" if key else str(name))
    else:
        yield f"{key} = {value!r}"


if __name__ == "__main__":
    if sys.argv[1:]:
        for argument in sys.argv[1:]:
            print("\n".join(lines(config_to_data(load_config(argument)), argument)))
    else:
        FROZEN.write_text(json.dumps({name: hashes(path) for name, path in recipes().items()}, indent=1) + "\n")
