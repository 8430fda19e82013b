from __future__ import annotations

import asyncio
import os
import stat
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from ballast.guest_link import pace
from ballast.guest_link.events import LinkEvent
from ballast.guest_link.link import GuestLink
from ballast_protocol.errors import OperatorError, TimedOutError
from ballast_protocol.guest import (
    ErrorReply,
    HelloRequest,
    MessageKind,
    ReportRequest,
    SetInterval,
    Welcome,
    encode,
)
from ballast_protocol.guest_framing import Frame, FrameDecoder
from support.agent_peer import PATIENCE_SECONDS, Events, qemu
from support.guest_messages import HELLO, report, zone


def state_of(link: GuestLink) -> object:
    return link.status()["state"]


@pytest.fixture
def _no_rate_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "READ_BYTES_PER_SECOND", 1 << 40)


async def test_an_agent_is_greeted_and_its_reports_are_kept(
    link: GuestLink, events: Events
) -> None:
    assert state_of(link) == "no-qemu"
    async with qemu(link) as guest:
        assert await guest.hear() == (0, HelloRequest())
        assert await events.next() is LinkEvent.QEMU_CONNECTED
        assert state_of(link) == "no-agent"
        guest.say(HELLO, 3)
        assert await guest.hear() == (3, Welcome(1, 5.0))
        assert await events.next() is LinkEvent.AGENT_ARRIVED
        assert link.agent is not None
        assert link.agent.hello == HELLO
        guest.say(report())
        assert await events.next() is LinkEvent.REPORT
        assert state_of(link) == "reporting"
        assert link.last_report is not None
        assert link.last_report.report == report()
    assert await events.next() is LinkEvent.QEMU_GONE
    assert not link.connected
    assert link.agent is None
    assert link.last_report is not None
    assert link.counters.messages == 2


async def test_introductions_that_cross_are_one_arrival(link: GuestLink, events: Events) -> None:
    async with qemu(link) as guest:
        guest.say(HELLO)
        guest.say(HELLO, 1)
        guest.say(report())
        assert await events.next() is LinkEvent.QEMU_CONNECTED
        assert await events.next() is LinkEvent.AGENT_ARRIVED
        assert await events.next() is LinkEvent.REPORT


async def test_a_report_can_be_asked_for(link: GuestLink) -> None:
    async with qemu(link) as guest:
        await guest.introduce()
        request = asyncio.create_task(link.request_report(PATIENCE_SECONDS))
        request_id, message = await guest.hear()
        assert message == ReportRequest()
        guest.say(report(boottime_seconds=1.0))
        guest.say(report(boottime_seconds=2.0), request_id)
        assert (await request).boottime_seconds == 2.0


async def test_an_agent_may_refuse_a_request(link: GuestLink) -> None:
    async with qemu(link) as guest:
        await guest.introduce()
        request = asyncio.create_task(link.request_report(PATIENCE_SECONDS))
        request_id, _ = await guest.hear()
        guest.say(ErrorReply(MessageKind.REPORT_REQUEST, "no /proc here"), request_id)
        with pytest.raises(OperatorError, match="refused: no /proc here"):
            await request


async def test_a_request_without_answer_times_out(link: GuestLink) -> None:
    async with qemu(link) as guest:
        await guest.introduce()
        with pytest.raises(TimedOutError, match=r"within 0\.01 s"):
            await link.request_report(0.01)


async def test_a_request_ends_with_the_connection(link: GuestLink) -> None:
    async with qemu(link) as guest:
        await guest.introduce()
        request = asyncio.create_task(link.request_report(PATIENCE_SECONDS))
        await guest.hear()
    with pytest.raises(OperatorError, match="closed the agent channel"):
        await request


