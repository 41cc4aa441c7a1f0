"""The file behind a path, a URL or a name of pretrained weights: here already, in the cache, or downloaded into it."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shlex
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlparse

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from cskd_data.files import sweep, write_atomically
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import sha256
from cskd_train.files.locate import MMDET_PREFIX
from cskd_train.files.model_zoo import address_of

CACHE_VARIABLE = "CSKD_CACHE"

_TEACHER, _TEACHER_KEY = "the teacher's checkpoint", "distill.teacher.checkpoint"
_SILENCE = 60  # seconds without a byte after which a server counts as gone
_BLOCK = 1 << 20
_DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(\d{4}|\d{6})?")  # year, month, day, time


def fetch(checkpoint: str, config: str | None = None) -> Path:
    """The local file of a teacher's checkpoint (see `local_file`).

    Args:
        checkpoint: a path, an http(s) URL, or a name of pretrained weights.
        config: the teacher's config, for the command that trains it.

    Raises:
        TrainError: as `local_file`.
    """
    path = Path(checkpoint).expanduser()
    if _is_name(checkpoint) or path.is_file():
        return local_file(checkpoint, _TEACHER, _TEACHER_KEY)
    train = "train the teacher first"
    if path.name in ("best.pth", "last.pth"):
        train += f": {_training_command(path.parent, config)}"
    raise TrainError(
        f"{_TEACHER} {path} does not exist (looked in {Path.cwd()}); {train}, or {_another_file(_TEACHER_KEY)}"
    )


def local_file(source: str, what: str, key: str | None = None) -> Path:
    """The local file of weights that a config names.

    A download is kept in the cache and taken from there the next time. Each time it has to agree with a SHA-256: with
    the first digits of it in which its name ends, as the names of mmdet's model zoo and torchvision do
    (`...-fdb43119.pth`), else with the one that was recorded beside it (`FILE.sha256`) when it came. A path is taken
    as it is.

    Args:
        source: a path, an http(s) URL, or a name of weights (`torchvision://resnet18`, `mmdet::FOLDER/FILE.py`).
        what: what the file is, for messages: "the teacher's checkpoint".
        key: of the config, where another file can be named; without it, `what` is such a key.

    Raises:
        TrainError: no such file; an unknown name; a download that failed, was cut short, or is not what its name says;
            a file in the cache that is not what its name or its record says.
    """
    instead = _another_file(key or what)
    url = _url(source, what, instead)
    if url is None:
        path = Path(source).expanduser()
        if not path.is_file():
            raise TrainError(f"{what} {path}: no such file (looked in {Path.cwd()}); {instead}")
        return path
    name = Path(urlparse(url).path).name
    if name in ("", ".."):
        raise TrainError(f"{key or what} = {source!r} names no file; expected a URL that ends in one")
    download = _Download(url, cache_folder() / name, what, instead)
    if not download.target.is_file():
        download.run()
        return download.target
    try:
        download.check_cached()
    except OSError as error:
        raise TrainError(f"{what} {download.target} cannot be read ({error.strerror}); {instead}") from error
    return download.target


def cache_folder() -> Path:
    """Where downloads are kept: the folder that CSKD_CACHE names, else torch.hub's."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path(torch.hub.get_dir()) / "checkpoints"


def _another_file(key: str) -> str:
    return f"name another file with --set {key}=FILE"


def _training_command(work_dir: Path, config: str | None) -> str:
    """The command that leaves its checkpoints in `work_dir`."""
    command = ["cskd-train", "run", config or "CONFIG"]
    if config is None or work_dir != Path("work_dirs") / Path(config.rpartition("::")[2]).stem:
        command += ["--work-dir", str(work_dir)]
    return shlex.join(command)


def _is_name(source: str) -> bool:
    """Whether a source is something else than a path."""
    return "://" in source or source.startswith(MMDET_PREFIX)


def _url(source: str, what: str, instead: str) -> str | None:
    """The URL of a source; None for a path."""
    if source.startswith(("http://", "https://")):
        return source
    if not _is_name(source):
        return None
    try:
        return address_of(source)
    except TrainError as error:
        raise TrainError(f"{what}: {error}. Give its http(s) URL, or {instead}") from None


