from __future__ import annotations

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
