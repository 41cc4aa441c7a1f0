"""Pre- and post-processing give the same bits under NumPy 2's promotion of scalars (NEP 50) as under NumPy 1's.

NumPy 1.24 to 1.26 know both rules. NumPy 2 has one of them only: the reliability tests compare the versions.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from .arithmetic import digests

pytestmark = pytest.mark.skipif(not hasattr(np, "_set_promotion_state"), reason="NumPy 2 has one rule of promotion")


@pytest.fixture
def promotion():
    """Set the rule, until the test ends."""
    yield np._set_promotion_state
    np._set_promotion_state("legacy")


def test_the_bits_do_not_depend_on_the_rule_of_promotion(promotion):
    results = {}
    for state in ("legacy", "weak"):
        promotion(state)
        results[state] = digests()
    assert len(results["legacy"]) > 60
    assert results["weak"] == results["legacy"]


def test_no_type_depends_on_the_rule_of_promotion(promotion):
    # Types may differ where the last bits are rounded away, in most pictures.
    promotion("weak_and_warn")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="result dtype changed")
        # NumPy 2's `where` takes Python's numbers by the new rule, that of 1.26 does not.
        warnings.filterwarnings("ignore", message="result dtype changed", module=r".*\.agreement")
        assert digests()
