"""Every command of README, docs and `--help` that can run here runs, in the order of its page, in a fresh folder."""

from __future__ import annotations

import shutil

import pytest

from . import shell, world
from .not_run import reason
from .pages import of_help, of_pages

pytestmark = [pytest.mark.reliability, pytest.mark.timeout(1800)]
RUN = [one for one in [*of_pages(), *of_help()] if reason(one) is None]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands") / "world"
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as context:
        context.setenv("CSKD_CARDS", str(folder / "data" / "cards"))
        world.build(folder)
    return folder


def test_what_is_run_is_of_programs_that_can_be_run():
    assert {command.program for command in RUN} == {*shell.PROGRAMS}


@pytest.mark.parametrize("where", dict.fromkeys(command.where for command in RUN))
def test_the_commands_of_a_page_run_in_their_order_and_leave_what_they_name(built, where, tmp_path, monkeypatch):
    folder = tmp_path / "page"
    world.fresh(built, folder)
    monkeypatch.setenv("CSKD_BCCD", str(folder / "data" / "bccd"))
    monkeypatch.setenv("CSKD_CARDS", str(folder / "data" / "cards"))
    with shell.inside(folder):
        for command in RUN:
            if command.where == where:
                code, stray, said = shell.run(command)
                assert code == 0, f"{command}\n{said}"
                assert not stray, f"{command}\nleft {stray}"
    shutil.rmtree(folder)
