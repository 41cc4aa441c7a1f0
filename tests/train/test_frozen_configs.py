"""Every recipe loads to the values that it had before its pipelines stood in one file."""

from __future__ import annotations

import json

import pytest
from mmcv import Config

from cskd_train.files.config import config_to_data, load_config

from .frozen_configs import FROZEN, hashes, lines, recipes

BEFORE = json.loads(FROZEN.read_text())


def test_no_recipe_is_left_out():
    assert sorted(recipes()) == sorted(BEFORE)


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_loads_to_the_frozen_values(name, monkeypatch):
    for variable in ("CSKD_BCCD", "CSKD_CARDS"):
        monkeypatch.delenv(variable, raising=False)
    now, data = hashes(recipes()[name]), config_to_data(load_config(recipes()[name]))
    changed = [key for key, value in BEFORE[name].items() if now.get(key) != value]
    said = "\n".join(line for key in changed for line in (lines(data[key], key) if key in data else [f"{key} is gone"]))
    assert not changed, f"{name}; now (and before: frozen_configs.py at the commit that it names)\n{said}"


def test_a_recipe_that_is_written_out_whole_is_read_by_mmcv_alone(tmp_path):
    cfg = load_config(recipes()["cskd/cskd_fcos_r101_distill_r18_fpn_coco_1x.py"])
    cfg.dump(str(tmp_path / "whole.py"))
    assert config_to_data(Config.fromfile(str(tmp_path / "whole.py"))) == config_to_data(cfg)
