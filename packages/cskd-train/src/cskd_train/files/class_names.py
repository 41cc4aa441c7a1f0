"""Class names that a config gives as text: one name, or the file of them."""

from __future__ import annotations

from pathlib import Path

from cskd_train.errors import TrainError


def names_of_text(text: str) -> tuple[str, ...]:
    """The classes that a text means: as in mmdet those of the file that it names, one a line.

    The file is relative to the working directory. A plain word, with no folder and no suffix, that names no file is the
    only class.

    Raises:
        TrainError: a file that cannot be read, or is empty.
    """
    return (text,) if _is_one_class(text) else _classes_in_file(text)


def _is_one_class(text: str) -> bool:
    path = Path(text).expanduser()
    return bool(text.strip()) and not (path.suffix or "/" in text or "\\" in text or path.exists())


def _classes_in_file(name: str) -> tuple[str, ...]:
    try:
        lines = Path(name).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        fault = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise TrainError(
            f"the config's data has classes = {name!r}, which names a file of classes: {fault} (looked in "
            f"{Path.cwd()}). Give one with a class a line, or a list: a single class is [{name!r}]"
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise TrainError(f"the file of classes {name} is empty: expected one class a line")
    return names
