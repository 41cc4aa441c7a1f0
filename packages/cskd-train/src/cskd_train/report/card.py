"""A model card in Hugging Face's form beside a student's weights as safetensors and its config.

The header is that of https://github.com/huggingface/hub-docs/blob/main/modelcard.md: `model-index` holds a result for
each split, with the fields that the Hub verifies.
"""

from __future__ import annotations

import pprint
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from cskd_data.files import check_writable, write_atomically
from cskd_data.results import COCO_METRICS
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import Checkpoint, load_checkpoint, sha256
from cskd_train.files.config import config_to_data
from cskd_train.files.tensors import save_tensors
from cskd_train.project.budget import duration
from cskd_train.report import words
from cskd_train.report.runs import DISTILLED, Detector, Subject, read_subject

README, WEIGHTS, CONFIG = "README.md", "model.safetensors", "config.py"
TITLES = {
    "bbox_mAP": "mAP (IoU 0.50:0.95)",
    "bbox_mAP_50": "AP at IoU 0.50",
    "bbox_mAP_75": "AP at IoU 0.75",
    "bbox_mAP_s": "mAP of small objects",
    "bbox_mAP_m": "mAP of medium objects",
    "bbox_mAP_l": "mAP of large objects",
}


@dataclass(frozen=True)
class Card:
    """What was written."""

    folder: str
    checkpoint: str  # what the weights are from
    sha256: Mapping[str, str]  # of each file beside the card

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)

    def __str__(self) -> str:
        files = [f"  {name}  sha256 {digest}" for name, digest in self.sha256.items()]
        return "\n".join([f"{self.folder}: the model card of {self.checkpoint}", f"  {README}", *files])


def write_card(
    work_dir: Path | str,
    output: Path | str | None = None,
    *,
    name: str | None = None,
    license: str | None = None,
    base_model: Sequence[str] = (),
    datasets: Sequence[str] = (),
    overwrite: bool = False,
) -> Card:
    """Write README.md, model.safetensors and config.py of a run's best epoch, ready for a model repository.

    Args:
        work_dir: of a run, or the folder of a project, of which it is the distilled student's card.
        output: a folder; None is `card` in the work dir.
        name: of the model; None is that of the folder.
        license: an identifier that the Hub knows, as `apache-2.0`; None names none.
        base_model, datasets: the Hub's names of what the model was made from and trained on.
        overwrite: replace files that are there.

    Raises:
        TrainError: the folder holds no run, or one without best.pth; a file is there already.
        DataError: a file cannot be written.
    """
    subject = read_subject(Path(work_dir))
    if subject.main.checkpoint is None:
        raise TrainError(
            f"{subject.run.folder}: there is no best.pth, whose card this would be: no epoch was evaluated"
        )
    checkpoint = load_checkpoint(subject.main.checkpoint)
    folder = Path(output) if output is not None else Path(work_dir) / "card"
    files = [folder / one for one in (README, WEIGHTS, CONFIG)]
    if there := [str(file) for file in files if file.exists() and not overwrite]:
        raise TrainError(
            f"{', '.join(there)} there already: nothing was changed. Give another --output, or --overwrite"
        )
    for file in files:
        check_writable(file)
    config = _python(checkpoint)
    save_tensors(folder / WEIGHTS, checkpoint.state_dict, checkpoint.meta)
    write_atomically(folder / CONFIG, lambda file: file.write(config.encode()))
    digests = {one: sha256(folder / one) for one in (WEIGHTS, CONFIG)}
    header = _header(name or _slug(subject.title), subject, checkpoint, license, base_model, datasets)
    text = _text(name or subject.title, subject, checkpoint, license, digests)
    dumped = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=1000)
    write_atomically(folder / README, lambda file: file.write(f"---\n{dumped}---\n\n{text}".encode()))
    return Card(str(folder), str(checkpoint.path), digests)


