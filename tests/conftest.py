"""Data that several tests use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Tests are small: one thread keeps them deterministic and quick on a shared machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory):
    """A tiny generated set: 12 training and 6 validation images of 128 x 128."""
    from cskd_train.data.shapes import generate

    root = tmp_path_factory.mktemp("data") / "shapes"
    generate(root, images=12, val_images=6, size=(128, 128), seed=0)
    return root


@pytest.fixture(scope="session")
def bccd_root():
    """The BCCD photographs, where the environment says they are."""
    root = os.environ.get("CSKD_BCCD")
    if not root:
        pytest.skip("CSKD_BCCD does not name a folder with the BCCD photographs")
    if not (Path(root) / "annotations" / "train.json").is_file():
        pytest.fail(f"CSKD_BCCD={root}: no annotations/train.json there")
    return Path(root)
