"""docs/detectors.md: every kind of detector of mmdet once, and what can be told of it without training it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mmcv import Config

from cskd_deploy.errors import DeployError
from cskd_deploy.exporter.mmdet_config import family_of
from cskd_train.mm.families import export_note

from ..reliability.mmdet_detectors import COMPARED, CONFIGS, STOCK, Row, kind_of, model_of, page, reason_of

PAGE = (Path(__file__).parents[2] / "docs" / "detectors.md").read_text()
GROUPS = {shown: name for name, shown in COMPARED.items()}


def rows():
    found = re.findall(r"^\| (\w[\w ]+) \| `(.+?)` \| (.+?) \| (yes|no|at .+?) \| (.*?) ?\|$", PAGE, flags=re.MULTILINE)
    for kind, config, terms, exported, why in found:
        assert config == STOCK[kind]
        yield Row(kind, tuple(GROUPS[name] for name in terms.split(", ") if name != "none"), exported, why)


def test_the_page_is_what_is_written_of_its_rows():
    assert [row.kind for row in rows()] == list(STOCK)
    assert page(rows()) == PAGE


@pytest.mark.parametrize("kind", STOCK)
def test_a_config_is_of_its_kind_and_exported_only_if_export_takes_it(kind):
    model = Config.fromfile(str(CONFIGS / STOCK[kind])).model
    assert kind_of(model) == kind
    assert reason_of(kind) is None
    (row,) = (row for row in rows() if row.kind == kind)
    try:
        family_of({"model": model})
    except DeployError:
        assert export_note(model) is not None  # as a run says it at its start
    else:
        assert export_note(model) is None
    if row.exported != "no":
        assert family_of({"model": model_of(kind)})
    elif not row.why.startswith("not exported: "):
        with pytest.raises(DeployError):
            family_of({"model": model})


def test_a_narrow_model_has_an_eighth_of_each_width():
    model = model_of("RetinaNet RetinaHead")
    assert (model.backbone.base_channels, model.neck.in_channels, model.neck.out_channels) == (
        8,
        [32, 64, 128, 256],
        32,
    )
    assert (model.bbox_head.in_channels, model.bbox_head.feat_channels, model.bbox_head.num_classes) == (32, 32, 80)
    assert "init_cfg" not in model.backbone
    assert model_of("FCOS FCOSHead").bbox_head.norm_cfg.num_groups == 4
