"""Two processes under torch's own DistributedDataParallel, one of them without any box."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cskd_train.mm.plain import build_without_pretrained

from .pairs import BOXES, LABELS, distilled, model_of, step
from .process import WORLD_SIZE

NO_BOXES, NO_LABELS = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
BOXES_OF_RANK = [BOXES, [NO_BOXES, NO_BOXES]]
LABELS_OF_RANK = [LABELS, [NO_LABELS, NO_LABELS]]

# FCOS and GFL divide by a count averaged over the processes. FCOS counts none where there is no box, GFL one an image:
# of its 16 positive anchors in the one process and 2 in the other the mean is 9.
SHARED = {("FCOS", "assistant_cls"): 2, ("FCOS", "assistant_reg"): 2, ("GFL", "assistant_cls"): 16 / 9}


@pytest.fixture
def together(narrow_model, tmp_path):
    """`together("GFL")` -> what each rank found, see process.py; the models are those of `alone`."""

    def run(family):
        models = [model_of(narrow_model, family, depth) for depth in (18, 50)]
        job = tmp_path / "job.pkl"
        job.write_bytes(pickle.dumps((*models, BOXES_OF_RANK, LABELS_OF_RANK)))
        ranks = [
            subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("process.py")), family, str(job), str(rank)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(WORLD_SIZE)
        ]
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
        return [torch.load(tmp_path / f"{family}.{rank}.pt") for rank in range(WORLD_SIZE)]

    return run


@pytest.fixture
def alone(narrow_model):
    """`alone("GFL")` -> the terms that one process has for the boxes of rank 0."""

    def terms(family):
        torch.manual_seed(0)
        models = [build_without_pretrained(model_of(narrow_model, family, depth)) for depth in (18, 50)]
        found, _ = step(distilled(*models), BOXES_OF_RANK[0], LABELS_OF_RANK[0])
        return {name: value.item() for name, value in found.items()}

    return terms


def test_a_process_without_any_box_reduces_and_learns_what_the_other_does(together, alone, family):
    with_boxes, without = together(family)
    assert with_boxes["reductions"] == without["reductions"]
    assert with_boxes["gradients"].keys() == without["gradients"].keys()
    for name, gradient in with_boxes["gradients"].items():
        assert torch.isfinite(gradient).all(), name
        assert torch.equal(gradient, without["gradients"][name]), name
    expected = alone(family)
    for name in ("pyramid_full", "prediction_cls", "assistant_cls", "assistant_reg"):
        factor = SHARED.get((family, name), 1)
        assert with_boxes["losses"][f"loss_{name}"] == pytest.approx(factor * expected[name], rel=1e-5), name