def _python(checkpoint: Checkpoint) -> str:
    """The config as a Python file, which mmdet and cskd-train read."""
    data = config_to_data(checkpoint.config)
    if odd := [key for key in data if not key.isidentifier()]:
        raise TrainError(
            f"config key {odd[0]!r} of {checkpoint.path} is no name in Python: config.py cannot be written"
        )
    lines = [f"{key} = {pprint.pformat(value, width=110, sort_dicts=False)}" for key, value in data.items()]
    return "\n".join([f"# The whole config of {checkpoint.path.name}.", *lines, ""])


def results(subject: Subject, checkpoint: Checkpoint) -> dict[str, Mapping[str, float]]:
    """Split -> COCO metrics of this very checkpoint there, those of sizes that the split has."""
    test = subject.run.test if subject.run.test.get("checkpoint") == checkpoint.sha256 else {}
    found = {"val": checkpoint.metrics, "test": test.get("metrics") or {}}
    return {
        split: {key: float(metrics[key]) for key in COCO_METRICS[:6] if metrics.get(key, -1) >= 0}
        for split, metrics in found.items()
        if metrics
    }


def _header(
    name: str,
    subject: Subject,
    checkpoint: Checkpoint,
    license: str | None,
    base_model: Sequence[str],
    datasets: Sequence[str],
) -> dict[str, Any]:
    data = _data_name(checkpoint.config)
    evaluated = [
        {
            "task": {"type": "object-detection", "name": "Object Detection"},
            "dataset": {"type": datasets[0] if datasets else _slug(data), "name": data, "split": split},
            "metrics": [
                {"type": key.removeprefix("bbox_"), "name": TITLES[key], "value": value}
                for key, value in metrics.items()
            ],
        }
        for split, metrics in results(subject, checkpoint).items()
    ]
    tags = ["object-detection", "mmdetection", "cskd"]
    tags += ["knowledge-distillation"] if subject.run.distilled else []
    header: dict[str, Any] = {"license": license} if license else {}
    header |= {"library_name": "mmdet", "pipeline_tag": "object-detection", "tags": tags}
    header |= {"datasets": list(datasets)} if datasets else {}
    header |= {"base_model": list(base_model)} if base_model else {}
    return header | ({"model-index": [{"name": name, "results": evaluated}]} if evaluated else {})


def _text(title: str, subject: Subject, checkpoint: Checkpoint, license: str | None, digests: Mapping[str, str]) -> str:
    run, config = subject.run, checkpoint.config
    named = words.detector(config) or "A detector"
    kind = f", distilled from {_teacher(subject)}" if run.distilled else ""
    sections = {
        "": [f"{_md(named)}, trained to find {_md(_listed(checkpoint.classes))}{kind}. A stock detector of mmdet 2."],
        "Use": [
            f"```sh\ncskd-train test {WEIGHTS} --set data_root=FOLDER\ncskd-deploy export --checkpoint {WEIGHTS} "
            "--format onnx --output student.onnx\n```",
            f"`{WEIGHTS}` has its config and its classes inside; `{CONFIG}` is the same config for mmdet.",
        ],
        "Results": [_results(subject, checkpoint)],
        "Training": [" ".join(map(_md, words.recipe(config))), *_facts(subject, checkpoint)],
        "Data": [_data(subject, checkpoint)],
        "Base model": [_md(_base(subject, config))],
        "Limits": ["\n".join(f"- {_md(one)}" for one in limits(subject, checkpoint, license))],
        "Files": [
            "\n".join(
                [
                    *(f"- `{name}`: sha256 `{digest}`" for name, digest in digests.items()),
                    f"- made from `{checkpoint.path.name}`: sha256 `{checkpoint.sha256}`",
                ]
            )
        ],
    }
    parts = [f"# {_md(title)}"]
    for heading, paragraphs in sections.items():
        parts += [f"## {heading}"] if heading else []
        parts += [one for one in paragraphs if one]
    return "\n\n".join(parts) + "\n"


