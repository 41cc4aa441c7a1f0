"""cskd_core needs torch and nothing else."""

from __future__ import annotations

import subprocess
import sys


def test_every_module_imports_neither_mmdet_nor_mmcv():
    code = (
        "import importlib, pkgutil, sys, cskd_core\n"
        "for module in pkgutil.iter_modules(cskd_core.__path__, 'cskd_core.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'mmdet', 'mmcv', 'cv2', 'click'}))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
