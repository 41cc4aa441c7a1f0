"""`cskd-train card`: a model card with true figures and hashes, and weights that are read wherever a checkpoint is."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import cskd_train
from cskd_train.errors import TrainError
from cskd_train.files import checkpoints
from cskd_train.files.config import config_to_data, load_config
from cskd_train.files.tensors import save_tensors


@pytest.fixture(scope="module")
def card(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    written = cskd_train.write_card(trained, folder, license="apache-2.0", base_model=["a/b"], name="tiny")
    assert written.folder == str(folder)
    return folder


@pytest.fixture(scope="module")
def readme(card):
    _, header, text = (card / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header), text


def test_the_header_is_one_that_the_hub_takes(readme, trained):
    """Fields by https://github.com/huggingface/hub-docs/blob/main/modelcard.md: the required ones, no unknown ones."""
    header, _ = readme
    assert (header["license"], header["base_model"], header["pipeline_tag"]) == (
        "apache-2.0", ["a/b"], "object-detection"
    )  # fmt: skip
    (model,) = header["model-index"]
    assert model["name"] == "tiny"
    (result,) = model["results"]
    assert result["task"] == {"type": "object-detection", "name": "Object Detection"}
    assert {"type", "name", "split"} == {*result["dataset"]}
    assert result["dataset"]["split"] == "val"
    best = json.loads((trained / "result.json").read_text())["best"]
    values = {one["type"]: one["value"] for one in result["metrics"]}
    assert values["mAP"] == best["bbox_mAP"]
    assert values["mAP_50"] == best["bbox_mAP_50"]
    assert all({*one} == {"type", "name", "value"} for one in result["metrics"])
    assert all(value >= 0 for value in values.values())


def test_the_hashes_are_those_of_the_files(readme, card, trained):
    _, text = readme
    said = re.findall(r"`([\w.]+)`: sha256 `([0-9a-f]{64})`", text)
    assert [name for name, _ in said] == ["model.safetensors", "config.py", "best.pth"]
    for name, digest in said:
        file = (trained if name == "best.pth" else card) / name
        assert hashlib.sha256(file.read_bytes()).hexdigest() == digest


def test_the_weights_and_all_that_the_checkpoint_says_are_the_same(card, trained):
    one = checkpoints.load_checkpoint(trained / "best.pth")
    other = checkpoints.load_checkpoint(card / "model.safetensors")
    assert {*one.state_dict} == {*other.state_dict}
    for key, value in one.state_dict.items():
        assert torch.equal(value, other.state_dict[key])
        assert value.dtype == other.state_dict[key].dtype
    assert one.config == other.config  # tuples too, which JSON has not
    assert (one.classes, one.metrics) == (other.classes, other.metrics)
    assert one.meta["epoch"] == other.meta["epoch"]


def test_it_is_tested_and_teaches_as_the_checkpoint_does(
    card, trained, shapes_root, command_line, tiny_config, tmp_path
):
    code, out, error = command_line("test", card / "model.safetensors", "--json", "--set", f"data_root={shapes_root}")
    assert code == 0, error
    best = json.loads((trained / "result.json").read_text())["best"]
    assert json.loads(out)["metrics"] == pytest.approx(best, abs=1e-12)
    (config := tmp_path / "distilled.py").write_text(
        f"_base_ = [{str(tiny_config)!r}]\n"
        f"distill = dict(teacher=dict(checkpoint={str(card / 'model.safetensors')!r}))\n"
    )
    words = ("run", config, "--dry-run", "--set", f"data_root={shapes_root}", "--work-dir", tmp_path / "work")
    code, out, error = command_line(*words)
    assert code == 0, error


def test_config_py_is_the_config(card, trained):
    stored = checkpoints.load_checkpoint(trained / "best.pth").config
    assert config_to_data(load_config(card / "config.py")) == stored


def test_the_card_tells_recipe_data_and_limits(readme):
    _, text = readme
    parts = dict(re.findall(r"^## (.+)\n\n((?:.+\n|\n(?!## ))*)", text, re.MULTILINE))
    assert list(parts) == ["Use", "Results", "Training", "Data", "Base model", "Limits", "Files"]
    assert "RetinaNet" in parts["Training"]
    assert "12 images of train, 6 images of val" in parts["Data"]
    assert "circle" in parts["Limits"]
    assert "not measured on a test split" in parts["Limits"]


def test_names_of_classes_are_text(trained, tmp_path):
    work = shutil.copytree(trained, tmp_path / "work")
    contents = torch.load(work / "best.pth", weights_only=True)
    contents["meta"]["CLASSES"] = ["<script>alert(1)</script>", "a|b", *contents["meta"]["CLASSES"][2:]]
    torch.save(contents, work / "best.pth")
    cskd_train.write_card(work)
    text = (work / "card" / "README.md").read_text()
    assert r"\<script\>alert(1)\</script\>" in text
    assert not re.search(r"(?<!\\)<script", text)
    assert r"a\|b" in text


def test_files_that_are_there_stay(card, trained, command_line, tmp_path):
    card = shutil.copytree(card, tmp_path / "card")
    before = {file.name: file.read_bytes() for file in card.iterdir()}
    code, _, error = command_line("card", trained, "--output", card)
    assert (code, error.count("\n")) == (2, 1)
    assert "there already: nothing was changed" in error
    assert {file.name: file.read_bytes() for file in card.iterdir()} == before
    code, out, error = command_line("card", trained, "--output", card, "--overwrite", "--json")
    assert code == 0, error
    assert {*json.loads(out)["sha256"]} == {"model.safetensors", "config.py"}
    assert (card / "README.md").read_bytes() != before["README.md"]  # of another name


def test_tied_weights_are_written_each_on_its_own(tmp_path):
    tied = torch.arange(4.0)
    save_tensors(tmp_path / "a.safetensors", {"a": tied, "b": tied, "c": tied[::2]}, {})
    assert {key: value.tolist() for key, value in load_file(tmp_path / "a.safetensors").items()} == {
        "a": [0, 1, 2, 3], "b": [0, 1, 2, 3], "c": [0, 2]
    }  # fmt: skip


def test_another_programs_file_is_weights_without_a_config(tmp_path):
    save_file({"model.backbone.conv1.weight": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(TrainError, match="holds no config of cskd-train"):
        checkpoints.load_checkpoint(tmp_path / "a.safetensors")
    found = checkpoints.load_checkpoint(tmp_path / "a.safetensors", require_config=False)
    assert list(found.state_dict) == ["backbone.conv1.weight"]


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"\xff" * 64, b"PK\x03\x04" + bytes(60)])
def test_a_damaged_file_is_refused_in_a_sentence(content, tmp_path, command_line):
    (file := tmp_path / "a.safetensors").write_bytes(content)
    code, _, error = command_line("test", file)
    assert (code, error.count("\n")) == (2, 1)
    assert "safetensors" in error


def test_a_file_that_was_cut_short_is_refused(card, tmp_path):
    whole = (card / "model.safetensors").read_bytes()
    (file := tmp_path / "a.safetensors").write_bytes(whole[:-10])
    with pytest.raises(TrainError, match="is damaged"):
        checkpoints.load_checkpoint(file)
