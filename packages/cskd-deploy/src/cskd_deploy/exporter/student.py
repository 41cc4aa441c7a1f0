"""Students as cskd-train leaves them: the one module through which this package reaches cskd-train."""

from __future__ import annotations

import copy
import importlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cskd_data import CocoResult, Dataset
from cskd_deploy.errors import BackendMissing, DeployError
from cskd_deploy.exporter.mmdet_config import family_of, pipeline_of, postprocessing_of, preprocessing_of, proposals_of
from cskd_deploy.measure.environment import thread_count, versions
from cskd_deploy.model.manifest import GraphForm, Manifest

INSTALL = "`make env` in the repository of CSKD makes an environment with all of it"


@dataclass(frozen=True)
class Student:
    """A stock mmdet detector with its trained weights, in eval mode on the CPU."""

    model: Any  # torch.nn.Module
    config: dict[str, Any]  # plain data
    classes: tuple[str, ...]
    sha256: str  # of the checkpoint file
    path: Path

    def manifest(
        self, input_sizes: Sequence[tuple[int, int]] = (), opset: int = 0, graph: GraphForm | None = None
    ) -> Manifest:
        """What inference with this student needs.

        Args:
            input_sizes: as `preprocessing_of`.
            opset: of the graph.
            graph: its form; its size is dynamic where images may have several sizes (`input_sizes` names none, or more
                than one, and the test pipeline keeps the ratio), and the number of proposals is the config's, whatever
                `graph` says of them.

        Raises:
            DeployError: the config asks for something that is not reproduced outside mmdet.
        """
        preprocessing = preprocessing_of(self.config, input_sizes)
        family, form = family_of(self.config), graph or GraphForm()
        return Manifest(
            family=family,
            classes=self.classes,
            preprocessing=preprocessing,
            postprocessing=postprocessing_of(self.config),
            checkpoint=self.path.name,
            sha256=self.sha256,
            opset=opset,
            precision="fp32",
            versions=versions(("cskd-deploy", "cskd-train", "torch", "mmdet", "mmcv-full", "mmcv", "onnx", "onnxslim")),
            graph=replace(
                form,
                dynamic=preprocessing.keep_ratio and len(input_sizes) != 1,
                proposals=proposals_of(self.config).max_per_image if family == "faster_rcnn" else None,
            ),
        )

    def with_proposals(self, count: int) -> Student:
        """The student with so many proposals of an image in place of the config's number; its model changes too.

        Raises:
            DeployError: it is a one-stage student, or its config does not say how proposals are chosen.
        """
        family = family_of(self.config)
        if family != "faster_rcnn":
            raise DeployError(f"--proposals is for two-stage students, {self.path} is a {family}: leave it out")
        proposals_of(self.config)
        config = copy.deepcopy(self.config)
        config["model"]["test_cfg"]["rpn"]["max_per_img"] = count
        self.model.rpn_head.test_cfg["max_per_img"] = count
        return replace(self, config=config)


def load_student(checkpoint: Path, config: Path | None = None, exportable: bool = True) -> Student:
    """Build the student of a checkpoint.

    Args:
        config: a config file to use in place of the one stored in the checkpoint (a plain mmdet checkpoint has none).
        exportable: refuse a family that cannot be exported; mmdet itself evaluates any.

    Raises:
        BackendMissing: torch or cskd-train is not installed.
        DeployError: no checkpoint, or one of another architecture; a pickle that asks for code; no class names, or
            another number of them than its head has classes; a family that cannot be exported.
    """
    with training_packages(f"reading the checkpoint {checkpoint}"):
        checkpoints = importlib.import_module("cskd_train.files.checkpoints")
        configs = importlib.import_module("cskd_train.files.config")
        evaluation = importlib.import_module("cskd_train.engine.evaluate")
        stored = checkpoints.load_checkpoint(checkpoint, require_config=config is None)
        settings = configs.config_from_data(stored.config) if config is None else configs.load_config(config)
        data = configs.config_to_data(settings)
        if exportable:
            family_of(data)  # before the model is built
        named = stored.classes or _classes_of(data)
        if not named:
            raise DeployError(
                f"neither the checkpoint {checkpoint} nor its config names the classes: "
                "give --config with data.test.classes=[...]"
            )
        model = evaluation.build_trained(settings, stored, "cpu")
        return Student(
            model=model,
            config=data,
            classes=_fitting(model, named, {} if config is None else data, checkpoint),
            sha256=stored.sha256,
            path=checkpoint,
        )


def split_files(student: Student, split: str) -> tuple[Path | None, Path | None]:
    """The annotation file of a split of the student's config, and the folder of its images.

    Returns:
        None, None where the config names none, or several files; no folder where it is looked for beside the file.
    """
    with training_packages("reading the config"):
        data = student.config.get("data", {}).get(split)
        found = list(importlib.import_module("cskd_train.mm.data_sources").sources(data or ()))
    if len(found) != 1 or not found[0].ann_file:
        return None, None
    return Path(found[0].ann_file), None if found[0].images is None else Path(found[0].images)


