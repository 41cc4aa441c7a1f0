"""`cskd-train new`: a project from COCO, VOC and YOLO samples that trains as it was written."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import cskd_train
from cskd_data.errors import DataError
from cskd_data.shapes import generate
from cskd_train.engine.signals import Interrupted
from cskd_train.errors import TrainError
from cskd_train.files.checkpoints import load_checkpoint
from cskd_train.files.config import load_config
from cskd_train.files.settings import check_settings
from cskd_train.mm.plain import build_without_pretrained
from cskd_train.project.machine import Machine, multiplies_bfloat16

CLASSES = ("circle", "ring", "square", "triangle", "star", "cross")
PROCESSOR, GPU = Machine(cores=3), Machine(cores=12, gpu="A GPU", gpu_memory=24 * 2**30)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A generated set of 160 x 128 images: 24 in train.json, 8 in val.json."""
    root = tmp_path_factory.mktemp("coco")
    generate(root, images=24, val_images=8, size=(128, 160), seed=5)
    return root


def boxes_of(file):
    """Each image of a COCO file with its boxes."""
    data = json.loads(file.read_text())
    for image in data["images"]:
        yield image, [one for one in data["annotations"] if one["image_id"] == image["id"]]


def names_of(file):
    return {one["id"]: one["name"] for one in json.loads(file.read_text())["categories"]}


@pytest.fixture(scope="module")
def voc(coco, tmp_path_factory):
    """The training images as Pascal VOC, without lists of splits."""
    root = tmp_path_factory.mktemp("voc")
    shutil.copytree(coco / "images", root / "JPEGImages")
    (root / "Annotations").mkdir()
    file = coco / "annotations" / "train.json"
    for image, boxes in boxes_of(file):
        objects = ""
        for one in boxes:
            x, y, width, height = map(round, one["bbox"])
            objects += f"<object><name>{names_of(file)[one['category_id']]}</name><difficult>0</difficult><bndbox>"
            objects += f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + width}</xmax><ymax>{y + height}</ymax>"
            objects += "</bndbox></object>"
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{image['file_name']}</filename>{size}{objects}</annotation>"
        (root / "Annotations" / image["file_name"]).with_suffix(".xml").write_text(text)
    return root


@pytest.fixture(scope="module")
def yolo(coco, tmp_path_factory):
    """The same as YOLO, with splits of their own folders."""
    root = tmp_path_factory.mktemp("yolo")
    for split in ("train", "val"):
        file = coco / "annotations" / f"{split}.json"
        (root / split / "images").mkdir(parents=True)
        (root / split / "labels").mkdir()
        for image, boxes in boxes_of(file):
            shutil.copy(coco / "images" / image["file_name"], root / split / "images")
            wide, high = image["width"], image["height"]
            rows = [
                f"{CLASSES.index(names_of(file)[one['category_id']])} {(x + w / 2) / wide} {(y + h / 2) / high} "
                f"{w / wide} {h / high}"
                for one in boxes
                for x, y, w, h in [one["bbox"]]
            ]
            (root / split / "labels" / image["file_name"]).with_suffix(".txt").write_text("\n".join(rows))
    (root / "data.yaml").write_text(f"train: train/images\nval: val/images\nnames: {list(CLASSES)}\n")
    return root


@pytest.fixture
def source(request, coco, voc, yolo):
    """What `--data` is given, by the name of the format."""
    return {
        "coco": [coco / "annotations" / "train.json"],
        "two files": [coco / "annotations" / "train.json", coco / "annotations" / "val.json"],
        "voc": [voc],
        "yolo": [yolo],
    }[request.param]


