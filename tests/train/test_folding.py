"""The BatchNorms of a frozen teacher: folded where nothing changes but rounding, left where it would."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import relu

from cskd_core.family import Family, Observation, PyramidSpec
from cskd_core.teacher import FrozenTeacher
from cskd_train.mm.families import family_of
from cskd_train.mm.folding import folded
from cskd_train.mm.plain import build_without_pretrained

from .distilling import store_teacher, under
from .narrow import NARROW, narrow

IMAGES = torch.randn(2, 3, 160, 192, generator=torch.Generator().manual_seed(3))


def trained(detector):
    """The same, its norms as training leaves them: no mean is 0, no variance 1."""
    generator = torch.Generator().manual_seed(4)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3, generator=generator)
            module.running_var.uniform_(0.3, 2, generator=generator)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(module.bias, std=0.3, generator=generator)
    return detector


def norms(detector, kind=nn.BatchNorm2d):
    return sum(isinstance(module, kind) for module in detector.modules())


def maps(observation):
    towers = [level for tower in observation.towers.values() for stage in tower for level in stage]
    return [*observation.pyramid, *towers, *(level for levels in observation.predictions.values() for level in levels)]


def check_equal(detector, other, family):
    before, after = (maps(FrozenTeacher(one, family).observe(IMAGES)) for one in (detector, other))
    assert len(before) == len(after) > 0
    for one, two in zip(before, after, strict=True):
        assert (one - two).abs().max() <= 1e-5 * one.abs().max()


@pytest.mark.parametrize("name", NARROW)
def test_every_batch_norm_of_a_stock_teacher_is_folded_and_what_it_shows_stays(name):
    torch.manual_seed(0)
    model = narrow(name, 50)
    if name in ("FCOS", "GFL", "ATSS"):  # more than one channel a group: of a few cells alone it is all rounding
        model.bbox_head.norm_cfg = {"type": "GN", "num_groups": 8}
    teacher = trained(build_without_pretrained(model))
    weights = copy.deepcopy(teacher.state_dict())
    family = family_of(teacher)
    lighter = folded(teacher, family)
    assert (norms(teacher), norms(lighter)) == (53, 0)
    assert norms(lighter, nn.GroupNorm) == norms(teacher, nn.GroupNorm) == (8 if name in ("FCOS", "GFL", "ATSS") else 0)
    assert not lighter.training
    assert not any(parameter.requires_grad for parameter in lighter.parameters())
    assert all(torch.equal(value, weights[key]) for key, value in teacher.state_dict().items())
    check_equal(teacher, lighter, family)


def test_a_distilled_detector_has_a_folded_teacher_whose_weights_the_student_began_with(tmp_path):
    file = store_teacher(tmp_path / "teacher.pth", narrow("RetinaNet", 50))
    contents = torch.load(file, weights_only=True)
    stock = build_without_pretrained(narrow("RetinaNet", 50))
    stock.load_state_dict(contents["state_dict"])
    contents["state_dict"] = trained(stock).state_dict()
    torch.save(contents, file)
    model = under(narrow("RetinaNet"), file, init_student=True)
    teacher = model.distiller.teacher.detector
    assert norms(teacher) == 0
    assert model.taught_by().detector is model.teacher.model is teacher
    check_equal(stock, teacher, family_of(stock))
    assert torch.equal(model.student.bbox_head.retina_cls.weight, stock.bbox_head.retina_cls.weight)


# What stays as it is


class Detector(nn.Module):
    """One feature map: a convolution and its norm, and what `after` makes of that."""

    def __init__(self, after, convolution=nn.Conv2d):
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.other = (convolution(3, 4, 3, padding=1, bias=bias) for bias in (True, False))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
        self.first = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
        self._after = after
        trained(self)

    def forward(self, images):
        return self._after(self, self.first(images))


class OneMap(Family):
    def pyramid(self, detector):
        return PyramidSpec(4, (1,))

    def taps(self, detector):
        return {"map": ""}

    def read(self, detector, recording):
        return Observation([recording.last("map")], {}, {})


class Standardised(nn.Conv2d):
    """Uses another weight than its own."""

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias, padding=1)


def one_after_the_other(detector, images):
    return detector.norms[1](detector.other(relu(detector.norms[0](detector.convolution(images)))[:, :3]))


def one_norm_of_two_convolutions(detector, images):
    return detector.norms[0](detector.convolution(images)) + detector.norms[0](detector.other(images))


def two_norms_of_one_convolution(detector, images):
    return detector.norms[0](detector.convolution(images)) + detector.norms[1](detector.convolution(2 * images))


def activated_between(detector, images):
    return detector.norms[0](detector.convolution(images).relu())


def activated_in_place_between(detector, images):
    return detector.norms[0](detector.convolution(images).relu_())


def read_by_something_else(detector, images):
    convolved = detector.convolution(images)
    return detector.norms[0](convolved) + convolved


def without_a_norm_the_second_time(detector, images):
    return detector.norms[0](detector.convolution(images)) + detector.convolution(2 * images)


SEEN = [one_norm_of_two_convolutions, two_norms_of_one_convolution, activated_between, activated_in_place_between]
NOT_SEEN = [read_by_something_else, without_a_norm_the_second_time]


def test_norms_of_plain_convolutions_are_folded_with_a_bias_and_without():
    detector = Detector(one_after_the_other)
    lighter = folded(detector, OneMap())
    assert norms(lighter) == 0
    check_equal(detector, lighter, OneMap())


def test_a_convolution_that_is_called_twice_is_folded_with_the_norm_that_always_follows_it():
    detector = Detector(lambda self, images: sum(self.norms[0](self.convolution(scale * images)) for scale in (1, 2)))
    lighter = folded(detector, OneMap())
    assert norms(lighter) == 1  # the other has not run
    check_equal(detector, lighter, OneMap())


@pytest.mark.parametrize("after", SEEN, ids=lambda after: after.__name__)
def test_a_norm_that_is_not_alone_with_its_convolution_stays_and_another_does_not(after):
    detector = Detector(after)
    lighter = folded(detector, OneMap())
    assert (norms(lighter), norms(lighter.first)) == (2, 0)
    check_equal(detector, lighter, OneMap())


@pytest.mark.parametrize("after", NOT_SEEN, ids=lambda after: after.__name__)
def test_a_teacher_that_would_show_something_else_stays(after):
    detector = Detector(after)
    assert folded(detector, OneMap()) is detector
    check_equal(Detector(after), detector, OneMap())


@pytest.mark.parametrize("change", ["another weight", "statistics of the batch"])
def test_a_convolution_or_a_norm_of_another_kind_stays(change):
    detector = Detector(one_after_the_other, Standardised if change == "another weight" else nn.Conv2d)
    if change == "statistics of the batch":
        detector.norms = nn.ModuleList(nn.BatchNorm2d(4, track_running_stats=False) for _ in range(2))
    lighter = folded(detector, OneMap())
    assert (norms(lighter), norms(lighter.first)) == (2, 0)
    check_equal(detector, lighter, OneMap())


def test_a_norm_without_weights_of_its_own_is_folded():
    detector = Detector(one_after_the_other)
    detector.norms = nn.ModuleList(nn.BatchNorm2d(4, affine=False) for _ in range(2))
    lighter = folded(trained(detector), OneMap())
    assert norms(lighter) == 0
    check_equal(detector, lighter, OneMap())


def test_what_is_drawn_at_random_is_not_touched():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    detector = Detector(one_after_the_other)
    torch.manual_seed(7)
    folded(detector, OneMap())
    assert torch.equal(torch.rand(3), expected)


def test_a_teacher_without_norms_is_itself_and_is_not_run():
    detector = build_without_pretrained(narrow("RetinaNet"))
    family = family_of(detector)
    for name, module in list(detector.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, own = name.rpartition(".")
            setattr(detector.get_submodule(parent), own, nn.Identity())
    detector.register_module("backbone", None)
    assert folded(detector, family) is detector
