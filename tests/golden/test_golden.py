"""The distilled step equals the published one."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
CASES = {entry["case"]["name"]: entry for entry in json.loads((HERE / "golden.json").read_text())}

spec = importlib.util.spec_from_file_location("golden_check", HERE / "check.py")
assert spec is not None
assert spec.loader is not None
check = importlib.util.module_from_spec(spec)
sys.modules["golden_check"] = check
spec.loader.exec_module(check)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_agree_with_the_published_code(name):
    agreement = check.check_case(CASES[name])
    assert agreement.losses[0] <= 1e-6, agreement
    assert agreement.total <= 1e-6, agreement
    assert agreement.gradients[0] <= 1e-5, agreement


# In float32 a distance 1 - cos of about 1e-3 keeps four digits, and FCOS's centerness is little but such distances.
@pytest.mark.parametrize("name", ["retina_r50_r18", "fcos_r50_r18", "gfl_r50_r18", "faster_rcnn_r50_r18"])
def test_float32_stays_close(name):
    agreement = check.check_case(CASES[name], torch.float32)
    assert agreement.losses[0] <= 1e-3, agreement
    assert agreement.total <= 1e-4, agreement


def test_a_wrong_value_is_found_and_a_recipe_that_is_not_there_is_reported(tmp_path):
    wrong = json.loads(json.dumps(CASES["retina_r50_r18_weights"]))
    wrong["losses"]["loss_neck"][2] *= 1 + 1e-4
    unknown = json.loads(json.dumps(CASES["fcos_r50_r18"]))
    unknown["case"].update(name="unknown", config="cskd_yolo")
    file = tmp_path / "cases.json"
    file.write_text(json.dumps([wrong, unknown]))
    run = subprocess.run([sys.executable, HERE / "check.py", file], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    lines = run.stdout.splitlines()
    assert lines[0].startswith("FAILED  retina_r50_r18_weights")
    assert "(loss_pyramid_full)" in lines[0]
    assert lines[1].startswith("MISSING unknown")
