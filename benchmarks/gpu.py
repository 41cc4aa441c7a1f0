"""What a GPU has to say about this project: its tests on a GPU and its benchmarks, part by part.

    python benchmarks/gpu.py [--parts step,loss] [--out docs/results/gpu.json]

Each part runs in a process of its own, with this tree's packages, installed or not, and leaves its result in
work_dirs/gpu/PART.json. A part that is done there, by the same commit on the same machine, is not run again. All
results go into one JSON, and benchmarks/gpu_page.py makes a page of it. Exit code 3: there is no GPU; 1: a part failed.

`--device cpu --quick` tries the chain on the processor, narrow and small; everything is written beside its --out
[work_dirs/gpu-cpu/gpu.json].
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent))
import gpu_page
import machine
import processes
import stored

ROOT = Path(__file__).parents[1]
BENCHMARKS = Path(__file__).parent
LONGEST = 600  # seconds of a part
FIGURES = "figures.jsonl"

NO_GPU = 3
Arguments = Callable[[str, Path], list[str]]


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
        arguments: of the interpreter, given the device and the file to write; on a processor for narrow models.
        read: makes the figures out of that file.
        cpu: whether the chain that is tried on a processor has it; mixed precision is slow there.
        longest: seconds after which it is stopped.
    """

    what: str
    arguments: Arguments
    read: Callable[[Path], Any]
    cpu: bool = True
    longest: int = LONGEST


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a benchmark."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_tests(path: Path) -> dict[str, Any]:
    """How many tests passed, failed and were skipped, the names of those that failed, and why others were skipped."""
    cases = list(ET.parse(path).getroot().iter("testcase"))
    failed = [
        case.get("name", "") for case in cases if any(case.find(kind) is not None for kind in ("failure", "error"))
    ]
    skips = [skip.get("message", "") for case in cases if (skip := case.find("skipped")) is not None]
    counts = {"passed": len(cases) - len(failed) - len(skips), "failed": len(failed), "skipped": len(skips)}
    return {**counts, "failures": failed, "reasons": sorted(set(skips))}


