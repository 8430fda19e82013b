from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from ballast.daemon import keeping
from ballast.daemon.config import VmConfig
from ballast.keeper.supervisor import KEEPER_FD_VARIABLE
from ballast_protocol.errors import OperatorError, TimedOutError
from support.fds import none_left_open


def test_the_channel_is_found_in_the_environment() -> None:
    with none_left_open():
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            found = keeping.channel_from({KEEPER_FD_VARIABLE: str(theirs.detach())})
            assert found is not None
            assert not found.get_inheritable()
            found.close()
    assert keeping.channel_from({}) is None


def test_a_channel_that_is_none() -> None:
    fd = os.eventfd(0)
    with pytest.raises(OperatorError, match="no channel to a keeper") as caught:
        keeping.channel_from({KEEPER_FD_VARIABLE: str(fd)})
    assert caught.value.hint
    os.close(fd)


def test_a_keeper_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "keeper.sock"
    told: list[str] = []
    with (
        none_left_open(),
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
    ):
        listener.bind(str(path))

        def listen() -> None:
            while not told:
                time.sleep(0.01)
            listener.listen()

        thread = threading.Thread(target=listen)
        thread.start()
        sock = keeping.wait_for_keeper(path, 60, told.append)
        thread.join()
        server, _ = listener.accept()
        assert server.recv(100) == b"ATTACH=new"
        server.close()
        sock.close()
    assert told == [f"waiting for a keeper at {path}"]


def test_a_keeper_that_does_not_come(tmp_path: Path) -> None:
    with none_left_open(), pytest.raises(TimedOutError, match="no keeper listens") as caught:
        keeping.wait_for_keeper(tmp_path / "keeper.sock", 0.0, lambda text: None)
    assert "ballast keeper" in caught.value.hint


def test_a_path_that_can_be_no_keeper_s(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="cannot connect to a keeper"):
        keeping.wait_for_keeper(tmp_path / ("x" * 200), 0.0, lambda text: None)


def test_a_parent_is_given_what_was_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def execv(program: str, command: list[str]) -> None:
        commands.append(command)
        raise SystemExit

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr("sys.argv", ["ballast", "serve", "web", "--fd", "3"])
    ours, theirs = socket.socketpair()
    config = VmConfig(name="web", fd=theirs.fileno())
    with ours, theirs, pytest.raises(SystemExit):
        keeping.become_parent([config, VmConfig(name="db")])
    (command,) = commands
    assert command[3:5] == ["ballast.keeper", f"--hold=web/connection={config.fd}"]
    assert command[5] == "--"
    assert command[-4:] == ["serve", "web", "--fd", "3"]


def test_what_was_inherited_has_to_be_a_socket() -> None:
    fd = os.eventfd(0)
    with pytest.raises(OperatorError, match="is not a socket"):
        keeping.become_parent([VmConfig(name="web", fd=fd)])
    os.close(fd)