class StudentEvaluation:
    """An evaluation of a student by cskd-train: mmdet's test pipeline and post-processing, ready to run.

    Args:
        dataset: with the student's classes, in their order.

    Raises:
        DeployError: the student's config has no test pipeline, or none that mmdet can build.
    """

    def __init__(self, student: Student, dataset: Dataset) -> None:
        try:
            pipeline = pipeline_of(student.config)
        except DeployError as error:
            raise DeployError(f"{student.path} cannot be evaluated: {error}") from error
        self._model, self._skipped = student.model, len(dataset.left_out)
        with training_packages("evaluating the reference"), tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "annotations.json"  # exactly the images and boxes that the model is evaluated on
            dataset.to_coco(file)
            test = {
                "type": "CocoDataset",
                "ann_file": str(file),
                "img_prefix": str(Path(dataset.image_root or "").resolve()),
                "classes": list(student.classes),
                "pipeline": pipeline,
            }
            # Images are read in this process: the threads of a runtime do not survive the fork of a loader's workers.
            own = {"test": test, "workers_per_gpu": 0, "skip_broken": False}
            data = {**student.config, "data": {**student.config["data"], **own}}
            self._settings = importlib.import_module("cskd_train.files.config").config_from_data(data)
            self._split = importlib.import_module("cskd_train.engine.build").build_split(self._settings, "test")

    def run(self, progress: Callable[[int, int], None], threads: int | None = None, device: str = "cpu") -> CocoResult:
        """COCO metrics of the student.

        Args:
            threads: as `torch_threads`.
            device: as `torch_device` gives it; the student stays there.
        """
        with training_packages("evaluating the reference"), torch_threads(threads):
            evaluation = importlib.import_module("cskd_train.engine.evaluate")
            result: CocoResult = evaluation.evaluate(
                self._model.to(device), self._settings, split="test", progress=progress, dataset=self._split
            )
            return replace(result, skipped_images=self._skipped)


def torch_device(asked: str | None) -> str:
    """The device of `cpu`, `cuda`, or None, which takes a GPU where PyTorch sees one.

    Raises:
        BackendMissing: `cuda` where PyTorch sees no GPU.
    """
    import torch

    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise BackendMissing(
            f"--device cuda: PyTorch {torch.__version__} sees no GPU. It needs a build of PyTorch for CUDA and "
            "NVIDIA's driver (`cskd-deploy doctor` says what is missing); or use --device cpu"
        )
    return asked or ("cuda" if there else "cpu")


@contextmanager
def exact_float32() -> Iterator[None]:
    """Let PyTorch compute float32 on a GPU with all its bits: by default convolutions have ten (TF32)."""
    import torch

    settings: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [one.allow_tf32 for one in settings]
    for one in settings:
        one.allow_tf32 = False
    try:
        yield
    finally:
        for one, value in zip(settings, before, strict=True):
            one.allow_tf32 = value


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch compute with so many threads within an operator; None takes every core this process may use."""
    import torch

    threads, before = thread_count(count), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def training_packages(purpose: str) -> Iterator[None]:
    """Turn what cskd-train raises into this package's errors.

    Raises:
        BackendMissing: something to import is not installed.
        DeployError: cskd-train's message about bad input.
    """
    failures: tuple[type[Exception], ...] = (ImportError,)
    try:
        refusals = importlib.import_module("cskd_train.errors").REFUSALS
        failures += refusals  # mmdet or mmcv is absent, or of a version that does not do
        importlib.import_module("cskd_train.mm")  # before all else: it makes mmcv and mmdet work on today's torch
    except failures as error:
        raise BackendMissing(
            f"{purpose} needs torch, mmdet and cskd-train, which cannot be imported ({error}). Install them: {INSTALL}"
        ) from error
    try:
        yield
    except refusals as error:
        raise DeployError(str(error)) from error


def _fitting(model: Any, named: tuple[str, ...], given: dict[str, Any], checkpoint: Path) -> tuple[str, ...]:
    """Those class names whose number is that of the model's head: `named`, else those of the config `given`.

    Raises:
        DeployError: neither are.
    """
    unfit_heads = importlib.import_module("cskd_train.engine.build").unfit_heads
    unfit = unfit_heads(model, len(named))
    if not unfit:
        return named
    others = _classes_of(given)
    if others and not unfit_heads(model, len(others)):
        return others
    head, count = next(iter(unfit.items()))
    listed = ", ".join(named[:8]) + (", ..." if len(named) > 8 else "")
    raise DeployError(
        f"{len(named)} classes are named for the checkpoint {checkpoint} ({listed}), its {head} has {count}: give "
        f"--config with data.test.classes=[...], the names of all {count} in the order of its labels"
    )


def _classes_of(config: dict[str, Any]) -> tuple[str, ...]:
    """The classes that the config names, as a list or as a file of them; () where it names none."""
    test = config.get("data", {}).get("test")
    if not isinstance(test, dict) or test.get("classes") is None:
        return ()
    found: tuple[str, ...] = importlib.import_module("cskd_train.mm.data_sources").classes_of(test)
    return found
