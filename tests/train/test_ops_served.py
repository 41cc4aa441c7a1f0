"""Who serves mmcv's operators: a native mmcv-full, torchvision, or plain PyTorch; and what nobody serves."""

from __future__ import annotations

from pathlib import Path

import mmcv.ops
import pytest
import torch

from cskd_train import mm
from cskd_train.errors import TrainError

pytestmark = pytest.mark.skipif(
    mm.ops.native_extension().serves, reason="a native mmcv-full serves here, not the operators under test"
)


def test_an_operator_that_nobody_serves_raises_on_use_and_names_itself_and_the_fix() -> None:
    with pytest.raises(
        TrainError, match=r"'roi_pool_forward' is not available.*serves nms, .*deform_conv.*MMCV_WITH_OPS=1 pip install"
    ):
        mmcv.ops.roi_pool(torch.rand(1, 1, 4, 4), torch.zeros(1, 5), 2)
    with pytest.raises(TrainError, match="roi_align with pool_mode='max'"):
        mmcv.ops.RoIAlign(2, 1.0, 2, pool_mode="max")(torch.rand(1, 1, 4, 4), torch.zeros(1, 5))


def test_status_tells_who_serves() -> None:
    status = mm.ops.status()

    assert status["sigmoid_focal_loss"] == "torch"
    assert status["nms"] == status["roi_align"] == ("torchvision" if mm.ops.torchvision_loads() else "torch")
    assert status["deform_conv"] == status["modulated_deform_conv"] == "torch"
    assert status["roi_pool"] == status["border_align"] == "missing"
    assert {name for name, server in status.items() if server == "missing"} == set(mm.ops.OPERATORS) - set(mm.ops.PLAIN)


def test_a_native_mmcv_full_serves_before_anything_else(fresh_python, tmp_path: Path) -> None:
    (tmp_path / "_ext.py").write_text(
        "import torch\n"
        "calls = []\n"
        "def nms(boxes, scores, iou_threshold, offset):\n"
        "    calls.append((len(boxes), iou_threshold, offset))\n"
        "    return torch.tensor([1])\n"
        "def __getattr__(name):\n"
        "    if name.startswith('__'): raise AttributeError(name)\n"
        "    return lambda *a, **k: calls.append(name)\n"
    )

    done = fresh_python(
        f"""
import warnings; warnings.simplefilter("ignore")
import mmcv; mmcv.__path__.append({str(tmp_path)!r})
from cskd_train import mm
import mmcv.ops, mmcv._ext, torch
print(mmcv.ops.nms(torch.rand(3, 4), torch.rand(3), 0.5, offset=1)[1].tolist(), mmcv._ext.calls)
print(set(mm.ops.status().values()))
"""
    )

    assert done.stdout == "[1] [(3, 0.5, 1)]\n{'mmcv-full'}\n", done.stderr


def test_a_native_mmcv_full_is_replaced_where_an_operator_of_its_fails_and_nowhere_else(
    fresh_python, tmp_path: Path
) -> None:
    # As a build for the CPU on a GPU; here the device that it has no nms and no focal loss for is the CPU.
    (tmp_path / "_ext.py").write_text(
        """
import torch
calls = []
def nms(boxes, scores, iou_threshold, offset):
    if boxes.device.type == "cpu":
        raise RuntimeError("nms_impl: implementation for device cpu not found.")
    return torch.empty(7, device=boxes.device)
def roi_align_forward(features, rois, output, *arguments, **keywords):
    calls.append("forward")
    output.fill_(5)
def roi_align_backward(gradient, rois, argmax_y, argmax_x, to_features, **keywords):
    calls.append("backward")
def sigmoid_focal_loss_forward(*arguments, **keywords):
    pass
def sigmoid_focal_loss_backward(*arguments, **keywords):
    raise RuntimeError("not compiled with GPU support")
def softnms(boxes, *arguments, **keywords):
    return torch.arange(len(boxes))
def nms_match(*arguments, **keywords):
    return []
def __getattr__(name):
    if name.startswith("__"): raise AttributeError(name)
    return lambda *a, **k: None
"""
    )

    done = fresh_python(
        f"""
import warnings; warnings.simplefilter("ignore")
import mmcv; mmcv.__path__.append({str(tmp_path)!r})
from cskd_train import mm
import mmcv.ops, mmcv._ext, torch
first = mm.ops.status()
served = mm.ops.serve(torch.device("cpu"))
print([first[name] for name in ("nms", "roi_align", "sigmoid_focal_loss", "soft_nms")])
print([served[name] for name in ("nms", "roi_align", "sigmoid_focal_loss", "soft_nms")])
print(served == mm.ops.status() == mm.ops.serve("cpu"), mm.ops.status("meta") == first, mmcv._ext.calls)
boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])
print(mmcv.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5)[1].tolist())
print(mmcv.ops.roi_align(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), 1).item())
logits = torch.zeros(1, 1, requires_grad=True)
mmcv.ops.sigmoid_focal_loss(logits, torch.tensor([0])).backward()
print(round(logits.grad.item(), 6))
print(mmcv._ext.nms(boxes.to("meta"), boxes[:, 0].to("meta"), iou_threshold=0.5, offset=0).shape)
"""
    )

    assert done.stdout.splitlines() == [
        "['mmcv-full', 'mmcv-full', 'mmcv-full', 'mmcv-full']",
        "['torch', 'mmcv-full', 'torch', 'mmcv-full']",
        "True True ['forward', 'backward', 'forward', 'backward']",
        "[1, 2]",
        "5.0",
        # -0.25 (1 - p)^2 log p at p = 0.5: a derivative of 0.25 ((1 - p)^2 (p - 1) + 2 p (1 - p)^2 log p)
        "-0.074572",
        "torch.Size([7])",
    ], done.stderr


