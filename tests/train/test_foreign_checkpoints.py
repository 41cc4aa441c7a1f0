"""Checkpoints of other programs: read as data, unwrapped, or named with what to do; nothing in them runs."""

from __future__ import annotations

import gzip
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from cskd_core.plan import TeacherPlan
from cskd_train.errors import TrainError
from cskd_train.files import foreign
from cskd_train.files.checkpoints import load_checkpoint, load_weights, read
from cskd_train.files.config import config_to_data, load_config
from cskd_train.mm.normalization import Normalization
from cskd_train.mm.plain import build_without_pretrained
from cskd_train.mm.start import Fit
from cskd_train.mm.teacher import build_teacher

SAMPLE = Path(__file__).parent / "samples_mmengine" / "retinanet_r18_mmdet3.pth.gz"
CLASSES = ("fish", "jellyfish", "penguin")


def saved(path, contents, **options):
    torch.save(contents, path, **options)
    return path


def loaded(path):
    return load_checkpoint(path, require_config=False)


@pytest.fixture
def mmengine_file(tmp_path):
    path = tmp_path / "epoch_1.pth"
    path.write_bytes(gzip.decompress(SAMPLE.read_bytes()))
    return path


@pytest.fixture
def sample_model():
    """The `model` that the sample is of, as mmdet 2 has it."""
    model = load_config("mmdet::retinanet/retinanet_r18_fpn_1x_coco.py").model
    model.backbone.update(base_channels=1, init_cfg=None)
    model.neck.update(in_channels=[1, 2, 4, 8], out_channels=2)
    model.bbox_head.update(num_classes=3, in_channels=2, feat_channels=2, stacked_convs=1)
    return model


# mmengine's own files


def test_torch_alone_refuses_the_sample_for_what_mmengine_pickles(mmengine_file):
    with pytest.raises(pickle.UnpicklingError, match=r"GLOBAL (mmengine|numpy|getattr)"):
        torch.load(mmengine_file, weights_only=True)
    pickled = mmengine_file.read_bytes()
    for name in (b"mmengine.logging.history_buffer\nHistoryBuffer", b"__builtin__\ngetattr", b"numpy.core.multiarray"):
        assert name in pickled


def test_a_file_of_mmdet_3_loads_strictly_and_names_its_classes(mmengine_file, sample_model):
    checkpoint = loaded(mmengine_file)
    assert (checkpoint.classes, checkpoint.config, checkpoint.notes) == (CLASSES, {}, ())
    model = build_without_pretrained(sample_model)
    load_weights(model, checkpoint)
    weights = checkpoint.state_dict
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert (
        float(weights["bbox_head.retina_cls.bias"].mean()) < -4
    )  # of a focal loss: it was initialised, not left empty


def test_what_is_no_weight_in_it_has_become_inert(mmengine_file):
    losses = read(mmengine_file)["message_hub"]["log_scalars"]["train/loss"]
    assert isinstance(losses, foreign.Inert)
    assert vars(losses) == {}
    assert not set(torch.serialization.get_safe_globals()) & set(foreign.STAND_INS)


def test_its_rows_are_taken_by_name(mmengine_file, sample_model):
    model = build_without_pretrained(sample_model)
    checkpoint = loaded(mmengine_file)
    start = Fit(model, checkpoint, ("penguin", "shark", "fish")).load(model)
    assert start.classes_kept == ["penguin", "fish"]
    student = model.bbox_head.retina_cls.weight.view(9, 3, 2, 3, 3)
    stored = checkpoint.state_dict["bbox_head.retina_cls.weight"].view(9, 3, 2, 3, 3)
    assert torch.equal(student[:, 0], stored[:, 2])
    assert torch.equal(student[:, 2], stored[:, 0])


def test_a_student_normalised_by_mmdet_3_is_refused_with_the_step_to_write(sample_model):
    sample_model.data_preprocessor = {
        "type": "DetDataPreprocessor",
        "mean": [103.5, 116.3, 123.7],
        "std": [1.0, 1.0, 58.0],
        "bgr_to_rgb": False,
    }
    with pytest.raises(TrainError) as error:
        build_without_pretrained(sample_model)
    step = "dict(type='Normalize', mean=[103.5, 116.3, 123.7], std=[1.0, 1.0, 58.0], to_rgb=False)"
    assert f"Take it out, and write {step} before Pad" in str(error.value)


def test_a_teacher_of_mmdet_3_comes_with_its_classes_and_its_normalisation(mmengine_file, sample_model, tmp_path):
    sample_model.data_preprocessor = {"mean": [103.5, 116.3, 123.7], "std": [1.0, 2.0, 58.0], "bgr_to_rgb": True}
    config = tmp_path / "mmdet3.py"
    config.write_text(f"model = {config_to_data(sample_model)!r}\ntrain_dataloader = dict(batch_size=2)\n")
    teacher = build_teacher(TeacherPlan(checkpoint=str(mmengine_file), config=str(config)))
    assert teacher.classes == CLASSES
    assert teacher.normalization == Normalization((103.5, 116.3, 123.7), (1.0, 2.0, 58.0), True)
    weights = loaded(mmengine_file).state_dict
    assert all(torch.equal(value, weights[key]) for key, value in teacher.model.state_dict().items())


