"""What a family reads is held against what it says of a detector, and a watch has one forward."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cskd_core.assistant import Assistant, PredictorSpec
from cskd_core.distiller import Distiller
from cskd_core.errors import ShapeError
from cskd_core.family import Batch, Observation, PyramidSpec, TowerSpec
from cskd_core.plan import DistillPlan

sys.path.insert(0, str(Path(__file__).parent))
from detectors import PlainDetector, PlainFamily

IMAGES = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
BATCH = Batch(IMAGES, [torch.tensor([[2.0, 3.0, 20.0, 18.0]]), torch.zeros(0, 4)], [(24, 32), (20, 30)])


def build(family=PlainFamily, **plan):
    torch.manual_seed(0)
    student, teacher = PlainDetector(6), PlainDetector(8)
    return student, Distiller(student, teacher, family(), DistillPlan.parse({"teacher": {"checkpoint": "-"}, **plan}))


def step(student, distiller, images=IMAGES, batch=BATCH):
    with distiller.watch() as recording:
        student(images)
    return distiller(recording, batch)


def reading(**changes):
    """A family that reads something else of the student: field of `Observation` -> function of what is there."""

    class Other(PlainFamily):
        def read(self, detector, recording):
            seen = super().read(detector, recording)
            if detector.channels == 8:
                return seen
            return replace(seen, **{name: change(getattr(seen, name)) for name, change in changes.items()})

    return Other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pyramid": lambda pyramid: pyramid[:1]},
            r"the family reads 1 pyramid levels of the student, its PyramidSpec has 2 strides \(4, 8\)",
        ),
        ({"pyramid": lambda pyramid: [*pyramid, pyramid[1]]}, r"reads 3 pyramid levels of the student"),
        (
            {"pyramid": lambda pyramid: [pyramid[0], pyramid[1][:, :5]]},
            r"level 1 of the student's pyramid is \(2, 5, 3, 4\), its PyramidSpec says \(B, 6, H, W\)",
        ),
        (
            {"towers": lambda towers: {"cls": towers["cls"]}},
            "compares the tower 'reg', but reads none of the student; .* cls",
        ),
        (
            {"towers": lambda towers: {**towers, "reg": towers["reg"][:1]}},
            "reads 1 stages of the student's reg tower, its TowerSpec has 2",
        ),
        (
            {"towers": lambda towers: {**towers, "reg": [stage[:1] for stage in towers["reg"]]}},
            "reads 1 maps of the student's tower 'reg', expected 2, one a level",
        ),
        (
            {"predictions": lambda maps: {"cls": maps["cls"]}},
            "compares the prediction 'reg', but reads none of the student",
        ),
        (
            {"predictions": lambda maps: {**maps, "reg": [*maps["reg"], maps["reg"][0]]}},
            "reads 3 maps of the student's prediction 'reg', expected 2, one a level",
        ),
    ],
)
def test_what_a_family_reads_is_what_it_says_of_the_detector(changes, message):
    with pytest.raises(ShapeError, match=message):
        step(*build(reading(**changes)))


def test_what_a_family_reads_of_the_teacher_is_checked_too():
    class Fewer(PlainFamily):
        def read(self, detector, recording):
            seen = super().read(detector, recording)
            return replace(seen, pyramid=seen.pyramid[:1]) if detector.channels == 8 else seen

    with pytest.raises(ShapeError, match="reads 1 pyramid levels of the teacher"):
        step(*build(Fewer))


def test_a_batch_of_other_images_than_were_watched_is_refused():
    with pytest.raises(
        ShapeError, match="the student ran on 1 images and the batch has 2: give the distiller the batch"
    ):
        step(*build(), images=IMAGES[:1])


@pytest.mark.parametrize(
    ("of_student", "of_teacher", "message"),
    [
        (("cls",), (), "the towers differ: cls in the student, none in the teacher. Leave them out with tower=None"),
        ((), ("cls",), "the towers differ: none in the student, cls in the teacher"),
        (("cls",), ("cls", "reg"), "the towers differ: cls in the student, cls, reg in the teacher"),
        (("box",), ("box",), "no weight for the box tower, only for cls, reg, rpn: give it one of these names"),
        (("adapter",), ("adapter",), "no weight for the adapter tower"),
    ],
)
def test_towers_of_other_names_are_refused_before_anything_is_built(of_student, of_teacher, message):
    class Towers(PlainFamily):
        has_assistant = False

        def towers(self, detector):
            return dict.fromkeys(of_teacher if detector.channels == 8 else of_student, TowerSpec(4, 2))

    with pytest.raises(ShapeError, match=message):
        build(Towers)
    build(Towers, tower=None)


def test_predictions_of_other_names_are_refused():
    class Predictions(PlainFamily):
        def prediction_channels(self, detector):
            return {"cls": 1} if detector.channels == 8 else {"cls": 1, "reg": 1}

    with pytest.raises(ShapeError, match="the predictions differ: cls, reg in the student, cls in the teacher"):
        build(Predictions)


def test_an_assistant_on_a_tower_that_is_not_read_is_refused():
    class Assisted(PlainFamily):
        def assistant(self, detector):
            return Assistant({"cls": PredictorSpec("rpn", 4, 1)})

    with pytest.raises(
        ShapeError, match="the assistant reads the rpn tower, but the family reads cls, reg of the student"
    ):
        step(*build(Assisted))


class PyramidsAlone(PlainFamily):
    has_assistant = False
    prediction_rules = {}  # noqa: RUF012

    def towers(self, detector):
        return {}

    def read(self, detector, recording):
        return replace(super().read(detector, recording), towers={}, predictions={})


def test_two_forwards_within_one_watch_are_refused_where_pyramids_alone_are_compared():
    student, distiller = build(PyramidsAlone)
    with distiller.watch() as recording:
        student(IMAGES)
        student(IMAGES)
    with pytest.raises(ShapeError, match=r"ran 2 times within one watch\(\), and 1 times in the teacher's forward"):
        distiller(recording, BATCH)
    assert step(student, distiller)


def test_a_submodule_that_runs_several_times_in_one_forward_is_compared_by_what_is_read_of_it():
    class Twice(PlainDetector):
        def pyramid(self, images):
            self.norm(self.stem(images))
            return super().pyramid(images)

    torch.manual_seed(0)
    plan = DistillPlan.parse({"teacher": {"checkpoint": "-"}})
    student = Twice(6)
    assert step(student, Distiller(student, Twice(8), PyramidsAlone(), plan))

    class LastOfCalls(PyramidsAlone):
        def taps(self, detector):
            return {"fine": "norm", "coarse": "down"}

        def read(self, detector, recording):
            return Observation([recording.calls("fine")[-1], recording.last("coarse")], {}, {})

    assert step(student, Distiller(student, PlainDetector(8), LastOfCalls(), plan))


def test_the_levels_that_are_read_are_those_of_the_pyramid_alone_where_heads_are_left_out():
    class Coarse(PlainFamily):
        def pyramid(self, detector):
            return PyramidSpec(detector.channels, (8,) if detector.channels == 8 else (4, 8))

        def read(self, detector, recording):
            seen = super().read(detector, recording)
            return replace(seen, pyramid=seen.pyramid[-1:]) if detector.channels == 8 else seen

    assert step(*build(Coarse, tower=None, prediction=None, assistant=None))
