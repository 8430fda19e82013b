"""One vfio-user client's connection: its requests, its memory, and the function in front of it.

A reply goes out before the work that a request causes: QEMU holds its global lock while it waits,
and a server that worked first would stop the virtual machine for that long. The one exception is
DMA_UNMAP, whose reply says that the memory is no longer in use.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable

from ballast.balloon.device import BalloonDevice
from ballast.streams.unix import peer_pid
from ballast.transport.base import NO_SHARED_MEMORY
from ballast.transport.reader import MessageReader
from ballast.transport.vfio_user.config import ConfigSharing
from ballast.transport.vfio_user.irqs import Irqs
from ballast.transport.vfio_user.memory import DmaMemory
from ballast.transport.vfio_user.model import BalloonModel, describe
from ballast.transport.vfio_user.queues import Queues
from ballast.virtio_pci import effects as pci
from ballast.virtio_pci.device import VirtioPci
from ballast.virtio_pci.layout import Variant, make_layout
from ballast_protocol.errors import GuestError, PeerError
from ballast_protocol.vfio_user import events
from ballast_protocol.vfio_user.connection import ServerConnection
from ballast_protocol.vfio_user.message import message_bytes, name_of

log = logging.getLogger(__name__)

_AVAIL_HEAD_BYTES = 4
"""Flags and index of an available ring."""


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
    ) -> None:
        """Take over a connected socket.

        Args:
            sock: The connection.
            device: What is behind it.
            variant: How interrupts and config reads reach the guest.
            ended: Called once, with a reason, when the connection is over.
        """
        self.pid = peer_pid(sock)
        self._device = device
        self._ended = ended
        model = BalloonModel(device)
        layout = make_layout(
            variant,
            queue_count=model.queue_count,
            config_size=model.config_size,
            has_function_reset=True,
        )
        self._pci = VirtioPci(model, layout)
        self._connection = ServerConnection(describe(layout))
        self._memory = DmaMemory(self._memory_damaged)
        self._irqs = Irqs(self._unmasked)
        self._queues = Queues(
            device,
            may_run=lambda: self._pci.is_running,
            interrupt=self._interrupt_queue,
            broke=self._queue_broke,
        )
        self._config = ConfigSharing(device, layout)
        self._messages: Counter[str] = Counter()
        self._probe: int | None = None
        self._is_probing = self._is_probed = self._is_private = False
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._reader = MessageReader[events.Request | events.Completion](
            sock, self._connection, measure=message_bytes, serve=self._take, ended=self._end
        )
        self._socket, self._fds = self._reader.socket, self._reader.fds

    # Messages --------------------------------------------------------------------------------

    def _take(self, arrived: events.Request | events.Completion) -> None:
        with self._fds:
            if isinstance(arrived, events.Request):
                self._serve(arrived)
            else:
                self._probed(arrived)

    def _serve(self, request: events.Request) -> None:
        """Serve one request and answer it, whatever happens: QEMU would wait for its time-out."""
        is_refused = isinstance(request.event, events.Refused)
        self._messages["refused" if is_refused else name_of(request.command)] += 1
        try:
            reply = self._connection.auto_reply(request)
            if reply is None:
                self._dispatch(request)
                return
        except PeerError:
            raise
        except Exception:
            log.exception("a bug of ours in serving %r", request)
            reply = self._give_up(request)
        if isinstance(request.event, events.Refused):
            log.info("refused: %s", request.event.reason)
        self._socket.send(reply)

    def _give_up(self, request: events.Request) -> bytes:
        """Answer a request that we failed to serve, unless that was after the answer."""
        if not self._connection.pending:
            return b""
        if isinstance(request.event, events.DmaUnmap | events.DmaUnmapAll):
            return self._connection.ack(request)
        return self._connection.refuse(request, errno.EIO)

    def _dispatch(self, request: events.Request) -> None:
        """Do what a request asks for, and answer it at the right moment."""
        match request.event:
            case events.RegionRead(region, offset, count):
                data = self._pci.read(region, offset, count)
                self._socket.send(self._connection.reply_data(request, data))
            case events.RegionWrite() as write:
                self._write(request, (write,))
            case events.RegionWriteMulti(writes):
                self._write(request, writes)
            case events.DmaMap() | events.DmaUnmap() | events.DmaUnmapAll():
                self._change_memory(request)
            case events.GetRegionInfo() | events.GetRegionIoFds():
                described = self._connection.describe(request)
                fds = (self._config.fd,) if described.with_fds else ()
                self._socket.send(described.payload, fds)
            case events.SetIrqEventfds() as given:
                self._set_eventfds(request, given)
            case events.DisableIrqs(index):
                self._irqs.disable(index)
                self._ack(request)
            case events.ActOnIrqs() as asked:
                self._ack(request)
                self._irqs.act(asked)
            case events.DeviceReset():
                self._ack(request)
                self._carry_out(self._pci.reset())
            case _:
                self._socket.send(self._connection.refuse(request, errno.ENOTSUP))

    def _set_eventfds(self, request: events.Request, given: events.SetIrqEventfds) -> None:
        try:
            self._irqs.set(given, self._fds)
        except PeerError as error:
            log.warning("an interrupt's descriptor cannot be used: %s", error)
            self._socket.send(self._connection.refuse(request, errno.EINVAL))
        else:
            self._ack(request)

    def _ack(self, request: events.Request) -> None:
        self._socket.send(self._connection.ack(request))

    def _write(self, request: events.Request, writes: tuple[events.RegionWrite, ...]) -> None:
        """Take writes; answer before what they cause is carried out."""
        effects: pci.Effects = ()
        for write in writes:
            self._config.written(write.region, write.offset, write.data)
            caused = self._pci.write(write.region, write.offset, write.data)
            # What came before a reset must not be done after it.
            effects = caused if pci.DeviceReset() in caused else effects + caused
        self._ack(request)
        self._carry_out(effects)

    # Memory ----------------------------------------------------------------------------------

    def _change_memory(self, request: events.Request) -> None:
        """Follow a change of the DMA maps. Queues let go first, so that files can be closed."""
        self._queues.let_go()
        try:
            self._socket.send(self._follow(request))
        finally:
            self._queues.use(self._memory.map)
            self._config.show()

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

    # What the guest does ---------------------------------------------------------------------

    def _carry_out(self, effects: pci.Effects) -> None:
        """Do what follows from the guest's accesses."""
        for effect in effects:
            match effect:
                case pci.DriverReady(features):
                    self._start(features)
                case pci.DeviceReset():
                    self._stop()
                case pci.QueueNotified(index):
                    self._notified(index)
                case pci.QueueEnabled(index) if self._device.is_running:
                    self._queue_enabled(index)
                case pci.BusMasterChanged(is_enabled) if is_enabled and self._pci.is_running:
                    self._queues.serve_all()
                case pci.IntxAsserted():
                    self._irqs.raise_(pci.Intx())
                case _:
                    log.debug("%r", effect)

    def _start(self, features: int) -> None:
        """A new driver is ready; it may have filled queues before it said so."""
        log.info("the driver starts, features %#x", features)
        self._is_probed = self._is_private = False
        self._config.driver_begins()
        self._device.start(features, fresh=True)
        self._config.show()
        states = {
            index: state
            for index in range(BalloonModel.queue_count)
            if (state := self._pci.queue_state(index)) is not None
        }
        self._queues.start(states)

    def _stop(self) -> None:
        """The device was reset, by the driver or with the machine."""
        self._queues.stop()
        self._probe = None
        self._config.driver_ends()
        if self._device.is_hinting:
            # Or the next driver takes the order of this round for one to itself.
            self._device.finish_hinting()
        if self._device.is_running:
            log.info("the driver is gone")
            self._device.stop()

    def _notified(self, index: int) -> None:
        self._config.take()
        self._queues.serve(index)
        self._config.watch()
        if not self._is_probed and not self._is_probing:
            self._ask_for_ring(index)

    def _queue_enabled(self, index: int) -> None:
        """A driver at work has set up one more queue."""
        state = self._pci.queue_state(index)
        if state is not None:
            self._queues.add(index, state)

    def _queue_broke(self) -> None:
        """The device cannot go on with what the driver has done; only a reset helps."""
        self._irqs.raise_(self._pci.needs_reset())

    def _interrupt_queue(self, index: int) -> None:
        self._irqs.raise_(self._pci.interrupt_for_queue(index))

    def _unmasked(self) -> None:
        """The client has unmasked INTx: raise it again if there is still a reason."""
        if self._pci.is_intx_asserted:
            self._irqs.raise_(pci.Intx())

    # Is the memory really shared? ------------------------------------------------------------

    def _ask_for_ring(self, index: int) -> None:
        """Read a ring through the client, to see whether ours shows the same memory.

        QEMU passes a file for memory with `share=off` too; it has then private copies of the pages,
        and ours stay empty.
        """
        self._is_probed = True
        address = self._queues.driver_ring(index)
        if address is None:
            return
        try:
            command = self._connection.dma_read(address, _AVAIL_HEAD_BYTES)
        except (PeerError, GuestError) as error:
            log.debug("the ring cannot be read through the client: %s", error)
            return
        self._probe, self._is_probing = index, True
        self._socket.send(command.data)

    def _probed(self, completion: events.Completion) -> None:
        index, self._probe, self._is_probing = self._probe, None, False
        # The driver that was asked about may be gone, and with it what its ring was.
        if index is None or not isinstance(completion, events.DmaReadDone):
            return
        if self._queues.looks_empty(index, int.from_bytes(completion.data[2:4], "little")):
            self._is_private = True
            log.error("%s", NO_SHARED_MEMORY)

    @property
    def problem(self) -> str:
        """What keeps the balloon from working, for the operator; empty if nothing does."""
        return NO_SHARED_MEMORY if self._is_private else self._queues.problem

    # What the daemon asks --------------------------------------------------------------------

    def notify_config(self) -> None:
        """Have the guest read the config space again."""
        self._config.show()
        self._irqs.raise_(self._pci.config_changed())

    def request_statistics(self) -> bool:
        """Ask the guest for new statistics; return whether it was possible to ask."""
        return self._queues.request_statistics()

    def refresh(self) -> None:
        """Take what the guest has written to memory of ours since we last looked."""
        self._config.take()

    def _memory_damaged(self) -> None:
        """The client has taken memory away that it still shares; end as soon as that is safe."""
        self._loop.call_soon(self._end, "its memory file was shrunk, or has no pages left")

    def _end(self, reason: str) -> None:
        if not self._is_closed:
            self.close()
            self._ended(reason)

    def close(self) -> None:
        """Let go of everything: queues, memory, descriptors, the socket."""
        if self._is_closed:
            return
        self._is_closed = True
        self._queues.close()
        self._config.close()
        self._device.disconnect()
        self._memory.close()
        self._irqs.close()
        self._reader.close()

    def status(self) -> dict[str, object]:
        """Return what operators may want to know of the connection."""
        return {
            "pid": self.pid,
            "running": self._device.is_running,
            "features": self._pci.features,
            "device-status": int(self._pci.status),
            "memory-regions": len(self._memory.map.regions),
            "rings": self._queues.describe(),
            "messages": {
                name.lower().replace("_", "-"): count for name, count in self._messages.items()
            },
            "ignored-writes": self._pci.ignored_writes,
            "problem": self.problem,
        }
