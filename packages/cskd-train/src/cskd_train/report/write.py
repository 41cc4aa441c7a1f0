"""One HTML file of a run, or of several beside each other: nothing in it asks the network for anything."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import cskd_data
from cskd_data.files import write_atomically
from cskd_data.merge import merge
from cskd_train.engine.device import choose_device
from cskd_train.engine.outputs import check_output
from cskd_train.errors import REFUSALS
from cskd_train.files.checkpoints import load_checkpoint
from cskd_train.files.config import config_from_data, load_config
from cskd_train.files.overrides import move_root
from cskd_train.mm.data_sources import sources
from cskd_train.report import accuracy, deployed, training
from cskd_train.report.detected import Asked, Looked, look
from cskd_train.report.guidance import guidance
from cskd_train.report.markup import Html, element, joined
from cskd_train.report.pictures import Pictures
from cskd_train.report.runs import Detector, Subject, read_subjects, stated_root, unique
from cskd_train.report.style import STYLE
from cskd_train.tables.work_dirs import validation_of

NAME = "report.html"
IMAGES = 500
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        file: the page.
        figures: what it shows, as plain data.
        missing: sentences on what could not be had.
    """

    file: Path
    figures: Mapping[str, Any]
    missing: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {"file": str(self.file), **self.figures, "missing": list(self.missing)}

    def __str__(self) -> str:
        size = self.file.stat().st_size / 1e6
        return "\n".join([f"{self.file} ({size:.1f} MB)", *(f"  not in it: {one}" for one in self.missing)])