async def test_without_agent_a_request_says_what_to_do(link: GuestLink, events: Events) -> None:
    with pytest.raises(OperatorError, match="QEMU is not connected") as caught:
        await link.request_report(1)
    assert "-device virtserialport" in caught.value.hint
    async with qemu(link):
        await events.until(LinkEvent.QEMU_CONNECTED)
        with pytest.raises(OperatorError, match="no agent in this guest") as caught:
            await link.request_report(1)
    assert caught.value.hint


async def test_a_guest_that_restarts_takes_its_report_along(
    link: GuestLink, events: Events
) -> None:
    async with qemu(link) as guest:
        await guest.introduce()
        guest.say(report())
        await events.until(LinkEvent.REPORT)
        guest.say(HELLO)
        await guest.hear()
        assert link.last_report is not None
        guest.say(replace(HELLO, boot_id="another"))
        await events.until(LinkEvent.AGENT_ARRIVED)
        assert link.last_report is None
        assert link.agent is not None
        assert link.agent.hello.boot_id == "another"


async def test_a_silent_agent_is_mute_until_it_speaks(folder: Path, events: Events) -> None:
    link = GuestLink(folder / "agent.sock", interval_seconds=0.1, on_event=events)
    await link.start()
    async with qemu(link) as guest:
        await guest.introduce()
        await events.until(LinkEvent.AGENT_MUTE)
        assert state_of(link) == "mute"
        guest.say(HELLO)
        assert await events.next() is LinkEvent.AGENT_ARRIVED
        assert state_of(link) == "reporting"
        await events.until(LinkEvent.AGENT_MUTE)
        guest.say(report())
        await events.until(LinkEvent.REPORT)
        assert state_of(link) == "reporting"
    await link.close()


async def test_the_interval_is_the_guest_s_then_the_host_s(link: GuestLink) -> None:
    async with qemu(link) as guest:
        guest.say(replace(HELLO, interval_seconds=60.0))
        await guest.hear()
        assert await guest.hear() == (0, Welcome(1, 60.0))
        link.set_interval(1.0)
        assert await guest.hear() == (0, SetInterval(1.0))
        assert link.agent is not None
        assert link.agent.interval_seconds == 1.0
        guest.say(HELLO)
        assert await guest.hear() == (0, Welcome(1, 1.0))
    with pytest.raises(OperatorError, match="no interval"):
        link.set_interval(0)


async def test_reports_need_an_introduction(link: GuestLink) -> None:
    async with qemu(link) as guest:
        assert (await guest.hear())[1] == HelloRequest()
        link._next_hello_request = 0.0
        guest.say(report())
        assert (await guest.hear())[1] == HelloRequest()
        assert link.last_report is None


@pytest.mark.usefixtures("_no_rate_limit")
@pytest.mark.parametrize(
    "frame",
    [
        Frame(99, 5, b"{}", 1),
        Frame(MessageKind.MEMORY_REPORT, 5, b"{}", 1),
        Frame(MessageKind.MEMORY_REPORT, 5, b"[" * 100_000, 1),
        Frame(MessageKind.REPORT_REQUEST, 5, b"{}", 1),
        replace(
            FrameDecoder().feed(encode(replace(HELLO, protocol_versions=(7, 8))))[0], request_id=5
        ),
    ],
)
async def test_what_breaks_the_protocol_is_counted_and_refused(
    link: GuestLink, frame: Frame
) -> None:
    async with qemu(link) as guest:
        guest.writer.write(frame.pack())
        await guest.hear()
        request_id, reply = await guest.hear()
        assert isinstance(reply, ErrorReply)
        assert (request_id, reply.refused_kind) == (5, frame.kind)
        assert link.counters.refused_messages == 1
        guest.say(HELLO)
        assert isinstance((await guest.hear())[1], Welcome)


@pytest.mark.usefixtures("_no_rate_limit")
async def test_half_a_message_and_garbage_are_skipped(link: GuestLink, events: Events) -> None:
    async with qemu(link) as guest:
        guest.writer.write(encode(report())[100:] + bytes(50_000))
        await guest.introduce()
        assert link.counters.skipped_bytes == len(encode(report())) - 100 + 50_000
        assert link.counters.refused_messages == 0


