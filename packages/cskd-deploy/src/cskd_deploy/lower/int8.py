"""INT8 in QDQ form: quantised weights and activations between QuantizeLinear and DequantizeLinear, by ONNX Runtime.

Weights are quantised per output channel, activations per tensor, with the range that fits their values on the
calibration images best (`Histogram.fitted`).
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cskd_deploy.backends.onnxruntime import import_onnxruntime
from cskd_deploy.errors import BackendMissing, DeployError
from cskd_deploy.lower.layers import layers
from cskd_deploy.lower.mixed import Ranges, residual_sums
from cskd_deploy.measure.environment import usable_cores

_BINS = 4096  # of a histogram; half of them for values below zero
_STEPS = 255
_SHARES = np.linspace(1.0, 0.2, 41)  # parts of the whole range that are tried


# How ranges are found (`Histogram.fitted`), by whether they are symmetric.
METHODS = {False: f"least squares of {_BINS} bins", True: f"least squares of {_BINS} bins, symmetric"}


@dataclass(frozen=True)
class Preset:
    """What a target wants to be quantised, and how."""

    activations: str  # names of `onnxruntime.quantization.QuantType`
    operators: tuple[str, ...]
    seven_bits: bool  # weights from -64 to 64
    options: dict[str, Any]


PRESETS = {
    # ONNX Runtime's processor kernels are fastest with unsigned activations, and where every operator between two
    # convolutions is quantised too. A Relu that follows one becomes the lower end of its output's range. Weights have
    # 7 bits: on x86 without VNNI the kernels add two products in 16 bits, which 255 * 127 * 2 exceeds and 255 * 64 * 2
    # does not. So a file gives the same numbers on every processor.
    "cpu": Preset(
        activations="QUInt8",
        operators=("Conv", "Gemm", "Add", "MaxPool", "Relu"),
        seven_bits=True,
        options={"ActivationSymmetric": False},
    ),
    # TensorRT takes symmetric ranges only, and no int32 bias. It quantises the inputs of layers with weights and fuses
    # what follows them (Relu, the sum of a residual block): a quantised output would keep it from that.
    "tensorrt": Preset(
        activations="QInt8",
        operators=("Conv", "Gemm"),
        seven_bits=False,
        options={
            "ActivationSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm"],
        },
    ),
}


class Quantizer:
    """A float network that is calibrated once and can then be quantised as often as wanted.

    Args:
        source: the FP32 file.
        target: one of `PRESETS`.
        feeds: of the calibration images.
        folder: where intermediate files may lie for as long as this object is used.
        ranges: what an earlier calibration found; `feeds` are not read then.

    Raises:
        BackendMissing: ONNX Runtime is too old, or its tools cannot be imported.
        DeployError: a calibration image cannot be read.
    """

    def __init__(
        self,
        source: Path,
        target: str,
        feeds: Iterable[dict[str, np.ndarray]],
        folder: Path,
        ranges: Ranges | None = None,
    ) -> None:
        import onnx

        self._quantization, prepare = _tools()
        self._preset = PRESETS[target]
        self._feeds = feeds
        self._ranges = ranges
        self._prepared, self._ranges_file, self._quantised = (
            folder / name for name in ("prepared.onnx", "ranges.json", "quantised.onnx")
        )
        with _quiet():
            # ONNX's own inference finds the types of all tensors; the symbolic one gives up on dynamic sizes.
            prepare(str(source), str(self._prepared), skip_symbolic_shape=True)
        graph = onnx.load(str(self._prepared)).graph
        self._nodes = self._quantisable(graph)
        self.layers = [name for name, nodes in self._nodes.items() if nodes[0].op_type != "Relu"]
        symmetric = self._preset.options["ActivationSymmetric"]
        self.sums = residual_sums(graph) if symmetric else []
        self.method = METHODS[symmetric]
        constants = {tensor.name for tensor in graph.initializer}
        nodes = [node for group in self._nodes.values() for node in group]
        read = [name for node in nodes for name in (*node.input, *node.output) if name not in constants]
        self.tensors = list(dict.fromkeys([*read, *(one.residual for one in self.sums)]))  # that need a range

    def quantise(self, keep: Collection[str]) -> Any:
        """The `onnx.ModelProto` in INT8. The first call calibrates.

        Args:
            keep: layers that stay in float, by the names of `layers`. What a quantised layer before them gives is
                rounded nevertheless.

        Raises:
            DeployError: nothing would be quantised.
        """
        import onnx

        nodes = [node.name for name, group in self._nodes.items() if name not in keep for node in group]
        self.check_left(keep)
        self._write_ranges(self.calibrated())
        kinds = self._quantization.QuantType
        with _quiet():
            self._quantization.quantize_static(
                str(self._prepared),
                str(self._quantised),
                None,
                calibration_cache_path=self._ranges_file,
                calibrate_method=self._quantization.CalibrationMethod.MinMax,
                quant_format=self._quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(self._preset.operators),
                nodes_to_quantize=nodes,
                per_channel=True,
                reduce_range=self._preset.seven_bits,
                activation_type=kinds[self._preset.activations],
                weight_type=kinds.QInt8,
                extra_options={"WeightSymmetric": True, **self._preset.options},
            )
        return onnx.load(str(self._quantised))

    def check_left(self, keep: Collection[str]) -> None:
        """Refuse to keep every layer in float.

        Raises:
            DeployError: nothing would be quantised.
        """
        if not set(self.layers).difference(keep):
            raise DeployError("no layer is left to quantise: all of them are kept in float")

    def calibrated(self) -> Ranges:
        """The range of each of `tensors`; the first call runs the network on the images, where none were given.

        Raises:
            DeployError: an activation is not finite.
        """
        if self._ranges is None:
            self._ranges = self._calibrate()
        return self._ranges

    def _write_ranges(self, ranges: Ranges) -> None:
        """To where `quantize_static` takes them."""
        tools = self._quantization.calibrate
        ends = {name: tuple(np.array([end], dtype=np.float32) for end in ranges[name]) for name in self.tensors}
        method = self._quantization.CalibrationMethod.MinMax  # what the file calls a plain range
        tools.save_tensors_data(tools.TensorsData(method, ends), self._ranges_file)

    def _calibrate(self) -> Ranges:
        import onnx

        model = onnx.load(str(self._prepared))
        inputs = {value.name for value in model.graph.input}
        shown = [name for name in self.tensors if name not in inputs]
        given = {value.name for value in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in shown if name not in given)
        options = import_onnxruntime().SessionOptions()
        options.intra_op_num_threads = usable_cores()
        options.log_severity_level = 4
        session = import_onnxruntime().InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        found = {name: Histogram() for name in self.tensors}
        for feed in self._feeds:
            values = {**feed, **dict(zip(shown, session.run(shown, feed), strict=True))}
            for name, histogram in found.items():
                try:
                    histogram.add(values[name])
                except ValueError as error:
                    raise DeployError(f"the FP32 file gives values that are {error} on a calibration image") from error
        symmetric = self._preset.options["ActivationSymmetric"]
        return {name: histogram.fitted(symmetric) for name, histogram in found.items()}

    def _quantisable(self, graph: Any) -> dict[str, list[Any]]:
        constants = {tensor.name for tensor in graph.initializer}
        return {
            name: nodes
            for name, nodes in layers(graph).items()
            if nodes[0].op_type in self._preset.operators
            # The sum of a map and a constant is a part of a normalisation.
            and not (nodes[0].op_type == "Add" and constants.intersection(nodes[0].input))
        }


def _tools() -> tuple[Any, Any]:
    """The module `onnxruntime.quantization`, and `quant_pre_process`."""
    try:
        tools = importlib.import_module("onnxruntime.quantization")
        prepare = importlib.import_module("onnxruntime.quantization.shape_inference").quant_pre_process
    except ImportError as error:
        raise BackendMissing(
            f"INT8 needs onnxruntime and onnx, which cannot be imported ({error}). "
            "Install: `pip install onnxruntime onnx`"
        ) from error
    if "calibration_cache_path" not in inspect.signature(tools.quantize_static).parameters:
        raise BackendMissing(
            "INT8 needs onnxruntime 1.27 or newer, for Python 3.11 or newer. "
            "Install: `pip install --upgrade onnxruntime`"
        )
    return tools, prepare


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ONNX Runtime's tools from writing to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class Histogram:
    """How often an activation takes which values, over images that come one by one.

    Bins have the width of a power of two, so that two of them become one where a value lies beyond the last.
    """

    def __init__(self) -> None:
        self.lowest = self.highest = 0.0  # INT8 has a zero in any case
        self._width = 0.0
        self._counts = np.zeros(_BINS, dtype=np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count the values of an image; an array of no values is none.

        Raises:
            ValueError: some are not finite.
        """
        if not values.size:
            return
        flat = values.ravel()
        lowest, highest = float(flat.min()), float(flat.max())
        if not np.isfinite([lowest, highest]).all():
            raise ValueError("not finite")
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        self._widen(max(-self.lowest, self.highest))
        if self._width:
            places = np.floor(flat / np.float32(self._width)).astype(np.int32) + _BINS // 2
            self._counts += np.bincount(places, minlength=_BINS)

    def _widen(self, largest: float) -> None:
        if not largest:
            return
        if not self._width:
            self._width = 2.0 ** np.ceil(np.log2(largest / (_BINS // 2)))
        while largest >= self._width * (_BINS // 2):
            half = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts[:] = 0
            self._counts[_BINS // 4 : 3 * _BINS // 4] = half
            self._width *= 2

    def fitted(self, symmetric: bool) -> tuple[float, float]:
        """The least and the largest value of the range that costs the least when rounded to 256 steps.

        The values inside a range are off by up to half a step, those outside by how far they lie outside; it is the
        sum of squares that counts (Nagel et al. 2021, "A White Paper on Neural Network Quantization", 3.1,
        https://arxiv.org/abs/2106.08295).

        Args:
            symmetric: the range is as wide below zero as above.
        """
        seen = np.flatnonzero(self._counts)
        centres, counts = (seen - _BINS // 2 + 0.5) * self._width, self._counts[seen]

        def cost(low: float, high: float) -> float:
            step = (high - low) / _STEPS
            if not step > 0:
                return float(counts @ centres**2)
            rounded = np.rint(centres.clip(low, high) / step) * step
            return float(counts @ (rounded - centres) ** 2)

        if symmetric:
            largest = max(-self.lowest, self.highest)
            largest = _best(lambda share: cost(-share * largest, share * largest)) * largest
            return -largest, largest
        low, high = self.lowest, self.highest
        for _ in range(2):  # each end with the other where it is by now
            high = self.highest * _best(lambda share: cost(low, self.highest * share))  # noqa: B023
            low = self.lowest * _best(lambda share: cost(self.lowest * share, high))  # noqa: B023
        return low, high


def _best(cost: Callable[[float], float]) -> float:
    return float(min(_SHARES, key=cost))