def write_report(
    work_dir: Path | str,
    *others: Path | str,
    output: Path | str | None = None,
    split: str = "val",
    images: int = IMAGES,
    settings: Mapping[str, Any] | None = None,
    deploy: Path | str | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Report:
    """Write a page on a run, its teacher and its student alone; on several runs, compared.

    Args:
        work_dir: of a run, finished or under way, or the folder of a project.
        others: the same.
        output: the HTML file; None is `report.html` in the first folder. Detections are kept in `report_cache` beside.
        split: val or test, on whose images detectors are looked at.
        images: the most of them, evenly spaced; 0 looks at none.
        settings: dotted key -> value, changes to the config that says which data, as `--set` gives them.
        deploy: `report.json` of cskd-deploy, or its folder; None looks beside the run.
        device: auto, cpu or cuda.
        console: takes the progress; None prints nothing.

    Raises:
        TrainError: a folder holds no run, or one without any step; a file of it is broken.
        DataError: the page cannot be written, or would replace a file that it is made from.
    """
    folders = [Path(one) for one in (work_dir, *others)]
    subjects = read_subjects(folders)
    file = Path(output) if output is not None else folders[0] / NAME
    check_output(file, _inputs(subjects, deploy))
    forms = [deployed.read(subject, Path(deploy) if deploy is not None else None) for subject in subjects]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = console or Console(quiet=True, force_terminal=False)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def progress(name: str, done: int, of: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=of)
            bar.update(tasks[name], completed=done, total=of)

        asked = Asked(
            split, images, settings or {}, choose_device(device), file.with_name(f"{file.stem}_cache"), progress
        )
        page = _Page(subjects, forms, asked)
        content = page.html()
    write_atomically(file, lambda opened: opened.write(content.encode()))
    return Report(file, page.figures, page.missing)


def _inputs(subjects: Sequence[Subject], deploy: Path | str | None) -> Iterator[Path | None]:
    """The files that a page is made from, but for images."""
    yield None if deploy is None else Path(deploy)
    for subject in subjects:
        for one in subject.detectors:
            yield one.checkpoint
            yield from () if one.run is None else one.run.files.files
        for split in (subject.run.config.get("data") or {}).values():
            with contextlib.suppress(*REFUSALS, TypeError):  # no split; what cannot be read is said on the page
                yield from (subject.run.located(source.ann_file) for source in sources(split))


class _Page:
    """The sections of a page, and what they show as plain data."""

    def __init__(self, subjects: Sequence[Subject], forms: Sequence[Any], asked: Asked) -> None:
        self.subjects, self.forms, self.asked = subjects, forms, asked
        self.detectors = unique(subjects)
        self.pictures = Pictures()
        self.missing: list[str] = []
        self.figures: dict[str, Any] = {"detectors": [_figures(one) for one in self.detectors], "looked_at": []}
        self._sections: list[tuple[str, str, Sequence[Html]]] = []

    def html(self) -> str:
        several = len(self.subjects) > 1
        self._logs(several)
        groups: dict[str, list[Subject]] = {}
        for subject in self.subjects:
            groups.setdefault(validation_of(subject.run.config) or str(subject.folder), []).append(subject)
        for group in groups.values():
            names = " and ".join(subject.title for subject in group)
            self._looked_at(group, f": {names}" if len(groups) > 1 else "")
        self._exported(several)
        self._add("Time", training.time(self.detectors))
        return self._whole()

    def _add(self, title: str, content: Sequence[Html]) -> None:
        self._sections.append((f"section{len(self._sections)}", title, content))

    def _logs(self, several: bool) -> None:
        said = []
        for one in self.subjects:
            said += [element("h3", one.title)] if several else []
            said += [element("p", sentence) for sentence in training.sentences(one)]
        self._add("Overview", [training.overview(self.detectors, self.subjects), *said])
        for subject in self.subjects:
            self._add(f"Recipe: {subject.title}" if several else "Recipe", training.recipe(subject))
        self._add("mAP by epoch", training.precision_by_epoch(self.detectors, self.subjects))
        runs = [(one.run, one.name) for one in reversed(self.detectors) if one.run is not None]
        curves = [piece for run, name in runs for piece in (element("h3", name), *training.losses(run, name))]
        self._add("Losses and learning rate", curves)

    def _exported(self, several: bool) -> None:
        content: list[Html] = []
        for (source, rows), subject in zip(self.forms, self.subjects, strict=True):
            if source is not None:
                head = [element("h3", subject.title)] if several else []
                content += [*head, *deployed.section(source, rows)]
        self._add("Exported forms", content or deployed.section(None, []))
        self.figures["forms"] = [
            {"of": subject.title, "rows": rows} for (_, rows), subject in zip(self.forms, self.subjects, strict=True)
        ]

    def _looked_at(self, group: Sequence[Subject], title: str) -> None:
        """The sections on runs that have the same validation images."""
        subject, moved = group[0], _moved(group[0])
        self._add(f"Data{title}", accuracy.data(_splits(subject, moved, self.asked), self.pictures))
        looked = look(unique(group), subject.main, moved, self.asked)
        self.missing += looked.missing
        head = accuracy.looked_at(looked, self.asked.split)
        if not looked.found:
            self._add(f"Accuracy{title}", head)
            return
        found = looked.found
        self.figures["looked_at"].append(_measured(group, looked, self.asked.split))
        self._add(f"Precision, recall and threshold{title}", [*head, *accuracy.curves(found)])
        self._add(f"AP of each class{title}", accuracy.classes(found))
        self._add(f"Errors by kind{title}", accuracy.errors(found))
        why, images = accuracy.chosen_images(found)
        self._add(f"Detections beside the truth{title}", accuracy.detections(found, images, why, self.pictures))
        for one in group:
            if one.run.distilled:
                name = f": {one.title}" if len(self.subjects) > 1 else ""
                looking = partial(guidance, one, _moved(one), images[: accuracy.MAPS], self.asked)
                self._add(f"Guidance{name}", accuracy.guidance(looking, self.pictures))

    def _whole(self) -> str:
        title = " and ".join(subject.title for subject in self.subjects)
        links = [element("li", element("a", name, href=f"#{mark}")) for mark, name, _ in self._sections]
        sections = [element("section", element("h2", name), content, id=mark) for mark, name, content in self._sections]
        head = [
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            element("meta", name="color-scheme", content="light dark"),
            element("title", f"{title}: report of a training"),
            element("style", Html(STYLE)),
        ]
        figures = json.dumps({**self.figures, "missing": self.missing}, default=str).replace("<", "\\u003c")
        body = [
            element("h1", title),
            element("nav", element("ul", links), aria_label="Sections"),
            element("main", sections),
            self.pictures.all(),
            element("script", Html(figures), type="application/json", id="figures"),
        ]
        return (
            "<!DOCTYPE html>\n"
            + element("html", element("head", head), element("body", joined(body)), lang="en")
            + "\n"
        )


def _figures(one: Detector) -> dict[str, Any]:
    run = one.run
    about: dict[str, Any] = {"name": one.name, "role": one.role, "checkpoint": one.checkpoint and str(one.checkpoint)}
    if run is not None:
        keys = ("seed", "seconds", "images_per_second")
        about |= {"folder": str(run.folder), "finished": bool(run.result), "best": dict(run.best), "epochs": run.epochs}
        about |= {key: run.result[key] for key in keys if key in run.result}
        about["val"] = [{"epoch": record["epoch"], "bbox_mAP": record["bbox_mAP"]} for record in run.evaluations]
        about["phases"] = dict(zip(training.PHASES, training.phases(run) or (), strict=False))
        about["test"] = dict(run.test.get("metrics") or {})
    return about


def _measured(group: Sequence[Subject], looked: Looked, split: str) -> dict[str, Any]:
    assert looked.data is not None
    of_each = {
        one.detector.name: {
            "metrics": dict(one.result.metrics),
            "per_class": dict(one.result.per_class),
            "threshold": one.point and {**vars(one.point), "f1": one.point.f1},
            "errors": one.errors.to_dict(),
        }
        for one in looked.found
    }
    return {
        "of": [one.title for one in group],
        "split": split,
        "images": len(looked.data.images),
        "in_all": looked.of,
        "found": of_each,
    }


def _moved(subject: Subject) -> tuple[str, str]:
    """Where a project was when it was trained, and where it is."""
    return stated_root(subject.folder / "work_dirs" / "distill.json"), str(subject.folder.resolve())


def _splits(subject: Subject, moved: tuple[str, str], asked: Asked) -> dict[str, cskd_data.Dataset | str]:
    """The data of each split of a run's config."""
    try:
        if subject.main.checkpoint is not None:
            stored = load_checkpoint(subject.main.checkpoint).config
            cfg = config_from_data(
                move_root(dict(stored), *moved), {**subject.run.data_root(stored), **asked.overrides}
            )
        else:
            stored = config_from_data(move_root(dict(load_config(subject.run.files.config).items()), *moved))
            cfg = config_from_data(dict(stored.items()), {**subject.run.data_root(stored), **asked.overrides})
    except REFUSALS as error:
        return {"train": str(error)}
    found: dict[str, cskd_data.Dataset | str] = {}
    for split in ("train", "val", "test"):
        if not (cfg.get("data") or {}).get(split):
            continue
        try:
            found[split] = merge([source.read() for source in sources(cfg.data[split])])
        except REFUSALS as error:
            found[split] = str(error)
    return found
