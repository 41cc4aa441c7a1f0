"""Crowd regions (iscrowd 1) in training: no target for anything, on images that are higher than wide."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CONFIGS = {"RetinaNet": HERE / "tiny_retinanet.py", "FasterRCNN": HERE / "tiny_faster_rcnn.py"}
OF_BOXES = {"RetinaNet": ["loss_bbox"], "FasterRCNN": ["loss_rpn_bbox", "loss_bbox"]}


@pytest.fixture
def annotated(upright_root, tmp_path):
    """`annotated("name", change)`: the setting of a training file in which `change` was made to every annotation.

    `change` takes an annotation and its place on its image and gives one, or None to take it out.
    """

    def write(name, change):
        data = json.loads((upright_root / "annotations" / "train.json").read_text())
        seen, kept = {}, []
        for one in data["annotations"]:
            place = seen[one["image_id"]] = seen.get(one["image_id"], -1) + 1
            kept.append(change(one, place))
        data["annotations"] = [one for one in kept if one is not None]
        (path := tmp_path / f"{name}.json").write_text(json.dumps(data))
        return f"data.train.ann_file={path}"

    return write


def crowd_but_a_sliver(one, _):
    """A set of crowds alone is refused: the first box is an object, too thin to be trained on."""
    return {**one, "iscrowd": 1} if one["id"] > 1 else {**one, "bbox": [*one["bbox"][:2], 0.5, one["bbox"][3]]}


def crowd_but_the_first(one, place):
    return {**one, "iscrowd": int(place > 0)}


def steps(work_dir):
    """Every number of the training records that does not measure time."""
    records = map(json.loads, (work_dir / "log.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in one.items() if name not in ("time", "data_time")}
        for one in records
        if one["mode"] == "train"
    ]


@pytest.mark.parametrize("detector", CONFIGS)
def test_crowds_alone_give_no_positive_target(train_upright, annotated, tmp_path, detector):
    found = {}
    for name, change in (("crowds", crowd_but_a_sliver), ("objects", lambda one, _: one)):
        code, _, err = train_upright(
            tmp_path / name, annotated(name, change), "runner.max_epochs=1", config=CONFIGS[detector]
        )
        assert code == 0, err
        found[name] = [record[term] for record in steps(tmp_path / name) for term in OF_BOXES[detector]]
    assert found["crowds"] == [0.0] * len(found["crowds"])
    assert len(found["objects"]) == len(found["crowds"]) == 3 * len(OF_BOXES[detector])
    assert all(value > 0.01 for value in found["objects"])


@pytest.fixture(params=["alone", "distilled"])
def config(request, trained, tmp_path):
    """The RetinaNet by itself, and under a teacher."""
    if request.param == "alone":
        return CONFIGS["RetinaNet"]
    (path := tmp_path / "distilled.py").write_text(
        f"_base_ = [{str(CONFIGS['RetinaNet'])!r}]\n"
        f"distill = dict(teacher=dict(checkpoint={str(trained / 'best.pth')!r}), pyramid=dict(foreground=(3, 0.25)))\n"
    )
    return path


def test_crowds_beside_objects_are_learnt_as_if_they_were_not_there(train_upright, annotated, config, tmp_path):
    changes = {
        "crowds": crowd_but_the_first,
        "without": lambda one, place: one if place == 0 else None,
        "objects": lambda one, _: one,
    }
    found = {}
    for name, change in changes.items():
        code, _, err = train_upright(tmp_path / name, annotated(name, change), "runner.max_epochs=1", config=config)
        assert code == 0, err
        found[name] = steps(tmp_path / name)
    assert ("loss_pyramid_foreground" in found["crowds"][0]) == (config != CONFIGS["RetinaNet"])
    assert found["crowds"] == found["without"]
    assert found["crowds"][0] != found["objects"][0]


def test_a_pipeline_that_collects_the_boxes_to_ignore_hands_them_to_the_student(
    train_upright, annotated, config, tmp_path
):
    found = {}
    for name, keys in {"ignored": ["gt_bboxes_ignore"], "learnt": []}.items():
        settings = [
            annotated("crowds", crowd_but_the_first),
            f"data.train.pipeline.7.keys={['img', 'gt_bboxes', 'gt_labels', *keys]}",
            "model.train_cfg.assigner.ignore_iof_thr=0.9",
            "model.bbox_head.loss_cls.gamma=0.0",  # there the background weighs enough to be seen
            "runner.max_epochs=1",
        ]
        code, _, err = train_upright(tmp_path / name, *settings, config=config)
        assert code == 0, err
        found[name] = steps(tmp_path / name)[0]
    # In the first step, of equal weights: the same objects are found, and less is background.
    assert found["ignored"]["loss_bbox"] == found["learnt"]["loss_bbox"] > 0
    assert found["learnt"]["loss_cls"] - found["ignored"]["loss_cls"] > 0.01
