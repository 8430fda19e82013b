"""One front-end's connection: its requests, its memory and its rings, in front of the device.

Requests are served in the order in which they come, each to its end, between two slices of ring
work; so a ring is never stopped, and memory never taken away, in the middle of a buffer.

A session outlives its process. What a request changes is saved as a whole, together with the fact
that it was served; only then its reply is sent and rings are served that it has started. So a
successor either goes on with the next request or serves the same one once more, of which nobody has
seen anything. How far a ring was served stands in its used ring.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from ballast.balloon.device import BalloonDevice
from ballast.balloon.state import restore as restore_device
from ballast.balloon.state import save as save_device
from ballast.memory.map import MAX_REGIONS
from ballast.state.file import StateFile
from ballast.streams.fdstore import VmStore
from ballast.streams.outbox import Outbox
from ballast.streams.unix import peer_pid
from ballast.transport.kept import KeptFds
from ballast.transport.reader import MessageReader, Position
from ballast.transport.records import SessionRecords
from ballast.transport.vhost_user.back_channel import BackChannel
from ballast.transport.vhost_user.memory import SessionMemory
from ballast.transport.vhost_user.notifier import NotifierCounts
from ballast.transport.vhost_user.rings import QUEUE_COUNT, Rings
from ballast.transport.vhost_user.saved import OUTBOX, SavedSession
from ballast.transport.vhost_user.vring import FIRST_CELL
from ballast_protocol.errors import PeerError, StateError
from ballast_protocol.vhost_user import events
from ballast_protocol.vhost_user.connection import BackendConnection
from ballast_protocol.vhost_user.message import ProtocolFeature, message_bytes
from ballast_protocol.virtio.balloon import BalloonConfig

log = logging.getLogger(__name__)

PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
)
"""What is offered. LOG_SHMFD is not: a balloon writes only used rings, and QEMU cannot migrate
this device; INFLIGHT_SHMFD is not: QEMU's generic device never asks for it."""

_QUESTIONS = (
    events.GetFeatures,
    events.GetProtocolFeatures,
    events.GetQueueNum,
    events.GetMaxMemSlots,
    events.GetConfig,
    events.Unsupported,
)
"""Requests that change nothing."""

TURNS_TO_SETTLE = 32
"""More turns than all that a socket can hold needs; a peer that goes on is not waited for."""


