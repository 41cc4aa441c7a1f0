"""benchmarks/regression.py compares this tree with a commit's, in turns; what a tree takes is a double's word."""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path

import pytest
from click import ClickException
from click.testing import CliRunner

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def regression(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("regression")


@pytest.fixture
def repository(tmp_path):
    """A commit that is slow, and a tree that has become twice as fast since."""
    root = tmp_path / "repository"
    root.mkdir()
    (root / "speed").write_text("10")
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for words in (["init", "--quiet"], ["add", "speed"], [*identity, "commit", "--quiet", "--message", "slow"]):
        subprocess.run(["git", "-C", root, *words], check=True)
    (root / "speed").write_text("20")
    return root


def test_both_trees_are_measured_in_turns_and_the_commits_own_is_gone_afterwards(
    regression, repository, tmp_path, monkeypatch
):
    measured = []

    def in_tree(tree, threads, *words):
        speed = float((tree / "speed").read_text())
        measured.append(tree)
        if "--work-dir" in words:
            step = {"mode": "train", "time": 4 / speed, "data_time": 0.0}
            folder = Path(words[words.index("--work-dir") + 1])
            (folder / "log.jsonl").write_text(3 * (json.dumps(step) + "\n"))
        else:
            Path(words[words.index("--json") + 1]).write_text(json.dumps({"distilled_s": 1 / speed}))

    monkeypatch.setattr(regression, "ROOT", repository)
    monkeypatch.setattr(regression, "in_tree", in_tree)
    out = tmp_path / "out.jsonl"
    words = ["--baseline", "HEAD", "--rounds", "2", "--images", "4", "--out", str(out)]
    done = CliRunner().invoke(regression.main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["measured"] for line in lines] == [
        "run RetinaNet", "run FasterRCNN", "step RetinaNet", "step FasterRCNN"
    ]  # fmt: skip
    for line in lines:
        assert (line["ratio"], line["least"], line["largest"]) == pytest.approx((2, 2, 2))
        assert line["per_second"] == pytest.approx([20, 20])
        assert line["baseline_per_second"] == pytest.approx([10, 10])
    baseline = measured[0]
    assert measured == 4 * [baseline, repository, repository, baseline]
    assert not baseline.exists()
    listed = subprocess.run(["git", "-C", repository, "worktree", "list"], capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) == 1


def test_what_is_no_commit_is_refused_by_name(regression, repository, monkeypatch):
    monkeypatch.setattr(regression, "ROOT", repository)
    done = CliRunner().invoke(regression.main, ["--baseline", "no-such-commit"])
    assert done.exit_code == 1
    assert "--baseline no-such-commit: fatal: " in done.output


def test_a_tree_is_run_on_its_own_packages(regression, tmp_path):
    names = [f"cskd_{name}" for name in ("core", "data", "train", "deploy")]
    for name in names:
        package = tmp_path / "packages" / name.replace("_", "-") / "src" / name
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
    found = "[sys.modules[name].__file__.index(sys.argv[1]) for name in sys.argv[2:]]"
    regression.in_tree(tmp_path, 1, "-c", f"import sys, {', '.join(names)}; {found}", str(tmp_path), *names)
    with pytest.raises(ClickException, match=r"no-such-module failed:\n.*No module named"):
        regression.in_tree(tmp_path, 1, "-m", "no-such-module")