def _results(subject: Subject, checkpoint: Checkpoint) -> str:
    """A table with a column a split, and teacher and student alone beside it."""
    own = results(subject, checkpoint)
    columns = {f"this model, {split}": metrics for split, metrics in own.items()}
    for one in (subject.alone, subject.teacher):
        if one is not None and one.run is not None and one.run.best:
            columns[f"{one.role}, val"] = one.run.best
    if not own:
        return "It was not evaluated."
    rows = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for key, title in TITLES.items():
        if any(key in metrics for metrics in own.values()):
            values = (metrics.get(key, -1) for metrics in columns.values())
            rows.append(f"| {title} | {' | '.join(f'{value:.4f}' if value >= 0 else '' for value in values)} |")
    return "COCO box metrics, in [0, 1].\n\n" + "\n".join(rows)


def _facts(subject: Subject, checkpoint: Checkpoint) -> list[str]:
    result = subject.run.result
    said = [f"epoch {checkpoint.meta.get('epoch')} is the best"] if checkpoint.meta.get("epoch") else []
    said += [f"seed {checkpoint.meta['seed']}"] if "seed" in checkpoint.meta else []
    said += [f"{duration(result['seconds'])} on {result['device']}"] if {"seconds", "device"} <= {*result} else []
    versions = checkpoint.meta.get("versions") or {}
    said += [", ".join(f"{name} {version}" for name, version in versions.items())] if versions else []
    text = "; ".join(said)
    return [_md(f"{text[0].upper()}{text[1:]}.")] if said else []


def _data(subject: Subject, checkpoint: Checkpoint) -> str:
    images = subject.run.result.get("images") or {}
    counts = ", ".join(f"{number} images of {split}" for split, number in images.items())
    name = _data_name(checkpoint.config)
    return _md(f"{name}{': ' if counts else ''}{counts}. Classes: {_listed(checkpoint.classes, 100)}.")


def _base(subject: Subject, config: Mapping[str, Any]) -> str:
    start = words.start(config) or "What its weights start from is not known."
    if not subject.run.distilled:
        return start
    return f"{start} Its teacher, {_teacher(subject)}, is no part of it."


def _teacher(subject: Subject) -> str:
    teacher: Detector | None = subject.teacher
    if teacher is not None and teacher.run is not None and (named := words.detector(teacher.run.config)):
        return f"{words.article(named)} {named}"
    return Path(subject.run.teacher_checkpoint).name or "a teacher"


def limits(subject: Subject, checkpoint: Checkpoint, license: str | None) -> list[str]:
    """What a user of the model has to know before relying on it."""
    images = (subject.run.result.get("images") or {}).get("val")
    tested = "test" in results(subject, checkpoint)
    found = [f"It knows these classes and no other: {_listed(checkpoint.classes, 100)}."]
    found.append(
        "It was trained and measured on images like those of its data; what it does on others was not measured."
    )
    if checkpoint.metrics:
        over = f" ({images} images)" if images else ""
        found.append(f"The best epoch was chosen by the validation split{over}, so the mAP there is a little too good.")
    if not tested:
        found.append("It was not measured on a test split.")
    found.append("It is one run with one seed: how much of a difference to others is chance is not known from it.")
    if subject.main.role == DISTILLED and subject.alone is None:
        found.append(
            "The same student without its teacher was not trained beside it: what distilling adds is not known."
        )
    if license is None:
        found.append("No license is named here; the data and the weights that it was made from have theirs.")
    return found


def _data_name(config: Mapping[str, Any]) -> str:
    """The folder of the data set."""
    split = (config.get("data") or {}).get("val") or (config.get("data") or {}).get("train") or {}
    split = split if isinstance(split, Mapping) else {}
    root = split.get("data_root") or config.get("data_root")
    if not root and isinstance(split.get("ann_file"), str):
        root = Path(split["ann_file"]).parent
    path = Path(str(root or "unnamed"))
    return (path.parent if path.name in ("data", "annotations") and path.parent.name else path).name or "unnamed"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "unnamed"


def _listed(names: Iterable[str], most: int = 10) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "objects"


def _md(text: str) -> str:
    """Text in which nothing is Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