def test_serving_where_plain_operators_stand_in_says_who_serves() -> None:
    assert mm.ops.serve("cpu") == mm.ops.status()


def test_compiled_operators_that_do_not_load_leave_the_plain_ones_in_charge(fresh_python, tmp_path: Path) -> None:
    (tmp_path / "_ext.py").write_text("raise ImportError('undefined symbol: _ZN2at4_ops')")

    done = fresh_python(
        f"""
import warnings; warnings.simplefilter("ignore")
import mmcv; mmcv.__path__.append({str(tmp_path)!r})
from cskd_train import mm
import mmcv.ops, torch
kept = mmcv.ops.nms(torch.zeros(2, 4), torch.rand(2), 0.5)[1]
print(mm.ops.status()["nms"], len(kept), mm.ops.native_extension().error)
"""
    )

    assert done.stdout == "torch 2 undefined symbol: _ZN2at4_ops\n", done.stderr


def test_torchvisions_kernels_serve_where_torchvision_loads(fresh_python, tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text(
        """
import torch
__version__ = "0.28.0"
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
library.define(
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor"
)
def nms(boxes, scores, threshold):
    print("nms", boxes.tolist(), threshold)
    return torch.tensor([0])
def roi_align(features, rois, scale, rows, columns, ratio, aligned):
    print("roi_align", scale, rows, columns, ratio, aligned)
    return features[:, :, :rows, :columns] * 2
library.impl("nms", nms, "CompositeExplicitAutograd")
library.impl("roi_align", roi_align, "CompositeImplicitAutograd")
"""
    )

    done = fresh_python(
        """
from cskd_train import mm
import mmcv.ops, torch
mmcv.ops.nms(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.ones(1), 0.5, offset=1)
x = torch.ones(1, 1, 4, 4, requires_grad=True)
mmcv.ops.roi_align(x, torch.zeros(1, 5), (2, 3), 0.25, 0, "avg", False).sum().backward()
print(x.grad.sum().item(), mm.ops.status()["nms"], mm.ops.status()["roi_align"])
""",
        tmp_path,
    )

    assert done.stdout.splitlines() == [
        "nms [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]] 0.5",  # whether it runs at all on this device, once
        "nms [[1.0, 2.0, 4.0, 5.0]] 0.5",
        "roi_align 1.0 1 1 1 True",  # the same
        "roi_align 0.25 2 3 0 False",
        "roi_align 0.25 2 3 0 False",
        "12.0 torchvision torchvision",
    ], done.stderr


def test_a_torchvision_that_does_not_run_on_a_device_leaves_plain_torch_in_charge_there(
    fresh_python, tmp_path: Path
) -> None:
    # As a build for the CPU beside a torch for CUDA: it loads, knows its operators, and has no kernel for the device.
    (tmp_path / "torchvision.py").write_text(
        """
import torch
__version__ = "0.28.0"
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
library.define(
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor"
)
library.impl("nms", lambda boxes, scores, threshold: boxes.new_empty(1), "Meta")
"""
    )

    done = fresh_python(
        """
from cskd_train import mm
import mmcv.ops, torch
print(mm.ops.torchvision_loads(), mm.ops.serve("cpu")["nms"], mm.ops.serve("cpu")["roi_align"])
print(mm.ops.status("meta")["nms"])
boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])
print(mmcv.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5)[1].tolist())
print(mmcv.ops.roi_align(torch.full((1, 1, 4, 4), 3.0), torch.tensor([[0.0, 0, 0, 4, 4]]), 1).item())
""",
        tmp_path,
    )

    assert done.stdout == "True torch torch\ntorchvision\n[1, 2]\n3.0\n", done.stderr


def test_torchvisions_deformable_convolution_serves_off_the_processor(fresh_python, tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text(
        """
import torch
__version__ = "0.28.0"
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
library.define(
    "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, "
    "SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, "
    "SymInt offset_groups, bool use_mask) -> Tensor"
)
def deform_conv2d(features, weight, offset, mask, bias, *settings):
    print(*(tuple(tensor.shape) for tensor in (features, weight, offset, mask, bias)), *settings)
    return features.new_empty(len(features), len(weight), *offset.shape[2:])
library.impl("deform_conv2d", deform_conv2d, "Meta")
library.impl("deform_conv2d", lambda *arguments: print("not here"), "CPU")
"""
    )

    done = fresh_python(
        """
from cskd_train import mm
import mmcv.ops, torch
print(mm.ops.status("meta")["deform_conv"], mm.ops.status("cpu")["modulated_deform_conv"])
features, offset, weight = (torch.zeros(size, device="meta") for size in ((2, 8, 5, 7), (2, 48, 5, 9), (6, 4, 2, 3)))
settings = ((1, 1), (1, 2), (2, 1), 2, 4)
print(mmcv.ops.deform_conv2d(features, offset, weight, *settings).shape)
""",
        tmp_path,
    )

    assert done.stdout.splitlines() == [
        "(1, 1, 1, 1) (1, 1, 1, 1) (1, 2, 1, 1) (1, 1, 1, 1) (1,) 1 1 0 0 1 1 1 1 True",  # whether it runs there, once
        "torchvision torch",
        "(2, 8, 5, 7) (6, 4, 2, 3) (2, 48, 5, 9) (2, 24, 5, 9) (6,) 1 1 1 2 2 1 2 4 True",
        "torch.Size([2, 6, 5, 9])",
    ], done.stderr
