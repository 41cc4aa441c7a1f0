"""mmdet 2.28 and mmcv 1.7 on today's torch: one function a mend, each with its reason and the versions it concerns."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import torch

from cskd_train.mm.ops import torchvision_loads


@functools.cache
def apply() -> None:
    """Apply every mend, once. mmcv's operators (`ops.install`) have to be there before."""
    import_runner_without_torchvision()
    quiet_initialisation()
    restore_numpy_aliases()
    give_scatter_cuda_streams()
    restore_replicated_tensor_flag()
    unpack_data_containers_in_ddp_on_cpu()
    read_local_rank_from_environment()
    build_ddp_on_cpu()
    keep_float32_on_cpu()


def import_runner_without_torchvision() -> None:
    """`mmcv.runner` imports torchvision without a condition, for the addresses of its pretrained weights.

    Concerns every torch for which torchvision has no build: there it is missing, or it raises "operator
    torchvision::nms does not exist". mmcv keeps a stand-in that leads it to its own list of addresses, so that
    `torchvision://resnet18` still loads. Nobody else sees the stand-in: it leaves `sys.modules` at once.
    """
    if torchvision_loads():
        importlib.import_module("mmcv.runner")
        return
    stand_in = ModuleType("torchvision")
    stand_in.__spec__ = ModuleSpec("torchvision", loader=None)
    # mmcv goes by the version: 0.13 is the one where it reads its own list and then looks into `models` for more.
    stand_in.__dict__.update(__version__="0.13.0", models=ModuleType("torchvision.models"))
    sys.modules["torchvision"] = stand_in
    try:
        importlib.import_module("mmcv.runner")
    finally:
        del sys.modules["torchvision"]


def quiet_initialisation() -> None:
    """`init_weights` reports every parameter, hundreds of lines, to a logger "mmcv" that it sets up to print.

    Concerns every mmcv 1.x. mmcv sets a logger up once only; here it is done first, for warnings and errors.
    """
    from mmcv.utils import get_logger

    get_logger("mmcv", log_level=logging.WARNING)


def restore_numpy_aliases() -> None:
    """numpy 1.24 removed `np.int` and `np.float`, which corners of mmdet 2.28 and mmcv 1.7 still name."""
    for name, meaning in {"int": int, "float": float}.items():
        if name not in np.__dict__:
            setattr(np, name, meaning)


def give_scatter_cuda_streams() -> None:
    """mmcv's scatter asks torch for a copy stream by the device's number; torch >= 2.1 wants a `torch.device`.

    Concerns every training step on a GPU.
    """
    from mmcv.parallel import _functions

    _functions._get_stream = functools.cache(torch.cuda.Stream)


def restore_replicated_tensor_flag() -> None:
    """MMDistributedDataParallel reads `_use_replicated_tensor_module`, which torch 2.1 took out of its base class."""
    from mmcv.parallel import MMDistributedDataParallel

    MMDistributedDataParallel._use_replicated_tensor_module = False


def unpack_data_containers_in_ddp_on_cpu() -> None:
    """MMDistributedDataParallel unpacks mmcv's DataContainers only when it has `device_ids`, so never on the CPU.

    Concerns every torch. MMDataParallel does it right, by scattering to device -1; so do these.
    """
    from mmcv.parallel import MMDistributedDataParallel, scatter_kwargs

    def unpacking(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def step(self: Any, *inputs: Any, **kwargs: Any) -> Any:
            if not self.device_ids:
                (inputs,), (kwargs,) = scatter_kwargs(inputs, kwargs, [-1], dim=self.dim)
            return method(self, *inputs, **kwargs)

        return step

    for name in ("train_step", "val_step", "_run_ddp_forward"):
        method = getattr(MMDistributedDataParallel, name)
        setattr(MMDistributedDataParallel, name, unpacking(method))


def read_local_rank_from_environment() -> None:
    """`init_dist('pytorch')` guesses the GPU from the global rank, and divides by zero where there is no GPU.

    Concerns every torch. torchrun states the local rank in LOCAL_RANK; without a GPU the process group is gloo's,
    whatever the config's `dist_params` say, since nccl serves GPUs only.
    """
    from mmcv.runner import dist_utils

    def init_dist_pytorch(backend: str, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            local_rank = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
            torch.cuda.set_device(local_rank % torch.cuda.device_count())
        else:
            backend = "gloo"
        torch.distributed.init_process_group(backend=backend, **kwargs)

    dist_utils._init_dist_pytorch = init_dist_pytorch


def build_ddp_on_cpu() -> None:
    """mmdet's `build_ddp` refuses device 'cpu'. Concerns every torch."""
    from mmcv.parallel import MMDistributedDataParallel
    from mmdet import utils

    on_accelerator = utils.build_ddp

    @functools.wraps(on_accelerator)
    def build_ddp(model: torch.nn.Module, device: str = "cuda", *args: Any, **kwargs: Any) -> torch.nn.Module:
        if device != "cpu":
            return on_accelerator(model, device, *args, **kwargs)
        wrapped: torch.nn.Module = MMDistributedDataParallel(model, *args, **{**kwargs, "device_ids": None})
        return wrapped

    utils.build_ddp = utils.util_distribution.build_ddp = build_ddp


def keep_float32_on_cpu() -> None:
    """mmcv's mixed precision casts to float16 and enters CUDA's autocast on the CPU too, where it is slow or fails.

    Concerns every torch. Tensors on the CPU keep their float32 here, and without a GPU the autocast is off.
    """
    from mmcv.runner import fp16_utils

    cast = fp16_utils.cast_tensor_type

    @functools.wraps(cast)
    def cast_tensor_type(inputs: Any, src_type: torch.dtype, dst_type: torch.dtype) -> Any:
        if isinstance(inputs, torch.Tensor) and inputs.device.type == "cpu" and dst_type == torch.half:
            return inputs
        return cast(inputs, src_type, dst_type)

    def autocast(enabled: bool = True) -> torch.autocast:
        return torch.autocast("cuda", enabled=enabled and torch.cuda.is_available())

    fp16_utils.cast_tensor_type = cast_tensor_type
    fp16_utils.autocast = autocast
