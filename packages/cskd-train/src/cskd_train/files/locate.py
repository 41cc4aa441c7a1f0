"""Where a config lies: a file, or one that a package ships, by the name of the package."""

from __future__ import annotations

import difflib
import importlib.util
import os
from pathlib import Path

from cskd_train.errors import TrainError

MMDET_PREFIX = "mmdet::"
_SCHEMES = {"cskd::": ("cskd_train", "configs"), MMDET_PREFIX: ("mmdet", ".mim/configs")}
"""Prefix of a name -> the package that ships the file, and its folder of configs."""


def resolve_config_path(path: str | Path) -> Path:
    """The file of a config name.

    Raises:
        TrainError: there is no such file; for `mmdet::` and `cskd::` names the message offers near ones.
    """
    name = str(path)
    if (scheme := _scheme(name)) is None:
        file = Path(name).expanduser()
        if not file.is_file():
            raise TrainError(f"config {name}: no such file (looked in {Path.cwd()})")
        if file.suffix not in (".py", ".json", ".yaml", ".yml"):
            raise TrainError(f"config {name}: expected a .py, .yaml or .json file; to evaluate a checkpoint use `test`")
        return file
    root = _folder(scheme)
    file = root / name.removeprefix(scheme)
    if file.is_file():
        return file
    shipped = {
        one.name: one for one in root.glob("*/*.py") if scheme == "cskd::" or not one.parent.name.startswith("_")
    }
    near = difflib.get_close_matches(file.name, shipped, n=3)
    offers = ", ".join(f"{scheme}{shipped[match].relative_to(root)}" for match in near)
    who = _SCHEMES[scheme][0].replace("_", "-")
    raise TrainError(f"config {name}: {who} ships no such file{f'; near ones: {offers}' if offers else ''}")


def base_path(name: str, folder: Path) -> Path:
    """The file that a config in `folder` means by a name in its `_base_`.

    Raises:
        TrainError: as `resolve_config_path`, of a name with a scheme.
    """
    if _scheme(name) is not None:
        return resolve_config_path(name)
    return Path(os.path.normpath(folder / name))


def shipped_by(file: Path) -> str | None:
    """The scheme of the package that ships a config, `cskd::` or `mmdet::`; None for a file of the user's own."""
    for scheme in _SCHEMES:
        if (folder := _find(scheme)) is not None and file.resolve().is_relative_to(folder.resolve()):
            return scheme
    return None


def shipped_configs() -> Path:
    """The folder of the configs that the mmdet package ships.

    Raises:
        TrainError: it ships none.
    """
    return _folder(MMDET_PREFIX)


def _scheme(name: str) -> str | None:
    return next((scheme for scheme in _SCHEMES if name.startswith(scheme)), None)


def _folder(scheme: str) -> Path:
    folder = _find(scheme)
    if folder is None:
        raise TrainError("the installed mmdet ships no configs (mmdet/.mim/configs); install the mmdet 2.28.2 wheel")
    return folder


def _find(scheme: str) -> Path | None:
    package, within = _SCHEMES[scheme]
    spec = importlib.util.find_spec(package)
    places = [Path(place) / within for place in (spec.submodule_search_locations or []) if spec] if spec else []
    return next((place for place in places if place.is_dir()), None)
