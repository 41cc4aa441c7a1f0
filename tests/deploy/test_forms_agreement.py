"""Whether a form finds what PyTorch finds: the column `agrees` of a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cskd_deploy.forms.agreement import agreement


def detections(path: Path, *rows: tuple[int, Any, list[float], float]) -> Path:
    names = ("image_id", "category_id", "bbox", "score")
    path.write_text(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))
    return path


BOX, FAR = [10.0, 10.0, 20.0, 20.0], [70.0, 70.0, 20.0, 20.0]


@pytest.mark.parametrize(
    ("other", "share"),
    [
        ([(1, "a", BOX, 0.8), (2, "b", BOX, 0.6)], 1.0),
        (
            [(2, "b", BOX, 0.55), (1, "a", [11.0, 10.0, 20.0, 20.0], 0.85), (1, "a", FAR, 0.2)],
            1.0,
        ),  # the last: too weak
        ([(1, "a", BOX, 0.8), (2, "b", BOX, 0.25)], 0.6667),  # scores too far apart: one of three has no partner
        ([(1, "b", BOX, 0.8), (2, "b", BOX, 0.6)], 0.5),  # another class
        ([(1, "a", FAR, 0.8), (2, "b", BOX, 0.6)], 0.5),
        ([(3, "a", BOX, 0.8), (2, "b", BOX, 0.6)], 0.5),  # another image
        ([], 0.0),
    ],
)
def test_agreement_is_the_share_of_detections_with_a_partner(other, share, tmp_path):
    reference = detections(tmp_path / "a.json", (1, "a", BOX, 0.8), (2, "b", BOX, 0.6))
    assert agreement(reference, detections(tmp_path / "b.json", *other)) == pytest.approx(share, abs=1e-4)


def test_without_detections_there_is_no_agreement(tmp_path):
    weak = detections(tmp_path / "a.json", (1, "a", BOX, 0.1))
    assert agreement(weak, detections(tmp_path / "b.json")) is None
    assert np.isfinite(agreement(weak, detections(tmp_path / "c.json", (1, "a", BOX, 0.9))))
