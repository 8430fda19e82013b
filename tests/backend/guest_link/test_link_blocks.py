"""Blocks of memory over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ballast.guest_link.events import LinkEvent
from ballast.guest_link.link import GuestLink
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest import (
    ErrorReply,
    HelloRequest,
    Welcome,
)
from ballast_protocol.guest_blocks import (
    BLOCK_BYTES,
    BlocksAck,
    BlocksGoal,
    BlocksReleased,
    BlocksReport,
    Compact,
    CompactDone,
    Holding,
    HoldingAck,
    Purpose,
    Sweep,
    SweepDone,
)
from support.agent_peer import PATIENCE_SECONDS, Events, Guest, qemu
from support.blocks import Books, span
from support.driver import GuestRam, RamBlock
from support.guest_messages import HELLO, report
from support.memory import mapped

BLOCKS_HELLO = replace(HELLO, protocol_versions=(1, 2), abilities=("memory-blocks",), hello_id=5)


@pytest.fixture
def books() -> Iterator[Books]:
    with GuestRam.of(RamBlock(0, 4 * BLOCK_BYTES)) as ram:
        books = Books(ram)
        with mapped(ram) as books.pages.memory:
            books.fill(0, 1, 2, 3)
            yield books


@pytest.fixture
async def block_link(folder: Path, events: Events, books: Books) -> AsyncIterator[GuestLink]:
    link = GuestLink(folder / "agent.sock", book=books.blocks, on_event=events)
    await link.start()
    yield link
    await link.close()


async def open_session(guest: Guest) -> int:
    """Introduce an agent that holds nothing; return the session's number."""
    guest.say(BLOCKS_HELLO)
    while not isinstance(welcome := (await guest.hear())[1], Welcome):
        pass
    assert welcome.hello_id == 5
    assert welcome.session is not None
    guest.say(Holding(welcome.session, (), last=True), 1)
    assert await guest.hear() == (1, HoldingAck(welcome.session, ()))
    assert isinstance((await guest.hear())[1], BlocksGoal)
    return welcome.session


async def test_blocks_are_given_back_and_acknowledged(
    block_link: GuestLink, books: Books, events: Events
) -> None:
    async with qemu(block_link) as guest:
        session = await open_session(guest)
        guest.say(BlocksReport(session, Purpose.HOLD, (span(1, 2),)), 9)
        assert await guest.hear() == (9, BlocksAck(session, (), 2 * BLOCK_BYTES))
        assert books.held() == {1, 2}
        guest.say(BlocksReleased(session, (span(1),)))
        await events.until(LinkEvent.BLOCKS)
        while books.held() != {2}:
            await events.until(LinkEvent.BLOCKS)
    await events.until(LinkEvent.QEMU_GONE)
    assert block_link.blocks is not None
    assert not block_link.blocks.is_open
    assert books.held() == {2}


async def test_a_report_is_dealt_with_before_a_new_session_begins(
    block_link: GuestLink, books: Books
) -> None:
    async with qemu(block_link) as guest:
        session = await open_session(guest)
        guest.say(BlocksReport(session, Purpose.HOLD, (span(1),)), 2)
        guest.say(replace(BLOCKS_HELLO, hello_id=6))
        guest.say(BlocksReport(session, Purpose.HOLD, (span(2),)), 3)
        assert isinstance((await guest.hear())[1], BlocksAck)
        assert isinstance((await guest.hear())[1], Welcome)
        request_id, answer = await guest.hear()
        assert request_id == 3
        assert isinstance(answer, ErrorReply)
        assert books.held() == {1}


async def test_a_report_whose_sender_has_gone_is_void(
    block_link: GuestLink, books: Books, events: Events
) -> None:
    """An agent whose connection has ended may use again what it has reported."""
    async with qemu(block_link) as guest:
        session = await open_session(guest)
        guest.say(BlocksReport(session, Purpose.HOLD, (span(1),)), 2)
        guest.writer.close()
        await events.until(LinkEvent.QEMU_GONE)
    assert books.held() == set()


async def test_a_link_that_is_renewed_believes_no_old_report(
    block_link: GuestLink, books: Books
) -> None:
    async with qemu(block_link) as guest:
        session = await open_session(guest)
        block_link.renew()
        assert (await guest.hear())[1] == HelloRequest()
        guest.say(BlocksReport(session, Purpose.HOLD, (span(1),)), 2)
        assert isinstance((await guest.hear())[1], ErrorReply)
        assert await open_session(guest) != session
        assert books.held() == set()


async def test_an_agent_whose_introduction_was_lost_is_asked_again(block_link: GuestLink) -> None:
    async with qemu(block_link) as guest:
        assert (await guest.hear())[1] == HelloRequest()
        block_link._next_hello_request = 0.0
        guest.say(BlocksReport(3, Purpose.HOLD, (span(1),)), 2)
        assert (await guest.hear())[1] == HelloRequest()
        assert isinstance((await guest.hear())[1], ErrorReply)


async def test_introductions_that_differ_only_in_their_number_are_one_arrival(
    block_link: GuestLink, events: Events
) -> None:
    async with qemu(block_link) as guest:
        guest.say(BLOCKS_HELLO)
        guest.say(replace(BLOCKS_HELLO, hello_id=6))
        guest.say(report())
        await events.until(LinkEvent.AGENT_ARRIVED)
        assert await events.next() is LinkEvent.REPORT


async def test_requests_about_blocks_are_answered(block_link: GuestLink) -> None:
    done = SweepDone(0.5, "nothing is left", 3, 2, 2 * BLOCK_BYTES, BLOCK_BYTES)
    async with qemu(block_link) as guest:
        await open_session(guest)
        sweep = asyncio.create_task(block_link.request(Sweep(1), SweepDone, PATIENCE_SECONDS))
        request_id, message = await guest.hear()
        assert message == Sweep(1)
        guest.say(done, request_id)
        assert await sweep == done
        compact = asyncio.create_task(block_link.request(Compact(), CompactDone, PATIENCE_SECONDS))
        request_id, _ = await guest.hear()
        guest.say(report(), request_id)
        with pytest.raises(OperatorError, match="answered a MemoryReport"):
            await compact


async def test_a_host_that_takes_no_blocks_says_so(link: GuestLink) -> None:
    async with qemu(link) as guest:
        guest.say(BLOCKS_HELLO)
        await guest.hear()
        assert await guest.hear() == (0, Welcome(2, 5.0, 5, None))
        guest.say(BlocksReport(1, Purpose.HOLD, (span(0),)), 4)
        assert isinstance((await guest.hear())[1], ErrorReply)
        assert link.counters.refused_messages == 1
