"""`eval --reference` takes the JSON of a former `eval`: on the same images, classes and boxes, and nowhere else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from cskd_data import read
from cskd_deploy.accuracy.evaluate import annotations_sha256
from cskd_deploy.measure.plot import read_evaluations

WORDS = ("--max-drop", 100, "--json")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, exported, found_annotations, shapes_root) -> Any:
    """Runs `eval --json` of FCOS, with further words, and returns the file that it left."""
    from cskd_deploy import cli

    folder = tmp_path_factory.mktemp("former")

    def run(capsys: Any, *words: object) -> Path:
        capsys.readouterr()
        data = ("--ann", found_annotations, "--images", shapes_root / "images")
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in ("eval", exported("FCOS").model, *data, *words, "--json")])
        assert not stop.value.code
        path = folder / f"{len(list(folder.iterdir()))}.json"
        path.write_text(capsys.readouterr().out)
        return path

    return run


def test_a_former_result_is_the_reference_and_is_not_evaluated_again(
    deploy, capsys, evaluated, exported, model_file, found_annotations, shapes_root, tmp_path
):
    data = ("--ann", found_annotations, "--images", shapes_root / "images")
    former = evaluated(capsys)
    live = json.loads(deploy("eval", model_file, *data, "--reference", exported("FCOS").model, *WORDS).out)
    done = deploy("eval", model_file, *data, "--reference", former, *WORDS)
    assert done.code == 0, done.err
    assert "reference 6/6" not in done.err
    found = json.loads(done.out)
    for name in ("reference", "reference_sha256", "reference_device", "drop_points", "metrics"):
        assert found[name] == live[name], name
    assert found["reference_metrics"]["metrics"] == live["reference_metrics"]["metrics"]
    assert found["reference_metrics"]["per_class"] == live["reference_metrics"]["per_class"]
    assert found["drop_points"] != 0
    assert found["notes"] == [
        f"the reference is the result of {exported('FCOS').model} in {former}; it was not evaluated again"
    ]
    # A picture of latency against mAP finds both in it.
    (tmp_path / "both.json").write_text(done.out)
    assert [one.sha256 for one in read_evaluations([tmp_path / "both.json"])] == [
        found["file_sha256"],
        found["reference_sha256"],
    ]
    limit = min(0.0, found["drop_points"]) - 1
    strict = deploy("eval", model_file, *data, "--reference", former, "--max-drop", limit)
    assert strict.code == 1
    assert f"points of mAP against {exported('FCOS').model}" in strict.out


def test_a_file_of_detections_is_held_against_a_former_result_too(
    deploy, capsys, evaluated, model_file, found_annotations, shapes_root, tmp_path
):
    data = ("--ann", found_annotations, "--images", shapes_root / "images")
    former = evaluated(capsys)
    deploy("eval", model_file, *data, "--detections", tmp_path / "found.json")
    expected = json.loads(deploy("eval", model_file, *data, "--reference", former, *WORDS).out)
    words = ("--predictions", tmp_path / "found.json", "--ann", found_annotations, "--reference", former, *WORDS)
    found = json.loads(deploy("eval", *words).out)
    assert found["drop_points"] == pytest.approx(expected["drop_points"])
    # What was scored from a file of detections is a former result as well.
    (tmp_path / "former.json").write_text(json.dumps(found))
    again = json.loads(deploy("eval", model_file, *data, "--reference", tmp_path / "former.json", *WORDS).out)
    assert again["drop_points"] == pytest.approx(0, abs=1e-9)


def test_a_former_result_of_other_images_boxes_or_classes_is_refused_before_the_model_runs(
    deploy, capsys, evaluated, model_file, found_annotations, shapes_root, tmp_path
):
    images = ("--images", shapes_root / "images")
    former = evaluated(capsys)
    limited = evaluated(capsys, "--limit", 2)
    other = json.loads(found_annotations.read_text())
    other["annotations"][0]["bbox"][0] += 0.5
    (tmp_path / "other.json").write_text(json.dumps(other))
    renamed = json.loads(former.read_text())
    renamed["per_class"]["unheard of"] = renamed["per_class"].pop(next(iter(renamed["per_class"])))
    (tmp_path / "renamed.json").write_text(json.dumps(renamed))
    for ann, reference, more, message in [
        (found_annotations, former, ("--limit", 2), "is of 6 images, this evaluation of 2: give the --limit"),
        (found_annotations, limited, (), "is of 2 images, this evaluation of 6"),
        (tmp_path / "other.json", former, (), "was evaluated on other annotations than"),
        (found_annotations, tmp_path / "renamed.json", (), "unheard of, this evaluation "),
    ]:
        done = deploy("eval", model_file, "--ann", ann, *images, "--reference", reference, *more, *WORDS)
        assert done.code == 2
        assert message in done.err
        assert not re.search(r"eval \d", done.err)
        assert done.out == ""
    assert deploy(
        "eval", model_file, "--ann", found_annotations, *images, "--limit", 2, "--reference", limited, *WORDS
    ).code == 0  # fmt: skip


def test_a_json_that_is_no_evaluation_is_refused(deploy, model_file, found_annotations, shapes_root, tmp_path, capsys):
    data = ("--ann", found_annotations, "--images", shapes_root / "images")
    facts = json.loads(deploy("eval", model_file, *data, "--limit", 1, "--json").out)
    older = {name: value for name, value in facts.items() if name != "annotations_sha256"}
    for content, message in [
        (None, "cannot be read"),
        ("{", "is not the output of `cskd-deploy eval MODEL ... --json`"),
        ("[1]", "is not the output of"),
        ("{}", "is not the output of"),
        (json.dumps({**facts, "metrics": None}), "holds no mAP"),
        (json.dumps({**facts, "metrics": {}}), "holds no mAP"),
        (json.dumps(older), "an older version wrote it: evaluate the reference again"),
    ]:
        path = tmp_path / "former.json"
        if content is not None:
            path.write_text(content)
        done = deploy("eval", model_file, *data, "--limit", 1, "--reference", path)
        assert done.code == 2
        assert message in done.err


def test_the_hash_of_annotations_is_of_what_map_depends_on(found_annotations, shapes_root, tmp_path):
    dataset = read(found_annotations, shapes_root / "images")
    expected = annotations_sha256(dataset)
    assert annotations_sha256(dataset.select(tuple(reversed(dataset.classes)))) == expected
    elsewhere = tmp_path / "moved.json"
    shutil.copy(found_annotations, elsewhere)
    assert annotations_sha256(read(elsewhere, shapes_root / "images")) == expected
    dataset.to_coco(tmp_path / "written" / "again.json")
    assert annotations_sha256(read(tmp_path / "written" / "again.json")) == expected

    def changed(change: Any) -> str:
        data = json.loads(found_annotations.read_text())
        change(data)
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(data))
        return annotations_sha256(read(path, shapes_root / "images"))

    def last_one_empty(data: Any) -> None:
        last = data["images"][-1]["id"]
        data["annotations"] = [box for box in data["annotations"] if box["image_id"] != last]

    assert changed(lambda data: data["annotations"].reverse()) == expected
    others = {
        changed(lambda data: data["annotations"].pop()),
        changed(last_one_empty),
        annotations_sha256(dataset.subset([image["id"] for image in dataset.images[:-1]])),  # its boxes gone either way
        changed(lambda data: data["annotations"][3].update(iscrowd=1)),
        changed(lambda data: data["annotations"][3].update(area=1.0)),
        changed(lambda data: data["categories"][0].update(name="other")),
        annotations_sha256(dataset.select(dataset.classes[1:])),
        expected,
    }
    assert len(others) == 8
