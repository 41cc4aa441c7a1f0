"""Images that are higher than wide keep their boxes where they are, through training and through evaluation."""

from __future__ import annotations

import json

import pytest

from .painted import RECTANGLES, WIDTH, SeesRectangles, paint

MODEL = "model={'type': 'SeesRectangles'}"


@pytest.fixture
def run_painted(command_line, tiny_config, tmp_path):
    """`run_painted(scale)`: train and evaluate `SeesRectangles` on images resized into `scale`, (long, short) sides."""
    paint(root := tmp_path / "painted")
    SeesRectangles.seen.clear()

    def run(scale, *settings):
        words = [
            MODEL,
            f"data_root={root}",
            "data.samples_per_gpu=2",
            "lr_config.warmup=None",
            "optimizer_config.grad_clip=None",
            f"data.train.pipeline.2.img_scale={scale}",
            f"data.val.pipeline.1.img_scale={scale}",
            *settings,
        ]
        options = [word for setting in words for word in ("--set", setting)]
        code, _, err = command_line("run", tiny_config, "--work-dir", tmp_path / "w", *options)
        assert code == 0, err
        return json.loads((tmp_path / "w" / "result.json").read_text())

    return run


@pytest.mark.parametrize(
    ("scale", "factor", "canvas"),
    [((160, 160), 1.0, (160, 96)), ((320, 320), 2.0, (320, 192)), ((400, 120), 1.25, (224, 128))],
    ids=["as they are", "twice", "by the shorter side"],
)
def test_boxes_lie_on_what_they_surround(run_painted, scale, factor, canvas):
    result = run_painted(scale)
    # In training: every image once an epoch, flipped or not, and the box where the bright rectangle is.
    seen = SeesRectangles.seen
    assert sorted(place for place, *_ in seen) == sorted([*range(1, 7)] * 2)
    assert {flipped for _, flipped, *_ in seen} == {True, False}
    assert {shape for _, _, shape, *_ in seen} == {canvas}
    for place, flipped, _, found, distance in seen:
        x, y, width, height = RECTANGLES[place - 1]
        left = WIDTH - x - width if flipped else x
        expected = [factor * side for side in (left, y, left + width, y + height)]
        assert found == pytest.approx(expected, abs=0 if factor == 1 else 1)
        assert distance <= (0 if factor == 1 else 1)
    # In evaluation: what is found there is found again in the image's own pixels.
    assert result["last"]["bbox_mAP_75"] == pytest.approx(1.0)
    if factor != 1.25:  # whose rectangles do not end between two pixels
        assert result["last"]["bbox_mAP"] == pytest.approx(1.0)
        assert result["last"]["bbox_AR_1"] == pytest.approx(1.0)


def test_a_box_found_a_few_pixels_aside_scores_less(run_painted, monkeypatch):
    """Without this the test above would say nothing of the evaluation."""
    forward = SeesRectangles.forward

    def aside(self, **inputs):
        if inputs.get("return_loss", True):
            return forward(self, **inputs)
        (found,) = forward(self, **inputs)
        for boxes in found:
            boxes[:, [0, 2]] += 2
        return [found]

    monkeypatch.setattr(SeesRectangles, "forward", aside)
    result = run_painted((160, 160))
    assert result["last"]["bbox_mAP_50"] == pytest.approx(1.0)
    assert 0.5 < result["last"]["bbox_mAP"] < 0.95
