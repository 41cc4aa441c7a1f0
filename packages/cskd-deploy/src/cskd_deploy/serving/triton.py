"""A model repository of NVIDIA's Triton Inference Server, from what an exported file says about itself.

    OUT/student/config.pbtxt     backend, inputs, outputs, batching, where it runs, and the file's whole manifest
    OUT/student/labels.txt       the name of each label, a line each
    OUT/student/README.md        what a client does before and after the graph
    OUT/student/1/model.onnx     or model.plan, the file itself

No runtime is needed. The fields are those of Triton's `model_config.proto`. `label_filename` is not among them: Triton
takes it for the positions of a vector of class scores, and the graph's labels are class indices already.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cskd_data.files import check_writable, sha256_of_file
from cskd_deploy.backends import backend_name
from cskd_deploy.backends.base import IMAGE_SHAPE, INPUT, Shape, input_shapes, is_input_of, needed_outputs
from cskd_deploy.backends.tensorrt.manifest import read_engine_manifest
from cskd_deploy.backends.tensorrt.shapes import LARGEST_BATCH
from cskd_deploy.errors import DeployError
from cskd_deploy.model.manifest import MANIFEST_KEY, Manifest
from cskd_deploy.model.onnx_file import Tensor, interface_of, read_model
from cskd_deploy.serving.readme import readme

CONFIG, LABELS, README, VERSION = "config.pbtxt", "labels.txt", "README.md", "1"
DEVICES = {None: "KIND_AUTO", "cpu": "KIND_CPU", "cuda": "KIND_GPU"}
# The types of onnx.proto that an exported graph has at its ends, as Triton calls them.
TYPES = {1: "TYPE_FP32", 2: "TYPE_UINT8", 6: "TYPE_INT32", 7: "TYPE_INT64", 10: "TYPE_FP16"}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Served:
    """A model file as a server sees it."""

    backend: str  # Triton's
    file: str  # the name that this backend looks for
    manifest: Manifest
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    most: int | None  # images at a time, where any number or a range of them is taken; 0: one number alone
    least: int = 1  # images of a request


@dataclass(frozen=True)
class Repository:
    """A model in a model repository."""

    folder: Path  # OUT/NAME
    config: str
    files: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {"folder": str(self.folder), "files": [str(path) for path in self.files], "config": self.config}

    def __str__(self) -> str:
        return "\n".join(
            [
                *(str(path) for path in self.files),
                f"serve it: tritonserver --model-repository {self.folder.parent.resolve()}",
            ]
        )


class Enum(str):
    """A name that stands in the text without quotes."""


def write_repository(
    model: Path,
    output: Path,
    name: str | None = None,
    device: str | None = None,
    instances: int = 1,
    max_batch: int | None = None,
) -> Repository:
    """Write a model into a repository, which may hold others.

    Args:
        name: of the model; by default the file's, without what Triton takes for no name.
        device: "cpu" or "cuda"; None leaves it to Triton, which takes a GPU where there is one. An engine needs one.
        instances: of the model, side by side, on each device.
        max_batch: images at a time, of a file that takes any number; by default 8, of an engine its profile's.

    Raises:
        DeployError: the file is none of `cskd-deploy export` or an engine without its manifest, `output` is no model
            repository or has a model of this name, or the file does not take such batches.
    """
    served = _served(model)
    if served.backend == "tensorrt" and device == "cpu":
        raise DeployError(f"{model} is an engine, which runs on a GPU only: leave --device cpu out")
    name = _checked_name(name, model)
    folder = output / name
    batch = _max_batch(served, max_batch, model)
    _check_free(output, folder)
    config = written(_config(served, name, "cuda" if served.backend == "tensorrt" else device, instances, batch))
    texts = {
        CONFIG: config,
        LABELS: "".join(f"{one}\n" for one in served.manifest.classes),
        README: readme(
            name, served.manifest, [one.name for one in served.inputs], sha256_of_file(model), batch, served.least
        ),
    }
    # Beside the repository, then renamed: a server that watches it never sees half a model.
    output.mkdir(parents=True, exist_ok=True)
    mounted = output.stat().st_dev != output.resolve().parent.stat().st_dev
    where = output if mounted else output.resolve().parent
    with tempfile.TemporaryDirectory(dir=where, prefix=f".{output.name}.") as temporary:
        whole = Path(temporary) / name
        (whole / VERSION).mkdir(parents=True)
        for file, text in texts.items():
            (whole / file).write_text(text, encoding="utf-8")
        shutil.copyfile(model, whole / VERSION / served.file)
        whole.rename(folder)
    return Repository(folder, config, (*(folder / file for file in texts), folder / VERSION / served.file))


def _served(model: Path) -> Served:
    natural = backend_name(model)
    if natural == "pytorch":
        raise DeployError(
            f"{model} is a checkpoint, expected an exported file: run `cskd-deploy export --checkpoint {model}` first"
        )
    return _engine(model) if natural == "tensorrt" else _onnx(model)


def _onnx(model: Path) -> Served:
    content, manifest = read_model(model)
    inputs, outputs = interface_of(content)
    there = {one.name: one for one in outputs}
    needed = needed_outputs(manifest)
    unknown = [one for one in (*inputs, *outputs) if one.type not in TYPES]
    if not is_input_of(manifest, {one.name: one.shape for one in inputs}) or unknown or not there.keys() >= {*needed}:
        raise DeployError(
            f"{model} has inputs {_listed(inputs)} and outputs {_listed(outputs)}; its metadata says {INPUT} "
            f"{input_shapes(manifest)[INPUT]} and {', '.join(needed)}. Export it again"
        )
    batch = manifest.graph.batch
    known = [Tensor(name, there[name].type, _completed(name, there[name].shape, batch)) for name in needed]
    most = LARGEST_BATCH if batch is None else 0
    return Served("onnxruntime", "model.onnx", manifest, inputs, tuple(known), most, batch or 1)


def _completed(name: str, shape: Shape, batch: int | None) -> Shape:
    """An output's shape with the sizes that every exported file has, where the graph leaves them open."""
    sizes = list(shape)
    sizes[0] = batch
    if name == "boxes":
        sizes[-1] = 4
    return tuple(sizes)


