"""Whether an exported file computes what mmdet does: the check that every file passes before it gets its name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from cskd_deploy.accuracy.agreement import Boxes, match, matched_pairs
from cskd_deploy.backends import onnxruntime_cuda as cuda
from cskd_deploy.backends.base import CANDIDATE, IMAGE_SHAPE, INPUT, OUTPUTS, PROPOSALS
from cskd_deploy.backends.onnxruntime import import_onnxruntime
from cskd_deploy.backends.torch import mmdet_candidates, mmdet_level_cuts, mmdet_pairs, mmdet_proposals
from cskd_deploy.detect.postprocess import select_detections
from cskd_deploy.detect.preprocess import PreparedImage, normalised, padded_pixels
from cskd_deploy.errors import BackendMissing, CheckFailed, DeployError
from cskd_deploy.model.manifest import Manifest, Preprocessing

MOST_SCORE_DIFFERENCE = 1e-4
# Float rounding differs from processor to processor. It decides between candidates whose scores are this near to the
# last one that a level keeps: those need no partner, all others do.
TIE = 1e-5
# It also decides which of two overlapping proposals of equal score goes, and by that whether a third one stays. So some
# proposals may differ; what the second stage makes of the file's own proposals may not.
LEAST_PROPOSALS = 0.98
# Of the further images of a batch: there are more such proposals the less there is to see. Another image's proposals
# would hardly agree at all.
LEAST_PROPOSALS_BESIDE = 0.5

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Verification:
    """How a file compares with mmdet's own code on the random image on which it compares worst."""

    candidates: int  # of mmdet
    matched: int
    ties: int  # candidates at a level's cut that need no partner
    proposals: float | None  # share of mmdet's proposals that the file has too; None of a one-stage student
    largest_score_difference: float
    largest_corner_difference: float  # pixels

    def __str__(self) -> str:
        proposals = "" if self.proposals is None else f"{100 * self.proposals:.1f} % of the proposals and, of those, "
        ties = f" but {self.ties} ties at a level's cut" if self.ties else ""
        return (
            f"{proposals}{self.matched} of {self.candidates} candidates equal{ties} (IoU >= 0.99), scores within "
            f"{self.largest_score_difference:.1e}, corners within {self.largest_corner_difference:.1e} pixels"
        )


