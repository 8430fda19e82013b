"""One vfio-user client's connection: its requests, its memory, and the function in front of it.

A reply goes out before the rings are served that a request speaks of: QEMU holds its global lock
while it waits, and a server that worked first would stop the virtual machine for that long.

A session outlives its process. What a request changes is saved together with the fact that it was
served, as a whole; its reply is sent after that, and rings are served after that. A successor that
is killed into the place of this one goes on with the next request, or serves this one again, and
nothing of it was seen by anybody then. Rings need not be saved: how far a queue was served stands
in its used ring.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable

from ballast.balloon.device import BalloonDevice
from ballast.balloon.state import restore, revision, save
from ballast.state.file import StateFile
from ballast.streams.fds import FdSet
from ballast.streams.fdstore import VmStore
from ballast.streams.outbox import Outbox
from ballast.streams.unix import peer_pid
from ballast.transport.kept import KeptFds
from ballast.transport.reader import MessageReader, Position
from ballast.transport.records import SessionRecords
from ballast.transport.vfio_user.function import Function
from ballast.transport.vfio_user.memory import DmaMemory
from ballast.transport.vfio_user.model import describe
from ballast.transport.vfio_user.saved import RECORD, SavedSession
from ballast.virtio_pci.layout import Variant
from ballast_protocol.errors import PeerError, StateError
from ballast_protocol.vfio_user import events
from ballast_protocol.vfio_user.codes import name_of
from ballast_protocol.vfio_user.connection import ServerConnection
from ballast_protocol.vfio_user.message import message_bytes

log = logging.getLogger(__name__)

_OUTBOX = "outbox"

_ACCESSES = (events.RegionRead, events.RegionWrite, events.RegionWriteMulti)
"""What changes nothing but the function, which is compared with what was saved last."""


class Session:
    """Serves one connection until it ends.

    Attributes:
        pid: The client's process, if known.
    """

    def __init__(
        self,
        sock: socket.socket,
        device: BalloonDevice,
        *,
        variant: Variant,
        ended: Callable[[str], None],
        store: VmStore,
        state: StateFile | None = None,
    ) -> None:
        """Take over a connected socket.

        Args:
            sock: The connection.
            device: What is behind it, as a predecessor left it if there was one.
            variant: How interrupts and config reads reach the guest.
            ended: Called once, with a reason, when the connection is over.
            store: Where descriptors are kept for a successor.
            state: Where all else is kept for it; None if there will be none.

        Raises:
            StateError: There was a predecessor. What it left cannot be used, and stays as it is.
        """
        self.pid = peer_pid(sock)
        self._device = device
        self._ended = ended
        self._records: SessionRecords[SavedSession] | None = None
        if state is not None:
            self._records = SessionRecords(state, sock, RECORD, SavedSession)
        left = None if self._records is None else self._records.load()
        saved, position = left or (None, Position())
        connection = None if saved is None else saved.connection_state()
        self._kept = KeptFds(store)
        self._memory = DmaMemory(self._kept, self._memory_damaged)
        self._function = Function(
            device,
            variant,
            self._kept,
            saved=None if saved is None else saved.function,
            changed=self._save_now,
        )
        self._connection = ServerConnection(describe(self._function.layout), state=connection)
        self._messages: Counter[str] = Counter()
        self._is_closed = self._has_changed = False
        self._last_seen: object = None
        self._page_fds = FdSet()
        self._page_reply_end = 0 if saved is None else saved.page_reply_end
        self._loop = asyncio.get_running_loop()
        outbox = self._outbox(position, is_resumed=saved is not None)
        self._reader = MessageReader[events.Request | events.Completion](
            sock,
            self._connection,
            measure=message_bytes,
            serve=self._take,
            ended=self._end,
            save=None if self._records is None else self._save,
            saved=self._was_saved,
            position=position,
            outbox=outbox,
        )
        self._fds = self._reader.fds
        self._function.attach(self._connection, self._reader.reply)
        if saved is None:
            # Whatever the device still knows is of another machine.
            device.disconnect()
            self._save_now()
        else:
            self._go_on(saved)

    def _outbox(self, position: Position, *, is_resumed: bool) -> Outbox:
        try:
            if is_resumed:
                return Outbox(self._kept.take(_OUTBOX), position.replied_bytes)
        except StateError:
            self._function.close()
            raise
        outbox = Outbox()
        self._kept.put(_OUTBOX, outbox.fd)
        return outbox

    # A successor -----------------------------------------------------------------------------

    def _go_on(self, saved: SavedSession) -> None:
        """Go on where a predecessor has stopped, or leave it to another one.

        Raises:
            StateError: What it left cannot be used.
        """
        try:
            self._resume(saved)
        except PeerError as error:
            self._loop.call_soon(self._end, str(error))
        except BaseException:
            self._let_go()
            raise

    def _resume(self, saved: SavedSession) -> None:
        restore(self._device, saved.device)
        self._memory.restore(saved.regions)
        self._memory.maps_without_file = saved.maps_without_file
        self._send_page()
        self._reader.recover()
        self._function.resume(self._memory.map)
        log.info("went on with the connection of process %s", self.pid)

    def _send_page(self) -> None:
        """See to the reply that goes with the page's file, if that is the one to be sent.

        It does not go out with `sendfile`, so the outbox may not know that it did.
        """
        outbox, number = self._reader.socket.outbox, self._page_reply_end
        if not outbox.pending or outbox.end != number:
            return
        page = self._function.config.page
        if page.was_passed_on(number):
            outbox.take(outbox.pending)
            return
        with FdSet((page.pass_on(number),)) as fds:
            self._reader.socket.flush((fds.peek(),))

    def _save(self) -> None:
        """Save what the message being served has changed, and that it was served."""
        assert self._records is not None
        seen = self._function.revision, revision(self._device)
        if not self._has_changed and seen == self._last_seen:
            self._records.save(self._reader.position, None)
            return
        self._last_seen, self._has_changed = seen, False
        connection = self._connection.save()
        self._records.save(
            self._reader.position,
            SavedSession(
                None if connection is None else connection.to_values(),
                self._memory.save(),
                self._memory.maps_without_file,
                self._function.save(),
                save(self._device),
                self._page_reply_end,
            ),
        )

    def _save_now(self) -> None:
        """Save what has changed without a message; while one is served it is saved with that."""
        self._has_changed = True
        if self._records is not None and not self._reader.is_serving:
            self._save()

    def _was_saved(self) -> None:
        """The reply is on its way: let go of what is not needed any more, and serve rings."""
        self._page_fds.close()
        self._kept.settle()
        self._function.queues.release()

    # Messages --------------------------------------------------------------------------------

    def _take(self, arrived: events.Request | events.Completion) -> None:
        self._function.queues.hold()
        with self._fds:
            if isinstance(arrived, events.Request):
                self._serve(arrived)
            else:
                self._has_changed = True
                self._function.probe.answered(arrived)

    def _serve(self, request: events.Request) -> None:
        """Serve one request and answer it, whatever happens: QEMU would wait for its time-out."""
        event = request.event
        refused = event if isinstance(event, events.Refused) else None
        self._messages["refused" if refused else name_of(request.command)] += 1
        is_access = isinstance(event, _ACCESSES)
        self._has_changed |= not is_access
        try:
            reply = None if is_access else self._connection.auto_reply(request)
            if reply is None:
                self._dispatch(request)
                return
        except PeerError:
            raise
        except Exception:
            log.exception("a bug of ours in serving %r", request)
            reply = self._give_up(request)
        if refused:
            log.info("refused: %s", refused.reason)
        self._reader.reply(reply)

    def _give_up(self, request: events.Request) -> bytes:
        """Answer a request that we failed to serve, unless that was after the answer."""
        if not self._connection.pending:
            return b""
        if isinstance(request.event, events.DmaUnmap | events.DmaUnmapAll):
            return self._connection.ack(request)
        return self._connection.refuse(request, errno.EIO)

    def _dispatch(self, request: events.Request) -> None:
        """Do what a request asks for, and answer it."""
        match request.event:
            case events.RegionWrite() as write:
                self._ack(request)
                self._function.write((write,))
            case events.RegionRead(region, offset, count):
                data = self._function.read(region, offset, count)
                self._reader.reply(self._connection.reply_data(request, data))
            case events.RegionWriteMulti(writes):
                self._ack(request)
                self._function.write(writes)
            case events.DmaMap() | events.DmaUnmap() | events.DmaUnmapAll():
                self._change_memory(request)
            case events.GetRegionInfo() | events.GetRegionIoFds():
                self._describe(request)
            case events.SetIrqEventfds() as given:
                self._set_eventfds(request, given)
            case events.DisableIrqs(index):
                self._function.irqs.disable(index)
                self._ack(request)
            case events.ActOnIrqs() as asked:
                self._ack(request)
                self._function.irqs.act(asked)
            case events.DeviceReset():
                self._ack(request)
                self._function.reset()
            case _:
                self._reader.reply(self._connection.refuse(request, errno.ENOTSUP))

    def _describe(self, request: events.Request) -> None:
        """Answer with a description, which the file of the page may have to go along with."""
        described = self._connection.describe(request)
        if described.with_fds:
            self._page_reply_end = self._reader.socket.outbox.end + len(described.payload)
            page = self._function.config.page
            self._page_fds = FdSet((page.pass_on(self._page_reply_end),))
        fds = (self._page_fds.peek(),) if described.with_fds else ()
        self._reader.reply(described.payload, fds)

    def _set_eventfds(self, request: events.Request, given: events.SetIrqEventfds) -> None:
        try:
            self._function.irqs.set(given, self._fds)
        except PeerError as error:
            log.warning("an interrupt's descriptor cannot be used: %s", error)
            self._reader.reply(self._connection.refuse(request, errno.EINVAL))
        else:
            self._ack(request)

    def _ack(self, request: events.Request) -> None:
        self._reader.reply(self._connection.ack(request))

    # Memory ----------------------------------------------------------------------------------

    def _change_memory(self, request: events.Request) -> None:
        """Follow a change of the DMA maps. Queues let go first, so that files can be closed."""
        self._function.let_go()
        try:
            self._reader.reply(self._follow(request))
        finally:
            self._function.use(self._memory.map)

    def _follow(self, request: events.Request) -> bytes:
        """Change the memory, and return the answer."""
        match request.event:
            case events.DmaMap() as mapped:
                try:
                    self._memory.add(mapped, self._fds)
                except PeerError as error:
                    log.warning("a DMA map cannot be used: %s", error)
                    return self._connection.refuse(request, errno.EINVAL)
            case events.DmaUnmap(address, size):
                self._memory.remove(address, size)
            case _:
                self._memory.close()
        return self._connection.ack(request)

    # What the daemon asks --------------------------------------------------------------------

    @property
    def problem(self) -> str:
        """What keeps the balloon from working, for the operator; empty if nothing does."""
        return self._function.problem

    @property
    def variant(self) -> Variant:
        """How interrupts and config reads reach the guest."""
        return self._function.variant

    def notify_config(self) -> None:
        """Have the guest read the config space again."""
        self._function.notify_config()

    def request_statistics(self) -> bool:
        """Ask the guest for new statistics; return whether it was possible to ask."""
        return self._function.queues.request_statistics()

    def refresh(self) -> None:
        """Take what the guest has written to memory of ours since we last looked."""
        self._function.config.take()

    def _memory_damaged(self) -> None:
        """The client has taken memory away that it still shares; end as soon as that is safe."""
        self._loop.call_soon(self._end, "its memory file was shrunk, or has no pages left")

    def _end(self, reason: str) -> None:
        if not self._is_closed:
            self.close()
            self._ended(reason)

    def close(self) -> None:
        """Let go of everything for good: nobody will go on with this connection."""
        if not self._is_closed:
            self._let_go(self._device.disconnect)
            self._kept.close()

    def _let_go(self, forget: Callable[[], None] = lambda: None) -> None:
        """Let go of everything here, with the books forgotten in between if they are void."""
        self._is_closed = True
        self._page_fds.close()
        self._function.close()
        forget()
        self._memory.close()
        self._reader.close()

    def status(self) -> dict[str, object]:
        """Return what operators may want to know of the connection."""
        return {
            "pid": self.pid,
            **self._function.status(),
            "memory-regions": len(self._memory.map.regions),
            "messages": {
                name.lower().replace("_", "-"): count for name, count in self._messages.items()
            },
            "problem": self.problem,
        }