class Session:
    """Serves one connection until it ends.

    Attributes:
        pid: The front-end's process, if known.
    """

    def __init__(
        self,
        sock: socket.socket,
        device: BalloonDevice,
        *,
        ended: Callable[[str], None],
        counts: NotifierCounts,
        store: VmStore,
        state: StateFile | None = None,
    ) -> None:
        """Take over a connected socket; `go_on` where a predecessor has used it.

        Args:
            sock: The connection.
            device: What is behind it.
            ended: Called once, with a reason, when the connection is over.
            counts: Where config notifications are counted.
            store: Where descriptors are kept for a successor, and where a predecessor left them.
            state: Where all else is kept for it; None if there will be none.

        Raises:
            StateError: A predecessor's state cannot be used.
        """
        self.pid = peer_pid(sock)
        self._device = device
        self._ended = ended
        self._records: SessionRecords[SavedSession] | None = None
        saved, position = None, Position()
        if state is not None:
            self._records = SessionRecords(state, sock, "vhost-user", SavedSession)
            saved, position = self._records.load() or (None, position)
        self._features_offered = saved.features_offered if saved else device.offered
        self._connection = BackendConnection(
            features=self._features_offered,
            protocol_features=PROTOCOL_FEATURES,
            queue_count=QUEUE_COUNT,
            max_mem_slots=MAX_REGIONS,
            config_size=BalloonConfig.SIZE,
        )
        self._kept = KeptFds(store)
        self._memory = SessionMemory(self._kept, self._memory_damaged)
        cells = state.cells if state else [0] * (FIRST_CELL + QUEUE_COUNT)
        self._rings = Rings(device, self._kept, cells, self._save_now)
        self._channel = BackChannel(self._kept, counts, settle=self._settle, lost=self._save_now)
        self._is_changed = False
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        outbox = Outbox(self._kept.take(OUTBOX), position.replied_bytes) if saved else None
        self._reader = MessageReader[events.Event](
            sock,
            self._connection,
            measure=message_bytes,
            serve=self._serve,
            ended=self._end,
            save=self._save if self._records else None,
            saved=self._rings.release,
            position=position,
            outbox=outbox,
        )
        self._socket, self._fds = self._reader.socket, self._reader.fds
        if saved is not None:
            try:
                self._go_on(saved)
            except StateError:
                self._let_go()
                raise
        else:
            self._kept.put(OUTBOX, self._socket.outbox.fd)

    # The main channel ------------------------------------------------------------------------

    def _serve(self, event: events.Event) -> None:
        """Serve one request and answer it, whatever happens: QEMU would wait for ever."""
        self._rings.hold()
        with self._fds:
            try:
                reply = self._connection.auto_reply(event)
                if reply is None:
                    reply = self._dispatch(event)
            except PeerError:
                raise
            except Exception:
                log.exception("a bug of ours in serving %r", event)
                if self._connection.pending is None:
                    return
                reply = self._connection.ack(ok=False)
            self._is_changed |= not self._leaves_as_it_was(event)
            if isinstance(event, events.Unsupported):
                log.info("refused: %s", event.reason)
            self._reader.reply(reply)

    def _leaves_as_it_was(self, event: events.Event) -> bool:
        """Whether a request changes nothing that is saved; `actual` is in a cell of its own."""
        is_actual = isinstance(event, events.SetConfig) and self._device.is_running
        return is_actual or isinstance(event, _QUESTIONS)

    def _dispatch(self, event: events.Event) -> bytes:
        """Do what a request asks for and return the answer."""
        match event:
            case events.GetConfig():
                return self._connection.reply_config(self._device.config.pack())
            case events.SetConfig() as write:
                self._device.write_config(self._written(write))
                return self._connection.ack()
            case events.GetVringBase(index):
                return self._connection.reply_vring_state(index, self._rings.stop(index))
            case events.SetMemTable() | events.AddMemRegion() | events.RemMemRegion():
                return self._connection.ack(self._change_memory(event))
            case events.SetFeatures() as accepted:
                self._rings.accept_features(accepted)
            case events.SetBackendReqFd():
                self._channel.open(self._fds, need_reply=self._need_reply)
            case events.ResetDevice():
                self._rings.reset()
            case events.SetOwner():
                self._begin_anew()
            case events.ResetOwner() | events.SetLogBase() | events.SetLogFd():
                pass
            case _:
                return self._connection.ack(self._ring_request(event))
        return self._connection.ack()

    def _written(self, write: events.SetConfig) -> BalloonConfig:
        """Return the config space after a write: QEMU sends all of it, other front-ends a part."""
        if not write.offset and len(write.data) == BalloonConfig.SIZE:
            return BalloonConfig.unpack(write.data)
        return self._device.config.patched(write.offset, write.data)

    # Features, memory, channel ---------------------------------------------------------------

    def _change_memory(
        self, event: events.SetMemTable | events.AddMemRegion | events.RemMemRegion
    ) -> bool:
        """Follow a change of guest memory; return whether it could be followed.

        The rings let go of the old map first, so that its regions can be closed before the answer.
        """
        self._rings.let_go()
        try:
            match event:
                case events.SetMemTable(regions):
                    self._memory.replace(regions, self._fds)
                case events.AddMemRegion(region):
                    self._memory.add(region, self._fds)
                case events.RemMemRegion(region):
                    self._memory.remove(region)
        except PeerError as error:
            self._rings.report_problem(f"QEMU's memory cannot be used: {error}")
            return False
        finally:
            self._rings.use(self._memory.map)
        return True

    def _begin_anew(self) -> None:
        """A device was plugged in on this connection, for the first time or again.

        QEMU keeps the connection over device_del, takes no memory back, and announces all of it
        once more to the next device.
        """
        self._rings.reset()
        self._rings.let_go()
        self._device.disconnect()
        self._memory.close()
        self._rings.use(self._memory.map)

    @property
    def _need_reply(self) -> bool:
        return ProtocolFeature.REPLY_ACK in self._connection.protocol_features_acked

    def notify_config(self) -> None:
        """Have the guest read the config space again, as soon as that is safe."""
        self._save_now()
        self._channel.notify()

    def _ring_request(self, event: events.Event) -> bool:
        """Serve a request about one ring; a notification that waited for a start can now go."""
        is_served = self._rings.request(event, self._fds)
        self._channel.pump_soon()
        return is_served

    def _settle(self) -> bool:
        """Serve everything that has arrived on the main channel; return whether the rings run."""
        for _ in range(TURNS_TO_SETTLE):
            if self._is_closed or not self._socket.has_input():
                break
            self._reader.read()
        else:
            return False
        return not self._is_closed and not self._reader.is_mid_message and self._rings.is_running

    # A successor -----------------------------------------------------------------------------

    def _save(self) -> None:
        """Save everything as of now; the message that was served is one of those that were."""
        assert self._records is not None
        session = self._session() if self._is_changed else None
        self._records.save(self._reader.position, session)
        self._is_changed = False
        self._kept.settle()

    def _save_now(self) -> None:
        """Something has changed that no message brought; in the middle of one, that saves it."""
        self._is_changed = True
        if self._records is not None and not self._reader.is_serving and not self._is_closed:
            self._save()

    def _session(self) -> SavedSession:
        return SavedSession(
            features_offered=self._features_offered,
            features_acked=self._connection.features_acked,
            protocol_features_acked=int(self._connection.protocol_features_acked),
            regions=self._memory.save(),
            vrings=self._rings.save(),
            channel=self._channel.number,
            device=save_device(self._device),
        )

    def _go_on(self, saved: SavedSession) -> None:
        """Go on where a predecessor was killed.

        Raises:
            StateError: What it left cannot be used.
        """
        restore_device(self._device, saved.device)
        self._connection.features_acked = saved.features_acked
        self._connection.protocol_features_acked = ProtocolFeature(saved.protocol_features_acked)
        self._memory.restore(saved.regions)
        self._rings.restore(events.SetFeatures(saved.features_acked), saved.vrings)
        self._channel.restore(saved.channel, need_reply=self._need_reply)
        self._loop.call_soon(self._begin_again)

    def _begin_again(self) -> None:
        """Send what is owed, and look at everything: what came meanwhile was told to nobody."""
        if self._is_closed:
            return
        try:
            self._reader.recover()
        except PeerError as error:
            self._end(str(error))
            return
        self._rings.go_on(self._memory.map)
        self._save_now()
        self._channel.go_on()
        self._reader.read()

    # The end ---------------------------------------------------------------------------------

    def request_statistics(self) -> bool:
        """Ask the guest for new statistics; return whether it was possible to ask."""
        return self._rings.request_statistics()

    def refresh(self) -> None:
        """Nothing to do: every write of the guest comes as a message."""

    @property
    def problem(self) -> str:
        """What keeps the balloon from working, for the operator; empty if nothing does."""
        return self._rings.problem

    def _memory_damaged(self) -> None:
        """The front-end has taken memory away that it still shares; end as soon as that is safe."""
        self._loop.call_soon(self._end, "its memory file was shrunk, or has no pages left")

    def _end(self, reason: str) -> None:
        if not self._is_closed:
            self.close()
            self._ended(reason)

    def close(self) -> None:
        """Let go of everything for good: nobody will go on with this connection."""
        if not self._is_closed:
            self._let_go()
            self._device.disconnect()
            self._kept.close()

    def _let_go(self) -> None:
        """Close everything here, and leave what is stored."""
        self._is_closed = True
        self._channel.close()
        self._rings.close()
        self._memory.close()
        self._reader.close()

    def status(self) -> dict[str, object]:
        """Return what operators may want to know of the connection."""
        return {
            "pid": self.pid,
            "running": self._rings.is_running,
            "features": self._connection.features_acked,
            "protocol-features": int(self._connection.protocol_features_acked),
            "memory-regions": len(self._memory.map.regions),
            "rings": self._rings.describe(),
            "problem": self._rings.problem,
        }
