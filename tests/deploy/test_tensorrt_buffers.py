"""GPU memory by each of the two packages, against doubles of them."""

from __future__ import annotations

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from cskd_deploy.backends import BUFFERS
from cskd_deploy.backends.tensorrt.memory import Buffers, open_buffers
from cskd_deploy.errors import BackendMissing, DeployError

from . import package_doubles
from .gpu_double import STREAM

MODULES = {"cuda-python": "cuda.bindings.runtime", "pycuda": "pycuda.driver"}
DOUBLES = {"cuda-python": package_doubles.cuda_python, "pycuda": package_doubles.pycuda}


@pytest.fixture
def install(monkeypatch) -> Any:
    """`install("pycuda")` puts its double in place; packages that are not installed by it are missing."""
    made = {name: double() for name, double in DOUBLES.items()}
    for module in ("cuda.cudart", "cuda.bindings.runtime", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, module, None)

    def put(name: str, double: Any = None, module: str | None = None) -> Any:
        double = double or made[name]
        monkeypatch.setitem(sys.modules, module or MODULES[name], double)
        return double

    return put


def with_parents(monkeypatch: Any, module: str) -> None:
    for place in range(module.count(".")):
        parent = ".".join(module.split(".")[: place + 1])
        monkeypatch.setitem(sys.modules, parent, type(sys)(parent))


@pytest.mark.parametrize("name", BUFFERS)
def test_arrays_go_to_the_gpu_and_back_on_one_stream(name, install, monkeypatch):
    with_parents(monkeypatch, MODULES[name])
    install(name)
    buffers = open_buffers(name)
    assert (buffers.name, buffers.stream) == (name, STREAM)
    use(buffers)
    with ThreadPoolExecutor(1) as another:
        another.submit(use, buffers).result()
        another.submit(buffers.close).result()


def use(buffers: Buffers) -> None:
    """Copy to the GPU and back."""
    with buffers.active():
        sent = buffers.page_locked((2, 3), np.dtype(np.float32))
        received = buffers.page_locked((2, 2), np.dtype(np.float32))
        assert (sent.shape, sent.dtype, sent.flags["C_CONTIGUOUS"]) == ((2, 3), np.float32, True)
        sent[:] = np.arange(6).reshape(2, 3)
        received[:] = -1
        block = buffers.allocate(64)
        assert block.size == 64
        first = buffers.mark()
        buffers.copy_in(block, sent)
        buffers.copy_out(received, block)
        second, third = buffers.mark(), buffers.mark()
        buffers.synchronize()
        np.testing.assert_array_equal(received, [[0, 1], [2, 3]])
        assert buffers.milliseconds(first, second) == 1.0
        assert buffers.milliseconds(first, third) == 2.0
        buffers.free(block)
        assert buffers.allocate(0).address != 0
        assert buffers.page_locked((0, 4), np.dtype(np.int64)).shape == (0, 4)


def test_cuda_python_frees_all_it_took_and_names_what_failed(install, monkeypatch):
    with_parents(monkeypatch, MODULES["cuda-python"])
    cuda = install("cuda-python")
    buffers = open_buffers("cuda-python")
    buffers.allocate(8)
    buffers.free(buffers.allocate(8))
    buffers.page_locked((4,), np.dtype(np.uint8))
    cuda.calls.clear()
    buffers.close()
    assert cuda.calls == ["cudaFree", "cudaFreeHost", "cudaStreamDestroy"]
    assert not cuda.memory
    install("cuda-python", package_doubles.cuda_python(failing="cudaMalloc"))
    with pytest.raises(DeployError, match=r"CUDA says: out of memory \(cudaErrorMemoryAllocation\)"):
        open_buffers("cuda-python").allocate(8)


def test_cuda_python_of_another_cuda_than_the_drivers_is_passed_over(install, monkeypatch):
    with_parents(monkeypatch, MODULES["cuda-python"])
    install("cuda-python", package_doubles.cuda_python(failing="cudaSetDevice"))
    with pytest.raises(BackendMissing, match="its major version is the driver's CUDA version"):
        open_buffers("cuda-python")
    with_parents(monkeypatch, MODULES["pycuda"])
    install("pycuda")
    assert open_buffers().name == "pycuda"


def test_an_event_of_cuda_python_is_destroyed_with_its_last_reference(install, monkeypatch):
    with_parents(monkeypatch, MODULES["cuda-python"])
    cuda = install("cuda-python")
    event = open_buffers("cuda-python").mark()
    assert "cudaEventDestroy" not in cuda.calls
    del event
    assert cuda.calls[-1] == "cudaEventDestroy"


def test_cuda_python_before_12_6_has_another_name(install, monkeypatch):
    with_parents(monkeypatch, "cuda.cudart")
    install("cuda-python", module="cuda.cudart")
    assert open_buffers("cuda-python").name == "cuda-python"


def test_pycuda_works_in_the_primary_context_and_leaves_it(install, monkeypatch):
    with_parents(monkeypatch, MODULES["pycuda"])
    pycuda = install("pycuda")
    buffers = open_buffers("pycuda")
    assert pycuda.calls == ["init", "push", "pop"]  # the thread that made them has none left
    assert buffers.failures == (pycuda.Error,)
    buffers.close()
    assert pycuda.calls[-3:] == ["push", "pop", "detach"]


def test_cuda_python_sets_the_gpu_in_each_thread(install, monkeypatch):
    """A CUDA graph is launched by the driver, which does not set it as the runtime does."""
    with_parents(monkeypatch, MODULES["cuda-python"])
    cuda = install("cuda-python")
    buffers = open_buffers("cuda-python")
    cuda.calls.clear()
    with buffers.active():
        assert cuda.calls == ["cudaSetDevice"]


def test_the_first_usable_package_is_taken(install, monkeypatch):
    with pytest.raises(BackendMissing, match=r"cuda-python cannot be used .*; pycuda cannot be used"):
        open_buffers()
    with_parents(monkeypatch, MODULES["pycuda"])
    install("pycuda")
    assert open_buffers().name == "pycuda"
    with_parents(monkeypatch, MODULES["cuda-python"])
    install("cuda-python")
    assert open_buffers().name == "cuda-python"
    assert open_buffers("pycuda").name == "pycuda"


def test_pytorch_is_no_package_that_gpu_memory_comes_from(install):
    with pytest.raises(DeployError, match="there are no buffers 'torch', expected one of cuda-python, pycuda"):
        open_buffers("torch")


@pytest.mark.skipif(
    importlib.util.find_spec("cuda") is None,
    reason="cuda-bindings is not installed: pip install -r requirements/dev.txt",
)
def test_the_real_cuda_python_has_every_name_that_is_used():
    real = importlib.import_module("cuda.bindings.runtime")
    double = package_doubles.cuda_python()
    names = [name for name in vars(double) if name.startswith("cuda")]
    assert len(names) > 12
    assert [name for name in names if not hasattr(real, name)] == []