def verify(model: Any, manifest: Manifest, path: Path, device: str = "cpu") -> Verification:
    """Compare all candidates of the written file with those of mmdet's own code on random images.

    The score threshold is left out on both sides: a random image seldom has anything above it. Images end before the
    canvas does, as padded ones. A dynamic file is tried at two sizes. A batch holds a lying image, an upright one and a
    faint one, in which a trained student finds nothing, so that none may get what is another's. Of a file with NMS
    inside, the detections must be those of NMS outside on its own candidates.

    Of a one-stage student every candidate needs a partner but for ties at the cut of its level (`TIE`). Of a two-stage
    one the proposals are compared with mmdet's, and then mmdet's second stage is given the file's proposals: all pairs
    of proposal and class must be the same.

    Args:
        model: the mmdet detector.
        path: the file; it still gives `candidate_...` outputs where it has them.
        device: where the file runs; the model is there already.

    Returns:
        That of the image with the fewest matched.

    Raises:
        CheckFailed: something differs.
        DeployError: ONNX Runtime cannot run the file, or not at each of the sizes and batches that it should take.
        BackendMissing: ONNX Runtime cannot use the device.
    """
    runtime = import_onnxruntime()

    options = runtime.SessionOptions()
    options.log_severity_level = 4
    try:
        if device == "cuda":
            session = cuda.open_session(runtime, str(path), options, exact=True)
        else:
            session = runtime.InferenceSession(str(path), sess_options=options, providers=[cuda.CPU_PROVIDER])
    except BackendMissing:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise _not_run(error) from error
    inputs = {value.name for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    results = []
    for feed, tensors, numbers in _random_feeds(manifest):
        canvas = tensors[0].shape[2:]
        try:
            values = session.run(names, {name: array for name, array in feed.items() if name in inputs})
        except Exception as error:
            raise _not_run(error, _kept_from_the_trace(manifest, canvas)) from error
        try:
            for place, tensor in enumerate(tensors):
                one = {name: array[place : place + 1] for name, array in zip(names, values, strict=True)}
                shape = feed[IMAGE_SHAPE][place : place + 1]
                results.append(_compare(model, manifest, one, tensor, shape, is_first=not numbers[place]))
        except CheckFailed as error:
            if not results or canvas == manifest.preprocessing.input_size:
                raise
            raise CheckFailed(
                f"{error}. At the size that it is traced with it does: give --input-size H W (once)"
            ) from error
    return min(results, key=lambda one: one.matched / max(one.candidates, 1))


def _compare(
    model: Any, manifest: Manifest, found: Arrays, tensor: np.ndarray, shape: np.ndarray, is_first: bool
) -> Verification:
    """Compare what the file gives for an image, the first of its batch or another one."""
    inside = manifest.graph.nms == "graph"
    prefix = CANDIDATE if inside else ""
    candidates = {name.removeprefix(prefix): array for name, array in found.items() if name.startswith(prefix)}
    if manifest.postprocessing.clip_boxes:  # as mmdet has clipped its own
        candidates["boxes"] = candidates["boxes"].clip(0, np.tile(shape[:, ::-1], 2))
    if not np.isfinite(candidates["boxes"]).all():
        raise CheckFailed(_differs("some boxes are not finite"))
    if manifest.family == "faster_rcnn":
        least = LEAST_PROPOSALS if is_first else LEAST_PROPOSALS_BESIDE
        result = _compare_two_stages(model, candidates, found[CANDIDATE + PROPOSALS], tensor, shape, least)
    else:
        result = _compare_dense(model, manifest, candidates, tensor, shape)
    if inside:
        _check_detections(manifest, found, candidates, shape)
    return result


def _kept_from_the_trace(manifest: Manifest, canvas: tuple[int, ...]) -> dict[str, str]:
    """What a graph that fails on a canvas (height, width) may have kept of its trace, and the options that fix it."""
    form = manifest.graph
    batch = {"number of images": "--batch N"} if form.batch is None else {}
    if form.dynamic and (batch or canvas != manifest.preprocessing.input_size):
        return {"size": "--input-size H W (once)", **batch}
    return batch


def _not_run(error: Exception, kept: Mapping[str, str] = MappingProxyType({})) -> DeployError:
    node = re.search(r"while running (\w+) node\. Name:'([^']*)'", str(error))
    reason = f"ONNX Runtime fails at {' '.join(node.groups())}" if node else f"ONNX Runtime: {cuda.first_line(error)}"
    if not kept:
        return DeployError(
            f"the exported graph cannot be run ({reason}). No file was written. Train the student with a backbone and "
            "neck of common layers"
        )
    options = " and ".join(kept.values())
    return DeployError(f"the graph of this student's layers is of one {' and '.join(kept)} ({reason}): give {options}")


def _canvases(manifest: Manifest) -> Iterator[tuple[int, int]]:
    rule = manifest.preprocessing
    if rule.canvases:
        yield from rule.canvases
        return
    height, width = rule.input_size
    yield height, width
    if manifest.graph.dynamic:
        yield width + rule.pad_divisor, height


def _random_feeds(manifest: Manifest) -> Iterator[tuple[Arrays, list[np.ndarray], list[int]]]:
    """What the file is fed, for mmdet each image normalised, and which of `_pictures` each is."""
    for seed, canvas in enumerate(_canvases(manifest)):
        pictures = _pictures(canvas, seed)
        batch = len(pictures) if manifest.graph.batch is None else manifest.graph.batch
        for begin in range(0, 1 if batch == 1 else len(pictures), batch):
            numbers = [(begin + place) % len(pictures) for place in range(batch)]
            yield *_feed(manifest, canvas, [pictures[number] for number in numbers]), numbers


def _pictures(canvas: tuple[int, int], seed: int) -> list[np.ndarray]:
    """BGR uint8 images that fit a canvas: noise in its proportions, upright noise, lying faint noise."""
    generator = np.random.default_rng(seed)
    height, width = canvas
    kinds = [
        ((height - height // 8, width - width // 8), (0, 256)),
        ((height - 1, min(width // 2, height - 1)), (0, 256)),
        ((height // 3, width), (120, 136)),
    ]
    return [generator.integers(*values, (*size, 3), dtype=np.uint8) for size, values in kinds]


def _feed(manifest: Manifest, canvas: tuple[int, int], pictures: list[np.ndarray]) -> tuple[Arrays, list[np.ndarray]]:
    rule: Preprocessing = manifest.preprocessing
    tensors = [normalised(picture, canvas, rule) for picture in pictures]
    raw = manifest.graph.input == "uint8"
    image = np.concatenate([padded_pixels(picture, canvas) for picture in pictures] if raw else tensors)
    shapes = np.array([picture.shape[:2] for picture in pictures], dtype=np.float32)
    return {INPUT: image, IMAGE_SHAPE: shapes}, tensors


def _compare_dense(
    model: Any, manifest: Manifest, found: Arrays, tensor: np.ndarray, shape: np.ndarray
) -> Verification:
    chosen_by = manifest.postprocessing.threshold_on  # the score that decides which candidates a level keeps
    expected = mmdet_candidates(model, tensor, shape, score_threshold=0.0)
    chosen = expected
    if chosen_by != "scores":
        chosen = mmdet_candidates(model, tensor, shape, score_threshold=0.0, with_factors=False)
    cuts = mmdet_level_cuts(model, tensor)
    ties, file_ties = _ties(chosen["scores"], cuts), _ties(found[chosen_by], cuts)
    same, file_same = chosen["scores"][0] > 0, found[chosen_by][0] > 0  # 0 fills up, or is below all thresholds
    result = _matched(
        _boxes(expected, expected["scores"], same),
        _boxes(found, found["scores"], file_same),
        ties[same],
        file_ties[file_same],
    )
    if chosen is not expected:
        _matched(
            _boxes(chosen, chosen["scores"], same),
            _boxes(found, found[chosen_by], file_same),
            ties[same],
            file_ties[file_same],
        )
    return result


def _boxes(outputs: Arrays, scores: np.ndarray, kept: np.ndarray) -> Boxes:
    return outputs["boxes"][0][kept], scores[0][kept], outputs["labels"][0][kept]


def _ties(scores: np.ndarray, cuts: list[tuple[int, float]]) -> np.ndarray:
    """Which of the candidates are ties at the cut of their level; `scores` `(1, k)` stand level by level."""
    limits = np.repeat([cut for _, cut in cuts], [count for count, _ in cuts])
    if len(limits) != scores.shape[1]:  # mmdet leaves out scores of 0, and then nothing says which level is which
        limits = np.full(scores.shape[1], max(cut for _, cut in cuts))
    ties: np.ndarray = scores[0] <= limits + TIE
    return ties


def _matched(expected: Boxes, found: Boxes, expected_ties: np.ndarray, found_ties: np.ndarray) -> Verification:
    """Match candidates, all of which need a partner but the ties."""
    pairs = matched_pairs(expected, found, score=MOST_SCORE_DIFFERENCE)
    missing = ~expected_ties
    missing[pairs[:, 0]] = False
    extra = ~found_ties
    extra[pairs[:, 1]] = False
    if missing.any() or extra.any():
        raise CheckFailed(
            _differs(
                f"{len(pairs)} of {len(expected[1])} candidates agree, and of the others "
                f"{max(missing.sum(), extra.sum())} are no ties at the cut of their level"
            )
        )
    first, second = pairs[:, 0], pairs[:, 1]
    return Verification(
        candidates=len(expected[1]),
        matched=len(pairs),
        ties=max(len(expected[1]), len(found[1])) - len(pairs),
        proposals=None,
        largest_score_difference=float(np.abs(expected[1][first] - found[1][second]).max(initial=0)),
        largest_corner_difference=float(np.abs(expected[0][first] - found[0][second]).max(initial=0)),
    )


def _compare_two_stages(
    model: Any, found: Arrays, proposals: np.ndarray, tensor: np.ndarray, shape: np.ndarray, least: float
) -> Verification:
    real = proposals[0, :, 2:].min(axis=1) > 0  # the others fill up their number
    boxes = proposals[0][real]
    expected = mmdet_proposals(model, tensor, shape)
    same = match(_unscored(expected), _unscored(boxes)).share
    if same < least:
        raise CheckFailed(_differs(f"only {100 * same:.1f} % of the proposals agree"))
    wanted, given = _likely(mmdet_pairs(model, tensor, shape, boxes)), _likely(found)
    no_ties, file_no_ties = (np.zeros(len(one[1]), dtype=bool) for one in (wanted, given))
    return dataclasses.replace(_matched(wanted, given, no_ties, file_no_ties), proposals=same)


def _unscored(boxes: np.ndarray) -> Boxes:
    return boxes, np.ones(len(boxes), dtype=np.float32), np.zeros(len(boxes), dtype=np.int64)


def _check_detections(manifest: Manifest, found: Arrays, candidates: Arrays, shape: np.ndarray) -> None:
    rule = manifest.postprocessing
    height, width = shape[0].astype(int).tolist()
    prepared = PreparedImage(np.zeros(0), (height, width), np.ones(4, dtype=np.float32))
    boxes, scores, labels = (candidates[name][0] for name in OUTPUTS)
    expected = select_detections(boxes, scores, labels, prepared, rule, candidates[rule.threshold_on][0])
    agreement = match((expected.boxes, expected.scores, expected.labels), _likely(found))
    if agreement.matched < max(agreement.reference, agreement.other):
        raise CheckFailed(
            f"NMS in the graph does not give what NMS outside gives: {agreement.matched} of {agreement.reference} "
            "detections agree on a random input. No file was written. Please report this with the checkpoint's config"
        )


def _likely(outputs: Arrays) -> Boxes:
    """Boxes, scores and labels without those that fill up a fixed number."""
    real = outputs["scores"][0] > 0
    return outputs["boxes"][0][real], outputs["scores"][0][real], outputs["labels"][0][real]


def _differs(how: str) -> str:
    return (
        f"the exported graph does not compute what mmdet does: {how} on a random input. No file was written. Are the "
        "weights finite? If so, please report this with the checkpoint's config"
    )
