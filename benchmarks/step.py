"""What a distilled training step costs, against what it must cost.

    python benchmarks/step.py [--json FILE] [--families RetinaNet FCOS ...] [--rounds 7] [--device cuda] [--amp bf16]
    python benchmarks/step.py --kinds [--families ...]    # the pyramid term of each kind alone, too
    python benchmarks/step.py --count [--families ...]    # pieces instead of seconds: see benchmarks/pieces.py

For each family, on the recipe's own student and teacher (R50 -> R18, random weights) and one batch of random images,
all in one process and interleaved:

    plain      the student's training step: forward, losses, backward
    teacher    the teacher's forward, as the distiller runs it
    added      the layers that distillation adds, alone: adapters and assistant predictors, forward and backward; for a
               two-stage detector also what the equations force on top (docs/algorithm.md 6.1), `forced`: both networks'
               RoI features and box heads at the RoIs of the other
    distilled  the whole distilled step

    ratio = distilled / plain      bound = (plain + teacher + added) / plain      over_bound = ratio / bound

Times are medians over the rounds, in seconds. peak_mb: what the distilled step needs at its peak beyond the plain step
and the teacher's forward; tapped_mb, for comparison: all features that are compared, of student and teacher. With
--kinds each family has a row more for each kind of pyramid loss (docs/rival_terms.md), distilled by that term alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import asdict, astuple, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from cskd_core.distiller import Distiller
from cskd_core.family import Batch, Observation
from cskd_core.plan import DistillPlan, PyramidKind, PyramidPlan
from cskd_core.roi_terms import RoiObservation
from cskd_train import mm  # noqa: F401  (before any mmcv import)
from cskd_train.engine.device import keep_freed_memory
from cskd_train.engine.step import PRECISIONS, summed
from cskd_train.files.config import load_config
from cskd_train.mm.detector import DistilledDetector, float32_heads
from cskd_train.mm.families import family_of
from cskd_train.mm.folding import folded
from cskd_train.mm.plain import build_without_pretrained

sys.path.insert(0, str(Path(__file__).parent))
import machine
import memory
import pieces
import stored
from cost import Cost, named, table
from timing import Step, timed
from width import scaled

ROOT = Path(__file__).parents[1]
RECIPES = {
    "RetinaNet": "cskd_retina_r50_distill_r18_fpn_coco_1x",
    "FCOS": "cskd_fcos_r50_distill_r18_fpn_coco_1x",
    "GFL": "cskd_gfl_r50_distill_r18_fpn_coco_1x",
    "FasterRCNN": "cskd_faster_rcnn_r50_distill_r18_fpn_coco_1x",
}
NARROW = 1 / 8  # of the recipe's channels


def teacher_config(plan: DistillPlan) -> str:
    """A recipe's, from wherever the benchmark is called."""
    name = plan.teacher.config or ""
    return name if name.startswith("mmdet::") else str(ROOT / name)


