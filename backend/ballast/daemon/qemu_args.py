"""What a QEMU command line needs for its balloon to be ours."""

from __future__ import annotations

from pathlib import Path

from ballast_protocol.virtio.balloon import DEVICE_ID, BalloonConfig, BalloonQueue

QUEUE_SIZE = 128
"""Entries of each queue, as in QEMU's own balloon; reporting needs at least 32."""

BALLOON_ID = "balloon0"
"""The device's id, under which QMP's `qom-get` finds it."""


def balloon_arguments(socket: Path, *, bus: str = "") -> tuple[str, ...]:
    """Return the arguments that attach the device behind a vhost-user socket.

    `num_vqs` must cover every queue that can be offered, or the guest's driver does not start.
    `config_size` must be the whole config space: with 0, QEMU answers the guest's reads of
    `num_pages` with all ones, and the guest gives up all of its memory.

    Args:
        socket: Where `ballast serve` listens.
        bus: The PCI bus to plug it into; the default one if empty.
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
