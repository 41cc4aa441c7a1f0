"""What is read and written: configs, checkpoints, downloads. Below `mm` and `engine`.

Importing it refuses an mmdet or mmcv that does not work here, and keeps out warnings about their own code: it comes
before the first import of either.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path

from packaging.specifiers import SpecifierSet

from cskd_train.errors import NotInstalled

# package -> (versions that work, as in pyproject.toml; version to install; name to install it by)
REQUIRED = {"mmcv": (">=1.4.7,<2", "1.7.2", "mmcv-full"), "mmdet": (">=2.22,<3", "2.28.2", "mmdet")}

UNACTIONABLE_WARNINGS = (
    "On January 1, 2023, MMCV will release v2.0.0",  # mmcv 1.7
    r"`torch\.cuda\.amp\.",  # torch >= 2.4: mmcv names the old GradScaler
    r"torch\.utils\.checkpoint: the use_reentrant parameter",  # torch >= 2.1: backbones with with_cp=True
    r"torch\.meshgrid: in an upcoming release",  # torch >= 1.10: the grids of some mmdet heads
    "DeprecationWarning: `num_anchors` is deprecated",  # mmdet 2.28: its GFL head asks its own base class
)


def check_versions() -> None:
    """Refuse an mmdet or mmcv outside the versions that work; another major line shares the name, not the interface.

    Raises:
        NotInstalled: one of them is missing, too old or too new; the message has the command that installs a good one.
    """
    for package, (works, version, distribution) in REQUIRED.items():
        found = installed_version(package)
        if found is None or not SpecifierSet(works).contains(found, prereleases=True):
            state = "is not installed" if found is None else f"{found} is installed"
            remove_first = f"pip uninstall -y {package}; " if found else ""
            raise NotInstalled(
                f"{package} {state}, cskd-train works with {package} {works}: "
                f"{remove_first}pip install '{distribution}=={version}'"
            )


def installed_version(package: str) -> str | None:
    """The version that `package` states in its version.py, read without importing it; None where it is not there."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    version_file = Path(spec.origin).with_name("version.py")
    if not version_file.is_file():
        return None
    stated = re.search(r"^__version__ = ['\"]([^'\"]+)", version_file.read_text(), re.MULTILINE)
    return stated.group(1) if stated else None


def silence_warnings() -> None:
    """Keep out warnings about mmdet's and mmcv's own code, which a user of CSKD cannot act on."""
    for message in UNACTIONABLE_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


check_versions()
silence_warnings()