TINY = ["--batch-size", 2, "--epochs", 1, "--workers", 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "detector", "splits"),
    [
        ("coco", "gfl", {"train": 16, "val": 4, "test": 4}),
        ("two files", "fcos", {"train": 24, "val": 8}),
        ("voc", "faster_rcnn", {"train": 16, "val": 4, "test": 4}),
        ("yolo", "retinanet", {"train": 24, "val": 8}),
    ],
    indirect=["source"],
)
def test_a_project_trains_as_it_was_written(source, detector, splits, command_line, tmp_path, monkeypatch):
    words = [word for path in source for word in ("--data", path)]
    project = tmp_path / "mine"
    code, out, err = command_line(
        "new", project, *words, "--detector", detector, "--width", "0.5", "--size", 96, "--json"
    )
    assert code == 0, err
    told = json.loads(out)
    assert told["splits"] == splits
    assert sorted(told["files"]) == sorted(
        path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()
    )
    monkeypatch.chdir(project)
    for name in ("teacher", "student", "distilled"):
        cfg = load_config(f"{name}.py")
        assert check_settings(cfg) == []
        head = cfg.model.get("bbox_head") or cfg.model.roi_head.bbox_head
        assert (head.num_classes, set(cfg.data.train.classes)) == (6, set(CLASSES))
        assert cfg.data.val.pipeline[1].img_scale[0] == 96
        assert len((project / f"{name}.py").read_text().splitlines()) < 34
    for name in ("teacher", "student"):
        code, out, err = command_line("run", f"{name}.py", "--dry-run", *TINY)
        assert (code, "first loss" in out) == (0, True), err
    assert not (project / "work_dirs").exists()
    cfg = load_config("teacher.py")
    (project / "work_dirs" / "teacher").mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(
        {"state_dict": build_without_pretrained(cfg.model).state_dict(), "meta": {"config": cfg.text}},
        project / "work_dirs" / "teacher" / "best.pth",
    )
    tiny = [*TINY, "--set", "distill.teacher.config=teacher.py", "--set", "data.train.ann_file=one_step.json"]
    data = json.loads((project / "data" / "train.json").read_text())
    kept = {one["image_id"] for one in data["annotations"]}
    data["images"] = [image for image in data["images"] if image["id"] in kept][:2]
    left = {image["id"] for image in data["images"]}
    data["annotations"] = [one for one in data["annotations"] if one["image_id"] in left]
    (project / "data" / "one_step.json").write_text(json.dumps(data))
    for name, options in (("student", [tiny[0:6], tiny[-2:]]), ("distilled", [tiny])):
        code, out, err = command_line("run", f"{name}.py", *(word for part in options for word in part))
        assert code == 0, err
        assert load_checkpoint(project / "work_dirs" / name / "last.pth").classes == tuple(told["classes"])
        records = (project / "work_dirs" / name / "log.jsonl").read_text()
        assert ("loss_pyramid_full" in records) == (name == "distilled")


def test_images_stay_where_they_are_and_the_files_find_them(coco, tmp_path):
    cskd_train.new(tmp_path / "p", coco / "annotations" / "train.json", width=0.5, machine=PROCESSOR)
    assert not [path for path in (tmp_path / "p").rglob("*") if path.suffix in (".png", ".jpg")]
    from cskd_data import read

    parts = [read(tmp_path / "p" / "data" / f"{name}.json") for name in ("train", "val", "test")]
    names = [image["file_name"] for part in parts for image in part.images]
    assert len(names) == len(set(names)) == 24
    assert all(part.path(image).is_file() for part in parts for image in part.images)


def test_every_detector_builds_at_both_widths_from_every_start(coco, tmp_path):
    files = [coco / "annotations" / f"{name}.json" for name in ("train", "val")]
    for detector in ("retinanet", "fcos", "gfl", "faster_rcnn"):
        for width, init, teacher in ((0.5, "none", "r50"), (1, "imagenet", "r101"), (1, "none", "r50")):
            folder = tmp_path / f"{detector}_{width}_{init}"
            cskd_train.new(folder, files, detector=detector, width=width, init=init, teacher=teacher, machine=PROCESSOR)
            for name in ("teacher", "student"):
                cfg = load_config(folder / f"{name}.py")
                model = build_without_pretrained(cfg.model)
                assert model.backbone.base_channels == 64 * width
                tuned = init == "imagenet"
                assert cfg.model.backbone.frozen_stages == (1 if tuned else -1)
                assert (cfg.model.backbone.get("init_cfg") is not None) == tuned
                assert bool(cfg.optimizer.get("paramwise_cfg")) == tuned
                assert cfg.lr_config.warmup_iters <= 100
                if name == "teacher" and teacher == "r101":
                    assert cfg.model.backbone.init_cfg.checkpoint.endswith(
                        "resnet101_caffe" if detector == "fcos" else "resnet101"
                    )
                    assert cfg.img_norm_cfg.to_rgb == (detector != "fcos")


