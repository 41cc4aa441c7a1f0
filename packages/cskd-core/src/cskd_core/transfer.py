"""Numbers that the host knows, brought to a device without a wait for what it is doing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def to_device(numbers: float | Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers, one or nested, as a tensor on `device`; the host does not wait for the device."""
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)
