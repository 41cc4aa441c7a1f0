"""Stock mmdet 2 and mmcv 1 run on this torch once `cskd_train.mm` is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmcv
import mmdet
import numpy as np
import pytest
import torch
from mmcv.runner.checkpoint import get_torchvision_models
from mmdet.core.anchor.point_generator import MlvlPointGenerator
from mmdet.models import build_detector

from cskd_train import files as mm_versions
from cskd_train.errors import NotInstalled


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


def test_stock_retinanet_learns_a_batch_and_infers() -> None:
    detector = stock_retinanet().train()
    meta = {"img_shape": (64, 96, 3), "pad_shape": (64, 96, 3), "scale_factor": np.ones(4, dtype=np.float32)}
    data = {
        "img": torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)),
        "img_metas": [meta, meta],
        "gt_bboxes": [torch.tensor([[8.0, 8.0, 40.0, 48.0]]), torch.zeros(0, 4)],
        "gt_labels": [torch.tensor([3]), torch.zeros(0, dtype=torch.long)],
    }
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)

    losses = []
    for _ in range(5):
        outputs = detector.train_step(data, optimizer)
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()
        losses.append(outputs["loss"].item())
    detector.eval()
    with torch.no_grad():
        (detections,) = detector(return_loss=False, img=[data["img"][:1]], img_metas=[[meta]], rescale=True)

    assert losses[-1] < 0.9 * losses[0]
    assert [dets.shape[1] for dets in detections] == [5] * 80


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


def test_numpys_removed_aliases_are_the_builtin_types() -> None:
    assert np.array([1.9]).astype(np.int).dtype == np.dtype(int)
    assert np.zeros(1, dtype=np.float).dtype == np.dtype(float)


@pytest.mark.parametrize(
    ("package", "found", "message"),
    [
        ("mmdet", "3.3.0", "mmdet >=2.22,<3: pip uninstall -y mmdet; pip install 'mmdet==2.28.2'"),
        ("mmdet", "2.21.0", "mmdet >=2.22,<3: pip uninstall -y mmdet; pip install 'mmdet==2.28.2'"),
        ("mmcv", "2.1.0", "mmcv >=1.4.7,<2: pip uninstall -y mmcv; pip install 'mmcv-full==1.7.2'"),
        ("mmcv", "1.4.6", "mmcv >=1.4.7,<2: pip uninstall -y mmcv; pip install 'mmcv-full==1.7.2'"),
        ("mmdet", None, "mmdet >=2.22,<3: pip install 'mmdet==2.28.2'"),
    ],
)
def test_a_version_that_does_not_work_is_refused_with_the_command_that_installs_one_that_does(
    monkeypatch: pytest.MonkeyPatch, package: str, found: str | None, message: str
) -> None:
    real = mm_versions.installed_version
    monkeypatch.setattr(mm_versions, "installed_version", lambda name: found if name == package else real(name))

    with pytest.raises(NotInstalled) as refused:
        mm_versions.check_versions()

    assert refused.value.exit_code == 3

    state = f"{found} is installed" if found else "is not installed"
    assert str(refused.value) == f"{package} {state}, cskd-train works with {message}"


@pytest.mark.parametrize(("package", "found"), [("mmdet", "2.22.0"), ("mmcv", "1.4.7"), ("mmdet", "2.28.2")])
def test_both_ends_of_the_supported_range_are_taken(monkeypatch: pytest.MonkeyPatch, package: str, found: str) -> None:
    real = mm_versions.installed_version
    monkeypatch.setattr(mm_versions, "installed_version", lambda name: found if name == package else real(name))

    mm_versions.check_versions()


def test_the_supported_versions_are_those_that_the_package_asks_for() -> None:
    text = (Path(__file__).parents[2] / "packages" / "cskd-train" / "pyproject.toml").read_text()

    assert all(f'"{name}{works}"' in text for works, _, name in mm_versions.REQUIRED.values())


def test_versions_are_read_without_importing() -> None:
    assert mm_versions.installed_version("mmdet") == mmdet.__version__
    assert mm_versions.installed_version("mmcv") == mmcv.__version__
    assert mm_versions.installed_version("no_such_package") is None


def test_an_mmdet_that_does_not_take_the_installed_mmcv_is_refused_with_a_pair_that_goes_together(
    fresh_python, tmp_path: Path
) -> None:
    (tmp_path / "mmdet").mkdir()
    (tmp_path / "mmdet" / "version.py").write_text("__version__ = '2.22.0'\n")
    (tmp_path / "mmdet" / "__init__.py").write_text("assert False, 'Please install mmcv>=1.3.17, <=1.5.0.'")

    done = fresh_python("from cskd_train.cli import main; main(['run', 'tests/train/tiny_retinanet.py'])", tmp_path)

    assert done.returncode == 3
    assert "do not go together (Please install mmcv>=1.3.17, <=1.5.0.): pip install 'mmdet==2.28.2'" in done.stderr
    assert "Traceback" not in done.stderr


def test_flags_of_points_are_made_without_a_gpu() -> None:
    # RepPoints asks for them without a device, which is a GPU in mmdet.
    (flags,) = MlvlPointGenerator([8]).valid_flags([(3, 4)], (20, 17))

    assert flags.device.type == "cpu"
    assert flags.view(3, 4).tolist() == [[True, True, True, False]] * 3
    assert MlvlPointGenerator([8]).valid_flags([(3, 4)], (20, 17), device="meta")[0].device.type == "meta"


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((600, 2), (64, 64), (64, 1)),
        ((2, 600), (64, 64), (1, 64)),
        ((2667, 1), (1333, 800), (1333, 1)),
        ((600, 2), 0.1, (60, 1)),
        ((640, 480), (1333, 800), (1067, 800)),  # as mmcv has it
    ],
)
def test_a_long_thin_image_keeps_a_pixel(size: Any, scale: Any, expected: Any) -> None:
    assert mmcv.rescale_size(size, scale) == expected
    image = np.full((size[1], size[0], 3), 7, dtype=np.uint8)
    assert mmcv.imrescale(image, scale).shape == (expected[1], expected[0], 3)
