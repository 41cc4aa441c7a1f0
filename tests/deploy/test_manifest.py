"""The metadata survives the file, and a spoilt one is named."""

from __future__ import annotations

import dataclasses
import json

import pytest

from cskd_deploy.errors import DeployError
from cskd_deploy.model.manifest import MANIFEST_KEY, AgreementWithFp32, GraphForm, manifest_from_metadata

from .test_bench import MANIFEST


def test_a_manifest_comes_back_as_it_went():
    assert manifest_from_metadata(MANIFEST.to_metadata(), "x.onnx") == MANIFEST


def test_what_a_file_agreed_with_and_what_it_requires_come_back_too():
    agreement = AgreementWithFp32(
        sha256="ab",
        images=7,
        random=True,
        detections=31,
        matched=0.9,
        overlap=0.875,
        correlation={"rpn_head.rpn_cls": (0.5, None), "bbox_head.fc_cls": (1.0,)},
        difference={"rpn_head.rpn_cls": (0.25, 0.0), "bbox_head.fc_cls": (0.125,)},
        spread={"rpn_head.rpn_cls": (2.0, 0.0), "bbox_head.fc_cls": (1.0,)},
    )
    manifest = dataclasses.replace(MANIFEST, agreement=agreement, requires=("vnni",))
    assert manifest_from_metadata(manifest.to_metadata(), "x.onnx") == manifest
    lines = str(agreement).splitlines()
    assert lines[0] == "agrees with its source on 7 random images: 90.0 % of 31 detections, IoU 0.875"
    assert lines[1] == "correlation of rpn_head.rpn_cls: 0.50000 -"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("agreement"), "'agreement' is missing"),
        (lambda data: data.update(agreement={}), "'correlation' is missing"),
        (lambda data: data.update(requires="vnni"), "'requires' is 'vnni', expected list"),
        (lambda data: data.pop("classes"), "'classes' is missing"),
        (lambda data: data.update(schema=99), "schema is 99"),
        (lambda data: data["preprocessing"].update(mean=[1, 2]), "'mean' has 2 values, expected 3"),
        (lambda data: data["preprocessing"].update(channel_order="grey"), "channel_order is 'grey'"),
        (lambda data: data["preprocessing"].update(std=[1, 0, 1]), "std must be positive"),
        (lambda data: data["postprocessing"].update(max_per_image="many"), "'max_per_image' is 'many', expected int"),
        (lambda data: data["postprocessing"].update(score_threshold=float("nan")), "expected a finite number"),
        (lambda data: data.update(classes="abc"), "'classes' is 'abc', expected list"),
        (lambda data: data["postprocessing"].pop("threshold_on"), "'threshold_on' is missing"),
        (lambda data: data["postprocessing"].update(threshold_on="labels"), "threshold_on is 'labels'"),
        (lambda data: data.pop("graph"), "'graph' is missing"),
        (lambda data: data["graph"].update(input="int8"), "input is 'int8'"),
        (lambda data: data["graph"].update(dynamic=1), "'dynamic' is 1, expected bool"),
        (lambda data: data["graph"].update(nms="engine"), "nms is 'engine'"),
        (lambda data: data["graph"].update(proposals=0), "proposals is 0, expected a whole number from 1 on"),
        (lambda data: data["graph"].update(proposals="all"), "'proposals' is 'all', expected int"),
    ],
)
def test_a_spoilt_entry_is_named(change, message):
    data = json.loads(MANIFEST.to_metadata()[MANIFEST_KEY])
    change(data)
    with pytest.raises(DeployError) as error:
        manifest_from_metadata({MANIFEST_KEY: json.dumps(data)}, "x.onnx")
    assert message in str(error.value)
    assert "x.onnx" in str(error.value)


def test_a_file_of_the_first_schema_has_its_threshold_on_the_scores():
    data = json.loads(MANIFEST.to_metadata()[MANIFEST_KEY])
    data["schema"] = 1
    del data["postprocessing"]["threshold_on"]
    found = manifest_from_metadata({MANIFEST_KEY: json.dumps(data)}, "x.onnx")
    assert found == dataclasses.replace(MANIFEST, schema=1)
    assert found.postprocessing.threshold_on == "scores"


def test_a_file_of_the_second_schema_takes_a_normalised_image_of_one_size():
    data = json.loads(MANIFEST.to_metadata()[MANIFEST_KEY])
    data["schema"] = 2
    del data["graph"]
    found = manifest_from_metadata({MANIFEST_KEY: json.dumps(data)}, "x.onnx")
    assert found.graph == GraphForm("float", dynamic=False, nms="outside")


def test_metadata_that_is_not_json_is_refused():
    with pytest.raises(DeployError, match="cannot be read"):
        manifest_from_metadata({MANIFEST_KEY: "{"}, "x.onnx")
