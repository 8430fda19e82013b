from __future__ import annotations

import ssl

import aiomqtt
import pytest
from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from ballast.mqtt.command import Request
from ballast.mqtt.config import make_config
from ballast.mqtt.outbox import Kind, Outgoing
from ballast.mqtt.session import Session, explain
from ballast.mqtt.topics import Topics


def code(name: str) -> ReasonCode:
    return ReasonCode(PacketTypes.DISCONNECT, name)


def refused(name: str) -> ReasonCode:
    return ReasonCode(PacketTypes.CONNACK, name)


def raised(error: Exception, cause: Exception | None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "cause", "said"),
    [
        (aiomqtt.MqttCodeError(code("Session taken over")), None, "another client uses the same"),
        (aiomqtt.MqttError("x"), aiomqtt.MqttCodeError(code("Server busy")), "Server busy"),
        (aiomqtt.MqttCodeError(code("Protocol error")), None, "Protocol error"),
        (aiomqtt.MqttCodeError(refused("Unsupported protocol version")), None, "speak MQTT 5"),
        (aiomqtt.MqttCodeError(refused("Not authorized")), None, "username and password-file"),
        (aiomqtt.MqttCodeError(4), None, "the connection is lost"),
        (aiomqtt.MqttCodeError(7), None, "the connection is lost: "),
        (aiomqtt.MqttError("Operation timed out"), None, "the broker does not answer"),
        (aiomqtt.MqttError("No route to host"), None, "No route to host"),
        (aiomqtt.MqttError("x"), ssl.SSLError(1, "bad"), "TLS with the broker fails"),
        (ValueError(), None, "ValueError"),
    ],
)
def test_failures_are_told_in_words(error: Exception, cause: Exception | None, said: str) -> None:
    assert said in explain(raised(error, cause))


async def test_what_is_too_large_for_the_broker_is_not_sent() -> None:
    session = Session(
        make_config({"url": "mqtt://b"}), Topics("ballast", "h"), lambda request: None
    )
    session._max_packet_bytes = 100
    with pytest.raises(ValueError, match="more than the broker takes"):
        await session.send(Outgoing("t", b"x" * 100, Kind.EVENT))


async def test_a_bug_in_receiving_does_not_come_again_with_each_connection(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(request: Request) -> None:
        raise ZeroDivisionError

    acknowledged: list[Request] = []
    session = Session(make_config({"url": "mqtt://b"}), Topics("ballast", "h"), broken)
    monkeypatch.setattr(session, "acknowledge", acknowledged.append)
    paho = session._client
    assert paho.on_message is not None
    message = MQTTMessage(mid=7, topic=b"t")
    message.qos = 1
    paho.on_message(paho, None, message)
    assert [each.packet_id for each in acknowledged] == [7]
    assert "ZeroDivisionError" in caplog.text
