"""One connection to an MQTT 5 broker.

aiomqtt does the work. What it leaves out is here, through the public calls of the paho client below
it: acknowledgements that wait until we have taken a message over, flags of incoming messages, what
the broker refuses, and an end that frees the socket whatever state the broker is in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiomqtt
from paho.mqtt.client import (
    MQTT_ERR_NO_CONN,
    ConnectFlags,
    DisconnectFlags,
    MQTTMessage,
    error_string,
)
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from ballast.mqtt.command import Request
from ballast.mqtt.config import MqttConfig
from ballast.mqtt.outbox import Outgoing
from ballast.mqtt.topics import OFFLINE, Topics
from ballast_protocol.errors import PeerError

log = logging.getLogger(__name__)

ANSWER_SECONDS = 20.0
"""How long a broker may take to answer before the connection is given up."""

GOODBYE_SECONDS = 2.0
"""How long it may take to take leave of us."""

MAX_PACKET_BYTES = 65536
"""The largest packet that a broker may send to us."""

MAX_PACKET = 268_435_455
"""The largest packet of MQTT, which holds where the broker names no other bound (5.0, 2.1.4)."""

RECEIVE_MAXIMUM = 32
"""How many messages it may send before we have acknowledged the first of them."""

_OVERHEAD_BYTES = 64
"""More than what a PUBLISH packet has besides topic, payload and correlation data."""

_JSON = "application/json"

_ENDED = (
    "the broker ends the connection without an answer; it may want TLS, or a certificate of ours, "
    "or be no broker"
)


class BrokerError(PeerError):
    """The broker cannot be reached, refuses us, or does not answer."""


class Session(aiomqtt.Client):
    """A connection to a broker.

    Attributes:
        is_resumed: Whether the broker remembers us from before.
        refusal: What the broker has refused last; empty if nothing.
        refused: How many messages of ours the broker has refused.
        is_leaving: Whether the end is ours; otherwise the broker publishes our will.
    """

    def __init__(
        self, config: MqttConfig, topics: Topics, receive: Callable[[Request], None]
    ) -> None:
        """Prepare a connection; `connected` makes it.

        Args:
            config: Where to, and as whom.
            topics: Where the broker says for us that we are gone.
            receive: Called with each message that comes in.

        Raises:
            OperatorError: A file that is needed cannot be read.
        """
        address = config.address
        super().__init__(
            address.hostname,
            address.port,
            username=config.user,
            password=config.password(),
            identifier=config.identifier,
            protocol=aiomqtt.ProtocolVersion.V5,
            will=_will(config, topics),
            timeout=ANSWER_SECONDS,
            keepalive=config.keepalive,
            clean_start=False,
            properties=_connect_properties(config),
            tls_context=_closing(config.tls_context()),
        )
        self.is_resumed = False
        self.refusal = ""
        self.refused = 0
        self.is_leaving = False
        self._is_abandoned = False
        self._max_packet_bytes = MAX_PACKET
        self._receive = receive
        self._take_over_paho(self._client)

    def _take_over_paho(self, paho: PahoClient) -> None:
        paho.manual_ack_set(True)
        paho.on_message = self._on_request
        paho.on_connect = self._on_connack
        paho.on_publish = self._on_puback
        paho.on_disconnect = self._on_end

    # In ---------------------------------------------------------------------------------------

    def _on_request(self, client: PahoClient, userdata: Any, message: MQTTMessage) -> None:
        try:
            request = _request(message)
        except UnicodeDecodeError:
            log.warning("MQTT: a topic that is not UTF-8")
            return
        try:
            self._receive(request)
        except Exception:
            # Raised from here it would end the connection, and come again with the next.
            log.exception("MQTT: %s", request.topic)
            self.acknowledge(request)

    def acknowledge(self, request: Request) -> None:
        """Tell the broker that a message needs not be sent again.

        To be done in the order in which messages came, as MQTT wants it (5.0, 4.6).
        """
        self._client.ack(request.packet_id, request.qos)

    async def subscribe_to(self, topic: str, *, only_new: bool) -> None:
        """Have the broker send us what is published to `topic`, but not by us.

        Args:
            topic: What to subscribe to.
            only_new: Whether retained messages are sent only if we were not subscribed yet.

        Raises:
            MqttError: The connection is lost.
        """
        options = SubscribeOptions(
            qos=1,
            noLocal=True,
            retainHandling=(
                SubscribeOptions.RETAIN_SEND_IF_NEW_SUB
                if only_new
                else SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE
            ),
        )
        for code in await self.subscribe(topic, options=options):
            if isinstance(code, ReasonCode) and code.is_failure:
                self._refuse(f"subscribing to {topic}: {code}")

    # Out --------------------------------------------------------------------------------------

    async def send(self, item: Outgoing) -> None:
        """Publish, and return when the broker has it.

        Raises:
            MqttError: The connection is lost, or the broker does not answer.
            ValueError: This message can never be published to this broker.
        """
        size = len(item.payload) + len(item.topic.encode()) + len(item.correlation or b"")
        if size + _OVERHEAD_BYTES > self._max_packet_bytes:
            raise ValueError(f"{size} bytes are more than the broker takes")
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if item.correlation is not None:
            properties.CorrelationData = item.correlation
        if item.payload.startswith(b"{"):
            properties.ContentType = _JSON
        await self.publish(
            item.topic, item.payload, item.qos, item.is_retained, properties=properties
        )

    def _on_puback(
        self,
        client: PahoClient,
        userdata: Any,
        mid: int,
        reason_code: ReasonCode,
        properties: Properties,
    ) -> None:
        if reason_code.is_failure:
            self.refused += 1
            self._refuse(f"publishing: {reason_code}")
        self._on_publish(client, userdata, mid, reason_code, properties)

    def _refuse(self, what: str) -> None:
        self.refusal = f"the broker refuses {what}"
        log.warning("MQTT: %s", self.refusal)

    # Life -------------------------------------------------------------------------------------

    def _on_connack(
        self,
        client: PahoClient,
        userdata: Any,
        flags: ConnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        self.is_resumed = flags.session_present
        self._max_packet_bytes = getattr(properties, "MaximumPacketSize", MAX_PACKET)
        self._on_connect(client, userdata, flags, reason_code, properties)

    def _on_end(
        self,
        client: PahoClient,
        userdata: Any,
        flags: DisconnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        # aiomqtt would go on waiting for an answer that cannot come any more.
        if not self._connected.done() and not self._is_abandoned:
            self._connected.set_exception(aiomqtt.MqttError(_ENDED))
        self._on_disconnect(client, userdata, flags, reason_code, properties)
        if self._disconnected.done() and not self._disconnected.cancelled():
            # Nobody may be waiting for it at this moment, and that is no reason to complain.
            self._disconnected.exception()

    async def lost(self) -> None:
        """Wait until the connection is lost.

        Raises:
            MqttError: It is.
        """
        async for _ in self.messages:
            pass  # they go to `receive`, never here

    async def close(self) -> None:
        """Take leave of the broker, which then does not publish our will."""
        with contextlib.suppress(aiomqtt.MqttError, TimeoutError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self.__aexit__(None, None, None)

    async def abandon(self) -> None:
        """Free the socket, whatever state the connection is in; the broker then publishes our will.

        The end of the stream, which this is to paho, makes it let go of everything.
        """
        self._is_abandoned = True
        connection = self._client.socket()
        if isinstance(connection, socket.socket):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        async with asyncio.timeout(GOODBYE_SECONDS):
            while self._client.socket() is not None:  # noqa: ASYNC110 - paho announces it to aiomqtt
                await asyncio.sleep(0.01)
        # Its last callbacks have yet to run.
        await asyncio.sleep(0)


@asynccontextmanager
async def connected(session: Session) -> AsyncIterator[None]:
    """Connect, and see to it that nothing is left of the connection at the end.

    Raises:
        BrokerError: The broker cannot be reached, refuses us or does not answer.
    """
    # The connection is made in a thread that cannot be interrupted. Were this task cancelled while
    # it waits, a connection would come about that nobody knows of.
    connecting = asyncio.ensure_future(session.__aenter__())
    try:
        await asyncio.shield(connecting)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await connecting
        await session.abandon()
        raise
    except aiomqtt.MqttError as error:
        await session.abandon()
        raise BrokerError(explain(error)) from error
    try:
        yield
    finally:
        if session.is_leaving:
            await session.close()
        await session.abandon()


def explain(error: BaseException) -> str:
    """Return what a failure means to an operator."""
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"the broker's certificate is not to be trusted: {cause.verify_message}; name the "
            "certificate authority with ca"
        )
    if isinstance(cause, ssl.SSLError):
        return f"TLS with the broker fails: {getattr(cause, 'reason', None) or cause}"
    # aiomqtt wraps what ended the connection into an error of its own.
    code = getattr(error, "rc", getattr(cause, "rc", None))
    if isinstance(code, ReasonCode):
        return _explain_code(code.getName())
    if code == MQTT_ERR_NO_CONN:
        return "the connection is lost"
    if code is not None:
        return f"the connection is lost: {error_string(code)}"
    text = str(error)
    return "the broker does not answer" if "timed out" in text else text or type(error).__name__


def _explain_code(name: str) -> str:
    if name == "Session taken over":
        return "another client uses the same client id: set host, or client-id, to something else"
    if name == "Unsupported protocol version":
        return "the broker does not speak MQTT 5"
    if name in ("Bad user name or password", "Not authorized"):
        return f"the broker refuses us: {name}; check username and password-file"
    return f"the broker ends the connection: {name}"


class _ClosingSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails, which paho leaves to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands, or leave nothing behind."""
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _closing(context: ssl.SSLContext | None) -> ssl.SSLContext | None:
    if context is not None:
        context.sslsocket_class = _ClosingSocket
    return context


def _request(message: MQTTMessage) -> Request:
    properties = message.properties
    return Request(
        topic=message.topic,
        payload=bytes(message.payload),
        qos=message.qos,
        is_retained=bool(message.retain),
        is_duplicate=bool(message.dup),
        packet_id=message.mid,
        response_topic=getattr(properties, "ResponseTopic", None),
        correlation=getattr(properties, "CorrelationData", None),
    )


def _will(config: MqttConfig, topics: Topics) -> aiomqtt.Will:
    properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
    properties.WillDelayInterval = config.will_delay
    return aiomqtt.Will(topics.availability, OFFLINE, 1, True, properties)


def _connect_properties(config: MqttConfig) -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = config.session_expiry
    properties.ReceiveMaximum = RECEIVE_MAXIMUM
    properties.MaximumPacketSize = MAX_PACKET_BYTES
    return properties