async def test_a_second_connection_is_refused(link: GuestLink) -> None:
    async with qemu(link) as guest:
        await guest.introduce()
        async with qemu(link) as other:
            await other.hear_end()
        assert link.counters.rejected_connections == 1
        guest.say(HELLO)
        assert isinstance((await guest.hear())[1], Welcome)


async def test_a_flood_holds_up_nobody_else(
    link: GuestLink, folder: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "READ_BYTES_PER_SECOND", 1)
    calm = GuestLink(folder / "calm.sock")
    await calm.start()
    async with qemu(link) as flooder, qemu(calm) as guest:
        await flooder.introduce()
        flooder.writer.write(encode(ErrorReply(1, "")) * 100_000)
        await guest.introduce()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await flooder.writer.drain()
        assert link.counters.messages == 1
    await calm.close()


async def test_a_guest_that_does_not_read_gets_no_more_requests(link: GuestLink) -> None:
    async with qemu(link) as guest:
        await guest.introduce()
        guest.writer.transport.pause_reading()  # type: ignore[attr-defined]
        with pytest.raises(OperatorError, match="does not read"):
            await ask_for_ever(link)


async def ask_for_ever(link: GuestLink) -> None:
    while True:
        with suppress(TimedOutError):
            await link.request_report(0)


async def test_the_socket_is_private_and_removed(link: GuestLink, events: Events) -> None:
    assert stat.S_IMODE(os.stat(link.path).st_mode) == 0o600
    with pytest.raises(OperatorError, match="another process is listening"):
        await GuestLink(link.path).start()
    await events.until(LinkEvent.QEMU_GONE)  # it was the other link, trying the socket
    async with qemu(link) as guest:
        await guest.hear()
        await link.close()
        await guest.hear_end()
    assert not link.path.exists()
    await link.close()


async def test_status_as_json(link: GuestLink, events: Events) -> None:
    status = link.status()
    assert (status["state"], status["agent"], status["report"]) == ("no-qemu", None, None)
    async with qemu(link) as guest:
        await guest.introduce()
        guest.say(report(zone(0, "DMA", (1,)), zone(1, "Normal", (2, 3))))
        await events.until(LinkEvent.REPORT)
        status = link.status()
    assert status["socket"] == str(link.path)
    assert status["state"] == "reporting"
    agent, memory = status["agent"], status["report"]
    assert isinstance(agent, dict)
    assert isinstance(memory, dict)
    assert agent["version"] == HELLO.agent_version
    assert agent["boot-id"] == HELLO.boot_id
    assert memory["free-bytes-by-order"] == {"0": 3 * 4096, "1": 3 * 8192}
    assert 0 <= memory["age-seconds"] < PATIENCE_SECONDS
    assert memory["pressure"]["some"]["avg10"] == 0.5
    second = memory["zones"][1]
    assert (second["node"], second["zone"]) == (1, "Normal")
    assert second["free-bytes-by-order"] == {"0": 2 * 4096, "1": 3 * 8192}
    assert second["free-bytes"] == 2 * 4096 + 3 * 8192


async def test_the_real_agent_comes_back_after_a_restart_of_the_daemon(
    folder: Path,
) -> None:
    path = folder / "agent.sock"
    agent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ballast_agent", "run", "--connect", f"unix:{path}"),
        stderr=asyncio.subprocess.PIPE,
    )
    for _ in range(2):
        events = Events()
        link = GuestLink(path, on_event=events)
        await link.start()
        await events.until(LinkEvent.REPORT)
        memory = await link.request_report(PATIENCE_SECONDS)
        assert memory.meminfo_bytes["MemTotal"] > 0
        assert sum(memory.free_bytes_by_order()) > 0
        await link.close()
    agent.terminate()
    _, log = await agent.communicate()
    assert agent.returncode == 0
    assert b"stopped" in log
