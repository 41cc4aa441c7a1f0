"""The sections of a report that its logs alone make: figures of all detectors, losses, learning rate, mAP, time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cskd_train.engine.terms import DISTILLATION, SHARE
from cskd_train.project.budget import duration
from cskd_train.report import words
from cskd_train.report.charts import Axis, Series, line_chart, stacked_bars, thinned, tick
from cskd_train.report.markup import Html, element, folded, note, table
from cskd_train.report.runs import Detector, ReadRun, Subject
from cskd_train.results import RunResult, next_steps

METRICS = ("bbox_mAP", "bbox_mAP_50", "bbox_mAP_75", "bbox_mAP_s", "bbox_mAP_m", "bbox_mAP_l")
_TITLES = ("mAP", "AP50", "AP75", "small", "medium", "large")
_MOST_ROWS = 60
PHASES = ("training", "waiting for data", "teacher check", "evaluation, saving and the rest")


def metric(value: Any, digits: int = 3) -> str:
    """A COCO figure in [0, 1]; a dash where there is none, or nothing of that size."""
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) and value >= 0 else "-"


def overview(detectors: Sequence[Detector], subjects: Sequence[Subject]) -> Html:
    """Every detector's best epoch on its validation split; of a teacher without a run, what its students' runs say."""
    taught = {subject.teacher.name: subject.run.teacher.get("val_bbox_mAP") for subject in subjects if subject.teacher}
    tested = any(one.run is not None and one.run.test for one in detectors)
    head = ["", *_TITLES, *(["test mAP"] if tested else []), "best epoch", "epochs", "seed", "time"]
    rows = []
    for one in detectors:
        run = one.run
        if run is None:
            rows.append([one.name, metric(taught.get(one.name)), *["-"] * (len(head) - 2)])
            continue
        best, result = run.best, run.result
        figures = [metric(best.get(name)) for name in METRICS]
        test = [metric((run.test.get("metrics") or {}).get("bbox_mAP"))] if tested else []
        epochs = str(run.epochs or "-") if result else f"{run.log[-1]['epoch']} of {run.epochs or '?'}"
        took = duration(result["seconds"]) if isinstance(result.get("seconds"), (int, float)) else "under way"
        seed = result.get("seed", "-")
        rows.append([one.name, *figures, *test, str(best.get("epoch") or "-"), epochs, str(seed), took])
    return table(head, rows, caption="COCO box metrics of the best epoch on the validation split, in [0, 1]")


def sentences(subject: Subject) -> list[str]:
    """What to make of a run, as it said itself at its end."""
    result = subject.run.result
    known = {key: value for key, value in result.items() if key in RunResult.__dataclass_fields__}
    try:
        return [_sentence(one) for one in next_steps(RunResult(**known))] if result else [_under_way(subject.run)]
    except (TypeError, KeyError):  # a result that an older version wrote
        return []


def _sentence(text: str) -> str:
    """With a capital letter and a full stop; a command at its end has none, which would be copied with it."""
    first = text[:1] if text.startswith("mAP") else text[:1].upper()
    return f"{first}{text[1:]}{'' if 'cskd-train ' in text else '.'}"


def _under_way(run: ReadRun) -> str:
    epoch = run.log[-1]["epoch"] if run.log else 0
    return f"This run is not finished: epoch {epoch} of {run.epochs or '?'} is the last in its log."


def recipe(subject: Subject) -> list[Html]:
    """The recipe in words, and all of it behind a line."""
    run = subject.run
    said = words.recipe(run.config) or ["There is no config.json in the work dir, so the recipe is not known."]
    about = [["work dir", run.folder]]
    about += [[key, run.result[key]] for key in ("command", "started", "device") if run.result.get(key)]
    if versions := run.result.get("versions"):
        about.append(["versions", ", ".join(f"{name} {version}" for name, version in versions.items())])
    content = [element("p", " ".join(said)), table(["", ""], about, text_columns=2)]
    if run.config:
        content.append(folded("The whole config", element("pre", json.dumps(dict(run.config), indent=1))))
    return content


def losses(run: ReadRun, name: str) -> list[Html]:
    """Curves of the loss and its terms, of each term's share, and of the learning rate."""
    steps = run.steps
    if not steps:
        return [note(f"{name}: no step is logged, so there are no curves of its losses.")]
    terms = [key for key in steps[-1] if "loss" in key]
    curves = [_curve(steps, key, key.removeprefix("loss_"), place) for place, key in enumerate(terms)]
    across = Axis("step", whole=True)
    charts = [
        line_chart(curves, across, Axis("loss", log=True), caption=f"{name}: loss by term (logarithmic)",
                   alt=f"Loss of {name} by term over the steps"),
    ]  # fmt: skip
    shares = [key for key in steps[-1] if key.startswith(SHARE)]
    if shares:
        shown = [
            _curve(steps, key, "all of the distillation" if key == DISTILLATION else key.removeprefix(SHARE), place)
            for place, key in enumerate(shares)
        ]
        charts.append(
            line_chart(shown, across, Axis("share of the loss", 0, 1), caption=f"{name}: share of each term",
                       alt=f"Share of each term in the loss of {name}")
        )  # fmt: skip
    rate = Series("learning rate", [(one["iter"], one["lr"]) for one in steps], 0)
    charts.append(
        line_chart([rate], across, Axis("learning rate", 0), caption=f"{name}: learning rate",
                   alt=f"Learning rate of {name} over the steps")
    )  # fmt: skip
    head = ["step", "epoch", "lr", *(term.removeprefix("loss_") for term in terms)]
    rows = [
        [one["iter"], one["epoch"], tick(one["lr"]), *(_given(one.get(term)) for term in terms)]
        for one in thinned(steps, _MOST_ROWS)
    ]
    few = f", {_MOST_ROWS} of {len(steps)} records" if len(steps) > _MOST_ROWS else ""
    return [
        element("div", charts, class_="charts"),
        folded(f"The losses of {name} as figures{few}", table(head, rows, text_columns=0)),
    ]


