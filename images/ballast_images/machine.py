"""The QEMU command line of a guest in the form that an out-of-process balloon needs.

Its RAM is a shared memfd, which is what another process can map and give back to the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ballast_images.guest import KERNEL_ARGUMENTS, GuestImage
from ballast_images.shell import PORT_NAME
from ballast_protocol.errors import OperatorError

AGENT_PORT_NAME = "org.ballast.agent.0"
"""The virtio-serial port that the guest agent talks to the backend on."""

MEMORY_ID = "mem"
"""The id of the memory backend that is the guest's RAM."""

MAX_SOCKET_PATH_BYTES = 107
"""What `sockaddr_un` holds besides its terminating NUL (unix(7))."""

AGENT_RECONNECT_MS = 1000
"""How often QEMU tries to reach a backend that is not listening on the agent's socket."""


@dataclass(frozen=True)
class Machine:
    """A guest to be run by QEMU.

    Attributes:
        qemu: The QEMU program.
        image: What it boots.
        directory: Where its sockets and logs go; exists and has a short path.
        memory_bytes: Its RAM.
        cpus: How many virtual CPUs it has.
        accelerator: `kvm` or `tcg`.
        kernel_arguments: More for its kernel's command line.
        agent_socket: Where the backend listens for its agent; None for no agent port.
        arguments: More for QEMU, balloon device included.
        memory_options: More for the memory backend object: `hugetlb=on`.
        nodes: Over how many NUMA nodes memory and CPUs are spread.
    """

    qemu: Path
    image: GuestImage
    directory: Path
    memory_bytes: int = 2 << 30
    cpus: int = 2
    accelerator: str = "tcg"
    kernel_arguments: tuple[str, ...] = ()
    agent_socket: Path | None = None
    arguments: tuple[str, ...] = ()
    memory_options: str = ""
    nodes: int = 1

    @property
    def qmp_socket(self) -> Path:
        """QEMU's own QMP, for whoever manages the guest."""
        return self.directory / "qemu.sock"

    @property
    def control_socket(self) -> Path:
        """A second QMP monitor, for the process that started QEMU; a monitor serves one client."""
        return self.directory / "control.sock"

    @property
    def shell_socket(self) -> Path:
        """The guest's shell service."""
        return self.directory / "shell.sock"

    @property
    def console_log(self) -> Path:
        """What the guest prints on its serial console."""
        return self.directory / "console.log"

    @property
    def error_log(self) -> Path:
        """What QEMU itself prints."""
        return self.directory / "qemu.log"

    def command(self) -> list[str]:
        """Return the whole command line; what it says can be pasted into a shell.

        Raises:
            OperatorError: A path cannot be used on a QEMU command line or for a socket.
        """
        return [
            str(self.qemu),
            *("-no-user-config", "-nodefaults", "-display", "none"),
            *machine_arguments(
                self.memory_bytes,
                self.cpus,
                self.accelerator,
                options=self.memory_options,
                nodes=self.nodes,
            ),
            *boot_arguments(self.image, self.kernel_arguments),
            *("-chardev", f"file,id=console,path={_path(self.console_log)}"),
            *("-serial", "chardev:console"),
            *self._monitors(),
            *self._ports(),
            *self.arguments,
        ]

    def _monitors(self) -> tuple[str, ...]:
        return tuple(
            word
            for socket in (self.qmp_socket, self.control_socket)
            for word in ("-qmp", f"unix:{_socket(socket)},server=on,wait=off")
        )

    def _ports(self) -> tuple[str, ...]:
        return (
            *("-device", "virtio-serial-pci"),
            *shell_arguments(self.shell_socket),
            *(agent_arguments(self.agent_socket) if self.agent_socket is not None else ()),
        )


def machine_arguments(
    memory_bytes: int, cpus: int, accelerator: str, *, options: str = "", nodes: int = 1
) -> tuple[str, ...]:
    """Return the machine, its CPUs, and RAM that another process can give back.

    Args:
        memory_bytes: The RAM.
        cpus: How many virtual CPUs.
        accelerator: `kvm` or `tcg`.
        options: More for the memory backend object: `hugetlb=on`.
        nodes: Over how many NUMA nodes memory and CPUs are spread, evenly.
    """
    # A socket of its own for each node: CPUs of one socket share a cache, and so a node.
    smp = str(cpus) if nodes == 1 else f"{cpus},sockets={nodes}"
    size = ("-m", f"size={memory_bytes // 1024}K", "-cpu", "max", "-smp", smp)
    if nodes == 1:
        return (
            *("-machine", f"q35,memory-backend={MEMORY_ID}", "-accel", accelerator),
            *_memory(MEMORY_ID, memory_bytes, options),
            *size,
        )
    return (
        *("-machine", "q35", "-accel", accelerator, *size),
        *(
            word
            for node in range(nodes)
            for word in _node(node, nodes, memory_bytes, cpus, options)
        ),
    )


def _memory(name: str, size_bytes: int, options: str) -> tuple[str, str]:
    memory = f"memory-backend-memfd,id={name},size={size_bytes},share=on"
    return ("-object", f"{memory},{options}" if options else memory)


def _node(
    node: int, nodes: int, memory_bytes: int, cpus: int, options: str
) -> tuple[str, str, str, str]:
    name = f"{MEMORY_ID}{node}"
    first, last = node * cpus // nodes, (node + 1) * cpus // nodes - 1
    numa = f"node,nodeid={node},memdev={name},cpus={first}-{last}"
    return (*_memory(name, memory_bytes // nodes, options), "-numa", numa)


def boot_arguments(image: GuestImage, kernel_arguments: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return what boots a guest image, with more for its kernel's command line."""
    return (
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
        *("-append", " ".join((*KERNEL_ARGUMENTS, *kernel_arguments))),
    )


def shell_arguments(socket: Path) -> tuple[str, ...]:
    """Return the port of the guest's shell, which QEMU serves; needs a virtio-serial device.

    Raises:
        OperatorError: The path cannot be that of a socket.
    """
    return (
        *("-chardev", f"socket,id=shell,path={_socket(socket)},server=on,wait=off"),
        *("-device", f"virtserialport,chardev=shell,name={PORT_NAME}"),
    )


def agent_arguments(socket: Path) -> tuple[str, ...]:
    """Return the agent's port, behind which a backend listens; needs a virtio-serial device.

    Raises:
        OperatorError: The path cannot be that of a socket.
    """
    path = _socket(socket)
    return (
        *("-chardev", f"socket,id=agent,path={path},reconnect-ms={AGENT_RECONNECT_MS}"),
        *("-device", f"virtserialport,chardev=agent,name={AGENT_PORT_NAME}"),
    )


def _socket(path: Path) -> str:
    if len(str(path).encode()) > MAX_SOCKET_PATH_BYTES:
        raise OperatorError(
            f"the socket path {path} is longer than {MAX_SOCKET_PATH_BYTES} bytes",
            hint="Use a runtime directory with a shorter path.",
        )
    return _path(path)


def _path(path: Path) -> str:
    """Return `path` as QEMU's option syntax wants it, where a comma is written twice."""
    return str(path).replace(",", ",,")