@dataclass(frozen=True)
class _Download:
    """A file that comes from a URL, what it is for, and what to do without it."""

    url: str
    target: Path
    what: str
    instead: str

    @property
    def promised(self) -> str | None:
        """The beginning of the SHA-256 that the file's name ends in; digits that read as a date are none."""
        found = re.search(r"-([0-9a-f]{8,64})\.\w+$", self.target.name)
        return None if found is None or _DATE.fullmatch(found[1]) else found[1]

    @property
    def record(self) -> Path:
        """Where the SHA-256 of a file is kept whose name promises none, in a form that `sha256sum -c` reads."""
        return self.target.with_name(f"{self.target.name}.sha256")

    @property
    def origin(self) -> str:
        """The URL without what may be secret in it: user, password, query."""
        parts = urlparse(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def check_cached(self) -> None:
        """Compare a file in the cache with what its name or its record says; without either, record it now.

        Raises:
            TrainError: it differs, or it came from another URL.
        """
        found = sha256(self.target)
        if self.promised:
            expected, source = self.promised, "by its name with"
        elif self.record.is_file():
            origin, expected = self._recorded()
            if origin != self.origin:
                raise TrainError(
                    f"{self.what} {self.url} would be kept as {self.target}, where the file of that name from {origin} "
                    f"is. {self._removal()}; {self.instead}; or keep the two apart by the environment variable "
                    f"{CACHE_VARIABLE}"
                )
            source = f"in {self.record.name} with"
        else:
            self._record(found, _console())
            return
        if not found.startswith(expected):
            raise TrainError(
                f"{self.what} {self.target} is damaged or altered: its SHA-256 begins with "
                f"{found[: min(len(expected), 16)]}, {source} {expected[:16]} ({self.target.stat().st_size} bytes). "
                f"{self._removal()}; it is then downloaded again from {self.url}. Or {self.instead}"
            )

    def run(self) -> None:
        """Download the file.

        Raises:
            TrainError: it cannot be had, or written.
        """
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainError(
                f"the folder {self.target.parent} for downloaded files cannot be made ({error.strerror}): "
                f"name another in the environment variable {CACHE_VARIABLE}"
            ) from error
        sweep([self.target])
        console = _console()
        _say(console, f"downloading {self.what}: {self.url} to {self.target}")
        request = urllib.request.Request(self.url, headers={"User-Agent": "cskd-train"})
        try:
            with urllib.request.urlopen(request, timeout=_SILENCE) as response:
                write_atomically(self.target, lambda file: self._receive(response, file, console))
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(str(error)) from error

    def _receive(self, response: http.client.HTTPResponse, file: BinaryIO, console: Console) -> None:
        """Copy the body of `response` into `file`.

        Raises:
            TrainError: the connection broke, or the body is shorter than announced, or not what the name says.
        """
        announced = response.headers.get("Content-Length") or ""
        total = int(announced) if announced.isdecimal() else None
        digest, received = hashlib.sha256(), 0
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(self.target.name, total=total)
            while block := self._read(response):
                file.write(block)
                digest.update(block)
                received += len(block)
                bar.update(task, completed=received)
        # http.client ends a body that stops early as if it were whole.
        if total is not None and received != total:
            raise self._failed(f"the connection ended after {received} of {total} bytes")
        found = digest.hexdigest()
        if self.promised is None:
            self._record(found, console)  # before the file has its name: no file that was downloaded lacks its record
        elif not found.startswith(self.promised):
            raise self._failed(
                f"its SHA-256 begins with {found[: len(self.promised)]}, by its name with {self.promised}"
            )

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read(_BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(str(error)) from error

    def _record(self, found: str, console: Console) -> None:
        text = f"# {self.origin}\n{found}  {self.target.name}\n"
        write_atomically(self.record, lambda file: file.write(text.encode()))
        _say(
            console,
            f"note: the name {self.target.name} holds no SHA-256 to check it by; this one is {found}, "
            f"kept in {self.record} and compared with each time",
        )

    def _recorded(self) -> tuple[str, str]:
        """The URL and the SHA-256 in the record."""
        found = re.fullmatch(r"# (\S+)\n([0-9a-f]{64})  .+\n", self.record.read_text(errors="replace"))
        if not found:
            raise TrainError(f"{self.record} is not a record of {self.what}'s SHA-256. {self._removal()}")
        return found[1], found[2]

    def _removal(self) -> str:
        files = [str(self.target)] + ([] if self.promised else [str(self.record)])
        return f"Remove it with `{shlex.join(['rm', *files])}`"

    def _failed(self, reason: str) -> TrainError:
        name, folder = self.target.name, self.target.parent
        command = shlex.join(["curl", "-fL", "-o", name, self.url])
        return TrainError(
            f"{self.what} could not be downloaded ({reason}); nothing of it is kept. On a machine with a "
            f"connection: `{command}`; then copy {name} to {folder}. Or {self.instead}"
        )


def _console() -> Console:
    return Console(stderr=True)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
