"""Finding an engine that works: scripts play docker and podman."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ballast_images.engine import (
    ENGINE_VARIABLE,
    Engine,
    EngineError,
    execute,
    find_engine,
    prove,
)
from ballast_protocol.errors import OperatorError, TimedOutError


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH without engines, but with a shell."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
    for name in ("PIP_CERT", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    return directory


def engine(directory: Path, name: str, script: str) -> Path:
    """Write an engine that keeps a record of what it is told and then runs `script`."""
    program = directory / name
    program.write_text(f'#!/bin/sh\necho "$@" >> {directory}/{name}.log\n{script}\n')
    program.chmod(0o755)
    return program


def told(directory: Path, name: str) -> list[str]:
    return (directory / f"{name}.log").read_text().splitlines()


def test_without_an_engine_it_says_so_and_what_to_do() -> None:
    with pytest.raises(OperatorError, match="docker is not installed; podman is not") as caught:
        find_engine()
    assert "make engine" in caught.value.hint


def test_a_client_without_a_daemon_is_passed_over(programs: Path) -> None:
    engine(programs, "docker", "echo 'Cannot connect to the daemon' >&2; exit 1")
    with pytest.raises(OperatorError, match=r"docker does not answer .*Cannot connect"):
        find_engine()
    engine(programs, "podman", "")
    assert find_engine().name == "podman"
    with pytest.raises(OperatorError, match="docker does not answer"):
        find_engine("docker")


def test_the_environment_chooses(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine(programs, "docker", "")
    engine(programs, "podman", "")
    assert find_engine().name == "docker"
    monkeypatch.setenv(ENGINE_VARIABLE, "podman")
    assert find_engine().name == "podman"
    monkeypatch.setenv(ENGINE_VARIABLE, "lxc")
    with pytest.raises(OperatorError, match="'lxc' is no engine"):
        find_engine()


def test_an_engine_that_works_is_used_as_it_is(programs: Path) -> None:
    found = Engine("podman", engine(programs, "podman", ""))
    assert prove(found, "image") == found
    assert told(programs, "podman") == ["run --rm --entrypoint /bin/true image"]


def test_limits_and_runtimes_are_tried_in_turn(programs: Path) -> None:
    script = """
case "$*" in
  *--ulimit*--rm*) case "$*" in *"--runtime crun"*) exit 0;; esac;;
esac
echo "cannot raise limits" >&2; exit 126"""
    found = Engine("podman", engine(programs, "podman", script))
    for runtime in ("runc", "crun"):
        engine(programs, runtime, "")
    proved = prove(found, "image")
    assert proved.options == ("--runtime", "crun")
    assert proved.run_options[0] == "--ulimit"
    assert len(told(programs, "podman")) == 6


def test_an_engine_that_runs_nothing(programs: Path) -> None:
    found = Engine("docker", engine(programs, "docker", "echo 'not here' >&2; exit 126"))
    with pytest.raises(
        OperatorError, match=r"docker is here, but cannot run.* as it is: .*not here"
    ):
        prove(found, "image")
    assert len(told(programs, "docker")) == 2


def test_a_build_brings_its_certificates(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    monkeypatch.setenv("PIP_CERT", str(bundle))
    for name in ("docker", "podman"):
        found = Engine(name, engine(programs, name, ""))
        found.build(tmp_path, tmp_path / "Containerfile", "image", "--target", "x")
    (docker,), (podman,) = told(programs, "docker"), told(programs, "podman")
    assert f"--secret id=ca,src={bundle}" in docker
    assert "--isolation" not in docker
    assert "--isolation=chroot --format=docker" in podman
    assert podman.endswith(f"-t image --target x {tmp_path}")


def test_what_fails_says_what_it_said(programs: Path) -> None:
    program = engine(programs, "docker", "echo why >&2; exit 3")
    with pytest.raises(EngineError, match="status 3: why"):
        execute([str(program), "x"], 60)
    with pytest.raises(EngineError, match="cannot run"):
        execute([os.fspath(programs / "none")], 60)


def test_what_does_not_end(programs: Path) -> None:
    program = engine(programs, "docker", "while :; do :; done")
    with pytest.raises(TimedOutError, match="did not end in"):
        execute([str(program)], 0.2)
