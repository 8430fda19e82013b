"""The worker's side: orders, and a keeper that dies. Integration tests have real processes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ballast.daemon import worker
from ballast.daemon.config import VmConfig
from ballast.daemon.kept import Kept
from ballast.daemon.serve import serving
from ballast.daemon.vm import VirtualMachine
from ballast.daemon.worker import KeeperLink, announce, check_left, recalled, remember
from ballast.keeper.channel import pair, receive, send
from ballast.keeper.client import KeeperStore, Takeover
from ballast.keeper.messages import decode, encode
from ballast.mqtt.config import make_config
from ballast.streams.fdstore import MemoryStore
from ballast_protocol.errors import OperatorError
from support.backend import until
from support.fds import none_left_open
from support.qmp_peer import qmp_client


class Link:
    """A worker's link, with the keeper's end in the hands of the test."""

    def __init__(self, machine: VirtualMachine, store: KeeperStore, keeper: socket.socket) -> None:
        self.machine, self.store, self.keeper = machine, store, keeper
        self.keepers: list[socket.socket] = []
        self.kept = machine.kept
        self.link = KeeperLink(store, self.kept, [machine], self._new_keeper)

    def _new_keeper(self) -> tuple[socket.socket, int]:
        if not self.keepers:
            raise FileNotFoundError("none")
        return self.keepers.pop(), 4711

    def heard(self) -> list[dict[str, str]]:
        """Return what the keeper has been told so far."""
        found = []
        while (received := receive(self.keeper)) is not None:
            found.append(received[0])
            for fd in received[1]:
                os.close(fd)
        return found


@pytest.fixture
async def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Link]:
    monkeypatch.setenv("BALLAST_RUNTIME_DIR", str(tmp_path))
    with none_left_open():
        keeper, theirs = pair()
        store = KeeperStore(theirs)
        kept = Kept("parent", Takeover(), os.getpid())
        async with serving([VmConfig(name="web")], store=store, left={}, kept=kept) as (machine,):
            assert isinstance(machine, VirtualMachine)
            link = Link(machine, store, keeper)
            yield link
            if not link.link._stopped.done():
                link.link._stopped.set_result(None)
            await link.link.until_stopped()
        store.close()
        link.keeper.close()


async def test_everything_is_left_with_the_keeper(link: Link) -> None:
    stored = {message["FDNAME"] for message in link.heard() if "FDSTORE" in message}
    assert stored >= {"web/lock", "web/listener", "web/qmp-listener", "web/agent-listener"}


async def test_a_connection_that_the_keeper_has_accepted(link: Link) -> None:
    ours, qemu = socket.socketpair()
    with qemu, ours:
        message = encode(CONNECTION=1, FDNAME="web/connection")
        send(link.keeper, message, [ours.fileno()])
        send(link.keeper, encode(CONNECTION=1, FDNAME="unknown/connection"), [ours.fileno()])
        await until(lambda: link.machine.vmm_pid is not None)
        link.heard()
        qemu.close()
        await until(lambda: {"FDSTOREREMOVE": "1", "FDNAME": "web/connection"} in link.heard())


async def test_a_failed_upgrade_is_told(link: Link, caplog: pytest.LogCaptureFixture) -> None:
    link.keeper.send(encode(FAILED="version 9", ATTEMPTS=3))
    await until(lambda: bool(link.kept.status()["upgrade-error"]))
    assert link.kept.status()["upgrade-error"] == "version 9"
    assert link.kept.status()["upgrade-attempts"] == 3
    assert "the upgrade has failed: version 9" in caplog.text
    link.kept.ask = link.store.ask_for_upgrade
    link.kept.upgrade()
    assert {"RELOAD": "1"} in link.heard()


async def test_what_the_keeper_cannot_hold_is_told(
    link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    link.keeper.send(encode(REJECTED="web/memory.9"))
    await until(lambda: "cannot hold web/memory.9" in caplog.text)


async def test_an_order_to_stop(link: Link) -> None:
    link.keeper.send(encode(STOP=1))
    await link.link.until_stopped()


async def test_an_order_to_leave_is_obeyed_at_once(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[str] = []
    monkeypatch.setattr(worker, "leave", left.append)
    link.keeper.send(encode(LEAVE=1))
    await until(lambda: bool(left))


async def test_a_keeper_that_dies_is_replaced(
    link: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "RECONNECT_SECONDS", 0.02)
    lock = link.machine.paths.lock
    ours, qemu = socket.socketpair()
    link.machine.offer(ours)
    before = {message["FDNAME"] for message in link.heard() if "FDSTORE" in message}
    link.keeper.close()
    await until(lambda: link.kept.keeper_pid is None)
    assert "is gone. VMs go on" in caplog.text
    assert lock.read_text() == f"{os.getpid()}\n"
    with pytest.raises(OperatorError):
        link.kept.upgrade()
    link.keeper, theirs = pair()
    link.keepers.append(theirs)
    await until(lambda: link.kept.keeper_pid == 4711)
    assert lock.read_text() == "4711\n"
    messages = link.heard()
    assert messages[0]["ATTACH"] == "serving"
    assert {message["FDNAME"] for message in messages if "FDSTORE" in message} == before
    assert messages[-1] == {"READY": "1"}
    # And it is obeyed.
    link.keeper.send(encode(STOP=1))
    await link.link.until_stopped()
    qemu.close()


async def test_without_keeper_and_qemu_there_is_nothing_to_do(
    link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    link.keeper.close()
    await link.link.until_stopped()
    assert "no QEMU is there" in caplog.text


async def test_a_keeper_that_has_no_use_for_us(
    link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    link.keeper.send(encode(REFUSED="worker 7 is at work"))
    await until(lambda: "does not take us: worker 7 is at work" in caplog.text)


async def test_operators_who_come_soon_hear_of_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BALLAST_RUNTIME_DIR", str(tmp_path))
    with MemoryStore() as store:
        kept = Kept("parent", Takeover("restart", "was killed by SIGKILL"), os.getpid())
        kept.gap_seconds = 0.25
        async with serving([VmConfig(name="web")], store=store, kept=kept) as machines:
            announce(kept, machines)
            async with qmp_client(machines[0].paths.qmp) as client, asyncio.timeout(20):
                event = await client.events.get()
    assert event["event"] == "BALLAST_RESTARTED"
    assert event["data"] == {"reason": "was killed by SIGKILL", "gap-seconds": 0.25}
    assert "took over after 250 ms: was killed by SIGKILL" in caplog.text


# The configuration


def test_the_configuration_is_kept_for_a_successor() -> None:
    mqtt = make_config({"url": "mqtts://me@example.org", "password-file": "/p", "host": "here"})
    configs = [
        VmConfig(name="web", target=1 << 30, socket_path=Path("/x")),
        VmConfig(name="db", mqtt=mqtt),
    ]
    with none_left_open(), MemoryStore() as store:
        remember(store, configs)
        left = store.take_all()
        assert recalled(left) == configs
        for fd in left.values():
            os.close(fd)


@pytest.mark.parametrize("text", ["", "{", '[{"name": "web", "colour": 1}]', '{"a": 1}'])
def test_a_configuration_that_makes_no_sense_is_not_used(text: str) -> None:
    fd = os.memfd_create("config")
    os.write(fd, text.encode())
    assert recalled({"config": fd}) == []
    os.close(fd)
    assert recalled({}) == []


def test_a_vm_in_use_has_to_stay_in_the_configuration() -> None:
    configs = [VmConfig(name="web")]
    check_left({"web/connection": 1, "db/listener": 2}, configs)
    with pytest.raises(OperatorError, match="'db' is in use"):
        check_left({"db/connection": 1}, configs)


def test_messages_of_both_ends_are_the_same() -> None:
    go = encode(GO=1, KIND="restart", REASON="x", SINCE=5, RESTARTS=2, UPGRADE_ERROR="y")
    assert Takeover.parse(decode(go)) == Takeover("restart", "x", 5, 2, upgrade_error="y")
    assert json.dumps(decode(go))
