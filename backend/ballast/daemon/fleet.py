"""Joins the VMs of this process to their MQTT broker."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from ballast.daemon.config import VmConfig
from ballast.daemon.served import ServedVm
from ballast.daemon.version import ballast_version
from ballast.mqtt.bridge import Bridge, bridged
from ballast.mqtt.config import MqttConfig

log = logging.getLogger(__name__)

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_files(configs: Iterable[VmConfig]) -> None:
    """Check what a first start needs: what is wrong now was never right.

    Later, files may be on their way to being renewed; then `status` shows what is wrong.

    Raises:
        OperatorError: A file that a configuration names cannot be used.
    """
    for mqtt in _brokers(configs):
        mqtt.tls_context()
        has_password = mqtt.password() is not None
        if mqtt.insecure:
            log.warning("MQTT: %s may be anybody: its certificate is not checked", mqtt.address)
        elif has_password and not mqtt.address.uses_tls and mqtt.address.hostname not in _LOOPBACK:
            log.warning(
                "MQTT: the password goes to %s as it is; mqtts:// would encrypt it", mqtt.address
            )


@asynccontextmanager
async def in_fleets(
    machines: Sequence[ServedVm], configs: Sequence[VmConfig]
) -> AsyncIterator[None]:
    """Have VMs reachable over MQTT while the context lasts, each at its broker if it has one."""
    async with AsyncExitStack() as stack:
        for mqtt in _brokers(configs):
            names = {config.name for config in configs if config.mqtt == mqtt}
            members = [machine for machine in machines if machine.name in names]
            bridge = Bridge(mqtt, members, version=ballast_version())
            for machine in members:
                event = functools.partial(bridge.event, machine.name)
                wishes = machine.join_fleet(event, bridge.status)
                bridge.go_on(machine.name, wishes.promises(), wishes.save_promises)
            await stack.enter_async_context(bridged(bridge))
        yield


def _brokers(configs: Iterable[VmConfig]) -> list[MqttConfig]:
    brokers: list[MqttConfig] = []
    for config in configs:
        if config.mqtt is not None and config.mqtt not in brokers:
            brokers.append(config.mqtt)
    return brokers
