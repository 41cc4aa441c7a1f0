"""The file of a teacher's weights: on this machine, in the cache, or downloaded into it."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shlex
import urllib.request
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlparse

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from cskd_train.errors import TrainError
from cskd_train.files.atomic import write_atomically
from cskd_train.files.checkpoints import sha256

CACHE_VARIABLE = "CSKD_CACHE"

_ANOTHER_FILE = "name another file with --set distill.teacher.checkpoint=FILE"
_SILENCE = 60  # seconds without a byte after which a server counts as gone
_BLOCK = 1 << 20


def fetch(checkpoint: str, config: str | None = None) -> Path:
    """The local file of a teacher's checkpoint.

    A download is kept in the cache and taken from there the next time. Where its name ends in the first digits of its
    SHA-256, as the names of mmdet's model zoo do (`...-fdb43119.pth`), it has to agree with them each time.

    Args:
        checkpoint: a path, or an http(s) URL.
        config: the teacher's config, for the command that trains it.

    Raises:
        TrainError: no such file; a download that failed, was cut short, or is not what its name says; a file in the
            cache that is not what its name says.
    """
    if not checkpoint.startswith(("http://", "https://")):
        return _local(Path(checkpoint).expanduser(), config)
    name = Path(urlparse(checkpoint).path).name
    if not name:
        raise TrainError(f"distill.teacher.checkpoint = {checkpoint!r} names no file; expected a URL that ends in one")
    target = cache_folder() / name
    if target.is_file():
        _check_cached(target, checkpoint)
    else:
        _download(checkpoint, target)
    return target


def cache_folder() -> Path:
    """Where downloads are kept: the folder that CSKD_CACHE names, else torch.hub's."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path(torch.hub.get_dir()) / "checkpoints"


def _local(path: Path, config: str | None) -> Path:
    if path.is_file():
        return path
    train = "train the teacher first"
    if path.name in ("best.pth", "last.pth"):
        train += f": {_training_command(path.parent, config)}"
    raise TrainError(
        f"the teacher's checkpoint {path} does not exist (looked in {Path.cwd()}); {train}, or {_ANOTHER_FILE}"
    )


def _training_command(work_dir: Path, config: str | None) -> str:
    """The command that leaves its checkpoints in `work_dir`."""
    command = ["cskd-train", "run", config or "CONFIG"]
    if config is None or work_dir != Path("work_dirs") / Path(config.rpartition("::")[2]).stem:
        command += ["--work-dir", str(work_dir)]
    return shlex.join(command)


def _promised_digits(name: str) -> str | None:
    """The beginning of the SHA-256 that a file name ends in."""
    found = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    return found[1] if found else None


def _check_cached(file: Path, url: str) -> None:
    promised = _promised_digits(file.name)
    if promised and not (found := sha256(file)).startswith(promised):
        raise TrainError(
            f"the teacher's checkpoint {file} is damaged or altered: its SHA-256 begins with "
            f"{found[: len(promised)]}, by its name with {promised} ({file.stat().st_size} bytes). Remove it with "
            f"`{shlex.join(['rm', str(file)])}`; it is then downloaded again from {url}. Or {_ANOTHER_FILE}"
        )


def _download(url: str, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainError(
            f"the folder {target.parent} for downloaded teachers cannot be made ({error.strerror}): "
            f"name another in the environment variable {CACHE_VARIABLE}"
        ) from error
    console = Console(stderr=True)
    console.print(f"downloading the teacher: {url} to {target}", markup=False, highlight=False, soft_wrap=True)
    request = urllib.request.Request(url, headers={"User-Agent": "cskd-train"})
    try:
        with urllib.request.urlopen(request, timeout=_SILENCE) as response:
            write_atomically(target, lambda file: _receive(response, file, target, url, console))
    except (OSError, http.client.HTTPException) as error:
        raise _failed(url, target, str(error)) from error


def _receive(response: http.client.HTTPResponse, file: BinaryIO, target: Path, url: str, console: Console) -> None:
    """Copy the body of `response` into `file`.

    Raises:
        TrainError: the connection broke, or the body is shorter than announced, or not what the file's name says.
    """
    announced = response.headers.get("Content-Length")
    digest, received = hashlib.sha256(), 0
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(target.name, total=int(announced) if announced else None)
        while block := _read(response, url, target):
            file.write(block)
            digest.update(block)
            received += len(block)
            bar.update(task, completed=received)
    # http.client ends a body that stops early as if it were whole.
    if announced and received != int(announced):
        raise _failed(url, target, f"the connection ended after {received} of {announced} bytes")
    promised = _promised_digits(target.name)
    if promised and not digest.hexdigest().startswith(promised):
        found = digest.hexdigest()[: len(promised)]
        raise _failed(url, target, f"its SHA-256 begins with {found}, by its name with {promised}")


def _read(response: http.client.HTTPResponse, url: str, target: Path) -> bytes:
    try:
        return response.read(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _failed(url, target, str(error)) from error


def _failed(url: str, target: Path, reason: str) -> TrainError:
    command = shlex.join(["curl", "-fL", "-o", target.name, url])
    return TrainError(
        f"the teacher's checkpoint could not be downloaded ({reason}); nothing of it is kept. On a machine with a "
        f"connection: `{command}`; then copy {target.name} to {target.parent}. Or {_ANOTHER_FILE}"
    )
