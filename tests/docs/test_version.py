"""One version: the number in VERSION is that of every package, and what stands in the last release of the changelog."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "requirements" / "version.py"
VERSION = (REPOSITORY / "VERSION").read_text().strip()
PLACES = (
    *sorted(REPOSITORY.glob("packages/*/pyproject.toml")),
    *sorted(REPOSITORY.glob("packages/*/src/*/__init__.py")),
)


def version(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    script = root / "requirements" / "version.py"
    return subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, timeout=60)


def test_every_place_has_it():
    done = version(REPOSITORY, "--check")
    assert (done.returncode, done.stdout) == (0, "")
    texts = {file: file.read_text() for file in PLACES}
    assert sum(f'version = "{VERSION}"' in text for text in texts.values()) == 4
    assert sum(len(re.findall(rf'"cskd-\w+(?:\[\w+\])?=={re.escape(VERSION)}"', text)) for text in texts.values()) >= 7
    numbers = {number for text in texts.values() for number in re.findall(r"cskd-\w+(?:\[[\w,-]+\])?==([\w.]+)", text)}
    assert numbers == {VERSION}


def test_the_changelog_ends_with_it():
    releases = re.findall(r"^## ([\d.]+) - \d{4}-\d\d-\d\d$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert releases[0] == VERSION
    assert releases == sorted(releases, reverse=True)


def test_another_number_is_written_everywhere(tmp_path):
    for file in (*PLACES, REPOSITORY / "CITATION.cff", SCRIPT, REPOSITORY / "VERSION"):
        target = tmp_path / file.relative_to(REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    (tmp_path / "VERSION").write_text("9.8.7\n")
    before = version(tmp_path, "--check")
    assert before.returncode == 1
    assert len(before.stdout.splitlines()) == 7
    assert version(tmp_path).returncode == 0
    assert version(tmp_path, "--check").stdout == ""
    written = "".join((tmp_path / file.relative_to(REPOSITORY)).read_text() for file in PLACES)
    assert VERSION not in re.findall(r'(?:==|version(?:__)? = ")([\d.]+)"', written)
    assert written.count('==9.8.7"') >= 7


def test_the_citation_is_of_this_version_and_names_the_paper():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == VERSION
    (paper,) = citation["references"]
    assert f"doi.org/{paper['doi']}" in (REPOSITORY / "docs" / "how_it_works.md").read_text()
    assert paper["title"] in (REPOSITORY / "docs" / "how_it_works.md").read_text()
