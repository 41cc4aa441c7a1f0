"""`python -m cskd_deploy`, the same as `cskd-deploy`."""

from cskd_deploy.cli import main

if __name__ == "__main__":
    main()
