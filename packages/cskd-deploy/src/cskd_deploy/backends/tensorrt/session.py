"""A deserialized engine, and running it on one stream."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cskd_deploy.backends.tensorrt.api import last_errors, make_log
from cskd_deploy.backends.tensorrt.driver import CudaGraph
from cskd_deploy.backends.tensorrt.memory import Block, Buffers
from cskd_deploy.backends.tensorrt.shapes import Profile, Shape, ShapeRange, profile_for, range_from_list, written
from cskd_deploy.errors import DeployError

MakeGraph = Callable[[int, Callable[[], None]], CudaGraph]


@dataclass
class LoadedEngine:
    """An engine with one execution context, and what must live as long as they do."""

    trt: Any
    log: Any
    runtime: Any
    engine: Any
    context: Any
    profiles: tuple[Profile, ...]
    outputs: tuple[str, ...]
    shapes: dict[str, Shape]  # of both, -1 where a dimension is dynamic
    dtypes: dict[str, np.dtype[Any]]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.profiles[0])

    def close(self) -> None:
        """Let TensorRT go, last things first."""
        self.context = None
        self.engine = None
        self.runtime = None


def load_engine(trt: Any, content: bytes, host_code: bool = False) -> LoadedEngine:
    """Deserialize an engine for GPU 0. Only what can be trusted: an engine is code for the GPU.

    Args:
        host_code: let a version-compatible engine bring its runtime along, which is code for the host.

    Raises:
        DeployError: TensorRT refuses it, or one of its tensors is not to be held in GPU memory.
    """
    log = make_log(trt)
    trt.init_libnvinfer_plugins(log, "")
    runtime = trt.Runtime(log)
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise DeployError(f"TensorRT {trt.__version__} refuses the engine: {last_errors(log)}")
    context = engine.create_execution_context()
    if context is None:
        raise DeployError(f"TensorRT cannot prepare the engine to run: {last_errors(log)} (is the GPU's memory full?)")
    profiles: tuple[Profile, ...] = tuple({} for _ in range(engine.num_optimization_profiles))
    outputs, shapes, dtypes = [], {}, {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise DeployError(f"tensor {name} of the engine lies in host memory: it is none of `cskd-deploy export`")
        dtypes[name] = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
        shape = shapes[name] = tuple(engine.get_tensor_shape(name))
        if engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT:
            outputs.append(name)
            continue
        for number, profile in enumerate(profiles):
            if -1 in shape:
                three = engine.get_tensor_profile_shape(name, number)
                profile[name] = range_from_list([list(one) for one in three])
            else:
                profile[name] = ShapeRange(shape, shape, shape)
    return LoadedEngine(trt, log, runtime, engine, context, profiles, tuple(outputs), shapes, dtypes)


@dataclass(frozen=True)
class LayerTime:
    """A layer of an engine: often several of the ONNX file in one."""

    name: str
    kind: str  # by the engine's inspector; "" where the engine was not built with profilingVerbosity=detailed
    milliseconds: float  # mean of a run


class EngineSession:
    """Runs an engine: inputs to the GPU, the engine, outputs back, each timed by events.

    Args:
        loaded: the engine; closed by `close`, as are the buffers.
        buffers: memory and stream.
        cuda_graph: record the engine's work once for each set of shapes, and replay it.
        make_graph: records work on a stream.
    """

    def __init__(
        self, loaded: LoadedEngine, buffers: Buffers, cuda_graph: bool = False, make_graph: MakeGraph = CudaGraph
    ) -> None:
        self.milliseconds: dict[str, float] = {}  # of the last run: h2d, compute, d2h
        self.enqueue_seconds: float | None = None  # of the last run, until the call that puts it on the stream returned
        self._loaded = loaded
        self._buffers = buffers
        self._cuda_graph = cuda_graph
        self._make_graph = make_graph
        self._graph: CudaGraph | None = None
        self._shapes: dict[str, Shape] = {}  # of the inputs, as the context has them
        self._profile = 0  # that the context is in: a new one is in the first
        self._blocks: dict[str, Block] = {}
        self._hosts: dict[str, np.ndarray] = {}  # page-locked bytes
        self._fixed: dict[str, Shape] = {}  # outputs whose shape follows from those of the inputs
        self._allocators: dict[str, Any] = {}  # of the outputs whose shape depends on the data
        self._allocating: set[str] = set()  # of which the context has the allocators
        self._profiler: Any = None
        self._failed = False

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs for the inputs of the engine in `feed`, as arrays of their own.

        Raises:
            DeployError: a shape is not one that the engine was built for, or the run fails.
        """
        try:
            with self._buffers.active():
                return self._run(feed)
        except BaseException:
            self._failed = True
            raise

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = {name: np.ascontiguousarray(feed[name], self._loaded.dtypes[name]) for name in self._loaded.inputs}
        shapes = {name: array.shape for name, array in arrays.items()}
        if shapes != self._shapes:
            self._prepare(shapes)
        for name, array in arrays.items():
            np.copyto(self._host(name, array.shape), array)
        if self._cuda_graph and self._graph is None:
            self._record()
        buffers = self._buffers
        marks = [buffers.mark()]
        self._copy_in()
        marks.append(buffers.mark())
        begin = time.perf_counter()
        if self._graph is None:
            self._enqueue()
        else:
            self._graph.launch()
        self.enqueue_seconds = time.perf_counter() - begin
        marks.append(buffers.mark())
        outputs = {name: self._copy_out(name) for name in self._loaded.outputs}
        marks.append(buffers.mark())
        buffers.synchronize()
        stages = zip(("h2d", "compute", "d2h"), marks, marks[1:], strict=False)
        self.milliseconds = {stage: buffers.milliseconds(first, second) for stage, first, second in stages}
        return {name: array.copy() for name, array in outputs.items()}

    def time_layers(self, feed: Mapping[str, np.ndarray], runs: int) -> list[LayerTime]:
        """The layers as TensorRT fused them, by its profiler, which waits after each of them: their sum is no latency.

        Args:
            runs: that count; one before them does not.

        Raises:
            DeployError: as `run`; also in a session with CUDA graphs, which hide the layers.
        """
        if self._cuda_graph:
            raise DeployError("layers cannot be timed in a CUDA graph: leave --cuda-graph out")
        if self._profiler is None:  # it must live as long as the context has it
            self._profiler = make_profiler(self._loaded.trt)
            self._loaded.context.profiler = self._profiler
        self.run(feed)
        self._profiler.milliseconds.clear()
        for _ in range(runs):
            self.run(feed)
        kinds = layer_kinds(self._loaded)
        total = self._profiler.milliseconds
        return [LayerTime(name, kinds.get(name, ""), spent / runs) for name, spent in total.items()]

    def close(self) -> None:
        """Free the GPU's memory: all that can be, whatever fails.

        Raises:
            Exception: the first failure. None after a run that failed, since CUDA repeats its error in every call.
        """
        first: Exception | None = None
        own: tuple[Callable[[], None], ...] = (
            self._drop_graph,
            self._loaded.close,  # before the memory that it has the addresses of, and the context of CUDA
            *(functools.partial(self._buffers.free, block) for block in self._blocks.values()),
            *(allocator.free for allocator in self._allocators.values()),
        )
        steps: list[Callable[[], None]] = [functools.partial(self._active, step) for step in own]
        for free in (*steps, self._buffers.close):
            try:
                free()
            except Exception as error:
                first = first or error
        if first is not None and not self._failed:
            raise first

    def _active(self, work: Callable[[], None]) -> None:
        with self._buffers.active():
            work()

    def _prepare(self, shapes: dict[str, Shape]) -> None:
        """Set the shapes of the inputs in the context, and give every tensor an address."""
        self._drop_graph()
        self._shapes = {}  # until all of it is done
        self._enter_profile(shapes)
        for name, shape in shapes.items():
            self._require(self._loaded.context.set_input_shape(name, shape), f"the shape {written(shape)} of {name}")
            self._bind(name, shape)
        missing = self._loaded.context.infer_shapes()
        if missing:
            raise DeployError(
                f"TensorRT cannot infer shapes without {', '.join(missing)}: {last_errors(self._loaded.log)}"
            )
        self._fixed = {}
        for name in self._loaded.outputs:
            shape = tuple(self._loaded.context.get_tensor_shape(name))
            if -1 not in shape:
                self._fixed[name] = shape
                self._bind(name, shape)
            elif name not in self._allocating:
                allocator = self._allocators.get(name) or make_output_allocator(self._loaded.trt, self._buffers)
                self._require(self._loaded.context.set_output_allocator(name, allocator), f"an allocator for {name}")
                self._allocators[name] = allocator
                self._allocating.add(name)
        if self._cuda_graph and len(self._fixed) < len(self._loaded.outputs):
            dynamic = ", ".join(name for name in self._loaded.outputs if name not in self._fixed)
            raise DeployError(
                f"the engine cannot run as a CUDA graph, for the shape of {dynamic} depends on the data: "
                "leave --cuda-graph out"
            )
        self._shapes = shapes

    def _enter_profile(self, shapes: Mapping[str, Shape]) -> None:
        """Put the context into the smallest profile that holds these shapes.

        Raises:
            DeployError: none holds them.
        """
        profiles = self._loaded.profiles
        number = profile_for(profiles, shapes)
        if number is None:
            outside = [name for name, shape in shapes.items() if not any(one[name].holds(shape) for one in profiles)]
            name = outside[0] if outside else next(iter(shapes))  # each is in a profile, but not in the same
            taken = " or ".join(dict.fromkeys(str(profile[name]) for profile in profiles))
            raise DeployError(
                f"input {name} has shape {written(shapes[name])}, the engine takes {taken}: "
                "build it with --trt minShapes and maxShapes that hold it, of a model without a fixed --input-size"
            )
        if number != self._profile:
            done = self._loaded.context.set_optimization_profile_async(number, self._buffers.stream)
            self._require(done, f"to enter profile {number}")
            self._profile = number
            self._allocating.clear()

    def _bind(self, name: str, shape: Shape) -> None:
        """Give a tensor an address with room for `shape`, and a host array to copy from or to."""
        size = self._bytes(name, shape)
        block = self._blocks.get(name)
        if block is None or block.size < size:
            if block is not None:
                self._buffers.free(self._blocks.pop(name))
            self._blocks[name] = self._buffers.allocate(size)
        self._require(
            self._loaded.context.set_tensor_address(name, self._blocks[name].address), f"the address of {name}"
        )

    def _host(self, name: str, shape: Shape) -> np.ndarray:
        """The page-locked array of a tensor, of this shape."""
        size = self._bytes(name, shape)
        bytes_ = self._hosts.get(name)
        if bytes_ is None or bytes_.size < size:
            bytes_ = self._hosts[name] = self._buffers.page_locked((size,), np.dtype(np.uint8))
        return bytes_[:size].view(self._loaded.dtypes[name]).reshape(shape)

    def _bytes(self, name: str, shape: Shape) -> int:
        return int(np.prod(shape, dtype=np.int64)) * self._loaded.dtypes[name].itemsize

    def _record(self) -> None:
        """Record the engine's work as a CUDA graph, after one plain run in which TensorRT settles what it put off."""
        self._copy_in()
        self._enqueue()
        self._buffers.synchronize()
        self._graph = self._make_graph(self._buffers.stream, self._enqueue)

    def _copy_in(self) -> None:
        for name, shape in self._shapes.items():
            self._buffers.copy_in(self._blocks[name], self._host(name, shape))

    def _enqueue(self) -> None:
        self._require(self._loaded.context.execute_async_v3(self._buffers.stream), "to run")

    def _copy_out(self, name: str) -> np.ndarray:
        """Put an output's copy on the stream; the array is filled after `synchronize`."""
        if name in self._fixed:
            block, shape = self._blocks[name], self._fixed[name]
        else:
            block, shape = self._allocators[name].result(name)  # set when `execute_async_v3` returned
        array = self._host(name, shape)
        if array.size:
            self._buffers.copy_out(array, block)
        return array

    def _require(self, success: bool, what: str) -> None:
        if not success:
            raise DeployError(f"TensorRT refuses {what}: {last_errors(self._loaded.log)}")

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None


