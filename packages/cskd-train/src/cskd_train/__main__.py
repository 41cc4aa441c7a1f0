"""`python -m cskd_train`, which torchrun starts as it is: `torchrun ... -m cskd_train run CONFIG`."""

import os
import signal

if "TORCHELASTIC_RUN_ID" in os.environ:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a worker that is still importing ends without a traceback

from cskd_train.cli import main

main()