# What is no weight, and code


def test_numpy_numbers_and_arrays_beside_the_weights_do_no_harm(tmp_path):
    meta = {"CLASSES": ("a",), "best": np.float64(0.38), "epoch": np.int64(3), "losses": np.arange(5, dtype="f4")}
    for zipped in (True, False):
        path = saved(
            tmp_path / "f.pth",
            {"meta": meta, "state_dict": {"w": torch.ones(1)}},
            _use_new_zipfile_serialization=zipped,
        )
        checkpoint = loaded(path)
        assert checkpoint.classes == ("a",)
        assert torch.equal(checkpoint.state_dict["w"], torch.ones(1))


def test_numpy_arrays_in_the_place_of_weights_are_no_weights(tmp_path):
    path = saved(tmp_path / "f.pth", {"model": {"backbone.conv1.weight": np.ones(3)}})
    with pytest.raises(TrainError, match=r"holds no weights \(keys: model\)"):
        loaded(path)


class Call:
    """A pickle that calls something when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_getattr_in_a_file_gives_nothing_of_what_it_asks_for(tmp_path):
    inner = Call(getattr, {"x": 1}, "keys")
    path = saved(tmp_path / "f.pth", {"state_dict": {"w": torch.ones(1)}, "meta": {"got": inner}})
    assert type(read(path)["meta"]["got"]).__mro__[1] is foreign.Inert


TRAPS = {
    "os": lambda folder: Call(os.mkdir, folder),
    "eval": lambda folder: Call(eval, f"__import__('os').mkdir({folder!r})"),
    "exec": lambda folder: Call(exec, f"__import__('os').mkdir({folder!r})"),
    "import": lambda folder: Call(__import__, "os"),
    "torch": lambda folder: Call(torch.load, folder),
    "numpy": lambda folder: Call(np.save, folder, np.ones(1)),
    "path": lambda folder: Call(Path.mkdir, Path(folder)),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("trap", TRAPS)
def test_everything_else_that_a_pickle_may_name_is_refused_and_not_run(tmp_path, trap, zipped):
    contents = {"state_dict": {"w": torch.ones(1)}, "message_hub": TRAPS[trap](str(tmp_path / "ran"))}
    path = saved(tmp_path / "trap.pth", contents, _use_new_zipfile_serialization=zipped)
    with pytest.raises(TrainError, match="refused: its pickle asks for code"):
        loaded(path)
    assert os.listdir(tmp_path) == ["trap.pth"]


def test_a_chain_of_allowed_names_reaches_no_code(tmp_path):
    """The way that `builtins.getattr` would open if it were the real one: a method of a class that is allowed."""
    getter = Call(getattr, Call(getattr, torch.Size, "__class__"), "__subclasses__")

    class Chain:
        def __reduce__(self):
            return Then(), ()

    class Then:
        def __reduce__(self):
            return getter.__reduce__()

        def __call__(self):
            raise AssertionError

    path = saved(tmp_path / "chain.pth", {"state_dict": {"w": torch.ones(1)}, "meta": {"x": Chain()}})
    with pytest.raises(TrainError, match="refused: its pickle asks for more than data"):
        loaded(path)


def test_every_stand_in_is_an_inert_class_under_the_name_of_another():
    names = [f"{one.__module__}.{one.__qualname__}" for one in foreign.STAND_INS]
    assert "builtins.getattr" in names
    assert len(set(names)) == len(names)
    for one in foreign.STAND_INS:
        made = one(os.system, "true", key=1)
        made.__setstate__({"value": 3})
        assert (one.__bases__, vars(made)) == ((foreign.Inert,), {})


# Wrappers


@pytest.fixture
def weights(narrow_model):
    torch.manual_seed(4)
    return build_without_pretrained(narrow_model("GFL", classes=3)).state_dict()


def prefixed(prefix, weights):
    return {f"{prefix}{key}": value for key, value in weights.items()}


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        ("module.", ""),
        ("model.", ""),
        ("ema_", ""),
        ("student.", "teacher."),
        ("module.student.", "module.teacher."),
        ("architecture.", "teacher."),
        ("architecture.model.", "distiller."),
        ("model.", "criterion."),
    ],
)
def test_the_detector_inside_a_wrapper_is_found_and_what_stands_beside_it_said(tmp_path, weights, prefix, beside):
    others = {f"{beside}{key}": value + 1 for key, value in weights.items()} if beside else {}
    checkpoint = loaded(saved(tmp_path / "f.pth", {"state_dict": others | prefixed(prefix, weights)}))
    assert list(checkpoint.state_dict) == list(weights)
    assert all(torch.equal(value, weights[key]) for key, value in checkpoint.state_dict.items())
    inner, name = prefix.rstrip(".").rpartition(".")[2], beside.rstrip(".").rpartition(".")[2]
    if prefix == "architecture.model.":
        inner = "architecture"
    assert checkpoint.notes == ((f"{len(weights)} tensors beside {inner} left out: {name}",) if beside else ())


def test_mmdet_2s_averaged_copies_are_left_out_and_said(tmp_path, weights, narrow_model):
    copies = {f"ema_{key.replace('.', '_')}": value + 1 for key, value in weights.items()}
    checkpoint = loaded(saved(tmp_path / "f.pth", {"state_dict": {**weights, **copies}}))
    load_weights(build_without_pretrained(narrow_model("GFL", classes=3)), checkpoint)
    assert checkpoint.notes == (f"{len(weights)} averaged copies left out: ema_...",)
    assert all(torch.equal(value, weights[key]) for key, value in checkpoint.state_dict.items())


def test_a_detectors_own_keys_are_never_taken_for_a_wrapper(tmp_path, weights):
    more = {"student.backbone.conv1.weight": torch.ones(1), "model.x": torch.ones(1)}
    checkpoint = loaded(saved(tmp_path / "f.pth", {"state_dict": {**weights, **more}}))
    assert list(checkpoint.state_dict) == [*weights, *more]


# Other layouts

DETECTRON2 = {
    "pixel_mean": (3, 1, 1),
    "backbone.fpn_lateral2.weight": (256, 256, 1, 1),
    "backbone.bottom_up.stem.conv1.weight": (64, 3, 7, 7),
    "backbone.bottom_up.res2.0.conv1.norm.weight": (64,),
    "proposal_generator.rpn_head.conv.weight": (256, 256, 3, 3),
    "roi_heads.box_predictor.cls_score.weight": (81, 1024),
}


TORCHVISION = {
    "backbone.body.conv1.weight": (64, 3, 7, 7),
    "backbone.body.layer1.0.conv1.weight": (64, 64, 1, 1),
    "backbone.fpn.inner_blocks.0.0.weight": (256, 256, 1, 1),
}
LAYOUTS = {
    "torchvision's Faster R-CNN": (
        {**TORCHVISION, "rpn.head.conv.0.0.bias": (256,), "roi_heads.box_predictor.cls_score.bias": (91,)},
        "torchvision, whose neck and heads are laid out otherwise. Its ResNet alone can be taken: model.backbone.",
    ),
    "torchvision's RetinaNet": (
        {**TORCHVISION, "head.classification_head.cls_logits.bias": (819,)},
        "checkpoint=FILE, prefix='backbone.body')",
    ),
    "Detectron2's": (DETECTRON2, "a detector of Detectron2, whose layers have other names"),
    "Detectron2's RetinaNet": ({"head.cls_subnet.0.weight": (256, 256, 3, 3)}, "a detector of Detectron2"),
    "Detectron2's backbone": ({"stem.conv1.weight": (64, 3, 7, 7)}, "open-mmlab://detectron2/resnet50_caffe"),
    "a classifier": (
        {"conv1.weight": (64, 3, 7, 7), "layer1.0.conv1.weight": (64, 64, 3, 3), "fc.bias": (1000,)},
        "a backbone alone, as a classifier has it. Write it as model.backbone.init_cfg=",
    ),
}


@pytest.mark.parametrize(("shapes", "said"), LAYOUTS.values(), ids=LAYOUTS)
def test_other_programs_detectors_are_recognised_and_named_with_what_to_do(tmp_path, narrow_model, shapes, said):
    weights = {key: torch.zeros(shape) for key, shape in shapes.items()}
    checkpoint = loaded(saved(tmp_path / "other.pth", {"model": weights}))
    model = build_without_pretrained(narrow_model("FasterRCNN", depth=50))
    for take in (lambda: Fit(model, checkpoint, "abcd"), lambda: load_weights(model, checkpoint)):
        with pytest.raises(TrainError) as error:
            take()
        assert "By its keys it is a" in str(error.value)
        assert said in str(error.value)


def test_an_unknown_layout_is_not_given_a_name(tmp_path, narrow_model):
    checkpoint = loaded(saved(tmp_path / "other.pth", {"encoder.weight": torch.ones(3)}))
    with pytest.raises(
        TrainError, match="Name a checkpoint with a backbone of the same kind, depth and width, or take"
    ):
        Fit(build_without_pretrained(narrow_model("FasterRCNN")), checkpoint, "abcd")


def test_a_pickle_of_detectron2s_zoo_is_named(tmp_path):
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": {"backbone.bottom_up.stem.conv1.weight": np.ones(3)}}))
    with pytest.raises(TrainError, match=r"a \.pkl as Detectron2's model zoo has it, perhaps"):
        loaded(path)
