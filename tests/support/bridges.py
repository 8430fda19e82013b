"""Bridges at a real mosquitto, as tests have them: one VM that follows its target."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ballast.mqtt.bridge import Bridge, bridged
from ballast.mqtt.config import MqttConfig, make_config
from support.balloon_control import FakeBalloonControl
from support.mosquitto import until

HOST = "ballast/node1"
SET = f"{HOST}/vm1/target/set"


def vm(name: str = "vm1", **fields: Any) -> FakeBalloonControl:
    return FakeBalloonControl(name=name, extra_status={"state": "running", "problem": ""}, **fields)


def configuration(url: str, **options: object) -> MqttConfig:
    return make_config(
        {
            "url": url,
            "host": "node1",
            "reconnect-delay": 0.05,
            "reconnect-delay-max": 0.2,
            "state-interval": 0.02,
            "stats-interval": 0,
            "will-delay": 0,
            **options,
        }
    )


@asynccontextmanager
async def bridge_to(url: str, *vms: FakeBalloonControl, **options: object) -> AsyncIterator[Bridge]:
    config = configuration(url, **options)
    async with bridged(Bridge(config, vms or [vm()], version="1.2.3")) as bridge:
        yield bridge


async def until_connected(bridge: Bridge, *, is_connected: bool = True) -> None:
    await until(lambda: bridge.is_connected is is_connected)
