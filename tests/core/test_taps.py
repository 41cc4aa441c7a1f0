"""Taps record from outside and leave nothing behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cskd_core.errors import TapError
from cskd_core.taps import Taps


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Conv2d(3, 3, 1)

    def forward(self, levels):
        return [self.tower(level) for level in levels]

    def targets(self, count):
        return list(range(count))


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = Head()

    def forward(self, levels):
        self.head.targets(len(levels))
        return self.head(levels)


def test_a_shared_tower_gives_one_tensor_a_level_in_call_order():
    detector = Detector()
    levels = [torch.randn(1, 3, size, size) for size in (4, 2, 1)]
    with Taps(detector, {"tower": "head.tower", "targets": "head.targets()"}).recording() as recording:
        outputs = detector(levels)
    assert [feature.shape[-1] for feature in recording.calls("tower")] == [4, 2, 1]
    assert all(a is b for a, b in zip(recording.calls("tower"), outputs, strict=True))
    assert recording.last("targets") == [0, 1, 2]


def test_the_detector_is_as_before_afterwards_also_after_an_error():
    detector = Detector()
    taps = Taps(detector, {"tower": "head.tower", "targets": "head.targets()"})
    with pytest.raises(TypeError), taps.recording() as recording:
        detector([torch.zeros(1, 3, 1, 1), None])
    detector([torch.zeros(1, 3, 1, 1)])
    assert len(recording.calls("tower")) == 1
    assert not detector.head.tower._forward_hooks
    assert "targets" not in vars(detector.head)


def test_a_method_that_an_instance_has_of_its_own_is_put_back():
    detector = Detector()
    detector.head.targets = own = lambda count: ["own"] * count
    with Taps(detector, {"one": "head.targets()", "two": "head.targets()"}).recording() as recording:
        detector([torch.zeros(1, 3, 1, 1)])
    assert (recording.calls("one"), recording.calls("two")) == ([["own"]], [["own"]])
    assert vars(detector.head)["targets"] is own


def test_a_recording_within_another_leaves_it_in_place():
    detector, level = Detector(), torch.zeros(1, 3, 1, 1)
    taps = Taps(detector, {"targets": "head.targets()", "tower": "head.tower"})
    with taps.recording() as outer:
        detector([level])
        with taps.recording() as inner:
            detector([level] * 2)
        detector([level] * 3)
    assert outer.calls("targets") == [[0], [0, 1], [0, 1, 2]]
    assert inner.calls("targets") == [[0, 1]]
    assert [len(one.calls("tower")) for one in (outer, inner)] == [6, 2]
    assert "targets" not in vars(detector.head)


def test_a_missing_module_is_named_with_its_neighbours():
    with pytest.raises(TapError, match=r"no submodule 'head\.towers'; the nearest are: head\.tower"):
        Taps(Detector(), {"tower": "head.towers"})


def test_a_missing_method_is_named():
    with pytest.raises(TapError, match="Head at 'head' has no method 'get_targets'"):
        Taps(Detector(), {"targets": "head.get_targets()"})


def test_a_tap_that_recorded_nothing_says_so():
    with Taps(Detector(), {"tower": "head.tower"}).recording() as recording:
        pass
    assert not recording.ran("tower")
    with pytest.raises(TapError, match=r"tap 'tower' on 'head\.tower' recorded nothing"):
        recording.last("tower")


@pytest.mark.parametrize("wrap", [lambda detector: torch.compile(detector, backend="eager"), nn.DataParallel])
def test_a_wrapper_is_named_where_the_detector_within_has_what_is_tapped(wrap):
    found = (
        r"has no submodule 'head\.tower', but the detector that it wraps has: give that one, its \.(_orig_mod|module)"
    )
    with pytest.raises(TapError, match=found):
        Taps(wrap(Detector()), {"tower": "head.tower"})


@pytest.fixture
def hook_guards():
    """torch.compile's setting, put back."""
    from torch._dynamo import config, reset

    reset()
    with config.patch(skip_nnmodule_hook_guards=config.skip_nnmodule_hook_guards):
        yield config
    reset()


def test_a_compiled_detector_that_has_run_unwatched_is_explained_and_both_ways_out_record(hook_guards):
    levels, taps = [torch.randn(1, 3, 4, 6)], {"tower": "head.tower"}

    def recorded(detector, compiled):
        compiled(levels)
        with Taps(detector, taps).recording() as recording:
            compiled(levels)
        return recording.last("tower")

    detector = Detector()
    with pytest.raises(TapError, match=r"torch\.compile .*skip_nnmodule_hook_guards = False .*parts that hold no tap"):
        recorded(detector, torch.compile(detector, backend="eager"))
    detector.backbone = nn.Identity()
    detector.backbone.compile(backend="eager")
    assert recorded(detector, lambda levels: detector([detector.backbone(level) for level in levels])).shape == (
        1,
        3,
        4,
        6,
    )
    hook_guards.skip_nnmodule_hook_guards = False
    torch._dynamo.reset()
    assert recorded(detector, torch.compile(detector, backend="eager")).shape == (1, 3, 4, 6)


def test_inputs_of_a_module_are_recorded_too():
    detector = Detector()
    with Taps(detector, {"inputs": "head.tower@inputs", "tower": "head.tower"}).recording() as recording:
        detector([torch.ones(1, 3, 1, 1), torch.zeros(1, 3, 2, 2)])
    assert [level.shape[-1] for (level,) in recording.calls("inputs")] == [1, 2]
    assert recording.calls("inputs")[0][0] is not recording.calls("tower")[0]
    assert not detector.head.tower._forward_pre_hooks


class Tower(nn.Module):
    """A layer in an activation checkpoint."""

    def __init__(self, reentrant):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.reentrant = reentrant

    def forward(self, x):
        return checkpoint(lambda features: self.layer(features), x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("path", ["layer", "layer@inputs"])
def test_a_tap_in_a_reentrant_checkpoint_is_refused_where_there_is_a_graph(path):
    tower, x = Tower(reentrant=True), torch.ones(1, 2, requires_grad=True)
    taps = Taps(tower, {"feature": path})
    with (
        pytest.raises(TapError, match=rf"tap 'feature' on '{path}' runs without gradients.*use_reentrant=False"),
        taps.recording(),
    ):
        tower(x)
    with torch.no_grad(), taps.recording() as recording:
        tower(x)
    assert len(recording.calls("feature")) == 1


def test_what_a_checkpoint_gives_is_recorded_once_and_carries_gradient():
    tower, x = Tower(reentrant=False), torch.ones(1, 2, requires_grad=True)
    with Taps(tower, {"feature": "layer"}).recording() as recording:
        tower(x)
    (feature,) = recording.calls("feature")
    feature.sum().backward()
    assert len(recording.calls("feature")) == 1
    torch.testing.assert_close(x.grad, tower.layer.weight.sum(0, keepdim=True))
