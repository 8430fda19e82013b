"""What a QEMU command line needs for its balloon to be ours."""

from __future__ import annotations

import json
from pathlib import Path

from ballast.daemon.config import Transport
from ballast.qmp.qom import BALLOON_ID
from ballast_protocol.virtio.balloon import DEVICE_ID, BalloonConfig, BalloonQueue

QUEUE_SIZE = 128
"""Entries of each queue, as in QEMU's own balloon; reporting needs at least 32."""


MESSAGE_TIMEOUT_MS = 600_000
"""How long QEMU waits for an answer over vfio-user. One that comes later than QEMU waits makes it
lose the connection for good, so its own 5 s are too short for a busy host."""


def balloon_arguments(
    socket: Path, *, transport: Transport = "vhost-user", bus: str = ""
) -> tuple[str, ...]:
    """Return the arguments that attach the device behind a socket.

    Args:
        socket: Where `ballast serve` listens.
        transport: What is spoken there.
        bus: The PCI bus to plug it into; the default one if empty.
    """
    if transport == "vfio-user":
        return _vfio_user(socket, bus)
    return _vhost_user(socket, bus)


def _vfio_user(socket: Path, bus: str) -> tuple[str, ...]:
    device: dict[str, object] = {
        "driver": "vfio-user-pci",
        "id": BALLOON_ID,
        "socket": {"type": "unix", "path": str(socket)},
        "x-msg-timeout": MESSAGE_TIMEOUT_MS,
    }
    if bus:
        device["bus"] = bus
    return "-device", json.dumps(device)


def _vhost_user(socket: Path, bus: str) -> tuple[str, ...]:
    """Return a chardev and QEMU's generic vhost-user device.

    `num_vqs` must cover every queue that can be offered, or the guest's driver does not start.
    `config_size` must be the whole config space: with 0, QEMU answers the guest's reads of
    `num_pages` with all ones, and the guest gives up all of its memory.
    """
    path = str(socket).replace(",", ",,")
    device = (
        f"vhost-user-test-device-pci,id={BALLOON_ID},chardev=balloon,virtio-id={DEVICE_ID},"
        f"num_vqs={len(BalloonQueue)},vq_size={QUEUE_SIZE},config_size={BalloonConfig.SIZE}"
    )
    return (
        *("-chardev", f"socket,id=balloon,path={path}"),
        *("-device", f"{device},bus={bus}" if bus else device),
    )
