from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ballast_agent.channel import VSOCK_PORT, Channel, Device, FirstOf, NamedPort, UnixSocket, Vsock
from ballast_protocol.errors import OperatorError


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    ours, host = socket.socketpair()
    channel = Channel(ours.detach(), revives=True)
    with host:
        yield channel, host
    channel.close()


def test_reading_tells_nothing_yet_from_nobody_there(pair: tuple[Channel, socket.socket]) -> None:
    channel, host = pair
    assert channel.read() is None
    assert channel.host_is_there()
    host.send(b"abc")
    host.close()
    assert channel.read() == b"abc"
    assert channel.read() == b""
    assert not channel.host_is_there()


def test_writing_takes_what_fits(pair: tuple[Channel, socket.socket]) -> None:
    channel, host = pair
    written = channel.write(bytes(1 << 22))
    assert 0 < written < 1 << 22
    assert channel.write(b"more") == 0
    assert len(host.recv(1 << 22, socket.MSG_WAITALL | socket.MSG_DONTWAIT)) > 0


def test_writing_to_nobody_is_a_connection_error(pair: tuple[Channel, socket.socket]) -> None:
    channel, host = pair
    host.close()
    with pytest.raises(ConnectionError):
        channel.write(b"x")


def make_port(root: Path, device: str, name: str | None) -> None:
    folder = root / "sys/class/virtio-ports" / device
    folder.mkdir(parents=True)
    if name is not None:
        (folder / "name").write_text(name + "\n")


def test_a_port_is_found_by_the_name_that_sysfs_tells(tmp_path: Path) -> None:
    make_port(tmp_path, "vport0p0", None)
    make_port(tmp_path, "vport1p1", "org.qemu.guest_agent.0")
    make_port(tmp_path, "vport2p1", "org.ballast.agent.0")
    port = NamedPort("org.ballast.agent.0", tmp_path / "sys", tmp_path / "dev")
    assert port.find() == tmp_path / "dev/vport2p1"
    assert port.open() is None  # sysfs was faster than devtmpfs


def test_a_port_is_found_by_the_link_that_udev_makes(tmp_path: Path) -> None:
    port = NamedPort("org.ballast.agent.0", tmp_path / "sys", tmp_path / "dev")
    assert port.find() is None
    assert port.open() is None
    (tmp_path / "dev/virtio-ports").mkdir(parents=True)
    (tmp_path / "dev/virtio-ports/org.ballast.agent.0").symlink_to("/dev/null")
    channel = port.open()
    assert channel is not None
    assert channel.revives
    channel.close()


def test_a_device_has_to_be_one(tmp_path: Path) -> None:
    assert Device(str(tmp_path / "absent")).open() is None
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError, match="not a character device"):
        Device(str(tmp_path / "file")).open()


@pytest.mark.skipif(os.getuid() == 0, reason="root may open everything")
def test_a_device_of_root_has_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0)
    with pytest.raises(OperatorError) as caught:
        Device(str(tmp_path / "file")).open()
    assert "run as root" in caught.value.hint


def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    endpoint = UnixSocket(path)
    assert str(endpoint) == f"unix:{path}"
    assert endpoint.open() is None
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        assert endpoint.open() is None  # nobody listens
        server.listen()
        channel = endpoint.open()
        assert channel is not None
        assert not channel.revives
        channel.close()


def test_a_unix_socket_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="too long"):
        UnixSocket(str(tmp_path / ("x" * 200))).open()


def test_the_first_place_that_is_there_is_taken(tmp_path: Path) -> None:
    absent, present = UnixSocket(str(tmp_path / "absent")), Device("/dev/null")
    places = FirstOf((absent, present))
    assert str(places) == f"unix:{tmp_path / 'absent'} or /dev/null"
    channel = places.open()
    assert channel is not None
    assert channel.revives
    channel.close()
    assert FirstOf((absent, absent)).open() is None


VSOCK_LOCAL = 1
"""The context id of the machine itself."""


def listening_vsock() -> socket.socket:
    """Return a listening vsock on this machine, if it has any."""
    try:
        server = socket.socket(socket.AF_VSOCK)
    except (AttributeError, OSError) as error:
        pytest.skip(f"this machine has no vsock: {error}")
    try:
        server.bind((VSOCK_LOCAL, socket.VMADDR_PORT_ANY))
        server.listen()
    except OSError as error:
        server.close()
        pytest.skip(f"this machine has no vsock: {error}")
    return server


def test_vsock() -> None:
    with listening_vsock() as server:
        server.settimeout(20)
        endpoint = Vsock(server.getsockname()[1], VSOCK_LOCAL)
        channel = endpoint.open()
        if channel is None:
            pytest.skip("this machine's vsock has no loopback")
        host, _ = server.accept()
        with host:
            assert channel.write(b"hello") == 5
            assert host.recv(10) == b"hello"
        assert not channel.revives
        channel.close()
    assert endpoint.open() is None


def test_no_vsock_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Vsock(1, VSOCK_LOCAL).open() is None
    monkeypatch.delattr(socket, "AF_VSOCK", raising=False)
    assert Vsock(1).open() is None
    assert str(Vsock(VSOCK_PORT)) == "vsock:2:5170"
