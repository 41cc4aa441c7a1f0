"""Variables of a config file: read, copied before they were set, or a slip of the pen."""

from __future__ import annotations

import json

import pytest

from cskd_train.errors import TrainError
from cskd_train.files.config import config_from_data, config_to_data, load_config
from cskd_train.files.settings import check_settings

from .setting_cases import LEAST


def refusal(cfg):
    with pytest.raises(TrainError) as error:
        check_settings(cfg)
    return str(error.value)


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.py"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_a_slip_in_the_name_of_a_block_is_refused_and_the_right_name_offered(write):
    path = write(LEAST + "lr_confg = dict(policy='step', step=[8])\n")
    assert refusal(load_config(path)) == (
        f"lr_confg in {path}: it is no setting, and nothing reads it; did you mean lr_config?"
    )


@pytest.mark.parametrize("line", ["scale = 4", "augmentations = [dict(type='Blur')]", "note = 'by hand'"])
def test_a_variable_that_nothing_reads_is_refused(write, line):
    assert "nothing reads it; take it out" in refusal(load_config(write(LEAST + line)))


def test_variables_that_an_expression_reads_are_a_files_own_business(write):
    text = "images = 4\nrate = 0.01 * images / 16\n" + LEAST.replace("lr=0.01", "lr=rate")
    assert check_settings(load_config(write(text))) == []


def test_a_variable_that_a_base_has_copied_is_refused_with_the_keys_to_set(write):
    write("names = ('a', 'b')\n" + LEAST.replace('classes=("a", "b")', "classes=names"), "base.py")
    path = write("_base_ = ['base.py']\nnames = ('cat', 'dog')\n")
    assert refusal(load_config(path)) == (
        f"names in {path}: it changes nothing, for base.py has copied its own value. Set data.train.classes"
    )


def test_a_child_that_sets_what_it_reads_passes(write):
    write("classes = ('a', 'b')\n" + LEAST.replace('classes=("a", "b")', "classes=classes"), "base.py")
    path = write("_base_ = 'base.py'\nclasses = ('cat', 'dog')\ndata = dict(train=dict(classes=classes))\n")
    assert check_settings(load_config(path)) == []
    assert load_config(path).data.train.classes == ("cat", "dog")


def test_a_variable_that_only_a_child_reads_through_base_passes(write):
    write("rate = 0.5\n" + LEAST, "base.py")
    path = write("_base_ = 'base.py'\noptimizer = dict(lr={{_base_.rate}})\n")
    assert load_config(path).optimizer.lr == 0.5
    assert check_settings(load_config(path)) == []


def test_a_variable_that_only_a_reference_reads_passes(write):
    path = write("rate = 0.5\n" + LEAST.replace("lr=0.01", "lr='${rate}'"))
    assert load_config(path).optimizer.lr == 0.5
    assert check_settings(load_config(path)) == []


def test_a_config_that_mmdet_wrote_out_passes_with_its_variables(tiny_config, tmp_path):
    cfg = load_config(tiny_config)
    cfg.gpu_ids = range(1)
    cfg.dump(str(tmp_path / "dumped.py"))
    assert "test_pipeline = " in (tmp_path / "dumped.py").read_text()
    assert check_settings(load_config(tmp_path / "dumped.py")) == []


@pytest.mark.parametrize("name", ["config.json", "config.yaml"])
def test_a_config_of_plain_data_is_checked_too(name, tiny_config, tmp_path):
    path = tmp_path / name
    data = json.loads(json.dumps(config_to_data(load_config(tiny_config))))
    path.write_text(json.dumps(data))  # JSON is YAML, too
    assert check_settings(load_config(path)) == []
    path.write_text(json.dumps({**data, "evaluation": {"start": 3}}))
    assert "evaluation.start = 3" in refusal(load_config(path))
    path.write_text(json.dumps({**data, "optimiser_config": {}}))
    assert "did you mean optimizer_config?" in refusal(load_config(path))


def test_a_config_out_of_a_checkpoint_is_checked_but_for_variables(tiny_config):
    data = config_to_data(load_config(tiny_config))
    assert check_settings(config_from_data({**data, "images": 4})) == []
    assert "fp16" in refusal(config_from_data({**data, "fp16": {"loss_scale": 512.0}}))
