"""A `tensorrt` module that is none: it has the names of TensorRT 10 or 11 that are used, records what is called, and
runs an "engine" with ONNX Runtime when the stream gets to it.

A name that the version has not is an AttributeError here as there. Base classes that are not initialised, tensors
without an address, and a stream that is not the buffers' fail.
"""

from __future__ import annotations

import enum
import json
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from .gpu_double import STREAM, GpuDouble

LAYERS = (("conv1 + relu", "CaskConvolution"), ("/TopK", "TopK"))  # that its engines claim to have
HEADER = b"engine of a double\n"
DTYPES = {"tensor(float)": "FLOAT", "tensor(int64)": "INT64", "tensor(uint8)": "UINT8", "tensor(float16)": "HALF"}


class Calls(list[tuple[Any, ...]]):
    """What was called, in order."""

    def names(self) -> list[str]:
        return [call[0] for call in self]

    def of(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of each call of this name."""
        return [call[1:] for call in self if call[0] == name]


def make_tensorrt(
    version: str = "10.13.0.35",
    gpu: GpuDouble | None = None,
    data_dependent: tuple[str, ...] = (),
    refuse_parse: bool = False,
    refuse_build: bool = False,
    refuse_cache: bool = False,
    nms_boxes: tuple[int, ...] = (),
) -> Any:
    """The module. `calls` are its own, `gpu` is where its engines run.

    Args:
        data_dependent: outputs whose shapes it claims to learn only while it runs.
        refuse_parse: the parser finds an unknown operator.
        refuse_build: the builder logs an error and returns nothing.
        refuse_cache: a timing cache that is not empty does not fit.
        nms_boxes: how many boxes each NMS of the graph chooses among; -1 where that depends on the input.
    """
    trt: Any = ModuleType("tensorrt")
    trt.__version__ = version
    trt.calls = calls = Calls()
    trt.gpu = gpu = gpu or GpuDouble()
    eleven = int(version.split(".")[0]) >= 11

    def record(*call: Any) -> None:
        calls.append(call)

    class Initialised:
        """Python subclasses must call the base's `__init__`."""

        def __init__(self) -> None:
            self.initialised = True

    class ILogger(Initialised):
        Severity = enum.IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)

    class IProgressMonitor(Initialised):
        pass

    class IOutputAllocator(Initialised):
        pass

    class IProfiler(Initialised):
        pass

    trt.ILogger, trt.IProgressMonitor, trt.IOutputAllocator = ILogger, IProgressMonitor, IOutputAllocator
    trt.IProfiler = IProfiler
    trt.LayerInformationFormat = enum.IntEnum("LayerInformationFormat", "ONELINE JSON", start=0)
    trt.ProfilingVerbosity = enum.IntEnum("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED", start=0)
    flags = "STRONGLY_TYPED" if eleven else "EXPLICIT_BATCH STRONGLY_TYPED"
    trt.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", flags, start=0)
    trt.BuilderFlag = enum.IntEnum("BuilderFlag", "TF32 VERSION_COMPATIBLE" + ("" if eleven else " FP16 INT8"), start=0)
    levels = "NONE AMPERE_PLUS" + (" SAME_COMPUTE_CAPABILITY" if eleven else "")
    trt.HardwareCompatibilityLevel = enum.IntEnum("HardwareCompatibilityLevel", levels, start=0)
    trt.MemoryPoolType = enum.IntEnum("MemoryPoolType", "WORKSPACE DLA_MANAGED_SRAM", start=0)
    trt.TensorIOMode = enum.IntEnum("TensorIOMode", "NONE INPUT OUTPUT", start=0)
    trt.TensorLocation = enum.IntEnum("TensorLocation", "DEVICE HOST", start=0)
    trt.DataType = enum.IntEnum("DataType", "FLOAT HALF INT8 INT32 UINT8 INT64", start=0)
    numpy_types = (np.float32, np.float16, np.int8, np.int32, np.uint8, np.int64)
    trt.nptype = lambda kind: numpy_types[kind]
    trt.init_libnvinfer_plugins = lambda log, namespace: record("init_libnvinfer_plugins", namespace)

    kinds = "CONVOLUTION NMS" if eleven else "CONVOLUTION TOPK NMS"  # the numbers are not the same in all versions
    trt.LayerType = enum.IntEnum("LayerType", kinds, start=0)

    class Tensor:
        def __init__(self, name: str, shape: tuple[int, ...]) -> None:
            self.name, self.shape = name, shape

    class Network:
        def __init__(self) -> None:
            self.content = b""
            self._inputs: list[Tensor] = []
            self._outputs: list[Tensor] = []

        def fill(self, content: bytes) -> None:
            session = session_of(content)
            self.content = content
            self._inputs = [Tensor(value.name, dimensions(value.shape)) for value in session.get_inputs()]
            self._outputs = [Tensor(value.name, dimensions(value.shape)) for value in session.get_outputs()]

        num_inputs = property(lambda self: len(self._inputs))
        num_layers = property(lambda self: len(nms_boxes) + 1)

        def get_layer(self, index: int) -> Any:
            if index == 0:
                return SimpleNamespace(type=trt.LayerType.CONVOLUTION)
            boxes = Tensor("boxes", (1, nms_boxes[index - 1], 4))
            return SimpleNamespace(
                type=trt.LayerType.NMS, name=f"/Select_{index}", get_input=lambda place: (boxes,)[place]
            )

        num_outputs = property(lambda self: len(self._outputs))

        def get_input(self, place: int) -> Tensor:
            return self._inputs[place]

        def get_output(self, place: int) -> Tensor:
            return self._outputs[place]

    class ParserError:
        node = staticmethod(lambda: 7)
        node_name = staticmethod(lambda: "/roi/Align")
        node_operator = staticmethod(lambda: "RoiAlign")
        desc = staticmethod(lambda: "no importer for it")

    class OnnxParser:
        def __init__(self, network: Network, log: Any) -> None:
            assert log.initialised
            self._network = network
            self.num_errors = 1 if refuse_parse else 0

        def parse(self, content: bytes) -> bool:
            record("parse")
            if not refuse_parse:
                self._network.fill(content)
            return not refuse_parse

        def get_error(self, place: int) -> ParserError:
            return ParserError()

    class TimingCache:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def serialize(self) -> bytes:
            return self.content + b"+timings"

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, list[tuple[int, ...]]] = {}

        def set_shape(self, name: str, *three: tuple[int, ...]) -> None:
            record("set_shape", name, *three)
            self.shapes[name] = list(three)

    class Config:
        hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
        progress_monitor: Any = None
        builder_optimization_level = 3
        profiling_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY

        def __init__(self) -> None:
            self.profiles: list[Profile] = []
            self.flags: set[int] = set()
            self._cache: TimingCache | None = None

        def set_memory_pool_limit(self, pool: int, size: int) -> None:
            record("set_memory_pool_limit", trt.MemoryPoolType(pool).name, size)

        def set_flag(self, flag: int) -> None:
            record("set_flag", trt.BuilderFlag(flag).name)
            self.flags.add(flag)

        def clear_flag(self, flag: int) -> None:
            record("clear_flag", trt.BuilderFlag(flag).name)

        def add_optimization_profile(self, profile: Profile) -> int:
            record("add_optimization_profile")
            self.profiles.append(profile)
            return len(self.profiles) - 1

        def create_timing_cache(self, content: bytes) -> TimingCache:
            record("create_timing_cache", content)
            return TimingCache(content)

        def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
            record("set_timing_cache", cache.content, ignore_mismatch)
            if refuse_cache and cache.content:
                return False
            self._cache = cache
            return True

        def get_timing_cache(self) -> TimingCache | None:
            return self._cache

    class Builder:
        def __init__(self, log: Any) -> None:
            assert log.initialised
            record("Builder")
            self._log = log

        def create_network(self, flags: int) -> Network:
            record("create_network", flags)
            return Network()

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> Any:
            record("build_serialized_network")
            if config.builder_optimization_level != 3:
                record("builder_optimization_level", config.builder_optimization_level)
            if refuse_build:
                self._log.log(ILogger.Severity.INFO, "not of interest")
                self._log.log(ILogger.Severity.ERROR, "could not find any implementation\n  for node /conv")
                return None
            self._log.log(ILogger.Severity.WARNING, "labels are 64 bits wide")
            monitor = config.progress_monitor
            if monitor is not None:
                assert monitor.initialised
                build_two_phases(monitor)
            dynamic = any(-1 in tensor.shape for tensor in network._inputs)
            assert bool(config.profiles) == dynamic
            header = {
                "version": version,
                "compatible": trt.BuilderFlag.VERSION_COMPATIBLE in config.flags,
                "detailed": config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED,
                "profiles": [profile.shapes for profile in config.profiles] or [{}],
            }
            return memoryview(HEADER + json.dumps(header).encode() + b"\n" + network.content)

    class Inspector:
        execution_context: Any = None

        def __init__(self, detailed: bool) -> None:
            self._detailed = detailed

        def get_engine_information(self, kind: int) -> str:
            assert kind == trt.LayerInformationFormat.JSON
            assert self.execution_context is not None
            layers = [{"Name": name, "LayerType": kind} if self._detailed else name for name, kind in LAYERS]
            return json.dumps({"Layers": layers, "I/O Tensors" if eleven else "Bindings": []})

    class Context:
        profiler: Any = None

        def __init__(self, engine: Engine) -> None:
            self._engine = engine
            self._profile = 0
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self._allocators: dict[str, Any] = {}
            self._results: dict[str, tuple[int, ...]] = {}

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            record("set_input_shape", name, tuple(shape))
            if not self._engine.holds(self._profile, name, tuple(shape)):
                return False
            self._shapes[name] = tuple(shape)
            return True

        def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
            record("set_optimization_profile_async", profile)
            assert stream == STREAM
            assert profile < self._engine.num_optimization_profiles
            self._profile = profile
            self._shapes, self._allocators = {}, {}
            return True

        def infer_shapes(self) -> list[str]:
            record("infer_shapes")
            types = self._engine.types
            empty = {name: np.zeros(shape, numpy_types[types[name]]) for name, shape in self._shapes.items()}
            self._results = {name: value.shape for name, value in self._engine.compute(empty).items()}
            return [name for name in self._engine.inputs if name not in self._shapes]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            shape = self._results[name]
            return (shape[0], -1, *shape[2:]) if name in data_dependent else shape

        def set_tensor_address(self, name: str, address: int) -> bool:
            record("set_tensor_address", name)
            assert address in gpu.memory
            self._addresses[name] = address
            return True

        def set_output_allocator(self, name: str, allocator: Any) -> bool:
            record("set_output_allocator", name)
            assert allocator.initialised
            self._allocators[name] = allocator
            return True

        def execute_async_v3(self, stream: int) -> bool:
            record("execute_async_v3")
            assert stream == STREAM
            shapes, addresses, engine = dict(self._shapes), dict(self._addresses), self._engine
            if self._allocators:
                # The size is only known after computing: the stream is waited for, and memory asked for.
                gpu.drain()
                for name, value in engine.compute(self._inputs(shapes, addresses)).items():
                    if name in self._allocators:
                        allocator = self._allocators[name]
                        address = allocator.reallocate_output_async(name, 0, value.nbytes, 256, stream)
                        if address is None:
                            engine.log.log(ILogger.Severity.ERROR, f"no memory for {name}")
                            return False
                        addresses[name] = address
                        allocator.notify_shape(name, value.shape)
            gpu.enqueue("execute", lambda: self._run(shapes, addresses))
            if self.profiler is not None:  # as TensorRT does, after it has waited
                assert self.profiler.initialised
                gpu.drain()
                suffix = f" [profile {self._profile}]" if engine.num_optimization_profiles > 1 else ""
                for place, (name, _) in enumerate(LAYERS):
                    self.profiler.report_layer_time(name + suffix, 0.5 + place)
            return True

        def _run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
            for name, value in self._engine.compute(self._inputs(shapes, addresses)).items():
                np.copyto(gpu.array(addresses[name], value.shape, value.dtype), value)

        def _inputs(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> dict[str, np.ndarray]:
            types = self._engine.types
            return {name: gpu.array(addresses[name], shape, numpy_types[types[name]]) for name, shape in shapes.items()}

    class Engine:
        def __init__(self, content: bytes, header: dict[str, Any], log: Any) -> None:
            self.log = log
            self._session = session_of(content)
            self._profiles = header["profiles"]
            self._detailed = header["detailed"]
            self.num_optimization_profiles = len(self._profiles)
            values = {value.name: value for value in (*self._session.get_inputs(), *self._session.get_outputs())}
            self.inputs = [value.name for value in self._session.get_inputs()]
            self.types = {name: trt.DataType[DTYPES[value.type]] for name, value in values.items()}
            self._shapes = {name: dimensions(value.shape) for name, value in values.items()}
            self.num_io_tensors = len(values)

        def create_engine_inspector(self) -> Inspector:
            return Inspector(self._detailed)

        def compute(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            names = [value.name for value in self._session.get_outputs()]
            return dict(zip(names, self._session.run(names, feed), strict=True))

        def create_execution_context(self) -> Context:
            record("create_execution_context")
            return Context(self)

        def get_tensor_name(self, place: int) -> str:
            return list(self.types)[place]

        def get_tensor_mode(self, name: str) -> Any:
            return trt.TensorIOMode.INPUT if name in self.inputs else trt.TensorIOMode.OUTPUT

        def get_tensor_location(self, name: str) -> Any:
            return trt.TensorLocation.DEVICE

        def get_tensor_dtype(self, name: str) -> Any:
            return self.types[name]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self._shapes[name]

        def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
            return [tuple(shape) for shape in self._profiles[profile][name]]

        def holds(self, profile: int, name: str, shape: tuple[int, ...]) -> bool:
            lowest, _, highest = self._profiles[profile].get(name, (shape, shape, shape))
            return all(low <= size <= high for low, size, high in zip(lowest, shape, highest, strict=True))

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, log: Any) -> None:
            assert log.initialised
            record("Runtime")
            self._log = log

        def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
            record("deserialize_cuda_engine", self.engine_host_code_allowed)
            if not content.startswith(HEADER):
                self._log.log(ILogger.Severity.ERROR, "Magic tag does not match")
                return None
            header, onnx = content[len(HEADER) :].split(b"\n", 1)
            known = json.loads(header)
            if known["compatible"] and not self.engine_host_code_allowed:
                self._log.log(ILogger.Severity.ERROR, "the engine brings host code")
                return None
            if known["version"] != version and not known["compatible"]:
                self._log.log(ILogger.Severity.ERROR, "the version does not match")
                return None
            return Engine(onnx, known, self._log)

    trt.OnnxParser, trt.Builder, trt.Runtime = OnnxParser, Builder, Runtime
    return trt


def session_of(content: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(content, sess_options=options, providers=["CPUExecutionProvider"])


def dimensions(shape: list[Any]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in shape)


def build_two_phases(monitor: Any) -> None:
    """As TensorRT reports them: a phase within the second step of another."""
    monitor.phase_start("Building engine", None, 2)
    assert monitor.step_complete("Building engine", 0)
    monitor.phase_start("Timing", "Building engine", 4)
    for step in range(4):
        assert monitor.step_complete("Timing", step)
    monitor.phase_finish("Timing")
    assert monitor.step_complete("Building engine", 1)
    monitor.phase_finish("Building engine")
