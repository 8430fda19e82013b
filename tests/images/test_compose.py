from __future__ import annotations

from pathlib import Path

import pytest

from ballast_images.compose import Stack, read_project, run_arguments
from ballast_images.container_images import checkout
from ballast_images.engine import Engine, EngineError
from ballast_protocol.errors import InternalError, OperatorError

FILE = checkout() / "docker" / "compose.yaml"


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    program = tmp_path / "podman"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/log\necho 0\n')
    program.chmod(0o755)
    return Stack(
        Engine("podman", program, run_options=("--ulimit", "x=1")), read_project(FILE), "p"
    )


def told(tmp_path: Path) -> list[str]:
    return (tmp_path / "log").read_text().splitlines()


def test_every_service_is_without_root_and_without_rights() -> None:
    for name, service in read_project(FILE).services.items():
        words = " ".join(run_arguments(service, "p"))
        for expected in (
            "--user 65534:65534",
            "--read-only",
            "--cap-drop ALL",
            "--security-opt no-new-privileges:true",
            "--memory ",
        ):
            assert expected in words, name


def test_the_two_containers_of_a_vm_share_a_directory_and_nothing_else() -> None:
    services = read_project(FILE).services
    for name in ("vm", "balloon"):
        assert services[name]["volumes"] == ["run:/run/ballast"]
    assert services["vm"]["network_mode"] == "none"
    assert services["balloon"]["networks"] == services["broker"]["networks"] == ["mqtt"]
    assert not services["vm"].keys() & {"pid", "ipc", "devices", "privileged"}


def test_a_service_is_run_as_the_file_says(stack: Stack) -> None:
    command = stack.command("balloon", "--detach", mem_limit="99m")
    text = " ".join(command[1:])
    assert text.startswith("run --ulimit x=1 --name p-balloon --detach --network-alias balloon ")
    assert "--memory 99m" in text
    assert "--volume p-run:/run/ballast" in text
    assert "--network p-mqtt" in text
    image = command.index("localhost/ballast:latest")
    assert command[image + 1 : image + 3] == ["serve", "web"]


def test_everything_is_removed_at_the_end(stack: Stack, tmp_path: Path) -> None:
    with stack:
        stack.start("broker")
        stack.start("vm")
        assert stack.end("vm", timeout_seconds=7) == 0
    lines = told(tmp_path)
    assert lines[:2] == ["network create p-mqtt", "volume create p-run"]
    assert "stop --time=7 p-vm" in lines
    assert lines[-6:] == [
        *("kill p-vm", "rm --force p-vm", "kill p-broker", "rm --force p-broker"),
        *("volume rm --force p-run", "network rm p-mqtt"),
    ]


def test_what_was_made_is_removed_if_the_rest_cannot_be(tmp_path: Path) -> None:
    program = tmp_path / "podman"
    script = f'#!/bin/sh\necho "$@" >> {tmp_path}/log\ntest "$1 $2" != "volume create"\n'
    program.write_text(script)
    program.chmod(0o755)
    stack = Stack(Engine("podman", program), read_project(FILE), "p")
    with pytest.raises(EngineError, match="volume create"):
        stack.__enter__()
    assert told(tmp_path)[-1] == "network rm p-mqtt"


def test_a_container_that_was_killed_leaves_its_name(stack: Stack, tmp_path: Path) -> None:
    with stack:
        stack.start("balloon")
        stack.kill("balloon")
        stack.start("balloon", image="localhost/ballast:next")
    lines = told(tmp_path)
    assert lines[3:5] == ["kill p-balloon", "rm --force p-balloon"]
    assert "localhost/ballast:next serve web" in lines[5]


def test_a_key_that_is_not_translated_is_refused() -> None:
    with pytest.raises(InternalError, match="'pid'"):
        run_arguments({"image": "x", "pid": "host"}, "p")


@pytest.mark.parametrize("text", ["", "a: [", "x: 1"])
def test_what_is_no_compose_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(text)
    with pytest.raises(OperatorError, match="is no Compose file"):
        read_project(path)
