"""The sections of a report that need detections: data, precision and recall, classes, errors, pictures, guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import cskd_data
from cskd_data.error_kinds import KINDS
from cskd_data.operating_point import IOU
from cskd_train.errors import REFUSALS
from cskd_train.report.charts import Axis, Series, bar_chart, line_chart, thinned
from cskd_train.report.detected import Found, Looked
from cskd_train.report.guidance import Guidance
from cskd_train.report.markup import Html, element, figure, folded, note, table
from cskd_train.report.matches import Marked, OnImage, changed_most, on_images, worst
from cskd_train.report.pictures import Pictures, heat_over
from cskd_train.report.training import metric

SAMPLES, ROWS, MAPS = 6, 4, 2
"""Pictures of the data, rows of detections, images with guidance."""
_MOST_CLASSES = 30


def data(splits: dict[str, cskd_data.Dataset | str], pictures: Pictures) -> list[Html]:
    """Numbers of images and boxes, and some pictures of the first split with their boxes.

    Args:
        splits: the data of each, or a sentence on why it cannot be had.
    """
    read = {split: found for split, found in splits.items() if isinstance(found, cskd_data.Dataset)}
    content = [note(f"data.{split} cannot be read: {why}") for split, why in splits.items() if isinstance(why, str)]
    if not read:
        return content
    counts = [found.boxes_per_class for found in read.values()]
    names = list(dict.fromkeys(name for one in counts for name in one))
    rows: list[list[Any]] = [["images", *(len(found.images) for found in read.values())]]
    rows.append(["boxes", *(len(found.annotations) for found in read.values())])
    rows += [[name, *(one.get(name, 0) for one in counts)] for name in names[:_MOST_CLASSES]]
    content.append(table(["", *read], rows, caption="Images, boxes, and boxes of each class"))
    if len(names) > _MOST_CLASSES:
        content.append(note(f"The first {_MOST_CLASSES} of {len(names)} classes are shown."))
    split, first = next(iter(read.items()))
    content.append(element("h3", f"Pictures of {split} with their boxes"))
    return [*content, element("div", _samples(first, pictures), class_="pictures")]


def _samples(found: cskd_data.Dataset, pictures: Pictures) -> list[Html]:
    with_boxes = {one["image_id"] for one in found.annotations}
    images = [image for image in found.images if image["id"] in with_boxes] or found.images
    chosen = np.linspace(0, len(images) - 1, min(SAMPLES, len(images))).round().astype(int)
    drawn = []
    for image in (images[place] for place in chosen):
        boxes = [
            Marked(one["bbox"], found.classes[one["category_id"] - 1], True)
            for one in found.annotations
            if one["image_id"] == image["id"]
        ]
        drawn.append(_drawn(found, image, boxes, pictures, image["file_name"], f"{image['file_name']} with its boxes"))
    return drawn


def _drawn(
    found: cskd_data.Dataset,
    image: dict[str, Any],
    boxes: Sequence[Marked],
    pictures: Pictures,
    caption: str,
    alt: str,
    over: Sequence[Html] = (),
) -> Html:
    """A picture with its caption, or a sentence on why it cannot be shown."""
    try:
        return figure(pictures.drawn(found.path(image), boxes, alt, over), caption=caption)
    except REFUSALS as error:
        return note(f"{image['file_name']} cannot be shown: {error}")


def looked_at(looked: Looked, split: str) -> list[Html]:
    """What the figures that follow are over, and what could not be had."""
    content = [note(f"{one}.") for one in (sentence.rstrip(".") for sentence in looked.missing)]
    if looked.data is not None and looked.found:
        shown = len(looked.data.images)
        which = f"all {shown} images" if shown == looked.of else f"{shown} of {looked.of} images, evenly spaced,"
        content.insert(0, element("p", f"On {which} of data.{split}, by the best epoch of each detector."))
    return content


def curves(found: Sequence[Found]) -> list[Html]:
    """Precision over recall and F1 over the score, with the threshold that has the best F1."""
    falling, scores = [], []
    for one in found:
        curve, colour, name = one.curve, one.detector.colour, one.detector.name
        points = list(zip(curve.recall.tolist(), curve.precision.tolist(), strict=True))
        point = one.point
        at = [(point.recall, point.precision)] if point else []
        falling.append(Series(name, points, colour, marks=at))
        by_score = list(zip(curve.scores.tolist(), curve.f1.tolist(), strict=True))[::-1]
        scores.append(Series(name, by_score, colour, marks=[(point.threshold, point.f1)] if point else []))
    charts = [
        line_chart(falling, Axis("recall", 0, 1), Axis("precision", 0, 1), alt="Precision over recall",
                   caption=f"Precision over recall at IoU {IOU}, over all classes; the large point has the best F1"),
        line_chart(scores, Axis("score", 0, 1), Axis("F1", 0, 1), alt="F1 over the score",
                   caption="F1 of the detections from each score on; the large point is the best threshold"),
    ]  # fmt: skip
    rows = []
    for one in found:
        point = one.point
        figures = [point.threshold, point.f1, point.precision, point.recall] if point else [None] * 4
        rows.append([one.detector.name, *(metric(value) for value in figures)])
    best = table(["", "best threshold", "F1", "precision", "recall"], rows, caption="The score with the best F1")
    figures_of = []
    for one in found:
        curve = one.curve
        points = np.stack([curve.scores, curve.precision, curve.recall, curve.f1], axis=1).tolist()
        figures_of += [[one.detector.name, *map(metric, row)] for row in thinned(points, 20)]
    head = ["", "score", "precision", "recall", "F1"]
    content = [element("div", charts, class_="charts"), best, folded("The curves as figures", table(head, figures_of))]
    if lacking := [one.detector.name for one in found if one.point is None]:
        content.append(note(f"No detection is right, so that no threshold can be chosen: {', '.join(lacking)}."))
    return content


def classes(found: Sequence[Found]) -> list[Html]:
    """AP of each class."""
    names = list(found[0].result.per_class)
    by_name = {name: [one.result.per_class[name] for one in found] for name in names}
    order = sorted(names, key=lambda name: -(by_name[name][-1] or 0.0))
    series = [one.detector.name for one in found]
    chart = bar_chart(
        [(name, by_name[name]) for name in order[:_MOST_CLASSES]], series, [one.detector.colour for one in found],
        title="AP", high=1.0, digits=3, caption="AP of each class at IoU 0.50:0.95, in [0, 1]", alt="AP of each class",
    )  # fmt: skip
    rows = [[name, *map(metric, by_name[name])] for name in order]
    rows.insert(0, ["mean (mAP)", *(metric(one.result.mean_average_precision) for one in found)])
    few = [note(f"The chart has {_MOST_CLASSES} of {len(names)} classes.")] if len(names) > _MOST_CLASSES else []
    return [element("div", chart, element("div", table(["class", *series], rows)), class_="charts"), *few]


def errors(found: Sequence[Found]) -> list[Html]:
    """What each kind of error costs."""
    series = [one.detector.name for one in found]
    chart = bar_chart(
        [(kind, [one.errors.dap[kind] for one in found]) for kind in KINDS], series,
        [one.detector.colour for one in found], title="points", digits=1, alt="Errors by kind",
        caption="By how many points curing all errors of a kind would raise AP at IoU 0.5 (TIDE)",
    )  # fmt: skip
    rows = [[kind, *(f"{one.errors.dap[kind]:.1f} ({one.errors.counts[kind]})" for one in found)] for kind in KINDS]
    rows.insert(0, ["AP at IoU 0.5", *(f"{one.errors.ap:.1f}" for one in found)])
    figures = table(["", *series], rows, caption="Points of AP, and in brackets how many errors of the kind there are")
    return [element("div", chart, element("div", figures), class_="charts")]


def chosen_images(found: Sequence[Found]) -> tuple[str, list[int]]:
    """Which images are shown, and why these: those on which the last two detectors differ most."""
    marked = [on_images(one) for one in found]
    if len(found) > 1:
        changed = changed_most(marked[-2], marked[-1], ROWS)
        names = f"{found[-2].detector.name} and {found[-1].detector.name}"
        if changed:
            return f"The images on which {names} differ most in boxes found and wrong.", changed
        why = f"{names} find the same on every image; these are those with the most errors."
        return why, worst(marked[-1], ROWS)
    return "The images with the most errors.", worst(marked[-1], ROWS)


def detections(found: Sequence[Found], images: Sequence[int], why: str, pictures: Pictures) -> list[Html]:
    """The truth beside what each detector finds, a row an image."""
    cut = ", ".join(f"{one.detector.name} from {one.threshold:.2f}" for one in found)
    legend = (
        "Whole lines are right (class, and IoU of at least 0.5), broken lines wrong; in the truth a broken line is a "
        f"box that {found[-1].detector.name} misses. Scores: {cut}."
    )
    content: list[Html] = [element("p", why), element("p", legend, class_="pale")]
    marked = [on_images(one) for one in found]
    by_id = {image["id"]: image for image in found[0].data.images}
    for number in images:
        image = by_id[number]
        shown = [_column(found[-1].data, image, marked[-1][number].truth, pictures, "truth")]
        for one, of_detector in zip(found, marked, strict=True):
            on_image: OnImage = of_detector[number]
            caption = f"{one.detector.name}: {on_image}"
            shown.append(_column(one.data, image, on_image.boxes, pictures, caption))
        content += [
            element("h3", image["file_name"]),
            _row(shown),
        ]
    return content


def _row(shown: Sequence[Html]) -> Html:
    return element("div", shown, class_="row", style=f"--columns:{len(shown)}")


def _column(
    found: cskd_data.Dataset, image: dict[str, Any], boxes: Sequence[Marked], pictures: Pictures, caption: str
) -> Html:
    return _drawn(found, image, boxes, pictures, caption, f"{image['file_name']}, {caption}")


def guidance(looked: Callable[[], Sequence[Guidance]], pictures: Pictures) -> list[Html]:
    """Where the student's features differ from the teacher's, level by level."""
    try:
        maps = looked()
    except REFUSALS as error:
        return [note(f"There are no guidance maps: {error}.")]
    content: list[Html] = [
        element(
            "p",
            "One minus the cosine of the adapted student's and the teacher's features at each position, by the last "
            "epoch: where it is bright the two differ, and there the distillation weighs most. All maps of an image "
            "have one scale.",
        )
    ]
    rows = []
    for one in maps:
        high = max(float(values.max()) for _, values in one.levels)
        shown = [figure(pictures.drawn(one.file, [], one.file.name), caption=one.file.name)]
        for stride, values in one.levels:
            over = [heat_over(values, high, one.covered)]
            picture = pictures.drawn(one.file, [], f"guidance at stride {stride}", over)
            shown.append(figure(picture, caption=f"stride {stride}: mean {values.mean():.3f}, most {values.max():.3f}"))
            rows.append([one.file.name, stride, metric(values.mean()), metric(values.max())])
        content.append(_row(shown))
    return [*content, folded("As figures", table(["image", "stride", "mean", "most"], rows))]
