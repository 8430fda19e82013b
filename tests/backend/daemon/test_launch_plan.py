from __future__ import annotations

from pathlib import Path

import pytest

from ballast.daemon.config import VmConfig
from ballast.daemon.launch import LaunchPlan, shell_lines
from ballast_images.guest import GuestImage


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALLAST_RUNTIME_DIR", "/run/test")


def plan(*arguments: str, image: GuestImage | None = None) -> LaunchPlan:
    return LaunchPlan(
        config=VmConfig(name="web", target=1 << 30, deflate_on_oom=True),
        qemu=Path("/usr/bin/qemu-system-x86_64"),
        memory_bytes=4 << 30,
        cpus=2,
        accelerator="kvm",
        image=image,
        arguments=arguments,
    )


def test_the_memory_is_shared_and_the_config_space_whole() -> None:
    command = plan().command()
    assert "memory-backend-memfd,id=mem,size=4294967296,share=on" in command
    (device,) = [word for word in command if word.startswith("vhost-user-test-device-pci")]
    assert "virtio-id=5,num_vqs=5,vq_size=128,config_size=16" in device
    assert "socket,id=balloon,path=/run/test/web/vhost-user.sock" in command


def test_without_arguments_the_guest_of_the_house_boots_on_the_terminal() -> None:
    image = GuestImage(Path("/k"), Path("/i"), "6.12")
    command = plan(image=image).command()
    assert command[command.index("-kernel") :][:2] == ["-kernel", "/k"]
    assert "mon:stdio" in command
    assert "-kernel" not in plan("-nographic").command()


def test_each_option_is_on_a_line_of_its_own() -> None:
    assert shell_lines(["q", "-a", "b c", "-d"]) == "q \\\n  -a 'b c' \\\n  -d"
