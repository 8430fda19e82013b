from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import IO, Any

import pytest

from ballast_images.guest_files import shell


class Host:
    """The host's end of the service's port."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines: IO[bytes] = connection.makefile("rb")

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def ask(self, **request: Any) -> None:
        self.send(json.dumps(request).encode() + b"\n")

    def read(self) -> dict[str, Any]:
        line = self._lines.readline()
        while line == b"\n":
            line = self._lines.readline()
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        self._lines.close()
        self._connection.close()


@pytest.fixture
def host() -> Iterator[Host]:
    ours, theirs = socket.socketpair()
    service = shell.Service(theirs.fileno())
    thread = threading.Thread(target=service.serve, kwargs={"is_serial": False})
    thread.start()
    connection = Host(ours)
    yield connection
    connection.close()
    thread.join()
    theirs.close()


def test_it_says_that_it_is_ready_and_again_when_asked(host: Host) -> None:
    first = host.read()["ready"]
    host.ask(hello=True)
    assert host.read()["ready"] == first
    assert set(first) == {"session", "boot_id", "release"}


def test_output_and_status_come_back(host: Host) -> None:
    host.read()
    host.ask(id=1, argv=["sh", "-c", "cat; echo err >&2; exit 3"], stdin="ä\n", timeout=30)
    assert host.read() == {
        "id": 1,
        "status": 3,
        "stdout": "ä\n",
        "stderr": "err\n",
        "timed_out": False,
    }


def test_commands_run_side_by_side(host: Host, tmp_path_factory: pytest.TempPathFactory) -> None:
    host.read()
    fifo = tmp_path_factory.mktemp("fifo") / "fifo"
    # The first ends only because the second runs.
    host.ask(id=1, argv=["sh", "-c", f"mkfifo {fifo}; echo $(cat {fifo})"], timeout=30)
    host.ask(id=2, argv=["sh", "-c", f"until [ -p {fifo} ]; do :; done; echo x >{fifo}"])
    answers = {answer["id"]: answer["stdout"] for answer in (host.read(), host.read())}
    assert answers == {1: "x\n", 2: ""}


def test_a_command_and_its_children_end_when_their_time_is_up(host: Host) -> None:
    host.read()
    host.ask(id=1, argv=["sh", "-c", "sleep 1000 & sleep 1000"], timeout=0.05)
    answer = host.read()
    assert answer["timed_out"]
    assert answer["status"] == -9


def test_a_program_that_is_not_there_is_an_answer_too(host: Host) -> None:
    host.read()
    host.ask(id=9, argv=["/no/such/program"])
    answer = host.read()
    assert answer["status"] == shell.STATUS_NOT_STARTED
    assert "/no/such/program" in answer["stderr"]


def test_output_is_bounded(host: Host) -> None:
    host.read()
    size = 2 * shell.MAX_OUTPUT_BYTES
    host.ask(id=1, argv=["sh", "-c", f"head -c {size} /dev/zero | tr '\\0' x"], timeout=30)
    assert host.read()["stdout"] == "x" * shell.MAX_OUTPUT_BYTES


@pytest.mark.parametrize("noise", [b"\n\n", b'"half a requ\n', b"[1, 2]\n", b"null\n", b"\xff\n"])
def test_noise_is_passed_over(host: Host, noise: bytes) -> None:
    host.read()
    host.send(noise)
    host.ask(id=4, argv=["true"])
    assert host.read()["id"] == 4


def test_requests_may_come_in_pieces(host: Host) -> None:
    host.read()
    request = json.dumps({"id": 5, "argv": ["true"]}).encode()
    host.send(request[:7])
    host.send(request[7:] + b"\n" + request.replace(b"5", b"6") + b"\n")
    assert {host.read()["id"], host.read()["id"]} == {5, 6}
