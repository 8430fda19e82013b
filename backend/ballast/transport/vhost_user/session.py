"""One front-end's connection: its requests, its memory and its rings, in front of the device.

Requests are served in the order in which they come, each to its end, between two slices of ring
work; so a ring is never stopped, and memory never taken away, in the middle of a buffer.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from ballast.balloon.device import BalloonDevice
from ballast.memory.map import MAX_REGIONS
from ballast.streams.unix import MessageSocket, peer_pid
from ballast.transport.reader import MessageReader
from ballast.transport.vhost_user.memory import SessionMemory
from ballast.transport.vhost_user.notifier import ConfigNotifier, NotifierCounts
from ballast.transport.vhost_user.rings import QUEUE_COUNT, Rings
from ballast_protocol.errors import MalformedError, PeerError
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
    ) -> None:
        """Take over a connected socket.

        Args:
            sock: The connection.
            device: What is behind it.
            ended: Called once, with a reason, when the connection is over.
            counts: Where config notifications are counted.
        """
        self.pid = peer_pid(sock)
        self._device = device
        self._ended = ended
        self._counts = counts
        self._connection = BackendConnection(
            features=device.offered,
            protocol_features=PROTOCOL_FEATURES,
            queue_count=QUEUE_COUNT,
            max_mem_slots=MAX_REGIONS,
            config_size=BalloonConfig.SIZE,
        )
        self._memory = SessionMemory(self._memory_damaged)
        self._rings = Rings(device)
        self._notifier: ConfigNotifier | None = None
        self._wants_notice = False
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._reader = MessageReader[events.Event](
            sock, self._connection, measure=message_bytes, serve=self._serve, ended=self._end
        )
        self._socket, self._fds = self._reader.socket, self._reader.fds

    # The main channel ------------------------------------------------------------------------

    def _serve(self, event: events.Event) -> None:
        """Serve one request and answer it, whatever happens: QEMU would wait for ever."""
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
            if isinstance(event, events.Unsupported):
                log.info("refused: %s", event.reason)
            self._reader.reply(reply)

    def _dispatch(self, event: events.Event) -> bytes:
        """Do what a request asks for and return the answer."""
        match event:
            case events.GetConfig():
                return self._connection.reply_config(self._device.config.pack())
            case events.SetConfig(offset=offset, data=data):
                self._device.write_config(self._device.config.patched(offset, data))
                return self._connection.ack()
            case events.GetVringBase(index):
                return self._connection.reply_vring_state(index, self._rings.stop(index))
            case events.SetMemTable() | events.AddMemRegion() | events.RemMemRegion():
                return self._connection.ack(self._change_memory(event))
            case events.SetFeatures() as accepted:
                self._rings.accept_features(accepted)
            case events.SetBackendReqFd():
                self._open_channel()
            case events.ResetDevice():
                self._rings.reset()
            case events.SetOwner():
                self._begin_anew()
            case events.ResetOwner() | events.SetLogBase() | events.SetLogFd():
                pass
            case _:
                return self._connection.ack(self._ring_request(event))
        return self._connection.ack()

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

    def _open_channel(self) -> None:
        if self._notifier is not None:
            self._wants_notice |= self._notifier.is_wanted
            self._notifier.close()
        try:
            channel = socket.socket(fileno=self._fds.peek())
        except OSError as error:
            raise MalformedError(f"the back-end's channel is not a socket: {error}") from error
        self._fds.steal()
        notifier = ConfigNotifier(
            MessageSocket(
                channel,
                lambda: notifier.readable(),
                lambda error: self._channel_failed(str(error)),
            ),
            need_reply=ProtocolFeature.REPLY_ACK in self._connection.protocol_features_acked,
            settle=self._settle,
            failed=self._channel_failed,
            counts=self._counts,
        )
        notifier.is_wanted, self._wants_notice = self._wants_notice, False
        self._notifier = notifier

    def _channel_failed(self, reason: str) -> None:
        """Live on without the channel; new targets reach the guest at its next config read."""
        if self._notifier is not None:
            self._wants_notice |= self._notifier.is_wanted
            self._notifier.close()
            self._notifier = None
            if not self._is_closed:
                log.warning("the channel for config changes is gone: %s", reason or "closed")

    def notify_config(self) -> None:
        """Have the guest read the config space again, as soon as that is safe."""
        if self._notifier is None:
            self._wants_notice = True
        else:
            self._notifier.notify()

    def _ring_request(self, event: events.Event) -> bool:
        """Serve a request about one ring; a notification that waited for a start can now go."""
        is_served = self._rings.request(event, self._fds)
        if self._notifier is not None and self._notifier.is_wanted:
            self._loop.call_soon(self._notifier.pump)
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
        """Let go of everything: rings, memory, descriptors, sockets."""
        if self._is_closed:
            return
        self._is_closed = True
        self._channel_failed("")
        self._rings.close()
        self._device.disconnect()
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