def _curve(steps: Sequence[Mapping[str, Any]], key: str, name: str, colour: int) -> Series:
    return Series(name, [(one["iter"], one[key]) for one in steps if _is_number(one.get(key))], colour)


def precision_by_epoch(detectors: Sequence[Detector], subjects: Sequence[Subject]) -> list[Html]:
    """mAP over the epochs of each run, and the best of teacher and student alone as lines."""
    curves, columns = [], []
    for one in detectors:
        if one.run is not None and one.run.evaluations:
            points = [(record["epoch"], record["bbox_mAP"]) for record in one.run.evaluations]
            best = one.run.best
            marks = [(best["epoch"], best["bbox_mAP"])] if best.get("epoch") is not None else []
            curves.append(Series(one.name, points, one.colour, marks=marks))
            columns.append((one.name, dict(points)))
    if not curves:
        return [note("No epoch was evaluated yet: there is no mAP.")]
    curves += [line for subject in subjects for line in _levels(subject)]
    chart = line_chart(
        curves, Axis("epoch", whole=True), Axis("mAP", 0), labels=True,
        caption="mAP on the validation split by epoch; the best epoch is the large point, the level lines are the best "
        "of teacher and student alone", alt="mAP by epoch",
    )  # fmt: skip
    epochs = sorted({epoch for _, values in columns for epoch in values})
    rows = [[epoch, *(metric(values.get(epoch), 4) for _, values in columns)] for epoch in epochs]
    figures = folded("mAP by epoch as figures", table(["epoch", *(name for name, _ in columns)], rows, text_columns=0))
    return [element("div", chart, class_="charts"), figures]


def _levels(subject: Subject) -> list[Series]:
    """What is known of the best mAP of teacher and student alone."""
    teacher, alone = subject.run.teacher.get("val_bbox_mAP"), subject.run.result.get("baseline", {}).get("bbox_mAP")
    found = []
    for role, one, known in (("teacher", subject.teacher, teacher), ("student alone", subject.alone, alone)):
        value = known
        if value is None and one is not None and one.run is not None:
            value = one.run.best.get("bbox_mAP")
        if value is not None:
            name = f"best of {one.name if one is not None else role}"
            colour = one.colour if one is not None else {"teacher": 1, "student alone": 2}[role]
            found.append(Series(f"{name} ({value:.3f})", [(0, value)], colour, level=True))
    return found


def phases(run: ReadRun) -> list[float] | None:
    """Seconds of `PHASES`; None where no step says what it took."""
    trained = waited = 0.0
    before = 0
    for one in run.steps:
        if not (_is_number(one.get("time")) and _is_number(one.get("data_time"))):
            return None
        steps, before = one["iter"] - before, one["iter"]
        trained += steps * one["time"]
        waited += steps * one["data_time"]
    if not trained:
        return None
    looked = run.teacher.get("seconds") or 0.0
    rest = (run.result.get("seconds") or trained) - trained - looked
    return [trained - waited, waited, looked, max(rest, 0.0)]


def time(detectors: Sequence[Detector]) -> list[Html]:
    """Where the time of each run went."""
    rows = [(one, found) for one in detectors if one.run is not None and (found := phases(one.run)) is not None]
    if not rows:
        return [note("No run says what its steps took.")]
    unfinished = [one.name for one, _ in rows if one.run is not None and not one.run.result]
    chart = stacked_bars(
        [(one.name, values) for one, values in rows], PHASES, said=duration,
        caption="Wall time of each run by phase", alt="Wall time of each run by phase",
    )  # fmt: skip
    head = ["", *PHASES, "in all", "images/s"]
    figures = [
        [one.name, *map(duration, values), duration(sum(values)), _rate(one.run)]
        for one, values in rows
        if one.run is not None
    ]
    content: list[Html] = [element("div", chart, class_="charts"), table(head, figures)]
    if unfinished:
        content.append(note(f"Under way, the time of evaluations is not known yet: {', '.join(unfinished)}."))
    return content


def _rate(run: ReadRun) -> str:
    rate = run.result.get("images_per_second")
    return f"{rate:.1f}" if _is_number(rate) else "-"


def _given(value: Any) -> str:
    return tick(value) if _is_number(value) else "-"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
