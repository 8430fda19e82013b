from __future__ import annotations

import json
from pathlib import Path

from ballast.daemon.qemu_args import balloon_arguments


def test_the_device_has_all_queues_and_the_whole_config_space() -> None:
    chardev, device = balloon_arguments(Path("/run/a.sock"))[1::2]
    assert chardev == "socket,id=balloon,path=/run/a.sock"
    options = dict(option.partition("=")[::2] for option in device.split(","))
    assert (options["num_vqs"], options["config_size"], options["virtio-id"]) == ("5", "16", "5")
    assert int(options["vq_size"]) >= 32
    assert "bus" not in options


def test_a_bus_and_a_comma() -> None:
    chardev, device = balloon_arguments(Path("/run/a,b.sock"), bus="rp0")[1::2]
    assert chardev.endswith("path=/run/a,,b.sock")
    assert device.endswith(",bus=rp0")


def vfio_user(socket: Path, bus: str = "") -> dict[str, object]:
    option, device = balloon_arguments(socket, transport="vfio-user", bus=bus)
    assert option == "-device"
    found = json.loads(device)
    assert isinstance(found, dict)
    return found


def test_a_vfio_user_device_waits_long_for_answers() -> None:
    device = vfio_user(Path('/run/a,b" c.sock'))
    assert device["driver"] == "vfio-user-pci"
    assert device["socket"] == {"type": "unix", "path": '/run/a,b" c.sock'}
    # QEMU's own 5 s lose the connection for good, and with it the VM at its next reset.
    assert isinstance(device["x-msg-timeout"], int)
    assert device["x-msg-timeout"] >= 60_000
    assert "bus" not in device


def test_a_vfio_user_device_on_a_bus() -> None:
    assert vfio_user(Path("/run/a.sock"), bus="rp0")["bus"] == "rp0"
