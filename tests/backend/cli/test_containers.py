from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ballast.cli.main import app
from ballast_images.container_images import BACKEND
from ballast_images.engine import ENGINE_VARIABLE
from ballast_protocol.errors import OperatorError

runner = CliRunner()


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH without engines."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
    return tmp_path


def run(*arguments: str) -> Result:
    return runner.invoke(app, arguments, catch_exceptions=True)


def engine(directory: Path, script: str) -> None:
    program = directory / "podman"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize("command", [("image", "containers"), ("demo", "--containers")])
def test_without_an_engine(command: tuple[str, ...]) -> None:
    result = run(*command)
    assert result.exit_code == 1
    assert isinstance(result.exception, OperatorError)
    assert "no container engine works here" in str(result.exception)
    assert "make engine" in result.exception.hint


def test_images_that_fail_to_build_say_why(path: Path) -> None:
    engine(path, 'case "$1" in build) echo "no space left" >&2; exit 125;; image) exit 1;; esac')
    result = run("image", "containers", "--base", "mine")
    assert isinstance(result.exception, OperatorError)
    assert "no space left" in str(result.exception)


def test_images_as_json(path: Path) -> None:
    engine(path, 'case "$*" in *Size*) echo 1000;; esac')
    found = json.loads(run("image", "containers", "--base", "mine", "--json").stdout)
    assert found[0] == {"image": BACKEND.name, "size-bytes": 1000, "built": True}


def test_the_demo_names_the_images_that_are_missing(path: Path) -> None:
    engine(path, 'case "$1" in image) exit 1;; esac')
    result = run("demo", "--containers")
    assert isinstance(result.exception, OperatorError)
    assert BACKEND.name in str(result.exception)
    assert "make images" in result.exception.hint


@pytest.mark.parametrize(
    "more",
    [("--vm", "web"), ("--plot", "x.svg"), ("--transport", "vfio-user"), ("--append", "quiet")],
)
def test_what_does_not_go_together(more: tuple[str, ...]) -> None:
    assert run("demo", "--containers", *more).exit_code == 2


def test_the_balloons_options_are_the_workers() -> None:
    assert run("launch", "web", "--keeper", "--target", "1G").exit_code == 2
