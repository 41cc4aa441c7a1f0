"""An engine from an ONNX file, in this process. `worker` calls it in another one.

The network is strongly typed: every tensor keeps the type that the ONNX file gives it. So precision is the file's, made
by `cskd-deploy export --precision`, and nothing here depends on the builder flags and calibrators that TensorRT 11 has
no more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cskd_deploy.backends.tensorrt.api import last_errors, make_log
from cskd_deploy.backends.tensorrt.settings import HARDWARE, VERBOSITY, BuildSettings
from cskd_deploy.backends.tensorrt.shapes import Profile, Shape, profiles_of
from cskd_deploy.errors import DeployError
from cskd_deploy.model.manifest import Manifest

MIB = 1 << 20
MOST_NMS_BOXES = 5000  # that INMSLayer looks at


@dataclass(frozen=True)
class Built:
    """A serialized engine and what belongs to it."""

    engine: bytes
    profiles: tuple[Profile, ...]
    dynamic: tuple[str, ...]  # inputs with a dynamic dimension
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
    """Build an engine for GPU 0.

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
        raise DeployError(f"TensorRT's parser refuses the ONNX file: {_parser_errors(parser) or last_errors(log)}")
    notes = _check_suppression(trt, network)
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
    dynamic = tuple(name for name, shape in shapes.items() if -1 in shape)
    profiles = profiles_of(shapes, model, settings.profiles)
    config = builder.create_builder_config()
    _configure(trt, config, settings)
    for profile in profiles if dynamic else ():
        _add_profile(builder, config, profile, log)
    if timing_cache is not None:
        notes += _use_timing_cache(config, timing_cache)
    monitor = None
    if progress is not None and hasattr(trt, "IProgressMonitor"):
        monitor = make_monitor(trt, progress)  # held here until the build is over
        config.progress_monitor = monitor
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise DeployError(f"TensorRT built no engine: {last_errors(log)}{_hint(settings)}")
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return Built(
        engine=bytes(engine),
        profiles=profiles,
        dynamic=dynamic,
        outputs={tensor.name: tuple(tensor.shape) for tensor in outputs},
        timing_cache=None if timing_cache is None else bytes(config.get_timing_cache().serialize()),
        notes=(*notes, *(one.text for one in log.messages if one.severity == "warning")),
    )


def _strongly_typed(trt: Any) -> int:
    # TensorRT 11 knows no other networks, and has announced that the flag will go.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parser_errors(parser: Any) -> str:
    errors = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        errors.append(f"node {error.node()} {error.node_name()} ({error.node_operator()}): {error.desc()}")
    return "; ".join(errors)


def _check_suppression(trt: Any, network: Any) -> list[str]:
    """Refuse NMS among more boxes than TensorRT looks at. Returns a note where their number depends on the image.

    Raises:
        DeployError: there are more, and the engine would lose detections without a word.
    """
    notes = []
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type != trt.LayerType.NMS:
            continue
        boxes = layer.get_input(0).shape[1]
        if boxes > MOST_NMS_BOXES:
            raise DeployError(
                f"NMS inside the graph ({layer.name}) chooses among {boxes} boxes, TensorRT's looks at the best "
                f"{MOST_NMS_BOXES} alone: export with --nms outside, or the config with fewer candidates (nms_pre)"
            )
        if boxes < 0:
            notes.append(
                f"how many boxes NMS inside the graph ({layer.name}) chooses among depends on the image's size; of "
                f"more than {MOST_NMS_BOXES} TensorRT looks at the best alone"
            )
    return notes


def _configure(trt: Any, config: Any, settings: BuildSettings) -> None:
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * MIB)
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.profiling_verbosity != VERBOSITY[0]:
        config.profiling_verbosity = getattr(trt.ProfilingVerbosity, settings.profiling_verbosity.upper())
    if settings.hardware_compatible != "none":
        level = getattr(trt.HardwareCompatibilityLevel, HARDWARE[settings.hardware_compatible], None)
        if level is None:
            raise DeployError(
                f"TensorRT {trt.__version__} has no hardwareCompatibilityLevel={settings.hardware_compatible}"
            )
        config.hardware_compatibility_level = level


def _add_profile(builder: Any, config: Any, ranges: Profile, log: Any) -> None:
    profile = builder.create_optimization_profile()
    for name, one in ranges.items():
        profile.set_shape(name, one.min, one.opt, one.max)
    if config.add_optimization_profile(profile) < 0:
        shapes = ", ".join(f"{name} {one}" for name, one in ranges.items())
        raise DeployError(f"TensorRT refuses the shapes {shapes}: {last_errors(log)}")


def _use_timing_cache(config: Any, content: bytes) -> list[str]:
    """Attach a timing cache; an unfit one is replaced by an empty one. Returns notes on it."""
    cache = config.create_timing_cache(content)
    if cache is not None and config.set_timing_cache(cache, False):
        return []
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return ["the timing cache is of another GPU, another TensorRT, or damaged: a new one replaces it"]


def _hint(settings: BuildSettings) -> str:
    limit = settings.workspace_mib
    return "" if limit is None else f". Its workspace was limited to {limit} MiB: try without --trt memPoolSize"


def make_monitor(trt: Any, progress: Callable[[float], None]) -> Any:
    """TensorRT's progress monitor, as one rising number from 0 to 1.

    TensorRT calls it from threads of its own. No exception passes through it: how far a build is, is no reason to end
    it, unless nobody reads the reports any more.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases = Phases()
            self._lock = threading.Lock()
            self._read = True

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._report(lambda: self._phases.start(phase, parent, steps))

        def phase_finish(self, phase: str) -> None:
            self._report(lambda: self._phases.finish(phase))

        def step_complete(self, phase: str, step: int) -> bool:
            self._report(lambda: self._phases.step(phase, step))
            return self._read  # False ends the build

        def _report(self, change: Callable[[], None]) -> None:
            try:
                with self._lock:
                    change()
                    progress(self._phases.done)
            except BrokenPipeError:
                self._read = False
            except Exception:
                pass

    return Monitor()


@dataclass
class _Phase:
    parent: str | None
    steps: int
    completed: int = 0


class Phases:
    """TensorRT's nested phases as one number: a phase is a part of the current step of its parent.

    A phase that was never started, or has finished, changes nothing; one whose parent has finished counts as a part of
    the whole no more.
    """

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self.done = 0.0  # of the whole; never falls

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._phases[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, step: int) -> None:
        phase = self._phases.get(name)
        if phase is not None:
            phase.completed = step + 1
            self._advance(phase, phase.completed / phase.steps)

    def finish(self, name: str) -> None:
        phase = self._phases.pop(name, None)
        if phase is not None:
            self._advance(phase, 1.0)

    def _advance(self, phase: _Phase, share: float) -> None:
        """Take in that a share of a phase is done."""
        while phase.parent is not None:
            parent = self._phases.get(phase.parent)
            if parent is None:
                return
            share = min((parent.completed + share) / parent.steps, 1.0)
            phase = parent
        self.done = max(self.done, min(share, 1.0))
