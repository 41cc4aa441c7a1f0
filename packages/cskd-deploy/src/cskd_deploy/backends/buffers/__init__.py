"""GPU memory, a stream and events for TensorRT, by one of three packages, each imported when it is asked for."""

from __future__ import annotations

from cskd_deploy.backends import BUFFERS
from cskd_deploy.backends.buffers.base import Buffers
from cskd_deploy.errors import BackendMissing, DeployError

INSTALL = {
    "cuda-python": "`pip install cuda-python` (its major version is the driver's CUDA version, 12 or 13)",
    "torch": "a build of PyTorch for CUDA",
    "pycuda": "`pip install pycuda` (built from source: needs the CUDA toolkit and a C++ compiler)",
}


def open_buffers(name: str | None = None) -> Buffers:
    """The buffers of a package; of the first usable one of `BUFFERS` when no name is given.

    Raises:
        BackendMissing: the package is not installed, or sees no GPU.
        DeployError: there is no such package.
    """
    if name is not None:
        return _open(name)
    missing = []
    for candidate in BUFFERS:
        try:
            return _open(candidate)
        except BackendMissing as error:
            missing.append(str(error))
    raise BackendMissing(
        "TensorRT needs a package that holds its GPU memory, and none can be used. " + "; ".join(missing)
    )


def _open(name: str) -> Buffers:
    if name not in BUFFERS:
        raise DeployError(f"there are no buffers {name!r}, expected one of {', '.join(BUFFERS)}")
    try:
        if name == "cuda-python":
            from cskd_deploy.backends.buffers.cuda_python import CudaPythonBuffers

            return CudaPythonBuffers()
        if name == "torch":
            from cskd_deploy.backends.buffers.torch import TorchBuffers

            return TorchBuffers()
        from cskd_deploy.backends.buffers.pycuda import PycudaBuffers

        return PycudaBuffers()
    except Exception as error:  # missing, broken, or of another CUDA than the driver's
        raise BackendMissing(f"{name} cannot be used ({error}): install {INSTALL[name]}") from error
