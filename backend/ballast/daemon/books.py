"""What we know a guest to have given up, beside what it says, and what the host really holds."""

from __future__ import annotations

from ballast.balloon.device import BalloonDevice
from ballast.guest_link.link import GuestLink
from ballast.memory.residency import HostMemory, allocated_bytes, rss_shmem_bytes
from ballast.transport.server import Session
from ballast_protocol.virtio.balloon import PAGE_SIZE


def given_up_bytes(device: BalloonDevice) -> int:
    """Return how much a guest has given up, through its kernel and its agent."""
    return _kernel_bytes(device) + device.blocks.hold_bytes


def status(device: BalloonDevice) -> dict[str, int]:
    """Return the books: what we know, and how far it is from what the guest says."""
    given_up = given_up_bytes(device)
    return {
        "pages": given_up // PAGE_SIZE,
        "bytes": given_up,
        "kernel-bytes": _kernel_bytes(device),
        "agent-bytes": device.blocks.hold_bytes,
        "difference-bytes": _kernel_bytes(device) - device.actual_pages * PAGE_SIZE,
        "waiting-bytes": device.pages.waiting_bytes(),
        "kept-bytes": device.pages.kept.count * PAGE_SIZE,
    }


def problem(device: BalloonDevice, session: Session | None) -> str:
    """Return what an operator should look at first; empty if nothing is wrong."""
    if session is not None and session.problem:
        return session.problem
    failure = device.pages.last_failure
    return f"the kernel refuses to free guest memory: {failure}" if failure else ""


def counters(device: BalloonDevice, link: GuestLink) -> dict[str, object]:
    """Return all that counts what happens to a guest's balloon and agent, by what it is of."""
    of_blocks = {} if link.blocks is None else {"sessions": link.blocks.counters}
    return {
        "balloon": device.metrics,
        "blocks": device.blocks.metrics,
        "agent": link.counters,
        **of_blocks,
    }


def host_memory(device: BalloonDevice, pid: int | None) -> HostMemory:
    """Return how much of a guest's memory is really here, measured in two ways.

    Args:
        device: The guest's balloon.
        pid: The process that runs the guest, if one is known.
    """
    files = device.pages.memory.files()
    return HostMemory(
        allocated_bytes=allocated_bytes(files.values()) if files else None,
        rss_shmem_bytes=rss_shmem_bytes(pid) if pid else None,
    )


def _kernel_bytes(device: BalloonDevice) -> int:
    return device.pages.ledger.count * PAGE_SIZE
