"""The balloon device itself: five virtqueues and a config space in, effects out.

It follows virtio 1.3 section 5.5 and, where the specification leaves room, what QEMU's own device
does (hw/virtio/virtio-balloon.c). It knows no transport and no clock: a transport gives it queues
that are attached to guest memory, and the time where one is needed.
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence

from ballast.balloon.blocks import BlockBook
from ballast.balloon.features import DEFAULT_FEATURES, TRANSPORT_FEATURES
from ballast.balloon.hinting import HintingRound, HintState
from ballast.balloon.ledger import Ledger
from ballast.balloon.listener import DeviceListener
from ballast.balloon.metrics import BalloonMetrics
from ballast.balloon.pages import PageBook, spoken_of
from ballast.balloon.poison import Poison
from ballast.balloon.ranges import Run
from ballast.balloon.slices import SLICE_BUFFERS, SLICE_BYTES, Slice
from ballast.balloon.stats import GuestStatistics
from ballast.memory.map import MemoryMap
from ballast.memory.reclaim import Discard, discard
from ballast.memory.reclaim_many import DiscardMany
from ballast.queue.chain import Chain
from ballast.queue.split import SplitQueue
from ballast_protocol.errors import GuestError, OperatorError
from ballast_protocol.virtio.balloon import (
    MAX_STATISTICS,
    PFN_SHIFT,
    STATISTIC_SIZE,
    BalloonConfig,
    BalloonFeature,
    BalloonQueue,
    queue_order,
)

MAX_PAGES = (1 << 32) - 1
"""What `num_pages` can hold: a balloon has at most 16 TiB."""


class BalloonDevice:
    """One balloon of one guest.

    Attributes:
        offered: Feature bits offered to the driver.
        driver_features: Feature bits that the driver accepted; 0 before it did.
        is_running: Whether a driver is at work, between `start` and `stop`.
        was_started: Whether a driver has ever been at work, so that `actual` means something.
        target_bytes: The size that the operator wants the guest to have; None means all of it.
        elsewhere_bytes: What of the target is the business of the agent in the guest, so that the
            kernel's balloon is not asked for it.
        ram_bytes: The size of the machine; 0 until the memory is known.
        ram_is_fixed: Whether it was given, rather than taken from the memory map.
        pages: The ledger and the memory under it.
        blocks: The second book: what the agent in the guest has taken, in blocks of 2 MiB.
        statistics: What the guest last sent.
        hinting: The free-page-hint round.
        poison: What the guest fills free pages with.
        metrics: Counters.
    """

    def __init__(
        self,
        listener: DeviceListener,
        *,
        balloon_features: BalloonFeature = DEFAULT_FEATURES,
        ram_bytes: int = 0,
        discard_piece: Discard = discard,
        ledger: Ledger | None = None,
        cells: MutableSequence[int] | memoryview | None = None,
        discard_many: DiscardMany | None = None,
    ) -> None:
        """Make a device.

        Args:
            listener: Who is told what happens.
            balloon_features: What is offered.
            ram_bytes: The machine's size; 0 means that the memory map will tell.
            discard_piece: Gives memory back.
            ledger: The book; an empty one of this process if None.
            cells: Where `actual` is kept, for a successor to find; of this process if None.
            discard_many: Gives many pieces of memory back at once, if there is a way.
        """
        self.offered = int(balloon_features) | int(TRANSPORT_FEATURES)
        self.is_running = self.was_started = False
        self.target_bytes: int | None = None
        self.elsewhere_bytes = 0
        self.ram_bytes = ram_bytes
        self._cells = [0] if cells is None else cells
        self.metrics = BalloonMetrics()
        self.pages = PageBook(self.metrics, discard_piece, ledger, discard_many)
        self.blocks = BlockBook(self.pages)
        self.pages.on_inflate = self.blocks.kernel_took
        self.statistics = GuestStatistics()
        self.hinting = HintingRound()
        self.ram_is_fixed = ram_bytes > 0
        self.poison = Poison()
        self.accept(0)
        self._listener = listener
        self._gathered: list[Run] = []
        self._handlers: dict[BalloonQueue, Callable[[Chain, float], int]] = {
            BalloonQueue.INFLATE: self._inflate,
            BalloonQueue.DEFLATE: self._deflate,
            BalloonQueue.FREE_PAGE_HINT: self._hint,
            BalloonQueue.REPORTING: self._report,
        }

    @property
    def actual_pages(self) -> int:
        """The balloon's size in 4 KiB pages, as the guest says."""
        return self._cells[0]

    @actual_pages.setter
    def actual_pages(self, pages: int) -> None:
        self._cells[0] = pages

    # What the operator wants -----------------------------------------------------------------

    def set_target(self, target_bytes: int | None) -> None:
        """Ask the guest to shrink or grow to a size; more than the machine has means all of it.

        For the VM's governor alone (`daemon.governor`): it decides what the guest is asked for.

        Args:
            target_bytes: The size; None means all of the guest's memory.

        Raises:
            OperatorError: The size is not positive.
        """
        if target_bytes is not None and target_bytes <= 0:
            raise OperatorError(f"a guest cannot have {target_bytes} bytes of memory")
        self.target_bytes = target_bytes
        self._listener.config_changed()

    @property
    def target_pages(self) -> int:
        """`num_pages`: how many 4 KiB pages the guest's kernel should give up."""
        return min(max(self.wanted_bytes - self.elsewhere_bytes, 0) >> PFN_SHIFT, MAX_PAGES)

    @property
    def wanted_bytes(self) -> int:
        """How much the guest should give up in all, in whole pages."""
        if self.target_bytes is None:
            return 0
        return max(self.ram_bytes - self.target_bytes, 0) >> PFN_SHIFT << PFN_SHIFT

    @property
    def actual_bytes(self) -> int | None:
        """The guest's present size, QEMU's `actual`; None before a driver was there.

        What its agent holds counts as its kernel's balloon does. A sweep's blocks do not, for the
        guest is getting them back.
        """
        if not self.was_started:
            return None
        given = (self.actual_pages << PFN_SHIFT) + self.blocks.hold_bytes
        return max(self.ram_bytes - given, 0)

    @property
    def is_settled(self) -> bool:
        """Whether the guest has the size that is wanted, by what its kernel and its agent say."""
        return (
            self.was_started
            and self.actual_pages == self.target_pages
            and self.blocks.hold_bytes == self.elsewhere_bytes
        )

    def start_hinting(self) -> None:
        """Start a round of free-page hints.

        Raises:
            OperatorError: The feature is not there.
        """
        if not self.driver_features & BalloonFeature.FREE_PAGE_HINT:
            raise OperatorError(
                "the guest's driver has not accepted free-page hints",
                hint="Serve the VM with --free-page-hint; the guest needs Linux 5.0 or later.",
            )
        self.hinting.start()
        self._listener.config_changed()

    def finish_hinting(self) -> None:
        """End the round: the guest gets its hinted pages back."""
        self.hinting.finish()
        self._listener.config_changed()

    # The config space ------------------------------------------------------------------------

    @property
    def config(self) -> BalloonConfig:
        """The config space as the guest reads it now."""
        return BalloonConfig(
            num_pages=self.target_pages,
            actual=self.actual_pages,
            free_page_hint_cmd_id=self.hinting.config_value,
            poison_val=self.poison.value,
        )

    def write_config(self, written: BalloonConfig) -> None:
        """Take a write of the config space.

        A front-end sends the whole structure, with every field that the guest did *not* write as it
        was when the guest last read it, perhaps before a reboot. So only those fields are believed
        that the driver writes, each only at the time when it does: `actual` while the queues run,
        `poison_val` while they do not (Linux writes it before DRIVER_OK).
        """
        self.metrics.config_writes += 1
        if self.is_running:
            self.write_actual(written.actual)
        else:
            self.write_poison(written.poison_val)

    def write_actual(self, pages: int) -> None:
        """Take the balloon's size as the driver says it; only a running driver has one."""
        if not self.is_running or pages << PFN_SHIFT > self.ram_bytes:
            self.metrics.config_writes_ignored += 1
        elif pages != self.actual_pages:
            self.actual_pages = pages
            self._listener.actual_changed()

    def write_poison(self, value: int) -> None:
        """Take what the driver fills free pages with; it says so before it starts."""
        if self.is_running:
            self.metrics.config_writes_ignored += 1
        else:
            self.poison.written = value

    # Life cycle ------------------------------------------------------------------------------

    def set_memory(self, memory: MemoryMap) -> None:
        """Use a new memory map from now on; queues must be attached to it by the transport."""
        self.pages.memory = memory
        if self.ram_is_fixed or not memory.regions:
            return
        before, self.ram_bytes = self.ram_bytes, memory.backing_bytes()
        if self.was_started and self.ram_bytes != before:
            self._listener.config_changed()

    def start(self, driver_features: int, *, fresh: bool) -> None:
        """A driver begins, or goes on after a pause.

        Args:
            driver_features: What it accepted.
            fresh: It is a new driver (guest reset, reboot, unbind and bind) that knows nothing of
                pages given up before; otherwise the same one goes on where it was. One that has
                written to the config space since the last stop is new in any case: nobody can
                during a pause.
        """
        self.accept(driver_features)
        if fresh or self.poison.written is not None:
            self._forget_driver()
        self.is_running = self.was_started = True
        self._listener.driver_changed()

    def accept(self, driver_features: int) -> None:
        """Go by the features that a driver has accepted."""
        self.driver_features = driver_features
        self._roles = queue_order(driver_features)
        self.pages.collects = bool(driver_features & BalloonFeature.MUST_TELL_HOST)

    def _forget_driver(self) -> None:
        """Begin with a driver that has given up nothing; the operator's target stays."""
        self.pages.forget()
        # Perhaps the whole guest is new. If not, its agent says anew what it holds.
        self.blocks.forget()
        self.statistics.reset()
        self.hinting = HintingRound()
        self.poison.begin(is_accepted=bool(self.driver_features & BalloonFeature.PAGE_POISON))
        if self.actual_pages:
            self.actual_pages = 0
            self._listener.actual_changed()

    def stop(self) -> None:
        """The queues have stopped: a pause, a reset or an unplug; only the next start tells."""
        self.is_running = False
        self._listener.driver_changed()

    def disconnect(self) -> None:
        """The VMM is gone, and its memory with it; only the operator's target stays."""
        self.is_running = self.was_started = False
        self.driver_features, self.actual_pages, self.poison = 0, 0, Poison()
        self.pages.begin_anew()
        self.blocks.forget()
        self.statistics.reset()
        self.hinting = HintingRound()
        self.ram_bytes = self.ram_bytes if self.ram_is_fixed else 0
        self._listener.driver_changed()

    def role(self, index: int) -> BalloonQueue | None:
        """Return what the queue with this index carries under the features in force."""
        return self._roles[index] if index < len(self._roles) else None

    # Queues ----------------------------------------------------------------------------------

    def process(self, index: int, queue: SplitQueue, now: float) -> Slice:
        """Serve what the driver put into a queue, for a bounded time.

        Args:
            index: The queue's index.
            queue: The queue, attached to the current memory.
            now: Host time in seconds since 1970.

        Raises:
            QueueError: The ring itself cannot be followed any more.
        """
        role = self.role(index)
        if role is None:
            return Slice(notify=False, more=False)
        self._gathered = []
        notify, bytes_left = False, SLICE_BYTES
        for _ in range(SLICE_BUFFERS):
            head = queue.pop_head()
            if head is None:
                notify |= self._publish(role, queue)
                if not queue.enable_notifications():
                    return Slice(notify, more=False)
                continue
            bytes_left -= self._serve(role, queue, head, now)
            if bytes_left <= 0:
                break
        return Slice(notify | self._publish(role, queue), more=True)

    def _publish(self, role: BalloonQueue, queue: SplitQueue) -> bool:
        """Do with the pages gathered from buffers what is due before the driver gets them back.

        What several buffers hand over is one piece of work; a ring that breaks before it was done
        has handed nothing over, for its buffers are not returned.
        """
        runs, self._gathered = self._gathered, []
        if runs and role is BalloonQueue.INFLATE:
            self.pages.inflate(runs)
        elif runs:
            self.pages.deflate(runs)
        return queue.publish()

    def _serve(self, role: BalloonQueue, queue: SplitQueue, head: int, now: float) -> int:
        """Serve one buffer and put it into the used ring; return the bytes that it cost.

        The driver sees it there only after `publish`. The device writes nothing into any buffer,
        so the used length is 0 everywhere.
        """
        cost = 0
        release: int | None = head
        try:
            chain = queue.chain(head)
            if role is BalloonQueue.STATS:
                release = self._statistics(chain, now)
            else:
                cost = self._handlers[role](chain, now)
        except GuestError:
            self.metrics.malformed_chains += 1
        if release is not None:
            queue.add_used(release)
        return cost

    def _inflate(self, chain: Chain, _now: float) -> int:
        self.metrics.inflate_buffers += 1
        self._gathered += self.pages.read(chain)
        return spoken_of(chain)

    def _deflate(self, chain: Chain, _now: float) -> int:
        self.metrics.deflate_buffers += 1
        self._gathered += self.pages.read(chain)
        return spoken_of(chain)

    def _statistics(self, chain: Chain, now: float) -> int | None:
        """Keep the buffer; return the head of one that was kept before."""
        self.metrics.statistics_buffers += 1
        data = chain.read(self.pages.memory, MAX_STATISTICS * STATISTIC_SIZE)
        previous, unknown = self.statistics.receive(data, chain.head, now)
        self.metrics.unknown_statistics += unknown
        self._listener.statistics_received()
        return previous

    def _hint(self, chain: Chain, _now: float) -> int:
        self.metrics.hint_buffers += 1
        is_over, hinted_bytes = self.hinting.take(chain, self.pages.memory)
        self.metrics.hinted_bytes += hinted_bytes
        if is_over:
            self.finish_hinting()
        return 0

    def _report(self, chain: Chain, _now: float) -> int:
        """Give reported pages back, unless the guest relies on a pattern that is not zero."""
        self.metrics.report_buffers += 1
        if self.poison.value:
            self.metrics.reports_refused += len(chain.writable)
            return 0
        return sum(self.pages.report(buffer) for buffer in chain.writable)

    @property
    def is_hinting(self) -> bool:
        """Whether a round of hints is under way."""
        return self.hinting.state in (HintState.REQUESTED, HintState.START)
