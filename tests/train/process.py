"""One of several processes that train a distilled detector together: run by test_processes.py as a script.

    process.py FAMILY JOB RANK

JOB is a pickle of the models of student and teacher, and of every rank's boxes and labels, in a folder that all
processes see; FAMILY only names the files. What rank R found is written beside it, in FAMILY.R.pt.
"""

from __future__ import annotations

import pickle
import sys
from datetime import timedelta
from pathlib import Path

WORLD_SIZE = 2
TIMEOUT = timedelta(seconds=20)  # of a reduction that the other process does not join


def main(family, job, rank):
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from cskd_train.mm.plain import build_without_pretrained

    sys.path.insert(0, str(Path(__file__).parent))
    from pairs import IMAGES, METAS, distilled, trained

    student, teacher, boxes, labels = pickle.loads(job.read_bytes())
    dist.init_process_group(
        "gloo", init_method=(job.parent / f"{family}.rendezvous").as_uri(),
        rank=rank, world_size=WORLD_SIZE, timeout=TIMEOUT,
    )  # fmt: skip
    torch.manual_seed(0)
    model = distilled(*map(build_without_pretrained, (student, teacher)))
    together = DistributedDataParallel(model, find_unused_parameters=False)
    reductions, reduce = [], dist.all_reduce

    def all_reduce(tensor, *arguments, **keywords):
        reductions.append((tuple(tensor.shape), str(tensor.dtype)))
        return reduce(tensor, *arguments, **keywords)

    dist.all_reduce = all_reduce
    for _ in range(2):  # the second asks DDP whether the first gave every parameter a gradient
        model.zero_grad()
        torch.manual_seed(0)  # mmdet samples anchors and RoIs at random
        losses = together(img=IMAGES, img_metas=METAS, gt_bboxes=boxes[rank], gt_labels=labels[rank])
        values = {name: value.item() for name, value in losses.items() if isinstance(value, torch.Tensor)}
        model.student._parse_losses(losses)[0].backward()
    found = {
        "losses": values,
        "reductions": reductions,
        "gradients": {name: parameter.grad for name, parameter in trained(model).items()},
    }
    torch.save(found, job.parent / f"{family}.{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