def make_profiler(trt: Any) -> Any:
    """A profiler that sums up `milliseconds` by layer."""

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.milliseconds: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.milliseconds[layer_name] = self.milliseconds.get(layer_name, 0.0) + ms

    return Profiler()


def layer_kinds(loaded: LoadedEngine) -> dict[str, str]:
    """What each layer of an engine is, by name, as far as its inspector tells."""
    inspector = loaded.engine.create_engine_inspector()
    inspector.execution_context = loaded.context
    told = json.loads(inspector.get_engine_information(loaded.trt.LayerInformationFormat.JSON))
    layers = [layer for layer in told.get("Layers", []) if isinstance(layer, dict)]  # else names alone
    return {str(layer.get("Name", "")): str(layer.get("LayerType", "")) for layer in layers}


def make_output_allocator(trt: Any, buffers: Buffers) -> Any:
    """Memory for an output whose size TensorRT determines while it runs."""

    class OutputAllocator(trt.IOutputAllocator):
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self._block: Block | None = None
            self._shape: Shape | None = None
            self._failure: Exception | None = None

        def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int | None:
            # An exception must not pass through TensorRT; None means that there is no memory.
            try:
                if self._block is None or self._block.size < size:
                    self.free()
                    self._block = buffers.allocate(size)
                return self._block.address
            except Exception as error:
                self._failure = error
                return None

        def reallocate_output_async(self, name: str, memory: int, size: int, alignment: int, stream: int) -> int | None:
            return self.reallocate_output(name, memory, size, alignment)

        def notify_shape(self, name: str, shape: Any) -> None:
            self._shape = tuple(shape)

        def result(self, name: str) -> tuple[Block, Shape]:
            """The memory and the shape of the last run."""
            if self._block is None or self._shape is None:
                raise DeployError(f"TensorRT gave no output {name} ({self._failure or 'it asked for no memory'})")
            return self._block, self._shape

        def free(self) -> None:
            if self._block is not None:
                buffers.free(self._block)
                self._block = None

    return OutputAllocator()
