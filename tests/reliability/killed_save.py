"""Save a checkpoint as one of the packages does, and die by SIGKILL at one file operation of it.

python killed_save.py train|deploy TARGET NUMBER            lists the operations, one a line
python killed_save.py train|deploy TARGET NUMBER PLACE WHEN   dies before or after the one at PLACE
"""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.file_operations import report_operations

PIECES = 16  # in which the other package's writer is given a file


def contents(number):
    """Checkpoint `number`: each is of another size, and longer than a file's buffer."""
    import torch

    weights = {f"layer{i}.weight": torch.full((3000 + 100 * number,), float(number + i)) for i in range(4)}
    return {"state_dict": weights, "meta": {"epoch": number}}


def expected(number):
    """The bytes of checkpoint `number`."""
    import torch

    torch.save(contents(number), buffer := io.BytesIO())
    return buffer.getvalue()


def save(writer, target, number):
    """As cskd-train saves a checkpoint, or as cskd-deploy writes any file, here the same bytes."""
    if writer == "train":
        from cskd_train.files.checkpoints import save

        return lambda: save(target, contents(number))
    from cskd_data.files import write_atomically

    data = expected(number)
    step = len(data) // PIECES + 1
    pieces = [data[start : start + step] for start in range(0, len(data), step)]
    return lambda: write_atomically(target, lambda file: [file.write(piece) for piece in pieces])


def main(writer, target, number, place=None, when=None):
    done = []

    def report(name, moment):
        if moment == "before":
            done.append(name)
        if place is not None and (len(done) - 1, moment) == (int(place), when):
            os.kill(os.getpid(), signal.SIGKILL)

    saving = save(writer, Path(target), int(number))
    report_operations(report)
    saving()
    print("\n".join(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