def test_a_narrow_student_is_the_demos(coco, tmp_path):
    """The models of configs/demo and of a project differ in anchors only, which follow the boxes."""
    from .frozen_configs import CONFIGS

    files = [coco / "annotations" / f"{name}.json" for name in ("train", "val")]
    for detector in ("retinanet", "fcos", "gfl", "faster_rcnn"):
        folder = tmp_path / detector
        cskd_train.new(folder, files, detector=detector, width=0.5, size=128, machine=PROCESSOR)
        for name, depth in (("teacher", 50), ("student", 18)):
            own, demo = load_config(folder / f"{name}.py").model, load_config(
                CONFIGS / "demo" / f"{detector}_r{depth}_shapes.py"
            ).model  # fmt: skip
            for model in (own, demo):
                (model.get("rpn_head") or model.bbox_head).pop("anchor_generator", None)
            assert own == demo


def test_a_checkpoint_starts_the_teacher_and_imagenet_the_student(coco, tmp_path):
    init = "mmdet::retinanet/retinanet_r50_caffe_fpn_1x_coco.py"
    files = [coco / "annotations" / f"{name}.json" for name in ("train", "val")]
    cskd_train.new(tmp_path / "p", files, init=init, machine=GPU)
    teacher, student = (load_config(tmp_path / "p" / f"{name}.py") for name in ("teacher", "student"))
    assert (teacher.load_from, teacher.model.backbone.style, teacher.model.backbone.init_cfg) == (init, "caffe", None)
    assert teacher.data.train.pipeline[4].std == [1.0, 1.0, 1.0]
    assert "load_from" not in student
    assert student.model.backbone.init_cfg.checkpoint == "torchvision://resnet18"
    assert student.data.train.pipeline[4].std == [58.395, 57.12, 57.375]
    weights = tmp_path / "own.pth"
    weights.write_bytes(b"weights")
    cskd_train.new(tmp_path / "q", files, init=str(weights), width=0.5, machine=PROCESSOR)
    teacher, student = (load_config(tmp_path / "q" / f"{name}.py") for name in ("teacher", "student"))
    assert (teacher.load_from, teacher.model.backbone.frozen_stages) == (str(weights), 1)
    assert (student.model.backbone.init_cfg, student.model.backbone.frozen_stages) == (None, -1)


# what is chosen


def sized(tmp_path, boxes, size=(640, 480), images=40):
    """A COCO file of images with one box each, `boxes` wide and high in turn."""
    wide, high = size
    (folder := tmp_path / "images").mkdir(exist_ok=True)
    for number in range(images):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((high, wide, 3), number, np.uint8))
    data = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": wide, "height": high} for n in range(images)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [5, 5, side, side], "area": side * side, "iscrowd": 0}
            for n in range(images)
            for side in [boxes[n % len(boxes)]]
        ],
        "categories": [{"id": 1, "name": "cell"}],
    }
    (file := tmp_path / "sized.json").write_text(json.dumps(data))
    return file


def chosen(tmp_path, boxes, **options):
    """Name -> value of what is chosen for such a file, and the warnings."""
    number = len(list(tmp_path.glob("project*")))
    settings = {"machine": PROCESSOR, "images": tmp_path / "images", **options}
    project = cskd_train.new(tmp_path / f"project{number}", sized(tmp_path, boxes), **settings)
    return {one.name.strip(): one.value for one in project.choices}, project.warnings


def test_the_size_follows_the_boxes_and_the_machine(tmp_path):
    assert chosen(tmp_path, [100])[0]["image_scale"] == "320 x 240"
    assert chosen(tmp_path, [40])[0]["image_scale"] == "384 x 288"
    assert chosen(tmp_path, [12])[0]["image_scale"] == "512 x 384"
    assert chosen(tmp_path, [12], machine=GPU)[0]["image_scale"] == "1280 x 960"
    assert chosen(tmp_path, [12], size=200)[0]["image_scale"] == "200 x 152"


def test_boxes_below_the_smallest_anchor_are_counted(tmp_path):
    found, warnings = chosen(tmp_path, [100] * 7 + [8], size=320)
    assert found["smallest anchor"] == "16 pixels"
    (warning,) = [one for one in warnings if "--size" in one]
    boxes = int(warning.split()[2])
    assert warning.startswith(f"{round(boxes / 8)} of {boxes} boxes")
    found, warnings = chosen(tmp_path, [100], size=320)
    assert found["smallest anchor"] == "32 pixels"
    assert not [one for one in warnings if "--size" in one]


