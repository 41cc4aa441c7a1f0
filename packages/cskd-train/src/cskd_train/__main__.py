"""`python -m cskd_train`, which torchrun starts as it is: `torchrun ... -m cskd_train run CONFIG`."""

from cskd_train.cli import main

main()
