"""`cskd-train data ...`: each command from files to files, its exit code, and one message where something is wrong."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import cv2
import numpy as np
import pytest

from cskd_data import read
from cskd_train.cli import cli
from cskd_train.commands.data import COMMANDS

INTAKE = Path(__file__).parents[1] / "data" / "intake"


@pytest.fixture
def voc(tmp_path):
    return shutil.copytree(INTAKE / "voc_names_with_space", tmp_path / "voc")


@pytest.fixture
def yolo(tmp_path):
    return shutil.copytree(INTAKE / "yolo_layout", tmp_path / "yolo")


def in_a_shell(*arguments, env=None, **settings):
    """Run `cskd-train` in a process of its own."""
    command = [sys.executable, "-m", "cskd_train", *map(str, arguments)]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(command, env=environment, capture_output=True, timeout=120, **settings)


def one_message(code, out, err):
    """The message of a command that was refused."""
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err
    return err


def test_a_yolo_set_becomes_a_file_a_split_that_passes_the_check(yolo, tmp_path, command_line):
    code, out, _ = command_line("data", "convert", yolo / "data.yaml", tmp_path / "coco")
    assert code == 0
    assert f"{tmp_path}/coco/train.json: 3 images, 5 boxes (2 cup, 2 spoon, 1 plate)" in out
    train, val = (json.loads((tmp_path / "coco" / f"{split}.json").read_text()) for split in ("train", "val"))
    assert [image["file_name"] for image in train["images"]] == [f"train/photo_{number}.png" for number in (1, 2, 3)]
    assert val["categories"] == train["categories"]
    assert [one["name"] for one in train["categories"]] == ["cup", "spoon", "plate"]
    lines = [line for line in out.splitlines() if line.startswith("  check it: cskd-train ")]
    assert len(lines) == 2
    for line in lines:
        assert command_line(*shlex.split(line.removeprefix("  check it: cskd-train ")))[0] == 0
    _, out, _ = command_line("data", "convert", yolo, tmp_path / "all.json", "--json")
    (file,) = json.loads(out)["files"]
    assert (file["images"], file["image_root"]) == (4, str(yolo / "images"))
    assert sum(file["boxes_per_class"].values()) == 6


def test_the_path_of_a_split_converts_it_alone(voc, yolo, tmp_path, command_line):
    for source, name in ((yolo / "images" / "val", "val"), (voc / "ImageSets" / "Main" / "train.txt", "train")):
        code, out, _ = command_line("data", "convert", source, tmp_path / "coco")
        assert code == 0
        assert out.startswith(f"{tmp_path}/coco/{name}.json: ")


@pytest.mark.parametrize("command", ["convert", "split"])
def test_the_config_that_is_printed_trains_on_what_was_written(yolo, tmp_path, command_line, tiny_config, command):
    out_folder = (tmp_path / "a 'new' folder",) if command == "convert" else ("--out", tmp_path / "cut")
    code, out, _ = command_line("data", command, yolo, *out_folder)
    assert code == 0
    lines = out.partition("  a config that trains on them:\n")[2].splitlines()
    assert len(lines) == 6
    config = tmp_path / "mine.py"
    config.write_text("\n".join(line[4:] for line in lines).replace("CONFIG.py", str(tiny_config)))
    code, out, err = command_line("run", config, "--work-dir", tmp_path / "work", "--dry-run")
    assert code == 0, err
    assert "first loss" in out


def test_the_one_file_of_a_set_without_splits_is_looked_at_and_cut_with_the_printed_lines(
    voc, tmp_path, command_line, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    _, out, _ = command_line("data", "convert", voc, tmp_path / "all cups.json")
    assert "a config" not in out
    commands = [shlex.split(line.partition(": cskd-train ")[2]) for line in out.splitlines() if ": cskd-train " in line]
    assert [one[1] for one in commands] == ["check", "show", "split"]
    for one in commands:
        code, _, err = command_line(*one)
        assert code == 0, err


@pytest.mark.parametrize("alias", ["convert", "from-voc"])
def test_a_voc_split_becomes_one_file_with_the_classes_asked_for(voc, tmp_path, command_line, alias):
    options = ("--split", "train", "--classes", "spoon, cup")
    code, _, _ = command_line("data", alias, voc, tmp_path / "train.json", *options)
    coco = json.loads((tmp_path / "train.json").read_text())
    assert code == 0
    assert [image["file_name"] for image in coco["images"]] == ["IMG 1.png", "IMG 2.png", "IMG 3.png"]
    assert [one["name"] for one in coco["categories"]] == ["spoon", "cup"]
    assert coco["annotations"][0]["bbox"] == [8, 8, 30, 24]
    command_line("data", alias, voc, tmp_path / "zero.json", *options, "--zero-based")
    assert json.loads((tmp_path / "zero.json").read_text())["annotations"][0]["bbox"] == [9, 9, 29, 23]


def test_coco_is_written_in_normal_form(yolo, tmp_path, command_line):
    command_line("data", "convert", yolo, tmp_path / "raw.json")
    raw = json.loads((tmp_path / "raw.json").read_text())
    for one in raw["annotations"]:
        del one["area"], one["iscrowd"], one["id"]
    (tmp_path / "raw.json").write_text("\ufeff" + json.dumps(raw))
    code, _, _ = command_line("data", "convert", tmp_path / "raw.json", tmp_path / "new", "--images", yolo / "images")
    assert code == 0
    again = json.loads((tmp_path / "new" / "raw.json").read_text())
    assert again["annotations"][0].items() >= {"id": 1, "area": 720, "iscrowd": 0}.items()


def test_a_file_that_is_there_is_replaced_only_when_asked(yolo, tmp_path, command_line):
    out = tmp_path / "a.json"
    for arguments in (
        ("convert", yolo, out),
        ("clean", yolo, out),
        ("split", yolo, "--out", tmp_path / "cut"),
    ):
        targets = [out] if out in arguments else [tmp_path / "cut" / f"yolo_{part}.json" for part in ("train", "val")]
        for target in targets:
            target.parent.mkdir(exist_ok=True)
            target.write_text("mine")
        err = one_message(*command_line("data", *arguments))
        assert "nothing was changed. Give another name, or --overwrite" in err
        assert [target.read_text() for target in targets] == ["mine"] * len(targets)
        assert command_line("data", *arguments, "--overwrite")[0] == 0
        assert all(json.loads(target.read_text())["images"] for target in targets)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("convert", "nowhere", "out.json"), "annotation file nowhere does not exist: give a COCO file, a VOC folder"),
        (("convert", "{yolo}", "out.json", "--split", "night"), "has no split 'night'; splits: train, val"),
        (("convert", "{yolo}", "out.json", "--classes", "cow"), "has no class 'cow'"),
        (("convert", "{yolo}", "out.json", "--zero-based"), "--zero-based is not for YOLO data sets"),
        (("convert", "{yolo}", "{yolo}/data.yaml/out.json"), "out.json"),
        (("split", "{yolo}", "--val", "1.5"), "val 1.5 and test 0: give shares of the images"),
        (("show", "{yolo}", "sheet.jpg"), "output sheet.jpg is no PNG file"),
        (("show", "{yolo}", "{yolo}/images/train/photo_1.png"), "photo_1.png, which is read: give another name"),
        (("show", "{yolo}", "sheet.png", "--count", "0"), "give 1 to 400 images"),
        (("clean", "{yolo}", "{yolo}"), "exists: nothing was changed"),
        (("check", "{yolo}", "--images", "nowhere"), "the image folder nowhere of"),
    ],
)
def test_what_cannot_be_done_is_one_message(yolo, tmp_path, command_line, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    err = one_message(*command_line("data", *(one.format(yolo=yolo) for one in arguments)))
    assert said in err
    assert sorted(tmp_path.rglob("*")) == before


def test_several_files_are_compared_and_one_alone_keeps_its_json(yolo, tmp_path, command_line):
    command_line("data", "convert", yolo, tmp_path / "coco")
    train, val = tmp_path / "coco" / "train.json", tmp_path / "coco" / "val.json"
    shutil.copy(yolo / "images" / "train" / "photo_1.png", yolo / "images" / "val" / "photo_4.png")
    code, out, _ = command_line("data", "check", train, val, "--images", yolo / "images")
    assert code == 0
    assert f"warning: 1 picture both in {train} and in {val}" in out
    _, out, _ = command_line("data", "check", train, val, "--images", yolo / "images", "--json")
    assert [one["images"] for one in json.loads(out)["files"]] == [3, 1]
    assert len(json.loads(out)["warnings"]) == 1
    _, out, _ = command_line("data", "check", val, "--images", yolo / "images", "--json")
    assert json.loads(out)["images"] == 1
    changed = json.loads(val.read_text())
    changed["categories"][0]["name"] = "mug"
    val.write_text(json.dumps(changed))
    code, out, err = command_line("data", "check", train, val, "--images", yolo / "images")
    assert code == 2
    assert "have different classes" in err
    code, _, err = command_line("data", "check", train, val, *(("--images", yolo) * 3))
    assert (code, "--images is given 3 times for 2 files" in err) == (2, True)


def test_a_refused_check_prints_its_json_all_the_same(yolo, command_line):
    (yolo / "images" / "train" / "photo_1.png").write_bytes(
        (yolo / "images" / "train" / "photo_2.png").read_bytes()[:99]
    )
    code, out, err = command_line("data", "check", yolo, "--json")
    assert code == 2
    assert "train/photo_1.png" in json.loads(out)["errors"][0]
    assert "photo_1.png is truncated" in err


def test_split_clean_and_show_write_what_they_say(yolo, tmp_path, command_line):
    command_line("data", "convert", yolo, tmp_path / "all.json")
    code, out, _ = command_line("data", "split", tmp_path / "all.json", "--images", yolo / "images", "--val", 0.25)
    assert code == 0
    for part, count in (("train", 3), ("val", 1)):
        assert f"  {tmp_path}/all_{part}.json" in out
        assert len(read(tmp_path / f"all_{part}.json", yolo / "images").images) == count
    (yolo / "images" / "train" / "photo_2.png").unlink()
    (yolo / "images" / "train" / "photo_3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    arguments = (tmp_path / "all.json", tmp_path / "clean.json", "--images", yolo / "images", "--json")
    code, out, _ = command_line("data", "clean", *arguments)
    assert code == 0
    assert json.loads(out)["images"] == 2
    assert command_line("data", "check", tmp_path / "clean.json", "--images", yolo / "images", "--decode")[0] == 0
    code, out, _ = command_line(
        "data", "show", tmp_path / "clean.json", tmp_path / "s.png", "--images", yolo / "images"
    )
    assert (code, out) == (0, f"{tmp_path}/s.png: 2 images\n")
    assert cv2.imread(str(tmp_path / "s.png")).shape[1] == 2 * 521 + 12  # of images of 96 x 64


@pytest.mark.parametrize("given", [False, True], ids=["looked for", "given"])
@pytest.mark.parametrize("how", ["convert", "clean", "split"])
def test_what_is_written_elsewhere_is_used_with_the_images_given_or_not(
    shapes_root, trained, tiny_config, tmp_path, command_line, how, given
):
    source = shapes_root / "annotations" / "val.json"
    out = tmp_path / "far" / "away" / ("val_train.json" if how == "split" else "made.json")
    target = ("--out", out.parent) if how == "split" else (out,)
    assert command_line("data", how, source, *target)[0] == 0
    images = ("--images", shapes_root / "images") if given else ()
    assert command_line("data", "check", out, "--decode", *images)[0] == 0
    assert command_line("data", "show", out, tmp_path / "sheet.png", *images)[0] == 0
    settings = {"ann_file": out, "img_prefix": shapes_root / "images" if given else None, "data_root": None}
    places = [f"data.{split}.{key}={value}" for split in ("train", "val") for key, value in settings.items()]
    options = [word for one in places for word in ("--set", one)]
    code, _, err = command_line("run", tiny_config, "--epochs", 1, "--work-dir", tmp_path / "w", *options)
    assert code == 0, err
    code, found, err = command_line("test", trained / "best.pth", "--json", *options)
    assert (code, json.loads(found)["images"]) == (0, len(json.loads(out.read_text())["images"])), err


@pytest.mark.parametrize("name", [*COMMANDS, "from-voc", "from-yolo"])
def test_every_help_has_examples_that_parse(command_line, name):
    code, out, _ = command_line("data", name, "--help")
    assert code == 0
    examples = re.findall(r"^ +cskd-train (data .+)$", out, re.MULTILINE)
    assert examples
    for example in examples:
        group, command, *arguments = shlex.split(example)
        context = click.Context(cli)
        subcommand = cli.get_command(context, group).get_command(context, command)
        subcommand.make_context(command, arguments)  # raises where an option is not there


def test_the_examples_with_the_shapes_set_run(tmp_path, command_line, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command_line("data", "shapes", "data/shapes", "--images", 6, "--val-images", 4, "--size", 64, 64)
    done = 0
    for name in COMMANDS:
        _, out, _ = command_line("data", name, "--help")
        for example in re.findall(r"^ +cskd-train (data .*data/shapes/.+)$", out, re.MULTILINE):
            code, _, err = command_line(*shlex.split(example))
            assert (code, err) == (0, ""), example
            done += 1
    assert done >= 4


def test_names_that_are_not_utf8_and_terminals_that_are_not_lose_nothing(yolo, tmp_path):
    odd = os.fsdecode(b"caf\xe9 \xff.png")
    source = yolo / "images" / "train"
    (source / "photo_1.png").rename(source / odd)
    (yolo / "labels" / "train" / "photo_1.txt").rename(yolo / "labels" / "train" / f"{Path(odd).stem}.txt")
    (yolo / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [tée, 匙, plate]\n")
    plain = {"PYTHONUTF8": "0", "HOME": str(tmp_path / "none"), "TMPDIR": "/nonexistent"}
    for env in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "C.UTF-8"}):
        out = tmp_path / "coco"
        for arguments in (
            ("convert", yolo, out, "--overwrite"),
            ("check", out / "train.json", "--images", yolo / "images"),
            ("check", out / "train.json", "--images", yolo / "images", "--json"),
            ("split", out / "train.json", "--images", yolo / "images", "--overwrite"),
            ("clean", out / "train.json", out / "clean.json", "--images", yolo / "images", "--overwrite"),
            ("show", out / "train.json", out / "sheet.png", "--images", yolo / "images"),
        ):
            done = in_a_shell("data", *arguments, env={**plain, **env})
            assert (done.returncode, done.stderr) == (0, b""), (env, arguments)
        assert read(out / "train.json", yolo / "images").images[0]["file_name"] == f"train/{odd}"
    (source / odd).write_bytes(b"")
    done = in_a_shell(
        "data", "check", out / "train.json", "--images", yolo / "images", env={"PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 2
    assert rb"caf\udce9 \udcff.png is empty (0 bytes)" in done.stderr


def test_a_run_in_a_work_dir_whose_name_is_not_utf8_is_refused_before_it_is_made(tmp_path, tiny_config, shapes_root):
    odd = tmp_path / os.fsdecode(b"runs \xff") / "a"
    done = in_a_shell("run", tiny_config, "--work-dir", odd, "--set", f"data_root={shapes_root}")
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"has a name whose bytes are not UTF-8 text" in done.stderr
    assert not odd.parent.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_folder_that_cannot_be_written_is_one_message(yolo, tmp_path, command_line):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    assert "cannot" in one_message(*command_line("data", "convert", yolo, folder / "a.json"))


def test_a_full_disk_is_one_message_and_the_old_file_stays(yolo, tmp_path, command_line, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    for arguments in (("convert", yolo, tmp_path / "a.json"), ("show", yolo, tmp_path / "a.png")):
        command_line("data", *arguments)
        before = arguments[2].read_bytes()
        monkeypatch.setattr(os, "fsync", full)
        options = () if "show" in arguments else ("--overwrite",)
        assert "No space left on device" in one_message(*command_line("data", *arguments, *options))
        monkeypatch.undo()
        assert arguments[2].read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_help_and_reading_need_neither_torch_nor_mmdet(yolo, fresh_python):
    done = fresh_python(
        "import sys\nfrom cskd_train.cli import main\n"
        f"for words in (['data', '--help'], ['data', 'check', {str(yolo)!r}]):\n"
        "    try: main(words)\n    except SystemExit as stop: assert not stop.code, stop.code\n"
        "print([name for name in ('torch', 'mmdet', 'mmcv') if name in sys.modules])"
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    np.testing.assert_equal(done.returncode, 0)
