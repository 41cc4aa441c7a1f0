"""Write the number in VERSION wherever else it stands: `python requirements/version.py` after it was changed there.

With `--check` nothing is written: files that have another number are named, and the exit code is 1.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
NUMBER = r"\d+\.\d+\.\d+\w*"
PLACES = {
    "packages/*/pyproject.toml": (
        rf'^(version = "){NUMBER}',
        rf"(cskd-(?:core|data|train|deploy)(?:\[[\w,-]+\])?==){NUMBER}",
    ),
    "packages/*/src/*/__init__.py": (rf'^(__version__ = "){NUMBER}',),
    "CITATION.cff": (rf"^(version: ){NUMBER}",),
}
"""Files, and what stands before the number in them."""


def with_version(text: str, patterns: tuple[str, ...], version: str) -> str:
    """The text with the version in every place of the patterns."""
    for pattern in patterns:
        text = re.sub(pattern, rf"\g<1>{version}", text, flags=re.MULTILINE)
    return text


def main(root: Path, check: bool) -> int:
    """Bring every file to the version in `root / "VERSION"`, or name those that have another one."""
    version = (root / "VERSION").read_text().strip()
    others = 0
    for glob, patterns in PLACES.items():
        for file in sorted(root.glob(glob)):
            text = file.read_text()
            wanted = with_version(text, patterns, version)
            if wanted == text:
                continue
            others += 1
            print(f"{file.relative_to(root)}: {'not ' if check else ''}{version}")
            if not check:
                file.write_text(wanted)
    return int(check and others > 0)


if __name__ == "__main__":
    sys.exit(main(REPOSITORY, "--check" in sys.argv[1:]))
