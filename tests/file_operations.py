"""Report every file operation of a save, in its order: to record them, to make one fail, or to be killed in it."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from pathlib import Path


def report_operations(report, patch=setattr):
    """Call `report(operation, "before" or "after")` around each operation on files that are written.

    Args:
        report: may raise, which is how an operation fails, or end the process.
        patch: called as `setattr` is; `monkeypatch.setattr` in a test that wants everything back.
    """

    def reporting(name, operation):
        def reported(*arguments, **options):
            found = name(*arguments) if callable(name) else name
            report(found, "before")
            result = operation(*arguments, **options)
            report(found, "after")
            return result

        return reported

    class Watched:
        """A file that reports what is done with it."""

        def __init__(self, file):
            self._file = file
            self.write = reporting("write", file.write)
            self.flush = reporting("flush", file.flush)
            self.close = reporting("close", file.close)

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.close()

    def of_what(descriptor):
        return "fsync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "fsync file"

    opened, temporary = Path.open, reporting("open", tempfile.NamedTemporaryFile)

    def open_path(path, mode="r", *arguments, **options):
        if "w" not in mode:
            return opened(path, mode, *arguments, **options)
        return Watched(reporting("open", opened)(path, mode, *arguments, **options))

    patch(Path, "open", open_path)
    patch(tempfile, "NamedTemporaryFile", lambda *arguments, **options: Watched(temporary(*arguments, **options)))
    patch(fcntl, "flock", reporting("lock", fcntl.flock))
    patch(os, "fsync", reporting(of_what, os.fsync))
    patch(Path, "chmod", reporting("chmod", Path.chmod))
    patch(Path, "replace", reporting("rename", Path.replace))