class Bench:
    """One family's student, teacher and batch, and the four steps that are timed.

    Args:
        pyramid: the kind of the pyramid's loss, where it is the only term.
    """

    def __init__(
        self,
        family: str,
        images: int,
        size: tuple[int, int],
        boxes: int,
        device: torch.device,
        amp: str | None = None,
        narrow: bool = False,
        pyramid: PyramidKind | None = None,
    ) -> None:
        torch.manual_seed(0)
        cfg = load_config(ROOT / "configs" / "cskd" / f"{RECIPES[family]}.py")
        plan = DistillPlan.parse(cfg.distill)
        if pyramid is not None:
            alone = PyramidPlan(kind=pyramid)
            plan = DistillPlan(plan.teacher, pyramid=alone, tower=None, prediction=None, assistant=None, roi=None)
        width = NARROW if narrow else 1
        student = build_without_pretrained(scaled(cfg.model, width))
        student.init_weights()  # type: ignore[operator]
        teacher = build_without_pretrained(scaled(load_config(teacher_config(plan)).model, width))
        teacher.init_weights()  # type: ignore[operator]
        self.family = family_of(student)
        teacher = folded(teacher, self.family)
        self.model = DistilledDetector(student, Distiller(student, teacher, self.family, plan)).to(device).train()
        self.device, self.amp, self.narrow, self.kind = device, amp, narrow, pyramid
        self._scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        height, width = size
        self.images = torch.randn(images, 3, height, width, device=device)
        corners = torch.rand(images, boxes, 2) * torch.tensor([width * 0.7, height * 0.7])
        sides = 16 + torch.rand(images, boxes, 2) * torch.tensor([width * 0.3 - 16, height * 0.3 - 16])
        self.boxes = list(torch.cat([corners, corners + sides], 2).to(device))
        self.labels = list(torch.randint(0, 80, (images, boxes), device=device))
        shape = (height, width, 3)
        self.metas = [
            {"img_shape": shape, "pad_shape": shape, "ori_shape": shape, "scale_factor": 1.0, "flip": False}
        ] * images
        self._probe()

    def plain(self) -> None:
        with self._autocast(), float32_heads(self.model.student):
            losses = self.model.student(
                img=self.images, img_metas=self.metas, return_loss=True, gt_bboxes=self.boxes, gt_labels=self.labels
            )
        self._backward(losses)

    def teacher(self) -> Any:
        with self._autocast():
            return self.model.distiller.teacher.observe(self.images)

    def distilled(self) -> None:
        with self._autocast():
            losses = self.model(self.images, self.metas, gt_bboxes=self.boxes, gt_labels=self.labels)
        self._backward(losses)

    def added(self) -> None:
        """Adapters and assistants on tensors of the right shapes, forward and backward, inputs included."""
        for layer, feature in self._layers:
            leaf = feature.requires_grad_()
            leaf.grad = None
            output = layer(leaf)
            output.backward(torch.ones_like(output))

    def forced(self) -> None:
        """The second stages at the other's RoIs; nothing for a one-stage detector."""
        if self.model.distiller.roi is None:
            return
        student, teacher = self._observations
        leaves = [level.detach().requires_grad_() for level in student.pyramid]
        rois = self._observe_rois((replace(student, pyramid=leaves), teacher))
        student_outputs = [rois.predictions["cls"][0], rois.predictions["reg"][0], rois.at_teacher[0]]
        torch.autograd.backward(student_outputs, [torch.ones_like(output) for output in student_outputs])

    def _observe_rois(self, observations: tuple[Observation, Observation]) -> RoiObservation:
        assert self.family.second_stage is not None
        teacher = self.model.distiller.teacher.detector
        return self.family.second_stage.observe(self.model.student, teacher, self._recording, observations, self._batch)

    def tapped_bytes(self) -> int:
        """Of the features that the terms compare, student's and teacher's."""
        tensors: list[Tensor] = []
        for observation in self._observations:
            tensors += observation.pyramid
            if self.model.distiller.tower is not None:
                tensors += (level for tower in observation.towers.values() for stage in tower for level in stage)
            if self.model.distiller.prediction is not None:
                tensors += (level for levels in observation.predictions.values() for level in levels)
        if self._rois is not None:
            for pair in (
                self._rois.at_student,
                self._rois.at_teacher,
                *self._rois.fc,
                *self._rois.predictions.values(),
            ):
                tensors += pair
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _probe(self) -> None:
        """One watched forward: what the added layers see."""
        distiller = self.model.distiller
        with torch.no_grad(), distiller.watch() as recording:
            self.model.student(
                img=self.images, img_metas=self.metas, return_loss=True, gt_bboxes=self.boxes, gt_labels=self.labels
            )
        self._recording = recording
        student = self.family.read(self.model.student, recording).in_one_precision()
        self._observations = (student, distiller.teacher.observe(self.images).in_one_precision())
        shapes = [meta["img_shape"][:2] for meta in self.metas]
        self._batch = Batch(self.images, self.boxes, shapes, self.labels, self.metas)
        layers: list[tuple[torch.nn.Module, Tensor]] = []
        if distiller.pyramid is not None:
            layers += zip(distiller.pyramid.adapters, student.pyramid, strict=True)
        if distiller.tower is not None:
            for name, levels in distiller.tower.adapters.items():
                for level, stages in enumerate(levels):  # type: ignore[arg-type]
                    layers += [(adapter, student.towers[name][stage][level]) for stage, adapter in enumerate(stages)]
        if distiller.assistant is not None:
            towers = distiller.assistant._towers
            for name, predictor in distiller.assistant.predictors.items():
                layers += [(predictor, feature) for feature in student.towers[towers[name]][-1]]
        self._rois = None
        if distiller.roi is not None:
            with torch.no_grad():
                rois = self._rois = self._observe_rois(self._observations)
            layers += [
                (distiller.roi.adapters["student"], rois.at_student[0]),
                (distiller.roi.adapters["teacher"], rois.at_teacher[0]),
                *((adapter, pair[0]) for adapter, pair in zip(distiller.roi.fc_adapters, rois.fc, strict=True)),
                *((predictor, rois.fc[-1][0]) for predictor in distiller.roi.assistant.values()),
            ]
        self._layers = [(layer, feature.detach().clone()) for layer, feature in layers]

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, PRECISIONS[self.amp], enabled=self.amp is not None)

    def _backward(self, losses: dict[str, Any]) -> None:
        total, _ = summed(losses)
        self._scaler.scale(total).backward()
        self.model.zero_grad(set_to_none=True)


