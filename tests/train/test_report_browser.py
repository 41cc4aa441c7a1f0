"""A report in a real browser: it says nothing, asks nobody, and is legible on a telephone, in the dark and on paper."""

from __future__ import annotations

import contextlib
import html
import json
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest

import cskd_train

from .reported import make_runs

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"needs one of the browsers {', '.join(BROWSERS)}"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory, trained, tiny_config, shapes_root):
    run = make_runs(tmp_path_factory.mktemp("runs"), trained, tiny_config, shapes_root)
    return cskd_train.write_report(run, output=tmp_path_factory.mktemp("page") / "page.html", images=2, device="cpu")


def browse(address, folder, *options):
    """What the browser makes of a page once it is loaded, and what it says meanwhile."""
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
             f"--user-data-dir={folder / 'profile'}", "--no-first-run", "--disable-background-networking",
             "--allow-file-access-from-files", "--virtual-time-budget=3000", *options, "--dump-dom",
             address]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=150, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_the_browser_says_nothing_and_asks_nobody(page, tmp_path):
    log = tmp_path / "net.json"
    dom, said = browse(page.file.as_uri(), tmp_path, f"--log-net-log={log}")
    assert said == []
    assert "</html>" in dom
    asked = re.findall(r'"url":"([^"]*)"', log.read_text())
    assert not [url for url in asked if urllike(url) and "page.html" not in url]
    figures = html.unescape(re.search(r'<script type="application/json" id="figures">(.*?)</script>', dom, re.S)[1])
    for one in json.loads(figures)["detectors"]:
        assert f"<td>{one['name']}</td>" in dom
        assert f'<td class="number">{one["best"]["bbox_mAP"]:.3f}</td>' in dom


def urllike(url):
    """Whether a URL is none of the browser's own start-up, which goes to its maker's hosts."""
    return not re.match(r"https?://([\w-]+\.)*(google|googleapis|gstatic|gvt1|googleusercontent)\.com/", url)


FRAME = """<!DOCTYPE html><iframe id="frame" src="{address}" style="width:{width}px;height:800px;border:0"></iframe>
<pre id="found"></pre><script>
frame.onload = () => {{
  const page = frame.contentDocument, body = page.body;
  const wide = [...page.querySelectorAll("body *")].filter(one => !one.closest(".scroll, svg, pre, .hidden")
    && one.getBoundingClientRect().right > {width} + 1).map(one => one.outerHTML.slice(0, 80));
  const text = page.querySelector("svg.chart text.tick"), box = text.getBoundingClientRect();
  const pictures = [...page.querySelectorAll("svg.picture use")].map(one => one.getBoundingClientRect().width);
  found.textContent = JSON.stringify({{
    across: page.scrollingElement.scrollWidth, wide, paper: frame.contentWindow.getComputedStyle(body).backgroundColor,
    ink: frame.contentWindow.getComputedStyle(body).color, letters: box.height, picture: Math.min(...pictures),
    tick: frame.contentWindow.getComputedStyle(text).fill
  }});
}};
</script>"""


def measured(page: Path, folder: Path, width: int, *options: str):
    (outer := folder / "outer.html").write_text(FRAME.format(address=page.as_uri(), width=width))
    dom, said = browse(outer.as_uri(), folder, "--disable-web-security", *options)
    assert said == []
    return json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)[1]))


def luminance(colour):
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


def test_on_a_telephone_nothing_is_wider_than_it_and_charts_are_legible(page, tmp_path):
    found = measured(page.file, tmp_path, 375)
    assert found["across"] <= 375
    assert found["wide"] == []
    assert found["letters"] >= 9.5  # pixels
    assert found["picture"] > 100
    assert luminance(found["paper"]) > 240
    assert luminance(found["ink"]) < 60


def test_in_the_dark_it_is_dark(page, tmp_path):
    found = measured(page.file, tmp_path, 1200, "--blink-settings=preferredColorScheme=0")
    assert luminance(found["paper"]) < 40
    assert luminance(found["ink"]) > 200
    assert luminance(found["tick"]) > 140


def test_on_paper_it_is_light_and_without_its_links(page, tmp_path):
    out = tmp_path / "page.pdf"
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
             "--blink-settings=preferredColorScheme=0", f"--print-to-pdf={out}", page.file.as_uri()]  # fmt: skip
    subprocess.run(words, capture_output=True, timeout=150, check=True)
    content = out.read_bytes()
    drawn = b""
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", content, re.S):
        with contextlib.suppress(zlib.error):
            drawn += zlib.decompressobj().decompress(stream)
    filled = [tuple(map(float, one)) for one in re.findall(rb"([\d.]+) ([\d.]+) ([\d.]+) rg\b", drawn)]
    assert any(max(one) < 0.15 for one in filled)  # ink
    assert not [one for one in filled if max(one) < 0.15 and one[0] != one[2]]  # the paper of the dark is bluish
    assert content.count(b"/Page\n") >= 3
    assert b"/Subtype /Link" not in content
