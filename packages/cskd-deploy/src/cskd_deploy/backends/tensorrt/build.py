"""An engine from an ONNX file, in this process. `worker` calls it in another one.

The network is strongly typed: every tensor keeps the type that the ONNX file gives it. So precision is the file's, made
by `cskd-deploy export --precision`, and nothing here depends on the builder flags and calibrators that TensorRT 11 has
no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cskd_deploy.backends.tensorrt.api import make_log, said
from cskd_deploy.backends.tensorrt.shapes import Shape, ShapeRange, input_ranges
from cskd_deploy.errors import DeployError
from cskd_deploy.model.manifest import Manifest

HARDWARE = {"none": "NONE", "ampere-plus": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}
MIB = 1 << 20


@dataclass(frozen=True)
class BuildSettings:
    """What may be chosen of a build. Shapes are by input name; `shapes` chooses what is not given."""

    workspace_mib: int | None = None  # None leaves TensorRT all of the GPU's memory
    version_compatible: bool = False
    hardware_compatible: str = "none"  # a key of HARDWARE
    min_shapes: Mapping[str, Shape] = field(default_factory=dict)
    opt_shapes: Mapping[str, Shape] = field(default_factory=dict)
    max_shapes: Mapping[str, Shape] = field(default_factory=dict)
    # Of TensorRT-RTX, which builds without a GPU: the name of a ComputeCapability, "SM80".
    compute_capability: str | None = None


@dataclass(frozen=True)
class Built:
    """A serialized engine and what belongs to it."""

    engine: bytes
    inputs: dict[str, ShapeRange]
    outputs: dict[str, Shape]  # -1 where a dimension is dynamic
    timing_cache: bytes | None
    notes: tuple[str, ...]


def build_engine(
    trt: Any,
    onnx: bytes,
    model: Manifest,
    settings: BuildSettings,
    timing_cache: bytes | None = None,
    progress: Callable[[float], None] | None = None,
) -> Built:
    """Build an engine for GPU 0, or for `settings.compute_capability`.

    Args:
        trt: TensorRT's module.
        onnx: the content of an ONNX file without external data.
        model: what the file says about itself; the range of dynamic shapes depends on it.
        timing_cache: an earlier build's, or b"" to begin one; None to go without.
        progress: called with the done part of the work, from 0 to 1.

    Raises:
        DeployError: the file cannot be parsed, an option does not fit, or TensorRT builds nothing. Says why.
    """
    log = make_log(trt)
    trt.init_libnvinfer_plugins(log, "")
    builder = trt.Builder(log)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, log)
    # From memory and without a path, so that nothing but the file itself is read.
    if not parser.parse(onnx):
        raise DeployError(f"TensorRT's parser refuses the ONNX file: {_parser_errors(parser) or said(log)}")
    inputs = [network.get_input(place) for place in range(network.num_inputs)]
    ranges = input_ranges(
        {tensor.name: tuple(tensor.shape) for tensor in inputs},
        model,
        settings.min_shapes,
        settings.opt_shapes,
        settings.max_shapes,
    )
    config = builder.create_builder_config()
    _configure(trt, config, settings)
    if any(-1 in tuple(tensor.shape) for tensor in inputs):
        _add_profile(builder, config, ranges, log)
    notes = [] if timing_cache is None else _use_timing_cache(config, timing_cache)
    monitor = None
    if progress is not None and hasattr(trt, "IProgressMonitor"):
        monitor = make_monitor(trt, progress)  # held here until the build is over
        config.progress_monitor = monitor
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise DeployError(f"TensorRT built no engine: {said(log)}{_hint(settings)}")
    outputs = [network.get_output(place) for place in range(network.num_outputs)]
    return Built(
        engine=bytes(engine),
        inputs=ranges,
        outputs={tensor.name: tuple(tensor.shape) for tensor in outputs},
        timing_cache=None if timing_cache is None else bytes(config.get_timing_cache().serialize()),
        notes=(*notes, *(one.text for one in log.messages if one.severity == "warning")),
    )


def _strongly_typed(trt: Any) -> int:
    # TensorRT 11 knows no other networks, and has announced that the flag will go.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parser_errors(parser: Any) -> str:
    found = []
    for place in range(parser.num_errors):
        error = parser.get_error(place)
        found.append(f"node {error.node()} {error.node_name()} ({error.node_operator()}): {error.desc()}")
    return "; ".join(found)


def _configure(trt: Any, config: Any, settings: BuildSettings) -> None:
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * MIB)
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware_compatible != "none":
        level = getattr(trt.HardwareCompatibilityLevel, HARDWARE[settings.hardware_compatible], None)
        if level is None:
            raise DeployError(
                f"TensorRT {trt.__version__} has no hardware compatibility {settings.hardware_compatible!r}"
            )
        config.hardware_compatibility_level = level
    if settings.compute_capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, settings.compute_capability), 0)


def _add_profile(builder: Any, config: Any, ranges: Mapping[str, ShapeRange], log: Any) -> None:
    profile = builder.create_optimization_profile()
    for name, one in ranges.items():
        profile.set_shape(name, one.smallest, one.usual, one.largest)
    if config.add_optimization_profile(profile) < 0:
        shapes = ", ".join(f"{name} {one}" for name, one in ranges.items())
        raise DeployError(f"TensorRT refuses the shapes {shapes}: {said(log)}")


def _use_timing_cache(config: Any, content: bytes) -> list[str]:
    """Attach a timing cache; an unfit one is replaced by an empty one. Returns what is to be said about it."""
    cache = config.create_timing_cache(content)
    if cache is not None and config.set_timing_cache(cache, False):
        return []
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return ["the timing cache is of another GPU, another TensorRT, or damaged: a new one takes its place"]


def _hint(settings: BuildSettings) -> str:
    limit = settings.workspace_mib
    return "" if limit is None else f". Its workspace was limited to {limit} MiB: try without --workspace"


def make_monitor(trt: Any, progress: Callable[[float], None]) -> Any:
    """TensorRT's progress monitor, as one rising number from 0 to 1."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases = Phases()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._phases.start(phase, parent, steps)

        def phase_finish(self, phase: str) -> None:
            self._phases.finish(phase)
            progress(self._phases.done)

        def step_complete(self, phase: str, step: int) -> bool:
            self._phases.step(phase, step)
            progress(self._phases.done)
            return True  # False would end the build

    return Monitor()


class Phases:
    """TensorRT's nested phases as one number: a phase is a part of the current step of its parent."""

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}
        self._parents: dict[str, str | None] = {}
        self._counts: dict[str, int] = {}
        self.done = 0.0  # of the whole; never falls

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        self._parents[phase], self._steps[phase], self._counts[phase] = parent, max(steps, 1), 0

    def step(self, phase: str, step: int) -> None:
        self._counts[phase] = step + 1
        self.done = max(self.done, self._place(phase, self._counts[phase] / self._steps[phase]))

    def finish(self, phase: str) -> None:
        self.done = max(self.done, self._place(phase, 1.0))
        for known in (self._steps, self._parents, self._counts):
            known.pop(phase)

    def _place(self, phase: str, part: float) -> float:
        """Where in the whole a place within a phase is."""
        parent = self._parents[phase]
        while parent in self._steps:
            part = min((self._counts[parent] + part) / self._steps[parent], 1.0)
            parent = self._parents[parent]
        return min(part, 1.0)