def measure(bench: Bench, family: str, rounds: int) -> Cost:
    """Medians over interleaved rounds, after one round that does not count."""
    steps: dict[str, Step] = {
        "plain": bench.plain,
        "teacher": bench.teacher,
        "added": bench.added,
        "forced": bench.forced,
        "distilled": bench.distilled,
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for counted in range(rounds + 1):
        for name, step in steps.items():
            seconds = timed(step, bench.device)
            if counted:
                times[name].append(seconds)
    median = {name: statistics.median(values) for name, values in times.items()}
    added = median["added"] + median["forced"]
    ratio = median["distilled"] / median["plain"]
    bound = (median["plain"] + median["teacher"] + added) / median["plain"]
    peaks = {name: memory.peak(steps[name], bench.device) for name in ("plain", "teacher", "distilled")}
    return Cost(
        family=family,
        plain_s=median["plain"],
        teacher_s=median["teacher"],
        added_s=added,
        forced_s=median["forced"],
        distilled_s=median["distilled"],
        ratio=ratio,
        bound=bound,
        over_bound=ratio / bound,
        peak_mb=(peaks["distilled"] - peaks["plain"] - peaks["teacher"]) / 1e6,
        tapped_mb=bench.tapped_bytes() / 1e6,
        images=len(bench.images),
        height=bench.images.shape[2],
        width=bench.images.shape[3],
        boxes=len(bench.boxes[0]),
        device=torch.cuda.get_device_name()
        if bench.device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        amp=bench.amp,
        narrow=bench.narrow,
        pyramid=bench.kind,
    )


@dataclass(frozen=True)
class Pieces:
    """Calls of operators and waits of the host, see `pieces`: of each step, and what distilling adds."""

    plain: int
    teacher: int
    distilled: int
    calls: int
    waits: int


def added_pieces(bench: Bench) -> Pieces:
    """The distilled step's less the plain step's and the teacher's forward; waits less the plain step's."""
    found = {name: pieces.count(getattr(bench, name)) for name in ("plain", "teacher", "distilled")}
    calls = {name: one.calls.total() for name, one in found.items()}
    return Pieces(
        **calls,
        calls=calls["distilled"] - calls["plain"] - calls["teacher"],
        waits=found["distilled"].waits.total() - found["plain"].waits.total(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--images", type=int, default=2, help="images a batch [2]")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 416), metavar=("H", "W"), help="[320 416]")
    parser.add_argument("--boxes", type=int, default=8, help="ground-truth boxes an image [8]")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU [2]")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--amp", choices=[name for name in PRECISIONS if name], help="as of `cskd-train run`")
    parser.add_argument("--narrow", action="store_true", help="an eighth of the channels, to try the benchmark itself")
    parser.add_argument("--json", type=Path, metavar="FILE", help="one JSON line a family")
    parser.add_argument("--kinds", action="store_true", help="a row more for each kind of pyramid loss, alone")
    parser.add_argument("--count", action="store_true", help="count operator calls and waits instead of seconds")
    options = parser.parse_args()
    if options.count and options.json:
        parser.error("--json takes seconds, which --count does not measure: leave one of them out")
    stored.ready(options.json)
    origin = machine.origin()
    torch.set_num_threads(options.threads)
    device, costs = torch.device(options.device), []
    if device.type == "cpu":
        keep_freed_memory()  # as `cskd-train run`
    if options.count:
        print(f"{'':<22}" + "".join(f"{one:>11}" for one in ("plain", "teacher", "distilled", "added", "more waits")))
    alone: list[PyramidKind | None] = list(get_args(PyramidKind)) if options.kinds else []
    for family, kind in product(options.families, [None, *alone]):
        size = tuple(options.size)
        bench = Bench(family, options.images, size, options.boxes, device, options.amp, options.narrow, kind)
        if options.count:
            print(named(family, kind) + "".join(f"{one:>11}" for one in astuple(added_pieces(bench))), flush=True)
            continue
        costs.append(measure(bench, family, options.rounds))
        stored.write_lines(options.json, [{**asdict(cost), **origin} for cost in costs])
        print(table(costs[-1:]) if len(costs) == 1 else table(costs[-1:]).splitlines()[1], flush=True)


if __name__ == "__main__":
    main()
