"""The documentation is built as `make docs` builds it: warnings are errors, and no page needs a network to be read."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from cskd_core.plan import DistillPlan
from cskd_deploy.cli import COMMANDS as DEPLOY
from cskd_train.cli import COMMANDS as TRAIN

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"


def build(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build a site into `folder / "html"` with the options of the Makefile."""
    line = re.search(r"-m (sphinx .*) docs docs/_build/html$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)[1]
    words = [str(folder / "doctrees") if word == "docs/_build/doctrees" else word for word in line.split()]
    command = [sys.executable, "-m", *words, str(source), str(folder / "html")]
    return subprocess.run(command, capture_output=True, text=True, timeout=550)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(DOCS, folder)
    assert done.returncode == 0, done.stderr
    return folder / "html"


class Fetched(HTMLParser):
    """What a browser fetches by itself to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source") and values.get("src"):
            self.addresses.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "preload", "icon"):
            self.addresses.append(values["href"])


def test_nothing_is_fetched_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 35
    for page in pages:
        reader = Fetched()
        reader.feed(page.read_text())
        assert reader.addresses
        for address in reader.addresses:
            assert not re.match(r"(https?:)?//", address), f"{page}: {address}"
            assert address.startswith("data:") or (page.parent / address.partition("?")[0]).is_file()
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", sheet.read_text())


def test_every_page_is_in_the_site_and_reached_from_its_contents(site):
    sources = [path.relative_to(DOCS) for path in DOCS.rglob("*.md") if path.relative_to(DOCS).parts[0] != "_build"]
    pages = {path.with_suffix(".html").as_posix() for path in sources}
    index = (site / "index.html").read_text()
    linked = set(re.findall(r'class="reference internal" href="([\w/]+\.html)"', index))
    assert pages - {"index.html"} <= linked


def test_formulas_are_mathml(site):
    text = (site / "how_it_works.html").read_text()
    assert len(re.findall(r"<math\b", text)) > 15
    assert "merror" not in text
    assert (site / "api.html").read_text().count('display="block"') >= 1


def keys(kind: type, where: str) -> Iterator[str]:
    """Every key of a plan, blocks and what is in them."""
    for name, hint in get_type_hints(kind).items():
        if name in kind.__dataclass_fields__:
            yield f"{where}.{name}"
            for inner in (hint, *get_args(hint)):
                if dataclasses.is_dataclass(inner):
                    yield from keys(inner, f"{where}.{name}")


def test_every_key_of_a_plan_is_in_the_settings(site):
    text = (site / "settings.html").read_text()
    named = list(keys(DistillPlan, "distill"))
    assert "distill.teacher.class_map" in named
    assert len(named) > 35
    assert set(named) <= set(re.findall(r'<td><p><code[^>]*><span class="pre">([\w.]+)</span></code></p></td>', text))
    assert "find_unused_parameters" in text
    assert "EMAHook" in text


def test_every_command_has_its_options(site):
    for page, commands, option in (
        ("cskd_train", TRAIN, "--checkpoint-every"),
        ("cskd_deploy", DEPLOY, "--keep-float"),
    ):
        text = (site / f"{page}.html").read_text()
        assert [name for name in commands if f'id="{page.replace("_", "-")}-{name}"' not in text] == []
        assert option in text


def test_a_warning_is_an_error(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "conf.py").write_text('extensions = ["myst_parser"]\n')
    (source / "index.md").write_text("# Title\n")
    assert build(source, tmp_path / "sound").returncode == 0
    (source / "index.md").write_text("# Title\n\n[nowhere](nowhere.md)\n")
    done = build(source, tmp_path / "broken")
    assert done.returncode == 1
    assert "nowhere" in done.stderr