def test_batch_workers_and_rate_follow_the_machine(tmp_path):
    small, _ = chosen(tmp_path, [100])
    assert (small["batch"], small["workers"], small["learning rate"]) == ("4 images", "1", "0.0005")
    assert (small["width"], small["teacher"]) == ("0.5", "RetinaNet ResNet-50")
    large, _ = chosen(tmp_path, [100], machine=GPU)
    assert (large["batch"], large["workers"], large["width"]) == ("7 images", "8", "1")  # 28 training images
    assert large["learning rate"] == "0.00026"
    assert chosen(tmp_path, [100], machine=Machine(1))[0]["workers"] == "0"


def test_images_without_boxes_are_not_counted_as_trained_on(tmp_path):
    """Forty images, eight of which have a box; others validate."""
    data = json.loads(sized(tmp_path, [100]).read_text())
    for name, first, boxes in (("train", 0, 8), ("val", 30, 10)):
        images = data["images"][first : first + (30 if name == "train" else 10)]
        kept = {"images": images, "annotations": data["annotations"][first : first + boxes]}
        (tmp_path / f"{name}.json").write_text(json.dumps({**data, **kept}))
    files = [tmp_path / "train.json", tmp_path / "val.json"]
    project = cskd_train.new(tmp_path / "p", files, images=tmp_path / "images", machine=GPU, init="none")
    of = {one.name.strip(): one for one in project.choices}
    assert (of["batch"].value, of["batch"].why) == ("2 images", "for 8 images")
    assert of["epochs"].why.startswith("800 images in all")
    assert project.splits == {"train": 30, "val": 10}


@pytest.mark.parametrize(
    ("machine", "amp"), [(Machine(2, bfloat16="amx_bf16"), "bf16"), (PROCESSOR, None), (GPU, None)]
)
def test_a_processor_that_multiplies_bfloat16_trains_in_it(machine, amp, coco, tmp_path):
    project = cskd_train.new(tmp_path / "one", coco / "annotations" / "train.json", init="none", machine=machine)
    row = next(one for one in project.choices if one.name == "precision")
    assert row.value == (amp or "float32")
    assert ("amx_bf16" in row.why) == bool(amp)
    for name in ("teacher", "student", "distilled"):
        cfg = load_config(tmp_path / "one" / f"{name}.py")
        check_settings(cfg)
        assert cfg.get("amp") == amp


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("model name\t: x\nflags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n", "avx512_bf16"),
        ("flags : avx2 amx_bf16 amx_tile\n", "amx_bf16"),
        ("Features\t: fp asimd asimddp i8mm bf16 dgh\n", "bf16"),
        ("flags : avx2 avx512f avx512_vnni\nbugs : bf16\n", None),
        ("Features : asimd svebf16\n", None),
        (None, None),
    ],
)
def test_what_multiplies_bfloat16(text, found, tmp_path):
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    assert multiplies_bfloat16(file) == found


def test_epochs_follow_the_number_of_images():
    from cskd_train.project.choices import decay_steps, epochs

    assert [epochs(images, False)[0] for images in (10, 296, 1000, 100000)] == [100, 61, 18, 12]
    assert [epochs(images, True)[0] for images in (10, 296, 1000, 100000)] == [60, 20, 12, 12]
    assert epochs(296, False, longer=True)[0] == 91
    assert [decay_steps(number) for number in (12, 20, 100)] == [[9, 11], [15, 18], [75, 92]]


# what is refused


def test_a_project_that_is_there_is_not_written_over(coco, tmp_path, command_line):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "teacher.py").write_text("mine")
    code, out, err = command_line("new", tmp_path / "p", "--data", coco / "annotations" / "train.json")
    assert (code, out) == (2, "")
    assert "is not empty: nothing was changed. Give another folder, or remove that one first" in err
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["teacher.py"]


