from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from ballast_images.guest import GuestImage
from ballast_images.machine import Machine
from ballast_protocol.errors import OperatorError

MACHINE = Machine(
    qemu=Path("/opt/qemu"),
    image=GuestImage(Path("/i/vmlinuz"), Path("/i/initrd"), "6.12"),
    directory=Path("/run/ballast/vm"),
)


def options(command: list[str], name: str) -> list[str]:
    """Return all values of one option."""
    return [value for key, value in pairwise(command) if key == name]


def test_ram_is_a_shared_memfd() -> None:
    command = replace(MACHINE, memory_bytes=3 << 30).command()
    assert command[0] == "/opt/qemu"
    assert options(command, "-machine") == ["q35,memory-backend=mem"]
    assert options(command, "-object") == [f"memory-backend-memfd,id=mem,size={3 << 30},share=on"]
    assert options(command, "-m") == [f"size={3 << 20}K"]


def test_memory_options_go_to_the_memory() -> None:
    command = replace(MACHINE, memory_options="hugetlb=on,hugetlbsize=2M").command()
    assert options(command, "-object")[0].endswith(",share=on,hugetlb=on,hugetlbsize=2M")


def test_memory_and_cpus_are_spread_over_nodes() -> None:
    command = replace(MACHINE, memory_bytes=2 << 30, cpus=4, nodes=2).command()
    assert options(command, "-machine") == ["q35"]
    assert options(command, "-object") == [
        f"memory-backend-memfd,id=mem{node},size={1 << 30},share=on" for node in range(2)
    ]
    assert options(command, "-numa") == [
        "node,nodeid=0,memdev=mem0,cpus=0-1",
        "node,nodeid=1,memdev=mem1,cpus=2-3",
    ]


def test_the_kernel_is_told_more() -> None:
    command = replace(MACHINE, kernel_arguments=("init_on_alloc=0", "a=b")).command()
    assert options(command, "-append") == ["console=ttyS0 quiet panic=-1 init_on_alloc=0 a=b"]
    assert options(command, "-kernel") == ["/i/vmlinuz"]
    assert options(command, "-initrd") == ["/i/initrd"]


def test_two_monitors_and_the_shell_listen() -> None:
    command = MACHINE.command()
    assert options(command, "-qmp") == [
        "unix:/run/ballast/vm/qemu.sock,server=on,wait=off",
        "unix:/run/ballast/vm/control.sock,server=on,wait=off",
    ]
    assert "socket,id=shell,path=/run/ballast/vm/shell.sock,server=on,wait=off" in command


def test_the_agents_port_connects_to_the_backend_and_is_there_only_if_wanted() -> None:
    assert not any("agent" in word for word in MACHINE.command())
    command = replace(MACHINE, agent_socket=Path("/a.sock")).command()
    assert "socket,id=agent,path=/a.sock,reconnect-ms=1000" in command
    assert "virtserialport,chardev=agent,name=org.ballast.agent.0" in command


def test_the_callers_arguments_come_last() -> None:
    command = replace(MACHINE, accelerator="kvm", arguments=("-device", "x")).command()
    assert command[-2:] == ["-device", "x"]
    assert options(command, "-accel") == ["kvm"]


def test_commas_in_paths_are_doubled() -> None:
    command = replace(MACHINE, directory=Path("/run/a,b")).command()
    assert "file,id=console,path=/run/a,,b/console.log" in command


@pytest.mark.parametrize(("length", "fits"), [(107, True), (108, False)])
def test_socket_paths_are_short(length: int, fits: bool) -> None:
    path = Path("/" + "x" * (length - 1))
    machine = replace(MACHINE, agent_socket=path)
    if fits:
        assert any(str(path) in word for word in machine.command())
        return
    with pytest.raises(OperatorError, match="longer than 107 bytes") as raised:
        machine.command()
    assert "shorter path" in raised.value.hint
