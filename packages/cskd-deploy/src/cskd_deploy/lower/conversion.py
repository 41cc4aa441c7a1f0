"""From an exported FP32 file to one of lower precision, with the same inputs, outputs and metadata."""

from __future__ import annotations

import dataclasses
import importlib
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cskd_data.files import write_atomically
from cskd_deploy.accuracy.against_fp32 import Pictures, check_agreement, compare_with_fp32, feed_of
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.detect.detector import Detector
from cskd_deploy.errors import BackendMissing, CheckFailed, DeployError
from cskd_deploy.lower.calibration import FEW_IMAGES, calibration_feeds, calibration_images, check_worth
from cskd_deploy.lower.calibration_cache import (
    CalibrationCache,
    read_cache,
    sha256_of_graph,
    sha256_of_images,
    write_cache,
)
from cskd_deploy.lower.fp16 import half_layers, to_float16
from cskd_deploy.lower.int8 import Quantizer
from cskd_deploy.lower.layers import WEIGHTED, layers, matching
from cskd_deploy.lower.mixed import with_fp16_around
from cskd_deploy.lower.space_to_depth import BLOCK, with_blocks
from cskd_deploy.measure.environment import versions
from cskd_deploy.model.manifest import SCHEMA, AgreementWithFp32, Manifest
from cskd_deploy.model.onnx_file import check_model_output
from cskd_deploy.outputs import check_output

FP32 = "fp32"
INT8_FP16 = "int8+fp16"  # for TensorRT
PRECISIONS = (FP32, "fp16", "int8", INT8_FP16)
TARGETS = ("cpu", "tensorrt")
# What ONNX Runtime's tools leave in the metadata.
_TOOL_MARKS = ("onnx.infer", "onnx.quant.pre_process")

MORE_IMAGES = ", or calibrate on more images like those it will see"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class CalibrationSettings:
    """The images that INT8 is calibrated on."""

    images: Path | None  # a folder; None: those of `annotations`, or where there are none the ranges of `cache`
    annotations: Path | None = None  # only the images that it lists
    count: int = 64
    cache: Path | None = None  # a file with the ranges, read where it exists and written where it does not

    @property
    def files(self) -> tuple[Path | None, ...]:
        """What is read beside images, as far as it is named."""
        return (self.annotations, self.cache)

    def paths(self, classes: Sequence[str]) -> list[Path]:
        """The image files; none where the ranges are those of `cache`.

        Raises:
            DataError: as `calibration_images`.
        """
        if self.images is None and self.annotations is None:
            return []
        return calibration_images(self.images, self.count, self.annotations, classes)


@dataclass(frozen=True)
class PrecisionResult:
    """A file of lower precision."""

    path: Path
    size_bytes: int
    source_bytes: int  # of the FP32 file
    manifest: Manifest
    layers: int  # with weights
    kept: tuple[str, ...]  # layers in float
    agreement: AgreementWithFp32
    calibration_images: int  # 0: not calibrated
    cache: Path | None = None  # the file that the ranges were read from

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "path": str(self.path),
            "size_bytes": self.size_bytes,
            "fp32_size_bytes": self.source_bytes,
            "layers_with_weights": self.layers,
            "kept_in_float": list(self.kept),
            "calibration_images": self.calibration_images,
            "calibration_cache": None if self.cache is None else str(self.cache),
            "manifest": self.manifest.to_dict(),
        }

    def __str__(self) -> str:
        calibrated = f", calibrated on {self.calibration_images} images" if self.calibration_images else ""
        if self.cache is not None:
            calibrated += f" (ranges of {self.cache})"
        lines = [
            f"{self.path}",
            f"  {self.manifest.family}, {self.manifest.precision}, {self.size_bytes / 1e6:.1f} MB "
            f"(FP32: {self.source_bytes / 1e6:.1f} MB), {self.layers} layers with weights{calibrated}",
            f"  in float: {', '.join(self.kept) or 'no layer'}",
            *(f"  {line}" for line in str(self.agreement).splitlines()),
        ]
        return "\n".join(lines)


def precision_name(precision: str, target: str) -> str:
    """What the manifest calls it: INT8 files differ by their target."""
    return f"{precision}-{target}" if precision == "int8" else precision