def test_an_empty_folder_may_be_filled_from_inside(coco, tmp_path, monkeypatch):
    (tmp_path / "p").mkdir()
    monkeypatch.chdir(tmp_path / "p")
    cskd_train.new(".", coco / "annotations" / "train.json", machine=PROCESSOR)
    assert Path("README.md").read_text().startswith("# p\n")
    assert load_config("student.py").data_root == str(tmp_path / "p" / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("fault", ["data", "write", "interrupt"])
def test_nothing_is_left_of_a_project_that_fails(coco, tmp_path, monkeypatch, fault):
    data = coco / "annotations" / "train.json"
    expected: type[BaseException] = TrainError
    if fault == "data":
        (data := tmp_path / "broken.json").write_text('{"images": [{"id": 1, "file_name": "no.png"}]}')
        expected = DataError
    else:
        error = OSError(28, "No space left on device") if fault == "write" else KeyboardInterrupt()
        expected = TrainError if fault == "write" else KeyboardInterrupt

        def fail(*arguments, **keywords):
            raise error

        monkeypatch.setattr("cskd_train.project.new.distilled_config", fail)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(expected):
        cskd_train.new(tmp_path / "deep" / "er" / "p", data, machine=PROCESSOR)
    assert sorted(tmp_path.iterdir()) == before


def test_a_signal_leaves_nothing(coco, tmp_path, monkeypatch):
    monkeypatch.setattr("cskd_train.project.new.distilled_config", lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        cskd_train.new(tmp_path / "p", coco / "annotations" / "train.json", machine=PROCESSOR)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student": "r50"}, "a r50 teacher is no larger than a r50 student"),
        ({"detector": "yolox"}, "detector 'yolox': expected retinanet, fcos, gfl, faster_rcnn"),
        ({"width": 0.25}, "width 0.25: expected 1, or 0.5"),
        ({"width": 0.5, "init": "imagenet"}, "imagenet has no weights of half width: take --width 1, or --init none"),
        ({"init": "weights.pth"}, "init weights.pth: no such file"),
        (
            {"init": "mmdet::retinanet/retinanet_r18_fpn_1x_coco.py"},
            "is a RetinaNet ResNet-18, the teacher is a RetinaNet ResNet-50",
        ),
        ({"init": "mmdet::_base_/datasets/coco_detection.py"}, "is a config without a detector, the teacher is"),
        ({"init": "mmdet::ssd/ssdlite_mobilenetv2_scratch_600e_coco.py"}, "is a SingleStageDetector MobileNetV2, the"),
        ({"init": "mmdet::gfl/gfl_r50_fpn_1x_coco.py"}, "is a GFL ResNet-50"),
        ({"init": "mmdet::gfl/gfl_r51_fpn_1x_coco.py"}, "near ones"),
        ({"size": 16}, "size 16: expected the longer side"),
    ],
)
def test_options_that_do_not_go_together_are_refused(coco, tmp_path, options, message):
    with pytest.raises(TrainError) as error:
        cskd_train.new(tmp_path / "p", coco / "annotations" / "train.json", machine=GPU, **options)
    assert message in str(error.value)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("lacking", ["train", "val"])
def test_folders_of_voc_given_singly_have_the_classes_of_all(lacking, voc, tmp_path):
    """As their parent folder has them: here only one of the two has a star."""
    files = sorted((voc / "Annotations").glob("*.xml"))
    for split, part in (("train", files[:16]), ("val", files[16:])):
        shutil.copytree(voc / "JPEGImages", tmp_path / split / "JPEGImages")
        (tmp_path / split / "Annotations").mkdir()
        for file in part:
            text = file.read_text()
            kept = text if split != lacking else text.replace("<name>star</name>", "<name>ring</name>")
            (tmp_path / split / "Annotations" / file.name).write_text(kept)
    project = cskd_train.new(tmp_path / "p", [tmp_path / "train", tmp_path / "val"], machine=PROCESSOR)
    assert project.classes == tuple(sorted(CLASSES))
    for split in ("train", "val"):
        data = json.loads((tmp_path / "p" / "data" / f"{split}.json").read_text())
        names = {one["id"]: one["name"] for one in data["categories"]}
        assert sorted(names.values()) == sorted(CLASSES)
        assert ("star" in {names[one["category_id"]] for one in data["annotations"]}) == (split != lacking)


