"""A processor without AVX-512 and VNNI, emulated: an export passes its check there, INT8 gives the bits it gives here.

qemu's user mode runs this environment's Python with the instructions of a Haswell (`apt-get install qemu-user`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from cskd_data.images import list_images
from cskd_deploy.backends.onnxruntime import OnnxRuntimeBackend
from cskd_deploy.detect.detector import Detector
from cskd_deploy.exporter.onnx import export
from cskd_deploy.lower.calibration import calibration_feeds
from cskd_deploy.lower.int8 import PRESETS, Quantizer
from cskd_deploy.lower.layers import as_seen, class_logits
from cskd_deploy.lower.space_to_depth import with_blocks
from cskd_deploy.measure.environment import instruction_sets, lacks
from tests.deploy.students import GRAPHS, student_config, write_checkpoint

pytestmark = [pytest.mark.reliability, pytest.mark.timeout(3600)]

CLASSES = ("circle", "square", "triangle")
QEMU = shutil.which("qemu-x86_64")
HASWELL = "Haswell-noTSX,-pcid,-x2apic,-tsc-deadline,-invpcid"  # qemu warns of what it does not emulate
DEPLOY = "import sys; from cskd_deploy.cli import main; main(sys.argv[1:])"
# What a file gives on noise: `MODEL OUT`.
RUN = """
import sys
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 4
session = onnxruntime.InferenceSession(sys.argv[1], options, ["CPUExecutionProvider"])
names = [value.name for value in session.get_outputs()]
generator = np.random.default_rng(0)
found = {}
for number, shape in enumerate([(96, 128), (128, 96)]):
    small = generator.integers(0, 256, (shape[0] // 16, shape[1] // 16, 3), dtype=np.uint8)
    feed = {"image": small.repeat(16, axis=0).repeat(16, axis=1)[None]}
    feed["image_shape"] = np.array([shape], dtype=np.float32)
    for name, values in zip(names, session.run(None, {one.name: feed[one.name] for one in session.get_inputs()})):
        found[f"{number} {name}"] = values
np.savez(sys.argv[2], **found)
"""
Python = Callable[..., str]


def python(*arguments: object, prefix: tuple[str, ...] = ()) -> str:
    command = [*prefix, sys.executable, "-c", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def emulated() -> Python:
    """Run Python code on the emulated processor."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"the emulator runs programs of this machine, whose processor is a {platform.machine()}")
    if QEMU is None:
        pytest.skip("there is no qemu-x86_64: apt-get install qemu-user")

    def run(*arguments: object) -> str:
        return python(*arguments, prefix=(QEMU, "-cpu", HASWELL))

    features = "import json; from numpy._core._multiarray_umath import __cpu_features__ as f; print(json.dumps(f))"
    known = json.loads(run(features))
    assert known["AVX2"]
    assert not known["AVX512F"]
    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("checkpoints")

    def make(family: str) -> Path:
        path = folder / f"{family}.pth"
        if not path.exists():
            write_checkpoint(path, CLASSES, student_config(CLASSES, (128, 96), family, width=16))
        return path

    return make


@pytest.mark.parametrize("family", GRAPHS)
def test_an_export_of_random_weights_passes_its_check(family, checkpoint, emulated, tmp_path):
    done = emulated(DEPLOY, "export", "--checkpoint", checkpoint(family), "-o", tmp_path / "student.onnx", "--json")
    checked = json.loads(done)["verification"]
    assert checked["candidates"] > 100
    assert (tmp_path / "student.onnx").exists()


@pytest.fixture(scope="module", params=["RetinaNet", "FasterRCNN"])
def quantised(request, checkpoint, shapes_root, tmp_path_factory) -> Callable[[str, bool], Path]:
    """An INT8 file that gives its class logits too, for a target, with weights of 7 bits or of 8."""
    folder = tmp_path_factory.mktemp("quantised")
    source = export(checkpoint(request.param), folder / "fp32.onnx").path
    logits = [name for names in class_logits(onnx.load(str(source)).graph).values() for name in names]

    def make(target: str, seven_bits: bool) -> Path:
        with pytest.MonkeyPatch.context() as patch, OnnxRuntimeBackend(source) as backend:
            patch.setitem(PRESETS, target, dataclasses.replace(PRESETS[target], seven_bits=seven_bits))
            paths = list_images(shapes_root / "images")[:4]
            feeds = calibration_feeds(Detector(backend), paths, ["image", "image_shape"], lambda done, total: None)
            model = Quantizer(source, target, feeds, folder).quantise(())
        if target == "cpu":
            with_blocks(model)  # as `convert_to_int8`
        seen = as_seen(model.graph)
        model.graph.output.extend(onnx.ValueInfoProto(name=seen[name]) for name in logits)
        path = folder / f"{target}.onnx"
        onnx.save(model, str(path))
        return path

    return make


def _both(model: Path, emulated: Python, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    for name, run in (("here", python), ("there", emulated)):
        run(RUN, model, folder / f"{name}.npz")
    here, there = (dict(np.load(folder / f"{name}.npz")) for name in ("here", "there"))
    assert here.keys() == there.keys()
    return here, there


@pytest.mark.parametrize(("target", "seven_bits"), [("cpu", True), ("tensorrt", False)])
def test_int8_gives_the_same_bits(target, seven_bits, quantised, emulated, tmp_path):
    assert PRESETS[target].seven_bits == seven_bits
    here, there = _both(quantised(target, seven_bits), emulated, tmp_path)
    different = [name for name, values in here.items() if values.tobytes() != there[name].tobytes()]
    assert not different


def test_weights_of_8_bits_would_not(quantised, emulated, tmp_path):
    if lacks(("vnni",), instruction_sets()):
        pytest.skip("this processor lacks VNNI as the emulated one does")
    here, there = _both(quantised("cpu", False), emulated, tmp_path)
    assert any(values.tobytes() != there[name].tobytes() for name, values in here.items())
