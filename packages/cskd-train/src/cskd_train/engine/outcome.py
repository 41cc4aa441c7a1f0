"""What a run was and came to, for `result.json`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from cskd_train.engine.device import device_name
from cskd_train.engine.records import read_log, versions
from cskd_train.mm.families import export_note
from cskd_train.results import RunResult, still_improving

if TYPE_CHECKING:
    from cskd_train.engine.run import Run


def outcome(run: Run) -> RunResult:
    """The result of a run that is through; every process of it has to ask."""
    state = run.trained.state
    return RunResult(
        config=run.options.config,
        work_dir=str(run.work_dir.root),
        seed=run.seed,
        distilled=run.parts.distiller is not None,
        epochs=run.cfg.runner.max_epochs,
        iterations=run.position.step,
        last=state.last,
        best=state.best,
        best_epoch=state.best_epoch,
        seconds=state.seconds,
        images_per_second=state.images_per_second,
        data_share=state.data_share,
        device=device_name(run.world.device),
        processes=run.world.size,
        skipped_steps=state.skipped,
        images={split: used for split, (used, _) in run.parts.images.items()},
        skipped_images={split: skipped for split, (_, skipped) in run.parts.images.items()},
        command=run.options.command or shlex.join(run.options.words),
        started=run.started,
        start=run.start,
        teacher=run.teacher,
        baseline=_baseline(run),
        exportable=export_note(run.cfg.model) is None,
        improving=still_improving([one["bbox_mAP"] for one in read_log(run.work_dir.log) if one["mode"] == "val"]),
        versions=versions(),
    )


def _baseline(run: Run) -> dict[str, Any]:
    """The student alone as it stands beside a distilled run at its end, for `result.json`."""
    alone = run.student_alone() if run.parts.distiller is not None and run.parts.validation else None
    if alone is None:
        return {}
    return {"work_dir": str(alone.folder), "seed": alone.seed, "bbox_mAP": alone.best / 100}
