"""Training and evaluation go on without broken images where they are asked to: the same everywhere, and counted."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import process_parts
from launching import command
from process_parts import in_processes

from cskd_data import DataError
from cskd_train.engine.build import build_split, check_data
from cskd_train.errors import TrainError
from cskd_train.files.config import load_config
from cskd_train.mm import datasets

from .runs import differences, last, log, train

WAYS = ("`cskd-train data clean FILE OUT`", "`--skip-broken`")


def spoil(root):
    """Break two of the training images and one of the validation: empty, half a file, and no image."""
    names = {}
    for split, places in (("train", (1, 4)), ("val", (2,))):
        images = json.loads((root / "annotations" / f"{split}.json").read_text())["images"]
        names[split] = [images[place]["file_name"] for place in places]
    empty, half, text = (root / "images" / name for name in (*names["train"], *names["val"]))
    empty.write_bytes(b"")
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    text.write_text("<html>404</html>")
    return names


@pytest.fixture
def spoiled(shapes_root, tmp_path):
    """A copy of the shapes, and the names of its broken images by split."""
    root = shutil.copytree(shapes_root, tmp_path / "spoiled")
    return root, spoil(root)


@pytest.fixture
def run_spoiled(command_line, tiny_config, spoiled, tmp_path):
    """`run_spoiled("w", *options)`: a run on the broken set into a folder."""

    def call(name, *options, config=tiny_config):
        data = ("--set", f"data_root={spoiled[0]}", "--epochs", 1)
        return command_line("run", config, "--work-dir", tmp_path / name, *data, *options)

    return call


def test_without_the_setting_a_run_is_refused_with_both_ways_on(run_spoiled, spoiled, tmp_path):
    code, out, err = run_spoiled("w")
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert all(name in err for name in spoiled[1]["train"])
    assert all(way in err for way in WAYS)
    assert not (tmp_path / "w").exists()


def test_a_missing_image_is_refused_with_both_ways_on_and_skipped_too(run_spoiled, spoiled, tmp_path):
    root, names = spoiled
    (root / "images" / names["val"][0]).unlink()
    (root / "images" / names["train"][0]).unlink()
    code, _, err = run_spoiled("w")
    assert code == 2
    assert all(way in err for way in WAYS)
    assert run_spoiled("w", "--skip-broken")[0] == 0
    assert json.loads((tmp_path / "w" / "result.json").read_text())["skipped_images"] == {"train": 2, "val": 1}


@pytest.mark.parametrize("how", ["option", "set", "config"])
def test_with_it_the_run_goes_on_and_says_what_it_skipped(run_spoiled, spoiled, tiny_config, tmp_path, how):
    config = tmp_path / "skip.py"
    config.write_text(f"_base_ = [{str(tiny_config)!r}]\ndata = dict(skip_broken=True)\n")
    options = {"option": ["--skip-broken"], "set": ["--set", "data.skip_broken=True"], "config": []}[how]
    code, out, err = run_spoiled("w", *options, config=config if how == "config" else tiny_config)
    assert code == 0, err
    result = json.loads((tmp_path / "w" / "result.json").read_text())
    assert (result["skipped_images"], result["images"]) == ({"train": 2, "val": 1}, {"train": 10, "val": 5})
    assert "skipped: 2 images of train, 1 image of val cannot be used; mAP over 5 of 6 images" in out
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    for split, count in (("train", "2 of 12 images"), ("val", "1 of 6 images")):
        (line,) = (line for line in warnings if f"{count} left out, with their boxes" in line)
        assert all(name in line for name in spoiled[1][split])
    (validation,) = (record for record in log(tmp_path / "w") if record["mode"] == "val")
    assert validation["skipped_images"] == 1


def test_a_run_on_a_sound_set_skips_nothing_and_is_the_same_run(train_tiny, trained, tmp_path):
    code, out, _ = train_tiny(tmp_path / "w", "--skip-broken")
    assert code == 0
    assert "skipped" not in out
    assert log(tmp_path / "w") == log(trained)
    assert json.loads((tmp_path / "w" / "result.json").read_text())["skipped_images"] == {"train": 0, "val": 0}


def test_a_skipping_run_is_the_run_on_the_cleaned_set(run_spoiled, spoiled, command_line, tmp_path):
    root, _ = spoiled
    assert run_spoiled("skipping", "--skip-broken")[0] == 0
    files = []
    for split in ("train", "val"):
        assert command_line("data", "clean", root / f"annotations/{split}.json", root / f"clean/{split}.json")[0] == 0
        files += ["--set", f"data.{split}.ann_file=clean/{split}.json"]
    assert run_spoiled("cleaned", *files)[0] == 0
    drop = ("skipped_images",)
    first, second = (
        [{key: value for key, value in record.items() if key not in drop} for record in log(tmp_path / name)]
        for name in ("skipping", "cleaned")
    )
    assert first == second


def test_an_evaluation_is_over_the_images_that_can_be_used_and_says_so(spoiled, trained, command_line, tmp_path):
    root, _ = spoiled
    options = ("test", trained / "best.pth", "--set", f"data_root={root}")
    code, _, err = command_line(*options)
    assert code == 2
    assert all(way in err for way in WAYS)
    code, out, _ = command_line(*options, "--skip-broken")
    assert code == 0
    assert "mAP over 5 of 6 images: 1 could not be used, and counted neither way" in out
    found = json.loads(command_line(*options, "--skip-broken", "--json")[1])
    command_line("data", "clean", root / "annotations" / "val.json", root / "clean.json")
    cleaned = json.loads(command_line(*options, "--set", "data.val.ann_file=clean.json", "--json")[1])
    assert (found["images"], found["skipped_images"], cleaned["skipped_images"]) == (5, 1, 0)
    assert found["metrics"] == cleaned["metrics"]
    assert found["metrics"]["bbox_mAP"] >= 0
    data = json.loads((root / "annotations" / "val.json").read_text())
    assert command_line(*options, "--set", "data.skip_broken=maybe")[0] == 2
    for image in data["images"]:
        (root / "images" / image["file_name"]).write_bytes(b"")
    (root / "annotations" / "val.json").write_text(json.dumps(data, indent=1))  # one decision a process and file
    code, _, err = command_line(*options, "--skip-broken")
    assert code == 2
    assert "no image of" in err


def test_a_dry_run_shows_the_count(run_spoiled, tmp_path):
    code, out, _ = run_spoiled("w", "--skip-broken", "--dry-run")
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith("skipped "))
    assert line.endswith("2 images of train, 1 image of val cannot be used; mAP over 5 of 6 images")
    assert not (tmp_path / "w").exists()


def wrapped(leaf, how):
    return {
        "concat": {"type": "ConcatDataset", "datasets": [leaf, {**leaf}]},
        "repeat": {"type": "RepeatDataset", "times": 3, "dataset": leaf},
        "balanced": {"type": "ClassBalancedDataset", "oversample_thr": 0.1, "dataset": leaf},
        "files": {**leaf, "ann_file": [leaf["ann_file"]] * 2, "img_prefix": [leaf["img_prefix"]] * 2},
        "both": {"type": "RepeatDataset", "times": 2, "dataset": {"type": "ConcatDataset", "datasets": [leaf]}},
    }[how]


@pytest.mark.parametrize("how", ["concat", "repeat", "balanced", "files", "both"])
def test_inside_wrappers_the_same_images_are_skipped(spoiled, tiny_config, how):
    root, names = spoiled
    cfg = load_config(tiny_config, {"data_root": str(root), "data.skip_broken": True})
    cfg.data.train = wrapped(dict(cfg.data.train), how)
    warnings = check_data(cfg)
    assert any(name in line for name in names["train"] for line in warnings)
    dataset = build_split(cfg, "train")
    twice = how in ("concat", "files")
    assert datasets.counts(dataset) == ((20, 4) if twice else (10, 2))
    shown = {str(dataset[index]["img_metas"].data["ori_filename"]) for index in range(len(dataset))}
    assert len(shown) == 10
    assert not shown & set(names["train"])
    cfg.data.skip_broken = False
    with pytest.raises(DataError, match="cannot be used, 2 faults"):
        check_data(cfg)


def test_the_setting_of_one_dataset_alone_is_refused_and_reaches_no_constructor(spoiled, tiny_config):
    cfg = load_config(tiny_config, {"data_root": str(spoiled[0])})
    cfg.data.train.skip_broken = True
    with pytest.raises(TrainError, match=r"for all splits alike: data\.skip_broken=True"):
        check_data(cfg)


def test_nothing_left_is_refused_before_anything_is_built(run_spoiled, spoiled, tmp_path):
    root, _ = spoiled
    for image in json.loads((root / "annotations" / "train.json").read_text())["images"]:
        (root / "images" / image["file_name"]).write_bytes(b"")
    code, _, err = run_spoiled("w", "--skip-broken")
    assert code == 2
    assert "train.json can be used, such as: image" in err
    assert "Traceback" not in err
    assert not (tmp_path / "w").exists()


def test_what_only_decoding_finds_ends_a_run_by_name_with_the_ways_on_and_is_skipped(run_spoiled, spoiled):
    """A whole header and an end marker with half of the picture between them."""
    root, _ = spoiled
    spoiled_names = spoil(shutil.copytree(root, root.parent / "other"))["train"]
    image = json.loads((root / "annotations" / "train.json").read_text())["images"][7]["file_name"]
    content = (root / "images" / image).read_bytes()
    for name in spoiled_names:
        (root / "images" / name).write_bytes(content)
    (root / "images" / image).write_bytes(content[: len(content) // 2] + b"\xff\xd9")
    code, _, err = run_spoiled("w", "--set", "data.val=None")
    assert code == 2
    assert image in err
    assert "`--skip-broken` goes on without them" in err
    code, out, err = run_spoiled("w", "--set", "data.val=None", "--skip-broken", "--overwrite")
    assert code == 0, err
    assert "skipped: 1 image of train cannot be used\n" in out


def test_a_resumed_run_skips_the_same_and_ends_as_the_undisturbed_one(small_runs, tmp_path):
    root = shutil.copytree(small_runs.data, tmp_path / "data")
    spoil(root)
    settings = {
        "data.skip_broken": True,
        **{f"data.{split}.data_root": str(root) for split in ("train", "val")},
    }
    whole, _ = train(small_runs.options(tmp_path / "whole", settings=settings))
    stopped, _ = train(small_runs.options(tmp_path / "w", settings=settings), stop_after=8)
    assert "is saved in" in str(stopped)
    resumed, _ = train(small_runs.options(tmp_path / "w", settings=settings, resume=True))
    assert resumed.skipped_images == whole.skipped_images == {"train": 2, "val": 1}
    assert log(tmp_path / "w") == log(tmp_path / "whole")
    assert differences(last(tmp_path / "w"), last(tmp_path / "whole")) == []
    longer = {**settings, "data.skip_broken": False, "runner.max_epochs": 3}
    refused, _ = train(small_runs.options(tmp_path / "w", settings=longer, resume=True))
    assert "cannot be used, 2 faults" in str(refused)


@pytest.mark.reliability
def test_two_processes_skip_the_same_and_say_it_once(spoiled, tiny_config, tmp_path):
    root, names = spoiled
    ended = command(
        "run", tiny_config, "--work-dir", tmp_path / "w", "--gpus", 2, "--skip-broken", "--device", "cpu",
        "--epochs", 1, "--batch-size", 1, "--set", f"data_root={root}",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    result = json.loads((tmp_path / "w" / "result.json").read_text())
    assert (result["processes"], result["skipped_images"]) == (2, {"train": 2, "val": 1})
    assert ended.err.count("2 of 12 images left out, with their boxes") == 1
    assert all(name in ended.err for name in names["train"] + names["val"])
    options = ("test", tmp_path / "w" / "best.pth", "--gpus", 2, "--device", "cpu", "--json")
    found = json.loads(command(*options).out)  # by the setting in the checkpoint
    assert (found["images"], found["skipped_images"], found["processes"]) == (5, 1, 2)
    assert found["metrics"] == pytest.approx(result["last"])


@pytest.mark.parametrize("machines", [1, 2])
def test_the_processes_agree_on_what_any_machine_cannot_use(spoiled, tiny_config, machines):
    root, names = spoiled
    settings = {"data_root": str(root), "data.skip_broken": True}
    found = in_processes(2, process_parts.agreed, tiny_config, settings, machines)
    images = json.loads((root / "annotations" / "train.json").read_text())["images"]
    lost = {*names["train"], *([images[-1]["file_name"]] if machines == 2 else [])}
    assert [set(one["left_out"]) for one in found] == [lost, lost]
    assert [one["decoded"] for one in found] == [2, 2 * (machines - 1)]


def test_a_changed_annotation_file_is_decided_on_anew(spoiled, tiny_config):
    root, _ = spoiled
    cfg = load_config(tiny_config, {"data_root": str(root), "data.skip_broken": True})
    assert datasets.counts(build_split(cfg, "train")) == (10, 2)
    file = root / "annotations" / "train.json"
    shutil.copy(next((root / "images").glob("train_00011*")), root / "images" / "train_00001.jpg")
    file.write_text(file.read_text() + " ")
    assert datasets.counts(build_split(cfg, "train")) == (11, 1)
