"""The distilled step equals the published one."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CASES = {entry["case"]["name"]: entry for entry in json.loads((HERE / "golden.json").read_text())}

spec = importlib.util.spec_from_file_location("golden_check", HERE / "check.py")
assert spec is not None
assert spec.loader is not None
check = importlib.util.module_from_spec(spec)
sys.modules["golden_check"] = check
spec.loader.exec_module(check)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("retina")])
def test_losses_and_gradients_agree_with_the_published_code(name):
    agreement = check.check_case(CASES[name])
    assert agreement.losses[0] <= 1e-6, agreement
    assert agreement.total <= 1e-6, agreement
    assert agreement.gradients[0] <= 1e-5, agreement


def test_a_wrong_value_is_found_and_a_missing_family_is_reported(tmp_path):
    wrong = json.loads(json.dumps(CASES["retina_r50_r18_weights"]))
    wrong["losses"]["loss_neck"][2] *= 1 + 1e-4
    file = tmp_path / "cases.json"
    file.write_text(json.dumps([wrong, CASES["fcos_r50_r18"]]))
    run = subprocess.run([sys.executable, HERE / "check.py", file], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    lines = run.stdout.splitlines()
    assert lines[0].startswith("FAILED  retina_r50_r18_weights")
    assert "(loss_pyramid)" in lines[0]
    assert lines[1].startswith("MISSING fcos_r50_r18")
