"""Frames of a video file or a camera, and a video of drawn frames, by OpenCV."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import cv2
import numpy as np

from cskd_data.errors import ImageFault
from cskd_data.files import check_not_input, check_writable
from cskd_data.images import SUFFIXES as PICTURES
from cskd_data.images import image_size
from cskd_deploy.detect.drawing import write_image
from cskd_deploy.errors import DeployError
from cskd_deploy.outputs import VIDEOS

CAMERA = "camera:"
CODES = {".mp4": "mp4v", ".avi": "MJPG"}  # that OpenCV's wheels write
USUAL_RATE = 25.0  # of a drawn video whose source does not say its own
_HEAD = 4096
_COUNTED = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm", ".wmv")  # their headers say how long they are
_MOST_FRAMES = 1e9  # OpenCV's count of what has none is beyond
_COMPLETE = 0.9  # of frames and of time: containers count frames that a player leaves out, and round


@dataclass(frozen=True)
class Frame:
    """A BGR uint8 image of a video."""

    number: int  # from 0 on
    seconds: float  # of a file by its rate, of a camera since the first frame
    image: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image.shape[0], self.image.shape[1]


def video_source(sources: Sequence[str]) -> str | None:
    """The one source that is a video or a camera; None where all are images.

    By its name, or where a single file with another name than an image's is no picture.

    Raises:
        DeployError: a video is not alone, or `camera:` is followed by no number.
    """
    videos = [source for source in sources if source.startswith(CAMERA) or _is_video(Path(source))]
    if len(sources) == 1 and not videos and _may_be_video(Path(sources[0])):
        videos = [sources[0]]
    if not videos:
        return None
    if len(sources) > 1:
        raise DeployError(f"a video or a camera is detected on by itself: give {videos[0]} alone")
    if videos[0].startswith(CAMERA) and not re.fullmatch(r"[0-9]{1,4}", videos[0].removeprefix(CAMERA)):
        raise DeployError(f"{videos[0]} names no camera: expected camera:0 for the first one, camera:1, and so on")
    return videos[0]


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS and not path.is_dir()


def _may_be_video(path: Path) -> bool:
    if not path.is_file() or path.suffix.lower() in PICTURES:
        return False
    try:
        image_size(path)
    except ImageFault:
        return True
    return False


class Video:
    """The frames of a video file, or of a camera as `camera:0`, in their order; a context manager.

    Raises:
        DeployError: there is no such file or camera, or OpenCV reads no frame of it.
    """

    def __init__(self, source: str) -> None:
        self.path = None if source.startswith(CAMERA) else Path(source)  # None of a camera
        self._number = 0
        self._begin: float | None = None
        if self.path is None:
            self._capture = _opened(int(source.removeprefix(CAMERA)))
        else:
            if not self.path.is_file():
                raise DeployError(f"video {source} does not exist")
            # Text is a film to FFmpeg, which draws its letters; every video holds a zero.
            with self.path.open("rb") as file:
                self._capture = _opened(str(self.path)) if 0 in file.read(_HEAD) else None
        self._next: Any
        read, self._next = (False, None) if self._capture is None else self._capture.read()
        if not read:
            self.close()
            if self.path is None:
                raise DeployError(f"{source} gives no picture: is there such a camera, and is it free?")
            raise DeployError(f"{source} is neither a picture nor a video that OpenCV reads")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate: float | None = float(rate) if 0 < rate < 1e4 else None  # frames a second
        # Frames by the file's header; known once the last one has been read, and None where they came.
        self.announced: int | None = None

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file or the camera."""
        if self._capture is not None:
            self._capture.release()

    def __iter__(self) -> Iterator[Frame]:
        read, image = True, self._next
        while read:
            now = time.perf_counter()
            self._begin = now if self._begin is None else self._begin
            if self.path is None or self.rate is None:
                seconds = now - self._begin
            else:
                seconds = self._number / self.rate
            reached = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
            yield Frame(self._number, round(seconds, 6), image)
            self._number += 1
            read, image = self._capture.read()
        self.announced = self._missing(reached)

    def _missing(self, reached: float) -> int | None:
        """The number of frames that the file announces, where clearly fewer came, in clearly less time.

        Args:
            reached: seconds at the last frame, by its own time stamp.
        """
        if self.path is None or self.rate is None or self.path.suffix.lower() not in _COUNTED:
            return None
        announced = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        few = self._number + 1 < _COMPLETE * announced < _MOST_FRAMES
        return round(announced) if few and reached + 2 / self.rate < _COMPLETE * announced / self.rate else None


def _opened(source: str | int) -> Any:
    level = cv2.getLogLevel()
    cv2.setLogLevel(0)  # what cannot be opened is reported once, by us
    try:
        return cv2.VideoCapture(source)
    finally:
        cv2.setLogLevel(level)


def drawn_frame(path: Path, number: int = 0) -> Path:
    """The file that a drawn frame goes into: `path` itself by its suffix, else one of its own in that folder."""
    return path if path.suffix.lower() in CODES else path / f"{number:06}.jpg"


class VideoFile:
    """Where drawn frames go: a video file by its suffix, else a folder of JPEG files; a context manager.

    Args:
        path: the file, replaced if it is there, or the folder.
        video: whose rate the file gets.

    Raises:
        DataError: it would replace the video, or cannot be written.
        DeployError: OpenCV writes no such files.
    """

    def __init__(self, path: Path, video: Video) -> None:
        self._path = path
        self._rate = video.rate or USUAL_RATE
        self._writer: Any = None
        self._count = 0
        suffix = path.suffix.lower()
        self._code = CODES.get(suffix)
        if self._code is None and suffix in (*VIDEOS, *PICTURES):
            raise DeployError(f"--output {path}: videos are written as {' or '.join(CODES)}, or give a folder")
        if self._code and path.exists() and not (path.is_file() or path.is_dir()):
            raise DeployError(
                f"--output {path} is no file, and a video is not written front to back: give another name"
            )
        check_not_input(path, [video.path], "--output")
        check_writable(drawn_frame(path))

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()

    def write(self, image: np.ndarray) -> None:
        """Add a frame.

        Raises:
            DeployError: the file cannot be written.
        """
        if self._code is None:
            write_image(drawn_frame(self._path, self._count), image)
        else:
            if self._writer is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                code = cv2.VideoWriter.fourcc(*self._code)
                self._writer = cv2.VideoWriter(str(self._path), code, self._rate, (image.shape[1], image.shape[0]))
                if not self._writer.isOpened():
                    raise DeployError(f"{self._path} cannot be written: this OpenCV has no encoder for it, try .avi")
            self._writer.write(image)
        self._count += 1


@contextmanager
def stop_signals() -> Iterator[list[signal.Signals]]:
    """While this context lasts, the first SIGINT or SIGTERM is put into the list that it yields; a second one ends."""
    seen: list[signal.Signals] = []
    former: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(signal.Signals(number))
        restore()

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    in_main = threading.current_thread() is threading.main_thread()  # Python takes handlers from no other
    for number in (signal.SIGINT, signal.SIGTERM) if in_main else ():
        former[number] = signal.signal(number, note)
    try:
        yield seen
    finally:
        restore()
