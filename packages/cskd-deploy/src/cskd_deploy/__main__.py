"""`python -m cskd_deploy`, the same as `cskd-deploy`."""

from cskd_deploy.cli import main

main()
