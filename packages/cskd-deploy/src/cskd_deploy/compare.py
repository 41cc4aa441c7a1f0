"""Where two models differ: their detections image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cskd_data.images import read_image
from cskd_deploy.agreement import Agreement, Boxes, match
from cskd_deploy.detector import Detector
from cskd_deploy.layer_outputs import LayerDifference
from cskd_deploy.postprocess import Detections

IOU = 0.99
ANY_SCORE = 1.0  # detections are paired by their boxes; how far their scores lie apart is what is asked


@dataclass(frozen=True)
class ImageDifference:
    """The detections of two models on one image."""

    image: str
    agreement: Agreement

    @property
    def unmatched(self) -> int:
        """Detections of either model that the other has not."""
        found = self.agreement
        return found.reference + found.other - 2 * found.matched

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {"image": self.image, **asdict(self.agreement), "unmatched": self.unmatched}


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images, and their layers where they were asked for."""

    first: str
    second: str
    images: tuple[ImageDifference, ...]
    layers: tuple[LayerDifference, ...] | None

    @property
    def detections(self) -> int:
        """Of the model that has more, over all images."""
        found = [one.agreement for one in self.images]
        return max(sum(one.reference for one in found), sum(one.other for one in found))

    @property
    def share(self) -> float:
        """Matched detections over `detections`; 1 where there is none."""
        matched = sum(one.agreement.matched for one in self.images)
        return matched / self.detections if self.detections else 1.0

    @property
    def largest_score_difference(self) -> float:
        """Among the matched; the score of a detection that only one model has does not count."""
        return max((one.agreement.largest_score_difference for one in self.images), default=0.0)

    def worst(self, count: int) -> list[ImageDifference]:
        """The images with the most unmatched detections, then with the largest difference of scores."""

        def badness(one: ImageDifference) -> tuple[int, float]:
            return one.unmatched, one.agreement.largest_score_difference

        return sorted(self.images, key=badness, reverse=True)[:count]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "first": self.first,
            "second": self.second,
            "detections": self.detections,
            "share_matched": self.share,
            "largest_score_difference": self.largest_score_difference,
            "images": [one.to_dict() for one in self.images],
            "layers": None if self.layers is None else [asdict(one) for one in self.layers],
        }


def compare_images(
    first: Detector, second: Detector, paths: Sequence[Path], progress: Callable[[int, int], None]
) -> tuple[ImageDifference, ...]:
    """Match the detections of two models on each image: greedily, same label, boxes that overlap by `IOU`."""
    found = []
    for done, path in enumerate(paths, start=1):
        image = read_image(path)
        ours, theirs = (_triple(detector.detect(image)) for detector in (first, second))
        found.append(ImageDifference(path.name, match(ours, theirs, iou=IOU, score=ANY_SCORE)))
        progress(done, len(paths))
    return tuple(found)


def _triple(found: Detections) -> Boxes:
    return found.boxes, found.scores, found.labels
