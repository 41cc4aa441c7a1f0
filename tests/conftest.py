"""Data that several tests use."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Tests are small: one thread keeps them deterministic and quick on a shared machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# Files of tests that take more than about four seconds on a quiet core (`pytest --durations=0`, summed by file).
SLOW = {str(Path(__file__).parent / name) for name in (Path(__file__).parent / "slow.txt").read_text().split()}


def pytest_collection_modifyitems(items):
    """Whatever lies in a slow file is `slow`: `make test-fast` leaves it out."""
    for item in items:
        if str(item.path) in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def hangup_taken():
    """SIGHUP has its default action in every test, also where `nohup` has started them."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def pytest_runtest_setup(item):
    """The one rule for `gpu`: such a test runs where torch sees a GPU, and says why it does not elsewhere."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs an NVIDIA GPU, and torch sees none here")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Each device in turn, by the name that `--device` takes; on a GPU float32 is float32, not TF32."""
    import torch

    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield request.param
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory):
    """A tiny generated set: 12 training and 6 validation images of 128 x 128."""
    from cskd_data.shapes import generate

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


def pytest_ignore_collect(collection_path):
    """What tests share holds no tests: collected for its examples it would be imported a second time."""
    return True if collection_path.suffix == ".py" and not collection_path.name.startswith("test_") else None