def _listed(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{one.name} {list(one.shape)}" for one in tensors)


def _engine(model: Path) -> Served:
    if not model.is_file():
        raise DeployError(f"engine {model} does not exist")
    engine = read_engine_manifest(model)
    if engine is None:
        raise DeployError(
            f"engine {model} has no manifest beside it ({model.name}.json), and an engine itself says nothing: copy "
            "that too, or build the engine again"
        )
    if sha256_of_file(model) != engine.sha256:
        raise DeployError(f"{model} is not the engine that its manifest describes (sha256 differs): build it again")
    manifest = engine.model
    types = {INPUT: 2 if manifest.graph.input == "uint8" else 1, IMAGE_SHAPE: 1, "labels": 7}
    inputs = tuple(
        Tensor(name, types[name], tuple(_fixed(low, high) for low, high in zip(one.min, one.max, strict=True)))
        for name, one in engine.inputs.items()
    )
    outputs = tuple(
        Tensor(name, types.get(name, 1), tuple(_fixed(size, size) for size in engine.outputs[name]))
        for name in needed_outputs(manifest)
    )
    images = engine.inputs[INPUT]
    most = images.max[0] if images.min[0] != images.max[0] else 0
    return Served("tensorrt", "model.plan", manifest, inputs, outputs, most, images.min[0])


def _fixed(low: int, high: int) -> int | None:
    return low if low == high and low >= 0 else None


def _checked_name(name: str | None, model: Path) -> str:
    if name is None:
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", model.stem).lstrip(".-") or "model"
    if not _NAME.fullmatch(name):
        raise DeployError(f"--name {name!r} is no name of a model: expected letters, digits, _, . and -")
    return name


def _check_free(output: Path, folder: Path) -> None:
    """Refuse to write over a model, or into a folder that is no model repository."""
    if output.exists() and not output.is_dir():
        raise DeployError(f"{output} is a file: give a folder for the model repository")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DeployError(f"{folder} is there already: give another --name, or take it away")
    others = [one for one in output.iterdir() if one != folder] if output.is_dir() else []
    if others and not any((one / CONFIG).is_file() for one in others):
        raise DeployError(
            f"{output} is not empty and no model repository (no folder in it has a {CONFIG}): give a new folder"
        )
    check_writable(output / f".{folder.name}")


def _max_batch(served: Served, asked: int | None, model: Path) -> int:
    """Triton's `max_batch_size`; 0 where the shapes have the batch in them."""
    if asked is None:
        return served.most or 0
    if not served.most:
        raise DeployError(
            f"{model} takes batches of {served.inputs[0].shape[0]} only: export it with --batch any, or leave "
            "--max-batch out"
        )
    if served.backend == "tensorrt" and asked > served.most:
        raise DeployError(f"{model} takes at most {served.most} images at a time (its profile): change --max-batch")
    if asked < served.least:
        raise DeployError(f"{model} takes at least {served.least} images at a time (its profile): change --max-batch")
    return asked


def _config(served: Served, name: str, device: str | None, instances: int, batch: int) -> dict[str, Any]:
    def tensors(values: Sequence[Tensor]) -> list[dict[str, Any]]:
        shapes = [one.shape[1:] if batch else one.shape for one in values]
        return [
            {
                "name": one.name,
                "data_type": Enum(TYPES[one.type]),
                "dims": [-1 if size is None else size for size in shape],
            }
            for one, shape in zip(values, shapes, strict=True)
        ]

    config: dict[str, Any] = {
        "name": name,
        "backend": served.backend,
        "max_batch_size": batch,
        "input": tensors(served.inputs),
        "output": tensors(served.outputs),
        "instance_group": [{"count": instances, "kind": Enum(DEVICES[device])}],
    }
    if batch > 1:  # the server groups requests whose images have one size
        config["dynamic_batching"] = {}
    manifest = served.manifest.to_metadata()[MANIFEST_KEY]
    config["parameters"] = [{"key": MANIFEST_KEY, "value": {"string_value": manifest}}]
    return config


def written(message: Mapping[str, Any], indent: str = "") -> str:
    """A message in protobuf's text format: a field a line."""
    return "".join(_field(name, value, indent) for name, value in message.items())


def _field(name: str, value: Any, indent: str) -> str:
    if isinstance(value, Mapping):
        return f"{indent}{name} {{\n{written(value, indent + '  ')}{indent}}}\n"
    if isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
        return "".join(_field(name, one, indent) for one in value)
    return f"{indent}{name}: {_scalar(value)}\n"


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[ {', '.join(_scalar(one) for one in value)} ]"
    if isinstance(value, Enum) or not isinstance(value, str):
        return str(value)
    return json.dumps(value)  # ASCII alone: its escapes are those of the text format