def tests(device: str, out: Path) -> list[str]:
    chosen = ["-m", "gpu", "tests"]
    if device == "cpu":
        quick = "a_batch_goes or (RetinaNet and None)"
        chosen = ["-m", "not gpu", "-k", quick, "tests/train/test_step_device.py"]
    return ["-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, f"--junitxml={out}"]


def step(amp: str | None) -> Arguments:
    def arguments(device: str, out: Path) -> list[str]:
        size = ["--images", "2", "--size", "800", "1344"]  # a GPU's share of the published recipes
        if device == "cpu":
            size = ["--narrow", "--families", "RetinaNet", "--images", "2", "--size", "64", "64", "--rounds", "1"]
            size += ["--threads", "1"]
        precision = ["--amp", amp] if amp else []
        return [str(BENCHMARKS / "step.py"), "--device", device, *size, *precision, "--json", str(out)]

    return arguments


def loss(device: str, out: Path) -> list[str]:
    size = ["--size", "800", "1344"]
    if device == "cpu":
        size = ["--size", "64", "64", "--channels", "16", "--rounds", "2", "--threads", "1"]
    return [str(BENCHMARKS / "loss.py"), "--device", device, *size, "--json", str(out)]


def run(amp: str | None) -> Arguments:
    def arguments(device: str, out: Path) -> list[str]:
        recipe = "--images 480 --size 640 640 --batch-size 8 --workers 4 --width 2"
        if device == "cpu":
            recipe = "--families RetinaNet --images 8 --size 64 64 --batch-size 2 --workers 1 --width 0.5"
        precision = ["--amp", amp] if amp else []
        command = [str(BENCHMARKS / "run.py"), "--device", device, *recipe.split(), *precision]
        return [*command, "--json", str(out)]

    return arguments


def engines(device: str, out: Path) -> list[str]:
    return [str(BENCHMARKS / "gpu_engines.py"), "--device", device, "--json", str(out)]


PARTS = {
    "tests": Part("the tests that need a GPU", tests, read_tests),
    "step": Part("a distilled step against its parts, float32", step(None), read_lines),
    "step-bf16": Part("a distilled step against its parts, bfloat16", step("bf16"), read_lines, cpu=False),
    "step-fp16": Part("a distilled step against its parts, float16", step("fp16"), read_lines, cpu=False),
    "loss": Part("the core loss alone", loss, read_lines),
    "run": Part("cskd-train run with data loading, float32", run(None), read_lines),
    "engines": Part("TensorRT's engines in every precision", engines, read_lines, cpu=False, longest=1800),
    "run-bf16": Part("cskd-train run with data loading, bfloat16", run("bf16"), read_lines, cpu=False),
}


@click.command(help=__doc__, context_settings={"show_default": True, "max_content_width": 120})
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda")
@click.option("--quick", is_flag=True, help="Narrow and small, for --device cpu.")
@click.option("--parts", default="", metavar="NAMES", help=f"Separated by commas.  [default: {', '.join(PARTS)}]")
@click.option("--out", type=click.Path(path_type=Path), help="The JSON; the page lies beside it.  [default: as above]")
def main(device: str, quick: bool, parts: str, out: Path | None) -> None:
    if quick != (device == "cpu"):
        raise click.UsageError("--device cpu and --quick go together: the sizes for a GPU are too much for a processor")
    default = ROOT / "docs" / "results" if device == "cuda" else ROOT / "work_dirs" / "gpu-cpu"
    out = (out or default / "gpu.json").resolve()
    folder = ROOT / "work_dirs" / "gpu" if device == "cuda" else out.parent
    if device == "cpu" and out.is_relative_to(ROOT / "docs"):
        raise click.UsageError(f"--out {out}: results of a processor do not go into docs/; leave --out out")
    known = [name for name, part in PARTS.items() if part.cpu or device == "cuda"]
    chosen = parts.split(",") if parts else known
    if unknown := [name for name in chosen if name not in known]:
        raise click.UsageError(f"--parts {','.join(unknown)}: no such part here; there are {', '.join(known)}")
    environment = machine.describe(device)
    if device == "cuda" and environment["device"] is None:
        click.echo("There is no GPU here that torch sees, so nothing was run and nothing was written.", err=True)
        sys.exit(NO_GPU)
    stored.ready(out, out.with_suffix(".md"), *(folder / f"{name}.json" for name in chosen))
    same = {"environment": environment}
    for name in chosen:
        file = folder / f"{name}.json"
        if done(file, same):
            click.echo(f"{name}: done before ({file})")
            continue
        click.echo(f"{name}: {PARTS[name].what} ...")
        found = {**same, **measure(PARTS[name], device)}
        file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        click.echo(f"{name}: {found['status']} after {found['seconds']:.0f} s")
    results = {name: outcome(folder / f"{name}.json", same) for name in known}
    data = {"ran_on": device, **environment, "parts": results}
    out.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(gpu_page.page(data), encoding="utf-8")
    click.echo(f"{out}\n{out.with_suffix('.md')}")
    sys.exit(any(result["status"] == "failed" for result in results.values()))


def done(file: Path, same: dict[str, Any]) -> bool:
    """Whether a part was done by this commit, with these versions, on this machine."""
    return outcome(file, same)["status"] == "done"


def outcome(file: Path, same: dict[str, Any]) -> dict[str, Any]:
    """What a part left; one of another commit or machine counts as not run."""
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        if {key: found[key] for key in same} == same:
            return {key: value for key, value in found.items() if key not in same}
    return {"status": "not run"}


def measure(part: Part, device: str) -> dict[str, Any]:
    """Run a part: its command, its seconds and its figures, or the end of what it said when it failed."""
    paths = [
        str(ROOT / "packages" / package / "src") for package in ("cskd-core", "cskd-data", "cskd-train", "cskd-deploy")
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / FIGURES
        arguments = part.arguments(device, figures)
        begin = time.perf_counter()
        try:
            command = [sys.executable, *arguments]
            ran = processes.run(command, cwd=ROOT, env=environment, timeout=part.longest, grace=3 * processes.GRACE)
            code, said = ran.returncode, ran.stdout + ran.stderr
        except subprocess.TimeoutExpired:
            code, said = -1, f"stopped after {part.longest} s"
        shown = shlex.join(["python", *arguments]).replace(str(ROOT) + os.sep, "").replace(str(figures), FIGURES)
        found = {"command": shown, "seconds": time.perf_counter() - begin}
        if figures.exists():
            found["figures"] = part.read(figures)
        return {"status": "failed" if code else "done", **found, **({"said": said[-2000:]} if code else {})}


if __name__ == "__main__":
    main()
