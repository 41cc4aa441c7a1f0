"""Checkpoints as safetensors: weights alone, which no reader has to trust, and what is said of them as JSON.

Format: https://github.com/huggingface/safetensors. The metadata of cskd-train stands under one key of the file's own,
so that such a file is read wherever a checkpoint is; one of another program is weights without a config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cskd_data.files import write_atomically
from cskd_train.errors import TrainError
from cskd_train.files.json_form import config_from_json, config_to_json

SUFFIX = ".safetensors"
KEY = "cskd"


def is_tensors(path: Path) -> bool:
    """Whether a file is one by its name."""
    return path.suffix.lower() == SUFFIX


def save_tensors(path: Path, weights: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write weights and the `meta` of a checkpoint, atomically.

    Raises:
        TrainError: `meta` holds what JSON has no form for.
        DataError: the file cannot be written.
    """
    from safetensors.torch import save

    said = {**meta, "config": config_to_json(meta["config"])} if "config" in meta else dict(meta)
    try:
        text = json.dumps(said)
    except (TypeError, ValueError) as error:
        raise TrainError(f"{path}: what the checkpoint says of itself cannot be written as JSON: {error}") from error
    # Each tensor on its own: safetensors refuses those that share memory, as tied weights do.
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    content = save(plain, metadata={"format": "pt", KEY: text})
    write_atomically(path, lambda file: file.write(content))


def read_tensors(path: Path) -> dict[str, Any]:
    """The contents of such a file in the form of a checkpoint's: `state_dict`, and `meta` where it is cskd-train's.

    Raises:
        TrainError: it is damaged, or no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
    except (SafetensorError, OSError) as error:
        raise TrainError(
            f"checkpoint {path}: is no safetensors file, or is damaged ({error}). Copy or download it again"
        ) from error
    contents: dict[str, Any] = {"state_dict": weights}
    if KEY in metadata:
        try:
            meta = json.loads(metadata[KEY])
            contents["meta"] = {**meta, "config": config_from_json(meta.get("config", {}))}
        except (ValueError, TypeError, AttributeError) as error:
            raise TrainError(f"checkpoint {path}: what it says of itself is not readable: {error}") from error
    return contents
