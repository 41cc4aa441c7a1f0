"""Every kind of detector that mmdet ships: one training step and one distilled step, and the page that says so."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import cskd_train.mm  # noqa: F401  (changes mmcv before it is imported)

from .mmdet_detectors import REASONS, STOCK, kind_of, page, reason_of, row_of, stock_configs

PAGE = Path(__file__).parents[2] / "docs" / "detectors.md"
NEEDS = {"PAA PAAHead": "sklearn"}
pytestmark = [pytest.mark.reliability, pytest.mark.timeout(600)]

rows = {}


@pytest.mark.parametrize("kind", STOCK)
def test_a_detector_of_each_kind_takes_a_step_and_a_distilled_step(kind, tmp_path):
    if kind in NEEDS and importlib.util.find_spec(NEEDS[kind]) is None:
        pytest.skip(f"needs {NEEDS[kind]}")
    rows[kind] = row_of(kind, tmp_path)
    assert str(rows[kind]) in PAGE.read_text().splitlines()


def test_the_page_is_what_the_steps_have_shown():
    if rows.keys() != STOCK.keys():
        pytest.skip("not all kinds were tried")
    assert PAGE.read_text() == page(rows.values())


def test_every_config_that_mmdet_ships_is_of_a_kind_that_is_tried_or_has_a_reason():
    kinds = {}
    for name, model in stock_configs():
        kinds.setdefault(kind_of(model), []).append(name)
    assert not {kind: names for kind, names in kinds.items() if kind not in STOCK and not reason_of(kind)}
    assert not [kind for kind, name in STOCK.items() if name not in kinds.get(kind, ()) or reason_of(kind)]
    assert {part for kind in kinds for part in kind.split()} >= REASONS.keys()
