"""How `retinanet_r18_mmdet3.pth.gz` was made: two steps of mmengine's own runner, which then saved its own checkpoint.

    pip install torch mmengine==0.10.7 mmdet==3.3.0 mmcv-lite==2.1.0     # in an environment of its own
    python make.py

mmcv-lite has no compiled operators. Names of them are enough here: the detector is built, and neither trained as a
detector nor asked for boxes.
"""

from __future__ import annotations

import gzip
import importlib.abc
import importlib.machinery
import sys
import tempfile
import types
from pathlib import Path

import torch
from torch import nn

CLASSES = ("fish", "jellyfish", "penguin")
OUT = Path(__file__).with_name("retinanet_r18_mmdet3.pth.gz")


class Operators(types.ModuleType):
    """`mmcv.ops`, where every name is a layer without weights."""

    def __getattr__(self, name: str) -> type[nn.Module]:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        stands_in = name == "mmcv.ops" or name.startswith("mmcv.ops.")
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if stands_in else None

    def create_module(self, spec):
        return Operators(spec.name)

    def exec_module(self, module):
        pass


def main() -> None:
    sys.meta_path.insert(0, Finder())
    from mmdet.models import RetinaNet
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    from mmengine.runner import Runner
    from torch.utils.data import Dataset

    DefaultScope.get_instance("sample", scope_name="mmdet")
    shipped = Path(sys.modules["mmdet"].__file__).parent / ".mim" / "configs" / "retinanet"
    model = Config.fromfile(str(shipped / "retinanet_r18_fpn_1x_coco.py")).model
    model.backbone.update(base_channels=1, init_cfg=None)
    model.neck.update(in_channels=[1, 2, 4, 8], out_channels=2)
    model.bbox_head.update(num_classes=len(CLASSES), in_channels=2, feat_channels=2, stacked_convs=1)
    model.type = "Sample"

    @MODELS.register_module()
    class Sample(RetinaNet):
        def train_step(self, data, optim_wrapper):
            loss = sum(value.square().mean() for value in self.parameters() if value.requires_grad)
            optim_wrapper.update_params(loss)
            return {"loss": loss.detach()}

    class Nothing(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return torch.zeros(1)

    torch.manual_seed(7)
    Nothing.metainfo = {"classes": CLASSES, "palette": [(220, 20, 60), (119, 11, 32), (0, 0, 142)]}
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(
            model=model,
            work_dir=folder,
            train_dataloader={
                "dataset": Nothing(),
                "sampler": {"type": "DefaultSampler", "shuffle": False},
                "batch_size": 1,
            },
            train_cfg={"by_epoch": True, "max_epochs": 1},
            optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.001}},
            default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1}},
            default_scope="mmdet",
        )
        runner.train()
        OUT.write_bytes(gzip.compress((Path(folder) / "epoch_1.pth").read_bytes(), mtime=0))


if __name__ == "__main__":
    main()
