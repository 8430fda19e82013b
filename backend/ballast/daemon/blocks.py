"""The huge balloon of one VM: its target, divided between the agent in the guest and the kernel.

`policy.division` decides who takes what; here it is told what happens and what time it is, and what
it decides goes to the agent, in goals, and to the device, which asks the kernel for the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from ballast.balloon.device import BalloonDevice
from ballast.balloon.ranges import Run
from ballast.daemon.blocks_status import blocks_status, node_rows
from ballast.guest_link.blocks import BlockSession
from ballast.guest_link.events import LinkEvent
from ballast.guest_link.link import GuestLink
from ballast.guest_status import LinkState, hyphenated
from ballast.policy.division import GRACE_SECONDS, AgentView, Division, node_goals
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest_blocks import (
    ANY_NODE,
    MAX_NODE,
    Compact,
    CompactDone,
    SetSweeps,
    Sweep,
    SweepDone,
)


@dataclass(frozen=True)
class BlocksState:
    """What a successor in another process needs, to ask neither agent nor kernel for other amounts.

    Attributes:
        wanted_bytes: What the guest is to give up.
        relied_bytes: What of it the agent is relied on for.
        held_bytes: What the agent holds.
        is_yielding: Whether the guest keeps what it needed.
        shares: By NUMA node, what that node is to contribute.
        boot_id: Which life of the guest this is about; empty if no agent has said.
    """

    wanted_bytes: int = 0
    relied_bytes: int = 0
    held_bytes: int = 0
    is_yielding: bool = False
    shares: dict[int, int] = field(default_factory=dict)
    boot_id: str = ""


PRESSURE_EVENT = "BALLAST_GUEST_PRESSURE"


class HugeBalloon:
    """Has the agent in the guest take its part of the target, in blocks of 2 MiB.

    Implements `qmp.control.BlocksControl` towards operators.

    Attributes:
        shares: By NUMA node, what of the target that node is to contribute, in bytes.
    """

    def __init__(
        self,
        device: BalloonDevice,
        link: GuestLink,
        *,
        sweeps: SetSweeps | None,
        resized: Callable[[], None],
        divided: Callable[[], None],
        emit: Callable[[str, Mapping[str, object]], None],
        save: Callable[[BlocksState], None] = lambda state: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wire a device and a link together; the link has to tell of its events.

        Args:
            device: Its target is divided, its book of blocks is the link's.
            link: The way to the agent.
            sweeps: When the agent is to sweep without being asked; None leaves it to the guest.
            resized: Called when the agent holds more or less than before.
            divided: Called when the kernel's part of the target has changed.
            emit: Tells operators of an event.
            save: Given what a successor in another process needs, whenever that has changed.
            clock: Seconds.
        """
        self.shares: dict[int, int] = {}
        self._device, self._link = device, link
        self._resized, self._divided, self._emit, self._clock = resized, divided, emit, clock
        self._save, self._saved = save, BlocksState()
        self._division = Division()
        self._timer: asyncio.TimerHandle | None = None
        self._presumption: asyncio.TimerHandle | None = None
        self._held_bytes = 0
        self._pressure = (False, 0)
        self._boot_id = ""
        device.blocks.on_forget = self._forgotten
        if link.blocks is not None and sweeps is not None:
            link.blocks.set_sweeps(sweeps)

    def close(self) -> None:
        """Let no time pass any more."""
        for timer in (self._timer, self._presumption):
            if timer is not None:
                timer.cancel()
        self._timer = self._presumption = None

    # A successor -----------------------------------------------------------------------------

    def state(self) -> BlocksState:
        """Return what a successor in another process needs."""
        division = self._division
        return BlocksState(
            wanted_bytes=division.wanted_bytes,
            relied_bytes=division.relied_bytes,
            held_bytes=self._device.blocks.hold_bytes,
            is_yielding=division.is_yielding,
            shares=dict(self.shares),
            boot_id=self._boot_id,
        )

    def restore(self, state: BlocksState) -> None:
        """Go on where a predecessor stopped; to be called before the guest is asked for anything.

        Its book is not known. Until the agent has said what it holds, it is presumed to hold as
        much as before, so that nobody is asked for other amounts in between.
        """
        self._saved, self._boot_id = state, state.boot_id
        if self._link.blocks is not None:
            self._link.blocks.boot_id = state.boot_id
            self._pressure = (False, self._link.blocks.counters.pressure_releases)
        self.shares.update(state.shares)
        self._device.blocks.presumed_bytes = self._held_bytes = state.held_bytes
        self._device.elsewhere_bytes = state.relied_bytes
        self._division.resume(
            state.wanted_bytes,
            state.relied_bytes,
            is_yielding=state.is_yielding,
            now=self._clock(),
            view=self._view(),
        )
        # What is wanted now nobody has said yet: the governor begins after this.
        self._division.see(self._view(), self._clock())
        self._apply()

    def _end_presumption(self) -> None:
        """Believe the book alone, once the agent has had time to say what it holds."""
        book, session = self._device.blocks, self._link.blocks
        if not book.presumed_bytes:
            return
        if session is not None and session.is_open and self._presumption is None:
            self._go_on_presuming()
        if book.known_hold_bytes >= book.presumed_bytes:
            book.presumed_bytes = 0

    def _go_on_presuming(self) -> None:
        known, loop = self._device.blocks.known_hold_bytes, asyncio.get_running_loop()
        self._presumption = loop.call_later(GRACE_SECONDS, self._presume_nothing, known)

    def _presume_nothing(self, known_bytes: int) -> None:
        """Presume no more, unless the agent has told more meanwhile: it may have much to tell."""
        if self._device.blocks.known_hold_bytes > known_bytes:
            self._go_on_presuming()
            return
        self._presumption = None
        self._device.blocks.presumed_bytes = 0
        self.look()

    # What happens ----------------------------------------------------------------------------

    def divide(self) -> None:
        """Divide the device's target anew; to be called before the guest is told of it."""
        self._want()
        self._apply()

    def _want(self) -> None:
        """Take what is wanted of the guest, which is unknown while its size is."""
        if self._device.ram_bytes:
            self._division.want(self._device.wanted_bytes, self._clock())

    def insist(self) -> None:
        """An operator has set a target, perhaps the old one."""
        self._division.insist(self._clock())
        self._apply()

    def link_changed(self, event: LinkEvent) -> None:
        """Take note of what happened on the link."""
        if event is LinkEvent.AGENT_ARRIVED and self._link.agent is not None:
            boot_id = self._link.agent.hello.boot_id
            if self._boot_id not in ("", boot_id):
                self._division.reboot(self._clock())
            self._boot_id = boot_id
        self.look()
        self._tell_of_pressure()

    def _forgotten(self) -> None:
        """The device began anew, perhaps with its guest: an agent that is there says so."""
        self._link.renew()
        self._division.reboot(self._clock())
        self.look()

    def look(self) -> None:
        """See how things stand, and follow; to be called when something may have changed."""
        self._end_presumption()
        self._want()
        self._division.see(self._view(), self._clock())
        if self._apply():
            self._divided()
        held = self._device.blocks.hold_bytes
        if held != self._held_bytes:
            self._held_bytes = held
            self._resized()

    def _view(self) -> AgentView:
        session = self._link.blocks
        if session is None:
            return AgentView()
        status = session.status
        return AgentView(
            is_usable=self._obstacle() is None,
            held_bytes=self._device.blocks.hold_bytes,
            known_bytes=self._device.blocks.known_hold_bytes,
            has_settled=session.has_settled,
            pressure_releases=session.counters.pressure_releases,
            is_pressed=status is not None and status.pressure,
        )

    def _apply(self) -> bool:
        """Do what was decided; return whether the kernel's part has changed."""
        session, division = self._link.blocks, self._division
        if session is not None:
            goal = division.goal_bytes
            if self._device.pages.is_inhibited:
                goal = min(goal, self._device.blocks.hold_bytes)
            session.set_goals(node_goals(goal, self.shares))
        self._set_timer(division.deadline)
        is_changed = self._device.elsewhere_bytes != division.relied_bytes
        self._device.elsewhere_bytes = division.relied_bytes
        state = self.state()
        if state != self._saved:
            self._saved = state
            self._save(state)
        return is_changed

    def _set_timer(self, deadline: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(deadline - self._clock(), 0.0), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._division.tick(self._clock())
        if self._apply():
            self._divided()

    def _tell_of_pressure(self) -> None:
        """Tell operators when the guest runs short of memory, and when that is over."""
        session = self._link.blocks
        if session is None or session.status is None:
            return
        status = session.status
        news = (status.pressure, session.counters.pressure_releases)
        if news == self._pressure:
            return
        before, self._pressure = self._pressure, news
        self._emit(
            PRESSURE_EVENT,
            {
                "pressure": status.pressure,
                "releases": news[1] - before[1],
                "available-bytes": status.available_bytes,
                "held-bytes": self._device.blocks.hold_bytes,
                "yielded-bytes": self._division.yielded_bytes,
            },
        )

    # What operators ask ----------------------------------------------------------------------

    def set_share(self, node: int, size_bytes: int) -> None:
        """Have a NUMA node contribute so much of what the guest gives up; 0 leaves it to the agent.

        Raises:
            OperatorError: There can be no such node or share.
        """
        if not 0 <= node <= MAX_NODE or size_bytes < 0:
            raise OperatorError(f"node {node} cannot contribute {size_bytes} bytes")
        self._session()
        if size_bytes:
            self.shares[node] = size_bytes
        else:
            self.shares.pop(node, None)
        self._apply()

    async def sweep(self, node: int | None, timeout_seconds: float) -> Mapping[str, object]:
        """Have the agent report what is free, on one node or all, and return what came of it.

        Raises:
            OperatorError: There is no agent that takes blocks, or it refuses.
            TimedOutError: It was not done in time.
        """
        self._require_blocks()
        message = Sweep(ANY_NODE if node is None else node)
        done = await self._link.request(message, SweepDone, timeout_seconds)
        return hyphenated(asdict(done))

    async def compact(self, node: int | None, timeout_seconds: float) -> Mapping[str, object]:
        """Have the guest's kernel move its pages together, and return what came of it.

        Raises:
            OperatorError: There is no agent that can have it done, or it refuses.
            TimedOutError: It was not done in time.
        """
        self._require_blocks()
        message = Compact(ANY_NODE if node is None else node)
        done = await self._link.request(message, CompactDone, timeout_seconds)
        return hyphenated(asdict(done))

    def _session(self) -> BlockSession:
        if self._link.blocks is None:
            raise OperatorError(
                "this VM is served without blocks", hint="Serve it without --no-agent-blocks."
            )
        return self._link.blocks

    def _require_blocks(self) -> None:
        self._session()
        obstacle = self._obstacle()
        if obstacle is not None and self._link.agent is not None:
            raise OperatorError(f"the agent in this guest takes no blocks: {obstacle}")

    def _obstacle(self) -> str | None:
        """Return what keeps the agent from taking blocks; None if nothing does."""
        session = self._link.blocks
        if session is None:
            return "switched off"
        if self._link.state is not LinkState.REPORTING:
            return str(self._link.state.value)
        if session.number is None:
            return "the agent does not know how"
        if not session.is_open:
            return "the agent has not said yet what it holds"
        if session.status is not None and session.status.refusing:
            return session.status.refusing
        if self._device.pages.is_inhibited:
            return "nothing is given back to the host now"
        if not self._device.pages.memory.regions:
            return "the guest's balloon driver is not running"
        return None

    def runs(self) -> list[Run]:
        """Return the pages of all blocks in the book, as (first page, count)."""
        return list(self._device.blocks.runs())

    def nodes(self) -> list[dict[str, object]]:
        """Return what is known of each of the guest's NUMA nodes, ready for JSON."""
        session = self._link.blocks
        status = None if session is None else session.status
        return node_rows(self._device.blocks, status, self.shares)

    def status(self) -> dict[str, object]:
        """Return everything there is to know, ready for JSON."""
        division = self._division
        return {
            "obstacle": self._obstacle(),
            "goal-bytes": division.goal_bytes,
            "relied-bytes": division.relied_bytes,
            "yielded-bytes": division.yielded_bytes,
            "nodes": self.nodes(),
            **blocks_status(self._device.blocks, self._link.blocks),
        }