def convert_to_fp16(
    source: Path,
    output: Path,
    keep_float: Collection[str],
    progress: Progress,
    images: CalibrationSettings | None = None,
) -> PrecisionResult:
    """Write the FP16 form of an exported FP32 file.

    Args:
        images: to compare the two on; random images without.
        keep_float: layers that stay in float32: names, modules or globs.
        progress: called with a line for each step.

    Raises:
        DeployError: the source is no FP32 file of `cskd-deploy export`, a name means no layer, or `output` cannot be
            written.
        BackendMissing: onnx or onnxruntime is not installed.
        CheckFailed: weights or results are beyond the range of FP16, or the two files agree too little; no file is
            written.
    """
    check_model_output(output, [source, *(images.files if images else ())])
    with _Source(source) as known:
        kept = matching(known.layers, keep_float)
        pictures = known.pictures(images)
        progress("converting to FP16")
        model = to_float16(known.model, kept)
        _check_range(model, pictures)
        return known.finish(model, output, "fp16", kept, pictures, progress)


def convert_to_int8(
    source: Path,
    output: Path,
    target: str,
    calibration: CalibrationSettings,
    keep_float: Collection[str],
    progress: Progress,
    warn: Progress,
    counted: Callable[[int, int], None] = lambda done, total: None,
    choose: Callable[[Quantizer, list[str]], Sequence[str]] | None = None,
    half: bool = False,
) -> PrecisionResult:
    """Write the INT8 form of an exported FP32 file.

    Args:
        target: one of `TARGETS`.
        keep_float: layers that stay in float: names, modules or globs. With `half` float is FP16.
        progress: called with a line for each step.
        warn: called with what makes the file worse than it could be.
        counted: called with (calibration images read, all of them).
        choose: given the calibrated network and the layers of `keep_float`, gives those to keep (`lower.search`).
        half: FP16 around INT8, for the target tensorrt.

    Raises:
        DeployError, DataError: as `convert_to_fp16`; also when images, annotations or the calibration cache cannot be
            used, or no layer is left.
        BackendMissing: as `convert_to_fp16`; also when onnxruntime is too old.
        CheckFailed: as `convert_to_fp16`; also what `choose` raises.
    """
    check_model_output(output, [source, *calibration.files])
    with _Source(source) as known, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        matching(known.layers, keep_float)  # before the images are read
        pictures = known.pictures(calibration)
        stored = _stored(calibration, pictures)
        if stored is None:
            check_worth(pictures.paths)
            if len(pictures.paths) < FEW_IMAGES:
                warn(f"{len(pictures.paths)} calibration images are few: ranges are sound from {FEW_IMAGES} on")
        feeds = calibration_feeds(known.detector, pictures.paths, known.inputs, counted)
        quantizer = Quantizer(source, target, feeds, folder, None if stored is None else stored.ranges)
        kept = matching(quantizer.layers, keep_float)
        quantizer.check_left(kept)
        if stored is None:
            progress(f"calibrating INT8 for {target} on {len(pictures.paths)} images")
            _store(calibration.cache, known.model, quantizer, pictures.paths)
        else:
            assert calibration.cache is not None
            stored.check(calibration.cache, sha256_of_graph(known.model), quantizer.method, quantizer.tensors)
            progress(f"INT8 for {target} with the ranges of {calibration.cache} ({stored.images} images)")
        if choose is not None:
            kept = list(choose(quantizer, kept))
        model, precision = quantizer.quantise(kept), precision_name("int8", target)
        if target == "cpu" and known.detector.manifest.preprocessing.pad_divisor % BLOCK == 0:
            with_blocks(model)
        if half:
            model, precision = with_fp16_around(model, quantizer.sums, quantizer.calibrated()), INT8_FP16
            _check_range(model, pictures, "Give --precision int8: what is not INT8 is FP32 then")
        images = len(pictures.paths) if stored is None else stored.images
        result = known.finish(model, output, precision, kept, pictures, progress, images)
        return result if stored is None else dataclasses.replace(result, cache=calibration.cache)


def _stored(calibration: CalibrationSettings, pictures: Pictures) -> CalibrationCache | None:
    """What an earlier calibration has found, of these images where there are any.

    Raises:
        DeployError: the file cannot be used, is of other images, or there is none and no images either.
    """
    path = calibration.cache
    if path is not None and path.exists():
        cache = read_cache(path)
        if pictures.paths:
            cache.check_images(path, pictures.paths)
        return cache
    if not pictures.paths:
        raise DeployError(f"{path} does not exist: give the images to calibrate on, too (--calibration-images)")
    if path is not None:
        check_output(path, (), what="calibration cache")
    return None


def _store(path: Path | None, model: Any, quantizer: Quantizer, images: Sequence[Path]) -> None:
    """Calibrate, and keep what is found where that is wanted."""
    ranges = dict(quantizer.calibrated())
    if path is not None:
        sha256 = sha256_of_images(images)
        write_cache(path, CalibrationCache(sha256_of_graph(model), quantizer.method, len(images), sha256, ranges))


