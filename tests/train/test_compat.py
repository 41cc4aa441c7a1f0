"""Stock mmdet 2.28 and mmcv 1.7 run on this torch once `cskd_train.mm` is imported."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import mmcv
import mmdet
import numpy as np
import pytest
import torch
from mmcv.parallel import DataContainer, MMDataParallel, MMDistributedDataParallel, _functions
from mmcv.runner import EpochBasedRunner, Fp16OptimizerHook, Hook, OptimizerHook, wrap_fp16_model
from mmcv.runner.checkpoint import get_torchvision_models
from mmdet.models import build_detector

from cskd_train.errors import TrainError
from cskd_train.files import mm_versions
from cskd_train.mm import compat

takes_the_cpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="mmcv's wrappers take the GPU where there is one, and these mends are for the CPU"
)


def stock_retinanet() -> Any:
    """mmdet's own RetinaNet-R18 with a narrow pyramid, initialised without a download."""
    configs = Path(mmdet.__file__).parent / ".mim" / "configs"
    model = mmcv.Config.fromfile(str(configs / "retinanet" / "retinanet_r18_fpn_1x_coco.py")).model
    model.backbone.init_cfg = None
    model.neck.out_channels = model.bbox_head.in_channels = model.bbox_head.feat_channels = 32
    model.bbox_head.stacked_convs = 2
    torch.manual_seed(0)
    detector = build_detector(model)
    detector.init_weights()
    return detector


def batch(seed: int = 0) -> dict[str, DataContainer]:
    """Two images in mmcv's containers, the second without any box."""
    meta = {
        "img_shape": (64, 96, 3),
        "pad_shape": (64, 96, 3),
        "ori_shape": (64, 96, 3),
        "scale_factor": np.ones(4, dtype=np.float32),
        "flip": False,
    }
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed))
    return {
        "img": DataContainer([images], stack=True),
        "img_metas": DataContainer([[meta, meta]], cpu_only=True),
        "gt_bboxes": DataContainer([[torch.tensor([[8.0, 8.0, 40.0, 48.0]]), torch.zeros(0, 4)]]),
        "gt_labels": DataContainer([[torch.tensor([3]), torch.zeros(0, dtype=torch.long)]]),
    }


class LossRecorder(Hook):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_train_iter(self, runner: Any) -> None:
        self.losses.append(runner.outputs["log_vars"]["loss"])


def train(detector: Any, work_dir: Path, optimizer_hook: OptimizerHook, steps: int) -> list[float]:
    """The loss of every step of one epoch in mmcv's own runner."""
    recorder = LossRecorder()
    runner = EpochBasedRunner(
        MMDataParallel(detector),
        optimizer=torch.optim.AdamW(detector.parameters(), lr=1e-3),
        work_dir=str(work_dir),
        logger=logging.getLogger("test"),
        meta={},
        max_epochs=1,
    )
    runner.register_training_hooks(None, optimizer_hook, None, None)
    runner.register_hook(recorder)
    runner.run([[batch()] * steps], [("train", 1)])
    return recorder.losses


@takes_the_cpu
def test_stock_retinanet_learns_a_batch_on_the_cpu_and_infers(tmp_path: Path) -> None:
    detector = stock_retinanet()

    losses = train(detector, tmp_path, OptimizerHook(), steps=5)
    detector.eval()
    with torch.no_grad():
        image = batch()["img"].data[0][:1]
        (detections,) = MMDataParallel(detector)(
            return_loss=False, img=[image], img_metas=[[batch()["img_metas"].data[0][0]]]
        )

    assert losses[-1] < 0.9 * losses[0]
    assert [dets.shape[1] for dets in detections] == [5] * 80


@takes_the_cpu
def test_mixed_precision_on_the_cpu_is_float32_to_the_bit(tmp_path: Path) -> None:
    plain = train(stock_retinanet(), tmp_path, OptimizerHook(), steps=2)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that its gradient scaler is off without a GPU
        mixed = train(stock_retinanet(), tmp_path, Fp16OptimizerHook(loss_scale=512.0), steps=2)

    assert mixed == plain


def test_a_wrapped_model_casts_no_tensor_on_the_cpu() -> None:
    detector = stock_retinanet()
    wrap_fp16_model(detector)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        levels = detector.extract_feat(torch.rand(1, 3, 64, 96))

    assert detector.neck.fp16_enabled
    assert {level.dtype for level in levels} == {torch.float32}


def test_importing_mmdet_and_initialising_a_model_print_nothing_and_leave_no_torchvision_behind(fresh_python) -> None:
    done = fresh_python(
        "from cskd_train import mm; import mmdet.apis, sys; "
        "from mmdet.models import ResNet; ResNet(18).init_weights(); "
        "print(mm.ops.torchvision_loads(), 'torchvision' in sys.modules)"
    )

    assert done.stderr == ""
    loads, in_modules = done.stdout.split()
    assert loads == in_modules


