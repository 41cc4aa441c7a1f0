"""JSON as tools write it: with byte order marks, in UTF-16, gzipped."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from cskd_data.errors import DataError


def load_json(path: Path, what: str) -> Any:
    """The contents of a JSON file in any of JSON's encodings, with or without a byte order mark, gzipped or not.

    Args:
        what: what the file is to the user, for messages: `annotation file`.

    Raises:
        DataError: it is missing, cannot be read, or is not JSON (line and column are given).
    """
    name = f"{what} {path}"
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise DataError(f"{name} does not exist") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{name} is a damaged gzip file ({error}): copy it again") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise DataError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not content.strip():
        raise DataError(f"{name} is empty ({len(content)} bytes)")
    if content.startswith(b"version https://git-lfs"):
        raise DataError(f"{name} is only a Git LFS pointer to the file: fetch it with `git lfs pull`")
    try:
        # Strict, unlike json.loads on bytes, which lets lone surrogates through and fails when they are printed.
        return json.loads(content.decode(json.detect_encoding(content)))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{name} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}. Is it complete?"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not JSON: it is not text in UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8"
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deep; a number of thousands of digits
        raise DataError(f"{name} cannot be read as JSON: {error}") from error