def test_splits_of_other_classes_are_refused(coco, tmp_path):
    data = json.loads((coco / "annotations" / "val.json").read_text())
    data["categories"][0]["name"] = "disc"
    (tmp_path / "val.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="different classes"):
        cskd_train.new(
            tmp_path / "p", [coco / "annotations" / "train.json", tmp_path / "val.json"],
            images=coco / "images", machine=PROCESSOR,
        )  # fmt: skip


def test_the_readmes_commands_name_what_is_there(coco, tmp_path):
    cskd_train.new(tmp_path / "p", coco / "annotations" / "train.json", machine=PROCESSOR)
    text = (tmp_path / "p" / "README.md").read_text()
    for name in ("teacher", "student", "distilled"):
        assert f"cskd-train run {name}.py" in text
    assert "--ann data/test.json" in text
    assert "| teacher: epochs | 100 |" in text
    assert "| student: learning rate | 0.0005 |" in text
    assert str(coco / "images") in text


# Pictures without labels


@pytest.fixture(scope="module")
def pictures(coco, tmp_path_factory):
    """Five new pictures, and two of the validation images."""
    root = tmp_path_factory.mktemp("more pictures")
    generate(root / "new", images=5, val_images=1, size=(128, 160), seed=77)
    folder = root / "photo graphs"
    folder.mkdir()
    for file in sorted((root / "new" / "images").glob("train*")):
        shutil.copy(file, folder / f"new_{file.name}")
    for image, _ in list(boxes_of(coco / "annotations" / "val.json"))[:2]:
        shutil.copy(coco / "images" / image["file_name"], folder)
    return folder


def test_a_project_with_pictures_without_labels_says_what_makes_its_file(
    coco, pictures, command_line, tmp_path, monkeypatch
):
    files = [coco / "annotations" / f"{name}.json" for name in ("train", "val")]
    words = [word for file in files for word in ("--data", file)]
    code, out, err = command_line("new", tmp_path / "p", *words, "--unlabeled", pictures, "--width", "0.5")
    assert code == 0, err
    assert "unlabeled        7 images" in out
    assert "warning: 2 pictures both in unlabeled and in val, so that its scores flatter the model" in out
    monkeypatch.chdir(tmp_path / "p")
    lines = [line.strip() for line in Path("README.md").read_text().splitlines() if "pseudo-label" in line]
    words = shlex.split(lines[0], comments=True)
    assert words[:3] == ["cskd-train", "pseudo-label", "work_dirs/teacher/best.pth"]
    assert Path(words[3]).resolve() == pictures
    assert words[4] == "data/unlabeled.json"
    for name in ("teacher", "student"):
        assert "unlabeled" not in load_config(f"{name}.py").data
    cfg = load_config("distilled.py")
    assert Path(cfg.data.unlabeled.images).resolve() == pictures
    assert check_settings(cfg) == []
    code, out, err = command_line("run", "distilled.py", "--dry-run", *TINY)
    assert (code, out) == (2, "")
    teacher = tmp_path / "p" / "work_dirs" / "teacher" / "best.pth"
    named = shlex.split(err.splitlines()[-1])
    assert named == [
        "cskd-train",
        "pseudo-label",
        str(teacher),
        cfg.data.unlabeled.images,
        f"{cfg.data_root}/unlabeled.json",
    ]


def test_a_batch_of_one_image_has_room_for_one_without_labels(coco, pictures, tmp_path):
    weak = Machine(cores=12, gpu="A GPU", gpu_memory=2**31)
    for width, unlabeled in ((1, pictures), (1, None)):
        folder = tmp_path / str(unlabeled is None)
        cskd_train.new(
            folder, coco / "annotations" / "train.json", unlabeled=unlabeled, machine=weak, width=width, size=1333
        )
    batches = [load_config(tmp_path / one / "distilled.py").data.samples_per_gpu for one in ("False", "True")]
    assert batches == [2, 1]


def test_pictures_that_cannot_be_used_are_refused(coco, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"no picture")
    for name, message in (("nowhere", "no such file or folder"), ("empty", "no picture is in"), ("broken", "a.jpg")):
        with pytest.raises(DataError, match=message):
            cskd_train.new(
                tmp_path / "p", coco / "annotations" / "train.json", unlabeled=tmp_path / name, machine=PROCESSOR
            )
        assert not (tmp_path / "p").exists()
