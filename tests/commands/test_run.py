"""Every command of README, docs and `--help` that can run here runs, in the order of its page, in a fresh folder."""

from __future__ import annotations

import shutil

import pytest

from . import world
from .not_run import reason
from .pages import of_help, of_pages

pytestmark = [pytest.mark.reliability, pytest.mark.timeout(1800)]
RUN = [one for one in [*of_pages(), *of_help()] if one.program in ("cskd-train", "cskd-deploy") and reason(one) is None]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands") / "world"
    world.build(folder)
    return folder


@pytest.mark.parametrize("where", dict.fromkeys(command.where for command in RUN))
def test_the_commands_of_a_page_run_in_their_order_and_leave_what_they_name(built, where, tmp_path, monkeypatch):
    folder = tmp_path / "page"
    shutil.copytree(built, folder, symlinks=True)
    monkeypatch.setenv("CSKD_BCCD", str(folder / "data" / "bccd"))
    monkeypatch.setenv("CSKD_CARDS", str(folder / "data" / "cards"))
    with world.inside(folder):
        for command in RUN:
            if command.where == where:
                code, stray, said = world.run(command)
                assert code == 0, f"{command}\n{said}"
                assert not stray, f"{command}\nleft {stray}"
