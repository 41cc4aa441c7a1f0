"""The commits that pages and records of results name are in the history."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
FILES = [DOCS / "performance.md", *sorted(file for file in (DOCS / "results").iterdir() if file.is_file())]
HASH = re.compile(r"(?<![\w.])(?=[0-9a-f]*[a-f])(?=[0-9a-f]*[0-9])[0-9a-f]{7,40}(?![\w.])")
# Of a page every hash, of records those that are named so: others are sums of files.
OF_RECORDS = re.compile(r'"commit": ?"([0-9a-f]{7,40})')


def git(*words, given=None):
    command = ["git", "-C", str(REPOSITORY), *words]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)


def named(file):
    """The commits that a file names."""
    pattern = HASH if file.suffix == ".md" else OF_RECORDS
    return set(pattern.findall(file.read_text())) if file.suffix in (".md", ".json", ".jsonl") else set()


def missing(commits):
    """Those that are no commits of the history."""
    said = git("cat-file", "--batch-check", given="".join(f"{one}\n" for one in commits)).stdout.splitlines()
    return {one for one, answer in zip(commits, said, strict=True) if answer.split()[1:2] != ["commit"]}


@pytest.fixture
def history():
    if shutil.which("git") is None or git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("no git, or no whole history")


def test_every_commit_of_a_result_is_in_the_history(history):
    found = {file.name: sorted(named(file)) for file in FILES}
    assert sum(map(len, found.values())) > 30
    assert {name: gone for name, commits in found.items() if (gone := missing(commits))} == {}


def test_a_commit_that_is_not_there_is_found(history, tmp_path):
    head = git("rev-parse", "HEAD").stdout.strip()
    (page := tmp_path / "page.md").write_text(f"Commit deadbe3, and {head[:10]}; 1234567 images, mAP 0.1234abc.\n")
    assert missing(sorted(named(page))) == {"deadbe3"}
    (records := tmp_path / "a.jsonl").write_text(f'{{"commit": "{head[:10]} with changes 4c5cf4300a"}}\n')
    assert named(records) == {head[:10]}
