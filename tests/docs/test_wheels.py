"""Wheels of all packages, made and installed by the lines of the Dockerfile, hold all that the commands need."""

from __future__ import annotations

import email
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
VERSION = (REPOSITORY / "VERSION").read_text().strip()
PACKAGES = ("cskd-core", "cskd-data", "cskd-train", "cskd-deploy")
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()


def run(*words: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def runs(target: str) -> list[list[str]]:
    """The words of each `RUN pip` line of a stage of the Dockerfile."""
    stage = re.search(rf"^FROM \S+ AS {target}\n(.*?)(?=^FROM|\Z)", DOCKERFILE, flags=re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for line in re.findall(r"^RUN pip (.*)$", stage[1], flags=re.MULTILINE)]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    """The folder of wheels of the first stage, made of copies: a build leaves files beside the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(
            REPOSITORY / "packages" / name,
            source / "packages" / name,
            ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"),
        )
    ((verb, *words),) = runs("wheels")
    folder = source / "wheels"
    words = [str(folder) if word == "/wheels" else word for word in words]
    run("-m", "pip", verb, "--quiet", "--no-build-isolation", "--no-index", *words, cwd=source)
    return folder


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory) -> Path:
    """A folder with what the wheels hold, by the names that the Dockerfile's `train` stage installs them by."""
    folder = tmp_path_factory.mktemp("installed")
    words = [word for line in runs("train") for word in line if "/wheels/" in word]
    globs = [re.search(r"/wheels/(\S+\.whl)", word)[1] for word in words]
    files = [path for glob in globs for path in wheels.glob(glob)]
    assert len(files) == len(PACKAGES)
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, *files, cwd=folder)
    return folder


@pytest.mark.parametrize("name", PACKAGES)
def test_a_wheel_holds_every_file_of_its_sources_and_no_other(wheels, name):
    (wheel,) = wheels.glob(f"{name.replace('-', '_')}-{VERSION}-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {one for one in archive.namelist() if ".dist-info/" not in one}
        metadata = email.message_from_bytes(archive.read(f"{name.replace('-', '_')}-{VERSION}.dist-info/METADATA"))
    source = REPOSITORY / "packages" / name / "src"
    there = {path for path in source.rglob("*") if path.is_file()}
    files = {path.relative_to(source).as_posix() for path in there if path.suffix not in (".pyc", ".pyo")}
    assert held == {file for file in files if ".egg-info/" not in file}
    assert f"{name.replace('-', '_')}/py.typed" in held
    assert metadata["Version"] == VERSION
    assert metadata.get_payload().startswith(f"# {name}\n")


def test_both_commands_run_from_the_wheels_alone(installed, tmp_path):
    for name in ("cskd-train", "cskd-deploy"):
        command = [installed / "bin" / name]
        assert run(*command, "--version", cwd=tmp_path, PYTHONPATH=str(installed)) == f"{name}, version {VERSION}\n"
        assert "Examples:" in run(*command, "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert (installed / "cskd_train" / "configs" / "_base_" / "retinanet_r50.py").is_file()
    code = "import cskd_core as c, cskd_data as a, cskd_train as t, cskd_deploy as d; print(c, a, t, d, sep='\\n')"
    places = run("-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).splitlines()
    assert [f"'{installed}/" in place for place in places] == [True] * 4


def test_the_edge_image_gets_no_training_package():
    words = [word for line in runs("edge") for word in line]
    assert [word for word in words if "cskd" in word] == [
        "/wheels/cskd_data-*.whl",
        "$(echo /wheels/cskd_deploy-*.whl)[ort]",
    ]


def test_the_training_image_is_made_as_make_env_makes_an_environment():
    makefile = (REPOSITORY / "Makefile").read_text()
    first, second, _ = runs("train")
    for line in (first, second):
        words = line[line.index("/constraints.txt") + 1 :]
        assert f"$(PIP) {shlex.join(words)}".replace("'", '"') in makefile
