"""The device over real rings and real memory, without any transport."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast.balloon.device import (
    BalloonDevice,
)
from ballast.balloon.features import DEFAULT_FEATURES
from ballast.balloon.hinting import HintState
from ballast.balloon.slices import SLICE_BUFFERS, Slice
from ballast.memory.map import Piece
from ballast_protocol.errors import GuestError, OperatorError, QueueError
from ballast_protocol.virtio import ring
from ballast_protocol.virtio.balloon import (
    BalloonConfig,
    BalloonFeature,
    BalloonQueue,
    HintCommand,
    pack_statistics,
)
from ballast_protocol.virtio.ring import Descriptor, DescriptorFlag
from support.backend import Listener
from support.balloon_guest import ALL, FREE, NOW, PAGES, RAM_BYTES, Guest, guest_with
from support.driver import PAGE_SIZE, Segment
from support.pages import MarkedPages, pfn_array


@pytest.fixture(params=[False, True], ids=["flags", "event_idx"])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    with guest_with(event_idx=request.param) as guest:
        yield guest


@pytest.fixture
def device() -> BalloonDevice:
    return BalloonDevice(Listener(), ram_bytes=1 << 30)


# Queues


def test_pages_are_gone_before_the_buffer_goes_back(guest: Guest) -> None:
    seen: list[int] = []
    driver = guest.drivers[BalloonQueue.INFLATE]

    def watch(piece: Piece) -> int:
        seen.append(driver.used_waiting)
        return piece.length

    watched = BalloonDevice(Listener(), discard_piece=watch)
    watched.set_memory(guest.memory)
    watched.start(guest.features, fresh=True)
    driver.add_out(pfn_array([FREE[0]]))
    done = watched.process(0, guest.queues[BalloonQueue.INFLATE], NOW)
    assert (seen, driver.used_waiting, done) == ([0], 1, Slice(notify=True, more=False))


def test_adjacent_pages_of_several_buffers_go_back_in_one_piece(guest: Guest) -> None:
    calls: list[int] = []

    def count(piece: Piece) -> int:
        calls.append(piece.length)
        return piece.length

    driver = guest.drivers[BalloonQueue.INFLATE]
    watched = BalloonDevice(Listener(), discard_piece=count)
    watched.set_memory(guest.memory)
    watched.start(guest.features, fresh=True)
    for pfns in (FREE[2:4], FREE[0:2], FREE[4:5], FREE[6:7]):
        driver.add_out(pfn_array(pfns))
    watched.process(0, guest.queues[BalloonQueue.INFLATE], NOW)
    assert calls == [5 * PAGE_SIZE, PAGE_SIZE]
    assert watched.pages.ledger.count == 6
    assert driver.used_waiting == 4


def test_a_ring_that_breaks_has_handed_nothing_over_since_it_was_last_published(
    guest: Guest,
) -> None:
    marked = MarkedPages(guest.ram, FREE)
    driver = guest.drivers[BalloonQueue.INFLATE]
    driver.add_out(pfn_array(FREE[:2]))
    driver.publish(500)
    with pytest.raises(QueueError, match="chain head 500"):
        guest.process(BalloonQueue.INFLATE)
    assert (marked.gone(), guest.held(), driver.used_waiting) == (set(), set(), 0)


def test_inflate_and_deflate(guest: Guest) -> None:
    marked = MarkedPages(guest.ram, FREE)
    guest.inflate(*reversed(FREE[:10]))
    assert guest.held() == set(FREE[:10]) == marked.gone()
    guest.deflate(*FREE[:4])
    assert guest.held() == set(FREE[4:10])
    assert marked.lost(allowed=FREE[:10]) == set()


def test_parts_are_collected_of_drivers_that_tell_before_they_use_a_page_again() -> None:
    device = BalloonDevice(Listener())
    assert device.offered & BalloonFeature.MUST_TELL_HOST
    device.start(int(BalloonFeature.MUST_TELL_HOST), fresh=True)
    assert device.pages.collects
    device.start(int(BalloonFeature.STATS_VQ), fresh=True)
    assert not device.pages.collects


def test_used_lengths_are_zero(guest: Guest) -> None:
    for role in (BalloonQueue.INFLATE, BalloonQueue.DEFLATE):
        guest.drivers[role].add_out(pfn_array([FREE[0]]))
        guest.process(role)
        assert [used.length for used in guest.drivers[role].collect()] == [0]
    driver = guest.drivers[BalloonQueue.REPORTING]
    driver.add(into=[Segment(FREE[0] * PAGE_SIZE, PAGE_SIZE)])
    guest.process(BalloonQueue.REPORTING)
    assert [used.length for used in driver.collect()] == [0]


@pytest.mark.parametrize(
    ("features", "order"),
    [
        (BalloonFeature(0), []),
        (BalloonFeature.STATS_VQ, ["stats"]),
        (BalloonFeature.PAGE_REPORTING, ["reporting"]),
        (BalloonFeature.FREE_PAGE_HINT, ["free-page-hint"]),
        (BalloonFeature.STATS_VQ | BalloonFeature.PAGE_REPORTING, ["stats", "reporting"]),
        (
            BalloonFeature.FREE_PAGE_HINT | BalloonFeature.PAGE_REPORTING,
            ["free-page-hint", "reporting"],
        ),
        (ALL, ["stats", "free-page-hint", "reporting"]),
    ],
)
def test_queues_are_numbered_by_what_was_negotiated(
    device: BalloonDevice, features: BalloonFeature, order: list[str]
) -> None:
    device.start(int(features | BalloonFeature.PAGE_POISON), fresh=True)
    roles = [device.role(index) for index in range(6)]
    names = [role.value for role in roles if role is not None]
    assert names == ["inflate", "deflate", *order]
    assert roles[len(names) :] == [None] * (6 - len(names))


def test_reporting_without_statistics_is_served_at_index_2() -> None:
    with guest_with(int(BalloonFeature.PAGE_REPORTING)) as guest:
        marked = MarkedPages(guest.ram, FREE)
        assert guest.indices[BalloonQueue.REPORTING] == 2
        guest.report((FREE[0], 2), (FREE[8], 1))
        assert marked.gone() == {FREE[0], FREE[1], FREE[8]}
        assert marked.lost(allowed=marked.gone()) == set()


def test_a_queue_that_no_feature_has_is_left_alone() -> None:
    with guest_with(0) as guest:
        driver = guest.drivers[BalloonQueue.INFLATE]
        driver.add_out(pfn_array([FREE[0]]))
        queue = guest.queues[BalloonQueue.INFLATE]
        assert guest.device.process(2, queue, NOW) == Slice(notify=False, more=False)
        assert driver.used_waiting == 0


def test_a_malformed_buffer_goes_back_unused_and_the_queue_lives_on(guest: Guest) -> None:
    driver = guest.drivers[BalloonQueue.INFLATE]
    driver.add(out=[Segment(1 << 40, 8)])
    driver.add(out=[Segment(0, 1 << 20)])
    driver.add_out(pfn_array([FREE[0]]))
    guest.process(BalloonQueue.INFLATE)
    assert len(driver.collect()) == 3
    assert guest.device.metrics.malformed_chains == 2
    assert guest.held() == {FREE[0]}


def test_a_ring_that_cannot_be_followed_is_an_error(guest: Guest) -> None:
    guest.drivers[BalloonQueue.DEFLATE].publish(500)
    with pytest.raises(QueueError, match="chain head 500"):
        guest.process(BalloonQueue.DEFLATE)


@pytest.mark.parametrize("role", [BalloonQueue.INFLATE, BalloonQueue.DEFLATE])
def test_a_slice_ends_after_so_many_buffers(guest: Guest, role: BalloonQueue) -> None:
    driver = guest.drivers[role]
    for number in range(SLICE_BUFFERS + 1):
        driver.add_out(pfn_array([FREE[number % 8]]))
    assert guest.process(role).more
    assert driver.used_waiting == SLICE_BUFFERS
    assert not guest.process(role).more
    assert len(driver.collect()) == SLICE_BUFFERS + 1


@pytest.mark.parametrize("first", [0, 1 << 30], ids=["ram", "not ram"])
@pytest.mark.parametrize("role", [BalloonQueue.INFLATE, BalloonQueue.DEFLATE])
def test_a_slice_ends_early_where_buffers_are_long(role: BalloonQueue, first: int) -> None:
    with guest_with(0) as guest:
        driver = guest.drivers[role]
        array = guest.ram.allocate(1 << 16)
        page = FREE[0] if first == 0 else first
        guest.ram.write(array, pfn_array([page]) * (1 << 14))
        for _ in range(3):
            driver.add(out=[Segment(array, 1 << 16)])
        assert guest.process(role).more
        assert driver.used_waiting == 1


def test_the_ring_itself_inflated_breaks_nothing_but_itself(guest: Guest) -> None:
    driver = guest.drivers[BalloonQueue.INFLATE]
    first = driver.descriptors // PAGE_SIZE
    last = (driver.used + ring.used_ring_size(128)) // PAGE_SIZE
    driver.add_out(pfn_array(range(first, last + 1)))
    driver.add_out(pfn_array([FREE[0]]))
    with pytest.raises(QueueError):
        guest.process(BalloonQueue.INFLATE)
    guest.deflate(first)
    assert first not in guest.held()


# Statistics


def test_a_statistics_buffer_is_held_until_newer_values_are_wanted(guest: Guest) -> None:
    driver, queue = guest.drivers[BalloonQueue.STATS], guest.queues[BalloonQueue.STATS]
    driver.add_out(pack_statistics([(4, 111), (77, 1)]))
    assert not guest.process(BalloonQueue.STATS).more
    assert driver.used_waiting == 0
    assert guest.device.statistics.values == {4: 111}
    assert guest.device.statistics.last_update == int(NOW)
    assert (guest.listener.statistics, guest.device.metrics.unknown_statistics) == (1, 1)

    assert guest.device.statistics.give_back(queue) is True
    assert len(driver.collect()) == 1
    assert guest.device.statistics.give_back(queue) is None


def test_a_second_statistics_buffer_frees_the_first(guest: Guest) -> None:
    driver = guest.drivers[BalloonQueue.STATS]
    first = driver.add_out(pack_statistics([(4, 1)]))
    driver.add_out(pack_statistics([(4, 2)]))
    guest.process(BalloonQueue.STATS)
    assert [used.head for used in driver.collect()] == [first]
    assert guest.device.statistics.values == {4: 2}


def test_a_huge_statistics_buffer_is_read_in_part(guest: Guest) -> None:
    guest.drivers[BalloonQueue.STATS].add(out=[Segment(0, RAM_BYTES)])
    guest.process(BalloonQueue.STATS)
    assert guest.device.metrics.malformed_chains == 0
    assert guest.drivers[BalloonQueue.STATS].used_waiting == 0


def test_a_statistics_buffer_outside_ram_goes_back(guest: Guest) -> None:
    guest.drivers[BalloonQueue.STATS].add(out=[Segment(1 << 40, 10)])
    guest.process(BalloonQueue.STATS)
    assert len(guest.drivers[BalloonQueue.STATS].collect()) == 1


# Hinting


def test_a_round_of_hints_discards_nothing(guest: Guest) -> None:
    marked = MarkedPages(guest.ram, FREE)
    driver = guest.drivers[BalloonQueue.FREE_PAGE_HINT]
    guest.device.start_hinting()
    command = guest.device.config.free_page_hint_cmd_id
    guest.send(BalloonQueue.FREE_PAGE_HINT, command.to_bytes(4, "little"))
    assert guest.device.is_hinting
    driver.add(into=[Segment(FREE[0] * PAGE_SIZE, 8 * PAGE_SIZE)])
    guest.process(BalloonQueue.FREE_PAGE_HINT)
    assert guest.device.hinting.hinted_bytes == 8 * PAGE_SIZE
    before = guest.listener.configs
    guest.send(BalloonQueue.FREE_PAGE_HINT, HintCommand.STOP.to_bytes(4, "little"))
    assert guest.device.hinting.state is HintState.DONE
    assert guest.device.config.free_page_hint_cmd_id == HintCommand.DONE
    assert guest.listener.configs == before + 1
    assert (marked.lost(), guest.held()) == (set(), set())


def test_hints_need_a_driver_that_knows_them(device: BalloonDevice) -> None:
    device.start(int(DEFAULT_FEATURES), fresh=True)
    with pytest.raises(OperatorError, match="not accepted free-page hints") as caught:
        device.start_hinting()
    assert caught.value.hint


# Reporting and poison


def test_a_guest_that_relies_on_a_pattern_keeps_what_it_reports(guest: Guest) -> None:
    marked = MarkedPages(guest.ram, FREE)
    guest.device.stop()
    guest.device.write_config(BalloonConfig(poison_val=0xAAAAAAAA))
    guest.device.start(guest.features, fresh=True)
    guest.report((FREE[0], 4))
    assert guest.device.metrics.reports_refused == 1
    assert marked.lost() == set()
    guest.inflate(FREE[5])
    assert marked.gone() == {FREE[5]}


def test_a_pattern_of_zeros_is_what_a_discard_leaves(guest: Guest) -> None:
    marked = MarkedPages(guest.ram, FREE)
    guest.device.stop()
    guest.device.write_config(BalloonConfig(poison_val=0))
    guest.device.start(guest.features, fresh=True)
    guest.report((FREE[0], 4))
    assert marked.gone() == set(FREE[:4])


# Anything that a guest may do

NUMBER = st.one_of(st.integers(0, 127), st.integers(0, 0xFFFF))
DESCRIPTOR = st.builds(
    Descriptor,
    st.one_of(st.integers(0, RAM_BYTES), st.sampled_from([RAM_BYTES - 4, 1 << 63, (1 << 64) - 1])),
    st.one_of(st.integers(0, 256), st.integers(0, (1 << 32) - 1)),
    st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF)).map(DescriptorFlag),
    NUMBER,
)
ATTACK = st.tuples(
    st.sampled_from(list(BalloonQueue)),
    st.lists(DESCRIPTOR, min_size=1, max_size=4),
    st.lists(NUMBER, max_size=4),
    st.none() | st.integers(0, 0xFFFF),
)


@settings(max_examples=60)
@given(st.lists(ATTACK, max_size=8), st.booleans())
def test_a_guest_can_break_its_queues_and_nothing_else(
    attacks: list[tuple[BalloonQueue, list[Descriptor], list[int], int | None]], event_idx: bool
) -> None:
    with guest_with(event_idx=event_idx) as guest:
        guest.device.start_hinting()
        for role, descriptors, heads, index in attacks:
            driver = guest.drivers[role]
            for number, descriptor in enumerate(descriptors):
                driver.write_descriptor(number, descriptor)
            for head in heads:
                driver.publish(head)
            if index is not None:
                driver.write_avail_index(index)
            with suppress(GuestError):
                guest.process(role)
            guest.device.config.pack()
        assert guest.device.pages.ledger.count == len(guest.held())
        assert guest.held() <= set(range(PAGES))
