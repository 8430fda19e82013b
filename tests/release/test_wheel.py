"""The wheel as others install it: in an environment of its own, without the checkout.

What Ballast depends on is taken from the environment of the tests, which `make release` does not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from ballast.daemon.version import ballast_version
from ballast_images.zipapp import agent_archive, agent_sources

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 300


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        command,
        cwd="/",
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def succeed(*command: str | Path, **environment: str) -> str:
    result = run(*command, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    options = ("--wheel", "--no-isolation", "--outdir", directory)
    succeed(sys.executable, "-m", "build", *options, ROOT)
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of programs of an environment with the wheel in it."""
    environment = tmp_path_factory.mktemp("venv")
    succeed(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    succeed(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel)
    (packages,) = environment.glob("lib/python*/site-packages")
    # Of an environment that is named like this the packages are found, not the checkout, which is
    # in it by a file that only an environment's own interpreter reads.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = succeed(python, "-c", "import ballast; print(ballast.__file__)")
    assert where.startswith(str(packages))
    return python.parent


def test_the_wheel_holds_the_four_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    prefix = f"ballast-{ballast_version()}"
    tops = {name.split("/")[0] for name in names} - {f"{prefix}.dist-info", f"{prefix}.data"}
    assert tops == {"ballast", "ballast_agent", "ballast_images", "ballast_protocol"}
    assert not [name for name in names if name.endswith(".pyc") or "/tests/" in name]


def test_every_file_of_the_packages_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "protocol", "backend/ballast", "agent", "images"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("this is no git checkout")
    files = {
        path.partition("/")[2] for path in listed.stdout.splitlines() if (ROOT / path).exists()
    }
    assert {"ballast_images/guest_files/init", "ballast_images/guest_files/memtool.py"} <= files
    assert files <= names


def test_the_programs_run(installed: Path, tmp_path: Path) -> None:
    version = f"{ballast_version()}\n"
    assert succeed(installed / "ballast", "--version") == f"ballast {version}"
    assert succeed(installed / "ballast-agent", "--version") == f"ballast-agent {version}"
    assert "--plot" in succeed(installed / "ballast", "demo", "--help", COLUMNS="100")
    runtime = {"BALLAST_RUNTIME_DIR": str(tmp_path / "run"), "BALLAST_CACHE": str(tmp_path)}
    result = run(installed / "ballast", "doctor", **runtime)
    # A machine may lack something, which it says; it has shared memory.
    assert result.returncode in (0, 1), result.stderr
    assert "shared memory" in result.stdout
    assert "Traceback" not in result.stderr


def test_what_the_programs_read_is_there(installed: Path) -> None:
    code = (
        "from importlib.resources import files;"
        "print((files('ballast.bench') / 'data/inflate-linux-6.12.json').read_text()[:1],"
        " (files('ballast_images.guest_files') / 'init').read_text()[:2])"
    )
    assert succeed(installed / "python", "-c", code) == "{ #!\n"


def test_the_agent_is_packed_as_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    packed = tmp_path / "ballast-agent.pyz"
    succeed(installed / "ballast", "image", "agent", packed)
    assert packed.read_bytes() == agent_archive(agent_sources())
    assert succeed(sys.executable, "-I", packed, "--version").startswith("ballast-agent ")