class _Source:
    """The FP32 file, loaded in ONNX Runtime and as a graph."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._backend = OnnxRuntimeBackend(path)

    def __enter__(self) -> _Source:
        try:
            onnx = importlib.import_module("onnx")
        except ImportError as error:
            raise BackendMissing(
                f"another precision than FP32 needs onnx, which cannot be imported ({error}). "
                "Install: `pip install onnx`"
            ) from error
        self._backend.load()
        self.detector = Detector(self._backend)
        self.model = onnx.load(str(self.path), load_external_data=False)
        precision = self.detector.manifest.precision
        if precision != FP32 or any(node.op_type == "QuantizeLinear" for node in self.model.graph.node):
            raise DeployError(
                f"{self.path} has been converted before (its precision is {precision}): what that rounded is lost. "
                "Give the FP32 file, or the checkpoint"
            )
        self.layers = list(layers(self.model.graph))
        self.inputs = [value.name for value in self.model.graph.input]
        return self

    def __exit__(self, *_: object) -> None:
        self._backend.close()

    def pictures(self, images: CalibrationSettings | None) -> Pictures:
        """Images to compare on."""
        manifest = self.detector.manifest
        paths = [] if images is None else images.paths(manifest.classes)
        return Pictures(paths, manifest.preprocessing.input_size)

    def finish(
        self,
        model: Any,
        output: Path,
        precision: str,
        kept: Sequence[str],
        pictures: Pictures,
        progress: Progress,
        images: int = 0,
    ) -> PrecisionResult:
        """Write a converted model with the source's metadata, after it has been compared with the source."""
        manifest = dataclasses.replace(
            self.detector.manifest,
            precision=precision,
            opset=next(entry.version for entry in model.opset_import if not entry.domain),
            versions={
                **self.detector.manifest.versions,
                **versions(("cskd-deploy", "onnx", "onnxruntime", "onnxruntime-gpu")),
            },
            schema=SCHEMA,
        )
        model = _tidied(model, self.model, manifest)
        progress(f"comparing with FP32 on {pictures}")
        agreement = self._compared(model.SerializeToString(), pictures)
        way_out = (
            f"Leave layers in float (--keep-float; `cskd-deploy search` finds which){MORE_IMAGES if images else ''}"
        )
        check_agreement(agreement, precision, precision, way_out)
        manifest = dataclasses.replace(manifest, agreement=agreement)
        content: bytes = _tidied(model, self.model, manifest).SerializeToString()
        write_atomically(output, lambda file: file.write(content))
        return PrecisionResult(
            path=output,
            size_bytes=len(content),
            source_bytes=self.path.stat().st_size,
            manifest=manifest,
            layers=sum(nodes[0].op_type in WEIGHTED for nodes in layers(self.model.graph).values()),
            kept=tuple(kept),
            agreement=agreement,
            calibration_images=images,
        )

    def _compared(self, content: bytes, pictures: Pictures) -> AgreementWithFp32:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "converted.onnx"
            path.write_bytes(content)
            with OnnxRuntimeBackend(path) as backend:
                return compare_with_fp32(self.detector, Detector(backend), pictures)


def _tidied(model: Any, source: Any, manifest: Manifest) -> Any:
    """The model with the source's metadata, true types of all its tensors, and no marks of the tools that made it."""
    import onnx

    used = {node.domain for node in model.graph.node}
    opsets = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    del model.graph.value_info[:]
    metadata = {entry.key: entry.value for entry in source.metadata_props if entry.key not in _TOOL_MARKS}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {**metadata, **manifest.to_metadata()})
    model.producer_name, model.producer_version = source.producer_name, source.producer_version
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    return model


def _check_range(model: Any, pictures: Pictures, way_out: str | None = None) -> None:
    """Run a model with FP16 on images and look at all that its layers give.

    The detections may look sound where a layer does not: a Relu makes 0 of what is not a number.

    Args:
        way_out: what to do about it; by default to keep the layer in float.

    Raises:
        CheckFailed: a layer gives numbers that are not finite.
    """
    import onnx

    halves = half_layers(model)
    names = [name for group in halves.values() for name in group]
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, None) for name in names
    )
    broken: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shown.onnx"
        onnx.save(shown, str(path))
        with OnnxRuntimeBackend(path) as backend:
            detector = Detector(backend)
            inputs = [value.name for value in backend.session.get_inputs()]
            for image in pictures:
                feed = feed_of(detector, image)
                values = backend.session.run(names, {name: feed[name] for name in inputs})
                broken.update(name for name, array in zip(names, values, strict=True) if not np.isfinite(array).all())
    if broken:
        layer = next(layer for layer, group in halves.items() if broken.intersection(group))
        raise CheckFailed(
            f"{layer} gives values beyond the range of FP16, seen on {pictures}. No file was written. "
            + (way_out or f"Keep it in float: --keep-float {layer}")
        )