def test_a_torchvision_built_for_another_torch_is_worked_around(fresh_python, tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")

    done = fresh_python(
        "from cskd_train import mm; import mmdet.apis; print(mm.ops.status()['nms'])",
        tmp_path,
    )

    assert (done.stdout, done.stderr) == ("torch\n", "")


def test_mmcv_knows_the_address_of_pretrained_backbones_without_torchvision() -> None:
    assert get_torchvision_models()["resnet18"].endswith("resnet18-f37072fd.pth")


def test_applying_the_mends_again_changes_nothing() -> None:
    mended = (MMDistributedDataParallel.train_step, _functions._get_stream, mmdet.utils.build_ddp)

    compat.apply()

    assert mended == (MMDistributedDataParallel.train_step, _functions._get_stream, mmdet.utils.build_ddp)


def test_numpys_removed_aliases_are_the_builtin_types() -> None:
    assert np.array([1.9]).astype(np.int).dtype == np.dtype(int)
    assert np.zeros(1, dtype=np.float).dtype == np.dtype(float)


def test_scatter_gets_one_copy_stream_for_each_device_number(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or object())
    monkeypatch.setattr(_functions, "_get_stream", None)

    compat.give_scatter_cuda_streams()

    assert _functions._get_stream(0) is _functions._get_stream(0)
    assert _functions._get_stream(1) is not _functions._get_stream(0)
    assert made == [0, 1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_scatter_copies_a_container_to_the_gpu() -> None:
    tensor = torch.rand(2, 3)

    (copied,) = _functions.Scatter.forward([0], [tensor])

    assert copied.is_cuda
    assert torch.equal(copied.cpu(), tensor)


@pytest.mark.parametrize(
    ("package", "found", "message"),
    [
        ("mmdet", "3.3.0", r"mmdet 3.3.0 is installed.*mmdet 2.x: pip uninstall -y mmdet; pip install 'mmdet==2.28.2'"),
        ("mmcv", "2.1.0", r"mmcv 2.1.0 is installed.*mmcv 1.x: pip uninstall -y mmcv; pip install 'mmcv-full==1.7.2'"),
        ("mmdet", None, r"mmdet is not installed.*: pip install 'mmdet==2.28.2'"),
    ],
)
def test_another_major_line_is_refused_with_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, package: str, found: str | None, message: str
) -> None:
    real = mm_versions.installed_version
    monkeypatch.setattr(mm_versions, "installed_version", lambda name: found if name == package else real(name))

    with pytest.raises(TrainError, match=message):
        mm_versions.check_versions()


def test_versions_are_read_without_importing() -> None:
    assert mm_versions.installed_version("mmdet") == mmdet.__version__
    assert mm_versions.installed_version("mmcv") == mmcv.__version__
    assert mm_versions.installed_version("no_such_package") is None


# Each rank trains one step on images of its own; DDP's gradient has to be the mean of what the ranks compute alone.
TWO_PROCESSES = """
import copy, os, sys
import torch, torch.distributed as dist
sys.path.insert(0, {folder!r})
from cskd_train import mm
from mmcv.runner import init_dist
from mmdet.utils import build_ddp
from test_compat import batch, stock_retinanet

init_dist("pytorch", backend="nccl")
rank = dist.get_rank()
alone = stock_retinanet().train()
together = build_ddp(copy.deepcopy(alone), "cpu", device_ids=[int(os.environ["LOCAL_RANK"])], broadcast_buffers=False)
data = batch(seed=rank)
plain = {{key: container.data[0] for key, container in data.items()}}
alone.train_step(plain, None)["loss"].backward()
optimizer = torch.optim.SGD(together.parameters(), lr=0.1)
together.train_step(data, optimizer)["loss"].backward()
worst = 0.0
for mine, shared in zip(alone.parameters(), together.module.parameters()):
    if mine.grad is not None:
        dist.all_reduce(mine.grad)
        worst = max(worst, float((mine.grad / 2 - shared.grad).abs().max()))
optimizer.step()
total = torch.stack([p.detach().sum() for p in together.parameters()]).sum()
totals = [torch.zeros(()) for _ in range(2)]
dist.all_gather(totals, total)
together.eval()
with torch.no_grad():
    (detections,) = together(return_loss=False, img=[plain["img"][:1]], img_metas=[[data["img_metas"].data[0][0]]])
if rank == 0:
    print(dist.get_backend(), worst < 1e-5, bool(totals[0] == totals[1]), len(detections))
dist.destroy_process_group()
"""


@takes_the_cpu
@pytest.mark.slow
def test_two_processes_on_the_cpu_average_their_gradients(tmp_path: Path) -> None:
    script = tmp_path / "step.py"
    script.write_text(TWO_PROCESSES.format(folder=str(Path(__file__).parent)))

    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.stdout == "gloo True True 80\n", done.stderr
